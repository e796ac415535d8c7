"""Gates of a run with a real service: fixed by the order, with an item for every row, and recomputed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.names import encode_value
from appliance.domain.evaluation.gates import parse_gate_file
from appliance.domain.evaluation.items import parse_items
from appliance.domain.evaluation.verdict import parse_verdict
from appliance.formats.core.digest import digest_bytes
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.tiny_model import clauses
from tests.attacks.test_ledger import around_the_refusal

GATE = {
    "name": "better-than-base", "kind": "target", "set": "held-out", "metric": "accuracy", "comparison": "base",
    "claim": "better", "test": "mcnemar", "least_items": 20, "slices": ["label", "length"],
}  # fmt: skip
GATES = encode_value(
    parse_gate_file(
        # The clauses of the tests follow a few patterns, so many of them are nearly the same.
        json.dumps({"version": 1, "name": "attacked", "seed": 1, "most_near_overlap": "1.0", "gates": [GATE]}).encode()
    )
)
EASIER = GATES.replace(b'"alpha":"0.05"', b'"alpha":"0.20"')


def order(site: Appliance, gates: bytes | None, **recipe: Any) -> Any:
    made = site.train_order("evaluated", dataset="many@1", **recipe)
    return made.model_copy(update={"gates": None if gates is None else digest_bytes(gates)})


@pytest.fixture(scope="module")
def evaluated(shared: Appliance) -> Appliance:
    """With an adapter evaluated@1, whose run's order bound gates."""
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in clauses(160))
    assert shared.import_dataset(rows.encode(), "many")["status"] == "finished"
    run = shared.wait_run(shared.order(order(shared, GATES, epochs=4), gates=GATES)["result"]["run"])
    assert run["status"] == "sealed", run
    return shared


def sealing(site: Appliance) -> dict[str, Any]:
    (found,) = site.entries(type="adapter.sealed", subject="adapter:evaluated@1")
    return dict(found)


def document(site: Appliance, role: str) -> bytes:
    return base64.b64decode(site.get(f"/v1/ledger/{sealing(site)['index']}")["documents"][role])


def folder_of(site: Appliance, name: str) -> Path:
    return site.home / "artifacts" / str(site.adapter(name)["manifest"]).removeprefix("sha256:")


def folder(site: Appliance) -> Path:
    return folder_of(site, "evaluated@1")


@pytest.mark.thorough
def test_a_run_is_evaluated_by_what_its_order_bound_and_the_verdict_holds(evaluated: Appliance) -> None:
    verdict = parse_verdict(document(evaluated, "verdict"))
    facts = evaluated.get("/v1/datasets/many@1")["facts"]
    assert document(evaluated, "gates") == GATES and verdict.gates == digest_bytes(GATES)
    (record,) = verdict.evaluated
    assert (record.items, record.evaluated_before) == (facts["held_out_rows"], 0)
    data = (folder(evaluated) / "items.jsonl").read_bytes()
    items = parse_items(data)
    assert digest_bytes(data) == record.digest and len(items) == facts["held_out_rows"] >= 20
    assert {item.slices.label for item in items} == {"ending", "payment", "secrecy"}
    for text, _ in clauses(160):
        assert text.encode() not in data, "a row's text"
    metrics = sealing(evaluated)["body"]["metrics"]
    assert float(verdict.results[0].ours or 0) == pytest.approx(float(metrics["adapter"]["accuracy"]), abs=1e-6)
    report = evaluated.verify()
    assert (report["local_findings"], report["verdicts"]) == ([], 1)


def test_gates_other_than_those_that_the_order_binds_are_refused(evaluated: Appliance) -> None:
    before = len(evaluated.get("/v1/runs"))
    for bound, given, message in (
        (GATES, {"gates": EASIER}, "gates: expected"),
        (GATES, {}, "documents: expected gates, got none"),
        (None, {"gates": GATES}, "documents: expected no others"),
        (b"{}", {"gates": b"{}"}, "gates file: "),
    ):
        with pytest.raises(Refused, match=message):
            evaluated.order(order(evaluated, bound), **given)
    assert len(evaluated.get("/v1/runs")) == before


def dropped(lines: list[bytes]) -> list[bytes]:
    return lines[1:]


def reordered(lines: list[bytes]) -> list[bytes]:
    return [lines[1], lines[0], *lines[2:]]


def typed_in(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b'"right":false', b'"right":true') for line in lines]


@pytest.mark.thorough
@pytest.mark.parametrize("change", [dropped, reordered, typed_in])
def test_items_that_were_changed_in_the_folder_are_found(
    evaluated: Appliance, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    path = folder(evaluated) / "items.jsonl"
    whole = path.read_bytes()
    for place in (path.parent, path):
        place.chmod(0o700)
    try:
        path.write_bytes(b"".join(change(whole.splitlines(keepends=True))))
        report = evaluated.verify()
        assert report["verdict"] == "failed"
        assert any("adapter evaluated@1, items.jsonl: expected sha256:" in one for one in report["local_findings"])
    finally:
        path.write_bytes(whole)
    assert evaluated.verify()["local_findings"] == []


@pytest.mark.thorough
def test_a_verdict_that_was_typed_into_the_database_is_found(evaluated: Appliance) -> None:
    whole, index = document(evaluated, "verdict"), sealing(evaluated)["index"]
    digest = bytes.fromhex(digest_bytes(whole).removeprefix("sha256:"))
    said, typed = (b"false", b"true") if b'"passed":false' in whole else (b"true", b"false")
    other = whole.replace(b'"passed":' + said, b'"passed":' + typed)
    assert other != whole
    write = "UPDATE documents SET bytes = ? WHERE digest = ?"
    try:
        with around_the_refusal(evaluated) as connection:
            assert connection.execute(write, (other, digest)).rowcount == 1
        report = evaluated.verify()
        assert report["verdict"] == "failed"
        assert any(one["index"] == index and "document verdict" in one["message"] for one in report["findings"])
    finally:
        with around_the_refusal(evaluated) as connection:
            connection.execute(write, (whole, digest))
    assert evaluated.verify()["local_findings"] == []
