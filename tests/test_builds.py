"""Builds have versions of their own, so that pip upgrades; a wheel has its data inside the package."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from appliance.build import PACKAGE, RELEASE, VERSION_FILE, build_version, find_folder

ROOT = Path(__file__).resolve().parents[1]
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@example", "-c", "commit.gpgsign=false")
FOLDERS = ("appliance", "migrations", "policies")
BUILT_FROM = (*FOLDERS, "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
MANUAL = ("index.html", "guides/index.html")
PIP = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check")

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def run(*command: str | Path, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit(folder: Path) -> str:
    """Commit all files, and return the version that the build of them has."""
    run(*GIT, "add", "--all", folder=folder)
    run(*GIT, "commit", "--quiet", "--message", "x", folder=folder)
    count = run(*GIT, "rev-list", "--count", "HEAD", folder=folder).strip()
    return f"{RELEASE}.dev{count}+g{run(*GIT, 'rev-parse', 'HEAD', folder=folder)[:8]}"


def copy_tree(folder: Path) -> Path:
    """Copy all that a build is made from, except its C files, whose compilation would take most of the time."""
    folder.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.c")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, folder)
    text = (folder / "pyproject.toml").read_text()
    start, end = text.index("[[tool.setuptools.ext-modules]]"), text.index("[tool.distutils.bdist_wheel]")
    (folder / "pyproject.toml").write_text(text[:start] + text[end:])
    (folder / ".gitignore").write_text("/build/\n/manual/\n*.egg-info/\n__pycache__/\n")
    (folder / "manual" / "guides").mkdir(parents=True)
    for page in MANUAL:
        (folder / "manual" / page).write_text("a page of the manual, as scripts/docs writes it")
    return folder


def make_wheel(folder: Path, output: Path) -> Path:
    """Build as scripts/wheels does; it needs no network."""
    shutil.rmtree(folder / "build", ignore_errors=True)
    before = set(output.glob("*.whl"))
    run(*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", output, ".", folder=folder)
    (made,) = set(output.glob("*.whl")) - before
    return made


@pytest.mark.thorough
def test_the_documented_command_installs_a_later_build_over_an_earlier_one(tmp_path: Path) -> None:
    repository, wheels = copy_tree(tmp_path / "repository"), tmp_path / "wheels"
    wheels.mkdir()
    run(*GIT, "init", "--quiet", folder=repository)
    first = commit(repository)
    assert first.startswith(f"{RELEASE}.dev1+g")
    built = [make_wheel(repository, wheels)]
    # The later build has no manual and another migration, and, so that it is made quickly, little else.
    shutil.rmtree(repository / "manual")
    (repository / "migrations" / "later.py").write_text("LATER = True\n")
    for path in (repository / "appliance").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    second = commit(repository)
    built.append(make_wheel(repository, wheels))

    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, folder=tmp_path)
    python = venv / "bin" / "python"
    for wheel, version in zip(built, (first, second), strict=True):
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        (wheels / "requirements.txt").write_text(f"appliance=={version} --hash=sha256:{digest}\n")
        # offline_wheels/README.md's command; --no-deps because this wheelhouse has no library.
        given = ("--no-index", "--find-links", wheels, "--require-hashes", "-r", wheels / "requirements.txt")
        run(*PIP, "--python", python, "install", "-q", "--no-deps", "--no-compile", *given, folder=tmp_path)
        told = run(python, "-c", "from appliance.build import *; print(build_version())", folder=tmp_path)
        assert told == f"{version}\n"
    installed = Path(run(python, "-c", "import appliance; print(appliance.__path__[0])", folder=tmp_path).strip())
    assert (installed / "migrations" / "later.py").exists(), "the second build's files are there"
    assert not (installed / "web").exists(), "and those that only the first one had are gone"
    assert not (installed / "manual").exists()
    folders = run(python, "-c", "from appliance.build import *; print(find_folder('policies'))", folder=tmp_path)
    assert folders == f"{installed / 'policies'}\n"

    names = set(zipfile.ZipFile(built[0]).namelist())
    assert {name.split("/")[0] for name in names} == {"appliance", f"appliance-{first}.dist-info"}
    for folder in ("migrations", "policies"):
        beside = {
            f"appliance/{path.relative_to(ROOT).as_posix()}"
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert len(beside) > 5
        assert {name for name in names if name.startswith(f"appliance/{folder}/")} == beside
    assert {name for name in names if name.startswith("appliance/manual/")} == {
        f"appliance/manual/{page}" for page in MANUAL
    }
    assert {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")} <= names


@pytest.mark.thorough
def test_a_source_package_names_the_commit_that_it_was_made_from(tmp_path: Path) -> None:
    repository = copy_tree(tmp_path / "repository")
    run(*GIT, "init", "--quiet", folder=repository)
    version = commit(repository)
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path, folder=repository)
    shutil.unpack_archive(tmp_path / f"appliance-{version}.tar.gz", tmp_path)
    unpacked = tmp_path / f"appliance-{version}"
    assert build_version(unpacked) == version
    assert not (repository / "appliance" / VERSION_FILE).exists()
    for folder in FOLDERS:
        files = {
            path.relative_to(repository)
            for path in (repository / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert files <= {path.relative_to(unpacked) for path in (unpacked / folder).rglob("*")}
    assert all((unpacked / "manual" / page).is_file() for page in MANUAL)


def test_other_files_have_another_version(tmp_path: Path) -> None:
    """Also where no commit names them: in a checkout that was changed, and in an exported tree."""
    tree = tmp_path / "tree"
    for folder in FOLDERS:
        (tree / folder).mkdir(parents=True)
    file = tree / "migrations" / "one.py"

    def version_of(content: str) -> str:
        file.write_text(content)
        build_version.cache_clear()
        return build_version(tree)

    exported = [version_of("1"), version_of("2"), version_of("1")]
    assert exported[0].startswith(f"{RELEASE}.dev0+files") and exported[0] == exported[2] != exported[1]
    (tree / "appliance" / VERSION_FILE).write_text("0.1.0.dev7+g12345678\n")
    assert version_of("3") == "0.1.0.dev7+g12345678"
    run(*GIT, "init", "--quiet", folder=tree)
    clean = commit(tree)
    changed = [version_of("3"), version_of("4"), version_of("5")]
    assert changed[0] == clean
    assert all(version.startswith(f"{clean}.dirty") for version in changed[1:]) and changed[1] != changed[2]


def test_a_wheelhouse_that_is_being_built_is_no_change_of_the_files() -> None:
    """scripts/wheels builds the appliance while the unfinished wheelhouse is in the checkout."""
    assert 'mktemp -d "$output.XXXXXX"' in (ROOT / "scripts" / "wheels").read_text()
    ignored = "offline_wheels/wheels.1a2B3c/requirements.txt"
    assert run("git", "check-ignore", "--no-index", ignored, folder=ROOT).strip() == ignored


@pytest.mark.parametrize("folder", ["migrations", "policies"])
def test_a_checkout_has_its_folders_beside_the_package(folder: str) -> None:
    assert find_folder(folder) == ROOT / folder
