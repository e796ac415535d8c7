"""A unit reads its own entries, the approval chains of its adapters, and public governance."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.actions.registry import EVENTS
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.governance.people import PrincipalsEnrolled
from appliance.domain.queries.rows import MODELS
from appliance.domain.queries.unit_reading import APPROVAL_CHAIN, GOVERNANCE, find_unit_reader
from scripts.kit.log_builder import LogBuilder, policy_set, stage


def readable(site: LogBuilder, unit: str) -> list[Entry]:
    reader = find_unit_reader(site.state, unit)
    assert reader is not None
    entries = [parse_entry(data) for data in site.entries]
    found = [entry for entry in entries if reader.may_read(entry)]
    for entry in found:  # the search index finds each of them
        searched = {f"type={entry.type}", f"actor={entry.actor}", *entry.subjects}
        assert all(not searched.isdisjoint(group) for group in reader.keys), entry
    return found


def types(entries: list[Entry]) -> set[str]:
    return {entry.type for entry in entries}


def test_the_lists_name_existing_types_and_no_type_twice() -> None:
    assert set(EVENTS) >= GOVERNANCE | APPROVAL_CHAIN
    assert GOVERNANCE.isdisjoint(APPROVAL_CHAIN)


def test_a_unit_reads_its_requests_and_all_that_made_and_approved_its_adapter() -> None:
    found = readable(stage("serving"), "legal")
    assert types(found) >= {
        "appliance.initialized", "principal.enrolled", "import.requested", "base.imported",
        "dataset.imported", "run.requested", "run.finished", "adapter.sealed", "review.recorded", "release.activated",
        "adapter.admitted", "adapter.loaded", "request.admitted", "request.finished",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["serving", "kept", "decided", "replayed"])
def test_another_unit_reads_governance_only(name: str) -> None:
    found = readable(stage(name), "sales")
    own = [entry for entry in found if entry.actor == "sales" or "principal:sales" in entry.subjects]
    assert types([entry for entry in found if entry not in own]) <= GOVERNANCE
    for entry in found:
        named = {subject for subject in entry.subjects if subject.startswith(("unit:", "adapter:", "run:", "dataset:"))}
        assert not named, entry
        assert "principal:legal" not in entry.subjects


@pytest.mark.parametrize("beside", [{"eve": ("auditor",)}, {"retail": ("unit",)}])
def test_an_enrolment_of_several_is_hidden_from_units_if_it_names_another_unit(
    beside: dict[str, tuple[str, ...]],
) -> None:
    site = stage("staffed")
    order, documents = site.enrolments({"billing": ("unit",), **beside}, "anna")
    site.two(PrincipalsEnrolled(policy=site.in_force), order, documents)
    several = {unit: "principals.enrolled" in types(readable(site, unit)) for unit in ("legal", "billing")}
    assert several == {"legal": False, "billing": "eve" in beside}
    order, documents = site.enrolments({"adam": ("auditor",), "ada": ("operator",)}, "anna")
    site.two(PrincipalsEnrolled(policy=site.in_force), order, documents)
    assert readable(site, "legal")[-1].type == "principals.enrolled", "people alone are public"


def test_decisions_about_the_same_adapter_for_another_unit_are_hidden() -> None:
    site = stage("serving")
    site.review("rita", "privacy", unit="sales")
    reviews = [entry for entry in readable(site, "legal") if entry.type == "review.recorded"]
    assert reviews and all("unit:legal" in entry.subjects for entry in reviews)
    theirs = readable(site, "sales")
    assert [entry.subjects for entry in theirs if entry.type == "review.recorded"] == [
        parse_entry(site.entries[-1]).subjects
    ]
    assert "adapter.sealed" in types(theirs)  # reviewed for it, so its chain is the unit's, too
    assert "request.admitted" not in types(theirs)


def test_runs_and_imports_beside_the_chain_are_hidden() -> None:
    site = stage("serving")
    site.train()
    run = site.request_run()
    found = readable(site, "legal")
    assert not [entry for entry in found if f"run:{run}" in entry.subjects]


def test_an_adapters_row_lacks_decisions_for_other_units() -> None:
    site = stage("serving")
    site.review("rita", "privacy", unit="sales")
    rows = {(kind, key): dict(value) for kind, key, value in site.state.projections() if kind in MODELS}

    def shown(unit: str) -> dict[tuple[str, str], dict[str, Any]]:
        reader = find_unit_reader(site.state, unit)
        assert reader is not None
        found = {place: reader.narrow_row(*place, value) for place, value in rows.items()}
        return {place: value for place, value in found.items() if value is not None}

    legal, sales = shown("legal"), shown("sales")
    assert {one["unit"] for one in legal["adapter", "clauses@1"]["reviews"]} == {"legal"}
    assert {one["unit"] for one in sales["adapter", "clauses@1"]["reviews"]} == {"sales"}
    assert ("release", "legal/labels") in legal
    assert not [place for place in sales if place[0] in ("release", "slot", "application", "export")]
    assert ("principal", "legal") not in sales and ("principal", "rita") in sales
    assert not [value for (kind, _), value in sales.items() if kind == "key" and value["principal"] == "legal"]


def test_people_read_everything_and_units_where_the_policy_says_so() -> None:
    assert find_unit_reader(stage("serving").state, "rita") is None
    assert find_unit_reader(stage("serving").state, "nobody") is None
    assert find_unit_reader(stage("serving", policy_set(units_read="all")).state, "sales") is None


def test_a_unit_reads_suspensions_for_itself_only() -> None:
    site = stage("serving")
    site.review("rita", "privacy", unit="sales")
    ours, theirs = site.suspend().index, site.suspend("raul", unit="sales").index
    lifted = site.resume_release(ours).index
    found = {entry.index: entry.type for entry in readable(site, "legal") if entry.index >= ours}
    assert found == {ours: "release.suspended", lifted: "release.resumed"}
    assert theirs in [entry.index for entry in readable(site, "sales")]
    reader = find_unit_reader(site.state, "legal")
    adapter = site.state.adapters.get("clauses@1")
    assert reader is not None and adapter is not None
    row = reader.narrow_row("adapter", "clauses@1", adapter.model_dump(mode="json"))
    assert row is not None and [one["index"] for one in row["suspensions"]] == [ours]
