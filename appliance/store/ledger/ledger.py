"""The ledger: appending entries, and all ways to read them.

An append is part of one transaction under one lock. The head is locked, entries of other processes are replayed, guard
and rules decide on each waiting draft, rows are written, the bytes are read back, and the checkpoint is signed. Callers
get their result after the commit. After any error, the state is restored to its value before the transaction, and the
head is read from the database again before the state is used.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple, TypeVar, Unpack

from sqlalchemy import Connection, Engine

from appliance.domain.core.entry import Entry, EntryDraft, parse_entry
from appliance.domain.core.state import State
from appliance.domain.retention import LogArchived, list_bits
from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, Unavailable
from appliance.formats.core import merkle
from appliance.formats.core.commitment import Disclosure, verify_disclosure
from appliance.formats.core.merkle import Frontier, hash_leaf
from appliance.store.database.engine import (
    DatabaseReader,
    connect_reader,
    connect_writer,
    database_errors,
    locate_database,
    stored_bytes,
)
from appliance.store.database.processes import Fence
from appliance.store.ledger import checks as audit
from appliance.store.ledger import rows
from appliance.store.ledger.checks import find_document, read_log, reading
from appliance.store.ledger.keys import LogKeys, SignerAhead
from appliance.store.ledger.log_state import (
    NO_KNOWN_HEAD,
    KnownHead,
    LogState,
    OnProgress,
    advance,
    check_checkpoint,
    load_log_state,
)
from appliance.store.ledger.pending import PendingBatches, encode_batch, stage_again
from appliance.store.ledger.queue import AppendedEntry, AppendQueue, Guard, LogClock, WaitingDrafts
from appliance.store.ledger.rows import Nodes, Place
from appliance.store.ledger.search import Filters, Totals, find_entries
from appliance.store.ledger.search_index import PartialBlock
from appliance.store.ledger.snapshots import Snapshots, copy_log_state
from appliance.store.ledger.writer import Batch, Writer, check_drafts, resets_clock, stage

log = logging.getLogger("appliance")

Answer = TypeVar("Answer")

__all__ = ["AppendedEntry", "Guard", "Ledger"]


class _Written(NamedTuple):
    """A committed batch: the tree's right edge after it, the nodes that each entry completes, and the checkpoint."""

    frontier: Frontier
    completed: list[list[bytes]]
    note: bytes


class Ledger:
    """The ledger of one log. `lock` guards the state: hold it while reading `state` in more than one step."""

    def __init__(
        self,
        engine: Engine,
        *,
        origin: str,
        log_key: str,
        keys: LogKeys,
        clock: Callable[[], datetime],
        snapshots: Snapshots | None = None,
        longest_pause_days: int | None = None,
        pending: PendingBatches | None = None,
    ) -> None:
        """Open the ledger without reading it.

        `log_key` is the vkey with which the log began, as in the trust file. `longest_pause_days` is how far the clock
        may be ahead of the last entry. `pending` stores batches until their commit if a signer has the keys.
        """
        self.lock = threading.RLock()
        self._engine = engine
        self._origin = origin
        self._keys = keys
        self.pending = pending
        self._log_key = log_key
        self.clock = LogClock(clock, longest_pause_days)
        self._snapshots = snapshots
        self._log_state: LogState | None = None
        self._seen = NO_KNOWN_HEAD
        self._nodes = Nodes()
        self.partial_block, self.totals = PartialBlock(), Totals()
        self._writer = Writer(engine)
        self._reader = DatabaseReader(engine)
        self._queue = AppendQueue(self.lock, self._commit_all)
        self._unproved = False
        """True if entries were replayed that no verified checkpoint covers yet."""
        self.fence: Fence | None = None
        """Fence under which each append is committed if several processes may append."""
        self.notifies_others = False
        """True if other processes are notified of each commit."""
        self._followed: deque[Entry] = deque()
        self.loads = 0
        """Number of full loads; they include entries of other processes, which `take_followed` does not return."""
        self.replayed_from_others = 0
        """Number of entries of other processes that were replayed since the load."""
        self.committed: bytes | None = None
        """The signed checkpoint of this process's last commit."""
        self.release_reserve: Callable[[ApplianceError], bool] = lambda _: False
        """Function that releases the disk reserve after an error of a full disk; True if the append is repeated."""
        self._suspect = False
        """True after a failed append: before the next one, a probe write must show that the database can be written."""
        self._unsure = False
        """True if the outcome of a commit is unknown: the state is compared with the head before it is read."""

    @property
    def dialect(self) -> str:
        """Return the name of the database's dialect: `sqlite` or `postgresql`."""
        return self._engine.dialect.name

    def stored_bytes(self) -> int:
        """Return the database's size on disk in bytes."""
        return stored_bytes(self._engine)

    @property
    def snapshot_age_s(self) -> float | None:
        """Return the seconds since the state was last sealed in a snapshot, or None without one."""
        return None if self._snapshots is None else self._snapshots.age_s

    # --- the state ----------------------------------------------------------------------------------------------------

    def load(self, on_progress: OnProgress = lambda _read, _of: None, *, with_snapshot: bool = True) -> None:
        """Replay all entries and check every row.

        Entries that a snapshot covers are hashed instead of replayed. Without it, the log may be shorter than it.

        Raises:
            Tampered: an entry or row is invalid; the message names the entry. NotContinued if the snapshot shows it.
        """
        with self.lock, database_errors("ledger"):
            self._writer.scrub()  # A killed process may have left this undone.
            self._log_state, self._unproved = None, False
            kept = self._snapshots.read() if self._snapshots is not None and with_snapshot else None
            seen = kept.seen if kept is not None and kept.seen.size > self._seen.size else self._seen
            with connect_reader(self._engine) as connection:
                log_state = load_log_state(connection, kept and kept.log_state, seen, self._log_key, on_progress)
            self._keep(log_state, log_state.frontier.root())
            if self.pending is not None:
                self._unsure = True
                self._complete_pending(self.pending, log_state)
                self._unsure = False
            self.loads += 1

    def seal_snapshot(self, grown: int) -> None:
        """Store the state for the next load if the log has `grown` entries more than the last snapshot, or fewer."""
        if self._snapshots is not None and not 0 <= self._seen.size - self._snapshots.size < grown:
            with self.lock, database_errors("ledger"), connect_reader(self._engine) as connection:
                self._catch_up(connection, log_state := self._current(), rows.read_head(connection))
                copied = copy_log_state(log_state, _signed(rows.read_checkpoint(connection)))
            self._snapshots.write(*copied)

    def refresh(self) -> bool:
        """Replay what other processes have appended; return True if there was anything."""
        with self.lock, database_errors("ledger"):
            log_state, before = self._current(), self.replayed_from_others
            with connect_reader(self._engine) as connection:
                self._catch_up(connection, log_state, rows.read_head(connection))
            return self.replayed_from_others != before

    def take_followed(self) -> list[Entry]:
        """Return the entries of other processes that were replayed since the last call, in order."""
        found = []
        while self._followed:
            found.append(self._followed.popleft())
        return found

    @property
    def state(self) -> State:
        """Return the state after all known entries. The database is read first if a commit's outcome is unknown."""
        with self.lock:
            return self._current().state

    def _current(self) -> LogState:
        if self._log_state is None:
            self.load()
        elif self._unsure and self.pending is not None:
            with database_errors("ledger"):
                self._complete_pending(self.pending, self._log_state)
        elif self._unsure or self._unproved:
            with database_errors("ledger"), connect_reader(self._engine) as connection:
                self._catch_up(connection, self._log_state, rows.read_head(connection))
        self._unsure = False
        assert self._log_state is not None
        return self._log_state

    def _keep(self, log_state: LogState, root: bytes) -> None:
        self._log_state = log_state
        self._seen = KnownHead(log_state.state.size, root)

    def _catch_up(self, connection: Connection, log_state: LogState, head: rows.LogHead) -> None:
        if head == log_state.head and not self._unproved:
            return
        self._log_state = None
        advance(connection, log_state, head.size, self._seen, on_entry=self._follow)
        if head != log_state.head:
            at = head.size - 1
            raise Tampered(f"entry {at}: head: expected {log_state.head.leaf_hash.hex()}, got {head.leaf_hash.hex()}")
        check_checkpoint(connection, log_state, self._log_key)
        self._unproved = False
        self._keep(log_state, log_state.frontier.root())

    def _follow(self, entry: Entry) -> None:
        self.replayed_from_others += 1
        if self.fence is not None:
            self._followed.append(entry)

    # --- append ---------------------------------------------------------------------------------------------------

    def append(self, draft: EntryDraft, *, guard: Guard | None = None) -> AppendedEntry:
        """Make one entry durable, or raise without writing.

        Concurrent appends share one commit and one checkpoint. Errors of the guard and the rules are raised unchanged.

        Raises:
            Unavailable: the database cannot be written now. With the code `commit-unknown`, it is unknown whether the
                entry was committed until the database responds again.
        """
        (appended,) = self.append_all((draft,), guard=guard)
        return appended

    def append_all(self, drafts: Sequence[EntryDraft], *, guard: Guard | None = None) -> list[AppendedEntry]:
        """Append several entries atomically: one commit makes all of them durable, with one checkpoint over all of
        them.

        If one is refused, all are, and the error names the draft. The guard is called once, before the first.
        """
        check_drafts(drafts)
        return self._queue.append(WaitingDrafts(tuple(drafts), guard)) if drafts else []

    def _commit_all(self, waiting: list[WaitingDrafts]) -> None:
        """Settle all waiting appends in the order of the queue; the caller holds the lock."""
        try:
            try:
                with database_errors("ledger"):
                    self._commit_batch(waiting)
            except (SignerAhead, Unavailable) as error:
                if isinstance(error, Unavailable) and not (self.release_reserve(error) and self.pending is None):
                    raise
                # There is room again, or another process's batch was signed and is committed first.
                with database_errors("ledger"):
                    self._commit_batch([one for one in waiting if not one.settled])
        except BaseException as error:
            log.critical("ALARM: the ledger cannot be written, nothing acts until it can: %s", error)
            self._suspect = True
            for one in waiting:
                if not one.settled:
                    one.fail(error)
            if not isinstance(error, ApplianceError):
                raise

    def _commit_batch(self, waiting: list[WaitingDrafts]) -> None:
        now, waiting = self._read_clock(waiting)
        if self._suspect:
            self._probe()
            log.warning("the ledger can be written again")
        log_state = self._current()
        connection = self._writer.begin(lambda writer: self._lock_head(writer, log_state))
        batch = Batch(log_state.head, log_state.state.mark())
        try:
            self._stage_all(batch, waiting, log_state.state, now)
            if not batch.staged:
                self._writer.roll_back()
                return
            written = self._write_batch(connection, log_state, batch)
        except BaseException:
            self._distrust(log_state, batch)
            raise
        self._keep_batch(log_state, batch, written)
        batch.succeed(written.note)
        self._writer.scrub_after()

    def _write_batch(
        self, connection: Connection, log_state: LogState, batch: Batch, note: bytes | None = None
    ) -> _Written:
        """Write, sign and commit the staged entries. `note` is their checkpoint if it is signed already."""
        entries, before = [one.entry for one in batch.staged], log_state.frontier
        frontier, completed = before.extend([entry.leaf for entry in entries])
        rows.insert_keys(connection, self.partial_block.list_completed_rows(connection, batch.before.size, entries))
        self._write(connection, batch, completed)
        if note is None:
            note = self._sign(connection, batch, before, frontier.root(), log_state.state)
        rows.move_head(connection, batch.before, batch.head, note, self.fence)
        if self.notifies_others:
            rows.notify_others(connection)
        self._writer.commit(connection, batch)
        return _Written(frontier, completed, note)

    def _keep_batch(self, log_state: LogState, batch: Batch, written: _Written) -> None:
        """Keep the state after entries that are durable."""
        log_state.state.keep()
        self._nodes.add(log_state.frontier, written.completed)
        self.partial_block.add([one.entry for one in batch.staged])
        log_state.frontier = written.frontier
        self._keep(log_state, written.frontier.root())
        self.committed = written.note
        if self.pending is not None:
            self.pending.remove(written.frontier.size)

    def _distrust(self, log_state: LogState, batch: Batch) -> None:
        """Take the batch back, and use the state only once the database has shown what was committed."""
        log_state.state.take_back(batch.mark)
        self._unsure = True
        self._writer.close()

    def _complete_pending(self, pending: PendingBatches, log_state: LogState) -> None:
        """Commit the batch that the signer has signed last, if that commit is missing.

        Raises:
            Tampered: the signer has signed another log, or a batch that is missing here.
        """
        connection = self._writer.begin(lambda writer: self._catch_up(writer, log_state, rows.lock_head(writer)))
        batch = Batch(log_state.head, log_state.state.mark())
        try:
            found = pending.find_signed(self._origin, log_state.frontier)
            if found is None:
                self._writer.roll_back()
                return
            stage_again(batch, found, log_state.state, log_state.frontier)
            written = self._write_batch(connection, log_state, batch, found.note)
        except BaseException:
            self._distrust(log_state, batch)
            raise
        self._keep_batch(log_state, batch, written)
        for one in batch.staged:
            self._follow(one.entry)
        self._writer.scrub_after()

    def _lock_head(self, writer: Connection, log_state: LogState) -> None:
        if self.notifies_others:
            self._replay_ahead(writer, log_state)
        self._catch_up(writer, log_state, rows.lock_head(writer))

    def _replay_ahead(self, writer: Connection, log_state: LogState) -> None:
        """Replay what others have appended before locking the head, so that they can continue to append meanwhile.

        Their checkpoint is verified under the lock.
        """
        head = rows.read_head(writer)
        if head != log_state.head:
            self._log_state = None
            advance(writer, log_state, head.size, self._seen, on_entry=self._follow)
            self._log_state, self._unproved = log_state, True

    def _read_clock(self, waiting: list[WaitingDrafts]) -> tuple[str, list[WaitingDrafts]]:
        """Return the time and the appends that are possible now.

        If the clock is behind, only an append that sets the log's time back is possible.
        """
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

    def _stage_all(self, batch: Batch, waiting: list[WaitingDrafts], state: State, now: str) -> None:
        """Stage each append; a refused one is settled at once, and the others continue."""
        for one in waiting:
            try:
                stage(batch, one, state, now)
            except ApplianceError as error:
                one.fail(error)

    def _write(self, connection: Connection, batch: Batch, completed: list[list[bytes]]) -> None:
        """Write all rows of the batch and read the bytes back."""
        staged, head = batch.staged, batch.head
        rows.insert_entries(
            connection,
            [(one.entry, nodes, one.data, one.draft.documents) for one, nodes in zip(staged, completed, strict=True)],
        )
        for one in staged:
            # Most entries have none of these.
            if one.draft.disclosures or one.draft.erased or one.changes:
                rows.insert_disclosures(connection, one.draft.disclosures)
                rows.delete_disclosures(connection, one.draft.erased)
                rows.write_projections(connection, one.entry.index, one.changes)
            if one.entry.type == LogArchived.type:
                rows.archive_entries(connection, one.entry.index, list_bits(one.draft.documents["removed"]))
        stored = dict(rows.read_bytes(connection, batch.before.size, head.size))
        for one in staged:
            if hash_leaf(stored.get(one.entry.index, b"")) != one.entry.leaf:
                raise Tampered(f"entry {one.entry.index}: expected the bytes that were written, got different ones")

    def _sign(self, connection: Connection, batch: Batch, before: Frontier, root: bytes, state: State) -> bytes:
        """Return the signed checkpoint over the log with the batch. A signer is asked once the batch is stored."""
        if self.pending is not None:
            if self.fence is not None:
                rows.check_fence(connection, self.fence)
            self.pending.store(batch.head.size, root, encode_batch(batch.staged))
        leaves = [one.entry.leaf for one in batch.staged]
        vkeys = state.site.signing_keys(state.last_time)
        return self._keys.sign_checkpoint(self._origin, before, leaves, root, vkeys)

    def probe(self) -> None:
        """Check that a write can be made durable now; this costs a commit and adds no entry.

        Raises:
            Unavailable: it cannot.
        """
        with self.lock:
            self.clock.read(self._current().state)
            self._probe()

    def _probe(self) -> None:
        with self._writing() as connection:
            rows.probe_head(connection)
        self._suspect = False

    def write_back(self) -> None:
        """Copy SQLite's write-ahead log into the database file (see `Writer.write_back`)."""
        self._writer.write_back()

    def close(self) -> None:
        """Close all database connections; they are opened again on the next use."""
        with self.lock:
            self._writer.close()
            self._reader.close()
            if self.pending is not None:
                self.pending.close()
            self._engine.dispose()

    # --- reading --------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that adds no entry."""
        with database_errors("ledger"), connect_writer(self._engine) as connection, connection.begin():
            yield connection

    def entry_bytes(self, index: int) -> bytes:
        """Return the bytes of an entry.

        Raises:
            NotFound: there is no such entry, or an archive removed its bytes (code `archived`).
            Tampered: the bytes do not hash to the leaf.
        """
        with reading(self._engine) as connection:
            return audit.read_entry(connection, index, lambda: self.state.archives)

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of the entries [start, stop) in order, read in pages; without `stop`, up to the current head.

        An entry that an archive removed has its line of an export.
        """
        return read_log(self._engine, start, stop)

    def document(self, digest: str) -> bytes:
        """Return the document with this digest after hashing it again."""
        return find_document(self._engine, digest)

    def documents_of(self, index: int) -> dict[str, bytes]:
        """Return the bytes of the documents that an entry binds, by role."""
        entry = parse_entry(self.entry_bytes(index))
        return {role: self.document(digest) for role, digest in entry.documents.items()}

    def checkpoint(self) -> bytes:
        """Return the signed note of the latest commit.

        Raises:
            NotFound: the log is empty.
        """
        with reading(self._engine) as connection:
            return _signed(rows.read_checkpoint(connection))

    @property
    def database_url(self) -> str:
        """Return the URL by which another process can open the same database; it contains the password."""
        return locate_database(self._engine)

    @property
    def seen(self) -> KnownHead:
        """Return the head that this process knows."""
        with self.lock:
            self._current()
            return self._seen

    @property
    def edge(self) -> Frontier:
        """Return the right edge of the Merkle tree over all known entries."""
        with self.lock:
            return self._current().frontier

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Prove that entry `index` is in the log of `size` entries: hashes from the leaf upwards, read in one query."""
        return self._prove(size, lambda node: merkle.inclusion_proof(index, size, node))

    def consistency_proof(self, old: int, new: int) -> list[bytes]:
        """Prove that the log of `new` entries begins with the log of `old` entries."""
        return self._prove(new, lambda node: merkle.consistency_proof(old, new, node))

    def root_at(self, size: int) -> bytes:
        """Return the root over the first `size` entries."""
        (root,) = self._prove(size, lambda node: [merkle.root_at(size, node)])
        return root

    def _prove(self, size: int, proof: Callable[[merkle.ReadNode], list[bytes]]) -> list[bytes]:
        # The log cannot be shorter than this process has seen it, so larger sizes only need a query.
        if size > self._seen.size:
            with reading(self._engine) as connection:
                known = rows.read_head(connection).size
            if size > known:
                raise BadInput(f"proof, size: expected at most {known}, got {size}")
        return self._nodes.prove(proof, self._read_nodes)

    def _read_nodes(self, places: list[Place]) -> dict[Place, bytes]:
        with database_errors("ledger"), self._reader.ask() as connection:
            return rows.read_nodes(connection, places)

    def find(self, **filters: Unpack[Filters]) -> list[tuple[int, bytes]]:
        """Return (index, bytes) of the entries that match all filters (see `search.Filters`)."""
        with reading(self._engine) as connection:
            return find_entries(connection, self.partial_block, filters)

    def ask(self, question: Callable[[Connection], Answer]) -> Answer:
        """Run a query function of `store.ledger.past` or `store.ledger.search` on one snapshot of the database."""
        with reading(self._engine) as connection:
            return question(connection)

    def disclosures(self, commitments: Iterable[str]) -> dict[str, Disclosure]:
        """Return the texts that are still disclosed for these commitments; erased ones are omitted.

        Raises:
            Tampered: a text does not open its commitment.
        """
        with reading(self._engine) as connection:
            found = rows.read_disclosures(connection, commitments)
        for disclosure in found:
            verify_disclosure(disclosure)
        return {disclosure.commitment: disclosure for disclosure in found}

    def signed_texts(self) -> tuple[bytes, list[Disclosure]]:
        """Return the checkpoint and all disclosures of one snapshot, by commitment.

        The caller must verify that each text opens its commitment.
        """
        with reading(self._engine) as connection:
            return _signed(rows.read_checkpoint(connection)), rows.read_all_disclosures(connection)

    # --- caches ---------------------------------------------------------------------------------------------------

    def check_projections(self) -> list[str]:
        """Compare the projections with the entries and return findings with the expected and the stored values."""
        # No lock is needed: the connection reads one snapshot, and others can append meanwhile.
        seen = self._seen
        with reading(self._engine) as connection:
            return audit.check_projections(connection, seen)

    def rebuild_projections(self) -> None:
        """Delete the projections and write them again from the entries."""
        with self.lock, self._writing() as connection:
            audit.rebuild_projections(connection, self._seen)


def _signed(note: bytes | None) -> bytes:
    if note is None:
        raise NotFound("log checkpoint: expected one, got an empty log")
    return note
