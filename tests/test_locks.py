"""The locks, the ranges and the environment agree: what is tested is what an air-gapped site installs."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "offline_wheels"
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)")


def read_lock(name: str) -> dict[str, tuple[Version, int]]:
    """Package name -> (version, number of hashes); a line that is neither pin, hash nor comment is an error."""
    packages: dict[str, tuple[Version, int]] = {}
    current = ""
    for line in (LOCKS / name).read_text(encoding="utf-8").splitlines():
        if pin := PIN.match(line):
            current = canonicalize_name(pin["name"])
            packages[current] = (Version(pin["version"]), 0)
        elif re.match(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$", line):
            packages[current] = (packages[current][0], packages[current][1] + 1)
        else:
            assert not line or line.lstrip().startswith("#"), f"{name}: expected pin, hash or comment, got {line!r}"
    return packages


def requirements(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in (named or project["dependencies"])]


CPU, CUDA, TEST = read_lock("lock-cpu.txt"), read_lock("lock-cuda.txt"), read_lock("lock-test.txt")


@pytest.mark.parametrize("lock", [CPU, CUDA, TEST], ids=["cpu", "cuda", "test"])
def test_every_package_of_a_lock_has_a_hash(lock: dict[str, tuple[Version, int]]) -> None:
    assert len(lock) > 10
    assert [name for name, (_, hashes) in lock.items() if hashes == 0] == []


@pytest.mark.parametrize(
    ("wanted", "locked"),
    [(requirements(), CUDA), (requirements("test", "check"), CUDA | TEST)],
    ids=["dependencies", "test and check"],
)
def test_each_range_admits_the_locked_version(
    wanted: list[Requirement], locked: dict[str, tuple[Version, int]]
) -> None:
    for requirement in wanted:
        version, _ = locked[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement}: got {version} in the lock"


def test_the_cpu_lock_is_the_cuda_lock_without_torch_and_its_libraries() -> None:
    only_cuda = {name for name in CUDA if name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-"))}
    assert {name: pin for name, pin in CUDA.items() if name not in only_cuda} == CPU


def test_no_range_is_a_pin_and_none_names_a_local_build() -> None:
    for requirement in [*requirements(), *requirements("test", "check")]:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators, f"{requirement}: expected a lower bound"
        assert not operators & {"==", "==="}, f"{requirement}: expected a range"


def test_the_environment_is_the_locked_one() -> None:
    """torch is the site's own; every other library runs here in the version that the lock names."""
    found = {name: Version(metadata.version(name)) for name in CPU | TEST if _installed(name)}
    assert len(found) > len(CPU) // 2
    assert found == {name: (CPU | TEST)[name][0] for name in found}


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
