"""The Debian packages: `appliance`, with a finished environment, and `appliance-witness`, with one file of Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from scripts.packaging.install import PREFIX, UNITS, compile_all, make_environment

PACKAGING = Path(__file__).resolve().parent
SYSTEM = {"systemd": "usr/lib/systemd/system", "sysusers": "usr/lib/sysusers.d", "tmpfiles": "usr/lib/tmpfiles.d"}
"""Folders of a package for units, accounts and temporary files."""


@dataclass(frozen=True)
class Package:
    """A package to build: its control fields, its units, and the folders that it has as documents."""

    name: str
    architecture: str
    depends: str
    description: str
    units: tuple[str, ...]
    documents: tuple[str, ...] = ()


WITNESS = Package(
    "appliance-witness",
    "all",
    "python3 (>= 3.11), python3-cryptography, systemd",
    "Cosigns the log of an appliance on another machine",
    ("appliance-witness@.service", "appliance-witness@.path"),
)


def make_package(python: Path) -> Package:
    """Return the package `appliance` for an interpreter of Debian, which its environment links to."""
    version = subprocess.run(
        [python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return Package(
        "appliance",
        architecture,
        f"python{version}, libc6, systemd, openssl",
        "Trains, approves and serves adapters without a network",
        (
            *("appliance.service", "appliance@.service", "appliance-feed.service"),
            *("appliance-backup.service", "appliance-backup.timer", "appliance-signer.service"),
        ),
        ("monitoring",),
    )


def debian_version(version: str) -> str:
    """Return a build's version as dpkg orders it: a development build comes before its release."""
    return version.replace(".dev", "~dev")


def build_appliance(python: Path, wheels: Path, pip: Path, version: str, work: Path, output: Path) -> Path:
    """Build the package `appliance` in `output`, and return its file."""
    package, root = make_package(python), work / "root"
    final = PREFIX / "versions" / version
    tree = root / final.relative_to("/")
    tree.parent.mkdir(parents=True)
    make_environment(python, wheels, pip, tree)
    move_environment(tree, final)
    compile_all(tree, "-s", str(root), "-p", "/")
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/appliance").symlink_to(PREFIX / "current/bin/appliance")
    (root / PREFIX.relative_to("/") / "current").symlink_to(f"versions/{version}")
    return build_package(package, root, version, output)


def move_environment(tree: Path, final: Path) -> None:
    """Let the programs of an environment name the place where the package has it."""
    for path in [tree / "pyvenv.cfg", *(tree / "bin").iterdir()]:
        if not path.is_symlink():
            path.write_bytes(path.read_bytes().replace(os.fsencode(tree), os.fsencode(final)))


def build_witness(zipapp: Path, version: str, work: Path, output: Path) -> Path:
    """Build the package `appliance-witness` in `output`, and return its file."""
    root = work / "root"
    folder = root / "usr/lib/appliance-witness"
    folder.mkdir(parents=True)
    shutil.copy(zipapp, folder / "appliance-witness.pyz")
    return build_package(WITNESS, root, version, output)


def build_package(package: Package, root: Path, version: str, output: Path) -> Path:
    """Add units, documents and control files to a tree, and build the package."""
    for kind in UNITS:
        folder = root / SYSTEM[kind]
        folder.mkdir(parents=True)
        names = package.units if kind == "systemd" else (f"{package.name}.conf",)
        for name in names:
            shutil.copy(PACKAGING / kind / name, folder / name)
    documents = root / "usr/share/doc" / package.name
    documents.mkdir(parents=True)
    shutil.copy(PACKAGING.parents[1] / "LICENSE", documents / "copyright")
    for name in package.documents:
        shutil.copytree(PACKAGING / name, documents / name)
    control = root / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(
        f"Package: {package.name}\nVersion: {debian_version(version)}\nArchitecture: {package.architecture}\n"
        f"Maintainer: the appliance's maintainers <appliance@localhost>\nDepends: {package.depends}\n"
        f"Section: admin\nPriority: optional\nDescription: {package.description}\n"
    )
    patterns = " ".join(f"{unit.replace('@.', '@*.')[:-1]}[{unit[-1]}]" for unit in package.units)
    for name in ("postinst", "prerm", "postrm"):
        text = (PACKAGING / "debian" / name).read_text().replace("@PACKAGE@", package.name)
        (control / name).write_text(text.replace("@UNITS@", patterns))
        (control / name).chmod(0o755)
    close(root)
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"{package.name}_{debian_version(version)}_{package.architecture}.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z3", "--build", root, target]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


def close(root: Path) -> None:
    """Give each file and folder its mode: only root writes, everybody reads."""
    root.chmod(0o755)
    for path in root.rglob("*"):
        if not path.is_symlink():
            runs = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if runs else 0o644)
