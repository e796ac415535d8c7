"""The ledger: the one way to add an entry, and every way to read them.

An append is part of one transaction under one lock: the head is locked, entries of other services are folded in, guard
and rules decide on each draft that waits, rows are written, the bytes are read back, and the checkpoint is signed.
Nothing is returned before the commit. After any error, the fold is restored to its state before the transaction, and
the head is read from the database again before the fold is used.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import TypeVar, Unpack

from sqlalchemy import Connection, Engine

from appliance.domain.core.entry import Draft, Entry, parse_entry
from appliance.domain.core.state import State
from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, Unavailable
from appliance.formats.core import merkle
from appliance.formats.core.commitment import Disclosure, verify_disclosure
from appliance.formats.core.merkle import hash_leaf
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.store.database.catalogue import check_catalogue
from appliance.store.database.engine import (
    connect_reader,
    connect_writer,
    database_errors,
    locate_database,
    stored_bytes,
)
from appliance.store.database.processes import Fence
from appliance.store.database.reader import Reader
from appliance.store.ledger import checks as audit
from appliance.store.ledger import rows
from appliance.store.ledger.clock import LogClock
from appliance.store.ledger.counts import Totals
from appliance.store.ledger.filing import Unfiled
from appliance.store.ledger.fold import NOTHING_SEEN, Fold, Seen, Tell, advance, check_checkpoint, load_fold
from appliance.store.ledger.nodes import Nodes, Place
from appliance.store.ledger.queue import Appended, Guard, Queue, Waiting
from appliance.store.ledger.reading import find_document, read_log, reading
from appliance.store.ledger.search import Filters, find_entries
from appliance.store.ledger.snapshots import FindSigner, Snapshots, copy_fold
from appliance.store.ledger.staging import Batch, check_drafts, resets_clock, stage
from appliance.store.ledger.writer import Writer

log = logging.getLogger("appliance")

Answer = TypeVar("Answer")

__all__ = ["Appended", "Guard", "Ledger"]


class Ledger:
    """Append, read and prove. `lock` guards the fold: hold it while reading `state` in more than one step."""

    def __init__(
        self,
        engine: Engine,
        *,
        origin: str,
        log_key: str,
        signers: FindSigner,
        clock: Callable[[], datetime],
        snapshots: Snapshots | None = None,
        longest_pause_days: int | None = None,
    ) -> None:
        """`log_key` is the vkey that the log began with, which the trust file names; `longest_pause_days` is how far
        ahead of the last entry the clock may be."""
        self.lock = threading.RLock()
        self._engine = engine
        self._origin = origin
        self._signers = signers
        self._log_key = log_key
        self.clock = LogClock(clock, longest_pause_days)
        self._snapshots = snapshots
        self._fold: Fold | None = None
        self._seen = NOTHING_SEEN
        self._nodes = Nodes()
        self.unfiled, self.totals = Unfiled(), Totals()
        self._writer = Writer(engine)
        self._reader = Reader(engine)
        self._queue = Queue(self.lock, self._commit_all)
        self._unproved = False
        """Entries were folded that no checkpoint was seen over yet."""
        self.fence: Fence | None = None
        """Under which each append is committed, where several processes may append."""
        self.tells_others = False
        """Whether each commit is told to other processes, which follow."""
        self._followed: deque[Entry] = deque()
        self.loads = 0
        """How often every entry was folded: then also those of others, of which `take_followed` does not tell."""
        self.others = 0
        """How many entries of other processes were folded since the load."""
        self._suspect = False
        """An append failed: before the next one, a probe write must show that the database can be written."""
        self._unsure = False
        """The outcome of a commit is unknown: before the fold is read, it is compared with the head."""

    @property
    def dialect(self) -> str:
        """Of its database: `sqlite` or `postgresql`."""
        return self._engine.dialect.name

    def stored_bytes(self) -> int:
        return stored_bytes(self._engine)

    # --- the fold -------------------------------------------------------------------------------------------------

    def load(self, tell: Tell = lambda _read, _of: None) -> None:
        """Folds every entry and checks every row on the way; Tampered names the entry that does not hold.

        Entries that a snapshot is of are hashed, and not folded again.
        """
        with self.lock, database_errors("ledger"):
            self._writer.scrub()  # Owed by a process that was killed.
            self._fold, self._unproved = None, False
            kept = None if self._snapshots is None else self._snapshots.read()
            if kept is not None and kept.seen.size > self._seen.size:
                self._seen = kept.seen
            with connect_reader(self._engine) as connection:
                fold = load_fold(connection, kept and kept.fold, self._seen, self._log_key, tell)
            self._keep(fold, fold.frontier.root())
            self.loads += 1

    def seal_snapshot(self, grown: int) -> None:
        """Keeps the fold for the next load, once the log has grown by so many entries since the last was kept."""
        if self._snapshots is not None and self._seen.size >= self._snapshots.size + grown:
            with self.lock:
                copied = copy_fold(self._current())
            self._snapshots.write(*copied)

    def refresh(self) -> bool:
        """Folds what other processes have appended since; whether there was anything."""
        with self.lock, database_errors("ledger"):
            fold, before = self._current(), self.others
            with connect_reader(self._engine) as connection:
                self._catch_up(connection, fold, rows.read_head(connection))
            return self.others != before

    def take_followed(self) -> list[Entry]:
        """The entries of other processes that were folded since the last call, in their order."""
        found = []
        while self._followed:
            found.append(self._followed.popleft())
        return found

    @property
    def state(self) -> State:
        """The fold over all entries known here. If the outcome of a commit is unknown, it is compared with the database
        first."""
        with self.lock:
            return self._current().state

    def _current(self) -> Fold:
        if self._fold is None:
            self.load()
        elif self._unsure or self._unproved:
            with database_errors("ledger"), connect_reader(self._engine) as connection:
                self._catch_up(connection, self._fold, rows.read_head(connection))
        self._unsure = False
        assert self._fold is not None
        return self._fold

    def _keep(self, fold: Fold, root: bytes) -> None:
        self._fold = fold
        self._seen = Seen(fold.state.size, root)

    def _catch_up(self, connection: Connection, fold: Fold, head: rows.Head) -> None:
        if head == fold.head and not self._unproved:
            return
        self._fold = None
        advance(connection, fold, head.size, self._seen, hear=self._follow)
        if head != fold.head:
            at = head.size - 1
            raise Tampered(f"entry {at}: head: expected {fold.head.leaf_hash.hex()}, got {head.leaf_hash.hex()}")
        check_checkpoint(connection, fold, self._log_key)
        self._unproved = False
        self._keep(fold, fold.frontier.root())

    def _follow(self, entry: Entry) -> None:
        self.others += 1
        if self.fence is not None:
            self._followed.append(entry)

    # --- append ---------------------------------------------------------------------------------------------------

    def append(self, draft: Draft, *, guard: Guard | None = None) -> Appended:
        """Makes the entry durable, or raises having written nothing.

        Appends that wait at the same time share one commit and one checkpoint. Errors of the guard and the rules are
        raised unchanged. Unavailable: the database cannot be written now; with the code `commit-unknown`, it is known
        only when the database answers again whether the entry was committed.
        """
        (appended,) = self.append_all((draft,), guard=guard)
        return appended

    def append_all(self, drafts: Sequence[Draft], *, guard: Guard | None = None) -> list[Appended]:
        """Like `append` for each of these in turn, but one thing: one commit makes all of them durable, with a
        checkpoint over all of them, or none is written. What refuses one refuses all, and its error names the draft.

        The guard is asked once, before the first.
        """
        check_drafts(drafts)
        return self._queue.append(Waiting(tuple(drafts), guard)) if drafts else []

    def _commit_all(self, waiting: list[Waiting]) -> None:
        """Settles every append that waits, in the order of the queue; called with the lock held."""
        try:
            with database_errors("ledger"):
                self._commit_batch(waiting)
        except BaseException as error:
            log.critical("ALARM: the ledger cannot be written, nothing acts until it can: %s", error)
            self._suspect = True
            for one in waiting:
                if not one.settled:
                    one.fail(error)
            if not isinstance(error, ApplianceError):
                raise

    def _commit_batch(self, waiting: list[Waiting]) -> None:
        now, waiting = self._read_clock(waiting)
        if self._suspect:
            self._probe()
            log.warning("the ledger can be written again")
        fold = self._current()
        connection = self._writer.begin(lambda writer: self._lock_head(writer, fold))
        batch = Batch(fold.head, fold.state.mark())
        try:
            self._stage_all(batch, waiting, fold.state, now)
            if not batch.staged:
                self._writer.roll_back()
                return
            entries = [one.entry for one in batch.staged]
            frontier, completed = fold.frontier.extend([entry.leaf for entry in entries])
            root = frontier.root()
            rows.insert_keys(connection, self.unfiled.take_due(connection, batch.before.size, entries))
            note = self._write(connection, batch, completed, root, fold.state)
            self._writer.commit(connection, batch)
        except BaseException:
            # The fold is not trusted until the database has shown that it can be written, and what was committed.
            fold.state.take_back(batch.mark)
            self._unsure = True
            self._writer.close()
            raise
        fold.state.keep()
        self._nodes.add(fold.frontier, completed)
        self.unfiled.add(entries)
        fold.frontier = frontier
        self._keep(fold, root)
        batch.succeed(note)
        self._writer.scrub_after()

    def _lock_head(self, writer: Connection, fold: Fold) -> None:
        if self.tells_others:
            self._fold_ahead(writer, fold)
        self._catch_up(writer, fold, rows.lock_head(writer))

    def _fold_ahead(self, writer: Connection, fold: Fold) -> None:
        """What others have appended so far, before the head is locked: they go on appending meanwhile. Whether their
        checkpoint is over it is found under the lock."""
        head = rows.read_head(writer)
        if head != fold.head:
            self._fold = None
            advance(writer, fold, head.size, self._seen, hear=self._follow)
            self._fold, self._unproved = fold, True

    def _read_clock(self, waiting: list[Waiting]) -> tuple[str, list[Waiting]]:
        """The time, and what can be appended at it: under a clock that is behind only what sets the log's time back."""
        state = self._current().state
        try:
            return self.clock.read(state), waiting
        except Unavailable as error:
            behind = [one for one in waiting if resets_clock(one.drafts)]
            now = self.clock.read_behind(state) if behind else None
            if now is None:
                raise
            for one in waiting:
                if one not in behind:
                    one.fail(error)
            return now, behind

    def _stage_all(self, batch: Batch, waiting: list[Waiting], state: State, now: str) -> None:
        """A refused append is settled at once, and the others continue without it."""
        for one in waiting:
            try:
                stage(batch, one, state, now)
            except ApplianceError as error:
                one.fail(error)

    def _write(
        self, connection: Connection, batch: Batch, completed: list[list[bytes]], root: bytes, state: State
    ) -> bytes:
        """Every row of the batch; then, over the bytes as they were stored, the signed checkpoint."""
        staged, head = batch.staged, batch.head
        rows.insert_entries(
            connection,
            [(one.entry, nodes, one.data, one.draft.documents) for one, nodes in zip(staged, completed, strict=True)],
        )
        for one in staged:
            # Most have nothing of these.
            if one.draft.disclosures or one.draft.erased or one.changes:
                rows.insert_disclosures(connection, one.draft.disclosures)
                rows.delete_disclosures(connection, one.draft.erased)
                rows.write_projections(connection, one.entry.index, one.changes)
        stored = dict(rows.read_bytes(connection, batch.before.size, head.size))
        for one in staged:
            if hash_leaf(stored.get(one.entry.index, b"")) != one.entry.leaf:
                raise Tampered(f"entry {one.entry.index}: expected the bytes that were written, got different ones")
        signers = [self._signers(vkey) for vkey in state.site.signing_keys(state.last_time)]
        note = sign_checkpoint(Checkpoint(self._origin, head.size, root), *signers)
        rows.move_head(connection, batch.before, head, note, self.fence)
        if self.tells_others:
            rows.tell_others(connection)
        return note

    def probe(self) -> None:
        """Unavailable unless a write can be made durable now; costs a commit, and adds no entry."""
        with self.lock:
            self.clock.read(self._current().state)
            self._probe()

    def _probe(self) -> None:
        with self._writing() as connection:
            rows.probe_head(connection)
        self._suspect = False

    def write_back(self) -> None:
        """Copies what SQLite has written ahead into the database itself, as `Writer.write_back` says."""
        self._writer.write_back()

    def close(self) -> None:
        """Lets go of the database; the ledger opens it again when it is next used."""
        with self.lock:
            self._writer.close()
            self._reader.close()
            self._engine.dispose()

    # --- reading --------------------------------------------------------------------------------------------------

    def _reading(self) -> AbstractContextManager[Connection]:
        return reading(self._engine)

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
            expected = "none" if leaf is None else leaf.hex()
            raise Tampered(f"entry {index}: leaf hash: expected {expected}, got {hash_leaf(data).hex()}")
        return data

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes of the entries [start, stop) in order, a page at a time; without `stop`, to the head of now."""
        return read_log(self._engine, start, stop)

    def document(self, digest: str) -> bytes:
        """The bytes of this digest, hashed again on the way out."""
        return find_document(self._engine, digest)

    def documents_of(self, index: int) -> dict[str, bytes]:
        """Role to bytes, for the roles that the entry itself binds."""
        entry = parse_entry(self.entry_bytes(index))
        return {role: self.document(digest) for role, digest in entry.documents.items()}

    def checkpoint(self) -> bytes:
        """The signed note of the latest commit; NotFound while the log is empty."""
        with self._reading() as connection:
            return _signed(rows.read_checkpoint(connection))

    @property
    def database_url(self) -> str:
        """By which another process opens the same database; it holds the password."""
        return locate_database(self._engine)

    @property
    def seen(self) -> Seen:
        """The head that is known here."""
        with self.lock:
            self._current()
            return self._seen

    @property
    def root(self) -> bytes:
        """Of the tree over all entries known here."""
        with self.lock:
            return self._current().frontier.root()

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """That entry `index` is in the log of `size` entries: hashes from the leaf upwards, read in one question."""
        return self._prove(size, lambda node: merkle.inclusion_proof(index, size, node))

    def consistency_proof(self, old: int, new: int) -> list[bytes]:
        """That the log of `new` entries begins with the log of `old`."""
        return self._prove(new, lambda node: merkle.consistency_proof(old, new, node))

    def root_at(self, size: int) -> bytes:
        """The root of the log of its first `size` entries."""
        (root,) = self._prove(size, lambda node: [merkle.root_at(size, node)])
        return root

    def _prove(self, size: int, proof: Callable[[merkle.ReadNode], list[bytes]]) -> list[bytes]:
        # A log never becomes shorter than this process has seen it.
        if size > self._seen.size:
            with self._reading() as connection:
                known = rows.read_head(connection).size
            if size > known:
                raise BadInput(f"proof, size: expected at most {known}, got {size}")
        return self._nodes.prove(proof, self._read_nodes)

    def _read_nodes(self, places: list[Place]) -> dict[Place, bytes]:
        with database_errors("ledger"), self._reader.ask() as connection:
            return rows.read_nodes(connection, places)

    def find(self, **filters: Unpack[Filters]) -> list[tuple[int, bytes]]:
        """(index, bytes) of the entries for which every filter holds, by index; see `search.Filters`."""
        with self._reading() as connection:
            return find_entries(connection, self.unfiled, filters)

    def ask(self, question: Callable[[Connection], Answer]) -> Answer:
        """What a question of `store.past` or `store.search` finds, all of it in one moment of the database."""
        with self._reading() as connection:
            return question(connection)

    def disclosures(self, commitments: Iterable[str]) -> dict[str, Disclosure]:
        """What is still disclosed of these; one that was erased is left out, one that does not open is Tampered."""
        with self._reading() as connection:
            found = rows.read_disclosures(connection, commitments)
        for disclosure in found:
            verify_disclosure(disclosure)
        return {disclosure.commitment: disclosure for disclosure in found}

    def signed_texts(self) -> tuple[bytes, list[Disclosure]]:
        """The checkpoint, and everything that is disclosed in the same moment, by commitment; whether each text opens
        its commitment is for the verifier."""
        with self._reading() as connection:
            return _signed(rows.read_checkpoint(connection)), rows.read_all_disclosures(connection)

    # --- caches ---------------------------------------------------------------------------------------------------

    def check_projections(self) -> list[str]:
        """Where the projections differ from a fresh fold over the entries: what, expected, got."""
        # Without the lock: a connection reads one moment of the database, and meanwhile others append.
        seen = self._seen
        with self._reading() as connection:
            return audit.check_projections(connection, seen)

    def check_guards(self) -> list[str]:
        """Where the database itself would not refuse to change the ledger: triggers, rights, settings."""
        with self._reading() as connection:
            return audit.check_guards(connection)

    def check_schema(self) -> list[str]:
        """What the database holds beside the ledger's own tables, triggers and rights, or lacks of them."""
        with self._reading() as connection:
            return check_catalogue(connection)

    def rebuild_projections(self) -> None:
        """Drops the projections and writes them again from the entries."""
        with self.lock, self._writing() as connection:
            audit.rebuild_projections(connection, self._seen)


def _signed(note: bytes | None) -> bytes:
    if note is None:
        raise NotFound("log checkpoint: expected one, got an empty log")
    return note
