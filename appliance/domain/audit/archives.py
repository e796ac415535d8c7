"""Archives of records: the choice of the entries that an archive removes, and the checks of a log that lacks them.

A removed entry leaves its leaf hash, and a replay skips it. The state that later entries depend on stays the same,
since an entry that others depend on belongs to no class of records. The check compares the log with what two
administrators signed: the list of the removed entries, the time of the last entry up to which they were removed, and
the digest of the state there. With the bytes of removed entries from an archive, it also checks their classes and legal
holds (docs/adr/0031-archives-of-records.md).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Literal, NamedTuple

from appliance.domain.actions.apply import apply, parse_typed
from appliance.domain.actions.registry import EVENTS, ORDERS
from appliance.domain.core.entry import Entry, Failed
from appliance.domain.core.names import RecordClass, Time, Value, add_seconds
from appliance.domain.core.records.site import Hold
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import OrderRefused
from appliance.domain.retention import MOST_ARCHIVED, ArchiveLog, LogArchived, has_bit, is_held
from appliance.domain.witnesses import CheckpointCosigned
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.export import hash_line, read_removed, write_export
from appliance.formats.signatures.dsse import parse_envelope

Documents = Callable[[str], bytes | None]
"""A function that returns the bytes stored under a digest, or None."""
Kept = Literal["held", "open", "text-shared"]
"""The reason why an entry of an archived class stays: a legal hold; a record that has not ended; or a text that was
erased or that another entry binds, too."""

_COMMITMENT = re.compile(rb"hmac-sha256:[0-9a-f]{64}")
_NO_HOLD = ("request:", "order:")
"""Beginnings of subjects on which no legal hold can be placed."""


def digest_authority(state: State) -> str:
    """Return the digest of the state without the rows of records: people, their rights, and what may be loaded."""
    hasher = hashlib.sha256()
    for line in state.encode_authority():
        hasher.update(line)
    return f"sha256:{hasher.hexdigest()}"


def class_of(entry_type: str) -> RecordClass | None:
    """Return the class of records of a type of entry, or None if such entries stay."""
    event = EVENTS.get(entry_type)
    return None if event is None else event.records


def holds_on(entry: Entry, documents: Documents) -> frozenset[str]:
    """Return the subjects by which a legal hold keeps an entry, for a refusal also those of the refused order."""
    subjects = (*entry.subjects, f"principal:{entry.actor}")
    if entry.type == OrderRefused.type and (data := documents(entry.documents["order"])) is not None:
        subjects += ORDERS.parse(parse_envelope(data).payload).about()
    return frozenset(subject for subject in subjects if not subject.startswith(_NO_HOLD))


def find_hold(holds: Iterable[Hold], subjects: Collection[str]) -> Hold | None:
    """Return a legal hold that keeps an entry about these subjects, or None."""
    about = tuple(subjects)
    return next((hold for hold in holds if is_held(hold.subject, about)), None)


class Selection:
    """The choice of the entries that an archive removes, made in one reading of the log's first `up_to` entries."""

    def __init__(self, state: State, up_to: int, records: Collection[RecordClass]) -> None:
        """Begin with the state of the log now, which has the legal holds and the texts."""
        self.up_to = up_to
        self.removed: Counter[RecordClass] = Counter()
        """Number of chosen entries by class."""
        self.kept: Counter[Kept] = Counter()
        """Number of entries of the classes that stay, by reason."""
        self.last: Time = ""
        """Time of the last entry that was read."""
        self._state, self._records = state, frozenset(records)
        self._holds = state.holds.values()
        self._bits = bytearray(up_to // 8 + 1)
        self._open: dict[str, tuple[Entry, Kept | None]] = {}

    @property
    def bits(self) -> bytes:
        """Return the list of the chosen entries, as `ArchiveLog` has it."""
        return bytes(self._bits).rstrip(b"\0")

    def read(self, entries: Iterable[bytes], documents: Documents) -> None:
        """Choose among the entries before `up_to`; a removed one is left out."""
        for index, data in enumerate(entries):
            if index >= self.up_to:
                break
            if read_removed(data) is None:
                self._take(parse_typed(data), documents)
        self.kept["open"] += len(self._open)

    def _take(self, entry: Entry, documents: Documents) -> None:
        self.last = entry.time
        event = EVENTS.get(entry.type)
        if event is None or event.records not in self._records:
            return
        reason = self._find_reason(entry, documents)
        if event.part == "opening":
            self._open[entry.subjects[0]] = entry, reason
            return
        chosen = [entry]
        if event.part == "end":
            opening = self._open.pop(entry.subjects[0], None)
            if opening is None:
                reason = reason or "open"
            else:
                chosen, reason = [opening[0], entry], opening[1] or reason
        for one in chosen:
            if reason is None:
                self._bits[one.index >> 3] |= 1 << (one.index & 7)
                self.removed[event.records] += 1
            else:
                self.kept[reason] += 1

    def _find_reason(self, entry: Entry, documents: Documents) -> Kept | None:
        if self._holds and find_hold(self._holds, holds_on(entry, documents)) is not None:
            return "held"
        texts = self._state.texts
        rows = [(row, commitment) for commitment in _bound_by(entry, documents) if (row := texts.get(commitment))]
        if any(row.entry != entry.index or row.time != entry.time or row.erased is not None for row, _ in rows):
            return "text-shared"
        return None


def _bound_by(entry: Entry, documents: Documents) -> Iterator[str]:
    """Yield the commitments of the texts that an entry may bind: those of its order, and the cause of a failure."""
    body: object = entry.body
    if isinstance(body, Failed):
        yield body.message
    if (digest := entry.documents.get("order")) is not None and (data := documents(digest)) is not None:
        yield from (match.decode() for match in _COMMITMENT.findall(parse_envelope(data).payload))


def replay_states(
    entries: Iterable[bytes], documents: Documents, stops: Collection[int], without: bytes = b""
) -> Iterator[State]:
    """Yield the state of a verified log at each of these sizes. `without`: the list of entries that are skipped.

    The yielded objects are one and the same, so use each before the next.
    """
    state = State()
    for index, data in enumerate(islice(entries, max(stops))):
        leaf = hash_line(data) if has_bit(without, index) else read_removed(data)
        if leaf is not None:
            state.skip_removed(leaf)
        else:
            entry = parse_typed(data)
            found = {role: documents(digest) for role, digest in entry.documents.items()}
            apply(state, entry, {role: content for role, content in found.items() if content is not None})
            state.keep()
        if state.size in stops:
            yield state


class LogBytes(NamedTuple):
    """The bytes of a log's first entries: what an archive of them has."""

    entries: Callable[[], Iterable[bytes]]
    document: Documents
    size: int


def find_cosigned_note(log: LogBytes, size: int) -> bytes:
    """Return the first checkpoint of this size that a witness cosigned.

    Raises:
        Conflict: there is none, or it is from before the log's last archive.
    """
    note: bytes | None = None
    archived = -1
    for data in islice(log.entries(), log.size):
        if CheckpointCosigned.type.encode() not in data and LogArchived.type.encode() not in data:
            continue
        entry = parse_typed(data)
        body: object = entry.body
        if isinstance(body, LogArchived):
            archived = entry.index
        elif isinstance(body, CheckpointCosigned) and note is None and body.size == size:
            note = log.document(entry.documents["note"]) or b""
    if note is not None and size > archived:
        return note
    expected, got = f"a cosigned checkpoint of {size} entries", "none"
    if note is not None:
        expected = f"a cosigned checkpoint with entry {archived}, which archived records"
        got = f"one of {size} entries"
    raise Conflict(
        f"archive: expected {expected}, got {got}; have the witnesses cosign the log: appliance witness request"
    )


def write_archive(
    origin: str, log: LogBytes, note: bytes, texts: Callable[[list[str]], Mapping[str, Disclosure]]
) -> Iterator[bytes]:
    """Yield the archive of the log's first entries: an export under the cosigned checkpoint `note` over them."""

    def document(digest: str) -> bytes:
        data = log.document(digest)
        if data is None:
            raise NotFound(f"document {digest}: expected one that an entry binds, got none")
        return data

    return write_export(
        origin=origin,
        size=log.size,
        checkpoint=note,
        entries=lambda: islice(log.entries(), log.size),
        document=document,
        disclosures=texts,
    )


class ArchiveFields(Value):
    """The fields of an order to archive records, except the archive's digest (see `ArchiveLog`)."""

    up_to: int
    records: tuple[RecordClass, ...]
    last: Time
    count: int
    removed: str
    size: int
    state: str


class ArchivePlan(NamedTuple):
    """The fields that two administrators sign, the list of the removed entries, and their selection."""

    fields: ArchiveFields
    removed: bytes
    selection: Selection


def prepare_archive(log: LogBytes, up_to: int, records: Collection[RecordClass]) -> ArchivePlan:
    """Choose the entries of a verified log to remove, and compute what two administrators sign about them.

    The log is replayed twice: with all entries, and without those that are removed, which must lead to the same state.

    Raises:
        BadInput: `up_to` is not an entry of the log, there are no such records, or there are too many.
    """
    if not 1 <= up_to <= log.size:
        raise BadInput(f"archive, up_to: expected 1 to {log.size}, the entries of the archive, got {up_to}")
    state, expected = State(), ""
    for state in replay_states(log.entries(), log.document, {up_to, log.size}):
        expected = digest_authority(state) if state.size == up_to else expected
    selection = Selection(state, up_to, records)
    selection.read(log.entries(), log.document)
    count, removed = selection.removed.total(), selection.bits
    if not 1 <= count <= MOST_ARCHIVED:
        raise BadInput(
            f"archive: expected 1 to {MOST_ARCHIVED:,} entries of records before entry {up_to}, got {count:,}; "
            f"{'name an earlier entry' if count else 'there is nothing to remove'}"
        )
    (reached,) = replay_states(log.entries(), log.document, {up_to}, removed)
    if (got := digest_authority(reached)) != expected:
        raise Tampered(f"archive: expected the state {expected} without the removed entries, too, got {got}")
    fields = ArchiveFields(
        up_to=up_to,
        records=tuple(sorted(set(records))),
        last=selection.last,
        count=count,
        removed=digest_bytes(removed),
        size=log.size,
        state=expected,
    )
    return ArchivePlan(fields, removed, selection)


def find_archive_problems(log: LogBytes, order: ArchiveLog, removed: bytes) -> list[str]:
    """Return the problems of an order to archive records of a verified log's first entries."""
    try:
        prepared = prepare_archive(log, order.up_to, order.records)
    except ApplianceError as error:
        return [error.message]
    problems = [
        f"{name}: expected {expected}, got {getattr(order, name)}"
        for name, expected in prepared.fields.model_dump().items()
        if getattr(order, name) != expected
    ]
    if removed != prepared.removed and not problems:
        problems.append("removed: expected the list of the digest, got another")
    return problems


class ArchiveEntry(NamedTuple):
    """An entry that archived records, as its bytes and documents claim it; nothing in it is verified."""

    entry: int
    order: ArchiveLog
    removed: bytes


def read_archive_entry(data: bytes, documents: Documents) -> ArchiveEntry | None:
    """Return the archive that an entry claims, or None if the entry is not one or lacks its documents."""
    if LogArchived.type.encode() not in data:
        return None
    try:
        entry = parse_typed(data)
        bound = {role: documents(digest) for role, digest in entry.documents.items()}
        envelope, removed = bound.get("countersigned") or bound.get("order"), bound.get("removed")
        if entry.type != LogArchived.type or envelope is None or removed is None:
            return None
        order = ORDERS.parse(parse_envelope(envelope).payload)
    except ApplianceError:
        return None
    return ArchiveEntry(entry.index, order, removed) if isinstance(order, ArchiveLog) else None


def read_archive_entries(entries: Iterable[bytes], documents: Documents) -> Iterator[ArchiveEntry]:
    """Yield the archives that a log's entries claim."""
    for data in entries:
        claimed = read_archive_entry(data, documents)
        if claimed is not None:
            yield claimed


class _PassedState(NamedTuple):
    """Values of a replay when it had passed the entries before an archive's `up_to`."""

    digest: str
    last_time: Time
    has_last: bool
    """True if the last of these entries was replayed, so that its time is known."""


class _MetEntries:
    """The result of a replay about the entries that an archive names: how many are missing, and what the others are."""

    def __init__(self, claimed: ArchiveEntry) -> None:
        self.claimed = claimed
        self.missing = 0
        self.first_missing: int | None = None
        self.kinds: dict[str, int] = {}
        """First entry of each type."""
        self.subjects: dict[frozenset[str], int] = {}
        """First entry about each set of subjects."""
        self.open: dict[str, int] = {}
        """Entries of records of which only the opening or only the end was met, by the first subject."""
        self.passed: _PassedState | None = None


class Removals:
    """The check of removed entries in one replay.

    Call `skip` for a missing entry, `meet` for a present one, `pass_entry` after each, and `settle` after an entry that
    archives. `read_claims` returns the archives that later entries claim. It is called when the first missing entry is
    met, so that a log without archives costs nothing.
    """

    def __init__(self, read_claims: Callable[[], Iterable[ArchiveEntry]], *, start: State | None = None) -> None:
        """Begin at the first entry, or with `start` after the entries of that state.

        The archives of `start` are settled.
        """
        self._read_claims = read_claims
        self._start = State() if start is None else start
        self._met: dict[int, _MetEntries] | None = None
        self.is_active = False
        """True once an entry was missing, or after `watch`."""
        self._has_last = False
        self.missing: Counter[int] = Counter()
        """Number of missing entries by the entry that archived them."""

    def watch(self) -> None:
        """Read the claimed archives, so that present entries are checked, too."""
        if self._met is None:
            self._met = {
                claimed.entry: _MetEntries(claimed) for claimed in self._read_claims() if self._may_archive(claimed)
            }
            self.is_active = True

    def _may_archive(self, claimed: ArchiveEntry) -> bool:
        """Return True unless `start` shows that its entry did not archive these records."""
        if claimed.entry >= self._start.size:
            return True
        row = self._start.archives.get(str(claimed.entry))
        return row is not None and row.removed == claimed.order.removed

    def _find_naming(self, index: int) -> Iterator[_MetEntries]:
        """Yield the archives that name an entry."""
        assert self._met is not None
        return (one for one in self._met.values() if index < one.claimed.entry and has_bit(one.claimed.removed, index))

    def skip(self, index: int) -> None:
        """Count a missing entry.

        Raises:
            Tampered: no later entry claims an archive of it.
        """
        self.watch()
        self._has_last = False
        named = next(self._find_naming(index), None)
        if named is None:
            raise Tampered(f"entry {index}: expected its bytes, got none: no archive names it", code="missing")
        named.missing += 1
        self.missing[named.claimed.entry] += 1
        if named.first_missing is None:
            named.first_missing = index

    def meet(self, entry: Entry, documents: Documents) -> None:
        """Note a present entry, for the checks of the archives that name it."""
        self._has_last = True
        for one in self._find_naming(entry.index):
            one.kinds.setdefault(entry.type, entry.index)
            one.subjects.setdefault(holds_on(entry, documents), entry.index)
            event = EVENTS.get(entry.type)
            if event is not None and event.part != "whole":
                is_pair = event.part == "end" and entry.subjects[0] in one.open
                if is_pair:
                    del one.open[entry.subjects[0]]
                else:
                    one.open[entry.subjects[0]] = entry.index

    def pass_entry(self, state: State) -> None:
        """Note the digest and the time of the state where the entries of an archive end (`up_to`)."""
        assert self._met is not None
        for one in self._met.values():
            if one.claimed.order.up_to == state.size:
                one.passed = _PassedState(digest_authority(state), state.last_time, self._has_last)

    def settle(self, index: int, state: State) -> list[str]:
        """Return the problems of the archive of an entry that the rules accepted, after its replay."""
        met = None if self._met is None else self._met.pop(index, None)
        if met is None:
            return []  # no entry was missing, and nobody watches
        order, row = met.claimed.order, state.archives.get(str(index))
        if row is None or row.removed != order.removed or row.up_to != order.up_to:
            return [f"entry {index}: expected the archive that its documents claim, got another"]
        return [*_compare_passed(index, met, self._start.size), *_check_met(index, met, state)]

    def list_unsettled(self) -> list[tuple[int, str]]:
        """Return the first missing entry of each archive without a valid entry, with the problem. Call it at the
        end."""
        cause = "which names it, is no valid archive"
        return [
            (met.first_missing, f"entry {met.first_missing}: expected its bytes, got none: entry {index}, {cause}")
            for index, met in (self._met or {}).items()
            if met.first_missing is not None and index >= self._start.size
        ]


def _compare_passed(index: int, met: _MetEntries, start: int) -> list[str]:
    """Compare the state and the time at the archive's `up_to` with those that the administrators signed.

    A replay that began after `up_to` leaves this out. The service compared them before it sealed the snapshot with
    which the replay began.
    """
    order, passed = met.claimed.order, met.passed
    if order.up_to <= start:
        return []
    if passed is None:
        return [f"entry {index}: up_to: expected an entry before which the log was replayed, got {order.up_to}"]
    problems = []
    if passed.digest != order.state:
        problems.append(
            f"entry {index}: state after {order.up_to} entries: expected {order.state}, got {passed.digest}"
        )
    if passed.last_time > order.last or (passed.has_last and passed.last_time != order.last):
        expected = f"{order.last}, or an earlier one if that entry was removed"
        problems.append(f"entry {index}: time of entry {order.up_to - 1}: expected {expected}, got {passed.last_time}")
    return problems


def _check_met(index: int, met: _MetEntries, state: State) -> list[str]:
    """Return the problems of the archived entries whose bytes were present."""
    order, problems = met.claimed.order, []
    for kind, first in met.kinds.items():
        if class_of(kind) not in order.records:
            problems.append(
                f"entry {index}: expected an archive of {', '.join(order.records)}, got entry {first}: {kind}"
            )
    for subjects, first in met.subjects.items():
        hold = find_hold([hold for hold in state.holds.values() if hold.index < index], subjects)
        if hold is not None:
            got = f"got entry {first}, which the hold of entry {hold.index} on {hold.subject} keeps"
            problems.append(f"entry {index}: expected no entry under a legal hold, {got}")
    if met.open and not met.missing:
        first = min(met.open.values())
        problems.append(f"entry {index}: expected whole records, got entry {first} alone")
    return problems


def find_last_archivable(entries: Iterable[bytes], days: int, now: Time) -> int:
    """Return the number of entries before the first one that is younger than this retention, 0 if there is none."""
    latest, size = add_seconds(now, -days * 86_400), 0
    for data in entries:
        if read_removed(data) is None and parse_typed(data).time > latest:
            return size
        size += 1
    return size
