"""The instrument works: one configuration planned and measured, on a tiny base."""

from __future__ import annotations

from pathlib import Path

from scripts.benches import plan
from scripts.kit.tiny_model import build_base


def test_a_configuration_is_planned_and_measured_and_the_errors_have_their_goals(tmp_path: Path) -> None:
    rows = list(plan.measure(build_base(tmp_path / "base"), [plan.Configuration(64)]))
    assert [one.unit for one in rows] == ["MB planned", "%", "%", "%"]
    assert rows[0].theirs is not None and 0.9 < rows[0].ours / rows[0].theirs < 1.2
    assert [one.goal for one in rows[1:]] == ["≤ 5", "≤ 10", "≤ 0"]


def test_the_table_has_the_twelve_configurations_that_were_asked_for() -> None:
    assert len({one.name for one in plan.FULL}) == len(plan.FULL) >= 12
    assert {one.recipe.get("method", "qlora") for one in plan.FULL} == {"qlora", "lora", "full"}
