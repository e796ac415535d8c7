"""Debian's rsyslog receives the feed over TLS: nothing is lost when it is killed, and duplicates are identifiable."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.kit.certificates import Authority
from scripts.kit.ports import free_port
from scripts.kit.waiting import wait_for
from tests.kit.console import Console, console, listening
from tests.web.test_feed import TOKEN, app_of

pytestmark = pytest.mark.outside

CONFIGURATION = """
global(workDirectory="{folder}" net.enableDNS="off" maxMessageSize="8k"
    defaultNetstreamDriverCAFile="{ca}"
    defaultNetstreamDriverCertFile="{certificate}"
    defaultNetstreamDriverKeyFile="{key}")
module(load="imtcp" StreamDriver.Name="{driver}" StreamDriver.Mode="1" StreamDriver.AuthMode="{mode}")
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="all")
template(name="line" type="string" string="%pri% %timestamp:::date-rfc3339% %app-name% %msgid% %msg%\\n")
ruleset(name="all" queue.type="Direct") {{
    action(type="omfile" file="{folder}/received" template="line" asyncWriting="off" flushOnTXEnd="on")
}}
"""


class Rsyslog:
    """A server of its own on loopback, which can be killed and started again."""

    def __init__(self, folder: Path, driver: str, *, asks_certificate: bool) -> None:
        self.folder, self.port = folder, free_port()
        self.authority = Authority(folder / "pki")
        files = self.authority.issue("localhost")
        self.received = folder / "received"
        mode = "x509/certvalid" if asks_certificate else "anon"
        place = {"folder": folder, "ca": self.authority.file, "certificate": files.chain, "key": files.key}
        text = CONFIGURATION.format(**place, driver=driver, mode=mode, port=self.port)
        (folder / "rsyslog.conf").write_text(text)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        found = shutil.which("rsyslogd", path="/usr/sbin:/usr/bin")
        assert found is not None, "install Debian's rsyslog, rsyslog-openssl and rsyslog-gnutls"
        words = [found, "-n", "-f", str(self.folder / "rsyslog.conf"), "-i", str(self.folder / "pid")]
        with (self.folder / "errors").open("ab") as errors:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        wait_for(self._listens, (self.folder / "errors").read_text)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
            (self.folder / "pid").unlink(missing_ok=True)
        self.process = None

    def lines(self) -> list[str]:
        return self.received.read_text().splitlines() if self.received.exists() else []

    def indexes(self) -> list[int]:
        """Return the indexes of whole lines. A killed server may have written half of its last one."""
        found = []
        for line in self.lines():
            try:
                found.append(json.loads(line[line.index("{") :])["metadata"]["sequence"])
            except ValueError:
                continue
        return found


@contextmanager
def rsyslog(folder: Path, driver: str, *, asks_certificate: bool = False) -> Iterator[Rsyslog]:
    folder.mkdir()
    server = Rsyslog(folder, driver, asks_certificate=asks_certificate)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console("serving", tmp_path_factory.mktemp("rsyslog") / "home") as made:
        yield made


@pytest.fixture
def words(desk: Console, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    port, token = free_port(), tmp_path / "feed.token"
    token.touch(0o600)
    token.write_bytes(TOKEN)
    with listening(desk, port, app_of(desk)):
        yield (
            *(sys.executable, "-m", "appliance", "ledger", "feed", "--service", f"127.0.0.1:{port}"),
            *("--token", str(token), "--state", str(tmp_path / "state"), "--settle", "2"),
        )


def to(server: Rsyslog) -> tuple[str, ...]:
    return "--syslog", f"localhost:{server.port}", "--ca", str(server.authority.file)


def state_of(folder: Path) -> int:
    file = folder / "state"
    return int(json.loads(file.read_text())["after"]) if file.exists() else -1


@pytest.mark.parametrize("driver", ["ossl", "gtls"])
def test_each_entry_arrives_once_with_its_time_severity_and_type(
    desk: Console, words: tuple[str, ...], tmp_path: Path, driver: str
) -> None:
    with rsyslog(tmp_path / "server", driver, asks_certificate=True) as server:
        client = server.authority.issue("feed.example", client=True)
        shown = ("--certificate", str(client.chain), "--certificate-key", str(client.key))
        subprocess.run([*words, *to(server), *shown, "--once"], check=True, timeout=240)
        size = desk.site.state.size
        wait_for(lambda: server.indexes() == list(range(size)), server.indexes)
        assert state_of(tmp_path) == size - 1
        priority, at, program, kind, event = server.lines()[0].split(" ", 4)
        assert (priority, program, kind) == ("110", "appliance", "appliance.initialized")
        assert at.startswith(json.loads(event)["metadata"]["original_time"][:19])
        refused = subprocess.run([*words, *to(server), "--once"], check=False, timeout=240, capture_output=True)
        assert refused.returncode == 0, "nothing is new, so nothing is sent"


def test_a_server_without_the_right_certificate_gets_nothing(words: tuple[str, ...], tmp_path: Path) -> None:
    with rsyslog(tmp_path / "server", "ossl") as server:
        other = Authority(tmp_path / "other").file
        place = ("--syslog", f"localhost:{server.port}", "--ca", str(other))
        ended = subprocess.run([*words, *place, "--once"], check=False, timeout=240, capture_output=True, text=True)
        assert ended.returncode == 7 and "CERTIFICATE_VERIFY_FAILED" in ended.stderr.upper(), ended.stderr
        assert server.indexes() == [] and state_of(tmp_path) == -1


def test_nothing_is_lost_when_the_server_is_killed_and_duplicates_have_their_index(
    desk: Console, words: tuple[str, ...], tmp_path: Path
) -> None:
    with rsyslog(tmp_path / "server", "ossl") as server:
        with (tmp_path / "said").open("wb") as said:
            command = subprocess.Popen([*words, *to(server)], stdout=said, stderr=said)
        try:
            first = desk.site.state.size
            wait_for(lambda: set(server.indexes()) == set(range(first)), server.indexes)
            wait_for(lambda: state_of(tmp_path) == first - 1)
            for _ in range(3):
                desk.site.pend(*desk.site.enrolment(f"new{desk.site.state.size}", ("operator",)))
                wait_for(lambda: desk.site.state.size - 1 in server.indexes())
                server.kill()  # before the lines count as taken
                desk.site.pend(*desk.site.enrolment(f"new{desk.site.state.size}", ("operator",)))
                time.sleep(1)
                server.start()
                wait_for(lambda: desk.site.state.size - 1 in server.indexes(), (tmp_path / "said").read_text)
            size = desk.site.state.size
            wait_for(lambda: state_of(tmp_path) == size - 1)
            seen = server.indexes()
            assert set(seen) == set(range(size)), "nothing is lost"
            assert len(seen) > size, "what was not taken was sent again"
            assert b"the next try is in" in (tmp_path / "said").read_bytes()
        finally:
            command.send_signal(signal.SIGTERM)
            command.wait(60)
        # The command itself is killed and started again: it continues after what was taken.
        before = len(server.indexes())
        desk.site.pend(*desk.site.enrolment("last", ("operator",)))
        subprocess.run([*words, *to(server), "--once"], check=True, timeout=240)
        wait_for(lambda: server.indexes()[before:] == [size])
