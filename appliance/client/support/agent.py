"""A person's agent from the command line's side: a process that holds the unlocked key and opens sessions with it.

One agent serves one person at one appliance. It signs only session statements (`agent_process`), so each order asks for
the passphrase. Both sides check that the other runs under the same account.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.client.support.connection import Address
from appliance.client.support.service_process import FOLDER, make_command
from appliance.client.support.session import state_folder
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound, Unavailable
from appliance.formats.core.fields import encode_base64
from appliance.formats.signatures.dsse import Envelope, parse_envelope
from appliance.formats.signatures.keys import Ed25519Signer

ANSWER_S = 5.0
"""Seconds within which the agent must respond."""
MAX_LINE_BYTES = 65_536
"""Largest size of a line of a request or response, in bytes."""
_MOST_PATH_BYTES = 107
"""Largest length of the name of a Unix socket, in bytes."""


@dataclass(frozen=True)
class AgentStatus:
    """An agent's description of itself."""

    name: str
    origin: str
    keyid: str
    seconds_left: int
    pid: int


def runtime_folder() -> Path:
    """Return the folder for what one person needs while logged in; `make_folder` creates it."""
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(named) / "appliance" if named.startswith("/") else state_folder() / "agent"


def socket_path(where: Path | Address, name: str) -> Path:
    """Return the socket of this person's agent for this appliance, below XDG_RUNTIME_DIR or the person's own state.

    Raises: BadInput if the path is too long for a socket.
    """
    folder = runtime_folder()
    digest = hashlib.sha256(f"{where}\0{name}".encode()).hexdigest()[:16]
    path = folder / f"{digest}.sock"
    if len(os.fsencode(path)) > _MOST_PATH_BYTES:
        raise BadInput(
            f"agent, {path}: expected a path of at most {_MOST_PATH_BYTES} bytes, got {len(os.fsencode(path))}; "
            "set XDG_RUNTIME_DIR to a shorter folder"
        )
    return path


def make_folder(folder: Path) -> None:
    """Create the folder of agents, which must be the caller's own, with mode 0700, and not a link.

    Raises: Denied for another folder, in which other accounts could act.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise Unavailable(f"agent, {folder}: expected a folder of your own, got {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
        raise Denied(
            f"agent, {folder}: expected a folder of your own with mode 0700, got mode "
            f"{stat.S_IMODE(status.st_mode):04o} of user id {status.st_uid}"
        )


def start_agent(
    path: Path, key: Ed25519Signer, name: str, origin: str, *, lifetime_s: int, seconds: int
) -> AgentStatus:
    """Start a process that holds the key for so many seconds.

    `lifetime_s` is that of the longest session that it signs for.

    Raises: Conflict if an agent runs already; Unavailable if it does not start.
    """
    if find_agent(path) is not None:
        raise Conflict(f"agent of {name}: expected none, got one that runs; end it with: appliance agent stop")
    given = {
        "seed": encode_base64(key.private.private_bytes_raw()),
        "socket": str(path),
        "name": name,
        "origin": origin,
        "lifetime_s": lifetime_s,
        "seconds": seconds,
    }
    process = subprocess.Popen(
        make_command(sys.executable, "appliance.client.support.agent_process"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath},
        cwd=FOLDER,
        start_new_session=True,
    )
    _started.append(process)
    assert process.stdin is not None and process.stdout is not None
    # The key goes through a pipe: other processes could read an argument, the environment or a file.
    with process.stdin, process.stdout:
        process.stdin.write(json.dumps(given).encode() + b"\n")
        process.stdin.flush()
        response = process.stdout.readline(MAX_LINE_BYTES).decode("utf-8", "replace").strip()
    if response != "ready":
        raise Unavailable(f"agent of {name}: expected it to start, got: {response or 'its end'}")
    status = find_agent(path)
    if status is None:
        raise Unavailable(f"agent of {name}: expected it to answer at {path}, got nothing")
    return status


_started: list[subprocess.Popen[bytes]] = []
"""Handles of the agents, which outlive this process. They are kept so that Python does not report unreaped children."""


def find_agent(path: Path) -> AgentStatus | None:
    """Return the agent's description of itself, or None if none runs."""
    answer = _request(path, {"ask": "status"})
    if answer is None:
        return None
    try:
        return AgentStatus(**{field: answer[field] for field in AgentStatus.__dataclass_fields__})
    except KeyError:
        raise Unavailable(f"agent, {path}: expected its status, got another answer") from None


def stop_agent(path: Path) -> None:
    """Stop the agent. After its response it accepts no further requests, and its process ends.

    Raises: NotFound if none runs.
    """
    if _request(path, {"ask": "stop"}) is None:
        raise NotFound("agent: expected one that runs, got none")


def sign_session(path: Path, payload: bytes, keyid: str) -> Envelope | None:
    """Return the session statement signed by the agent, or None if no agent holds this key or it refuses to sign."""
    try:
        answer = _request(path, {"ask": "session", "payload": encode_base64(payload)})
        if answer is None or "envelope" not in answer:
            return None
        envelope = parse_envelope(str(answer["envelope"]).encode())
    except ApplianceError:
        return None  # the person's own key is asked for instead
    return envelope if envelope.payload == payload and envelope.signature.keyid == keyid else None


def _request(path: Path, question: dict[str, str]) -> dict[str, Any] | None:
    """Return the agent's response, or None if no agent listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_S)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise Unavailable(f"agent, {path}: expected it to answer, got {error.strerror or error}") from None
        if peer_of(connection) != os.geteuid():
            raise Denied(f"agent, {path}: expected one of your own account, got one of user id {peer_of(connection)}")
        try:
            connection.sendall(json.dumps(question).encode() + b"\n")
            answer = json.loads(read_line(connection))
        except (OSError, ValueError, RecursionError):
            raise Unavailable(f"agent, {path}: expected an answer within {ANSWER_S:.0f} s, got none") from None
    if not isinstance(answer, dict):
        raise Unavailable(f"agent, {path}: expected an object, got another answer")
    return answer


def peer_of(connection: socket.socket) -> int:
    """Return the user id of the process at the other end, from the kernel."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def read_line(connection: socket.socket) -> bytes:
    """Return the bytes up to the first newline.

    Raises: BadInput for a line that is too long, or an end before the newline.
    """
    data = b""
    while b"\n" not in data:
        chunk = connection.recv(4_096)
        data += chunk
        if not chunk or len(data) > MAX_LINE_BYTES:
            raise BadInput(f"agent: expected one line of at most {MAX_LINE_BYTES} bytes, got {len(data)} bytes")
    return data.partition(b"\n")[0]
