#!/usr/bin/env -S python3 -I
"""Installs the bundle that this file lies in: verifies all of it, installs it beside the current version, switches.

    python3 -I install --key release.pem

In this order: the signature, each file's digest and that no other file is there; the wheels; a new environment in
PREFIX/versions/VERSION, from the wheels alone; its self-test. An error before that leaves the current version as it is.
Then, on a host without an appliance, PREFIX/current points to the version, and systemd has its units. On a host with
one, PREFIX/upgrade upgrades it, with a way back.

It needs Python 3.11 or later and openssl, and no network. Exit codes: 2 arguments, 5 another installation, 6 the bundle
is not what was signed, 7 the machine, 8 the previous version serves again, 130 interrupted.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
PREFIX = Path("/usr/lib/appliance")
ALLOWED_PTH = {("setuptools", "distutils-precedence.pth")}
"""Files that run code at each start of Python, by distribution. Wheels with others are refused."""
COMPLETE = ".complete"
"""The file in a version's folder that has the digest of the bundle, once its self-test has passed."""
UNITS = {"systemd": "systemd/system", "sysusers": "sysusers.d", "tmpfiles": "tmpfiles.d"}
"""Folders of the bundle, and where systemd finds such files below /usr/local/lib."""
LOCAL = Path("/usr/local/lib")
UPGRADE = "programs/appliance-upgrade.pyz"
"""The file of the bundle that becomes PREFIX/upgrade."""
BASES = "bases"
"""The folder of base models, in the bundle and in PREFIX."""
DEFAULT_LIST = "system.posix_acl_default"
"""The extended attribute of a folder's default access control list."""
STATE = Path("/var/lib")
"""The folder of the homes of services."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell."""
_SUM = re.compile(r"([0-9a-f]{64})  ((?:[A-Za-z0-9_+@~][A-Za-z0-9._+@~-]*/)*[A-Za-z0-9_+@~.][A-Za-z0-9._+@~-]*)")
_BUILT_FOR = re.compile(r"-cp3(\d+)(?:\.[a-z0-9.]+)?-(?!abi3)[a-z0-9.]+-[a-z0-9_.]+\.whl$")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!_-]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_VERSION = re.compile(r"(\d+(?:\.\d+)*)(?:(a|b|rc)(\d+))?(?:\.post(\d+))?(?:\.dev(\d+))?(?:\+[a-z0-9.]+)?")
_DPKG = Path("/var/lib/dpkg/info/appliance.list")


class Refused(Exception):
    """A reason to end, with the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


# --- the bundle -------------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """Return the SHA-256 of a plain file, in hex."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, by their relative paths."""
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise Refused(6, f"bundle, {path.relative_to(folder)}: expected a plain file, got a link or another kind")
        if status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
            raise Refused(6, f"bundle, {path}: expected that only you can write to it; type: chmod -R go-w {folder}")
        if stat.S_ISREG(status.st_mode):
            yield path.relative_to(folder).as_posix()


def verify_signature(folder: Path, key: Path) -> None:
    """Verify the signature over the digests."""
    if not key.is_file():
        raise Refused(2, f"key, {key}: expected the public key that came by another way, got no file")
    if key.resolve().is_relative_to(folder.resolve()):
        raise Refused(2, f"key, {key}: expected one from outside of the bundle, which could bring any key")
    if "-----BEGIN PUBLIC KEY-----" not in key.read_text(encoding="ascii", errors="replace"):
        raise Refused(2, f"key, {key}: expected a public key, as openssl pkey -pubout writes it, got another file")
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin", "-in", folder / SUMS]
    try:
        done = subprocess.run([*command, "-sigfile", folder / SIGNATURE], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Refused(7, f"openssl: expected it to be installed, got: {error.strerror}") from None
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip()
        got = "one by another key or of other files"
        if "Verification Failure" not in said:
            got = f"an error of openssl: {said.partition(chr(10))[0]:.200}"
        raise Refused(6, f"bundle, {SIGNATURE}: expected a signature by {key}, got {got}")


def parse_sums(text: str) -> dict[str, str]:
    """Return the digests by path."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = _SUM.fullmatch(line)
        if match is None or match[2] in found:
            raise Refused(6, f"bundle, {SUMS}: expected a digest and a path that is there once, got {line!r:.100}")
        found[match[2]] = match[1]
    return found


def find_shared(folder: Path) -> Path | None:
    """Return a folder through which somebody else can replace what is in this folder, or None.

    Parents that do not exist yet are left out. A sticky parent, such as /tmp, keeps what is in it.
    """
    trusted = {0, os.geteuid(), Path("/").stat().st_uid}
    for place in dict.fromkeys((folder, *folder.parents, folder.resolve(), *folder.resolve().parents)):
        try:
            status, link = place.stat(), place.lstat()
        except FileNotFoundError:
            continue
        is_itself = place in (folder, folder.resolve())
        is_shared = status.st_mode & 0o022 and (is_itself or not status.st_mode & stat.S_ISVTX)
        if is_shared or not {status.st_uid, link.st_uid} <= trusted:
            return place
    return None


def has_default_list(folder: Path) -> bool:
    """Return True if a folder gives an access control list to all that is made in it, in place of the umask.

    An access list of the folder itself need not be read: its mode shows the most that the list gives to others.
    """
    try:
        os.getxattr(folder, DEFAULT_LIST)
    except OSError:  # there is no list, no folder, or no list on this file system
        return False
    return True


def check_place(folder: Path) -> None:
    """Check that nobody else can replace what is in the bundle between its verification and its use."""
    if (place := find_shared(folder)) is not None:
        raise Refused(6, f"bundle, {place}: expected that only you can write to it; unpack the bundle below /root")


def check_prefix(prefix: Path) -> None:
    """Check that nobody else can replace the programs that are installed below a folder."""
    if (place := find_shared(prefix)) is not None:
        raise Refused(
            2,
            f"prefix, {prefix}: expected that {place} is yours or root's and that only its owner can write to it; "
            f"correct its owner and mode (chmod go-w {place}), or name another folder, such as one below /opt",
        )
    if has_default_list(prefix):
        raise Refused(
            2,
            f"prefix, {prefix}: expected no default access list, which gives other accounts rights to all that is made "
            f"there; remove it (setfacl -k {prefix}), or name another folder",
        )


def verify(folder: Path, key: Path) -> str:
    """Verify the whole bundle, and return its digest."""
    check_place(folder)
    files = set(list_files(folder))
    for name in (SUMS, SIGNATURE):
        if name not in files:
            raise Refused(6, f"bundle, {name}: expected it beside this program, got none")
    verify_signature(folder, key)
    listed = parse_sums((folder / SUMS).read_text(encoding="utf-8"))
    if missing := sorted(listed.keys() - files):
        raise Refused(6, f"bundle: expected all files that are signed, got none named {missing[0]}")
    if more := sorted(files - listed.keys() - {SUMS, SIGNATURE}):
        raise Refused(6, f"bundle, {more[0]}: expected only files that are signed, got another one")
    for name, expected in listed.items():
        if (got := digest(folder / name)) != expected:
            raise Refused(6, f"bundle, {name}: expected sha256 {expected}, got {got}")
    return digest(folder / SUMS)


# --- the wheels -------------------------------------------------------------------------------------------------------


def parse_requirements(text: str) -> dict[str, tuple[str, set[str]]]:
    """Return versions and digests by distribution.

    Each entry names one version and its digests; an option or an address is refused.
    """
    found: dict[str, tuple[str, set[str]]] = {}
    lines = (line.partition(" #")[0].strip() for line in text.replace("\\\n", " ").splitlines())
    for line in lines:
        if not line or line.startswith("#"):
            continue
        requirement, *hashes = line.split()
        match, digests = _REQUIREMENT.fullmatch(requirement), [_HASH.fullmatch(one) for one in hashes]
        if match is None or not digests or None in digests:
            raise Refused(6, f"requirements: expected NAME==VERSION with hashes, got {line!r:.100}")
        found[normalise(match[1])] = (match[2], {one[1] for one in digests if one})
    return found


def normalise(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def check_wheels(wheels: Path) -> dict[str, str]:
    """Check that a folder has requirements and their wheels alone, and return the versions by distribution."""
    required = parse_requirements((wheels / "requirements.txt").read_text(encoding="utf-8"))
    seen: dict[str, str] = {}
    for path in sorted(wheels.iterdir()):
        if path.name == "requirements.txt":
            continue
        if path.suffix != ".whl":
            raise Refused(6, f"wheels, {path.name}: expected a wheel, which is installed as it is, got another file")
        name = normalise(path.name.partition("-")[0])
        if name not in required or digest(path) not in required[name][1]:
            raise Refused(6, f"wheels, {path.name}: expected one of the requirements, with its digest")
        if name in seen:
            raise Refused(6, f"wheels, {path.name}: expected one wheel of {name}, got two")
        seen[name] = required[name][0]
        check_start_files(name, path)
    if missing := sorted(required.keys() - seen.keys()):
        raise Refused(6, f"wheels: expected one of {missing[0]}, got none")
    return seen


def check_python(wheels: Path) -> None:
    """Check that this Python is the one that the wheels were built for."""
    mine = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for path in sorted(wheels.glob("*.whl")):
        built = _BUILT_FOR.search(path.name)
        if built is not None and mine not in built[0].split("-")[1].split("."):
            other = f"3.{built[1]}"
            raise Refused(
                7,
                f"Python: expected {other}, for which {path.name} was built, got {sys.version_info.major}."
                f"{sys.version_info.minor}; type python{other} -I install, or build a bundle for this Python",
            )


def check_start_files(name: str, wheel: Path) -> None:
    """Refuse a wheel with a file that Python runs at each start, unless it is listed."""
    try:
        members = zipfile.ZipFile(wheel).namelist()
    except zipfile.BadZipFile as error:
        raise Refused(6, f"wheels, {wheel.name}: expected a wheel, got: {error}") from None
    for member in members:
        base = member.rpartition("/")[2]
        runs = base.endswith(".pth") or base in ("sitecustomize.py", "usercustomize.py")
        if runs and (name, base) not in ALLOWED_PTH:
            raise Refused(6, f"wheels, {wheel.name}: expected no file that runs at each start of Python, got {member}")


# --- the environment --------------------------------------------------------------------------------------------------


def run(*command: str | Path, what: str) -> str:
    """Run a program with an environment of its own, and return what it prints."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-12:]
        raise Refused(7, "\n  ".join([f"{what}: expected exit code 0, got {done.returncode}", *said]))
    return done.stdout


def make_environment(python: Path, wheels: Path, pip: Path, target: Path) -> None:
    """Make an environment from wheels alone. `pip` is the wheel of pip, which is not installed."""
    run(python, "-I", "-m", "venv", "--without-pip", target, what="venv")
    command = [target / "bin" / "python", "-I", pip / "pip", "--isolated", "--disable-pip-version-check", "--no-input"]
    options = ["--no-index", "--no-cache-dir", "--only-binary=:all:", "--require-hashes", "--no-compile", "--quiet"]
    sources = ["--find-links", wheels, "--requirement", wheels / "requirements.txt"]
    run(*command, "install", "--root-user-action=ignore", *options, *sources, what="pip install")


def compile_all(environment: Path, *options: str) -> None:
    """Compile an environment, since no service can write to it. Templates that are no Python stay as they are."""
    python = environment / "bin" / "python"
    command = [python, "-I", "-m", "compileall", "-qq", "-j", "0", "--invalidation-mode", "checked-hash", *options]
    subprocess.run([*command, environment / "lib"], env={}, stdout=subprocess.DEVNULL, check=False, cwd="/")


def self_test(folder: Path, environment: Path, versions: dict[str, str]) -> None:
    """Test an environment: its versions, its imports and a computation."""
    expected = [f"{name}=={version}" for name, version in sorted(versions.items())]
    run(environment / "bin" / "python", "-I", folder / "selftest.py", *expected, what="self-test")
    said = run(environment / "bin" / "appliance", "--version", what="appliance --version")
    if said.split()[-1:] != [versions["appliance"]]:
        raise Refused(7, f"self-test, version: expected {versions['appliance']}, got {said.strip()!r}")


# --- the installation -------------------------------------------------------------------------------------------------


@contextmanager
def hold_lock(prefix: Path) -> Iterator[None]:
    """Hold the lock of an installation."""
    with open(prefix / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(
                5, f"lock, {prefix}/.lock: expected it to be free, got another installation or upgrade that runs"
            ) from None
        yield


def install_beside(folder: Path, bundle: str, prefix: Path, versions: dict[str, str]) -> Path:
    """Install the bundle beside other versions, and return its folder. One that is complete stays as it is."""
    target = prefix / "versions" / versions["appliance"]
    complete = target / COMPLETE
    if complete.exists():
        if (got := complete.read_text().strip()) != bundle:
            raise Refused(5, f"{target}: expected this bundle, {bundle}, got one of the same version, {got}")
        self_test(folder, target, versions)
        return target
    if target.exists():  # of an installation that was interrupted
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    (pip,) = (folder / "pip").iterdir()
    try:
        say(f"makes {target} from the wheels, which takes a minute or more")
        make_environment(Path(sys.executable), folder / "wheels", pip, target)
        compile_all(target)
        for name in UNITS:
            shutil.copytree(folder / name, target / "share" / name)
        self_test(folder, target, versions)
        write(complete, f"{bundle}\n")
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target


def write(path: Path, text: str) -> None:
    """Write a new file durably."""
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def switch(prefix: Path, target: Path) -> str:
    """Make PREFIX/current point to a version at once, and return where it pointed before."""
    current, new = prefix / "current", prefix / ".current.new"
    before = os.readlink(current) if current.is_symlink() else "none"
    new.unlink(missing_ok=True)
    new.symlink_to(target.relative_to(prefix))
    try:
        os.replace(new, current)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync(prefix)
    return before


def register(prefix: Path) -> None:
    """Make accounts and folders, and give systemd the units of the current version."""
    for kind, place in UNITS.items():
        (LOCAL / place).mkdir(parents=True, exist_ok=True)
        for path in sorted((prefix / "current" / "share" / kind).iterdir()):
            # A copy: systemd follows a link at `systemctl enable`, and would stay with what it pointed to.
            part = LOCAL / place / f".{path.name}.part"
            shutil.copyfile(path, part)
            os.replace(part, LOCAL / place / path.name)
    for path in sorted((prefix / "current" / "share" / "sysusers").iterdir()):
        run("systemd-sysusers", path, what="accounts")
    for path in sorted((prefix / "current" / "share" / "tmpfiles").iterdir()):
        run("systemd-tmpfiles", "--create", path, what="folders")
    if Path("/run/systemd/system").is_dir():
        run("systemctl", "daemon-reload", what="systemd")


def find_homes() -> list[str]:
    """Return the services of this host whose homes have an appliance, first the one without a name."""
    single = ["appliance.service"] if (STATE / "appliance" / "trust.json").exists() else []
    return single + [
        f"appliance@{path.parent.name}.service" for path in sorted(STATE.glob("appliance-processes/*/trust.json"))
    ]


def put(source: Path, target: Path, mode: int) -> None:
    """Put a copy of a file in the place of another one, durably."""
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    part.chmod(mode)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    sync(target.parent)


def install_bases(folder: Path, prefix: Path) -> None:
    """Put the base models of the bundle into PREFIX/bases. A base of the same name must have the same files."""
    for source in sorted((folder / BASES).iterdir()) if (folder / BASES).is_dir() else ():
        target = prefix / BASES / source.name
        if target.exists():
            if _digests(source) != _digests(target):
                raise Refused(5, f"{target}: expected the base of this bundle, got another one; remove or rename it")
            continue
        part = target.with_name(f".{source.name}.part")
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, part) if source.is_dir() else shutil.copyfile(source, part)
        for path in part.rglob("*") if part.is_dir() else [part]:
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        os.rename(part, target)
        sync(target.parent)
        say(f"{target} is a base model; an operator imports it:")
        say(f"  appliance base import {target} --name NAME --licence LICENCE")


def _digests(base: Path) -> dict[str, str]:
    files = list_files(base) if base.is_dir() else [""]
    return {name: digest(base / name if name else base) for name in files}


def _order(version: str) -> tuple[object, ...]:
    """Return a key that sorts versions as PEP 440 does. The local part, which names a build, is left out.

    Raises:
        Refused: It is no version.
    """
    match = _VERSION.fullmatch(version)
    if match is None:
        raise Refused(5, f"version: expected one of PEP 440, got {version!r:.100}")
    release, stage, number, post, dev = match.groups()
    numbers = [int(one) for one in release.split(".")]
    while numbers[-1:] == [0]:
        numbers.pop()
    is_dev_alone = dev is not None and stage is None and post is None
    before = ("", 0) if is_dev_alone else ("z", 0) if stage is None else (stage, int(number))
    return numbers, before, -1 if post is None else int(post), dev is None, int(dev or 0)


def check_later(prefix: Path, version: str) -> None:
    """Refuse a version that is older than the current one.

    An older bundle has a valid signature for ever, and the weaknesses that later ones correct.
    """
    current = prefix / "current"
    before = Path(os.readlink(current)).name if current.is_symlink() else version
    if version != before and _order(version) < _order(before):
        raise Refused(5, f"version: expected {before} or a later one, got {version}; if you want that, type --older")


def install(folder: Path, bundle: str, prefix: Path, *options: str, older: bool = False) -> None:
    """Install a verified bundle and switch to it, or upgrade the appliance of this host. `options`: of the upgrade.

    `older`: the version may be older than the current one.
    """
    versions = check_wheels(folder / "wheels")
    check_python(folder / "wheels")
    if prefix.is_relative_to(folder):
        raise Refused(2, f"prefix, {prefix}: expected a folder outside of the bundle; name its whole path")
    if prefix == PREFIX and _DPKG.exists():
        raise Refused(5, f"{PREFIX}: expected no Debian package there, got appliance; upgrade it: dpkg -i debian/*.deb")
    check_prefix(prefix)
    prefix.mkdir(mode=0o755, parents=True, exist_ok=True)
    check_prefix(prefix)  # again: somebody else may have made it in a sticky folder
    version = versions["appliance"]
    with hold_lock(prefix):
        if not older:
            check_later(prefix, version)
        target = install_beside(folder, bundle, prefix, versions)
        install_bases(folder, prefix)
        put(folder / UPGRADE, prefix / "upgrade", 0o755)
        is_upgrade = prefix == PREFIX and (prefix / "current").is_symlink() and bool(find_homes())
        if not is_upgrade:
            before = switch(prefix, target)
            say(f"{prefix}/current is {version} now; it was {before.rpartition('/')[2]}")
            if prefix == PREFIX:
                register(prefix)
    if not is_upgrade:
        say("next: appliance init, or, with an appliance: appliance doctor")
        return
    say(f"{version} is installed beside, and this runs now: {prefix}/upgrade to {version}")
    os.execv(sys.executable, [sys.executable, "-I", prefix / "upgrade", "to", version, *options])


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(f"install: {text}", file=sys.stderr)


def main() -> NoReturn:
    """Install, or end with an exit code."""
    os.umask(0o022)
    description = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(prog="install", description=description)
    key = "the public key that the bundle is signed with, which came by another way than the bundle"
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help=key)
    prefix = f"where versions are installed ({PREFIX}); another folder gets no accounts and no units"
    parser.add_argument("--prefix", type=Path, default=PREFIX, metavar="FOLDER", help=prefix)
    parser.add_argument("--verify", action="store_true", help="verify the bundle and end")
    backup = "for an upgrade: a backup of the last hour, instead of a new one"
    parser.add_argument("--backup", metavar="NAME", help=backup)
    runs = "for an upgrade: also if runs would end that cannot be continued"
    parser.add_argument("--end-runs", action="store_true", help=runs)
    parser.add_argument("--older", action="store_true", help="also a version that is older than the current one")
    given = parser.parse_args()
    folder = Path(__file__).resolve().parent
    try:
        bundle = verify(folder, given.key)
        say(f"the bundle is what {given.key} signed: {bundle}")
        if not given.verify:
            options = [] if given.backup is None else ["--backup", given.backup]
            options += ["--end-runs"] if given.end_runs else []
            install(folder, bundle, given.prefix.absolute(), *options, older=given.older)
    except Refused as error:
        say(f"error: {error}")
        sys.exit(error.code)
    except OSError as error:
        say(f"error: {error}")
        sys.exit(7)
    except KeyboardInterrupt:
        say("interrupted; type the command again")
        sys.exit(INTERRUPTED)
    sys.exit(0)


if __name__ == "__main__":
    main()
