"""What a unit could have loaded at a moment, and by whose word: decided by the same functions that decide admission.

The state may be the fold itself, or one rebuilt from rows as of an earlier entry; `now` is the moment asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal

from appliance.domain.core.decisions import Decision, ReviewRecord
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time, Value, versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.serving import Release, Slot
from appliance.domain.core.roles import is_unit
from appliance.domain.core.state import State
from appliance.domain.core.words import unknown_word
from appliance.domain.governance.clock import ClockReset
from appliance.domain.releases.approval import (
    ReviewStanding,
    ReviewState,
    barred,
    inadmissible,
    released,
    review_standing,
)
from appliance.domain.rulebook.apply import apply
from appliance.domain.rulebook.registry import book_of
from appliance.domain.witnesses.cosignatures import unwitnessed
from appliance.errors import BadInput, NotFound

JUDGED_BY = (
    "site",
    "principal",
    "key",
    "base",
    "dataset",
    "validation-set",
    "adapter",
    "release",
    "export",
    "slot",
    "witness",
)
"""The kinds that decide what may be loaded."""


OF_UNITS = ("release", "export", "slot")
"""The kinds whose things belong to one unit, which their names begin with (`release_key`, `slot_key`)."""


class Signoff(Value):
    """One recorded decision about an adapter for the unit; `against`: why it counted no more, None while it did."""

    entry: int
    order: str
    reviewer: str
    printed_name: str | None
    keyid: str
    field: str
    decision: Decision
    valid_until: Time | None
    state: ReviewState
    superseded_by: int | None
    against: str | None


class Candidate(Value):
    """An adapter, every decision about it for the unit, and everything that kept it from being loaded."""

    adapter: str
    manifest: str
    sealed: int
    reviews: tuple[Signoff, ...]
    reasons: tuple[str, ...]


class Activated(Value):
    entry: int
    order: str
    by: str
    keyid: str
    kind: Literal["activate", "roll-back", "break-glass"]


class Loaded(Value):
    """What was in the engine's slot; `entry` is None while it was only admitted."""

    adapter: str
    admitted: int
    entry: int | None


class TaskAnswer(Value):
    """One task of the unit: what its release named, whether that could be loaded, and what was."""

    task: str
    could_load: bool
    candidate: Candidate
    release: Activated
    slot: Loaded | None


class Exported(Value):
    """What the unit could load from a folder on a host of its own, by the export's entry: no revocation reaches it."""

    task: str
    adapter: str
    manifest: str
    entry: int
    valid_until: Time


class CouldLoad(Value):
    """The answer, and the entries that what it says of tasks and exports rests on. `tasks`: what the appliance could
    load for the unit; `exported`: what the unit could load without it, whatever was revoked by then."""

    unit: str
    enrolled: int | None
    at: Time
    policy: str
    reviewers: int
    distinct_fields: int
    required_fields: tuple[str, ...]
    tasks: tuple[TaskAnswer, ...]
    exported: tuple[Exported, ...]
    others: tuple[Candidate, ...]
    rests_on: tuple[int, ...]


class BeforeLog(Value):
    """The answer for a moment before the log's first entry: nothing. `log_begins`: the time of that entry."""

    unit: str
    at: Time
    log_begins: Time


def reviewed_for(state: State, unit: str, index: int) -> list[str]:
    """The adapters that were reviewed for the unit by that entry, from the fold of now: no review is ever removed."""
    return [
        versioned(adapter.name, adapter.version)
        for adapter in state.adapters.values()
        if adapter.reviews and any(review.unit == unit and review.index <= index for review in adapter.reviews)
    ]


def could_load(state: State, unit: str, now: Time, *, others: bool = True) -> CouldLoad:
    """For every task of the unit: the adapter that its release named and whether it was admissible. Then the folders
    that had been exported to it and had not expired, and the adapters that were reviewed for the unit or answered for
    it before, which no release named; without `others` not these. BadInput where the rules in force are later than this
    build knows."""
    book_of(state)
    releases = [release for release in state.releases.values() if release.unit == unit]
    tasks = tuple(_task(state, release, now) for release in sorted(releases, key=lambda release: release.task))
    named = {task.candidate.adapter for task in tasks}
    before = {activation.adapter for release in releases for activation in release.history}
    unreleased = []
    for key, adapter in state.adapters.items() if others else ():
        if key not in named and (key in before or any(review.unit == unit for review in adapter.reviews)):
            unnamed = f"release: expected one that names {key} for {unit}, got none"
            reasons = (*inadmissible(state, adapter, unit, now), unnamed)
            unreleased.append(_candidate(state, adapter, unit, now, reasons))
    rules, principal = state.parameters, state.principals.get(unit)
    answer = CouldLoad(
        unit=unit,
        enrolled=principal.enrolled if principal is not None and is_unit(state, unit) else None,
        at=now,
        policy=state.site.policy,
        reviewers=rules.reviewers,
        distinct_fields=rules.distinct_fields,
        required_fields=tuple(rules.required_fields),
        tasks=tasks,
        exported=_exported(state, unit, now),
        others=tuple(unreleased),
        rests_on=(),
    )
    return answer.model_copy(update={"rests_on": _rests_on(state, answer)})


def could_load_then(
    entries: Callable[[], Iterable[bytes]],
    documents: Callable[[str], bytes | None],
    unit: str,
    at: str | None,
    now: Time,
) -> tuple[CouldLoad | BeforeLog, int | None]:
    """The same from a log's own bytes, and the last entry it is as of. They are read twice: to find the moment's entry,
    and to be folded again. `at` is an entry's number or a time, and None or a time to come is now. BadInput where no
    entry, later ones included, enrolled the unit. For a log that was verified."""
    is_number = at is not None and at.isdecimal()
    moment = now if at is None or is_number else min(at, now)
    last = int(at or 0) if is_number else last_at(map(dated, entries()), moment)
    state, begins = State(), moment
    answer: CouldLoad | BeforeLog | None = None
    for index, data in enumerate(entries()):
        entry = parse_entry(data)
        begins = entry.time if index == 0 else begins
        found = {role: documents(digest) for role, digest in entry.documents.items()}
        apply(state, entry, {role: content for role, content in found.items() if content is not None})
        state.keep()
        if index == last:
            answer = could_load(state, unit, state.last_time if is_number else moment)
    check_unit_name(unit, [row.name for row in state.principals.values() if "unit" in row.roles])
    if last is None:
        return BeforeLog(unit=unit, at=moment, log_begins=begins), None
    if answer is None:
        raise NotFound(f"entry {at}: expected one of the log's entries, got none")
    return answer, last


def check_unit_name(name: str, units: Collection[str]) -> None:
    """BadInput unless it is one of all units that were ever enrolled; the nearest is named."""
    if name not in units:
        raise BadInput(unknown_word("unit", name, units, "an enrolled unit"))


def dated(data: bytes) -> tuple[Time, bool]:
    """An entry's time, and whether it resets the clock."""
    entry = parse_entry(data)
    return entry.time, entry.type == ClockReset.type


def last_at(entries: Iterable[tuple[Time, bool]], time: Time) -> int | None:
    """The last entry at this time or before it, of a log's entries as `dated`. Where the clock was reset, that is one
    before the reset only for a time before that of the reset."""
    last, is_open = None, True
    for index, (when, is_reset) in enumerate(entries):
        is_open = (is_open or is_reset) and when <= time
        last = index if is_open else last
    return last


def _task(state: State, release: Release, now: Time) -> TaskAnswer:
    adapter = released(state, release.unit, release.task)
    if adapter is None:
        raise LookupError(f"release {release.unit}/{release.task}: {release.current.adapter} was never sealed")
    # What admission holds against the release, by whatever it rests on, and against the log.
    reasons = (*barred(state, release, adapter, now), *unwitnessed(state, now))
    candidate = _candidate(state, adapter, release.unit, now, reasons)
    slot = _slot(state, release)
    current = release.current
    return TaskAnswer(
        task=release.task,
        could_load=not candidate.reasons,
        candidate=candidate,
        release=Activated(
            entry=current.index,
            order=current.order,
            by=current.signer,
            keyid=current.keyid,
            kind=current.kind,
        ),
        slot=None if slot is None else Loaded(adapter=slot.adapter, admitted=slot.admitted, entry=slot.loaded),
    )


def _slot(state: State, release: Release) -> Slot | None:
    """Of several processes', one in which an adapter is loaded, if there is any."""
    found = [slot for slot in state.slots.values() if (slot.unit, slot.task) == (release.unit, release.task)]
    return max(found, key=lambda slot: (slot.loaded is not None, -slot.admitted), default=None)


def _exported(state: State, unit: str, now: Time) -> tuple[Exported, ...]:
    """Oldest first. One whose order is recorded counts: the ledger does not say whether its folder was fetched."""
    good = [row for row in state.exports.values() if row.unit == unit and now < row.valid_until]
    return tuple(
        Exported(
            task=row.task, adapter=row.adapter, manifest=row.manifest, entry=row.index, valid_until=row.valid_until
        )
        for row in sorted(good, key=lambda row: row.index)
    )


def _candidate(state: State, adapter: Adapter, unit: str, now: Time, reasons: tuple[str, ...]) -> Candidate:
    return Candidate(
        adapter=versioned(adapter.name, adapter.version),
        manifest=adapter.manifest,
        sealed=adapter.index,
        reviews=tuple(
            _signoff(state, review, review_standing(state, adapter, review, now))
            for review in adapter.reviews
            if review.unit == unit
        ),
        reasons=reasons,
    )


def _signoff(state: State, review: ReviewRecord, standing: ReviewStanding) -> Signoff:
    person = state.principals.get(review.reviewer)
    return Signoff(
        entry=review.index,
        order=review.order,
        reviewer=review.reviewer,
        printed_name=None if person is None else person.printed_name,
        keyid=review.keyid,
        field=review.field,
        decision=review.decision,
        valid_until=review.valid_until,
        state=standing.state,
        superseded_by=standing.superseded_by,
        against=standing.against,
    )


def _rests_on(state: State, answer: CouldLoad) -> tuple[int, ...]:
    """Every entry that the answer names, and every one that the rules looked up for its adapters. That no release named
    one of the others is claimed too, and no entry can show it."""
    found: set[int | None] = {answer.enrolled, *(export.entry for export in answer.exported)}
    for candidate in (*(task.candidate for task in answer.tasks), *answer.others):
        adapter = state.adapters.get(candidate.adapter)
        base = None if adapter is None else state.bases.get(adapter.base)
        found |= {candidate.sealed, *(() if adapter is None else (adapter.revoked, adapter.quarantined))}
        found |= set() if base is None else {base.index, base.quarantined, base.revoked}
        dataset = None if adapter is None else state.datasets.get(adapter.dataset)
        found |= set() if dataset is None else {dataset.index, dataset.revoked}
        found |= set() if adapter is None else _decided(state, adapter, answer.unit)
        for review in candidate.reviews:
            found |= {review.entry, *_person(state, review.reviewer, review.keyid)}
    for task in answer.tasks:
        found |= {task.release.entry, *_person(state, task.release.by, task.release.keyid)}
        found |= set() if task.slot is None else {task.slot.admitted, task.slot.entry}
    if state.parameters.witness_quorum:
        found |= {witness.index for witness in state.witnesses.values()}
    return tuple(sorted(index for index in found if index is not None))


def _decided(state: State, adapter: Adapter, unit: str) -> set[int | None]:
    """The entries of what was asked for the unit, of what was found, and of the delegations that it was decided by."""
    found: set[int | None] = set()
    for request in adapter.requests:
        found |= {request.index, request.withdrawn} if request.unit == unit else set()
    for finding in adapter.findings:
        found |= {finding.index, finding.closed}
    for review in adapter.reviews:
        if review.unit == unit and review.on_behalf_of is not None:
            delegated = review.on_behalf_of
            found |= {delegated.index, *_person(state, delegated.principal, delegated.keyid)}
    return found


def _person(state: State, name: str, keyid: str) -> set[int | None]:
    person, key = state.principals.get(name), state.keys.get(keyid)
    return {value for row in (person, key) if row is not None for value in (row.enrolled, row.revoked)}
