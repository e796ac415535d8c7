"""The review page: what it says of an adapter, computed by the reviewer's client and by the service."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from appliance.client.releases.evidence import gather
from appliance.domain.core.entry import Draft
from appliance.domain.core.order import Order
from appliance.domain.evaluation.gates import Gate, GateSet
from appliance.domain.governance.endorsement import OrderRefused
from appliance.domain.releases.activations import Activate
from appliance.domain.releases.page.value import Change, ReviewPage
from appliance.errors import Tampered
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.signatures.dsse import encode_envelope
from tests.client.conftest import Office
from tests.kit.founded import FILES

GATES = GateSet(
    gates=(
        Gate(
            name="better",
            leg="task",
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
        told = office.as_("rita").get(f"/v1/adapters/{name}/page")
        assert told == _page(office, name).model_dump(mode="json")


def test_what_changed_since_the_version_that_answers_the_unit_is_said(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    _second_version(office)
    (changes,) = _page(office, "clauses@2").changes
    assert (changes.units, changes.since) == (("legal",), "clauses@1")
    assert changes.recipe == (Change(what="rank", before="8", now="16"),)
    assert (changes.data, changes.base, changes.teaching, changes.code) == ((), (), (), ())


def test_the_version_that_answers_is_compared_with_no_other(open_office: Callable[..., Office]) -> None:
    page = _page(open_office("released"))
    assert page.changes == () and page.answers == ("legal/labels",)


def test_a_release_that_the_log_does_not_hold_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    _second_version(office)

    def bend(answer: Any) -> Any:
        (released,) = answer["released"]
        return {**answer, "released": [{**released, "entry": released["entry"] - 1}]}

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
    judged = _page(office).judged
    assert judged is not None
    assert judged.passed and judged.why.startswith("Passed: accuracy 0.9000, base 0.4000: better")
    assert (judged.judged_before, judged.times) == (0, 2)
    assert [(part.by, part.value, part.worse) for part in judged.parts] == [("length", "short", False)]


def test_runs_that_were_judged_on_the_rows_before_are_named(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    _second_version(office)
    assert [(one.run, one.adapter, one.passed) for one in _page(office, "clauses@2").judged_before] == [
        ("r-000001", "clauses@1", None)
    ]
    assert _page(office).judged_before == ()


def test_every_digest_of_the_page_names_an_entry(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    page = _page(office)
    named = {one.digest: one.entry for one in page.entries}
    bound = page.bound
    digests = [bound.manifest, bound.order, page.base.digest, page.taught.dataset_digest]
    digests += [file.digest for file in bound.files] + [one.digest for one in bound.materials]
    assert all(digest in named for digest in digests)
    assert named[bound.manifest] == bound.sealed
    assert named[page.taught.dataset_digest] == page.taught.dataset_entry


def test_licences_are_those_of_the_signed_imports_whatever_the_service_says(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("sealed")

    def bend(answer: Any) -> Any:
        return {**answer, **{name: {**answer[name], "licence": "MIT"} for name in ("base", "dataset")}}

    office.service.bend["/v1/adapters/clauses@1/review"] = bend
    page = _page(office)
    assert (page.base.licence, page.taught.licence) == ("Apache-2.0", "CC-BY-4.0")


def test_an_items_file_that_is_none_is_refused_by_name(open_office: Callable[..., Office]) -> None:
    office = open_office("trained")
    site = office.site
    site.seal("r-000001", 1, files={**FILES, "metrics.json": encode_canonical([1])})
    with pytest.raises(Exception, match=r"adapter clauses@1, metrics\.json: expected a JSON object, got list"):
        _page(office)


def _refused(office: Office, order: Order) -> int:
    """An authentic order that was refused: it is in the log, and took no effect."""
    site, signed = office.site, office.site.sign(order)
    draft = Draft(
        type=OrderRefused.type,
        actor=order.signer,
        source="unix",
        subjects=(f"order:{signed.pae_digest}",),
        outcome="denied",
        documents={"order": encode_envelope(signed)},
        body=OrderRefused(order=signed.pae_digest, verb=order.verb, reasons=("It may not be.",)),
        disclosures=tuple(one for one in site.disclosures if one.commitment in order.commitments().values()),
    )
    return site.ledger.append(draft).entry.index


def _say(office: Office, change: Callable[[Any], object]) -> None:
    """The service tells other rows."""

    def bend(answer: Any) -> Any:
        change(answer)
        return answer

    office.service.bend["/v1/adapters/clauses@2/review"] = bend


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
        finding: lambda told: told["adapter"]["findings"][0].update(index=finding),
        request: lambda told: told["adapter"]["asked"][0]["request"].update(index=request),
        decision: lambda told: told["adapter"]["reviews"][0].update(index=decision),
        release: lambda told: told["released"][0].update(entry=release),
    }
    for index, lie in lies.items():
        _say(office, lie)
        with pytest.raises(Tampered, match=rf"entry {index}: expected what an order .* becomes, got order\.refused"):
            _page(office, "clauses@2")


def test_a_decision_is_its_reviewers_order(open_office: Callable[..., Office]) -> None:
    office = open_office("released")
    _second_version(office)
    office.site.request_release(version=2)
    office.site.review("rita", "privacy", 2, decision="reject")
    for lie in ({"decision": "approve"}, {"reviewer": "raul"}, {"field": "model-risk"}, {"unit": "sales"}):
        _say(office, partial(_change_decision, lie))
        with pytest.raises(Tampered, match=r"decision \d+: expected"):
            _page(office, "clauses@2")


def _change_decision(lie: dict[str, str], told: Any) -> None:
    told["adapter"]["reviews"][0].update(lie)
