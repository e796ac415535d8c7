"""Public rows under gates that were fixed first: an adapter that is significantly better than its base is released;
one that is better by chance, or worse elsewhere, fails the gate for that."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import main
from appliance.domain.core.names import encode_value
from appliance.domain.core.order import Order
from appliance.domain.evaluation.gates import GatesFile, parse_gate_file
from appliance.domain.evaluation.items import Answer, EvaluationItem, encode_items, parse_items
from appliance.domain.evaluation.verdict import Verdict, parse_verdict
from appliance.domain.releases.requests import RequestRelease
from appliance.errors import Denied
from appliance.formats.core.commitment import disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.keys import encode_key_file
from appliance.reports.review.words import show_number, show_p
from scripts.kit.appliance import ROOT, Appliance, Refused, found_site
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from scripts.kit.ports import free_port
from scripts.kit.tiny_model import build_base

DATA = ROOT.parent / "shared" / "data"
LABELS = {
    "banking77": ("activate_my_card", "exchange_rate", "request_refund", "age_limit"),
    "cuad": ("Anti-Assignment", "Governing Law", "Insurance"),
}
FILES = {"banking77": "banking77/train.csv", "cuad": "cuad/clauses_train.csv"}
LONGEST = {"banking77": 70, "cuad": 150}
"""Characters of a row: the tiny model has a token for nearly each, and room for 256."""
ROWS_A_LABEL = 70
SMALL = {"rank": 16, "alpha": 32, "epochs": 3}
PASSPHRASE = b"correct horse battery"

pytestmark = pytest.mark.thorough


def gate(**members: Any) -> dict[str, Any]:
    defaults = {
        "name": "better-than-base", "kind": "target", "set": "held-out", "metric": "accuracy", "comparison": "base",
        "claim": "better", "test": "mcnemar", "least_items": 40, "slices": ["label"],
    }  # fmt: skip
    return defaults | members


def gates_file(*gates: dict[str, Any]) -> GatesFile:
    # A held-out set this small has about 17 rows of a label. Of the short clauses of CUAD 12 % are nearly the same.
    value = {"version": 1, "name": "public", "seed": 1, "least_slice": 10, "most_near_overlap": "0.2"}
    value["gates"] = list(gates or [gate()])
    return parse_gate_file(json.dumps(value).encode())


GATES = gates_file()


def public_rows(name: str) -> bytes:
    """Return the first short rows of a few labels, as a CSV file of text and label."""
    path = DATA / FILES[name]
    if not path.exists():
        pytest.skip(f"{path}: expected the public dataset {name}, got no such file")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if len(row["text"]) < LONGEST[name]]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["text", "label"])
    for label in LABELS[name]:
        chosen = [" ".join(row["text"].split()) for row in rows if row["category"] == label]
        writer.writerows((text, label) for text in list(dict.fromkeys(chosen))[:ROWS_A_LABEL])
    return out.getvalue().encode()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    place = tmp_path_factory.mktemp("g")
    made = found_site(place / "h", free_port())
    try:
        assert made.import_base(build_base(place / "base"))["status"] == "finished"
        yield made
    finally:
        made.stop()


def trained(site: Appliance, name: str) -> Verdict:
    """Import, train under the gates and seal as NAME@1. Return the gates' verdict."""
    dataset = site.import_dataset(public_rows(name), name)
    assert dataset["status"] == "finished", dataset
    order = site.train_order(name, dataset=f"{name}@1", **SMALL)
    bound = encode_value(GATES)
    order = order.model_copy(update={"gates": digest_bytes(bound)})
    run = site.wait_run(site.order(order, gates=bound)["result"]["run"])
    assert run["adapter"] == f"{name}@1", run
    return parse_verdict((folder(site, name) / "verdict.json").read_bytes())


def folder(site: Appliance, name: str) -> Path:
    return site.home / "artifacts" / str(site.adapter(f"{name}@1")["manifest"]).removeprefix("sha256:")


def signed(site: Appliance, model: type[Order], who: str, texts: Sequence[str], **values: Any) -> str:
    """Sign an order, whose fields `texts` are texts, and return its identity."""
    found = {name: disclose(f"{name} of it", os.urandom(32)) for name in texts}
    terms = {**site.terms(who), **values, **{name: text.commitment for name, text in found.items()}}
    return str(site.order(model(**terms), *found.values())["order"])


def request(site: Appliance, name: str, tier: str, **asked: str) -> str:
    verdict = site.adapter(f"{name}@1")["verdict"]
    values = {**site.on(f"{name}@1"), "unit": "legal", "tier": tier, "verdict": verdict, "conditions": None, **asked}
    return signed(site, RequestRelease, "olga", ("intended_use", "limits"), **values)


def approve(site: Appliance, name: str, request: str, *people: str) -> None:
    for who in people:
        reason = disclose("The gates were passed.", os.urandom(32))
        terms = {"reason": reason.commitment, "request": request}
        if who == "sam":
            terms["review_function"] = "safety"
        order, meaning = site.review_order(who, name=f"{name}@1", **terms)
        site.order(order, meaning, reason)


def explained(site: Appliance, name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `gate explain` prints for a reviewer."""
    key, passphrase = place / "rob.key", place / "rob.pass"
    key.write_bytes(encode_key_file(site.keys["rob"].private, PASSPHRASE, salt=os.urandom(32), nonce=os.urandom(12)))
    passphrase.write_bytes(PASSPHRASE + b"\n")
    for path in (key, passphrase):
        path.chmod(0o600)
    who = ["--as", "rob", "--key", str(key), "--passphrase-file", str(passphrase), "--home", str(site.home)]
    capsys.readouterr()
    code = main.run(["gate", "explain", f"{name}@1", *who, "--trust", str(site.settings.trust)])
    told = capsys.readouterr()
    assert code == 0, told.err
    return " ".join(told.out.split())


def test_bank_questions_pass_their_gates_and_are_released_by_two_people_of_a_low_tier(
    site: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = trained(site, "banking77")
    (result,) = verdict.results
    assert verdict.passed and result.outcome == "passed", verdict.why
    assert float(result.lower or 0) > 0, "the interval of the paired gain lies above nothing"
    told = explained(site, "banking77", tmp_path, capsys)
    shown = f"interval: {show_number(result.lower)} to {show_number(result.upper)}"
    assert shown in told and f"p: {show_p(result.p)}" in told
    asked = request(site, "banking77", "low", exposure="internal", purpose="assist")
    approve(site, "banking77", asked, "rita")
    with pytest.raises(Refused) as one:
        site.activate(name="banking77@1", served_model="intents")
    assert any("needs 2 valid approvals" in str(reason) for reason in one.value.reasons)
    approve(site, "banking77", asked, "rob")
    site.activate(name="banking77@1", served_model="intents")
    assert site.chat("legal", "intents", "Can you activate my card?")["choices"]
    report = site.verify()
    assert (report["verdict"], report["verdicts"]) == ("verified", 1)


def test_contract_clauses_pass_their_gates_and_are_released_by_three_people_of_a_high_tier(site: Appliance) -> None:
    verdict = trained(site, "cuad")
    assert verdict.passed and float(verdict.results[0].lower or 0) > 0, verdict.why
    site.enrol("sam", "reviewer:safety")
    asked = request(site, "cuad", "high", exposure="public", purpose="decide")
    approve(site, "cuad", asked, "rita", "rob")
    with pytest.raises(Refused) as two:
        site.activate(name="cuad@1", served_model="clauses")
    assert any("needs 3 valid approvals" in str(reason) for reason in two.value.reasons)
    approve(site, "cuad", asked, "sam")
    site.activate(name="cuad@1", served_model="clauses")
    assert site.chat("legal", "clauses", "This Agreement shall be governed by the laws of Delaware.")["choices"]
    assert site.verify()["verdict"] == "verified"


# From the items that these runs recorded of public rows: one better by luck, one worse somewhere else.


def recorded(site: Appliance, name: str) -> tuple[EvaluationItem, ...]:
    if not any(row["name"] == name for row in site.get("/v1/adapters")):
        trained(site, name)
    return parse_items((folder(site, name) / "items.jsonl").read_bytes())


def answered(item: EvaluationItem, right: bool) -> Answer:
    """Return the adapter's answer to the row, right or wrong."""
    other = next(label for labels in LABELS.values() if item.slices.label in labels for label in labels)
    wrong = other if other != item.slices.label else "none"
    label = item.slices.label if right else wrong
    return item.base.model_copy(update={"right": right, "label": label})


def as_the_base(items: tuple[EvaluationItem, ...], flipped: int) -> tuple[EvaluationItem, ...]:
    """Return items of an adapter that answers as its base, except for so many rows of the base's mistakes."""
    mistakes = [item.row for item in items if not item.base.right][:flipped]
    assert len(mistakes) == flipped
    return tuple(
        item.model_copy(update={"adapter": answered(item, item.row in mistakes or bool(item.base.right))})
        for item in items
    )


def refused_by(site: LogBuilder, run: str, version: int, items: tuple[EvaluationItem, ...]) -> str:
    """Sealed with these items at a site that stops failed verdicts; why a reviewer cannot approve it."""
    site.seal(run, version, items=encode_items(items))
    with pytest.raises(Denied) as refused:
        site.review("rita", "privacy", version)
    return " ".join(map(str, refused.value.refusals))


@pytest.mark.parametrize("name", LABELS)
def test_six_rows_won_by_luck_pass_at_the_first_try_and_not_at_the_sixth(site: Appliance, name: str) -> None:
    lucky = as_the_base(recorded(site, name), 6)
    log = stage("imported", policy_set(failed_verdict="stops")).fork()
    log.seal(log.train(gates=GATES), items=encode_items(lucky))
    log.review("rita", "privacy")
    unlucky = encode_items(as_the_base(recorded(site, name), 0))
    for version in range(2, 6):
        log.seal(log.train(), version, items=unlucky)
    told = refused_by(log, log.train(gates=GATES), 6, lucky)
    assert "did not pass these gates: better-than-base." in told
    row = log.state.adapters.get("clauses@6")
    assert row is not None
    reasons = {one.gate: one.reason for one in parse_verdict(log.documents[str(row.verdict)]).results}
    assert "corrected for 5 earlier evaluations on held-out" in reasons["better-than-base"]


@pytest.mark.parametrize("name", LABELS)
def test_what_is_better_at_the_task_and_worse_at_one_label_is_stopped_for_that_label(
    site: Appliance, name: str
) -> None:
    """The base knows one label and nothing else; the adapter knows all others, and lost ten rows of that one."""
    kept, items = LABELS[name][0], recorded(site, name)
    lost = [item.row for item in items if item.slices.label == kept][:10]
    worse = tuple(
        item.model_copy(
            update={
                "base": answered(item, item.slices.label == kept),
                "adapter": answered(item, item.row not in lost),
            }
        )
        for item in items
    )
    log = stage("imported", policy_set(failed_verdict="stops")).fork()
    told = refused_by(log, log.train(gates=GATES), 1, worse)
    assert "did not pass these gates: better-than-base." in told
    row = log.state.adapters.get("clauses@1")
    assert row is not None
    verdict = parse_verdict(log.documents[str(row.verdict)])
    assert (verdict.target_passed, verdict.regression_passed) == (True, False)
    assert "Significant regression in 1 of" in verdict.why and f": {kept!r}." in verdict.why
    assert [part.value for part in verdict.results[0].slices if part.worse] == [kept]
