"""No part of the appliance sends a packet to another machine, and the page lists every place that could."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.capture import NAME_SERVER, Packet

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security" / "outbound.md"
CAPTURE = ROOT / "tests" / "kit" / "capture.py"
_CLIENTS = re.compile(
    r"httpx\.(?:Async)?Client\(|smtplib\.SMTP\(|socket\.create_connection\(|psycopg\.connect\(|create_engine\("
)
"""Calls that make a client of another machine."""
ATTEMPTS = """
import socket
with socket.socket() as tcp:
    tcp.settimeout(0.5)
    try: tcp.connect(("203.0.113.7", 443))
    except OSError: pass
try: socket.getaddrinfo("huggingface.co", 443)
except OSError: pass
with socket.socket(socket.AF_INET6) as tcp:
    tcp.settimeout(0.5)
    try: tcp.connect(("2001:db8:7::9", 80))
    except OSError: pass
"""


def capture(file: Path, *command: str) -> tuple[subprocess.CompletedProcess[str], set[Packet]]:
    """Run a command where every packet is seen. Nothing tells its libraries to be offline."""
    environment = {
        name: value for name, value in os.environ.items() if "OFFLINE" not in name and name != "DO_NOT_TRACK"
    }
    done = subprocess.run(
        [sys.executable, str(CAPTURE), str(file), *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    return done, {Packet(*json.loads(line)) for line in file.read_text().splitlines()} if file.exists() else set()


@pytest.mark.outside
def test_an_attempt_to_reach_another_machine_is_seen(tmp_path: Path) -> None:
    done, packets = capture(tmp_path / "packets", sys.executable, "-c", ATTEMPTS)
    assert done.returncode == 0, done.stderr
    expected = {Packet("tcp", "203.0.113.7", 443), Packet("tcp", "2001:db8:7::9", 80)}
    assert packets == expected | {Packet("udp", NAME_SERVER, 53)}


@pytest.mark.outside
@pytest.mark.timeout(900)
def test_a_whole_journey_sends_no_packet_to_another_machine(tmp_path: Path) -> None:
    program = str(ROOT / "tests" / "kit" / "whole_journey.py")
    done, packets = capture(tmp_path / "packets", sys.executable, program, str(tmp_path / "j"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert packets == set()


def test_the_page_names_every_file_that_opens_a_connection_and_no_other() -> None:
    found = set()
    for path in (ROOT / "appliance").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if _CLIENTS.search(source) or ("AF_INET" in source and ".connect(" in source):
            found.add(path.relative_to(ROOT / "appliance").as_posix())
    text = PAGE.read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", text) if not name.startswith("tests/")}
    assert {"web/operations/traces.py", "worker/probes.py", "client/syslog.py"} <= found, "the pattern finds too little"
    assert found <= named, found - named
    assert all((ROOT / "appliance" / name).is_file() for name in named)
    assert all((ROOT / name).exists() for name in re.findall(r"`(tests/[a-z_/.]+)`", text))


def test_what_the_page_calls_absent_is_absent_and_its_switches_are_set() -> None:
    assert importlib.util.find_spec("tldextract") is None and importlib.util.find_spec("kernels") is None
    text = PAGE.read_text(encoding="utf-8")
    source = "".join(path.read_text() for path in (ROOT / "appliance").rglob("*.py"))
    switches = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", text))
    assert len(switches) >= 8 and not [name for name in switches if f'"{name}"' not in source]
