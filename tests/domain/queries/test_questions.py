"""Effective access at a moment: the same result as the rules of admission, with its entries."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appliance.domain.actions.apply import apply
from appliance.domain.actions.registry import EVENTS
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time, add_seconds
from appliance.domain.core.state import State
from appliance.domain.queries.effective_access import BeforeLog, UnitAccess, effective_access, effective_access_then
from appliance.domain.queries.periods import dates_between, is_same
from appliance.domain.queries.rows import COUNTED_OF_ADAPTERS, LISTED_OF_ADAPTERS, used_by
from appliance.domain.releases.adapters import AdapterRevoked, RevokeAdapter
from appliance.domain.releases.approval import find_blockers, refuse_invalid_release
from appliance.domain.witnesses import refuse_unwitnessed_log
from appliance.errors import BadInput, NotFound
from appliance.formats.log.checkpoint import witness_vkey_of
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import LogBuilder, policy_set, stage


def ask(site: LogBuilder, unit: str = "legal", seconds: int = 0) -> UnitAccess:
    return effective_access(site.state, unit, add_seconds(site.state.last_time, seconds))


def indexes(site: LogBuilder, *types: str) -> list[int]:
    return [entry.index for entry in map(parse_entry, site.entries) if entry.type in types]


def test_nothing_is_released_and_what_was_reviewed_is_named_with_the_reason() -> None:
    answer = ask(stage("approved"))
    assert answer.served_models == ()
    (other,) = answer.others
    assert other.adapter == "clauses@1"
    assert [one.code for one in other.reasons] == ["not-released"]


def test_a_released_adapter_could_be_loaded_by_these_sign_offs() -> None:
    site = stage("serving")
    (served_model,) = (answer := ask(site)).served_models
    assert served_model.effective_access and served_model.candidate.reasons == () and answer.others == ()
    records = [review.record for review in served_model.candidate.reviews]
    assert [(r.reviewer, r.review_function, r.decision) for r in records] == [
        ("rita", "privacy", "approve"),
        ("raul", "model-risk", "approve"),
    ]
    assert [review.status.refusal for review in served_model.candidate.reviews] == [None, None]
    assert [record.index for record in records] == indexes(site, "review.recorded")
    (released,), (loaded,) = indexes(site, "release.activated"), indexes(site, "adapter.loaded")
    assert (served_model.release.index, served_model.release.signer) == (released, "otto")
    assert served_model.slot is not None and (served_model.slot.adapter, served_model.slot.loaded) == (
        "clauses@1",
        loaded,
    )
    named = {"adapter.sealed", "review.recorded", "release.activated", "adapter.admitted", "adapter.loaded"}
    assert set(indexes(site, *named, "base.imported")) <= set(answer.rests_on)
    enrolled = {
        person.enrolled for person in site.state.principals.values() if person.name in ("legal", "rita", "raul")
    }
    assert enrolled <= set(answer.rests_on)


def revoke_reviewer(site: LogBuilder) -> None:
    site.revoke("raul")


def revoke_adapter(site: LogBuilder) -> None:
    order = site.order(RevokeAdapter, "rita", **site.on_adapter())
    site.ordered(AdapterRevoked(policy=site.in_force), order)


def suspend(site: LogBuilder) -> None:
    site.suspend(served_model="labels")


def reject(site: LogBuilder) -> None:
    site.review("rita", "privacy", decision="reject")


def adopt(site: LogBuilder) -> None:
    site.adopt(policy_set(reviewers=3))


def revoke_owner(site: LogBuilder) -> None:
    site.revoke("otto")


def ask_for_witnesses(site: LogBuilder) -> None:
    vkey = witness_vkey_of("witness.example/a", generate_ed25519())
    site.adopt(policy_set(witnesses=(vkey,), witness_quorum=1))


@pytest.mark.parametrize(
    ("act", "reason", "against"),
    [
        (
            revoke_reviewer,
            "Adapter clauses@1 needs 2 valid approvals for legal and has 1.",
            "raul, who decided in entry 27, is no longer a reviewer of model-risk.",
        ),
        (revoke_adapter, "Adapter clauses@1 was revoked by entry 34. A revocation cannot be undone.", None),
        (suspend, "rita (reviewer:privacy) suspended adapter clauses@1 for legal by entry 34.", None),
        (
            reject,
            "rita rejected this adapter by entry 34.",
            "The decision of entry 26 was replaced by rita's decision of entry 34.",
        ),
        (adopt, "Adapter clauses@1 needs 3 valid approvals for legal and has 2.", None),
        (revoke_owner, "otto, who signed the release of entry 28, is no longer a release owner of", None),
        (ask_for_witnesses, "Policy requires 1 witnesses that have cosigned the log since", None),
    ],
)
def test_what_stands_against_it_is_said_and_is_what_admission_says(
    act: Callable[[LogBuilder], None], reason: str, against: str | None
) -> None:
    site = stage("serving")
    act(site)
    (served_model,) = (answer := ask(site)).served_models
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None and not served_model.effective_access
    release, now = site.state.releases.get("legal/labels"), site.state.last_time
    assert release is not None
    told = [*find_blockers(site.state, adapter, "legal", now, "labels"), *refuse_invalid_release(site.state, release)]
    assert list(served_model.candidate.reasons) == [*told, *refuse_unwitnessed_log(site.state, now)]
    assert any(reason in str(told) for told in served_model.candidate.reasons)
    refusals = [review.status.refusal for review in served_model.candidate.reviews]
    lapsed = [refusal for refusal in refusals if refusal is not None]
    assert [against in str(told) for told in lapsed] == ([] if against is None else [True])
    if act in (revoke_reviewer, revoke_adapter, revoke_owner, suspend):
        assert site.state.size - 1 in answer.rests_on, "the entry that took it away is named"


def export_for_a_minute_and_a_day(site: LogBuilder) -> dict[int, Time]:
    """By its entry, until when each is good: a second one for an hour lies between, and the first has ended by then."""
    ends = {}
    for seconds, ago in ((60, 0), (3_600, 30), (7_200, 60)):
        site.now = add_seconds(site.now, ago)
        until = add_seconds(site.now, seconds)
        ends[site.export(valid_until=until).index] = until
    return ends


def activate_another(site: LogBuilder) -> None:
    site.seal(site.train(), version=2)
    site.review("rita", "privacy", version=2)
    site.review("raul", "model-risk", version=2)
    site.activate(version=2)


@pytest.mark.parametrize(
    "act", [revoke_adapter, suspend, revoke_reviewer, revoke_owner, reject, adopt, activate_another]
)
def test_what_was_exported_could_be_loaded_until_its_date_whatever_was_taken_away_since(
    act: Callable[[LogBuilder], object],
) -> None:
    site = stage("serving")
    exported = site.export()
    act(site)
    answer, end = ask(site), add_seconds(exported.time, 3_600)
    assert [
        served_model.effective_access
        for served_model in answer.served_models
        if served_model.candidate.adapter == "clauses@1"
    ] in ([False], [])
    (one,) = answer.exported
    assert (one.served_model, one.adapter, one.index, one.valid_until) == ("labels", "clauses@1", exported.index, end)
    assert one.manifest == site.on_adapter()["manifest"] and exported.index in answer.rests_on
    last = effective_access(site.state, "legal", add_seconds(end, -1))
    assert last.exported == (one,)
    ended = effective_access(site.state, "legal", end)
    assert ended.exported == () and exported.index not in ended.rests_on
    assert ask(site, "sales").exported == ()


def test_a_unit_that_is_gone_has_its_folder_still() -> None:
    site = stage("serving")
    exported = site.export()
    site.revoke("legal")
    answer = ask(site)
    assert (answer.enrolled, [one.index for one in answer.exported]) == (None, [exported.index])


def test_a_sign_off_counts_until_its_last_day() -> None:
    site = stage("serving")
    (review, _) = ask(site).served_models[0].candidate.reviews
    end = review.record.valid_until
    for now, is_valid in ((add_seconds(end, -1), True), (end, False)):
        (served_model,) = effective_access(site.state, "legal", now).served_models
        assert served_model.effective_access is is_valid
        assert [r.status.refusal is None for r in served_model.candidate.reviews] == [is_valid, True], (
            "the other ends a second later"
        )


def test_an_answer_changes_at_no_other_moment_than_at_an_entry_or_a_date_of_the_state() -> None:
    """Whatever date ends an approval or an exported folder, the millisecond before and after it differ, and it is one
    of the moments at which a question about a span is answered again."""
    site = stage("serving")
    site.export()
    state, start = site.state, site.state.last_time
    values = [row.model_dump_json() for table in (state.adapters, state.exports, state.keys) for row in table.values()]
    values.append(state.parameters.model_dump_json())
    end = add_seconds(start, 400 * 86_400)
    dates = dates_between(values, start, end)
    answers = [effective_access(state, "legal", moment) for moment in (start, *dates)]
    changes = [now for now, one, two in zip(dates, answers[:-1], answers[1:], strict=True) if not is_same(one, two)]
    (folder,), (served_model,) = state.exports.values(), ask(site).served_models
    ends = {folder.valid_until, *(review.record.valid_until for review in served_model.candidate.reviews)}
    assert {now for now in changes} == {moment for moment in ends if moment is not None and moment < end}
    assert len(changes) >= 2


def test_a_date_after_a_length_of_the_policy_is_a_moment_too() -> None:
    values = ['{"time":"2026-11-24T10:00:00.000Z"}', '{"witness_lifetime_s":3600}']
    assert dates_between(values, "2026-11-24T10:30:00.000Z", "2026-11-24T12:00:00.000Z") == [
        "2026-11-24T11:00:00.000Z",
        "2026-11-24T11:00:00.001Z",
    ]


def test_every_type_of_entry_about_an_adapter_is_told_or_counted() -> None:
    """Else it would be missing from an adapter's story, and counted as half a request."""
    served, makes = set(LISTED_OF_ADAPTERS) | set(COUNTED_OF_ADAPTERS), {"admission.refused", "adapter.quarantined"}
    named = {kind for kind, model in EVENTS.items() if "adapter" in model.model_fields}
    assert makes < named <= served
    site = stage("serving")
    site.export()
    revoke_adapter(site)
    filed = {entry.type for entry in map(parse_entry, site.entries) if "adapter:clauses@1" in entry.subjects}
    decided = stage("decided")
    filed |= {entry.type for entry in map(parse_entry, decided.entries) if "adapter:clauses@1" in entry.subjects}
    assert (
        filed <= served
        and {
            "finding.closed",
            "try.finished",
            "review.recorded",
            "adapter.revoked",
            "release.activated",
            "adapter.exported",
        }
        <= filed
    )


def test_another_unit_could_load_nothing_and_an_unknown_one_is_said_to_be_none() -> None:
    site = stage("serving")
    assert (ask(site, "sales").served_models, ask(site, "sales").others) == ((), ())
    assert ask(site, "sales").enrolled is not None and ask(site, "nobody").enrolled is None


@pytest.mark.thorough
def test_folding_a_log_up_to_a_moment_gives_what_stood_then() -> None:
    site = stage("serving")
    exported = export_for_a_minute_and_a_day(site)
    revoke_adapter(site)
    state, now = State(), add_seconds(site.state.last_time, 3_600)
    for index, data in enumerate(site.entries):
        entry = parse_entry(data)
        apply(state, entry, {role: site.documents[digest] for role, digest in entry.documents.items()})
        for at in (str(index), entry.time):
            answer, last = effective_access_then(lambda: site.entries, site.documents.get, "legal", at, now)
            assert (answer, last) == (effective_access(state, "legal", entry.time), index)
            known = [row.index for row in answer.exported]
            assert known == [i for i, until in exported.items() if i <= index and entry.time < until]
    assert effective_access_then(lambda: site.entries, site.documents.get, "legal", None, now)[0] == ask(
        site, seconds=3_600
    )
    with pytest.raises(NotFound):
        effective_access_then(lambda: site.entries, site.documents.get, "legal", str(len(site.entries)), now)


def test_before_the_first_entry_the_answer_says_when_the_log_begins() -> None:
    site, at = stage("serving"), "2020-01-01T00:00:00.000Z"
    first = parse_entry(site.entries[0]).time
    answer = effective_access_then(lambda: site.entries, site.documents.get, "legal", at, site.now)
    assert answer == (BeforeLog(unit="legal", at=at, log_begins=first), None)


@pytest.mark.parametrize("at", [None, "0", "2020-01-01T00:00:00.000Z"])
def test_a_unit_that_no_entry_enrolled_is_an_error_that_names_the_nearest(at: str | None) -> None:
    site = stage("serving")
    with pytest.raises(BadInput, match=r"unit: expected one of legal, .*got 'lgal'; did you mean legal"):
        effective_access_then(lambda: site.entries, site.documents.get, "lgal", at, site.now)


def test_a_dataset_is_used_by_the_runs_that_named_it_and_by_what_came_of_them() -> None:
    site = stage("serving")
    run = site.request_run()
    (uses,) = used_by(site.state, "clauses")
    sealed, waiting = uses.uses
    assert (uses.dataset, uses.rows) == ("clauses@1", 1)
    assert (sealed.adapter, sealed.released_to, sealed.released_now) == (
        "clauses@1",
        ("legal/labels",),
        ("legal/labels",),
    )
    assert (waiting.run, waiting.status, waiting.adapter, waiting.released_to) == (run, "queued", None, ())
    assert used_by(site.state, "clauses@1") == (uses,) and used_by(site.state, "clauses@2") == ()


def test_what_an_emergency_released_could_be_loaded_and_everything_decided_is_named() -> None:
    site = stage("decided")
    (served_model,) = (answer := ask(site)).served_models
    assert (served_model.effective_access, served_model.release.kind, served_model.candidate.reasons) == (
        True,
        "break-glass",
        (),
    )
    types = {parse_entry(site.entries[index]).type for index in answer.rests_on}
    assert {
        *("release.requested", "request.withdrawn", "finding.added", "finding.closed", "review.delegated"),
        "release.emergency",
    } <= types
