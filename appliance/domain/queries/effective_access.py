"""Effective access: what a unit could load at a moment and by whose decisions, computed with the rules of admission.

The state is replayed from entries or rebuilt from rows as of an earlier entry. `now` is the moment of the query.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from appliance.domain.actions.apply import apply
from appliance.domain.actions.registry import find_rule_set
from appliance.domain.core.decisions import ReviewRecord
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time, Value, versioned
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import Activation, Export, Release, Slot
from appliance.domain.core.roles import is_unit
from appliance.domain.core.state import State
from appliance.domain.core.words import unknown_word
from appliance.domain.governance.log_control import ClockReset
from appliance.domain.releases.approval import (
    ReviewStatus,
    find_blockers,
    find_release_blockers,
    find_released_adapter,
    find_review_status,
)
from appliance.domain.releases.requests import RequiredReviews, compute_requirement
from appliance.domain.witnesses import refuse_unwitnessed_log
from appliance.errors import BadInput, NotFound, Refusal, RefusalCode
from appliance.formats.log.export import read_removed

ACCESS_KINDS = (
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
"""Kinds of rows that decide what may be loaded."""


OF_UNITS = ("release", "export", "slot")
"""Kinds of rows that belong to one unit, whose name is the beginning of their keys (`release_key`, `slot_key`)."""


class Signoff(Value):
    """A recorded decision on an adapter for the unit, its reviewer's printed name, and its state."""

    record: ReviewRecord
    printed_name: str | None
    status: ReviewStatus


NOT_RELEASED = RefusalCode(
    "not-released",
    "state",
    "No release names adapter {id} for this unit.",
    "The release owner must activate it.",
)


class AccessCandidate(Value):
    """An adapter, every decision on it for the unit, and all refusal reasons."""

    adapter: str
    manifest: str
    sealed: int
    reviews: tuple[Signoff, ...]
    reasons: tuple[Refusal, ...]


class ServedModelAnswer(Value):
    """One served model of a unit: its released adapter, whether it could be loaded, its release, and its slot.

    The slot is None if the adapter was not admitted.
    """

    served_model: str
    effective_access: bool
    candidate: AccessCandidate
    release: Activation
    slot: Slot | None


class UnitAccess(Value):
    """The effective access of a unit at a moment.

    `served_models`: the adapters that the appliance could load for the unit. `exported`: those that the unit could load
    without the appliance, whatever was revoked. `rests_on`: indexes of the entries that `served_models` and `exported`
    rest on.
    """

    unit: str
    enrolled: int | None
    at: Time
    policy: str
    required: RequiredReviews
    served_models: tuple[ServedModelAnswer, ...]
    exported: tuple[Export, ...]
    others: tuple[AccessCandidate, ...]
    rests_on: tuple[int, ...]


class BeforeLog(Value):
    """The result for a moment before the log's first entry: no access. `log_begins`: time of that entry."""

    unit: str
    at: Time
    log_begins: Time


def list_reviewed_adapters(state: State, unit: str, index: int) -> list[str]:
    """Return the adapters that were reviewed for the unit up to this entry.

    The current state suffices, because reviews are never removed.
    """
    return [
        versioned(adapter.name, adapter.version)
        for adapter in state.adapters.values()
        if adapter.reviews and any(review.unit == unit and review.index <= index for review in adapter.reviews)
    ]


def effective_access(state: State, unit: str, now: Time, *, others: bool = True) -> UnitAccess:
    """Return the effective access of a unit.

    It lists for each served model the released adapter and whether it was admissible, then the exported folders that
    had not expired. With `others` it also lists adapters that no release named, if they were reviewed for the unit or
    were active for it before.

    Raises:
        BadInput: the rules version of the log is later than this build supports.
    """
    find_rule_set(state)
    releases = [release for release in state.releases.values() if release.unit == unit]
    served_models = tuple(
        _describe_served_model(state, release, now)
        for release in sorted(releases, key=lambda release: release.served_model)
    )
    released_names = {model.candidate.adapter for model in served_models}
    previously_released = {activation.adapter for release in releases for activation in release.history}
    unreleased = []
    for key, adapter in state.adapters.items() if others else ():
        if key not in released_names and (
            key in previously_released or any(review.unit == unit for review in adapter.reviews)
        ):
            reasons = (*find_blockers(state, adapter, unit, now), NOT_RELEASED(f"adapter:{key}"))
            unreleased.append(_describe_candidate(state, adapter, unit, now, reasons))
    principal = state.principals.get(unit)
    answer = UnitAccess(
        unit=unit,
        enrolled=principal.enrolled if principal is not None and is_unit(state, unit) else None,
        at=now,
        policy=state.site.policy,
        required=compute_requirement(state.parameters, None),
        served_models=served_models,
        exported=_list_exported(state, unit, now),
        others=tuple(unreleased),
        rests_on=(),
    )
    return answer.model_copy(update={"rests_on": _list_entries(state, answer)})


def effective_access_then(
    entries: Callable[[], Iterable[bytes]],
    documents: Callable[[str], bytes | None],
    unit: str,
    at: str | None,
    now: Time,
) -> tuple[UnitAccess | BeforeLog, int | None]:
    """Return the effective access at a moment, and the index of the last entry up to it, from a verified log's bytes.

    The entries are read twice: to find the moment's entry, and for the state replay. `at` is the index of an entry or
    a time. None and future times mean now.

    Raises:
        BadInput: no entry of the log, later ones included, enrolled the unit.
        NotFound: there is no entry with this index.
    """
    is_number = at is not None and at.isdecimal()
    moment = now if at is None or is_number else min(at, now)
    last = int(at or 0) if is_number else last_at(list_times(entries()), moment)
    state, begins = State(), moment
    answer: UnitAccess | BeforeLog | None = None
    for index, data in enumerate(entries()):
        replay(state, data, documents)
        begins = state.last_time if index == 0 else begins
        state.keep()
        if index == last:
            answer = effective_access(state, unit, state.last_time if is_number else moment)
    check_unit_name(unit, [row.name for row in state.principals.values() if "unit" in row.roles])
    if last is None:
        return BeforeLog(unit=unit, at=moment, log_begins=begins), None
    if answer is None:
        raise NotFound(f"entry {at}: expected one of the log's entries, got none")
    return answer, last


def check_unit_name(name: str, units: Collection[str]) -> None:
    """Check that a unit of this name was ever enrolled.

    Raises:
        BadInput: it was not. The error names the most similar unit.
    """
    if name not in units:
        raise BadInput(unknown_word("unit", name, units, "an enrolled unit"))


def replay(state: State, data: bytes, documents: Callable[[str], bytes | None]) -> None:
    """Apply the next entry of a verified log, or skip one that an archive removed."""
    if (leaf := read_removed(data)) is not None:
        state.skip_removed(leaf)
        return
    entry = parse_entry(data)
    contents = {role: documents(digest) for role, digest in entry.documents.items()}
    apply(state, entry, {role: content for role, content in contents.items() if content is not None})


def list_times(entries: Iterable[bytes]) -> Iterator[tuple[Time, bool]]:
    """Yield each entry's time, and True if the entry resets the clock. A removed entry has the time of the one before
    it."""
    time = ""
    for data in entries:
        is_reset = False
        if read_removed(data) is None:
            entry = parse_entry(data)
            time, is_reset = entry.time, entry.type == ClockReset.type
        yield time, is_reset


def last_at(entries: Iterable[tuple[Time, bool]], time: Time) -> int | None:
    """Return the index of the last entry at or before this time, from a log's entries as `list_times` yields them.

    If the clock was reset, entries from before the reset are the result only for times before that of the reset.
    """
    last, is_open = None, True
    for index, (when, is_reset) in enumerate(entries):
        is_open = (is_open or is_reset) and when <= time
        last = index if is_open else last
    return last


def _describe_served_model(state: State, release: Release, now: Time) -> ServedModelAnswer:
    adapter = find_released_adapter(state, release.unit, release.served_model)
    if adapter is None:
        raise LookupError(f"release {release.unit}/{release.served_model}: {release.current.adapter} was never sealed")
    # Every refusal reason of admission, also those because of missing cosignatures.
    reasons = (*find_release_blockers(state, release, adapter, now), *refuse_unwitnessed_log(state, now))
    candidate = _describe_candidate(state, adapter, release.unit, now, reasons)
    return ServedModelAnswer(
        served_model=release.served_model,
        effective_access=not candidate.reasons,
        candidate=candidate,
        release=release.current,
        slot=_find_slot(state, release),
    )


def _find_slot(state: State, release: Release) -> Slot | None:
    """Return the served model's slot. Of several processes' slots, one with a loaded adapter precedes."""
    slots = [
        slot for slot in state.slots.values() if (slot.unit, slot.served_model) == (release.unit, release.served_model)
    ]
    return max(slots, key=lambda slot: (slot.loaded is not None, -slot.admitted), default=None)


def _list_exported(state: State, unit: str, now: Time) -> tuple[Export, ...]:
    """Return the exports that had not expired, the oldest first.

    Every recorded export is listed, because the ledger does not record whether the folder was fetched.
    """
    valid = [row for row in state.exports.values() if row.unit == unit and now < row.valid_until]
    return tuple(sorted(valid, key=lambda row: row.index))


def _describe_candidate(
    state: State, adapter: Adapter, unit: str, now: Time, reasons: tuple[Refusal, ...]
) -> AccessCandidate:
    return AccessCandidate(
        adapter=versioned(adapter.name, adapter.version),
        manifest=adapter.manifest,
        sealed=adapter.index,
        reviews=tuple(
            Signoff(
                record=review,
                printed_name=None if (person := state.principals.get(review.reviewer)) is None else person.printed_name,
                status=find_review_status(state, adapter, review, now),
            )
            for review in adapter.reviews
            if review.unit == unit
        ),
        reasons=reasons,
    )


def _list_entries(state: State, answer: UnitAccess) -> tuple[int, ...]:
    """Return the indexes of the entries that the result names, and of those that the rules used for its adapters.

    The result also states that no release named the adapters in `others`, which no entry can show.
    """
    indexes: set[int | None] = {answer.enrolled, *(export.index for export in answer.exported)}
    for candidate in (*(model.candidate for model in answer.served_models), *answer.others):
        adapter = state.adapters.get(candidate.adapter)
        base = None if adapter is None else state.bases.get(adapter.base)
        indexes |= {candidate.sealed, *(() if adapter is None else (adapter.revoked, adapter.quarantined))}
        indexes |= set() if base is None else {base.index, base.quarantined, base.revoked}
        dataset = None if adapter is None else state.datasets.get(adapter.dataset)
        indexes |= set() if dataset is None else {dataset.index, dataset.revoked}
        indexes |= set() if adapter is None else _list_decision_entries(state, adapter, answer.unit)
        for one in candidate.reviews:
            indexes |= {one.record.index, *_list_person_entries(state, one.record.reviewer, one.record.keyid)}
    for model in answer.served_models:
        indexes |= {model.release.index, *_list_person_entries(state, model.release.signer, model.release.keyid)}
        indexes |= set() if model.slot is None else {model.slot.admitted, model.slot.loaded}
    if state.parameters.witness_quorum:
        indexes |= {witness.index for witness in state.witnesses.values()}
    return tuple(sorted(index for index in indexes if index is not None))


def _list_decision_entries(state: State, adapter: Adapter, unit: str) -> set[int | None]:
    """Return the entries of the unit's requests and suspensions, of the adapter's findings, and of the delegations of
    its reviews.
    """
    indexes: set[int | None] = set()
    for request in adapter.requests:
        indexes |= {request.index, request.withdrawn} if request.unit == unit else set()
    for suspension in adapter.suspensions:
        indexes |= {suspension.index, suspension.lifted} if suspension.unit == unit else set()
    for finding in adapter.findings:
        indexes |= {finding.index, finding.closed}
    for review in adapter.reviews:
        if review.unit == unit and review.on_behalf_of is not None:
            delegated = review.on_behalf_of
            indexes |= {delegated.index, *_list_person_entries(state, delegated.principal, delegated.keyid)}
    return indexes


def _list_person_entries(state: State, name: str, keyid: str) -> set[int | None]:
    person, key = state.principals.get(name), state.keys.get(keyid)
    return {value for row in (person, key) if row is not None for value in (row.enrolled, row.revoked)}
