"""Sample views and trials with real workers: the answers, who receives them, and what log and disk store of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.releases.previews import TryAdapter, ViewSamples, draw_samples
from appliance.formats.core.commitment import commit, disclose, disclosure_value
from appliance.formats.core.fields import parse_base64
from scripts.kit.appliance import Appliance, Refused
from tests.attacks.test_policy import adopt, policy_document

SECRET = "the tenant Quentin Zyxwolf may sublet"


def view(site: Appliance, who: str = "rita", count: int = 3) -> dict[str, Any]:
    """Order a view of samples, and return the receipt."""
    return site.order(ViewSamples(**site.terms(who), **site.on("clauses@1"), count=count))


def try_out(site: Appliance, who: str = "rita", text: str = SECRET, **changes: Any) -> dict[str, Any]:
    prompt = disclose(text, os.urandom(32))
    sent = {"prompts": [disclosure_value(prompt)]}
    site.ask("POST", "/v1/prompts", who, json=sent)
    values = {"prompts": (prompt.commitment,), "max_tokens": 8, "adds_instruction": True}
    return site.order(TryAdapter(**site.terms(who), **site.on("clauses@1"), **values | changes))


def read(site: Appliance, order: str, who: str = "rita") -> dict[str, Any]:
    while not (state := site.get(f"/v1/previews/{order}", who, wait_s=20))["ended"]:
        continue
    assert state["error"] is None, state
    return dict(state["result"])


def ended(site: Appliance, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in site.entries() if entry["type"] == kind]


def everything_on_disk(site: Appliance) -> bytes:
    """Database, journal, logs and scratch folders."""
    files = [path for path in site.home.rglob("*") if path.is_file() and not path.is_symlink()]
    return b"".join(path.read_bytes() for path in files)


@pytest.mark.thorough
def test_a_reviewer_sees_rows_side_by_side_and_the_preview_is_an_entry(site: Appliance) -> None:
    receipt = view(site)
    found = read(site, receipt["order"])
    assert [[one["model"] for one in row["answers"]] for row in found["rows"]] == [["adapter", "base"]] * 3
    labels = set(site.get("/v1/datasets/clauses@1/labels"))
    for row in found["rows"]:
        assert row["expected"] in labels and row["text"]
        assert {one["text"] for one in row["answers"]} <= labels
        assert all(0 <= float(one["probability"]) <= 1 for one in row["answers"])
    (entry,) = ended(site, "samples.shown")
    assert (entry["body"]["by"], entry["body"]["adapter"], entry["body"]["rows"]) == ("rita", "clauses@1", 3)
    assert not any(row["text"] in json.dumps(site.entries()) for row in found["rows"])
    assert site.verify()["verdict"] == "verified"


@pytest.mark.thorough
def test_the_answers_are_those_that_the_adapter_was_evaluated_by(site: Appliance) -> None:
    found = read(site, view(site, count=5)["order"])
    items = {
        item["row"]: item
        for item in map(json.loads, site.ask("GET", "/v1/adapters/clauses@1/files/items.jsonl").splitlines())
    }
    for row in found["rows"]:
        ours, base = row["answers"]
        assert ours["text"] == items[row["row"]]["adapter"]["label"]
        assert base["text"] == items[row["row"]]["base"]["label"]


@pytest.mark.thorough
def test_the_rows_follow_from_the_manifest_and_the_log_alone(site: Appliance) -> None:
    few, more = (read(site, view(site, count=count)["order"])["rows"] for count in (2, 4))
    assert [row["row"] for row in more[:2]] == [row["row"] for row in few]
    again = read(site, view(site, "rob", 4)["order"], "rob")
    assert [row["row"] for row in again["rows"]] == [row["row"] for row in more]
    adapter = site.adapter()
    rows = [f"{number}" for number in range(50)]
    root = bytes.fromhex(again["root"])
    assert draw_samples(adapter["manifest"], root, rows, 3) == draw_samples(adapter["manifest"], root, rows, 5)[:3]


@pytest.mark.thorough
@pytest.mark.parametrize("who", ["olga", "anna", "lou"])
def test_who_reviews_nothing_sees_no_row_and_tries_nothing(site: Appliance, who: str) -> None:
    with pytest.raises(Refused, match=f"{who} is .* This action needs"):
        view(site, who)
    with pytest.raises(Refused, match=f"{who} is .* This action needs reviewer"):
        try_out(site, who)
    prompt = commit(SECRET, os.urandom(32))
    values = {"prompts": (prompt,), "max_tokens": 8, "adds_instruction": True}
    with pytest.raises(Refused, match=f"{who} is .* This action needs reviewer"):
        site.order(TryAdapter(**site.terms(who), **site.on("clauses@1"), **values))
    assert ended(site, "samples.shown") == ended(site, "try.finished") == []
    assert len(ended(site, "order.refused")) == 2


FORBID = b"""
@id("rows-for-model-risk")
forbid (principal, action == Action::"view-samples", resource) unless { principal in Role::"reviewer:model-risk" };
"""


@pytest.mark.thorough
def test_a_reviewer_whom_policy_keeps_from_rows_sees_none(site: Appliance) -> None:
    site.countersign(str(adopt(site, policy_document(FORBID))["order"]))
    with pytest.raises(Refused, match="Cedar policy rows-for-model-risk forbids rita the action view-samples") as kept:
        view(site, "rita")
    assert kept.value.codes == ["policy-forbids"]
    assert len(read(site, view(site, "rob")["order"], "rob")["rows"]) == 3
    assert ended(site, "order.refused")[-1]["actor"] == "rita"


@pytest.mark.thorough
def test_nobody_else_reads_what_was_shown_and_nobody_reads_it_twice(site: Appliance) -> None:
    order = view(site)["order"]
    for who in ("rob", "olga", "anna", "axel"):
        with pytest.raises(Refused, match="preview: expected the order of one that"):
            site.get(f"/v1/previews/{order}", who, wait_s=0)
        for path in ("calibrations", "dataset-checks"):
            with pytest.raises(Refused, match="expected the key of"):
                site.get(f"/v1/{path}/preview:rita:{order}", who, wait_s=20)
    read(site, order)
    with pytest.raises(Refused, match="and has not read"):
        site.get(f"/v1/previews/{order}", "rita", wait_s=0)


@pytest.mark.thorough
def test_a_try_is_answered_and_neither_prompt_nor_answer_is_kept(site: Appliance) -> None:
    receipt = try_out(site)
    found = read(site, receipt["order"])
    (answer,) = found["answers"]
    (entry,) = ended(site, "try.finished")
    (bound,) = entry["body"]["answers"]
    assert bound["answer"] == commit(answer["text"], parse_base64(answer["salt"], "salt"))
    assert (entry["body"]["by"], entry["outcome"]) == ("rita", "success")
    assert site.verify()["verdict"] == "verified"
    site.stop()
    kept = everything_on_disk(site)
    assert b"Zyxwolf" not in kept and SECRET.encode() not in kept


def test_a_prompt_that_was_not_sent_before_its_order_is_refused(site: Appliance) -> None:
    values = {"prompts": (commit("x", bytes(32)),), "max_tokens": 8, "adds_instruction": True}
    with pytest.raises(Refused, match="to be sent before it, got 1 that are not there"):
        site.order(TryAdapter(**site.terms("rita"), **site.on("clauses@1"), **values))


def test_another_reviewers_prompt_is_not_put_in_its_senders_name(site: Appliance) -> None:
    prompt = disclose(SECRET, os.urandom(32))
    site.ask("POST", "/v1/prompts", "rob", json={"prompts": [disclosure_value(prompt)]})
    values = {"prompts": (prompt.commitment,), "max_tokens": 8, "adds_instruction": True}
    with pytest.raises(Refused, match="to be sent before it"):
        site.order(TryAdapter(**site.terms("rita"), **site.on("clauses@1"), **values))


def test_a_revoked_adapter_is_neither_shown_nor_tried(site: Appliance) -> None:
    site.order(RevokeAdapter(**site.terms("rita"), **site.on("clauses@1")))
    with pytest.raises(Refused, match="revoked by entry"):
        view(site)
    with pytest.raises(Refused, match="revoked by entry"):
        try_out(site)


def test_bytes_that_changed_are_quarantined_and_answer_nothing(spoil: Callable[[], Appliance]) -> None:
    site = spoil()
    site.start()
    folder = site.home / "artifacts" / site.adapter()["manifest"].removeprefix("sha256:")
    weights = next(folder.rglob("adapter_model.safetensors"))
    for path in (weights.parent, weights):
        path.chmod(0o700)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    order = view(site)["order"]
    while not (state := site.get(f"/v1/previews/{order}", "rita", wait_s=20))["ended"]:
        continue
    assert state["result"] is None and state["error"]["code"] == "tampered"
    assert site.adapter()["quarantined"] is not None
    entry = site.adapter()["quarantined"]
    with pytest.raises(Refused, match=f"so that entry {entry} put it in quarantine") as tried:
        try_out(site)
    assert tried.value.codes == ["adapter-quarantined"]


@pytest.mark.thorough
def test_a_preview_that_a_kill_cut_off_is_closed_at_the_next_start(site: Appliance) -> None:
    view(site)
    site.kill()
    site.start()
    (entry,) = ended(site, "samples.shown")
    assert (entry["outcome"], entry["body"]["code"], entry["body"]["rows"]) == ("interrupted", "interrupted", 0)
    assert site.verify()["verdict"] == "verified"
