"""The training bench's recipe is one that a run could have, and its rows are those of both files."""

from __future__ import annotations

import csv
from pathlib import Path

from appliance.domain.recipe.recipe import ResolvedRecipe
from scripts.benches import training


def test_the_recipe_is_a_whole_one() -> None:
    named = {"name": "bench", "base": "bench", "dataset": "rows@1", "device": "cpu"}
    modules = {"target_modules": tuple(training.RECIPE["target_modules"])}
    ResolvedRecipe.model_validate(training.RECIPE | named | modules)


def test_rows_to_train_on_and_rows_to_judge_by_are_others(tmp_path: Path) -> None:
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
    bench = training._Bench(base, tmp_path, training.quick(tmp_path, "cpu"))
    assert bench.operations == 4 * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    for name in training.DATASETS:
        rows, judged = (path.read_text().splitlines() for path in bench.cut(name, steps=6))
        assert (len(rows), len(judged)) == (6 * 16, training.JUDGED)
        assert not set(rows) & set(judged)
