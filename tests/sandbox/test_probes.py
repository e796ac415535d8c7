"""The worker's own probes: refused in the sandbox, successful without it, and compared with the service's evidence."""

from __future__ import annotations

import dataclasses
import platform
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BadInput, Unavailable
from appliance.sandbox.description import Sandbox
from appliance.sandbox.escape_targets import EscapeTargets, Probes
from appliance.sandbox.local import ENTRY, Worker, start_worker
from appliance.sandbox.processes import LAYERS
from appliance.worker.probes import run_probes

NAMES = {
    "tcp", "udp", "dns", "unix", "vsock", "io_uring", "foreign-abi", "ptrace-parent", "new-user-namespace",
    "execute", "set-user-id", "read-keys", "read-database", "write-outside",
}  # fmt: skip

EXEC = {"execute", "set-user-id"}


@pytest.fixture
def probes(folder: Path) -> Probes:
    (folder / "keys").mkdir(mode=0o700)
    (folder / "keys" / "log.pem").write_text("secret")
    (folder / "ledger.sqlite").write_text("rows")
    return Probes(
        read={"read-keys": folder / "keys", "read-database": folder / "ledger.sqlite"},
        write={"write-outside": folder},
    )


def begin(service: Any, folder: Path, probes: Probes, module: str, without: frozenset[str] = frozenset()) -> Worker:
    return start_worker(
        f"inmates.{module}",
        Sandbox(read=(), write=(folder / "output",)),
        log=folder / "log",
        probes=probes,
        code=service.INMATES,
        entry=ENTRY if module == "probe" else f"inmates.{module}",
        layers=LAYERS - without,
        accepted_missing=without,
    )


def test_every_probe_is_refused_in_the_sandbox(service: Any, folder: Path, probes: Probes) -> None:
    with begin(service, folder, probes, "probe") as worker:
        assert worker.check_sandbox() == dict.fromkeys(NAMES, "refused")


def test_every_probe_is_open_without_a_sandbox(service: Any, folder: Path, probes: Probes) -> None:
    """vsock depends on the kernel, and root's capabilities keep the worker from tracing a service that is root."""
    with begin(service, folder, probes, "probe", without=LAYERS) as worker:
        results = worker.check_sandbox()
    depends = {"vsock", "ptrace-parent"} | (set() if platform.machine() == "x86_64" else {"foreign-abi"})
    assert {name for name, result in results.items() if result == "open"} | depends == NAMES


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ({"landlock", "mount-ns"}, {"read-keys", "read-database", "write-outside"}),
        ({"network-ns", "seccomp", "landlock"}, {"tcp", "udp", "dns", "unix", "io_uring", "new-user-namespace"} | EXEC),
        ({"network-ns", "landlock", "mount-ns"}, {"read-keys", "read-database", "write-outside"}),
    ],
)
def test_a_probe_is_open_exactly_where_its_layers_are_missing(
    service: Any, folder: Path, probes: Probes, without: set[str], expected: set[str]
) -> None:
    with begin(service, folder, probes, "probe", without=frozenset(without)) as worker:
        results = worker.check_sandbox()
    assert {name for name, result in results.items() if result == "open"} - {"vsock", "foreign-abi"} == expected


def test_a_lying_worker_is_not_believed(service: Any, folder: Path, probes: Probes) -> None:
    """It reached TCP, wrote outside and left out DNS: the service saw two of them itself, and silence is no refusal."""
    without = frozenset({"network-ns", "seccomp", "landlock", "mount-ns"})
    with begin(service, folder, probes, "liar", without=without) as worker:
        results = worker.check_sandbox()
    assert {name for name, result in results.items() if result == "open"} == {"tcp", "write-outside", "dns"}
    assert not list(folder.glob(".sandbox-probe-*"))


def test_a_worker_that_begins_with_anything_else_is_refused(service: Any, folder: Path, probes: Probes) -> None:
    with begin(service, folder, probes, "states") as worker, pytest.raises(Unavailable, match="sandbox probes"):
        worker.check_sandbox()


def test_a_probe_needs_a_target_that_is_there(folder: Path) -> None:
    """Failing to read what nobody can read proves nothing."""
    with pytest.raises(BadInput, match="read-keys"):
        Probes(read={"read-keys": folder / "absent"})
    with pytest.raises(BadInput, match="write-outside"):
        Probes(write={"write-outside": folder / "absent"})


@pytest.fixture
def escape_targets(probes: Probes) -> Iterator[EscapeTargets]:
    with EscapeTargets(probes) as opened:
        yield opened


def test_the_service_sees_what_reaches_it(escape_targets: EscapeTargets, probes: Probes) -> None:
    assert escape_targets.touched() == set()
    socket.create_connection(("127.0.0.1", escape_targets.targets["ports"]["tcp"])).close()
    with socket.socket(socket.AF_UNIX) as opened:
        opened.connect("\0" + escape_targets.targets["unix_abstract"])
    assert escape_targets.touched() == {"tcp", "unix"}


def test_the_probes_reach_every_target_when_nothing_stands_between(escape_targets: EscapeTargets) -> None:
    """Run by the service itself: whatever is reported open was a live target."""
    results = run_probes(escape_targets.targets)
    assert {"tcp", "udp", "dns", "unix", "write-outside"} <= escape_targets.touched()
    assert {name for name in NAMES if results[name] == "open"} >= {"tcp", "udp", "dns", "unix", "read-keys"}


def test_a_target_counts_each_message_once_only_by_its_own_name(escape_targets: EscapeTargets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.sendto(b"x", ("127.0.0.1", escape_targets.targets["ports"]["dns"]))
    assert escape_targets.evaluate(dict.fromkeys(NAMES, "refused"))["dns"] == "open"


def test_what_is_neither_refused_nor_open_is_open(escape_targets: EscapeTargets) -> None:
    reported = dict.fromkeys(NAMES, "refused") | {"udp": "probably refused", "tcp": None}
    results = escape_targets.evaluate(reported)
    assert {name for name, result in results.items() if result == "open"} == {"udp", "tcp"}


def test_probes_are_values() -> None:
    assert dataclasses.is_dataclass(Probes) and Probes().names == NAMES - {
        "read-keys", "read-database", "write-outside"
    }  # fmt: skip
