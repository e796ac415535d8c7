"""The review page, computed by the reviewer's client and by the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.client.evidence import gather
from appliance.domain.core.entry import EntryDraft
from appliance.domain.core.order import Order
from appliance.domain.data.kinds import DatasetDescription
from appliance.domain.evaluation.gates import Gate, GatesFile
from appliance.domain.governance.countersignature import OrderRefused
from appliance.domain.queries.review.values import Change, ReviewPage
from appliance.domain.releases.activations import Activate
from appliance.errors import Tampered, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.signatures.dsse import encode_envelope
from tests.client.conftest import Office
from tests.kit import founded
from tests.kit.founded import FILES

GATES = GatesFile(
    gates=(
        Gate(
            name="better",
            kind="target",
            set="held-out",
            metric="accuracy",
            comparison="base",
            claim="better",
            test="mcnemar",
            least_items=20,
            slices=("length",),
        ),
    ),
    name="classification",
    seed=1,
    version=1,
)


def _page(office: Office, name: str = "clauses@1") -> ReviewPage:
    return gather(office.as_("rita"), office.anchor, name, lambda count: None).page


def _second_version(office: Office, **files: bytes) -> None:
    site = office.site
    site.seal(site.train({"epochs": 2}), 2, files={**FILES, "recipe.json": b'{"rank":16}', **files})


def test_client_and_service_compute_the_same_page(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    _second_version(office)
    office.site.request_release(version=2)
    for name in ("clauses@1", "clauses@2"):
        told = office.as_("rita").get(f"/v1/adapters/{name}/page", ReviewPage)
        assert told == _page(office, name)


def test_what_changed_since_the_version_that_answers_the_unit_is_said(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    _second_version(office)
    (changes,) = _page(office, "clauses@2").changes
    assert (changes.units, changes.since) == (("legal",), "clauses@1")
    assert changes.recipe == (Change(what="rank", before="8", now="16"),)
    assert [name for name, differs in changes.topics if differs] == ["recipe"]


def test_a_shift_of_the_labels_of_the_training_rows_is_said_with_both_counts(
    open_office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    """29 rows of B are labelled A: this is said. Twice as many rows in the same shares are not."""
    office = open_office("released")
    for version, counts, expected in ((2, (129, 71), ["A", "B"]), (3, (200, 200), [])):
        monkeypatch.setattr(founded, "ABOUT", DatasetDescription("classification", ("A", "B"), counts))
        office.site.import_dataset(version)
        office.site.seal(office.site.train({"dataset": f"clauses@{version}"}), version)
        office.site.request_release(version=version)
        page = _page(office, f"clauses@{version}")
        assert page.training_data.counted_labels == (f"A {counts[0]}", f"B {counts[1]}")
        found = {one.what: (one.before, one.now) for one in page.changes[0].data if "training rows" in one.what}
        assert found == {
            f"training rows of label {label}, 100 expected": ("100", str(count))
            for label, count in zip("AB", counts, strict=True)
            if label in expected
        }


@pytest.mark.thorough
def test_gates_that_the_order_dropped_are_among_the_changes(open_office: Callable[..., Office]) -> None:
    """Everything that the order of the run binds is compared on both sides."""
    office = open_office("released")
    site = office.site
    more = GATES.model_copy(update={"gates": (*GATES.gates, GATES.gates[0].model_copy(update={"name": "not-worse"}))})
    site.seal(site.train(gates=more), 2)
    for signer, field in (("rita", "privacy"), ("raul", "model-risk")):
        site.review(signer, field, 2)
    site.activate(2)
    site.seal(site.train(gates=GATES), 3)
    site.request_release(version=3)
    (changes,) = _page(office, "clauses@3").changes
    assert changes.since == "clauses@2"
    assert [(one.what, one.now) for one in changes.evaluation if one.what.startswith("gate not")] == [
        ("gate not-worse", None)
    ]
    assert office.as_("rita").get("/v1/adapters/clauses@3/page", ReviewPage) == _page(office, "clauses@3")


def test_the_warnings_of_the_base_s_import_are_among_the_page_s(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    _second_version(office, **{"base.json": b'{"warnings":["all zero: up_proj"]}'})
    assert _page(office, "clauses@2").warnings[-1:] == ("base smollm2: all zero: up_proj",)


def test_the_version_that_answers_is_compared_with_no_other(open_office: Callable[..., Office]) -> None:
    page = _page(open_office("released"))
    assert page.changes == () and page.status.active_for == ("legal/labels",)


def test_a_release_that_the_log_does_not_hold_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    _second_version(office)

    def bend(answer: Any) -> Any:
        (active,) = answer["active_versions"]
        return {**answer, "active_versions": [{**active, "entry": active["entry"] - 1}]}

    office.service.bend["/v1/adapters/clauses@2/review"] = bend
    with pytest.raises(Tampered, match="release of clauses@1: expected it as entry"):
        _page(office, "clauses@2")


def test_a_file_of_the_released_version_that_changed_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    _second_version(office)
    office.service.spoil("clauses@1", "recipe.json", b'{"rank":9}')
    with pytest.raises(Tampered, match=r"adapter clauses@1, recipe\.json: expected sha256"):
        _page(office, "clauses@2")


def test_gates_and_the_parts_that_are_worse_come_with_their_sentence(open_office: Callable[..., Office]) -> None:
    office = open_office("trained")
    site = office.site
    site.seal(site.train(gates=GATES), 1)
    found = _page(office).evaluation
    assert found is not None
    assert found.verdict.passed and found.verdict.why.startswith("Passed 1 of 1 gate.")
    assert (found.runs_before, found.correction_factor) == (0, 2)
    subgroups = [one.result for one in found.subgroups]
    assert [(one.by, one.value, one.worse) for one in subgroups] == [("length", "short", False)]


def test_runs_that_were_evaluated_on_the_rows_before_are_named(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    _second_version(office)
    assert [(one.run, one.adapter, one.passed) for one in _page(office, "clauses@2").evaluated_before] == [
        ("r-000001", "clauses@1", None)
    ]
    assert _page(office).evaluated_before == ()


def test_every_digest_of_the_page_names_an_entry(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    page = _page(office)
    named = {one.digest: one.entry for one in page.entries}
    signed = page.signed_content
    digests = [signed.manifest, signed.order, page.base.digest, page.training_data.dataset_digest]
    digests += [*(file.digest for file in signed.files), *signed.materials.values()]
    assert all(digest in named for digest in digests)
    assert named[signed.manifest] == signed.sealed
    assert named[page.training_data.dataset_digest] == page.training_data.dataset_entry


def test_licences_are_those_of_the_signed_imports(open_office: Callable[..., Office]) -> None:
    page = _page(open_office("sealed"))
    assert (page.base.licence, page.training_data.licence) == ("Apache-2.0", "CC-BY-4.0")


def test_the_service_reports_no_value_that_a_person_signed(open_office: Callable[..., Office]) -> None:
    """A field that the service adds to a request, finding or decision is refused: the order's value counts."""
    office = open_office("released")
    _second_version(office)
    office.site.request_release(version=2)
    office.site.find(version=2)
    office.site.review("rita", "privacy", 2, decision="reject")
    for kind, more in (
        ("release_requests", {"unit": "sales"}),
        ("findings", {"blocks": False}),
        ("findings", {"accepts_verdict": True}),
        ("decisions", {"decision": "approve"}),
    ):
        _say(office, lambda told, kind=kind, more=more: told[kind][0][1].update(more))
        with pytest.raises(Unavailable, match="expected a response of this build, got"):
            _page(office, "clauses@2")


def test_an_items_file_that_is_none_is_refused_by_name(open_office: Callable[..., Office]) -> None:
    office = open_office("trained")
    site = office.site
    site.seal("r-000001", 1, files={**FILES, "metrics.json": encode_canonical([1])})
    with pytest.raises(Exception, match=r"adapter clauses@1, metrics\.json: expected a JSON object, got list"):
        _page(office)


def _refused(office: Office, order: Order) -> int:
    """Append an authentic order that was refused, and return its entry. It had no effect."""
    site, signed = office.site, office.site.sign(order)
    draft = EntryDraft(
        type=OrderRefused.type,
        actor=order.signer,
        source="unix",
        subjects=(f"order:{signed.pae_digest}",),
        outcome="denied",
        documents={"order": encode_envelope(signed)},
        body=OrderRefused(order=signed.pae_digest, action=order.action, code="denied", refusals=()),
        disclosures=tuple(one for one in site.disclosures if one.commitment in order.commitments().values()),
    )
    return site.ledger.append(draft).entry.index


def _say(office: Office, change: Callable[[Any], object]) -> None:
    """Make the service return other rows."""

    def bend(answer: Any) -> Any:
        change(answer)
        return answer

    office.service.bend["/v1/adapters/clauses@2/review"] = bend


@pytest.mark.thorough
def test_an_order_that_was_refused_is_shown_as_no_request_finding_decision_or_release(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("released")
    _second_version(office)
    site = office.site
    site.request_release(version=2)
    site.find(version=2)
    site.review("rita", "privacy", 2)
    assert len(_page(office, "clauses@2").decisions) == 1
    orders = (
        site.finding_order(version=2),
        site.request_order(version=2),
        site.review_order("rita", "privacy", 2),
        site.release_order(Activate, version=1),
    )
    finding, request, decision, release = (_refused(office, order) for order in orders)
    lies: dict[int, Callable[[Any], object]] = {
        finding: lambda told: _point(told["findings"], finding),
        request: lambda told: _point(told["release_requests"], request),
        decision: lambda told: _point(told["decisions"], decision),
        release: lambda told: told["active_versions"][0].update(entry=release),
    }
    for index, lie in lies.items():
        _say(office, lie)
        with pytest.raises(Tampered, match=rf"entry {index}: expected what an order .* becomes, got order\.refused"):
            _page(office, "clauses@2")


def _point(rows: Any, index: int) -> None:
    """Make the first row name another entry."""
    rows[0][0] = index


def test_a_request_finding_or_decision_about_another_adapter_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    _second_version(office)
    site = office.site
    site.request_release(version=2)
    site.find(version=2)
    site.review("rita", "privacy", 2)
    first = site.state.adapters.get("clauses@1")
    assert first is not None
    other = {
        "release_requests": site.request_release(version=1).index,
        "findings": site.find(version=1).index,
        "decisions": first.reviews[0].index,
    }
    for kind, index in other.items():
        _say(office, lambda told, kind=kind, index=index: _point(told[kind], index))
        with pytest.raises(Tampered, match=rf"of entry {index}: expected one on clauses@2"):
            _page(office, "clauses@2")
