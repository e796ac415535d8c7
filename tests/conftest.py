"""Fixtures of every test: no network beyond loopback, no home of the person who runs them, no silent skips in CI."""

from __future__ import annotations

import gc
import ipaddress
import itertools
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

gc.disable()  # until the tests are collected, nearly all that is made stays

# Two processes of tests share the cores: a thread of torch that waits in a loop takes the core of the one it waits for,
# and a test of half a second took two minutes. Read when torch's OpenMP is loaded.
os.environ["GOMP_SPINCOUNT"] = "2000"

pytest_plugins = ["tests.kit.tiers"]

LOOPBACK_NAMES = frozenset({"", "localhost", "localhost.localdomain", "ip6-localhost"})
ADDRESS_EVENTS = frozenset({"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"})
LOOKUP_EVENTS = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})


class NetworkRefused(RuntimeError):
    """A test reached beyond this machine's loopback. No OSError, so that code under test cannot swallow it."""


def is_loopback(host: object) -> bool:
    """Return True for 127.0.0.0/8, ::1 (also mapped), and the names that every machine maps to them."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text.lower().rstrip(".") in LOOPBACK_NAMES - {""}
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def check_address(event: str, sock: socket.socket, address: object) -> None:
    """Refuse what leaves the machine. A sendmsg without an address goes where connect was allowed to go."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or address is None:
        return
    host = address[0] if isinstance(address, tuple) else address
    if not is_loopback(host):
        raise NetworkRefused(f"{event}, address: expected loopback (127.0.0.0/8, ::1), got {address!r}")


def check_lookup(event: str, host: object) -> None:
    """Refuse a look-up by name server; an address literal asks nobody."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if text is None or text in LOOPBACK_NAMES or is_loopback(text) or text == socket.gethostname():
        return
    try:
        ipaddress.ip_address(str(text).partition("%")[0])
    except ValueError:
        raise NetworkRefused(f"{event}, name: expected localhost or an address, got {text!r}") from None


def refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """Check every call of the C socket module. An audit hook sees all callers, and cannot be removed."""
    if event in ADDRESS_EVENTS:
        check_address(event, arguments[0], arguments[1])  # type: ignore[arg-type]
    elif event in LOOKUP_EVENTS:
        check_lookup(event, arguments[0])


def _checked(method: str) -> Callable[..., object]:
    """Return a method that checks a name first, since the C method resolves it before the audit event."""
    plain = getattr(socket.socket, method)

    def call(sock: socket.socket, *arguments: object) -> object:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and arguments and isinstance(arguments[-1], tuple):
            check_address(f"socket.{method}", sock, arguments[-1])
        return plain(sock, *arguments)

    return call


sys.addaudithook(refuse_network)
for _method in ("connect", "connect_ex", "bind", "sendto"):
    setattr(socket.socket, _method, _checked(_method))

# Read once, when the libraries are imported; so it is set before any test imports them.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")


NUMBERS = itertools.count()


def make_own_folder(factory: pytest.TempPathFactory, kind: str, name: str = "") -> Path:
    """Return a new, empty folder for one test.

    pytest's `mktemp` lists all folders of the run to number a new one. After some thousand tests, that took several
    times as long as most tests.
    """
    folder = factory.getbasetemp() / kind / f"{name}{next(NUMBERS)}"
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty folder in place of pytest's own. Its path is short enough for a Unix socket below it."""
    return make_own_folder(tmp_path_factory, "t", re.sub(r"\W", "_", request.node.name)[:23])


@pytest.fixture(autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings and the home of the person who runs the tests. The test gets empty ones."""
    for name in [name for name in os.environ if name.startswith("APPLIANCE_")]:
        monkeypatch.delenv(name)
    person = make_own_folder(tmp_path_factory, "p")
    monkeypatch.setenv("HOME", str(person))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(person / name.lower()))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


@pytest.fixture(autouse=True)
def own_log_handlers() -> Iterator[None]:
    """Remove what a test adds to the root logger: a service that runs in this process configures it."""
    level, before = logging.root.level, logging.root.handlers[:]
    yield
    for handler in logging.root.handlers[:]:
        if handler not in before and not type(handler).__module__.startswith("_pytest"):
            logging.root.removeHandler(handler)
    logging.root.setLevel(level)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield an empty data folder, 0700, named by APPLIANCE_HOME. Its path is short enough for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="ap-"))
    monkeypatch.setenv("APPLIANCE_HOME", str(folder))
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)  # sealed artifacts are read-only folders
    shutil.rmtree(folder)


@pytest.fixture
def cleared(tmp_path: Path) -> Iterator[None]:
    """Nothing nested deep is left where a test failed: pytest itself cannot remove it."""
    yield
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Keep what was imported and collected out of garbage collections: it lives as long as the process.

    They are as frequent as in the service: after every 700 new objects, they took a twelfth of the tests' time.
    """
    gc.freeze()
    gc.set_threshold(20_000, *gc.get_threshold()[1:])
    gc.enable()


def _has_card() -> bool:
    """Whether torch sees a card; it is only asked where the driver is."""
    if not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of a card if there is none. The dry run of scripts/gpu runs them on the CPU."""
    marked = [item for item in items if item.get_closest_marker("gpu") is not None]
    if not marked or os.environ.get("GPU_TESTS_DEVICE") == "cpu" or _has_card():
        return
    config.hook.pytest_deselected(items=marked)
    items[:] = [item for item in items if item not in marked]


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport, allowed: bool) -> None:
    """In CI a component that is missing is a failure: a green run has run everything."""
    if os.environ.get("CI", "").lower() not in ("true", "1") or not report.skipped or allowed:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"CI=true and a test was skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    _forbid_skip(report, hasattr(report, "wasxfail"))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    _forbid_skip(report, allowed=False)
    return report
