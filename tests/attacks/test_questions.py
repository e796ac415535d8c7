"""Questions about the past to a real service with a real adapter: answers, their entries, and who may ask."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from appliance.domain.core.names import add_seconds
from appliance.formats.artifacts.rows import parse_row_proof_value, verify_row
from appliance.formats.core.canonical import parse_canonical
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.tiny_model import clauses
from tests.attacks.test_exports import order_export


@pytest.fixture
def site(spoil: Callable[[], Appliance]) -> Appliance:
    site = spoil()
    site.start()
    return site


@pytest.mark.thorough
def test_what_a_unit_could_load_before_and_after_a_release_and_a_revocation(site: Appliance) -> None:
    before = site.now()
    site.approve()
    released = site.activate()["index"]
    site.chat("legal", "labels")
    now = site.get("/v1/units/legal/effective-access", "axel")
    (served_model,) = now["answer"]["served_models"]
    assert served_model["effective_access"] and served_model["release"]["index"] == released
    assert served_model["slot"]["adapter"] == "clauses@1" and served_model["slot"]["loaded"] is not None
    loaded = [entry["index"] for entry in site.entries(type="adapter.loaded")]
    assert {released, *loaded} <= {named["entry"] for named in now["rests_on"]}
    assert len(now["disclosures"]) == 2, "both reviewers' printed names are still disclosed"
    earlier = site.get("/v1/units/legal/effective-access", "axel", at=before)
    assert earlier["answer"]["served_models"] == [] and earlier["answer"]["others"] == []
    assert now["answer"]["exported"] == []
    order_export(site)
    site.review("rita", decision="reject")
    after = site.get("/v1/units/legal/effective-access", "axel")
    assert not after["answer"]["served_models"][0]["effective_access"]
    (exported,) = after["answer"]["exported"]
    assert exported["adapter"] == "clauses@1" and site.now() < exported["valid_until"]
    assert exported["index"] in [named["entry"] for named in after["rests_on"]], "the folder answers on"
    same = site.get("/v1/units/legal/effective-access", "axel", at=now["as_of"])
    assert (same["answer"]["served_models"], same["answer"]["exported"]) == (now["answer"]["served_models"], []), (
        "what was true then is still what was true then"
    )
    later = site.get("/v1/units/legal/effective-access", "axel", at=add_seconds(site.now(), 10**6))
    assert later["answer"]["served_models"] == after["answer"]["served_models"], "a time to come counts as now"


def test_the_state_of_any_entry_and_of_any_time(site: Appliance) -> None:
    sealed = site.entries(type="adapter.sealed")[0]
    for at, ids in (
        (str(sealed["index"]), ["clauses@1"]),
        (str(sealed["index"] - 1), []),
        (sealed["time"], ["clauses@1"]),
    ):
        found = site.get("/v1/ledger/state", "axel", at=at, kind="adapter")
        assert [thing["id"] for thing in found["rows"]] == ids
    for at, status in (("yesterday", 400), ("999999", 404), ("9" * 30, 400), ("2020-01-01T00:00:00.000Z", 404)):
        with pytest.raises(Refused) as refused:
            site.get("/v1/ledger/state", "axel", at=at)
        assert refused.value.status == status


def test_a_row_is_proved_to_whoever_may_ask_and_to_nobody_else(site: Appliance) -> None:
    text = clauses()[0][0]
    entry = site.entries(type="dataset.imported")[0]
    (version,) = site.ask("POST", "/v1/datasets/clauses/row", "axel", json={"text": text})
    assert (version["dataset"], version["imported"]) == ("clauses@1", entry["index"]) and version["found"] >= 1
    for value in version["proofs"]:
        proof = parse_row_proof_value(value)
        root = bytes.fromhex(entry["body"]["root"].removeprefix("sha256:"))
        verify_row(proof, entry["body"]["facts"]["rows"], root)
        assert parse_canonical(base64.b64decode(value["row"]))["text"] == text
    assert site.ask("POST", "/v1/datasets/clauses@1/row", "olga", json={"text": text})[0]["found"] == version["found"]
    (absent,) = site.ask("POST", "/v1/datasets/clauses/row", "axel", json={"text": text[:-1]})
    assert (absent["found"], absent["proofs"]) == (0, [])
    for who in ("rita", "lou", "legal", "anna"):
        with pytest.raises(Refused) as refused:
            site.ask("POST", "/v1/datasets/clauses/row", who, json={"text": text})
        assert refused.value.status == 403


@pytest.mark.thorough
def test_an_adapters_story_begins_with_what_it_is_made_of_and_counts_its_requests(site: Appliance) -> None:
    site.approve()
    site.activate()
    for _ in range(3):
        site.chat("legal", "labels")
    story = site.get("/v1/adapters/clauses@1/history", "axel")
    types = [parse_canonical(base64.b64decode(item["entry"]))["type"] for item in story["entries"]]
    assert types[:4] == ["import.requested", "base.imported", "import.requested", "dataset.imported"]
    assert types[4:9] == ["run.requested", "run.started", "run.checkpointed", "run.finished", "adapter.sealed"]
    assert types[9:] == ["review.recorded"] * 2 + ["release.activated", "adapter.admitted", "adapter.loaded"]
    assert story["requests"] == {"answered": 3, "failure": 0, "interrupted": 0, "open": 0}
    texts = [item["disclosures"] for item in story["entries"] if item["order"] is not None]
    assert any(text["text"] == "I reviewed it and approve." for found in texts for text in found)


def test_the_log_is_paged_from_both_ends_by_unit_and_types(site: Appliance) -> None:
    site.approve()
    whole = [entry["index"] for entry in site.entries()]
    last = site.get("/v1/ledger", "axel", newest=True, limit=5)
    assert [row["index"] for row in last["entries"]] == whole[:-6:-1] and last["next"] == whole[-5]
    reviews = site.entries(type=["review.recorded", "adapter.sealed"], unit="legal")
    assert [entry["type"] for entry in reviews] == ["review.recorded"] * 2
    with pytest.raises(Refused) as refused:
        site.get("/v1/ledger", "axel", kind="x")
    assert refused.value.status == 400
    with pytest.raises(Refused) as beyond:
        site.get(f"/v1/ledger/{10**30}", "axel")
    assert beyond.value.status == 400, "a number that no database holds is no defect of the appliance"
