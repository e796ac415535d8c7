"""The serving bench's instruments work on a tiny base: programs answer, adapters change answers, homes are served."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from scripts.benches import serving, serving_service
from scripts.benches.serving_worker import make_adapters
from tests.ml.tiny import build_base


def test_adapters_fit_the_base_and_none_is_another(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    made = list(make_adapters(str(base), tmp_path, [4, 8]))
    tensors = [safetensors.torch.load_file(path / "adapter_model.safetensors") for path in made]
    assert [len(one) for one in tensors] == [2 * 7 * 2] * 2
    assert all(bool(tensor.any()) for one in tensors for tensor in one.values()), "B too"
    assert [json.loads((path / "adapter_config.json").read_text())["r"] for path in made] == [4, 8]


def test_quick_measures_all_that_full_does() -> None:
    """Every row of the table comes in both; only rounds and counts differ."""
    quick, full = serving.quick("cpu"), serving.full("cpu")
    assert (quick.rounds, quick.tokens) < (full.rounds, full.tokens)
    assert (full.service.known, full.service.hot) == (1000, 64)
    assert all(
        0 < few <= many for few, many in zip(vars(quick.service).values(), vars(full.service).values(), strict=True)
    )


def test_a_percentile_lies_between_the_samples_around_it() -> None:
    assert serving_service.p99([float(number) for number in range(101)]) == 99
    assert 9 > serving_service.p99([1.0] * 9 + [9.0]) > 8
