"""Under systemd, a service reports that it is ready and still responds; its journal has a field for each attribute."""

from __future__ import annotations

import array
import io
import json
import logging
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from appliance import systemd
from appliance.errors import Unavailable
from appliance.web.core import journal, logs, server
from appliance.wiring import serving
from scripts.kit.appliance import Appliance


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    """Yield a stand-in for systemd or its journal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "s"))
        receiving.settimeout(60)
        yield receiving


SO_TIMESTAMP = 29
"""Linux's number: the kernel says when a message was sent."""


class Supervisor:
    """Takes messages as systemd does: at once, since a socket's queue holds ten. `sent_at` has the time of the last
    message that was read, in seconds, as the kernel says it."""

    def __init__(self, receiving: socket.socket) -> None:
        self.environment = {"NOTIFY_SOCKET": receiving.getsockname()}
        self.sent_at = 0.0
        receiving.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        self._receiving, self._lines = receiving, queue.SimpleQueue[tuple[float, str]]()
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with suppress(OSError):
            while (received := self._receiving.recvmsg(4096, socket.CMSG_SPACE(16)))[0]:
                data, [(_, _, told)], *_ = received
                seconds, microseconds = struct.unpack("@ll", told)
                for line in data.decode().split("\n"):
                    self._lines.put((seconds + microseconds / 1e6, line))

    def read(self, until: str, timeout_s: float = 60.0) -> list[str]:
        """Return all further lines up to this one."""
        seen: list[str] = []
        while seen[-1:] != [until]:
            self.sent_at, line = self._lines.get(timeout=timeout_s)
            seen.append(line)
        return seen


@pytest.fixture
def supervisor(receiver: socket.socket) -> Supervisor:
    receiver.settimeout(None)
    return Supervisor(receiver)


@pytest.mark.thorough
def test_a_service_reports_its_start_its_answers_and_its_end(
    supervisor: Supervisor, start_small: Callable[..., Appliance]
) -> None:
    site = start_small(supervisor.environment | {"WATCHDOG_USEC": "600000"})
    seen = supervisor.read("READY=1")
    assert "STATUS=starts" in seen and "STATUS=serves" in seen and "WATCHDOG=1" not in seen
    began = supervisor.sent_at
    for _ in range(3):
        assert supervisor.read("WATCHDOG=1") == ["WATCHDOG=1"]
    assert supervisor.sent_at - began > 0.2, "three times in the interval, not at once"
    site.stop()
    assert set(supervisor.read("STOPPING=1")) <= {"WATCHDOG=1", "STOPPING=1"}
    assert "STATUS=ends its workers" in supervisor.read("STATUS=records its end and seals its snapshot")


@pytest.mark.thorough
def test_the_watchdog_hears_nothing_while_the_ledger_hangs(
    supervisor: Supervisor, start_small: Callable[..., Appliance]
) -> None:
    start_small(supervisor.environment | {"WATCHDOG_USEC": "300000"}, hanging_probe=True)
    supervisor.read("READY=1")
    with pytest.raises(queue.Empty):
        supervisor.read("WATCHDOG=1", timeout_s=1.0)


@pytest.mark.thorough
def test_a_refusal_of_the_ledger_is_an_answer_and_an_unforeseen_error_ends_the_service(
    monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        refused.append(True)
        if len(refused) > 2:
            raise RuntimeError("not foreseen")
        raise Unavailable("disk: full")

    refused: list[bool] = []
    context: Any = SimpleNamespace(ledger=SimpleNamespace(probe=refuse))
    for name, value in (supervisor.environment | {"WATCHDOG_USEC": "150000"}).items():
        monkeypatch.setenv(name, value)
    listener = socket.create_server(("127.0.0.1", 0))
    heart = server.Heart(lambda: None, 60, lambda _: None)
    reason = server.serve(
        [server.Listener(PlainTextResponse("x"), listener)],
        heart=heart,
        ended=lambda: None,
        probe=partial(serving._probe, context),
    )
    assert reason == "probe failed" and "not foreseen" in caplog.text
    assert supervisor.read("STOPPING=1") == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "90000000"}, 90.0),
        ({"WATCHDOG_USEC": "90000000", "WATCHDOG_PID": str(os.getpid())}, 90.0),
        ({"WATCHDOG_USEC": "90000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_a_watchdog_of_another_process_or_of_no_time_is_none(
    environment: dict[str, str], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert systemd.read_watchdog_s() == seconds


def test_an_abstract_socket_is_reached_and_a_missing_one_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"appliance-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.notify("READY=1", "STATUS=serves")
        assert receiving.recv(100) == b"READY=1\nSTATUS=serves"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    systemd.notify("READY=1")
    assert "expected it to take 'READY=1'" in caplog.text
    monkeypatch.delenv("NOTIFY_SOCKET")
    caplog.clear()
    systemd.notify("READY=1")
    assert not caplog.text


def fields(data: bytes) -> dict[str, str]:
    """Read a datagram as the protocol's page describes it, which is not how the code writes it."""
    found: dict[str, str] = {}
    while data:
        head, _, data = data.partition(b"\n")
        name, is_text, value = head.partition(b"=")
        if not is_text:
            (size,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + size], data[9 + size :]
        assert name.decode() not in found
        found[name.decode()] = value.decode()
    return found


@pytest.fixture
def restored() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    for handler in set(logging.root.handlers) - set(handlers):
        handler.close()
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.fixture
def journaled(receiver: socket.socket, restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the log's stderr the journal's."""
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    handler = journal.JournalHandler
    monkeypatch.setattr(logs, "JournalHandler", lambda: handler(receiver.getsockname()))
    logs.configure_logs()


@pytest.mark.usefixtures("journaled")
def test_the_journal_has_a_field_for_each_attribute(receiver: socket.socket) -> None:
    logs.log.info("release.activated", entry=7, actor="lou", served_model="labels")
    got = fields(receiver.recv(1 << 16))
    assert got.pop("APPLIANCE_TIME").startswith("20")
    assert got == {
        "MESSAGE": "release.activated actor=lou entry=7 served_model=labels",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "appliance",
        "APPLIANCE_EVENT": "release.activated",
        "APPLIANCE_ACTOR": "lou",
        "APPLIANCE_ENTRY": "7",
        "APPLIANCE_SERVED_MODEL": "labels",
    }


@pytest.mark.usefixtures("journaled")
def test_a_value_with_a_line_that_looks_like_a_field_stays_a_value(receiver: socket.socket) -> None:
    try:
        raise ValueError("one\nPRIORITY=7\nAPPLIANCE_ACTOR=root")
    except ValueError:
        logging.getLogger("appliance").critical("ALARM: %s", "two\nlines", exc_info=True)
    got = fields(receiver.recv(1 << 16))
    assert got["PRIORITY"] == "2" and got["APPLIANCE_LOGGER"] == "appliance"
    assert got["APPLIANCE_EVENT"] == "ALARM: two\nlines" and "APPLIANCE_ACTOR" not in got
    assert got["APPLIANCE_EXCEPTION"].endswith("ValueError: one\nPRIORITY=7\nAPPLIANCE_ACTOR=root")
    assert got["MESSAGE"] == f"ALARM: two\nlines\n{got['APPLIANCE_EXCEPTION']}"


@pytest.mark.usefixtures("journaled")
def test_a_line_that_is_too_long_for_a_datagram_arrives_in_a_sealed_file(receiver: socket.socket) -> None:
    logs.log.warning("x" * 1_000_000, unit="legal")
    data, (rights, *_), *_ = receiver.recvmsg(1 << 16, socket.CMSG_SPACE(4))
    assert data == b""
    descriptors: array.array[int] = array.array("i", rights[2])
    with open(descriptors[0], "rb") as file:
        file.seek(0)
        got = fields(file.read())
    assert got["APPLIANCE_EVENT"] == "x" * 1_000_000 and got["APPLIANCE_UNIT"] == "legal" and got["PRIORITY"] == "4"


@pytest.mark.usefixtures("journaled")
def test_what_the_journal_does_not_take_is_on_stderr(receiver: socket.socket) -> None:
    os.unlink(receiver.getsockname())
    stderr = io.StringIO()
    (handler,) = (one for one in logging.root.handlers if isinstance(one, journal.JournalHandler))
    handler.setStream(stderr)
    logs.log.info("run.finished", run="r")
    line: dict[str, Any] = json.loads(stderr.getvalue())
    assert (line["event"], line["run"]) == ("run.finished", "r")


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense"])
@pytest.mark.usefixtures("restored")
def test_a_stderr_that_is_not_the_journal_gets_lines(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    logs.configure_logs()
    assert not any(isinstance(one, journal.JournalHandler) for one in logging.root.handlers)
