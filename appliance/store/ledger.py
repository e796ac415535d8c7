"""The ledger: the one way to add an entry, and every way to read them.

An append is one transaction under one lock. Inside it the head is locked, entries of other services are folded in, the
guard and the rules decide, rows are written, the entry's bytes are read back, and the checkpoint is signed. Nothing
leaves before the commit. From the moment the rules may have changed the state until the commit is known, the fold is on
loan: whatever goes wrong, it is not put back but folded again from the database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Unpack

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from appliance.domain import rules
from appliance.domain.entry import Draft, Entry, encode_entry, parse_entry
from appliance.domain.state import State
from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, Unavailable
from appliance.formats import merkle
from appliance.formats.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.commitment import Disclosure, verify_disclosure
from appliance.formats.digest import digest_bytes, raw_digest
from appliance.formats.keys import Signer
from appliance.formats.merkle import hash_leaf
from appliance.formats.timestamp import encode_time
from appliance.store import audit, rows
from appliance.store.engine import connect_reader, connect_writer, database_errors, is_current
from appliance.store.fold import NOTHING_SEEN, Fold, Seen, advance, check_checkpoint, check_end
from appliance.store.search import Filters, find_entries
from appliance.store.staging import Staged, check_draft, propose

_PAGE = 256
Guard = Callable[[State], None]
"""Raises what refuses the append; sees the state that the entry would follow, and must not change it."""


@dataclass(frozen=True)
class Appended:
    """A durable entry and the signed checkpoint of the log that ends with it."""

    entry: Entry
    entry_bytes: bytes
    checkpoint: bytes


class Ledger:
    """Append, read and prove. `lock` guards the fold: hold it while reading `state` in more than one step."""

    def __init__(
        self, engine: Engine, *, origin: str, log_signer: Signer, log_key: str, clock: Callable[[], datetime]
    ) -> None:
        self.lock = threading.RLock()
        self._engine = engine
        self._origin = origin
        self._signer = log_signer
        self._log_key = log_key
        self._clock = clock
        self._fold: Fold | None = None
        self._seen = NOTHING_SEEN
        self._writer: Connection | None = None
        self._suspect = False

    # --- the fold -------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Folds every entry and checks every row on the way; Tampered names the entry that does not hold."""
        with self.lock, database_errors("ledger"):
            fold, self._fold = Fold(), None
            with connect_reader(self._engine) as connection:
                advance(connection, fold, rows.read_head(connection).size, self._seen)
                check_end(connection, fold, self._log_key)
            self._keep(fold, fold.frontier.root())

    def refresh(self) -> None:
        """Folds what other services have appended since."""
        with self.lock, database_errors("ledger"):
            fold = self._current()
            with connect_reader(self._engine) as connection:
                self._catch_up(connection, fold, rows.read_head(connection))

    @property
    def state(self) -> State:
        """The fold over all entries known here; folded again first where a failed append has cost it."""
        with self.lock:
            return self._current().state

    def _current(self) -> Fold:
        if self._fold is None:
            self.load()
        assert self._fold is not None
        return self._fold

    def _keep(self, fold: Fold, root: bytes) -> None:
        self._fold = fold
        self._seen = Seen(fold.state.size, root)

    def _catch_up(self, connection: Connection, fold: Fold, head: rows.Head) -> None:
        if head == fold.head:
            return
        self._fold = None
        advance(connection, fold, head.size, self._seen)
        if head != fold.head:
            at = head.size - 1
            raise Tampered(f"entry {at}: head: expected {fold.head.leaf_hash.hex()}, got {head.leaf_hash.hex()}")
        check_checkpoint(connection, fold, self._log_key)
        self._keep(fold, fold.frontier.root())

    # --- append ---------------------------------------------------------------------------------------------------

    def append(self, draft: Draft, *, guard: Guard | None = None) -> Appended:
        """Makes the entry durable, or raises having written nothing.

        What the guard or the rules raise passes on. Unavailable: the database cannot be written now; with the code
        `commit-unknown`, whether the entry stands shows only when the database answers again.
        """
        check_draft(draft)
        with self.lock, database_errors("ledger"):
            if self._suspect:
                self.probe()
            fold = self._current()
            try:
                connection = self._begin(fold)
                try:
                    staged = self._stage(fold, draft, guard)
                except ApplianceError:
                    connection.rollback()
                    raise
                checkpoint = self._write(connection, fold, staged)
                self._commit(connection, staged)
            except BaseException:
                self._abandon()
                raise
            fold.frontier = staged.frontier
            self._keep(fold, staged.root)
            return Appended(staged.entry, staged.data, checkpoint)

    def probe(self) -> None:
        """Unavailable unless a write can be made durable now; costs a commit, and says nothing in the log."""
        with self.lock, self._writing() as connection:
            rows.probe_head(connection)
        self._suspect = False

    def _begin(self, fold: Fold) -> Connection:
        """The writer in a transaction that holds the head, the fold level with it."""
        if self._writer is not None and not is_current(self._writer):
            self._close_writer()
        try:
            return self._lock_head(fold)
        except DBAPIError as error:
            # A server that was restarted meanwhile: nothing has been done on this connection, so another one will do.
            if not error.connection_invalidated:
                raise
            self._close_writer()
            return self._lock_head(fold)

    def _lock_head(self, fold: Fold) -> Connection:
        if self._writer is None:
            self._writer = connect_writer(self._engine)
        self._writer.begin()
        self._catch_up(self._writer, fold, rows.lock_head(self._writer))
        return self._writer

    def _stage(self, fold: Fold, draft: Draft, guard: Guard | None) -> Staged:
        """The draft as the next entry, accepted by guard and rules. From here on the fold is on loan."""
        state, before = fold.state, fold.head
        if guard is not None:
            guard(state)
        entry = propose(draft, state, encode_time(self._clock()))
        data = encode_entry(entry)
        self._fold = None
        try:
            rules.apply(state, entry, draft.documents)
        except ApplianceError:
            # The rules raise before they change anything; were it otherwise, the fold stays lost.
            if state.size == before.size:
                self._fold = fold
            raise
        frontier, nodes = fold.frontier.append_nodes(entry.leaf)
        return Staged(draft, entry, data, before, frontier, frontier.root(), nodes)

    def _write(self, connection: Connection, fold: Fold, staged: Staged) -> bytes:
        """Every row of the entry; then, over the bytes as they were stored, the signed checkpoint."""
        entry, size = staged.entry, staged.frontier.size
        rows.insert_entry(connection, entry, staged.data, staged.draft.documents)
        rows.insert_disclosures(connection, staged.draft.disclosures)
        rows.insert_nodes(connection, staged.nodes)
        rows.write_projections(connection, entry.index, fold.state.take_changes())
        stored = rows.read_entry_bytes(connection, entry.index)
        if stored is None or hash_leaf(stored) != entry.leaf:
            raise Tampered(f"entry {entry.index}: expected the bytes that were written, got others")
        note = sign_checkpoint(Checkpoint(self._origin, size, staged.root), self._signer)
        rows.insert_checkpoint(connection, size, note)
        rows.move_head(connection, staged.before, rows.Head(size, entry.leaf))
        return note

    def _commit(self, connection: Connection, staged: Staged) -> None:
        try:
            connection.commit()
        except SQLAlchemyError:
            if self._stands(staged):
                return
            raise
        if not is_current(connection):
            raise Unavailable(
                f"ledger, entry {staged.entry.index}: expected the database file to stand, got another one or none",
                code="commit-unknown",
            )

    def _stands(self, staged: Staged) -> bool:
        """Whether an entry whose commit failed stands all the same: the answer may have been lost, not the commit."""
        self._close_writer()
        index = staged.entry.index
        try:
            with connect_writer(self._engine) as connection, connection.begin():
                # Waits until the lost session's transaction has ended, one way or the other.
                rows.lock_head(connection)
                return rows.read_entry_bytes(connection, index) == staged.data
        except SQLAlchemyError as error:
            raise Unavailable(
                f"ledger, entry {index}: expected to learn whether it was committed, got no answer",
                code="commit-unknown",
            ) from error

    def _abandon(self) -> None:
        """Ends what is left of the transaction. A fold that was on loan is lost: the database has to show first that
        it can be written again."""
        self._suspect = self._suspect or self._fold is None
        if self._fold is None or (self._writer is not None and self._writer.in_transaction()):
            self._close_writer()

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(SQLAlchemyError):
                writer.invalidate()
            with suppress(SQLAlchemyError):
                writer.close()

    def close(self) -> None:
        """Lets go of the database; the ledger opens it again when it is next used."""
        with self.lock:
            self._close_writer()
            self._engine.dispose()

    # --- reading --------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with database_errors("ledger"), connect_reader(self._engine) as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction beside the appends: what it does is no entry."""
        with database_errors("ledger"), connect_writer(self._engine) as connection, connection.begin():
            yield connection

    def entry_bytes(self, index: int) -> bytes:
        """NotFound where there is none; Tampered where the bytes are not those of the leaf."""
        with self._reading() as connection:
            data = rows.read_entry_bytes(connection, index)
            leaf = rows.read_nodes(connection, [(0, index)]).get((0, index))
        if data is None:
            raise NotFound(f"entry {index}: expected one of the log's entries, got none")
        if hash_leaf(data) != leaf:
            raise Tampered(f"entry {index}: leaf hash: expected {_hex(leaf)}, got {hash_leaf(data).hex()}")
        return data

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes of the entries [start, stop) in order, a page at a time; without `stop`, to the head of now."""
        with self._reading() as connection:
            size = rows.read_head(connection).size
        last = size if stop is None else min(stop, size)
        for first in range(start, last, _PAGE):
            with self._reading() as connection:
                page = rows.read_bytes(connection, first, min(first + _PAGE, last))
            yield from (data for _, data in page)

    def document(self, digest: str) -> bytes:
        """The bytes of this digest, hashed again on the way out."""
        with self._reading() as connection:
            data = rows.read_document(connection, raw_digest(digest))
        if data is None:
            raise NotFound(f"document {digest}: expected one that an entry binds, got none")
        if digest_bytes(data) != digest:
            raise Tampered(f"document {digest}: expected the bytes of its digest, got {digest_bytes(data)}")
        return data

    def documents_of(self, index: int) -> dict[str, bytes]:
        """Role to bytes, for the roles that the entry itself binds."""
        entry = parse_entry(self.entry_bytes(index))
        return {role: self.document(digest) for role, digest in entry.documents.items()}

    def checkpoint(self) -> bytes:
        """The signed note of the latest commit; NotFound while the log is empty."""
        with self._reading() as connection:
            latest = rows.read_latest_checkpoint(connection)
        if latest is None:
            raise NotFound("log checkpoint: expected one, got an empty log")
        return latest[1]

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """That entry `index` is in the log of `size` entries: hashes from the leaf upwards, read in one question."""
        self._check_size(size)
        return self._prove(lambda node: merkle.inclusion_proof(index, size, node))

    def consistency_proof(self, old: int, new: int) -> list[bytes]:
        """That the log of `new` entries begins with the log of `old`."""
        self._check_size(new)
        return self._prove(lambda node: merkle.consistency_proof(old, new, node))

    def _check_size(self, size: int) -> None:
        with self._reading() as connection:
            known = rows.read_head(connection).size
        if size > known:
            raise BadInput(f"proof, size: expected at most {known}, got {size}")

    def _prove(self, proof: Callable[[merkle.ReadNode], list[bytes]]) -> list[bytes]:
        wanted: list[tuple[int, int]] = []

        def collect(level: int, index: int) -> bytes:
            wanted.append((level, index))
            return bytes(merkle.HASH_BYTES)

        proof(collect)
        with self._reading() as connection:
            stored = rows.read_nodes(connection, wanted)
        for level, index in wanted:
            if (level, index) not in stored:
                raise Tampered(f"tree node {level}, {index}: expected a hash, got none")
        return proof(lambda level, index: stored[level, index])

    def find(self, **filters: Unpack[Filters]) -> list[tuple[int, bytes]]:
        """(index, bytes) of the entries for which every filter holds, by index; see `search.Filters`."""
        with self._reading() as connection:
            return find_entries(connection, filters)

    def disclosures(self, commitments: Iterable[str]) -> dict[str, Disclosure]:
        """What is still disclosed of these; one that was erased is left out, one that does not open is Tampered."""
        with self._reading() as connection:
            found = rows.read_disclosures(connection, commitments)
        for disclosure in found:
            verify_disclosure(disclosure)
        return {disclosure.commitment: disclosure for disclosure in found}

    def all_disclosures(self) -> Iterator[Disclosure]:
        """Everything that is still disclosed, by commitment, unchecked: whether each opens is for the verifier."""
        after = ""
        while True:
            with self._reading() as connection:
                page = rows.read_disclosures_after(connection, after, _PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].commitment

    # --- caches ---------------------------------------------------------------------------------------------------

    def check_projections(self) -> list[str]:
        """Where the projections differ from a fresh fold over the entries: what, expected, got."""
        with self.lock, self._reading() as connection:
            return audit.check_projections(connection, self._seen)

    def check_checkpoints(self) -> list[str]:
        """Which of the stored checkpoints are not over the log's tree, or do not hold under the log's key."""
        with self._reading() as connection:
            return audit.check_checkpoints(connection, self._log_key)

    def check_guards(self) -> list[str]:
        """Where the database itself would not refuse to change the ledger: triggers, rights, settings."""
        with self._reading() as connection:
            return audit.check_guards(connection)

    def rebuild_projections(self) -> None:
        """Drops the projections and writes them again from the entries."""
        with self.lock, self._writing() as connection:
            audit.rebuild_projections(connection, self._seen)


def _hex(value: bytes | None) -> str:
    return "none" if value is None else value.hex()
