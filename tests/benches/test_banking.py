"""The shared parts of the benches on banking77, on a tiny base: rows, child processes, and a run of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.ml.data import rows as data
from scripts.benches import private
from scripts.benches.banking import Sizes, parse, prepare, work, write_rows
from scripts.benches.private import Plan
from scripts.kit.tiny_model import build_base


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, count in (("train", 5), ("test", 3)):
        rows = "".join(f"{label} {name} {row},{label}\n" for row in range(count) for label in ("a", "b", "c"))
        (tmp_path / f"{name}.csv").write_text(f"text,category\n{rows}", encoding="utf-8")
    return tmp_path


@pytest.mark.thorough
def test_rows_keep_the_datasets_own_split(source: Path, tmp_path: Path) -> None:
    places = prepare(build_base(tmp_path / "base"), source, tmp_path / "kept", Sizes(2, 4, 3))
    folder = Path(places["dataset"])
    assert [row.text.split()[1] for row in data.load_rows(folder, data.TRAIN)] == ["train"] * 8
    assert [row.text.split()[1] for row in data.load_rows(folder, data.HELD_OUT)] == ["test"] * 6


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_private_bench_trains_evaluates_and_times_pairs_of_steps(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build_base(tmp_path / "base")
    write_rows(source, base, tmp_path / "rows", Sizes(2, 4, 3))
    written: dict[str, Any] = {"rank": 2, "batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 1}
    plan = Plan(Sizes(2, 4, 3), (None, "8.0"), written, 2)
    monkeypatch.setattr(private, "run_child", work)
    plain, noisy = private.measure(plan, {"base": str(base), "dataset": str(tmp_path / "rows")})
    assert plain.privacy is None and plain.paces == () and (plain.rows, plain.steps) == (8, 1)
    assert noisy.privacy is not None and float(noisy.privacy["epsilon"]) <= 8
    assert len(noisy.paces) == 2 and min(noisy.paces) > 0


def test_a_bench_without_its_rows_says_where_they_are_expected(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"bench methods: .* has no train.csv; name the folder of banking77 with --data"
    ):
        parse("methods", "", "", ["--data", str(tmp_path)])
