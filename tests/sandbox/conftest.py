"""Workers that attack, started in this process or by a service of its own, as root or as an ordinary user."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ORDINARY_USER = 65534


def _load_service() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sandbox_test_service", HERE / "service.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def service() -> ModuleType:
    """tests/sandbox/service.py."""
    return _load_service()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder that any user may pass, with `output` for the worker: pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="sandbox-"))
    path.chmod(0o755)
    (path / "output").mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def attempt(service: ModuleType, folder: Path) -> Callable[..., str]:
    """`attempt(name, *arguments, without={...})`: how one attack goes, with every layer or without some."""

    def carry_out(name: str, *arguments: Any, without: frozenset[str] = frozenset(), **fields: Any) -> str:
        missing = sorted(without)
        order = service.Order(str(folder), attempts=[[name, arguments]], without=missing, accepted=missing, **fields)
        outcome: str = service.carry_out(order)[0]
        return outcome

    return carry_out


@pytest.fixture
def run_service(folder: Path) -> Callable[..., Any]:
    """`run_service(ordinary=bool, **order)`: the answer of a service that is a process of its own.

    `ordinary`: it is no root. Where the tests themselves run as no root, every service is ordinary.
    """

    def run(*, ordinary: bool = False, **fields: Any) -> Any:
        user = ORDINARY_USER if ordinary and os.geteuid() == 0 else None
        order = json.dumps({"folder": str(folder), "user": user, **fields})
        done = subprocess.run(
            [sys.executable, str(HERE / "service.py"), order], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
