"""The table of `scripts/bench methods`. No time is asserted; the real workers train and evaluate."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.domain.recipe.methods import METHODS
from scripts.benches.banking import Sizes, prepare
from scripts.benches.methods import PAIRS, MethodResult, _recipe, table
from scripts.kit.tiny_model import build_base


def found(method: str, optimiser: str = "adamw", **values: object) -> MethodResult:
    defaults: dict[str, object] = {
        **{"learning_rate": "0.001", "trained_weights": 10, "steps": 2, "accuracy": "0.8", "macro_f1": "0.8"},
        **{"base_accuracy": "0.1", "held_out": 10, "final_loss": "0.1", "seconds": 10.0, "tokens_s": 5.0},
        **{"peak_bytes": 4_000_000, "saved_bytes": 1_000_000},
    }
    return MethodResult(method, METHODS[method].quantisations[0], optimiser, **defaults | values)  # type: ignore[arg-type]


def test_every_method_is_measured_and_shown_as_a_share_of_full_fine_tuning() -> None:
    assert {method for method, _, _ in PAIRS} == set(METHODS)
    rows = [found("qlora", accuracy="0.6", seconds=5.0, peak_bytes=1_000_000), found("full")]
    assert "| 75% | 5 | 50% | 1 | 25% |" in table(rows)[2]
    assert "| 100% | 5 | 100% | 4 | 100% |" in table(rows)[3]
    assert "| – | 5 | – | 1 | – |" in table(rows[:1])[2], "no share where full was not measured"


@pytest.mark.outside
def test_a_recipe_is_resolved_with_its_methods_own_values(tmp_path: Path) -> None:
    for name, count in (("train", 5), ("test", 3)):
        rows = "".join(f"{label} {name} {row},{label}\n" for row in range(count) for label in ("a", "b", "c"))
        (tmp_path / f"{name}.csv").write_text(f"text,category\n{rows}", encoding="utf-8")
    places = prepare(build_base(tmp_path / "base"), tmp_path, tmp_path / "kept", Sizes(2, 4, 3))
    recipe = _recipe(places, "dora", "nf4-double", "adamw-8bit")
    assert (recipe["method"], recipe["optimiser"], recipe["purpose"]) == ("dora", "adamw-8bit", "baseline")
