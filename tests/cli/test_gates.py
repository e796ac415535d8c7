"""Gates on the command line: their list, the effects that they can show, the signature, and their verdict."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.client.gates import load_gates
from appliance.domain.core.names import encode_value
from appliance.domain.evaluation.items import encode_items
from appliance.domain.evaluation.shipped.sets import digest_set
from appliance.formats.core.digest import digest_bytes
from scripts.kit.item_groups import Group, make_items
from tests.cli.conftest import Desk, one_line
from tests.domain.evaluation.test_rules import GATES, one_gate
from tests.kit.founded import EVALUATED, FILES

POLICIES = Path(__file__).resolve().parents[2] / "policies" / "gates"
WORSE = encode_items(make_items([Group(30, adapter=False, base=True), Group(70, True, True)], rows=EVALUATED))


def gate_file(folder: Path, name: str = "gates.json", **members: Any) -> Path:
    path = folder / name
    gates = {"version": 1, "name": "tried", "seed": 1, "gates": [one_gate()]}
    path.write_text(json.dumps(gates | members, indent=2))
    return path


def recipe_file(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text("name: clauses\nbase: smollm2\ndataset: clauses@1\nmax_length: 128\n")
    return path


def evaluated(desk: Desk, version: int = 1, **fields: Any) -> str:
    """Seal a run under gates, and return its id."""
    run = desk.site.train(gates=GATES)
    desk.site.seal(run, version, **fields)
    return run


def test_the_sets_at_hand_are_listed_and_shown(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    shipped = load_gates(POLICIES / "classification.json")
    told = desk.as_("olga", "gate", "list", "--wide")
    assert told.code == 0
    assert shipped.digest in told.out and "answers" in told.out and "tried" not in told.out
    desk.site.request_run(gates=GATES)
    (row,) = [row for row in json.loads(desk.as_("olga", "gate", "list", "--json").out) if row["name"] == "tried"]
    assert (row["runs"], row["source"]) == (1, "the log")
    for given in ("classification", str(POLICIES / "classification.json"), shipped.digest[:20]):
        told = desk.as_("rita", "gate", "show", given)
        assert told.code == 0 and shipped.digest in told.out
    assert "accuracy on held-out is no worse than released by the margin 0.03, by the test tango" in one_line(told.out)
    value = json.loads(desk.as_("rita", "gate", "show", row["digest"], "--json").out)
    assert digest_bytes(encode_value(GATES)) == value["digest"] == row["digest"]
    assert value["gates"] == GATES.model_dump(mode="json")


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ("nothing", 2, "expected a file such as gates.json, or the name or digest of a set at hand (answers"),
        ("missing.json", 4, "expected a file, got nothing"),
        ("bad.json", 2, "gates.0.test: expected"),
    ],
)
def test_a_set_that_is_none_is_refused_before_anything_is_signed(
    open_desk: Callable[[str], Desk], tmp_path: Path, given: str, code: int, message: str
) -> None:
    desk = open_desk("imported")
    (tmp_path / "bad.json").write_text(
        json.dumps({"version": 1, "name": "x", "seed": 1, "gates": [one_gate(test="t")]})
    )
    path = str(tmp_path / given) if given.endswith(".json") else given
    told = desk.as_("olga", "run", "start", str(recipe_file(tmp_path)), "--gates", path, "--yes")
    assert (told.code, desk.ordered()) == (code, 0)
    assert message in one_line(told.err)


@pytest.mark.thorough
def test_a_plan_says_the_smallest_effect_that_its_gates_can_show(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_desk("imported")
    recipe, gates = str(recipe_file(tmp_path)), str(gate_file(tmp_path))
    told = one_line(desk.as_("olga", "run", "plan", recipe, "--gates", gates).out)
    assert "gates: tried (sha256:" in told and "evaluated before: 0 runs" in told
    assert re.search(r"gate better-than-base: the smallest gain that accuracy can show is [0-9.]+ points", told)
    value = json.loads(desk.as_("olga", "run", "plan", recipe, "--gates", gates, "--json").out)["gates"]
    assert value["can_show"][0]["items"] == 100 and 0.05 < float(value["can_show"][0]["smallest"]) < 0.2
    assert "gates: none: no gate decides on this adapter" in one_line(desk.as_("olga", "run", "plan", recipe).out)
    told = one_line(desk.as_("olga", "run", "plan", recipe, "--gates", "classification").out)
    assert "has 100 items, and the gate asks for 200: it cannot be passed" in told


def test_an_orders_page_shows_each_gate_and_what_it_can_show(open_desk: Callable[[str], Desk], tmp_path: Path) -> None:
    desk = open_desk("imported")
    recipe, path = str(recipe_file(tmp_path)), gate_file(tmp_path)
    told = desk.as_("olga", "run", "start", recipe, "--gates", str(path), "--yes")
    assert told.code == 0, told.err
    shown, digest = one_line(told.err), load_gates(path).digest
    assert f"gates: tried, {digest}" in shown
    assert (
        "gate better-than-base: target metric: accuracy on held-out is better than base, by the test mcnemar" in shown
    )
    assert re.search(r"the smallest gain that accuracy can show is [0-9.]+ points, with 100 items", shown)
    run = desk.site.state.runs.get("r-000001")
    assert run is not None and run.gates == digest
    told = desk.as_("olga", "run", "start", recipe, "--yes")
    assert told.code == 0 and "gates: none: no gate decides on this adapter" in one_line(told.err)


def test_an_adapter_that_passed_its_gates_is_checked_with_exit_code_0(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    run = evaluated(desk)
    for name in ("clauses@1", run):
        told = desk.as_("rita", "gate", "check", name)
        assert told.code == 0, told.err
        assert "gates: passed" in one_line(told.out) and "Passed 1 of 1 gate." in one_line(told.out)
    value = json.loads(desk.as_("rita", "gate", "check", run, "--json").out)
    assert (value["result"], value["passed"], value["target_passed"], value["regression_passed"]) == (
        "passed",
        True,
        True,
        True,
    )


def test_an_adapter_that_failed_its_gates_is_checked_with_exit_code_8(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    evaluated(desk, files=FILES | {"items.jsonl": WORSE}, items=WORSE)
    told = desk.as_("rita", "gate", "check", "clauses@1")
    assert told.code == 8, told.err
    assert "gates: failed" in one_line(told.out) and "not shown to be better" in one_line(told.out)


def test_what_could_not_be_evaluated_is_checked_with_exit_code_9(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_desk("imported")
    many = load_gates(gate_file(tmp_path, gates=[one_gate(least_items=500)])).gates
    desk.site.seal(desk.site.train(gates=many), 1)
    told = desk.as_("rita", "gate", "check", "clauses@1")
    assert told.code == 9 and "expected 500 items or more, got 100" in one_line(told.out)
    desk.site.seal(desk.site.train(), 2)
    told = desk.as_("rita", "gate", "check", "clauses@2")
    assert told.code == 9 and "its run's order bound no gates" in one_line(told.out)
    run = desk.site.request_run(gates=GATES)
    told = desk.as_("rita", "gate", "check", run)
    assert told.code == 9 and "expected a sealed adapter, got one that is queued" in one_line(told.out)
    assert desk.as_("rita", "gate", "check", "clauses@9").code == 4
    assert desk.as_("rita", "gate", "check", "clauses").code == 2


def test_an_explanation_has_a_sentence_the_interval_and_the_luck_of_every_gate(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("sealed")
    evaluated(desk, 2)
    told = desk.as_("rita", "gate", "explain", "clauses@2")
    assert told.code == 0, told.err
    text = one_line(told.out)
    assert "better-than-base: passed. Accuracy 0.9000, base 0.4000: better" in text
    assert "held-out: corrected for 1 earlier evaluation, p-values are multiplied by 6" in text
    assert "gain: 0.5000" in text and "98.33% interval: 0." in text and "alpha: 0.05" in text
    assert "p: below 0.0001; below 0.0001 after the corrections" in text
    assert "worse where" not in text
    value = json.loads(desk.as_("rita", "gate", "explain", "clauses@2", "--json").out)
    assert value["p_counts"] == 6 and value["verdict"]["passed"] is True


def test_runs_and_adapters_show_their_verdict(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    run = evaluated(desk)
    for words in (("run", "show", run), ("adapter", "show", "clauses@1")):
        told = desk.as_("rita", *words)
        assert told.code == 0, told.err
        assert "verdict: Passed 1 of 1 gate." in one_line(told.out)
        assert json.loads(desk.as_("rita", *words, "--json").out)["verdict"]["passed"] is True
    run = desk.site.train()
    told = desk.as_("rita", "run", "show", run)
    assert "verdict: none: it is not sealed" in one_line(told.out), told
    desk.site.seal(run, 2)
    for words in (("run", "show", run), ("adapter", "show", "clauses@2")):
        told = one_line(desk.as_("rita", *words).out)
        assert "verdict: none: its order bound no gates" in told and "not sealed" not in told


def test_items_that_were_changed_on_disk_end_a_check_with_6(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    evaluated(desk)
    lines = FILES["items.jsonl"].splitlines(keepends=True)
    desk.service.spoil("clauses@1", "items.jsonl", b"".join(lines[1:]))
    told = desk.as_("rita", "gate", "check", "clauses@1")
    assert told.code == 6 and "items of run on held-out: expected sha256:" in one_line(told.err)


def test_a_service_that_lies_about_a_verdict_is_caught(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    evaluated(desk, files=FILES | {"items.jsonl": WORSE}, items=WORSE)
    adapter = desk.site.state.adapters.get("clauses@1")
    assert adapter is not None
    verdict = desk.site.documents[str(desk.site.state.evaluations.get("clauses@1").verdict)]  # type: ignore[union-attr]

    def lie(answer: Any) -> Any:
        from appliance.formats.core.fields import encode_base64

        typed = verdict.replace(b'"passed":false', b'"passed":true')
        return answer | {"documents": answer["documents"] | {"verdict": encode_base64(typed)}}

    desk.service.bend[f"/v1/ledger/{adapter.index}"] = lie
    told = desk.as_("rita", "gate", "check", "clauses@1")
    assert told.code == 6 and "document verdict: expected sha256:" in one_line(told.err)


@pytest.mark.thorough
def test_sets_that_come_with_the_appliance_are_told_and_bound_by_their_digests(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_desk("imported")
    kept = one_gate(name="kept", kind="regression", set="general", claim="no-worse", test="tango", margin="0.1")
    recipe, path = str(recipe_file(tmp_path)), gate_file(tmp_path, gates=[one_gate(), kept])
    told = one_line(desk.as_("olga", "run", "plan", recipe, "--gates", str(path)).out)
    assert "set general: 200 rows, sha256:" in told and "evaluated on it before: 0 runs on this dataset" in told
    value = json.loads(desk.as_("olga", "run", "plan", recipe, "--gates", str(path), "--json").out)["gates"]
    assert value["local_sets"] == [{"set": "general", "digest": digest_set("general"), "evaluated_before": 0}]
    assert [one["items"] for one in value["can_show"]] == [100, 200]
    told = desk.as_("olga", "run", "start", recipe, "--gates", str(path), "--yes")
    assert told.code == 0, told.err
    assert digest_set("general")[:19] in one_line(told.err)
    run = desk.site.state.runs.get("r-000001")
    assert run is not None and [(one.set, one.digest) for one in run.local_sets] == [("general", digest_set("general"))]


def test_a_set_that_is_in_no_home_is_refused_before_anything_is_signed(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_desk("imported")
    path = gate_file(tmp_path, gates=[one_gate(set="harness-colours")])
    told = desk.as_("olga", "run", "start", str(recipe_file(tmp_path)), "--gates", str(path), "--yes")
    assert (told.code, desk.ordered()) == (4, 0)
    assert "set harness-colours: expected one of general, refusal, got none of that name" in one_line(told.err)
