"""The running build: its version, its compatibility number, and the folders of data that belong to it.

setup.py and scripts/zipapp use this file, too, so it imports only the standard library.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

RELEASE = "0.1.0"
"""The release that this code is developed for."""

COMPATIBILITY = 1
"""A number that all processes of one log must have in common.

Raise it in each change after which a process of the previous build cannot serve the same log beside one of this build:
a change of the entries, documents or rules (a new action or rules version), of the database's tables or projections,
of the files in the shared folder, or of the frames between a service and its workers.
"""

VERSION_FILE = "version.txt"
"""The file in the package, in wheels, sdists and zipapps, that names the build."""

PACKAGE = Path(__file__).resolve().parent
"""The folder of the package `appliance`."""

_DIGITS = 8
"""Number of characters of a commit's hash, or of a digest over the files, in a version."""


def find_folder(name: str) -> Path:
    """Return a folder of data, such as `migrations`: inside an installed package, beside the package in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


@cache
def build_version(root: Path = PACKAGE.parent) -> str:
    """Return the version of the build in `root`, as PEP 440 writes it.

    `0.1.0.devN+gHASH`: the number of commits and the last commit's hash. `.dirtyDIGEST` follows if files differ from
    that commit. A tree without git has the version that was written into it when it was built; an exported tree that
    no build made has `0.1.0.dev0+filesDIGEST`. DIGEST is over the files, so other files have another version.
    """
    commits = _git(root, "rev-list", "--count", "HEAD")
    head = _git(root, "rev-parse", "HEAD")
    if commits is not None and head is not None:
        version = f"{RELEASE}.dev{commits}+g{head[:_DIGITS]}"
        changes = _git(root, "status", "--porcelain")
        return version if changes == "" else f"{version}.dirty{digest_files(root)[:_DIGITS]}"
    return _written_version(root) or f"{RELEASE}.dev0+files{digest_files(root)[:_DIGITS]}"


def add_version_option(parser: argparse.ArgumentParser) -> None:
    """Add `--version`, which prints the program's name and its build."""
    import argparse

    class PrintVersion(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            print(f"{parser.prog} {build_version()}")
            parser.exit()

    parser.add_argument("--version", action=PrintVersion, nargs=0, help="show the program's build and exit")


def digest_files(root: Path) -> str:
    """Return a digest, in hex, over all files of the package, the migrations and the policies."""
    hasher = hashlib.sha256()
    for name in ("appliance", "migrations", "policies"):
        for path in sorted(path for path in (root / name).rglob("*") if path.is_file()):
            if "__pycache__" not in path.parts and path.suffix != ".so":
                hasher.update(f"{path.relative_to(root)}\0".encode())
                hasher.update(hashlib.sha256(path.read_bytes()).digest())
    return hasher.hexdigest()


def _written_version(root: Path) -> str | None:
    """Return the version that was written at build time; None in a tree that no build made."""
    from importlib.resources import files

    # In a zipapp the package is not a folder.
    folder = files("appliance") if root == PACKAGE.parent else root / "appliance"
    file = folder.joinpath(VERSION_FILE)
    return file.read_text(encoding="ascii").strip() if file.is_file() else None


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git prints for the checkout `root`; None if it is no checkout, or git cannot be run on it."""
    if not (root / ".git").exists():
        return None
    # The checkout may belong to another account. GIT_DIR of a hook that runs this would name another repository.
    command = ["git", "-c", f"safe.directory={root}", "--no-optional-locks", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None
