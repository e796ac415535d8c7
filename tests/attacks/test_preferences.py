"""An adapter trained on preferences: planned, trained, replayed, evaluated, approved and served; and a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import main
from appliance.domain.evaluation.items import parse_items
from appliance.domain.runs.steps import parse_steps
from scripts.kit.appliance import QUICK, Appliance
from scripts.kit.tiny_model import clauses
from tests.attacks.test_kill import check_whole
from tests.attacks.test_training import replay

pytestmark = pytest.mark.thorough

RECIPE = {"epochs": 4, "save_steps": 5, "learning_rate": "0.005"}


def _pairs() -> bytes:
    texts = [text for text, _ in clauses(40)]
    rows = [{"prompt": text, "chosen": "pay the fee now", "rejected": "never " + text} for text in texts]
    return "\n".join(map(json.dumps, rows)).encode()


def _run(site: Appliance, folder: Path, recipe: dict[str, Any], *words: str) -> None:
    """Type a command of `appliance run` for this recipe, as olga."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"name": "pleasing", "base": "tiny", "dataset": "pairs@1", **QUICK, **RECIPE, **recipe}))
    options = ["--home", str(site.home), "--as", "olga", *site.write_key("olga", folder)]
    assert main.run(["run", words[0], str(path), *words[1:], *options]) == 0


def _import_pairs(site: Appliance) -> None:
    found = site.import_dataset(_pairs(), "pairs", dataset_kind="preference", format="jsonl")
    assert found["status"] == "finished", found
    assert site.get("/v1/datasets/pairs@1")["facts"]["dataset_kind"] == "preference"


def test_an_adapter_of_preferences_is_planned_trained_replayed_approved_and_answers(
    site: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _import_pairs(site)
    _run(site, tmp_path, {}, "plan", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert {choice["method"] for choice in plan["offers"][0]["choices"]} == {"qlora", "lora"}
    _run(site, tmp_path, {}, "start", "--follow", "--yes")
    requested = site.entries(type="run.requested")[-1]["body"]["run"]
    with site.http() as client:
        told = client.get(f"/v1/runs/{requested}/steps", headers={"Authorization": f"Bearer {site.session('olga')}"})
    steps = parse_steps(told.content)
    assert (steps[0].margin, steps[0].loss) == ("0.000000", "0.693147")
    assert steps[-1].accuracy == "1.000000" and float(steps[-1].margin or 0) > 0.1
    metrics = site.entries(type="adapter.sealed")[-1]["body"]["metrics"]
    assert metrics["adapter"].keys() == {
        "rows", "loss", "perplexity", "trained_tokens", "accuracy", "margin"
    }  # fmt: skip
    assert metrics["adapter"]["accuracy"] == "1.000000" and float(metrics["adapter"]["margin"]) > 1
    folder = site.home / "artifacts" / site.adapter("pleasing@1")["manifest"].removeprefix("sha256:")
    items = parse_items((folder / "items.jsonl").read_bytes())
    assert len(items) == metrics["adapter"]["rows"] and all(item.adapter.right for item in items)
    assert replay(site, "pleasing", (0, 5))["verdict"] == "identical"
    site.approve(name="pleasing@1")
    site.activate(name="pleasing@1")
    answer = site.chat("legal", "labels")
    assert answer["usage"]["completion_tokens"] > 0
    check_whole(site)


def test_a_sweep_of_preferences_reads_losses_of_all_and_seals_the_best(
    site: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _import_pairs(site)
    swept = {"rank": [2, 4], "epochs": 1, "validation": 0.2, "eval_steps": 100}
    _run(site, tmp_path, swept, "start", "--sweep", "--folder", str(tmp_path / "swept"), "--yes", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert {row["values"]["rank"] for row in rows} == {"2", "4"} and all(row["best"] for row in rows)
    assert rows[0]["status"] == "sealed" and rows[1]["status"] in ("sealed", "cancelled"), "one may fall behind"


def test_equal_answers_stop_an_import_and_are_named_by_line(site: Appliance) -> None:
    rows = _pairs() + b'\n{"prompt": "x", "chosen": "y", "rejected": "y"}'
    found = site.import_dataset(rows, "pairs", dataset_kind="preference", format="jsonl")
    assert found["status"] == "failed" and found["error"]["message"] == (
        "dataset, line 41: expected two different answers, got one text as chosen and as rejected"
    )
