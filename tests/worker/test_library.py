"""A base with experts, through the library's modules: prepared, trained on, and evaluated by the workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.formats.core.canonical import encode_canonical
from scripts.kit.tiny_model import build_base, clauses, write_csv
from tests.worker.conftest import Start, dataset_task, train_task

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.thorough
@pytest.mark.parametrize("roles", [ATTENTION, [*ATTENTION, "gate_proj", "up_proj"]], ids=["attention", "experts"])
def test_an_adapter_on_a_base_with_experts_is_trained_and_evaluated(
    start: Start, tmp_path: Path, roles: list[str]
) -> None:
    """On NF4, whose experts stay in bf16."""
    places = {name: tmp_path / name for name in ("base", "dataset", "adapter", "checkpoints")}
    for folder in places.values():
        folder.mkdir()
    places["csv"] = write_csv(tmp_path / "clauses.csv", clauses(30))
    source = build_base(tmp_path / "source", "qwen3_moe")
    facts, _ = start("prepare").run({"task": "base", "source": str(source), "output": str(places["base"])})
    assert facts["shape"]["experts"] == 4 and "library's modules" in facts["warnings"][0], facts
    prepared, _ = start("prepare").run(dataset_task(places), bytes(32))
    assert prepared["frame"] == "result", prepared
    changes: dict[str, Any] = {"dropout": "0.0", "target_modules": roles, "epochs": 1}
    task = train_task(places, "adapter", **changes)
    trained, steps = start("train").run(task)
    assert trained["frame"] == "result" and sum(frame["frame"] == "step" for frame in steps) == trained["steps"], (
        trained
    )
    config = json.loads((places["adapter"] / "adapter_config.json").read_bytes())
    assert ("target_parameters" in config) == ("gate_proj" in roles)
    paths = {name: str(places[name]) for name in ("base", "dataset", "adapter")}
    wanted = {"recipe": task["recipe"], **paths, "output": str(tmp_path), "sets": [], "shipped": [], "answers": False}
    evaluated, _ = start("evaluate").run(wanted)
    assert evaluated["frame"] == "result", evaluated
    assert evaluated["adapter"]["rows"] == prepared["held_out_rows"]
    assert evaluated["logit_fingerprint"]["base_digest"] != evaluated["logit_fingerprint"]["adapter_digest"]
    encode_canonical({name: value for name, value in facts.items() if name != "frame"})
