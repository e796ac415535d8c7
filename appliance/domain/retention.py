"""Legal holds, and the end of retention: the erasure of texts behind commitments, and archives of records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import Field

from appliance.domain.core.action import Action, Attachment
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Countersigned, Entry, Ordered
from appliance.domain.core.facts import ActionFacts, Entity
from appliance.domain.core.names import Commitment, Digest, RecordClass, Time, add_seconds
from appliance.domain.core.order import Order, Subjects, entered
from appliance.domain.core.policy import Parameters
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.site import Archive, CommittedText, Hold, WitnessRecord
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State, Table
from appliance.domain.core.words import form
from appliance.errors import Denied, RefusalCode, Rejected
from appliance.formats.core.digest import digest_bytes

HOLD_EXISTS = RefusalCode(
    "hold-exists", "state", "Entry {entry} placed a legal hold on {id}.", "Nothing remains to be held."
)
HOLD_SUBJECT_UNKNOWN = RefusalCode(
    "hold-subject-unknown",
    "order",
    "The log has no {subject}.",
    "Name a principal, unit, base, dataset, validation-set, adapter, run or served model of the log.",
)
HOLD_UNKNOWN = RefusalCode(
    "hold-unknown",
    "state",
    "There is no legal hold on {subject}.",
    "Name the subject of a valid hold: appliance hold list.",
)
TEXT_UNKNOWN = RefusalCode(
    "text-unknown",
    "order",
    "No order and no failure of this log binds a text with the commitment {commitment}.",
    "Name the commitment of a text of this log.",
)
TEXT_ERASED = RefusalCode(
    "text-erased", "state", "The text was erased by entry {entry}.", "Nothing remains to be erased."
)
TEXT_HELD = RefusalCode(
    "text-held",
    "state",
    "The legal hold of entry {entry} keeps texts about {id}.",
    "An administrator must lift the hold first.",
)
NAME_IN_USE = RefusalCode(
    "printed-name-in-use",
    "policy",
    "The text is the printed name of an enrolled principal: {owners}.",
    "A printed name can be erased after its owner was revoked and its retention has ended.",
)
RETENTION = RefusalCode(
    "retention-not-ended",
    "policy",
    "Policy keeps this text until {end}. It is {now}.",
    "Wait until then.",
)


class PlaceHold(Order):
    """An order to place a legal hold, which prevents erasing texts and archiving records about the subject."""

    action = "place-hold"
    subject: Annotated[str, form(r"^[a-z-]{1,20}:[a-z0-9@-]{1,100}$", "KIND:NAME such as adapter:clauses@1")] = entered(
        "adapter:NAME@VERSION, dataset:NAME …"
    )

    def subjects(self) -> Subjects:
        return self._self(self.subject)


class LiftHold(PlaceHold):
    """An order to lift a legal hold."""

    action = "lift-hold"


class HoldPlaced(Ordered):
    """The event of a new legal hold."""

    type = "hold.placed"


class HoldLifted(Countersigned):
    """The event of the end of a legal hold."""

    type = "hold.lifted"


def is_held(held: str, subjects: tuple[str, ...]) -> bool:
    """Return True if a hold on this subject holds a text about these subjects.

    A hold on a name keeps texts about all its versions. A hold on a version also keeps texts about the name alone, such
    as those of the order that imported it.
    """
    name, _, version = held.partition("@")
    return any(subject in (held, name) or (not version and subject.startswith(f"{name}@")) for subject in subjects)


def is_known(state: State, subject: str) -> bool:
    """Return True if the log contains the subject. A hold on another subject would keep nothing, without an error."""
    kind, _, name = subject.partition(":")
    match kind:
        case "principal" | "unit":
            return name in state.principals
        case "base" | "dataset" | "validation-set":
            known = name in (state.validation_sets if kind == "validation-set" else state.datasets)
            return known or any(row.subject == subject for row in state.imports.values())
        case "adapter":
            return name in state.adapters or any(run.name == name for run in state.runs.values())
        case "run":
            return name in state.runs
        case "served-model":
            return any(release.served_model == name for release in state.releases.values())
    return False


def authorise_place_hold(state: State, order: PlaceHold, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a legal hold."""
    reasons: Reasons = []
    if (hold := state.holds.get(order.subject)) is not None:
        reasons.append(HOLD_EXISTS(order.subject, entry=hold.index))
    if not is_known(state, order.subject):
        reasons.append(HOLD_SUBJECT_UNKNOWN(subject=Rejected(order.subject)))
    return reasons


def authorise_lift_hold(state: State, order: LiftHold, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of lifting a legal hold."""
    return [] if order.subject in state.holds else [HOLD_UNKNOWN(subject=Rejected(order.subject))]


def apply_hold(case: Case) -> Changes:
    """Apply a legal hold."""
    order = case.order(PlaceHold)
    hold = Hold(subject=order.subject, order=case.accepted.digest, signer=order.signer, index=case.entry.index)
    return [(case.state.holds, order.subject, hold)]


def apply_hold_lift(case: Case) -> Changes:
    """Apply the end of a legal hold."""
    return [(case.state.holds, case.order(LiftHold).subject, None)]


class HoldEntity(Entity):
    """A legal hold on a subject, such as "adapter:clauses@1" or "principal:rita"."""

    subject: str


class Erase(Order):
    """An order to erase the text behind a commitment. The commitment stays, and every signature over it stays valid."""

    action = "erase"
    keeps_texts = False
    commitment: Commitment = entered(kind="line")

    def subjects(self) -> Subjects:
        return self._self(f"text:{self.commitment}")


class TextErased(Countersigned):
    """The event of an erasure: with this entry the text behind the order's commitment was removed."""

    type = "text.erased"


def authorise_erase(state: State, order: Erase, signer: Principal, now: Time) -> Reasons:
    """Return the reasons for which a text must not be erased yet."""
    text = state.texts.get(order.commitment)
    if text is None:
        return [TEXT_UNKNOWN(commitment=Rejected(order.commitment))]
    if text.erased is not None:
        return [TEXT_ERASED(entry=text.erased)]
    reasons = [
        TEXT_HELD(hold.subject, entry=hold.index)
        for hold in state.holds.values()
        if is_held(hold.subject, (*text.subjects, f"principal:{text.signer}"))
    ]
    return reasons + _check_retention(state, order.commitment, text, now)


def _check_retention(state: State, commitment: str, text: CommittedText, now: Time) -> Reasons:
    """Return the reasons of retention.

    A printed name belongs to every signature of its owner. It stays for the time that policy requires after the last
    owner was revoked.
    """
    owners = [principal for principal in state.principals.values() if principal.printed_name == commitment]
    if not owners:
        end = add_seconds(text.time, state.parameters.text_retention_s)
    elif enrolled_owners := tuple(owner.name for owner in owners if owner.revoked_at is None):
        return [NAME_IN_USE(owners=enrolled_owners)]
    else:
        end = add_seconds(max(owner.revoked_at or "" for owner in owners), state.parameters.name_retention_s)
    return [RETENTION(end=end, now=now)] if now < end else []


def apply_erasure(case: Case) -> Changes:
    order = case.order(Erase)
    text = case.state.texts.get(order.commitment)
    if text is None:
        raise Denied(f"entry {case.entry.index}: text: expected one that an entry binds, got {order.commitment}")
    return [(case.state.texts, order.commitment, text._replace(erased=case.entry.index))]


class TextEntity(Entity):
    """A text. Its id is its commitment."""

    table = "texts"
    signer: str = Field(description="the person whose entry binds it, or the service")
    subjects: tuple[str, ...] = Field(description="what its entry is about")


LAST_OF_RECORDS = "2025-06-15T09:30:00.000Z"
"""Time of the records that the example order removes."""
MOST_ARCHIVED = 250_000
"""Largest number of entries that one order removes. The ledger accepts no other entry meanwhile."""
MOST_ENTRIES = 33_554_432
"""Largest number of entries up to which one order removes records. The list of them fits a document of 4 MiB."""
_DAY_S = 86_400

RECORDS_KEPT = RefusalCode(
    "records-kept",
    "policy",
    "Policy (retention) has the log keep {records} for ever.",
    "Archive other records, or have a policy adopted that names a retention for these.",
)
RECORDS_TOO_YOUNG = RefusalCode(
    "records-too-young",
    "policy",
    "Policy (retention) has the log keep {records} up to entry {last} until {end}. By the clocks of the log and of the "
    "witnesses it is {now}.",
    "Archive up to an earlier entry, or have the witnesses cosign the log again.",
)
ARCHIVE_NOT_WITNESSED = RefusalCode(
    "archive-not-witnessed",
    "policy",
    "As many witnesses as policy requires, at least one, have cosigned {witnessed} entries. The archive has {size}.",
    "Have the witnesses cosign the log: appliance witness request.",
)
ARCHIVE_UNFIT = RefusalCode(
    "archive-unfit",
    "order",
    "The order removes records before entry {up_to} from an archive of {size} entries. The log has {entries}.",
    "Prepare the archive again: appliance ledger archive.",
)
ARCHIVED_SINCE = RefusalCode(
    "archive-outdated",
    "state",
    "Entry {entry} archived records. It is not in this archive, which has {size} entries.",
    "Have the witnesses cosign the log, then prepare the archive again.",
)
HELD_SINCE = RefusalCode(
    "archive-before-hold",
    "state",
    "Entry {entry} placed a legal hold on {id} after the last entry of the archive.",
    "Have the witnesses cosign the log, then prepare the archive again. It keeps the records that are held.",
)


class ArchiveLog(Order):
    """An order to remove records from the log that an archive has.

    `removed` lists them: bit n of the document, from the lowest of the first byte, is set if entry n is removed.
    """

    action = "archive-log"
    up_to: int = entered("records before this entry are removed", ge=1, le=MOST_ENTRIES)
    records: tuple[RecordClass, ...] = entered(min_length=1, max_length=4, description="the classes of what is removed")
    last: Time = entered(description="time of the last entry before `up_to`")
    count: int = entered(ge=1, le=MOST_ARCHIVED, description="number of entries that are removed")
    removed: Digest = entered(description="digest of the list of the entries that are removed")
    size: int = entered(ge=1, description="number of entries in the archive")
    archive: Digest = entered(description="digest of the archive: an export of the log under a cosigned checkpoint")
    state: Digest = entered(description="digest of the state after the first `up_to` entries")

    def subjects(self) -> Subjects:
        return ((f"archive:{self.up_to}", self.archive),)


class LogArchived(Countersigned):
    """The event of an archive: with this entry the bytes and documents of the listed entries were removed."""

    type = "log.archived"
    documents = ("order", "removed")


def has_bit(bits: bytes, index: int) -> bool:
    """Return True if the list of removed entries contains the entry."""
    return index >> 3 < len(bits) and bool(bits[index >> 3] >> (index & 7) & 1)


def list_bits(bits: bytes) -> Iterator[int]:
    """Yield the entries of a list of removed entries, in order."""
    for place, byte in enumerate(bits):
        if byte:
            yield from (place << 3 | bit for bit in range(8) if byte >> bit & 1)


def find_witnessed_size(witnesses: Iterable[WitnessRecord], parameters: Parameters) -> int:
    """Return the size of the log that as many of the policy's witnesses as it requires, at least one, have cosigned."""
    sizes = sorted((one.size for one in witnesses if one.vkey in parameters.witnesses), reverse=True)
    return next(iter(sizes[_find_quorum_index(parameters) :]), 0)


def find_retention_time(witnesses: Iterable[WitnessRecord], parameters: Parameters, size: int, now: Time) -> Time:
    """Return the time until which retention is counted: `now`, or the witnesses' time if that is earlier.

    The witnesses' time is when as many as policy requires, at least one, had cosigned `size` entries, by their own
    clocks. So a clock of the service that is set ahead ends no retention.
    """
    listed = (one for one in witnesses if one.vkey in parameters.witnesses)
    times = sorted((one.time for one in listed if one.size >= size), reverse=True)
    return min([now, *times[_find_quorum_index(parameters) :][:1]])


def _find_quorum_index(parameters: Parameters) -> int:
    """Return the index of the last witness that policy requires. At least one is required."""
    return max(parameters.witness_quorum, 1) - 1


def find_retention_end(state: State, records: RecordClass, last: Time) -> Time | None:
    """Return the end of the retention of a record of this class and time, or None if the log keeps it for ever."""
    days = next((row.days for row in state.parameters.retention if row.records == records), None)
    return None if days is None else add_seconds(last, days * _DAY_S)


def authorise_archive(state: State, order: ArchiveLog, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of an archive that its fields and the state show."""
    reasons: Reasons = []
    witnesses = tuple(state.witnesses.values())
    reached = find_retention_time(witnesses, state.parameters, order.size, now)
    for records in order.records:
        end = find_retention_end(state, records, order.last)
        if end is None:
            reasons.append(RECORDS_KEPT(records=records))
        elif reached < end:
            reasons.append(RECORDS_TOO_YOUNG(records=records, last=order.up_to - 1, end=end, now=reached))
    if (witnessed := find_witnessed_size(witnesses, state.parameters)) < order.size:
        reasons.append(ARCHIVE_NOT_WITNESSED(witnessed=witnessed, size=order.size))
    if not order.up_to <= order.size <= state.size or list(order.records) != sorted(set(order.records)):
        reasons.append(ARCHIVE_UNFIT(up_to=order.up_to, size=order.size, entries=state.size))
    archived = max((one.index for one in state.archives.values()), default=-1)
    if archived >= order.size:
        reasons.append(ARCHIVED_SINCE(entry=archived, size=order.size))
    reasons += [HELD_SINCE(hold.subject, entry=hold.index) for hold in state.holds.values() if hold.index >= order.size]
    return reasons


def check_removed(case: Case, order: ArchiveLog, document: bytes) -> None:
    """Check the list of removed entries against the order."""
    case.require(digest_bytes(document) == order.removed, "removed", order.removed, digest_bytes(document))
    bits = int.from_bytes(document, "little")
    case.require(document[-1:] not in (b"", b"\0"), "removed", "a list without zero bytes at its end", "another")
    case.require(bits.bit_length() <= order.up_to, "removed", f"entries before {order.up_to}", bits.bit_length() - 1)
    case.require(bits.bit_count() == order.count, "removed", f"{order.count} entries", bits.bit_count())
    case.require(not bits & 1, "removed", "no first entry", "entry 0")


def apply_archive(case: Case) -> Changes:
    """Apply an archive: the removed entries leave no rows in the state.

    So the state is the same whether they were replayed before or not. A day's counts of requests and trials are of use
    on that day only.
    """
    order, state, removed = case.order(ArchiveLog), case.state, case.documents["removed"]
    changes: Changes = []
    for commitment, text in state.texts.items():
        if has_bit(removed, text.entry):
            case.require(text.erased is None, "removed", "no entry whose text was erased", text.entry)
            changes.append((state.texts, commitment, None))
    changes += [(state.orders, key, None) for key, index in state.orders.items() if has_bit(removed, index)]
    changes += [(state.replays, key, None) for key, row in state.replays.items() if has_bit(removed, row.index)]
    counts: tuple[Table[Any], ...] = (state.answers, state.tries)
    today = case.entry.time[:10]
    changes += [(table, key, None) for table in counts for key, row in table.items() if row.day < today]
    archive = make_archive(case.entry, order, case.accepted.order.signer)
    return [*changes, (state.archives, str(case.entry.index), archive)]


def make_archive(entry: Entry, order: ArchiveLog, second: str) -> Archive:
    """Return the row of an archive; `second` is who signed the order of its entry last."""
    return Archive(
        index=entry.index,
        up_to=order.up_to,
        records=order.records,
        count=order.count,
        removed=order.removed,
        archive=order.archive,
        signers=tuple(dict.fromkeys((order.signer, second))),
        time=entry.time,
    )


class ArchiveEntity(Entity):
    """An archive of records. Its id is the number of entries up to which it removes records."""

    up_to: int


def _describe_archive(state: State, order: ArchiveLog, signer: Principal) -> ArchiveEntity:
    return ArchiveEntity(id=str(order.up_to), up_to=order.up_to)


ACTIONS = (
    Action(
        Erase,
        title="Erase a text",
        authorise=authorise_erase,
        signers=("administrator",),
        meaning="This text is destroyed here, for ever; every signature over its commitment holds. What was "
        "made of it stays: an instruction is in its dataset's rows and in what was trained on them. "
        "The manual says how to destroy those, under Limits.",
        event=TextErased,
        apply=apply_erasure,
        two_administrators=True,
        facts=ActionFacts(TextEntity, "commitment"),
        example_values={"signer": "anna"},
    ),
    Action(
        PlaceHold,
        title="Place a hold",
        authorise=authorise_place_hold,
        signers=("administrator", "auditor"),
        meaning="While the hold is valid, texts of entries about this subject are not erased, and such records are not "
        "archived.",
        event=HoldPlaced,
        apply=apply_hold,
        facts=ActionFacts(HoldEntity, "subject"),
        example_values={"signer": "anna", "subject": "adapter:clauses@1"},
    ),
    Action(
        LiftHold,
        title="Lift a hold",
        authorise=authorise_lift_hold,
        signers=("administrator",),
        meaning="Texts about this subject may be erased again, and records archived, when their retention has ended.",
        event=HoldLifted,
        apply=apply_hold_lift,
        two_administrators=True,
        facts=ActionFacts(HoldEntity, "subject"),
        example_values={"signer": "anna", "subject": "principal:olga"},
    ),
    Action(
        ArchiveLog,
        title="Archive old records",
        authorise=authorise_archive,
        signers=("administrator",),
        meaning="The service removes these entries and their documents from the log, for ever; their hashes stay. From "
        "then on only the archive has them. Keep it. The service checks that no entry is under a legal hold.",
        event=LogArchived,
        apply=apply_archive,
        two_administrators=True,
        attachment=Attachment("removed", check_removed),
        facts=ActionFacts(ArchiveEntity, _describe_archive, ("records", "count")),
        example_values={
            "signer": "anna",
            "records": ("requests",),
            "up_to": 50,
            "size": 90,
            "last": LAST_OF_RECORDS,
        },
        has_form=False,
    ),
)
