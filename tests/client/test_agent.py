"""An agent, as a process: it opens sessions with a person's key for some minutes, and signs nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.client.people import prove_possession
from appliance.client.support import agent as agents
from appliance.client.support.agent import AgentStatus, find_agent, sign_session, socket_path, start_agent, stop_agent
from appliance.client.support.agent_process import KeyAgent, _serve_connection
from appliance.client.support.session import SavedSession
from appliance.domain.core.credentials import Credential, SessionStatement, UnitToken, encode_credential
from appliance.domain.core.order import encode_order
from appliance.domain.core.records.people import Principal
from appliance.domain.governance.people import RevokePrincipal
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound
from appliance.formats.core.fields import encode_base64
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import verify_envelope
from appliance.formats.signatures.keys import Ed25519Signer, generate_ed25519
from scripts.kit.log_builder import ORIGIN
from scripts.kit.waiting import wait_for
from tests.client.conftest import Office

LIFETIME_S = 900
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """XDG_RUNTIME_DIR, as short as a socket's path must be."""
    folder = Path(tempfile.mkdtemp(prefix="ag-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setattr(agents, "_started", [])
    yield folder
    for process in agents._started:
        process.kill()
        process.wait(60)
    shutil.rmtree(folder)


@pytest.fixture
def key() -> Ed25519Signer:
    return generate_ed25519()


Start = Callable[..., Path]


@pytest.fixture
def start(runtime: Path, key: Ed25519Signer) -> Start:
    def started(name: str = "olga", seconds: int = 60) -> Path:
        path = socket_path(Path("/srv/appliance"), name)
        start_agent(path, key, name, ORIGIN, lifetime_s=LIFETIME_S, seconds=seconds)
        return path

    return started


def statement(model: type[Credential] = SessionStatement, **changed: str) -> bytes:
    now = datetime.now(UTC)
    values = {
        "origin": ORIGIN,
        "signer": "olga",
        "nonce": "0f" * 16,
        "issued_at": encode_time(now),
        "expires_at": encode_time(now + timedelta(seconds=LIFETIME_S)),
    }
    return encode_credential(model.model_validate(values | changed))


def ask(path: Path, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(line)
        answer: dict[str, Any] = json.loads(agents.read_line(connection))
        return answer


def asked_to_sign(path: Path, payload: bytes) -> dict[str, Any]:
    return ask(path, json.dumps({"ask": "session", "payload": encode_base64(payload)}).encode() + b"\n")


def ended(pid: int) -> bool:
    for process in agents._started:
        process.poll()
    return not Path(f"/proc/{pid}").exists()


def test_a_session_is_signed_with_the_key(start: Start, key: Ed25519Signer) -> None:
    path, payload = start(), statement()
    envelope = sign_session(path, payload, key.keyid)
    assert envelope is not None and envelope.payload == payload
    verify_envelope(envelope, key.spki)


def test_another_key_than_the_one_asked_for_is_not_taken(start: Start) -> None:
    assert sign_session(start(), statement(), generate_ed25519().keyid) is None


def test_the_service_takes_a_session_that_the_agent_signed(open_office: Callable[..., Office], runtime: Path) -> None:
    office = open_office("staffed")
    key = office.site.keys["audrey"]
    assert isinstance(key, Ed25519Signer)
    path = socket_path(office.socket, "audrey")
    start_agent(path, key, "audrey", office.connection.about.origin, lifetime_s=LIFETIME_S, seconds=60)

    def locked() -> Ed25519Signer:
        raise AssertionError("the key was needed")

    connection = office.opened()
    connection.bearer = SavedSession(
        connection, "audrey", locked, lambda payload: sign_session(path, payload, key.keyid)
    )
    assert "olga" in [row.name for row in connection.get("/v1/principals", list[Principal])]


def test_the_socket_is_its_owners_alone(start: Start) -> None:
    path = start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_it_says_what_it_holds(start: Start, key: Ed25519Signer) -> None:
    held = find_agent(start(seconds=60))
    assert held is not None
    assert held == AgentStatus("olga", ORIGIN, key.keyid, held.seconds_left, held.pid)
    assert 50 <= held.seconds_left <= 60


def test_it_ends_when_it_is_told_to(start: Start) -> None:
    path = start()
    held = find_agent(path)
    assert held is not None
    stop_agent(path)
    wait_for(lambda: ended(held.pid) and not path.exists())
    with pytest.raises(NotFound, match="expected one that runs"):
        stop_agent(path)


@pytest.mark.thorough
def test_it_ends_by_itself(start: Start) -> None:
    path = start(seconds=2)
    held = find_agent(path)
    assert held is not None
    wait_for(lambda: ended(held.pid) and not path.exists())
    assert sign_session(path, statement(), held.keyid) is None


def test_a_second_agent_for_the_same_person_is_refused(start: Start) -> None:
    start()
    with pytest.raises(Conflict, match="appliance agent stop"):
        start()


def test_a_socket_that_a_killed_agent_left_is_replaced(start: Start, key: Ed25519Signer) -> None:
    path = start()
    held = find_agent(path)
    assert held is not None
    os.kill(held.pid, signal.SIGKILL)
    wait_for(lambda: ended(held.pid))
    assert path.exists() and find_agent(path) is None
    assert sign_session(start(), statement(), key.keyid) is not None


# Attacks.


def test_an_order_is_not_signed(start: Start, open_office: Callable[..., Office]) -> None:
    order = open_office("staffed").propose("olga", RevokePrincipal, {"principal": "anna"}).order
    answer = asked_to_sign(start(), encode_order(order))
    assert answer["error"]["message"].startswith("statement: expected predicateType urn:appliance:statement:session:v1")


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (lambda: statement(UnitToken), "expected predicateType urn:appliance:statement:session:v1"),
        (lambda: statement(origin="other.example/log"), f"log: expected {ORIGIN}, got other.example/log"),
        (lambda: statement(signer="anna"), "signer: expected olga, got anna"),
        (lambda: statement(expires_at="2999-01-01T00:00:00.000Z"), f"expected one of at most {LIFETIME_S} s"),
        (lambda: statement(expires_at="2020-01-01T00:00:00.000Z"), f"expected one of at most {LIFETIME_S} s"),
        (
            lambda: statement(issued_at="2999-01-01T00:00:00.000Z", expires_at="2999-01-01T00:05:00.000Z"),
            "expected one that begins at",
        ),
        (lambda: statement() + b" ", "expected"),
        (lambda: statement().replace(b"{", b"{ ", 1), "expected"),
        (lambda: b"anything", "expected"),
        (lambda: b"", "expected"),
    ],
)  # fmt: skip
def test_nothing_but_this_persons_session_at_this_log_that_begins_now_is_signed(
    start: Start, payload: Callable[[], bytes], said: str
) -> None:
    path = start()
    answer = asked_to_sign(path, payload())
    assert answer.keys() == {"error"} and said in answer["error"]["message"]
    assert find_agent(path) is not None, "it goes on"


def test_a_proof_of_possession_is_not_signed(start: Start, key: Ed25519Signer) -> None:
    envelope = json.loads(prove_possession(ORIGIN, "olga", key))
    answer = ask(start(), json.dumps({"ask": "session", "payload": envelope["payload"]}).encode() + b"\n")
    assert "expected predicateType urn:appliance:statement:session:v1" in answer["error"]["message"]


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"[]\n", b"nonsense\n", b"{\n", b'{"ask": "sign", "data": "AAAA"}\n', b'{"ask": "session"}\n',
        b'{"ask": "session", "payload": 1}\n', b'{"ask": "session", "payload": "*"}\n', b'{"ask": "stop", "more": 1}\n',
        b"[" * 30_000 + b"\n", b"x" * 70_000 + b"\n",
    ],
)  # fmt: skip
def test_what_is_no_question_gets_an_error_and_the_agent_continues(start: Start, line: bytes) -> None:
    path = start()
    assert ask(path, line).keys() == {"error"}
    assert find_agent(path) is not None


@pytest.mark.thorough
def test_one_who_asks_nothing_holds_it_for_seconds_only(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    path = start()
    monkeypatch.setattr(agents, "ANSWER_S", 30.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(path))
        assert find_agent(path) is not None


def test_another_account_gets_no_answer(key: Ed25519Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = KeyAgent(key, "olga", ORIGIN, LIFETIME_S, time.clock_gettime(time.CLOCK_BOOTTIME) + 60)
    here, there = socket.socketpair()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with here, there:
        there.sendall(b'{"ask": "status"}\n')
        _serve_connection(agent, here)
        here.close()
        with pytest.raises((BadInput, ConnectionResetError)):
            agents.read_line(there)


def test_it_leaves_no_core_dump(start: Start) -> None:
    held = find_agent(start())
    assert held is not None
    limits = Path(f"/proc/{held.pid}/limits").read_text()
    assert limits.split("Max core file size")[1].split()[:2] == ["0", "0"]


def test_its_memory_is_open_to_no_process_of_the_account() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import ctypes; from appliance.client.support import agent_process as agent;"
         "libc = ctypes.CDLL(None); print(libc.prctl(3), agent.forbid_dumps(), libc.prctl(3))"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.split() == ["1", "None", "0"], "PR_GET_DUMPABLE"


def test_the_key_is_in_no_argument_and_no_variable(start: Start, key: Ed25519Signer) -> None:
    held = find_agent(start())
    assert held is not None
    words = Path(f"/proc/{held.pid}/cmdline").read_bytes()
    with suppress(PermissionError):  # closed with its memory
        words += Path(f"/proc/{held.pid}/environ").read_bytes()
    assert encode_base64(key.private.private_bytes_raw()).encode() not in words
    assert b"agent_process" in words


@pytest.mark.parametrize("spoil", ["mode", "link"])
def test_a_folder_that_others_could_use_is_refused(start: Start, runtime: Path, spoil: str) -> None:
    folder = runtime / "appliance"
    if spoil == "mode":
        folder.mkdir(mode=0o755)
    else:
        (runtime / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(runtime / "elsewhere")
    with pytest.raises(ApplianceError, match="expected a folder of your own with mode 0700"):
        start()


def test_an_agent_of_another_account_is_not_believed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    path = start()
    monkeypatch.setattr(agents, "peer_of", lambda _: os.getuid() + 1)
    with pytest.raises(Denied, match="expected one of your own account"):
        find_agent(path)
    assert sign_session(path, statement(), "sha256:" + "0" * 64) is None


def test_a_path_that_no_socket_can_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "x" * 120)
    with pytest.raises(BadInput, match="set XDG_RUNTIME_DIR to a shorter folder"):
        socket_path(Path("/srv/appliance"), "olga")
