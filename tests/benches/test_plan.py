"""One configuration is planned and measured on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.ml.model.convert import convert_base
from scripts.benches import models, plan
from scripts.kit.tiny_model import build_base


@pytest.mark.outside
def test_a_configuration_is_planned_and_measured_and_the_errors_have_their_goals(tmp_path: Path) -> None:
    rows = list(plan.measure(build_base(tmp_path / "base"), [plan.Configuration(64)]))
    assert [one.unit for one in rows] == ["MB planned", "%", "%", "%"]
    assert rows[0].theirs is not None and 0.9 < rows[0].ours / rows[0].theirs < 1.2
    assert [one.goal for one in rows[1:]] == ["≤ 15", "≤ 30", "≤ 0"]


def test_the_weights_are_counted_once_in_a_base_that_has_them_in_nf4_too(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    said = convert_base(build_base(tmp_path / "source"), base)
    assert len(list(base.glob("*.safetensors"))) == 2
    assert plan.read_shape(base, json.loads((base / "config.json").read_bytes())).parameters == said["parameters"]


def test_each_model_has_eight_configurations_or_more_and_four_quick_ones() -> None:
    assert plan.CONFIGURATIONS.keys() == models.MODELS.keys()
    for quick, full in plan.CONFIGURATIONS.values():
        assert len({one.name for one in full}) == len(full) >= 8
        assert len(quick) == 4 and set(map(str, quick)) <= set(map(str, full))


def test_the_table_has_the_twelve_configurations_that_were_asked_for() -> None:
    assert len({one.name for one in plan.FULL}) == len(plan.FULL) >= 12
    assert {one.recipe.get("method", "qlora") for one in plan.FULL} == {"qlora", "lora", "full"}
