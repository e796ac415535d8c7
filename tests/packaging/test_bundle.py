"""The bundle: built, verified, installed without a network on Debian's own Python, and refused where a byte differs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts.kit.machine import start_machine
from scripts.packaging import install
from tests.kit.wheelhouse import make_wheel, make_wheelhouse, require

pytestmark = pytest.mark.outside
NO_ID = 0xFFFF_FFFF
"""The id of an entry of an access list that names no account."""

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "0.1.0.dev1+gaaaaaaaa", "0.1.0.dev2+gbbbbbbbb"
DEBIAN_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    """scripts/bundle."""
    loader = SourceFileLoader("bundle", str(ROOT / "scripts" / "bundle"))
    spec = importlib.util.spec_from_loader("bundle", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with release.key and release.pem, and another pair."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("release", "other"):
        key = folder / f"{name}.key"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", folder / f"{name}.pem"], check=True)
    return folder


def build(site: Path, wheels: Path, output: Path, *options: str) -> Path:
    command = [sys.executable, ROOT / "scripts" / "bundle", "--key", site / "release.key", "--wheels", wheels]
    done = subprocess.run([*command, "--output", output, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def unpack(bundle: Path, folder: Path) -> Path:
    with tarfile.open(bundle) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def bundles(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        version: build(site, make_wheelhouse(folder / version, version), folder / "dist", "--no-deb")
        for version in (OLD, NEW)
    }


@pytest.fixture
def unpacked(bundles: dict[str, Path], tmp_path: Path) -> Path:
    return unpack(bundles[OLD], tmp_path / "unpacked")


@pytest.fixture
def resign(builder: ModuleType, site: Path) -> Callable[[Path], None]:
    """Sign a changed bundle again, as its maker could."""

    def sign(folder: Path) -> None:
        for name in (install.SUMS, install.SIGNATURE):
            (folder / name).unlink()
        builder.sign(folder, site / "release.key")

    return sign


def typed(folder: Path, site: Path, prefix: Path, *options: str, key: str = "release.pem") -> tuple[int, str]:
    """Type the documented command, in an empty network namespace and with Debian's own Python."""
    command = [sys.executable, ROOT / "tests" / "kit" / "alone.py", DEBIAN_PYTHON, "-I", folder / "install"]
    given = ["--key", site / key, "--prefix", prefix, *options]
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=False, cwd="/")
    return done.returncode, done.stderr


def current(prefix: Path) -> str:
    """Return the version that the current program says it is."""
    done = subprocess.run([prefix / "current/bin/appliance", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def test_a_bundle_is_installed_without_a_network_and_a_later_one_beside_it(
    bundles: dict[str, Path], site: Path, tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix"
    for version in (OLD, NEW, OLD):  # the last one goes back to what is there already
        folder = unpack(
            bundles[version], tmp_path / f"{version}-{prefix.exists()}-{(prefix / 'versions' / NEW).exists()}"
        )
        is_older = version == OLD and (prefix / "versions" / NEW).exists()
        if is_older:
            code, said = typed(folder, site, prefix)
            assert code == 5 and f"expected {NEW} or a later one" in said and current(prefix) == NEW
        code, said = typed(folder, site, prefix, *(["--older"] if is_older else []))
        assert code == 0, said
        assert current(prefix) == version
        assert os.readlink(prefix / "current") == f"versions/{version}"
    assert {path.name for path in (prefix / "versions").iterdir()} == {OLD, NEW}
    assert {path.name for path in prefix.iterdir()} == {"versions", "current", "upgrade", ".lock"}
    packages = next((prefix / "current/lib").glob("python3*")) / "site-packages"
    assert list((packages / "appliance/cli/__pycache__").glob("main.*.pyc")), "no service can write to it later"
    assert not list(packages.glob("*.pth")) and not (packages / "pip").exists()


def test_the_documented_commands_verify_a_bundle(bundles: dict[str, Path], site: Path, tmp_path: Path) -> None:
    folder = unpack(bundles[OLD], tmp_path / "b")
    openssl = "openssl pkeyutl -verify -pubin -inkey {} -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig"
    subprocess.run(openssl.format(site / "release.pem").split(), cwd=folder, check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert subprocess.run(openssl.format(site / "other.pem").split(), cwd=folder, check=False).returncode != 0
    assert typed(folder, site, tmp_path / "prefix", "--verify")[0] == 0
    assert not (tmp_path / "prefix").exists()


def test_the_same_wheels_give_the_same_bytes(bundles: dict[str, Path], site: Path, tmp_path: Path) -> None:
    again = build(site, make_wheelhouse(tmp_path / "w", OLD), tmp_path / "dist", "--no-deb")
    assert again.read_bytes() == bundles[OLD].read_bytes()


def test_a_truncated_bundle_installs_nothing(bundles: dict[str, Path], site: Path, tmp_path: Path) -> None:
    data = bundles[OLD].read_bytes()
    for part in (0.2, 0.6, 0.95):
        folder, cut = tmp_path / f"cut-{part}", tmp_path / "cut"
        cut.write_bytes(data[: int(len(data) * part)])
        folder.mkdir()
        subprocess.run(["tar", "-xf", cut, "-C", folder], capture_output=True, check=False)
        if not (folder / "install").exists():
            continue
        code, said = typed(folder, site, tmp_path / "prefix")
        assert code == 6, said
    assert not (tmp_path / "prefix").exists()


ALTERED = ("SHA256SUMS", "SHA256SUMS.sig", "systemd/appliance.service", "wheels/requirements.txt", "sbom.cdx.json",
           "selftest.py", "pip/*", "wheels/lib-*")  # fmt: skip


@pytest.mark.parametrize("pattern", ALTERED)
def test_one_altered_byte_installs_nothing(pattern: str, unpacked: Path, site: Path, tmp_path: Path) -> None:
    (path,) = unpacked.glob(pattern)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, said = typed(unpacked, site, tmp_path / "prefix")
    assert code == 6, said
    assert not (tmp_path / "prefix").exists()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda b: (b / "wheels" / "more.whl").write_text("x"), 6, "only files that are signed"),
        (lambda b: (b / "wheels" / "sitecustomize.py").symlink_to("/etc/passwd"), 6, "a plain file"),
        (lambda b: (b / "LICENSE").unlink(), 6, "all files that are signed"),
        (lambda b: (b / "wheels").chmod(0o777), 6, "only you can write"),
    ],
)
def test_other_files_than_the_signed_ones_install_nothing(
    change: Callable[[Path], object], code: int, words: str, unpacked: Path, site: Path, tmp_path: Path
) -> None:
    change(unpacked)
    got, said = typed(unpacked, site, tmp_path / "prefix")
    assert (got, words in said) == (code, True), said
    assert not (tmp_path / "prefix").exists()


def test_a_bundle_is_believed_under_a_key_from_elsewhere_alone(unpacked: Path, site: Path, tmp_path: Path) -> None:
    code, said = typed(unpacked, site, tmp_path / "prefix", key="other.pem")
    assert code == 6 and said.endswith("other.pem, got one by another key or of other files\n")
    code, said = typed(unpacked, site, tmp_path / "prefix", key="release.key")
    assert code == 2 and "expected a public key" in said
    shutil.copy(site / "release.pem", unpacked)
    code, said = typed(unpacked, unpacked, tmp_path / "prefix")
    assert code == 2 and "from outside of the bundle" in said
    (unpacked / "release.pem").unlink()
    code, said = typed(unpacked, site, tmp_path / "prefix", key="none.pem")
    assert code == 2 and "came by another way" in said


def test_a_prefix_that_others_can_write_to_is_refused(unpacked: Path, site: Path, tmp_path: Path) -> None:
    """Somebody could replace the programs between their installation and their use."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "link").symlink_to(shared)
    (shared / "mine").mkdir()
    for mode, prefix in (
        (0o777, shared),
        (0o777, shared / "new"),
        (0o777, shared / "mine"),
        (0o1777, shared),
        (0o775, shared / "new"),
        (0o777, tmp_path / "link" / "new"),
    ):
        shared.chmod(mode)
        code, said = typed(unpacked, site, prefix)
        assert code == 2 and f"expected that {shared} is yours or root's" in said.replace("link", "shared"), said
        assert [path.name for path in shared.iterdir()] == ["mine"] and not list((shared / "mine").iterdir())
    shared.chmod(0o1777)
    assert install.find_shared(shared / "new") is None, "a sticky folder keeps what is made in it"
    assert install.find_shared(shared) == shared
    if os.geteuid() == 0:
        os.chown(shared / "mine", 4242, -1)
        assert install.find_shared(shared / "mine" / "new") == shared / "mine"
        shared.chmod(0o755)
        os.chown(tmp_path / "link", 4242, -1, follow_symlinks=False)
        assert install.find_shared(tmp_path / "link" / "new") == tmp_path / "link", "its owner can lead it elsewhere"


def test_a_prefix_that_gives_others_an_access_list_is_refused(tmp_path: Path) -> None:
    """A folder made in it would be writable for an account that the list names, whatever the umask is."""
    entries = ((0x01, 7, NO_ID), (0x02, 7, 4242), (0x04, 5, NO_ID), (0x10, 7, NO_ID), (0x20, 5, NO_ID))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    parent, written = tmp_path / "opt", tmp_path / "written"
    for folder in (parent, written):
        folder.mkdir(mode=0o755)
        install.check_prefix(folder)
    os.setxattr(parent, install.DEFAULT_LIST, acl)
    (parent / "appliance").mkdir(mode=0o755)
    os.setxattr(written, "system.posix_acl_access", acl)
    for folder, said in (
        (parent / "appliance", f"remove it (setfacl -k {parent / 'appliance'})"),
        (written, f"expected that {written} is yours or root's and that only its owner can write to it"),
    ):
        with pytest.raises(install.Refused) as refused:
            install.check_prefix(folder)
        assert refused.value.code == 2 and said in str(refused.value)


def test_wheels_of_another_python_and_a_folder_of_the_bundle_are_refused(
    unpacked: Path, site: Path, resign: Callable[[Path], None], tmp_path: Path
) -> None:
    code, said = typed(unpacked, site, unpacked / "relative")
    assert code == 2 and "expected a folder outside of the bundle" in said
    next((unpacked / "wheels").glob("appliance-*")).rename(
        unpacked / "wheels" / f"appliance-{OLD}-cp37.cp38-cp37m-linux_x86_64.whl"
    )
    resign(unpacked)
    code, said = typed(unpacked, site, tmp_path / "prefix")
    assert code == 7 and "Python: expected 3.7, for which appliance-" in said and "type python3.7 -I install" in said
    assert not (tmp_path / "prefix").exists()


def test_help_explains_each_option(unpacked: Path) -> None:
    done = subprocess.run(
        [DEBIAN_PYTHON, "-I", unpacked / "install", "--help"], capture_output=True, text=True, check=True
    )
    for words in ("by another way", "no accounts and no units", "verify the bundle and end", "older than the current"):
        assert words in " ".join(done.stdout.split())


def add_source(wheels: Path) -> None:
    (wheels / "lib-1.2.tar.gz").write_bytes(b"a source distribution")


def add_start_file(wheels: Path) -> None:
    make_wheel(wheels, "evil", "1", {"evil.pth": "import os\n"})
    require(wheels)


def add_site_module(wheels: Path) -> None:
    make_wheel(wheels, "evil", "1", {"evil-1.data/purelib/sitecustomize.py": "X = 1\n"})
    require(wheels)


def add_unnamed_wheel(wheels: Path) -> None:
    make_wheel(wheels, "more", "1", {"more.py": ""})


def drop_wheel(wheels: Path) -> None:
    next(wheels.glob("lib-*")).unlink()


def add_index(wheels: Path) -> None:
    require(wheels, "--extra-index-url https://example.com/simple")


def add_address(wheels: Path) -> None:
    require(wheels, "more @ https://example.com/more.whl --hash=sha256:" + "0" * 64)


def add_without_hash(wheels: Path) -> None:
    require(wheels, "more==1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add_source, "expected a wheel"),
        (add_start_file, "runs at each start of Python, got evil.pth"),
        (add_site_module, "runs at each start of Python"),
        (add_unnamed_wheel, "expected one of the requirements"),
        (drop_wheel, "expected one of lib, got none"),
        (add_index, "expected NAME==VERSION with hashes"),
        (add_address, "expected NAME==VERSION with hashes"),
        (add_without_hash, "expected NAME==VERSION with hashes"),
    ],
)
def test_wheels_that_must_not_be_installed_are_refused_although_they_are_signed(
    change: Callable[[Path], None],
    words: str,
    unpacked: Path,
    site: Path,
    tmp_path: Path,
    resign: Callable[[Path], None],
) -> None:
    change(unpacked / "wheels")
    resign(unpacked)
    code, said = typed(unpacked, site, tmp_path / "prefix")
    assert (code, words in said) == (6, True), said
    assert not (tmp_path / "prefix").exists()


def test_a_build_refuses_them_as_well(tmp_path: Path, site: Path) -> None:
    wheels = make_wheelhouse(tmp_path / "w", OLD)
    add_start_file(wheels)
    command = [sys.executable, ROOT / "scripts" / "bundle", "--key", site / "release.key", "--wheels", wheels]
    done = subprocess.run(
        [*command, "--output", tmp_path / "d", "--no-deb"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 6 and "evil.pth" in done.stderr
    assert list((tmp_path / "d").iterdir()) == []


def make_bases(folder: Path) -> tuple[Path, Path]:
    """Make a folder as a model hub has it, whose files are links, and a single file."""
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "1").write_bytes(b"weights")
    (folder / "tiny").mkdir()
    (folder / "tiny" / "model.safetensors").symlink_to(folder / "blobs" / "1")
    (folder / "tiny" / ".cache").mkdir()
    (folder / "small.gguf").write_bytes(b"GGUF")
    return folder / "tiny", folder / "small.gguf"


def test_base_models_come_with_a_bundle(site: Path, tmp_path: Path) -> None:
    tiny, small = make_bases(tmp_path / "models")
    wheels, prefix = make_wheelhouse(tmp_path / "w", OLD), tmp_path / "prefix"
    bundle = build(site, wheels, tmp_path / "dist", "--no-deb", "--base", str(tiny), "--base", str(small))
    folder = unpack(bundle, tmp_path / "b")
    assert {path.name for path in folder.glob("bases/**/*")} == {"tiny", "model.safetensors", "small.gguf"}
    weights = folder / "bases/tiny/model.safetensors"
    weights.write_bytes(b"weightz")
    code, said = typed(folder, site, prefix)
    assert code == 6 and "bases/tiny/model.safetensors" in said and not prefix.exists()
    weights.write_bytes(b"weights")
    for _ in range(2):  # the second time they are there
        code, said = typed(folder, site, prefix)
        assert code == 0, said
        assert (prefix / "bases/tiny/model.safetensors").read_bytes() == b"weights"
        assert (prefix / "bases/small.gguf").read_bytes() == b"GGUF"
    (prefix / "bases/small.gguf").write_bytes(b"another")
    code, said = typed(folder, site, prefix)
    assert code == 5 and "expected the base of this bundle, got another one" in said


# --- failures of an installation --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(bundles: dict[str, Path], site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Install OLD. Return its prefix and a copy of it. Programs name the prefix, so it stays in its place."""
    folder = tmp_path_factory.mktemp("installed")
    prefix, copy = folder / "prefix", folder / "copy"
    code, said = typed(unpack(bundles[OLD], folder / "old"), site, prefix)
    assert code == 0, said
    shutil.copytree(prefix, copy, symlinks=True)
    return prefix, copy


@pytest.fixture
def installed(first: tuple[Path, Path]) -> Iterator[Path]:
    """Yield the prefix of an installation of OLD, which each failure must leave as it is."""
    prefix, copy = first
    shutil.rmtree(prefix)
    shutil.copytree(copy, prefix, symlinks=True)
    yield prefix
    assert current(prefix) in (OLD, NEW)
    assert not (prefix / ".current.new").exists()


def test_a_self_test_that_fails_leaves_the_current_version(installed: Path, site: Path, tmp_path: Path) -> None:
    wheels = make_wheelhouse(tmp_path / "w", NEW, says="another")
    folder = unpack(build(site, wheels, tmp_path / "dist", "--no-deb"), tmp_path / "new")
    code, said = typed(folder, site, installed)
    assert code == 7 and f"expected {NEW}, got 'appliance another'" in said
    assert current(installed) == OLD and not (installed / "versions" / NEW).exists()


def test_an_environment_that_cannot_be_made_leaves_the_current_version(
    installed: Path, site: Path, tmp_path: Path
) -> None:
    wheels = make_wheelhouse(tmp_path / "w", NEW)
    make_wheel(wheels, "lib", "1.3", {}, metadata="Requires-Dist: nowhere")
    next(wheels.glob("lib-1.2*")).unlink()
    require(wheels)
    folder = unpack(build(site, wheels, tmp_path / "dist", "--no-deb"), tmp_path / "new")
    code, said = typed(folder, site, installed)
    assert code == 7 and "pip install: expected exit code 0" in said and "nowhere" in said
    assert current(installed) == OLD and not (installed / "versions" / NEW).exists()


CUT = """
import os, sys
sys.path.insert(0, {folder!r})
sys.argv = ["install", "--key", {key!r}, "--prefix", {prefix!r}]
import importlib.machinery, importlib.util
loader = importlib.machinery.SourceFileLoader("bundle_install", {folder!r} + "/install")
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bundle_install", loader))
loader.exec_module(module)
sys.dont_write_bytecode = True
left, call = {skipped}, {place}
def cut(*arguments, **named):
    global left
    left -= 1
    return os._exit(9) if left < 0 else call(*arguments, **named)
{place} = cut
module.main()
"""


@pytest.mark.parametrize(
    ("place", "skipped", "expected"),
    [
        ("module.self_test", 0, OLD),
        ("module.write", 0, OLD),
        ("module.switch", 0, OLD),
        ("os.replace", 0, OLD),
        ("module.sync", 2, NEW),  # at once after the switch, and before it is on the disk
        ("module.say", 2, NEW),
    ],
)
def test_a_power_cut_leaves_one_version_whole_and_the_next_attempt_goes_through(
    place: str, skipped: int, expected: str, installed: Path, bundles: dict[str, Path], site: Path, tmp_path: Path
) -> None:
    folder = unpack(bundles[NEW], tmp_path / "new")
    values = {"folder": str(folder), "key": str(site / "release.pem"), "prefix": str(installed)}
    program = CUT.format(**values, place=place, skipped=skipped)
    done = subprocess.run([DEBIAN_PYTHON, "-I", "-B", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert current(installed) == expected
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    code, said = typed(folder, site, installed)
    assert code == 0, said
    assert current(installed) == NEW


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, installed: Path, tmp_path: Path) -> Path:
    """Run the program in this process, for failures that nobody can type. Its default prefix is the installation."""
    monkeypatch.setattr(install, "PREFIX", installed)
    monkeypatch.setattr(install, "LOCAL", tmp_path / "local")
    monkeypatch.setattr(install, "_DPKG", tmp_path / "none")
    monkeypatch.setattr(sys, "executable", DEBIAN_PYTHON)
    return installed


def test_a_switch_that_fails_leaves_the_current_version(
    ours: Path, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = unpack(bundles[NEW], tmp_path / "new")
    with monkeypatch.context() as patched:
        patched.setattr(install.os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            install.install(folder, "digest", ours)
    assert current(ours) == OLD


def test_an_error_after_the_switch_leaves_the_new_version_and_a_second_attempt_ends_it(
    ours: Path, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run, ran = unpack(bundles[NEW], tmp_path / "new"), install.run, []

    def fail(*command: str | Path, what: str) -> str:
        if what not in ("accounts", "folders", "systemd"):
            return run(*command, what=what)
        ran.append(what)
        if failing:
            raise install.Refused(7, f"{what}: expected exit code 0, got 1")
        return ""

    failing = True
    monkeypatch.setattr(install, "run", fail)
    with pytest.raises(install.Refused, match="accounts"):
        install.install(folder, "digest", ours)
    assert current(ours) == NEW
    failing = False
    install.install(folder, "digest", ours)
    assert ran[1:4] == ["accounts", "accounts", "folders"]
    unit = tmp_path / "local/systemd/system/appliance.service"
    assert unit.read_bytes() == (ROOT / "scripts/packaging/systemd/appliance.service").read_bytes()


def test_another_bundle_of_the_same_version_is_refused(
    installed: Path, site: Path, unpacked: Path, resign: Callable[[Path], None]
) -> None:
    (unpacked / "LICENSE").write_text("another")
    resign(unpacked)
    code, said = typed(unpacked, site, installed)
    assert code == 5 and "got one of the same version" in said


def test_one_installation_works_at_a_time_and_none_over_a_debian_package(
    ours: Path, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpack(bundles[NEW], tmp_path / "new")
    with install.hold_lock(ours), pytest.raises(install.Refused, match="another installation"):
        install.install(folder, "digest", ours)
    (tmp_path / "list").touch()
    monkeypatch.setattr(install, "_DPKG", tmp_path / "list")
    with pytest.raises(install.Refused, match="no Debian package"):
        install.install(folder, "digest", ours)
    assert current(ours) == OLD


# --- what is in a bundle ----------------------------------------------------------------------------------------------


def test_a_bundle_has_programs_units_licences_and_a_bill_of_materials(unpacked: Path) -> None:
    present = {path.name for path in unpacked.iterdir()} - {"manual"}
    assert present == {
        *("SHA256SUMS", "SHA256SUMS.sig", "install", "selftest.py", "LICENSE", "sbom.cdx.json", "compatibility.json"),
        *("wheels", "pip", "systemd", "sysusers", "tmpfiles", "monitoring", "oci", "programs", "licences"),
    }
    assert {path.name for path in (unpacked / "programs").iterdir()} == {
        "appliance-verify.pyz",
        "appliance-witness.pyz",
        "appliance-upgrade.pyz",
    }
    assert (unpacked / "licences/lib-1.2-LICENSE").read_text() == "the licence of lib\n"
    bom = json.loads((unpacked / "sbom.cdx.json").read_text())
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.7")
    (lib,) = bom["components"]
    assert lib["purl"] == "pkg:pypi/lib@1.2" and lib["licenses"] == [{"license": {"name": "MIT License"}}]
    (wheel,) = (unpacked / "wheels").glob("lib-*")
    assert lib["hashes"] == [{"alg": "SHA-256", "content": install.digest(wheel)}]
    own = bom["metadata"]["component"]
    assert own["version"] == OLD and own["licenses"] == [{"expression": "Apache-2.0"}]
    assert {one["ref"]: one["dependsOn"] for one in bom["dependencies"]} == {
        own["bom-ref"]: [lib["bom-ref"]],
        lib["bom-ref"]: [],
    }


@pytest.mark.timeout(300)
def test_an_upgrade_under_systemd_goes_there_and_back(
    bundles: dict[str, Path], site: Path, resign: Callable[[Path], None], tmp_path: Path
) -> None:
    """Installed as it is documented, refused without a backup, taken back after a start that fails, and finalised."""
    old, new = (unpack(bundles[version], tmp_path / version) for version in (OLD, NEW))
    unit = new / "systemd/appliance.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=120", "WatchdogSec=60"))
    resign(new)
    home, upgrade = "/var/lib/appliance", "/usr/lib/appliance/upgrade"
    with start_machine(tmp_path) as machine:

        def check(version: str, watchdog: str, revision: str) -> None:
            names = "ActiveState,UnitFileState,WatchdogUSec,StatusText,FragmentPath"
            assert set(machine.run(f"systemctl show appliance -p {names}").splitlines()) == {
                *("ActiveState=active", "UnitFileState=enabled", f"WatchdogUSec={watchdog}"),
                *(f"StatusText={version}", "FragmentPath=/usr/local/lib/systemd/system/appliance.service"),
            }
            assert machine.run(f"cat {home}/revision") == revision
            assert machine.run("ls /run/systemd/system | grep upgrade || true") == ""

        for folder in (old, new):
            shutil.copytree(folder, machine.share / folder.name)
        shutil.copy(site / "release.pem", machine.share)
        install_new = f"{DEBIAN_PYTHON} -I /mnt/{NEW}/install --key /mnt/release.pem 2>&1"
        machine.run(f"""
            {DEBIAN_PYTHON} -I /mnt/{OLD}/install --key /mnt/release.pem 2>&1
            install -m 600 -o appliance -g appliance /dev/null {home}/trust.json
            printf a >/tmp/revision
            install -m 600 -o appliance -g appliance /tmp/revision {home}/revision
            systemctl enable appliance 2>&1
            systemctl restart appliance
        """)
        check(OLD, "2min", "a")
        said = machine.run(install_new, fails=True)
        assert "expected one before the upgrade" in said and "backup_recipients" in said, said
        check(OLD, "2min", "a")
        machine.run(f"touch {home}/recipients; printf {NEW} >{home}/broken; chmod 644 {home}/broken")
        said = machine.run(f"{install_new} || {{ code=$?; echo code $code; exit $code; }}", fails=True)
        assert "this start is broken" in said and f"{OLD} serves again" in said and "code 8" in said, said
        check(OLD, "2min", "a")
        # A step that an interrupted upgrade left running is not taken for the next one.
        machine.run(f"""
            rm {home}/broken; touch {home}/slow
            {upgrade} to {NEW} 2>/dev/null & ended=$!
            until test -e {home}/waits; do sleep 0.1; done
            kill -KILL $ended; wait $ended || true
            rm {home}/slow
        """)
        machine.run(install_new)
        check(NEW, "1min", "b")
        assert f"from {OLD} to {NEW}, complete" in machine.run(f"{upgrade} status")
        machine.run(f"{upgrade} rollback")
        check(OLD, "2min", "a")
        machine.run(f"{upgrade} to {NEW}; {upgrade} finalize")
        check(NEW, "1min", "b")
        assert machine.run("ls /usr/lib/appliance/versions") == f"{NEW}\n"
        log = machine.run(f"cat {home}/log").split()[1::2]
        assert log == [OLD, OLD, NEW, OLD, NEW]
