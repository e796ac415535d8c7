"""The training bench's recipe is valid, and its rows are those of both files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.domain.recipe.recipe import ResolvedRecipe
from scripts.benches import models, training
from scripts.kit.tiny_model import build_base, clauses


def test_the_recipe_is_a_whole_one() -> None:
    named = {"name": "bench", "base": "bench", "dataset": "rows@1", "device": "cpu"}
    modules = {"target_modules": tuple(training.RECIPE["target_modules"])}
    ResolvedRecipe.model_validate(training.RECIPE | named | modules)


def test_rows_to_train_on_and_rows_to_evaluate_by_are_others(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(
        '{"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,'
        ' "num_hidden_layers": 2}'
    )
    for name, text, label in training.DATASETS.values():
        (tmp_path / name).parent.mkdir()
        with (tmp_path / name).open("w", newline="") as stream:
            csv.writer(stream).writerows([[text, label], *([f"text {number}", "label"] for number in range(500))])
    bench = training._Bench(base, tmp_path, training.quick(models.SMOLLM2, tmp_path, "cpu"))
    assert bench.operations == 4 * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    for name in training.DATASETS:
        rows, evaluated = (path.read_text().splitlines() for path in bench.write_rows(name, steps=6))
        assert (len(rows), len(evaluated)) == (6 * 16, training.EVALUATED)
        assert not set(rows) & set(evaluated)


@pytest.mark.outside
def test_an_evaluation_and_a_run_count_the_same_tokens_of_the_same_rows(tmp_path: Path) -> None:
    """Both rates are of one worker's processes; the row compares them."""
    base = build_base(tmp_path / "base")
    rows = [{"text": text, "label": label} for text, label in clauses(24)]
    path, none = tmp_path / "rows.jsonl", tmp_path / "none.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    none.write_text("")
    plan = replace(training.quick(models.BILLION, tmp_path, "cpu"), warm_up=1)
    bench, runs = training._Bench(base, tmp_path, plan), training.Runs()
    more = {"rows": str(path), "evaluated": str(none), "recipe": {"batch_size": 8, "max_length": 128}}
    runs.take("ours", bench.run("ours", "ours", **more))
    runs.take("evaluation", bench.run("evaluation", "evaluate", labels=["ending", "payment", "secrecy"], **more))
    speed, memory = training._evaluation(runs, "rows")
    assert (speed.against, speed.goal) == ("training on the same rows", "≥ 2.5×")
    assert speed.theirs and speed.ratio == pytest.approx(speed.ours / speed.theirs)
    assert memory.ours > 0
    assert runs.found["ours"][0]["loss"] is None


def test_the_larger_model_is_trained_beside_trl_packed_with_its_own_goal(tmp_path: Path) -> None:
    plans = [make(models.BILLION, tmp_path, "cpu") for make in (training.quick, training.full)]
    assert [one.packed_goal for one in plans] == [2.5, 2.5]
    assert all(one.steps["banking77"] > one.warm_up for one in plans), "a step is counted"
    assert not any(one.plain or one.peers or one.evaluated or one.starts or one.service_epochs for one in plans)
