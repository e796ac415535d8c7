"""The service's client of the signer, through its socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from appliance.errors import ApplianceError, Tampered, Unavailable
from appliance.formats.core.fields import encode_base64, parse_base64, parse_count, parse_list, parse_text
from appliance.formats.core.frame import read_frame, write_frame
from appliance.formats.core.merkle import HASH_BYTES, Frontier
from appliance.formats.log.backup import Backup, encode_backup
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.log.seal import LogSeal, encode_seal
from appliance.formats.signatures.dsse import parse_pae
from appliance.formats.signatures.keys import RemoteSigner, Signer
from appliance.signer.protocol import MAX_BLOB_BYTES, MAX_HEADER_BYTES, REQUEST_S, parse_error
from appliance.store.ledger.keys import LastSigned


class SignerKeys:
    """The keys of a log that are in the signer, with the methods of `ServiceKeys` and of `SigningRecord`.

    Each request can be repeated without harm, so after a broken connection it is sent once more on a new one.
    """

    def __init__(self, path: Path, origin: str) -> None:
        self._path, self.origin = path, origin
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._stream: BinaryIO | None = None
        self._log_keys: list[str] = []

    @property
    def place(self) -> str:
        return f"the signer at {self._path}"

    def has_log_key(self, vkey: str) -> bool:
        return vkey in self._log_keys or vkey in self.list_log_keys()

    def sign_checkpoint(
        self, origin: str, before: Frontier, leaves: Sequence[bytes], root: bytes, vkeys: Sequence[str]
    ) -> bytes:
        """Have the signer continue its last checkpoint by these leaf hashes, and return the verified note.

        Raises:
            SignerAhead: its last checkpoint is another one.
        """
        header = {"origin": origin, "before": before.size, "root": encode_base64(root), "keys": list(vkeys)}
        _, note = self._ask("sign-checkpoint", header, b"".join(leaves))
        for vkey in vkeys:
            found = open_checkpoint(note, vkey)
            if (found.size, found.root) != (before.size + len(leaves), root):
                raise Tampered(
                    f"signer: expected a checkpoint of {before.size + len(leaves)} entries, got {found.size}"
                )
        return note

    def find_log(self) -> str | None:
        """Return the origin of the log that the signer has signed, or None before its first checkpoint."""
        header, _ = self._ask("log", {})
        return parse_text(header.get("origin"), "signer, origin") or None

    def last_signed(self, origin: str) -> LastSigned | None:
        header, note = self._ask("last-signed", {"origin": origin})
        size = parse_count(header.get("size"), "signer, size")
        return LastSigned(size, parse_base64(header["root"], "signer, root", size=HASH_BYTES), note) if size else None

    def sign_snapshot(self, seal: LogSeal) -> bytes:
        return self._ask("sign-snapshot", {"seal": encode_seal(seal)})[1]

    def sign_backup(self, backup: Backup) -> bytes:
        return self._ask("sign-backup", {}, encode_backup(backup))[1]

    def list_log_keys(self) -> list[str]:
        header, _ = self._ask("keys", {"origin": self.origin})
        self._log_keys = [parse_text(key, "signer, key") for key in parse_list(header.get("log"), "signer, keys")]
        return self._log_keys

    def next_log_key(self, used: Collection[str], *, post_quantum: bool = False) -> str:
        header = {"origin": self.origin, "used": list(used), "post_quantum": post_quantum}
        return parse_text(self._ask("create-log-key", header)[0].get("key"), "signer, key")

    def adapter_signer(self, *, post_quantum: bool = False) -> Signer:
        header, _ = self._ask("adapter-key", {"post_quantum": post_quantum})
        return self._make_adapter_signer(header, post_quantum=post_quantum)

    def post_quantum_adapter_key(self) -> Signer:
        return self._make_adapter_signer(self._ask("create-adapter-key", {})[0], post_quantum=True)

    def _make_adapter_signer(self, header: dict[str, Any], *, post_quantum: bool) -> Signer:
        def sign(data: bytes) -> bytes:
            # The signer encodes the statement of this PAE again.
            return self._ask("sign-adapter", {"post_quantum": post_quantum}, parse_pae(data))[1]

        return RemoteSigner(parse_base64(header.get("key"), "signer, adapter key"), sign)

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _ask(self, operation: str, header: dict[str, Any], blob: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send a request and return the response.

        Raises:
            Unavailable: the signer cannot be reached.
        """
        with self._lock:
            for _ in range(1 if self._stream is None else 2):
                try:
                    found, data = self._exchange({"operation": operation, **header}, blob)
                    break
                except (ApplianceError, OSError):
                    self._drop()
            else:
                raise self._unreachable()
        if "error" in found:
            raise parse_error(found["error"])
        return found, data

    def _exchange(self, header: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        if self._stream is None:
            self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._connection.settimeout(REQUEST_S)
            self._connection.connect(str(self._path))
            self._stream = cast(BinaryIO, self._connection.makefile("rwb"))
        write_frame(self._stream, header, blob)
        response = read_frame(self._stream, MAX_HEADER_BYTES, MAX_BLOB_BYTES)
        if response is None:
            raise Unavailable("signer: expected a response, got the end of the connection")
        return response

    def _unreachable(self) -> Unavailable:
        return Unavailable(
            f"signer, {self._path}: expected one that answers this account, got none; start it: "
            "systemctl start appliance-signer",
            code="signer-unreachable",
        )

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        connection, self._connection = self._connection, None
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.close()
        if connection is not None:
            connection.close()
