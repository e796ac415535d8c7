"""An application that gets its token from the agent's socket."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from appliance.errors import Unavailable


def fetch(path: Path, timeout_s: float = 10.0) -> str:
    """Return the token of the agent at this socket, as an application does.

    Raises: Unavailable with the agent's reason if it has none.
    """
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(timeout_s)
        try:
            asking.connect(str(path))
            data = b""
            while chunk := asking.recv(65_536):
                data += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError("timed out")
        except OSError as error:
            raise Unavailable(f"agent, {path}: expected it to answer, got {error}") from None
    value = json.loads(data)
    if "error" in value:
        raise Unavailable(f"agent, {path}: {value['error']['message']}", code=value["error"]["code"])
    return str(value["token"])
