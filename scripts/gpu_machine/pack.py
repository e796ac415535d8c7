"""`scripts/gpu --pack`: one folder with this checkout and the wheels that a machine with a card and torch may lack."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from appliance.build import VERSION_FILE, build_version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("lock-cpu.txt", "lock-test.txt")
WHEELS = Path("offline_wheels", "gpu")
ROOTS = ("pytest", "pytest-timeout")
"""Beside what the appliance itself depends on."""
LEFT_OUT = ("torch", "matplotlib", "pyarrow", "psycopg", "hf-xet")
"""torch is the machine's own. The others are large, and no program that needs a card imports them."""
NEWEST_GLIBC = 28
LIBRARY = re.compile(r"bitsandbytes/libbitsandbytes_(?P<kind>cpu|cuda|rocm|xpu)(?P<version>[0-9]*)\.so")


def main() -> int:
    given = _parser().parse_args()
    folder: Path = given.folder
    if folder.exists():
        print(f"gpu: error: {folder}: expected a new folder, got one that is there", file=sys.stderr)
        return 5
    _copy_checkout(folder)
    wheels = folder / WHEELS
    wheels.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        names = find_names()
        _download(names, given.python, Path(name), wheels)
    for wheel in wheels.glob("bitsandbytes-*.whl"):
        strip_libraries(wheel, given.cuda)
    _write_requirements(wheels)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    packed = sum(path.stat().st_size for path in wheels.iterdir())
    count = len(list(wheels.glob("*.whl")))
    print(
        f"gpu: {folder}: {size / 1e6:.0f} MB, of which {count} wheels {packed / 1e6:.0f} MB, for Python {given.python}"
    )
    print(f"gpu: carry it to the machine with the card, and there: cd {folder.name} && scripts/gpu")
    return 0


def _copy_checkout(folder: Path) -> None:
    """Copy the committed files, and the one compiled file, which is the same for every Python from 3.11 on."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    (folder / "appliance" / VERSION_FILE).write_text(f"{build_version(ROOT)}\n", "ascii")
    for built in (ROOT / "appliance" / "ml").glob("_kernels*.so"):
        shutil.copy2(built, folder / "appliance" / "ml")


def find_names() -> list[str]:
    """List the installed distributions that the appliance needs, without those that are left out."""
    waiting = [*(requirement.name for requirement in _requirements("appliance")), *ROOTS]
    found: set[str] = set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found and name not in LEFT_OUT:
            found.add(name)
            waiting += [requirement.name for requirement in _requirements(name)]
    return sorted(found)


def _requirements(name: str) -> Iterator[Requirement]:
    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _download(names: Sequence[str], python: str, work: Path, wheels: Path) -> None:
    """Download these packages, and check them by the hashes of the locks."""
    blocks = "".join((ROOT / "offline_wheels" / lock).read_text("utf-8") for lock in LOCKS)
    pinned = {
        canonicalize_name(block.split("==")[0]): block for block in re.split(r"^(?=[A-Za-z0-9])", blocks, flags=re.M)
    }
    if unknown := [name for name in names if name not in pinned]:
        raise SystemExit(f"gpu: error: {', '.join(LOCKS)}: expected a pin for {', '.join(unknown)}, got none")
    wanted = work / "requirements.txt"
    wanted.write_text("".join(pinned[name] for name in names), "utf-8")
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(5, NEWEST_GLIBC + 1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--require-hashes",
        "--no-deps",
    ]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    command += [part for platform in platforms for part in ("--platform", platform)]
    subprocess.run([*command, "-r", str(wanted), "-d", str(wheels)], check=True)


def strip_libraries(wheel: Path, cuda: str | None) -> None:
    """Rewrite the wheel without libraries of other makers' cards; with `cuda` keep the fitting one only."""
    with zipfile.ZipFile(wheel) as source:
        names = source.namelist()
        kept = choose_libraries([name for name in names if LIBRARY.fullmatch(name)], cuda)
        dropped = {name for name in names if LIBRARY.fullmatch(name)} - kept
        written = wheel.with_suffix(".part")
        with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
            for name in names:
                if name in dropped:
                    continue
                data = source.read(name)
                if name.endswith(".dist-info/RECORD"):
                    lines = data.decode().splitlines(keepends=True)
                    data = "".join(line for line in lines if line.split(",")[0] not in dropped).encode()
                target.writestr(source.getinfo(name), data, zipfile.ZIP_DEFLATED, 9)
    written.replace(wheel)


def choose_libraries(names: Sequence[str], cuda: str | None) -> set[str]:
    """As bitsandbytes chooses: this version, else the highest below it, else the lowest above it, of one major."""
    found = {name: match for name in names if (match := LIBRARY.fullmatch(name))}
    kept = {name for name, match in found.items() if match["kind"] in ("cpu", "cuda")}
    if cuda is None:
        return kept
    major, minor = (int(part) for part in cuda.split("."))
    versions = {
        name: (int(found[name]["version"][:-1]), int(found[name]["version"][-1])) for name in kept if "cuda" in name
    }
    same = sorted((version, name) for name, version in versions.items() if version[0] == major)
    if not same:
        raise SystemExit(f"gpu: error: --cuda: expected a version that bitsandbytes has a library for, got {cuda}")
    below = [name for version, name in same if version <= (major, minor)]
    best = below[-1] if below else same[0][1]
    return {name for name in kept if name not in versions or name == best}


def _write_requirements(wheels: Path) -> None:
    """Every wheel by the hash that it has now."""
    lines = []
    for wheel in sorted(wheels.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    (wheels / "requirements.txt").write_text("".join(lines), "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/gpu --pack", description="Makes the folder that is carried across.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a new folder")
    parser.add_argument("--python", default="3.11", help="the other machine's Python (default: 3.11)")
    parser.add_argument("--cuda", help="its torch's CUDA, as 12.8: only that library of bitsandbytes (default: all)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
