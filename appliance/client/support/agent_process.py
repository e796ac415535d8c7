"""The agent's process: `appliance agent start` starts it and passes the unlocked key through a pipe.

It signs only statements that open a session: strictly parsed, of its own person, for its own log, beginning now, and no
longer than policy allows. It refuses other statements, such as orders, tokens and proofs of possession. A session can
only read. The process ends by itself. Its memory is excluded from core dumps and debuggers of the account.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from appliance.client.support.agent import ANSWER_S, MAX_LINE_BYTES, make_folder, peer_of, read_line
from appliance.domain.core.credentials import SessionStatement, parse_credential
from appliance.errors import ApplianceError, BadInput, Conflict, Denied
from appliance.formats.core.fields import parse_base64
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.signatures.dsse import encode_envelope, sign_envelope
from appliance.formats.signatures.keys import Ed25519Signer, ed25519_signer

_PR_SET_DUMPABLE = 4
_BEGINS_WITHIN_S = 60
"""Largest distance in seconds from now to the beginning of a session, so that signatures cannot be collected for later.
"""


@dataclass
class KeyAgent:
    """An agent: the key, its person, its log, and its time of expiry."""

    key: Ed25519Signer
    name: str
    origin: str
    lifetime_s: int
    ends_at: float
    """Time of expiry in seconds, by a clock that also counts while the machine sleeps."""

    def answer(self, question: Any) -> dict[str, object]:
        """Return the response to a request for the status, a session or the end.

        Raises: BadInput or Denied for any other request.
        """
        match question:
            case {"ask": "status", **rest} if not rest:
                left = max(0, round(self.ends_at - _now_s()))
                status = {"name": self.name, "origin": self.origin, "keyid": self.key.keyid}
                return {**status, "seconds_left": left, "pid": os.getpid()}
            case {"ask": "session", "payload": str(text), **rest} if not rest:
                payload = parse_base64(text, "agent, payload")
                self._check(parse_credential(SessionStatement, payload))
                return {"envelope": encode_envelope(sign_envelope(payload, self.key)).decode("ascii")}
            case {"ask": "stop", **rest} if not rest:
                self.ends_at = 0.0
                return {"stopped": True}
        raise BadInput("agent: expected a question for its status, a session or its end, got another")

    def _check(self, statement: SessionStatement) -> None:
        for what, expected, got in (
            ("log", self.origin, statement.origin),
            ("signer", self.name, statement.signer),
        ):
            if got != expected:
                raise Denied(f"agent, session, {what}: expected {expected}, got {got}")
        begins, ends = parse_time(statement.issued_at), parse_time(statement.expires_at)
        if abs((begins - datetime.now(UTC)).total_seconds()) > _BEGINS_WITHIN_S:
            now = encode_time(datetime.now(UTC))
            raise Denied(f"agent, session: expected one that begins at {now}, got {statement.issued_at}")
        if not 0 < (ends - begins).total_seconds() <= self.lifetime_s:
            raise Denied(
                f"agent, session: expected one of at most {self.lifetime_s} s, got {statement.issued_at} to "
                f"{statement.expires_at}"
            )


def serve(agent: KeyAgent, listener: socket.socket) -> None:
    """Serve one request per connection, until the agent is stopped or expires."""
    while (left := agent.ends_at - _now_s()) > 0:
        listener.settimeout(left)
        with suppress(TimeoutError):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(ANSWER_S)
                _serve_connection(agent, connection)


def _serve_connection(agent: KeyAgent, connection: socket.socket) -> None:
    if peer_of(connection) != os.geteuid():
        return  # a second check, in case the folder's mode was changed
    with suppress(OSError):
        try:
            answer = agent.answer(json.loads(read_line(connection)))
        except ApplianceError as error:
            answer = {"error": {"code": error.code, "message": error.message}}
        except (ValueError, RecursionError):
            answer = {"error": {"code": BadInput.code, "message": "agent: expected one line of JSON, got another"}}
        connection.sendall(json.dumps(answer).encode() + b"\n")


def listen(path: Path) -> socket.socket:
    """Return a listener at a socket of mode 0600; a socket without a listener is replaced.

    Raises: Conflict if an agent listens there.
    """
    make_folder(path.parent)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.fchmod(listener.fileno(), 0o600)  # bind gives the file this mode
    try:
        listener.bind(str(path))
    except OSError:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            if path.is_socket() and other.connect_ex(str(path)) == 0:
                raise Conflict(f"agent, {path}: expected none, got one that runs") from None
        path.unlink()
        listener.bind(str(path))
    listener.listen(16)
    return listener


def forbid_dumps() -> None:
    """Forbid core files, debuggers and /proc/PID/mem to other processes of the account."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise Denied(f"agent: expected its memory locked, got {os.strerror(ctypes.get_errno())}")


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def main() -> None:
    """Read the key and the settings from stdin, report "ready", and serve."""
    path: Path | None = None
    try:
        forbid_dumps()  # before the key comes in
        given = SimpleNamespace(**json.loads(sys.stdin.buffer.readline(MAX_LINE_BYTES)))
        signer = ed25519_signer(parse_base64(given.seed, "agent, seed"))
        agent = KeyAgent(signer, given.name, given.origin, given.lifetime_s, _now_s() + given.seconds)
        listener = listen(Path(given.socket))
        path = Path(given.socket)
    except (ApplianceError, OSError, ValueError, TypeError, AttributeError) as error:
        print(error, flush=True)
        sys.exit(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    try:
        serve(agent, listener)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
