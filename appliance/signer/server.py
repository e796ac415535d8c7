"""The signer's server: a Unix socket that one account may use, with one request at a time in each connection."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from appliance.errors import ApplianceError, BadInput, Conflict, Unavailable
from appliance.formats.core.acl import ATTRIBUTE, encode_shared_list
from appliance.formats.core.fields import encode_base64, parse_base64, parse_count, parse_list, parse_object, parse_text
from appliance.formats.core.frame import read_frame, write_frame
from appliance.formats.core.merkle import HASH_BYTES
from appliance.signer.operations import Operations
from appliance.signer.protocol import MAX_BLOB_BYTES, MAX_HEADER_BYTES, REQUEST_S, encode_error, split_hashes

log = logging.getLogger("appliance")

MOST_CONNECTIONS = 32
"""Most open connections; a further one is closed."""
_MOST_KEYS = 128

Response = tuple[dict[str, Any], bytes]


class Server:
    """The listener of a signer. `uids`: the accounts that may use it."""

    def __init__(self, operations: Operations, path: Path, uids: frozenset[int]) -> None:
        self._operations, self._path, self._uids = operations, path, uids
        self._connections = threading.Semaphore(MOST_CONNECTIONS)
        self._listener = listen(path, uids)

    def serve(self) -> None:
        """Serve until the listener is closed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if peer_of(connection) not in self._uids:
                log.warning("signer: a process of user id %d connected and was refused", peer_of(connection))
                connection.close()
            elif not self._connections.acquire(blocking=False):
                connection.close()
            else:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """Stop listening and remove the socket."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rwb") as opened:
                stream = cast(BinaryIO, opened)
                while connection.recv(1, socket.MSG_PEEK):
                    connection.settimeout(REQUEST_S)
                    if (request := read_frame(stream, MAX_HEADER_BYTES, MAX_BLOB_BYTES)) is None:
                        return
                    header, blob = respond(self._operations, *request)
                    write_frame(stream, header, blob)
                    connection.settimeout(None)
        except (ApplianceError, OSError) as error:
            log.warning("signer: a connection ended: %s", error)
        finally:
            self._connections.release()


def respond(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    """Return the response to a request. An ApplianceError is returned as a response, too."""
    try:
        name = parse_text(header.get("operation"), "signer, operation")
        if name not in _OPERATIONS:
            raise BadInput(f"signer, operation: expected one of {', '.join(_OPERATIONS)}, got {name[:40]!r}")
        act, members = _OPERATIONS[name]
        return act(operations, parse_object(header, f"signer, {name}", members | {"operation"}), blob)
    except ApplianceError as error:
        if not isinstance(error, Conflict):
            log.warning("signer: refused a request: %s", error.message)
        return encode_error(error), b""


def _sign_checkpoint(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    note = operations.sign_checkpoint(
        parse_text(header["origin"], "signer, origin"),
        parse_count(header["before"], "signer, before"),
        split_hashes(blob),
        parse_base64(header["root"], "signer, root", size=HASH_BYTES),
        _parse_keys(header["keys"]),
    )
    return {}, note


def _find_log(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    return {"origin": operations.find_log() or ""}, b""


def _last_signed(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    last = operations.last_signed(parse_text(header["origin"], "signer, origin"))
    if last is None:
        return {"size": 0, "root": ""}, b""
    return {"size": last.after.size, "root": encode_base64(last.after.root())}, last.note


def _list_keys(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    origin = parse_text(header["origin"], "signer, origin")
    return {"log": operations.list_log_keys(origin)}, b""


def _find_adapter_key(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    key = operations.adapter_key(post_quantum=_parse_flag(header["post_quantum"]))
    return {"key": encode_base64(key)}, b""


def _create_adapter_key(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    return {"key": encode_base64(operations.create_post_quantum_adapter_key())}, b""


def _create_log_key(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    origin, used = parse_text(header["origin"], "signer, origin"), _parse_keys(header["used"])
    return {"key": operations.next_log_key(origin, used, post_quantum=_parse_flag(header["post_quantum"]))}, b""


def _sign_snapshot(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    return {}, operations.sign_snapshot(parse_text(header["seal"], "signer, seal"))


def _sign_backup(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    return {}, operations.sign_backup(blob)


def _sign_adapter(operations: Operations, header: dict[str, Any], blob: bytes) -> Response:
    return {}, operations.sign_adapter(blob, post_quantum=_parse_flag(header["post_quantum"]))


def _parse_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"signer, post_quantum: expected true or false, got {type(value).__name__}")
    return value


def _parse_keys(value: object) -> list[str]:
    keys = [parse_text(key, "signer, key") for key in parse_list(value, "signer, keys")]
    if len(keys) > _MOST_KEYS:
        raise BadInput(f"signer, keys: expected at most {_MOST_KEYS}, got {len(keys)}")
    return keys


_OPERATIONS: dict[str, tuple[Callable[[Operations, dict[str, Any], bytes], Response], frozenset[str]]] = {
    "sign-checkpoint": (_sign_checkpoint, frozenset({"origin", "before", "root", "keys"})),
    "log": (_find_log, frozenset()),
    "last-signed": (_last_signed, frozenset({"origin"})),
    "keys": (_list_keys, frozenset({"origin"})),
    "adapter-key": (_find_adapter_key, frozenset({"post_quantum"})),
    "create-log-key": (_create_log_key, frozenset({"origin", "used", "post_quantum"})),
    "create-adapter-key": (_create_adapter_key, frozenset()),
    "sign-snapshot": (_sign_snapshot, frozenset({"seal"})),
    "sign-backup": (_sign_backup, frozenset()),
    "sign-adapter": (_sign_adapter, frozenset({"post_quantum"})),
}


def listen(path: Path, uids: frozenset[int]) -> socket.socket:
    """Return a listener at the path, to which the accounts with these user ids alone can connect.

    If the file system has no access control lists, others can connect, too, and the server refuses them.

    Raises:
        Conflict: another signer listens there.
        Unavailable: the access to the socket cannot be restricted.
    """
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            if other.connect_ex(str(path)) == 0:
                raise Conflict(f"signer, {path}: expected no other signer, got one that runs")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    try:
        # Others could fill the queue of connections, and the service would find no place in it.
        os.setxattr(path, ATTRIBUTE, encode_shared_list(uids))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise Unavailable(
                f"signer, {path}: expected to restrict it to its accounts, got {error.strerror}"
            ) from None
        log.warning("other accounts can connect to the socket, and are refused: its file system has no access lists")
        os.chmod(path, 0o666)  # noqa: S103 (the server refuses other accounts by their user ids)
    listener.listen(MOST_CONNECTIONS)
    return listener


def peer_of(connection: socket.socket) -> int:
    """Return the user id of the process at the other end."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
