"""The connection that writes entries: staging of drafts, transactions, and the outcome of commits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from appliance.domain.actions.apply import apply, make_typed, sets_time
from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.entry import Entry, EntryDraft, Event, encode_entry
from appliance.domain.core.names import explain
from appliance.domain.core.state import Mark, State
from appliance.domain.governance.countersignature import OrderPending
from appliance.domain.retention import LogArchived
from appliance.errors import ApplianceError, BadInput, TooLarge, Unavailable
from appliance.formats.core.commitment import Disclosure, verify_disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope
from appliance.store.database.engine import (
    begin_writing,
    checkpoint_wal,
    commit_raw,
    connect_reader,
    connect_writer,
    database_errors,
    discard,
    is_current,
    keep_off_disk,
)
from appliance.store.ledger import rows
from appliance.store.ledger.queue import AppendedEntry, WaitingDrafts
from appliance.store.ledger.rows import Change, LogHead

MAX_DOCUMENT_BYTES = 4 << 20

Made = TypeVar("Made")


class StagedEntry(NamedTuple):
    """An entry that the rules accepted, and the rows that are written with it."""

    draft: EntryDraft
    entry: Entry
    data: bytes
    changes: list[Change]


@dataclass
class Batch:
    """Entries that one commit makes durable; the entries of each append are consecutive."""

    before: LogHead
    mark: Mark
    accepted: list[WaitingDrafts] = field(default_factory=list)
    staged: list[StagedEntry] = field(default_factory=list)

    @property
    def head(self) -> LogHead:
        """Return the head after the batch."""
        last = self.staged[-1].entry
        return LogHead(last.index + 1, last.leaf)

    def succeed(self, checkpoint: bytes) -> None:
        """Give every append its entries; call it once they are durable."""
        staged = iter(self.staged)
        for waiting in self.accepted:
            own = islice(staged, len(waiting.drafts))
            waiting.succeed([AppendedEntry(one.entry, one.data, checkpoint) for one in own])


def stage(batch: Batch, waiting: WaitingDrafts, state: State, now: str) -> None:
    """Add the drafts as the next entries if the guard and, for each draft, the rules accept them.

    If they are refused, the state is restored and the error is raised.
    """
    mark = state.mark()
    try:
        if waiting.guard is not None:
            waiting.guard(state, time_of(waiting.drafts[0], state, now))
        staged = _each(waiting.drafts, lambda draft: _stage_one(draft, state, now))
    except BaseException:
        state.take_back(mark)
        raise
    batch.accepted.append(waiting)
    batch.staged += staged


def _stage_one(draft: EntryDraft, state: State, now: str) -> StagedEntry:
    entry = propose(draft, state, now)
    data = encode_entry(entry)
    apply(state, entry, draft.documents)
    return StagedEntry(draft, entry, data, state.take_changes())


def _each(drafts: Sequence[EntryDraft], act: Callable[[EntryDraft], Made]) -> list[Made]:
    """Apply the function to each draft; if there are several, an error names the draft."""
    made = []
    for number, draft in enumerate(drafts, 1):
        try:
            made.append(act(draft))
        except ApplianceError as error:
            if len(drafts) == 1:
                raise
            raise error.within(f"draft {number} of {len(drafts)}") from error
    return made


def check_drafts(drafts: Sequence[EntryDraft]) -> None:
    """Check what the rules do not check: sizes, and that texts match their commitments."""
    _each(drafts, _check_draft)


def _check_draft(draft: EntryDraft) -> None:
    for role, content in draft.documents.items():
        if len(content) > MAX_DOCUMENT_BYTES:
            raise TooLarge(f"document {role}: expected at most {MAX_DOCUMENT_BYTES} bytes, got {len(content)}")
    for disclosure in draft.disclosures:
        check_disclosure(disclosure)


def check_disclosure(disclosure: Disclosure) -> None:
    """Check that a text opens its commitment and can be stored."""
    verify_disclosure(disclosure)
    if "\0" in disclosure.text:  # databases refuse NUL
        raise BadInput("disclosure, text: expected no NUL, got one")


def time_of(draft: EntryDraft, state: State, now: str) -> str:
    """Return the time of the draft's entry: the later of the clock and the last entry, or the clock if it sets time
    back."""
    return now if sets_time(draft.type) else max(now, state.last_time)


def resets_clock(drafts: Sequence[EntryDraft]) -> bool:
    """Return True if this draft sets the log's time back, or is the pending order for it.

    Only such a draft, alone, is appended while the clock is behind.
    """
    draft = drafts[0]
    if len(drafts) != 1 or draft.type != OrderPending.type:
        return len(drafts) == 1 and sets_time(draft.type)
    try:
        return ORDERS.parse(parse_envelope(draft.documents["order"]).payload).sets_time
    except (ApplianceError, LookupError):
        return False  # the rules refuse such a draft


def propose(draft: EntryDraft, state: State, now: str) -> Entry:
    """Build the entry that follows the state.

    Raises:
        BadInput: a field is not valid; the message names it.
    """
    fields = {
        "v": 1,
        "index": state.size,
        "time": time_of(draft, state, now),
        "type": draft.type,
        "actor": draft.actor,
        "source": draft.source,
        "subjects": draft.subjects,
        "outcome": draft.outcome,
        "prev": state.last_leaf,
        "documents": {role: digest_bytes(content) for role, content in draft.documents.items()},
        "body": draft.body,
    }
    try:
        return make_typed(fields) if isinstance(draft.body, Event) else Entry.model_validate(fields)
    except ValidationError as error:
        raise BadInput(f"entry {state.size} ({draft.type}): {explain(error)}") from None


class Writer:
    """The writing connection, opened on first use and again after an error."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._is_scrub_due = False
        """True if removed rows may still be in SQLite's write-ahead log."""
        self._has_removed = False

    def begin(self, lock: Callable[[Connection], None]) -> Connection:
        """Begin a transaction and lock the head by `lock`; if it raises, the connection is closed."""
        try:
            return self._lock(lock)
        except DBAPIError as error:
            # The server was restarted. Nothing was done on this connection, so open another one.
            self.close()
            if not error.connection_invalidated:
                raise
            return self._lock(lock)
        except BaseException:
            self.close()
            raise

    def _lock(self, lock: Callable[[Connection], None]) -> Connection:
        if self._connection is None:
            self._connection = connect_writer(self._engine)
            keep_off_disk(self._connection)
        begin_writing(self._connection)
        lock(self._connection)
        return self._connection

    def roll_back(self) -> None:
        assert self._connection is not None
        self._connection.rollback()

    def commit(self, connection: Connection, batch: Batch) -> None:
        """Commit the batch durably.

        If the commit fails, the database is asked whether the batch was committed, since only the response may have
        been lost.

        Raises:
            Unavailable: the outcome cannot be determined (code `commit-unknown`), or SQLite's file is no longer the one
                at its path and nothing was committed.
        """
        last = batch.staged[-1]
        what = f"ledger, entry {last.entry.index}"
        if not is_current(connection):
            raise Unavailable(f"{what}: expected the database file that was opened, got none or a new one at its path")
        self._has_removed = any(one.draft.erased or one.entry.type == LogArchived.type for one in batch.staged)
        # Set this before the commit, whose end may not be observed.
        self._is_scrub_due |= self._has_removed
        try:
            commit_raw(connection)
        except SQLAlchemyError:
            if not self._was_committed(last, what):
                raise

    def _was_committed(self, last: StagedEntry, what: str) -> bool:
        self.close()
        try:
            with connect_writer(self._engine) as connection, connection.begin():
                # This waits until the transaction of the lost session has ended.
                rows.lock_head(connection)
                return rows.read_entry_bytes(connection, last.entry.index) == last.data
        except SQLAlchemyError as error:
            raise Unavailable(
                f"{what}: expected to find out whether it was committed, got no answer", code="commit-unknown"
            ) from error

    def scrub_after(self) -> None:
        """Scrub if the last commit removed anything; its entries are committed in any case."""
        if self._has_removed:
            self.scrub()

    def scrub(self) -> None:
        """Remove deleted rows from SQLite's write-ahead log.

        If a reader of an older snapshot or the disk prevents this, no error is raised, and `write_back` tries again.
        """
        # Reset the flag first, since a concurrent commit needs a scrub of its own.
        self._is_scrub_due = False
        if not self._checkpoint("TRUNCATE"):
            self._is_scrub_due = True

    def write_back(self) -> None:
        """Copy SQLite's write-ahead log into the database file while others append and read, and scrub if one is due.

        This does nothing on PostgreSQL. Without it, an append would do it once a thousand pages have accumulated. If
        the database does not respond, the next append raises the error.
        """
        if self._is_scrub_due:
            self.scrub()
        else:
            self._checkpoint("PASSIVE")

    def _checkpoint(self, mode: str) -> bool:
        """Run a checkpoint on a separate connection, as any thread may do; return True if it completed or is not
        needed."""
        if self._engine.dialect.name != "sqlite":
            return True
        with suppress(Unavailable), database_errors("write-ahead log"), connect_reader(self._engine) as connection:
            return checkpoint_wal(connection, mode)
        return False

    def close(self) -> None:
        writer, self._connection = self._connection, None
        if writer is not None:
            # Roll back first: SQLite keeps the lock of a closed connection while a traceback refers to one of
            # its cursors.
            with suppress(SQLAlchemyError):
                writer.rollback()
        discard(writer)
