"""Snapshots: the state in a sealed file, so that the next start continues there instead of at the first entry.

    <decimal length of the note>
    <note>      text, an empty line, the signature by the log's key: identifies the log and the hash of the body
    <body>      the tree's right edge as a line of hexadecimal hashes, the checkpoint as a line of base64, the state

A snapshot is a cache for the service that wrote it: the key of the seal must be one of this service's, and the code
must be the same. A valid seal proves, whatever code made it, that the log had that root at that size. A log that is
shorter now, or different, is refused (docs/adr/0012-state-snapshots.md). The checkpoint of that size is what two
administrators give up if an older log was restored on purpose (docs/adr/0030-restorations.md).
"""

from __future__ import annotations

import json
import logging
import os
import time
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from appliance.domain.core.names import explain
from appliance.domain.core.state import State, Table
from appliance.errors import ApplianceError, BadInput, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64, parse_base64, parse_decimal, show
from appliance.formats.core.merkle import Frontier
from appliance.formats.log.checkpoint import Checkpoint, parse_checkpoint
from appliance.formats.log.note import parse_note, verify_note
from appliance.formats.log.seal import LogSeal, parse_seal
from appliance.store.files import disk
from appliance.store.ledger.keys import LogKeys
from appliance.store.ledger.log_state import KnownHead, LogState

_TABLES = {name: table for name, table in vars(State()).items() if isinstance(table, Table)}
ROWS: dict[str, Any] = {name: table.row for name, table in _TABLES.items() if name != "clearances"}
"""The type of the rows of each table of the state, by the name of the table."""


class Snapshot(NamedTuple):
    """The state at one point. Its values are immutable, so that a snapshot copies only the tables."""

    place: tuple[int, str, str]
    """Size of the log, time of the last entry, its leaf hash."""
    tables: dict[str, dict[str, Any]]


def take_snapshot(state: State) -> Snapshot:
    """Return a snapshot of the state."""
    return Snapshot(state.place, {name: dict(_table(state, name).items()) for name in ROWS})


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Encode a snapshot as a line of JSON for the place, then a line for each table in the order of `ROWS`."""
    lines = [json.dumps(snapshot.place).encode()]
    lines += [_adapter(name).dump_json(snapshot.tables[name]) for name in ROWS]
    return b"\n".join(lines)


def decode_snapshot(data: bytes) -> State:
    """Decode a state.

    Raises: BadInput for bytes that are not a snapshot of this version.
    """
    place, *tables = data.split(b"\n")
    if len(tables) != len(ROWS):
        raise BadInput(f"snapshot: expected {len(ROWS)} tables, got {len(tables)}")
    state = State()
    try:
        state.size, state.last_time, state.last_leaf = json.loads(place)
        for name, line in zip(ROWS, tables, strict=True):
            for key, value in _adapter(name).validate_json(line).items():
                _table(state, name).set(key, value)
    except ValidationError as error:
        raise BadInput(f"snapshot: {explain(error)[:500]}") from None
    except (ValueError, TypeError):
        raise BadInput(f"snapshot: expected size, time and hash, got {show(place)}") from None
    return state


def _table(state: State, name: str) -> Table[Any]:
    table: Table[Any] = getattr(state, name)
    return table


@cache
def _adapter(name: str) -> TypeAdapter[dict[str, Any]]:
    table: Any = GenericAlias(dict, (str, ROWS[name]))
    return TypeAdapter(table, config=ConfigDict(strict=True))


log = logging.getLogger("appliance")

MAX_BYTES = 4 << 30
_MAX_NOTE = 4_096


class SnapshotContent(NamedTuple):
    """The content of a snapshot with a valid seal: the log's root at a size, and the state.

    The state is None if other code made it, or if it covers too few entries. `checkpoint` is the signed note of the
    log at that size. It is empty if the file has none, as one of another build can. `time_s` is the time at which the
    file was written, in seconds since 1970.
    """

    seen: KnownHead
    log_state: LogState | None
    checkpoint: bytes
    time_s: float


class Snapshots:
    """The snapshot at a path. Disk errors are Unavailable."""

    def __init__(self, path: Path, *, origin: str, code: str, keys: LogKeys, least: int = 0) -> None:
        """Open the snapshot; a state of fewer than `least` entries is not used."""
        self._path = path
        self._origin = origin
        self._code = code
        self._keys = keys
        self._least = least
        self.size = 0
        """Size of the log whose state was last read or written."""

    @property
    def age_s(self) -> float | None:
        """Return the seconds since the snapshot was written, or None if there is none."""
        try:
            return max(0.0, time.time() - self._path.stat().st_mtime)
        except OSError:
            return None

    def read(self) -> SnapshotContent | None:
        """Return the snapshot, or None if it is missing or its seal is invalid; then all entries are replayed."""
        try:
            return self._read()
        except NotFound:
            return None
        except ApplianceError as error:
            log.warning("%s: nothing is taken from it: %s", self._path, error.message)
            return None

    def _read(self) -> SnapshotContent:
        what = f"snapshot {self._path}"
        with (
            disk.disk_errors(what),
            disk.open_folder(self._path.parent) as folder,
            disk.open_plain(folder, self._path.name, what) as file,
        ):
            data, time_s = disk.read_all(file, MAX_BYTES, what), os.fstat(file).st_mtime
        length, _, rest = data.partition(b"\n")
        size = parse_decimal(length[:8].decode("ascii", "replace"), f"{what}, note")
        seal, body = self._open(rest[: min(size, _MAX_NOTE)], what), rest[size:]
        if digest_bytes(body) != seal.body:
            raise Tampered(f"{what}: expected the bytes of {seal.body}, got those of {digest_bytes(body)}")
        edge, checkpoint, state = _split_body(body, seal)
        is_taken = seal.code == self._code and seal.size >= self._least
        log_state = _decode(edge, state, seal, what) if is_taken else None
        self.size = 0 if log_state is None else seal.size
        return SnapshotContent(KnownHead(seal.size, seal.root), log_state, checkpoint, time_s)

    def _open(self, data: bytes, what: str) -> LogSeal:
        """Verify that the seal is signed by a key of this service and return it."""
        note = parse_note(data)
        seal = parse_seal(note.text)
        if seal.origin != self._origin:
            raise Tampered(f"{what}: expected one of the log {self._origin}, got {show(seal.origin)}")
        if not self._keys.has_log_key(seal.vkey):
            raise NotFound(f"{what}: expected a key of the log, got {seal.vkey}")
        verify_note(note, seal.vkey)
        return seal

    def write(self, snapshot: Snapshot, frontier: Frontier, vkey: str, checkpoint: bytes) -> None:
        """Write the snapshot durably in place of the previous one.

        `vkey` is the current key of the log, and `checkpoint` the signed note of its size.
        """
        edge = b" ".join(node.hex().encode() for node in frontier.hashes)
        body = b"\n".join((edge, encode_base64(checkpoint).encode(), encode_snapshot(snapshot)))
        seal = LogSeal(self._origin, vkey, frontier.size, frontier.root(), self._code, digest_bytes(body))
        note = self._keys.sign_snapshot(seal)
        with disk.disk_errors(f"snapshot {self._path}"):
            disk.write_file(self._path, b"%d\n" % len(note) + note + body)
        self.size = seal.size

    def set_aside(self) -> None:
        """Rename the file, which the log does not continue, so that no start reads it. It stays as evidence."""
        with disk.disk_errors(f"snapshot {self._path}"):
            count = 1
            while (target := self._path.with_name(f"{self._path.name}-{count}.lost")).exists():
                count += 1
            self._path.rename(target)
            disk.sync_folder(self._path.parent)


def copy_log_state(log_state: LogState, checkpoint: bytes) -> tuple[Snapshot, Frontier, str, bytes]:
    """Copy what `write` needs of a log_state, which may change meanwhile, beside the checkpoint of its size."""
    return take_snapshot(log_state.state), log_state.frontier, log_state.state.site.log_key, checkpoint


def _split_body(body: bytes, seal: LogSeal) -> tuple[bytes, bytes, bytes]:
    """Return the tree's right edge, the checkpoint and the state. A checkpoint of another size or root is left out."""
    edge, _, rest = body.partition(b"\n")
    line, _, state = rest.partition(b"\n")
    try:
        checkpoint = parse_base64(line.decode("ascii", "replace"), "snapshot, checkpoint")
        found = parse_checkpoint(parse_note(checkpoint).text)
    except BadInput:
        return edge, b"", state
    return edge, checkpoint if found == Checkpoint(seal.origin, seal.size, seal.root) else b"", state


def _decode(edge: bytes, data: bytes, seal: LogSeal, what: str) -> LogState:
    state = decode_snapshot(data)
    frontier = Frontier(seal.size, tuple(bytes.fromhex(node) for node in edge.decode("ascii").split()))
    found = (state.size, frontier.root(), state.site.log_key)
    if found != (seal.size, seal.root, seal.vkey):
        raise BadInput(f"{what}: expected the size, root and key that it was sealed with, got size {state.size}")
    return LogState.restored(state, frontier)
