"""Pending batches: entries for which the signer was asked for a checkpoint, until their commit.

A signer signs each size of the log once. If the service ends between signature and commit, the signed batch must still
be committed. It is therefore stored durably before the signer is asked, outside of the transaction that commits it:
in a file of the home, or with PostgreSQL in a table that a second connection writes.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, Engine, bindparam, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError

from appliance.domain.actions.apply import apply, parse_typed
from appliance.domain.core.entry import EntryDraft
from appliance.domain.core.state import State
from appliance.errors import ApplianceError, BadInput, Tampered, TooLarge, Unavailable
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.fields import encode_base64, parse_base64, parse_list, parse_object, parse_text
from appliance.formats.core.merkle import HASH_BYTES, Frontier
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.store.database.engine import Prepared, connect_writer, database_errors, discard
from appliance.store.database.tables import pending_batches
from appliance.store.files import disk
from appliance.store.ledger.keys import LastSigned
from appliance.store.ledger.writer import Batch, StagedEntry, check_drafts

FILE = "pending.batch"
"""Name of the file in the home."""
MAX_BYTES = 1 << 30
"""Most bytes of the file."""
_MANUAL = "docs/operations/signer.md says what to do"
_BEHIND = (
    "signer: expected its last checkpoint to be that of the log's {size} entries, got one of {got}: its record was put "
    f"back to an older state; {_MANUAL}"
)
_OTHER = (
    "signer: expected its last checkpoint to have the root of this log's {size} entries, got another root: the signer "
    f"has signed another log; {_MANUAL}"
)
_MISSING = (
    "signer: expected its last checkpoint to be that of the log's {size} entries, got one of {got}, whose pending "
    f"batch is missing; this database or the home was put back to an older state. If that was on purpose, start it "
    f"with: appliance serve --restoration; {_MANUAL}"
)
_AHEAD = (
    "signer: expected one that has stepped back to this log, got one whose last checkpoint is of {got} entries, which "
    "the log lacks; have it step back with the administrators' orders: appliance signer step-back"
)
_MEMBERS = frozenset({"documents", "entry", "erased", "texts"})
_TEXT_MEMBERS = frozenset({"commitment", "salt", "text"})
_HEADER_BYTES = 32 + 8 + HASH_BYTES


def encode_batch(staged: Sequence[StagedEntry]) -> bytes:
    """Encode the entries of a batch, with what is stored beside them, as a line of canonical JSON each."""
    return b"\n".join(map(_encode_one, staged))


def _encode_one(one: StagedEntry) -> bytes:
    texts = [
        {"commitment": text.commitment, "salt": encode_base64(text.salt), "text": text.text}
        for text in one.draft.disclosures
    ]
    return encode_canonical(
        {
            "documents": {role: encode_base64(content) for role, content in one.draft.documents.items()},
            "entry": encode_base64(one.data),
            "erased": list(one.draft.erased),
            "texts": texts,
        }
    )


def stage_again(batch: Batch, signed: SignedBatch, state: State, before: Frontier) -> None:
    """Add the entries of a pending batch to an empty one and apply them to the state. `before`: the log's right edge.

    Guards have accepted them before and are not evaluated again.

    Raises:
        Tampered: the bytes are not a batch, its entries do not follow the state, or others were signed.
    """
    try:
        for line in signed.data.split(b"\n"):
            batch.staged.append(_stage_one(parse_canonical(line), state))
        after = before.extend([one.entry.leaf for one in batch.staged])[0]
        found = open_checkpoint(signed.note, *state.site.signing_keys(state.last_time))
    except ApplianceError as error:
        raise Tampered(f"pending batch: {error.message}") from error
    if (found.size, found.root) != (after.size, after.root()):
        raise Tampered(
            f"pending batch: expected the entries that the signer has signed, of the root {found.root.hex()}, got "
            f"others, of the root {after.root().hex()}"
        )


def _stage_one(value: object, state: State) -> StagedEntry:
    member = parse_object(value, "pending batch", _MEMBERS)
    encoded = parse_base64(member["entry"], "pending batch, entry")
    entry = parse_typed(encoded)
    if (entry.index, entry.prev) != (state.size, state.last_leaf):
        raise BadInput(f"expected entry {state.size} after {state.last_leaf}, got {entry.index} after {entry.prev}")
    roles = member["documents"] if isinstance(member["documents"], dict) else {}
    draft = EntryDraft(
        type=entry.type,
        documents={role: parse_base64(content, f"document {role}") for role, content in roles.items()},
        disclosures=tuple(_parse_text(text) for text in parse_list(member["texts"], "texts")),
        erased=tuple(parse_text(one, "erased") for one in parse_list(member["erased"], "erased")),
    )
    check_drafts([draft])
    apply(state, entry, draft.documents)
    return StagedEntry(draft, entry, encoded, state.take_changes())


def _parse_text(value: object) -> Disclosure:
    member = parse_object(value, "text", _TEXT_MEMBERS)
    return Disclosure(
        parse_text(member["commitment"], "commitment"),
        parse_base64(member["salt"], "salt"),
        parse_text(member["text"], "text"),
    )


class SigningRecord(Protocol):
    """The record of a signer that signs each size of the log once."""

    def last_signed(self, origin: str) -> LastSigned | None:
        """Return the last checkpoint that was signed, or None before the first."""
        ...


class SignedBatch(NamedTuple):
    """A pending batch that the signer has signed, and the note of its checkpoint."""

    data: bytes
    note: bytes


class PendingBatches:
    """The pending batches of a log, compared with what its signer has signed."""

    def __init__(self, stored: PendingFile | PendingTable, record: SigningRecord, *, restoration: bool = False) -> None:
        """Use these batches and this record.

        With `restoration`, a log that lacks entries that the signer has signed can be read. It grows only after the
        signer has stepped back.
        """
        self._stored, self._record, self._restoration = stored, record, restoration
        self.remove, self.close = stored.remove, stored.close
        self._origin = ""
        self.signer_checkpoint_ahead: LastSigned | None = None
        """The last checkpoint of a signer that has to step back to this log, as it was when last asked, or None."""

    def recheck(self) -> None:
        """Ask the signer again whether it has to step back to this log."""
        ahead = self.signer_checkpoint_ahead
        if ahead is not None and self._record.last_signed(self._origin) != ahead:
            self.signer_checkpoint_ahead, self._restoration = None, False

    def store(self, size: int, root: bytes, data: bytes) -> None:
        """Store a batch durably; the log has this size and root after it.

        Raises:
            Unavailable: the signer has not stepped back to this log yet.
        """
        self.recheck()
        if self.signer_checkpoint_ahead is not None:
            raise Unavailable(_AHEAD.format(got=self.signer_checkpoint_ahead.size), code="awaits-step-back")
        self._stored.store(size, root, data)

    def find_signed(self, origin: str, frontier: Frontier) -> SignedBatch | None:
        """Return the batch that the signer has signed beyond the log, whose right edge this is, or None.

        The caller has locked the log's head.

        Raises:
            Tampered: the signer has not signed this log, or the batch is missing and no restoration is awaited.
        """
        last, size = self._record.last_signed(origin), frontier.size
        if last is None or last.size < size:
            if size:
                raise Tampered(_BEHIND.format(size=size, got=0 if last is None else last.size), code="signer-behind")
            return None
        if last.size == size:
            if last.root != frontier.root():
                raise Tampered(_OTHER.format(size=size), code="split-view")
            self.signer_checkpoint_ahead, self._restoration = None, False
            self.remove(size)
            return None
        data = self._stored.read(last.size, last.root)
        if data is not None and size + data.count(b"\n") + 1 != last.size:
            data = None  # it continues a newer log than this one, which was restored
        if data is None and self._restoration:
            self._origin, self.signer_checkpoint_ahead = origin, last
            return None
        if data is None:
            raise Tampered(_MISSING.format(size=size, got=last.size), code="batch-missing")
        return SignedBatch(data, last.note)


class PendingFile:
    """The only pending batch of a log that one process appends to.

    The file is SHA-256 of the rest, the size (8 bytes), the root, and the batch. A file whose hash differs was not
    written to its end, so the signer was never asked for it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def store(self, size: int, root: bytes, data: bytes) -> None:
        """Replace the batch in the file and wait until it is on disk.

        Raises:
            TooLarge: it could not be read again, so the signer must not be asked for it.
        """
        if len(data) > MAX_BYTES - _HEADER_BYTES:
            raise TooLarge(f"pending batch: expected at most {MAX_BYTES - _HEADER_BYTES} bytes, got {len(data)}")
        rest = size.to_bytes(8, "big") + root + data
        with disk.disk_errors("pending batch"), self._open() as file:
            disk.write_all(file, hashlib.sha256(rest).digest() + rest)
            os.ftruncate(file, _HEADER_BYTES + len(data))
            os.fdatasync(file)

    def read(self, size: int, root: bytes) -> bytes | None:
        """Return the batch of the file if it is that of this size and root."""
        with disk.disk_errors("pending batch"), self._open() as file:
            data = disk.read_all(file, MAX_BYTES, "pending batch")
        digest, rest = data[:32], data[32:]
        if hashlib.sha256(rest).digest() != digest or rest[: 8 + HASH_BYTES] != size.to_bytes(8, "big") + root:
            return None
        return rest[8 + HASH_BYTES :]

    def remove(self, size: int) -> None:
        """Empty the file. A power cut can undo this, and the next start repeats it."""
        with suppress(OSError), self._open() as file:
            os.ftruncate(file, 0)

    @contextmanager
    def _open(self) -> Iterator[int]:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(self._path, flags)
        except FileNotFoundError:
            file = os.open(self._path, flags | os.O_CREAT, 0o600)
            disk.sync_folder(self._path.parent)
        try:
            yield file
        finally:
            os.close(file)

    def close(self) -> None:
        """Do nothing: the file is open only while it is used."""


_STORE = Prepared(insert(pending_batches))
_READ = Prepared(
    select(pending_batches.c.bytes).where(
        pending_batches.c.size == bindparam("of_size"), pending_batches.c.root == bindparam("of_root")
    )
)
_REMOVE = Prepared(delete(pending_batches).where(pending_batches.c.size <= bindparam("up_to")))


class PendingTable:
    """The pending batches of a log on PostgreSQL, to which several processes may append."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def store(self, size: int, root: bytes, data: bytes) -> None:
        """Insert the batch and commit it. The same batch may be there from an earlier try."""
        if self.read(size, root) is None:
            self._run(_STORE, {"size": size, "root": root, "bytes": data})

    def read(self, size: int, root: bytes) -> bytes | None:
        """Return the batch of this size and root."""
        rows = self._run(_READ, {"of_size": size, "of_root": root})
        return bytes(rows[0][0]) if rows else None

    def remove(self, size: int) -> None:
        """Delete the batches up to this size."""
        with suppress(ApplianceError):
            self._run(_REMOVE, {"up_to": size})

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        discard(connection)

    def _run(self, statement: Prepared, values: dict[str, Any]) -> list[Any]:
        """Run a statement in a transaction of its own, again on a new connection if the old one was lost."""
        with self._lock, database_errors("pending batch"):
            if self._connection is not None:
                try:
                    return self._run_once(self._connection, statement, values)
                except SQLAlchemyError:
                    self.close()
            self._connection = connect_writer(self._engine)
            try:
                return self._run_once(self._connection, statement, values)
            except BaseException:
                self.close()
                raise

    def _run_once(self, connection: Connection, statement: Prepared, values: dict[str, Any]) -> list[Any]:
        with connection.begin():
            cursor = statement.execute(connection, values)
            return list(cursor.fetchall()) if cursor.description else []


def open_pending(engine: Engine, home: Path, record: SigningRecord, *, restoration: bool = False) -> PendingBatches:
    """Return the pending batches of the log in this database: a file of the home, or a table on PostgreSQL.

    `restoration` lets a log be read that lacks entries which the signer has signed.
    """
    stored = PendingFile(home / FILE) if engine.dialect.name == "sqlite" else PendingTable(engine)
    return PendingBatches(stored, record, restoration=restoration)
