"""Local sets, from the order to the verdict, with real workers: a shipped set, a task of lm-eval and a metric of
evaluate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.names import encode_value
from appliance.domain.core.records.data import LocalSet
from appliance.domain.evaluation.gates import parse_gate_file
from appliance.domain.evaluation.items import check_rows, parse_items
from appliance.domain.evaluation.shipped.sets import digest_set, list_shipped_rows
from appliance.domain.evaluation.verdict import Verdict, parse_verdict
from appliance.formats.core.digest import digest_bytes
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.tiny_model import clauses
from tests.attacks.conftest import copied
from tests.worker.test_harness import COLOURS, PACKAGES, SHOUT, needs_libraries


def gate(name: str, **members: Any) -> dict[str, Any]:
    defaults = {
        "name": name, "kind": "regression",
        "set": name, "metric": "accuracy", "comparison": "base", "claim": "no-worse",
        "test": "tango", "margin": "0.15", "least_items": 20, "chance": "0.25",
    }  # fmt: skip
    return defaults | members


TASK = {"kind": "target", "set": "held-out", "claim": "better", "test": "mcnemar", "margin": "0.0", "chance": None}
SHIPPED = [gate("better", **TASK), gate("general", slices=["column"]), gate("refusal")]
LOCAL = [
    gate("better", **TASK),
    gate("harness-colours"),
    gate("metric-shout", metric="same", claim="better", test="permutation", margin="0.0", chance=None, kind="target"),
]


def gates_of(gates: list[dict[str, Any]]) -> bytes:
    # The clauses of the tests follow a few patterns, so many of them are nearly the same.
    value = {"version": 1, "name": "local", "seed": 1, "most_near_overlap": "1.0", "gates": gates}
    return encode_value(parse_gate_file(json.dumps(value).encode()))


@pytest.fixture(scope="module")
def site(golden: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    site = copied(golden, tmp_path_factory.mktemp("l") / "h", "plain")
    if PACKAGES.exists():
        site.environment["APPLIANCE_HARNESS_PACKAGES"] = str(PACKAGES)
    for folder in ("harness/colours", "metrics/shout"):
        (site.home / folder).mkdir(parents=True)
    rows = [{"question": f"What is {n}?", "choices": ["red", "green", "blue"], "right": n % 3} for n in range(24)]
    (site.home / "harness/colours/colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (site.home / "harness/colours/colours.yaml").write_text(COLOURS)
    (site.home / "metrics/shout/shout.py").write_text(SHOUT)
    site.start()
    rows_of = "text,label\n" + "".join(f"{text},{label}\n" for text, label in clauses(160))
    assert site.import_dataset(rows_of.encode(), "many")["status"] == "finished"
    yield site
    site.stop()


def bound(site: Appliance, *names: str) -> tuple[LocalSet, ...]:
    facts = site.get("/v1/recipes/facts", base="tiny", dataset="many@1")
    digests = {one["set"]: one["digest"] for one in facts["local_sets"]}
    return tuple(LocalSet(set=name, digest=digests[name]) for name in sorted(names))


def order(site: Appliance, name: str, gates: bytes, local: tuple[LocalSet, ...]) -> Any:
    made = site.train_order(name, dataset="many@1", epochs=2)
    return made.model_copy(update={"gates": digest_bytes(gates), "local_sets": local})


def evaluated(site: Appliance, name: str, gates: list[dict[str, Any]], *names: str) -> tuple[Verdict, Path]:
    data = gates_of(gates)
    run = site.wait_run(site.order(order(site, name, data, bound(site, *names)), gates=data)["result"]["run"])
    assert run["status"] == "sealed", run
    folder = site.home / "artifacts" / site.adapter(f"{name}@1")["manifest"].removeprefix("sha256:")
    return parse_verdict((folder / "verdict.json").read_bytes()), folder


@pytest.mark.thorough
def test_what_comes_with_the_appliance_is_asked_before_and_after(site: Appliance) -> None:
    verdict, folder = evaluated(site, "kept", SHIPPED, "general", "refusal")
    for name, rows in (("general", 200), ("refusal", 100)):
        items = parse_items((folder / f"items-{name}.jsonl").read_bytes())
        check_rows(items, list_shipped_rows(name))
        (record,) = [one for one in verdict.evaluated if one.set == name]
        assert (record.items, record.evaluated_before) == (rows, 0)
    (found,) = site.entries(type="adapter.sealed", subject="adapter:kept@1")
    told = found["body"]["metrics"]["sets"]
    assert told["general"]["base"]["rows"] == 200 and set(told["refusal"]["adapter"]) == {
        "rows", "accuracy", "refused", "answered",
    }  # fmt: skip
    assert site.verify()["local_findings"] == []


def test_an_order_with_other_texts_than_the_service_has_is_refused(site: Appliance) -> None:
    data, before = gates_of(SHIPPED), len(site.get("/v1/runs"))
    local = (LocalSet(set="general", digest=digest_bytes(b"easier")), *bound(site, "refusal"))
    with pytest.raises(Refused, match=f"set general: expected .*, which the order binds, got {digest_set('general')}"):
        site.order(order(site, "easy", data, local), gates=data)
    assert len(site.get("/v1/runs")) == before


@pytest.mark.thorough
@needs_libraries
def test_a_task_and_a_metric_of_the_site_evaluate_a_run(site: Appliance) -> None:
    verdict, folder = evaluated(site, "local", LOCAL, "harness-colours", "metric-shout")
    colours = parse_items((folder / "items-harness-colours.jsonl").read_bytes())
    assert len(colours) == 24 and {item.slices.column for item in colours} == {"colours"}
    shout = parse_items((folder / "items-metric-shout.jsonl").read_bytes())
    own = parse_items((folder / "items.jsonl").read_bytes())
    assert [item.row for item in shout] == [item.row for item in own]
    assert [item.adapter.scores["same"] for item in shout] == [1_000_000 * bool(one.adapter.right) for one in own]
    outcomes = {result.gate: result.outcome for result in verdict.results}
    assert outcomes["harness-colours"] == "not-informative" and outcomes["metric-shout"] in ("passed", "failed")
    (found,) = site.entries(type="adapter.sealed", subject="adapter:local@1")
    told = found["body"]["metrics"]["sets"]["metric-shout"]
    assert told["adapter"]["rows"] == len(own) and set(told["libraries"]) == {"datasets", "evaluate", "lm_eval"}
    assert not list(folder.glob("answers*")), "what the models wrote is not sealed"
    assert site.verify()["local_findings"] == []


@pytest.mark.thorough
@needs_libraries
def test_files_that_changed_after_the_order_fail_the_run(site: Appliance) -> None:
    data, local = gates_of(LOCAL), bound(site, "harness-colours", "metric-shout")
    module = site.home / "metrics/shout/shout.py"
    run = site.order(order(site, "changed", data, local), gates=data)["result"]["run"]
    module.write_text(SHOUT.replace("sum(", "1.0 + sum("))
    try:
        assert site.wait_run(run)["status"] == "failed"
        (failed,) = site.entries(type="run.failed", subject=f"run:{run}")
        assert failed["body"]["code"] == "tampered"
        with pytest.raises(Refused, match=r"set metric-shout: expected .*, which the order binds, got"):
            site.order(order(site, "changed", data, local), gates=data)
    finally:
        module.write_text(SHOUT)
