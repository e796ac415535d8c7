"""Tasks of lm-eval and metrics of evaluate, run by a worker in its sandbox: without any network.

Both bring libraries of their own, which lie in `.venv-harness` (made by `scripts/setup --tests`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.evaluation.items import Answer, EvaluationItem, Slices, encode_items, parse_items
from appliance.sandbox.description import Sandbox
from appliance.sandbox.escape_targets import Probes
from appliance.sandbox.local import start_worker
from tests.worker.conftest import ROOT, Frame, Start, dataset_task, train_task

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
PACKAGES = ROOT / ".venv-harness/lib" / VERSION / "site-packages"
needs_libraries = pytest.mark.skipif(not PACKAGES.exists(), reason="lm-eval is not installed in .venv-harness")

COLOURS = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: colours.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
ECHO = """
task: echo
dataset_path: json
dataset_kwargs:
  data_files:
    test: colours.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
process_results: !function scoring.count_letters
generation_kwargs:
  until: ["<never>"]
  max_gen_toks: 4
metric_list:
  - metric: letters
    aggregation: mean
    higher_is_better: false
"""
SCORING = """
import socket

def count_letters(doc, results):
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    except PermissionError:
        return {"letters": len(results[0])}
    except OSError:
        return {"letters": 0, "open": 1}
"""
SHOUT = """
import datasets
import evaluate


class Shout(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references))
        return {"same": sum(a.upper() == b.upper() for a, b in pairs) / len(pairs), "said": predictions[0]}
"""


@pytest.fixture(scope="module")
def adapter(start: Start, places: dict[str, Path]) -> Path:
    if not (places["dataset"] / "rows.jsonl").exists():
        assert start("prepare").run(dataset_task(places), bytes(range(32)))[0]["frame"] == "result"
    assert start("train").run(train_task(places, "again"))[0]["frame"] == "result"
    return places["again"]


@pytest.fixture
def task(places: dict[str, Path], adapter: Path, tmp_path: Path) -> Frame:
    folder = tmp_path / "colours"
    folder.mkdir()
    rows = [
        {"question": f"What colour is {what}?", "choices": ["red", "green", "blue"], "right": number % 3}
        for number, what in enumerate(["a poppy", "grass", "the sky", "blood", "a leaf"])
    ]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "colours.yaml").write_text(COLOURS)
    (folder / "echo.yaml").write_text(ECHO)
    (folder / "scoring.py").write_text(SCORING)
    (tmp_path / "output").mkdir()
    return {
        **train_task(places, "base"),
        "adapter": str(adapter),
        "output": str(tmp_path / "output"),
        "kind": "task",
        "name": "colours",
        "set": "harness-colours",
        "folder": str(folder),
        "digest": "sha256:" + "1" * 64,
        "packages": str(PACKAGES),
    }


@contextmanager
def _sandboxed(task: Frame, tmp_path: Path) -> Iterator[Any]:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    read = tuple(Path(task[name]) for name in ("base", "adapter", "folder", "answers") if name in task)
    libraries = (Path(task["packages"]),) if task["packages"] else ()
    sandbox = Sandbox(read=read, write=(home, Path(task["output"])), libraries=libraries)
    with start_worker("appliance.worker.harness", sandbox, log=tmp_path / "log", probes=Probes()) as worker:
        assert set(worker.check_sandbox(180).values()) == {"refused"}
        worker.send({"frame": "go", **task})
        yield worker


def run_sandboxed(task: Frame, tmp_path: Path) -> Frame:
    """Run the worker in the service's sandbox, and return its last frame."""
    with _sandboxed(task, tmp_path) as worker:
        while (received := worker.receive(240)) is not None:
            if received[0]["frame"] != "evaluating":
                return dict(received[0])
    raise AssertionError((tmp_path / "log").read_text())


@pytest.mark.thorough
@needs_libraries
def test_a_task_of_lm_eval_is_evaluated_for_base_and_adapter_without_a_network(task: Frame, tmp_path: Path) -> None:
    result = run_sandboxed(task, tmp_path)
    assert result["frame"] == "result", result
    lines = (tmp_path / "output/items-harness-colours.jsonl").read_bytes()
    items = parse_items(lines)
    assert len(items) == 5 == result["base"]["rows"]
    assert all(set(item.base.scores) == {"acc", "acc_norm"} and item.base.right is not None for item in items)
    assert {item.slices.column for item in items} == {"colours"}
    right = sum(bool(item.adapter.right) for item in items) / 5
    assert float(result["adapter"]["acc"]) == pytest.approx(right)
    again = run_sandboxed(task, tmp_path)
    assert again == result and (tmp_path / "output/items-harness-colours.jsonl").read_bytes() == lines


@needs_libraries
@pytest.mark.outside
def test_code_of_a_task_reaches_no_network_and_less_is_better_is_kept_as_its_negative(
    task: Frame, tmp_path: Path
) -> None:
    result = run_sandboxed({**task, "name": "echo", "set": "harness-echo"}, tmp_path)
    assert result["frame"] == "result", result
    items = parse_items((tmp_path / "output/items-harness-echo.jsonl").read_bytes())
    assert all(set(item.base.scores) == {"minus_letters"} and item.base.right is None for item in items)
    assert any(item.base.scores["minus_letters"] < 0 for item in items)


@needs_libraries
@pytest.mark.outside
def test_a_task_that_no_file_names_is_refused_by_its_name(task: Frame, tmp_path: Path) -> None:
    failure = run_sandboxed({**task, "name": "shapes"}, tmp_path)
    assert failure["frame"] == "failure"
    assert failure["message"] == "harness shapes: expected a YAML file that names this task, got those of colours, echo"


@needs_libraries
@pytest.mark.outside
def test_a_metric_of_evaluate_scores_each_written_answer(task: Frame, tmp_path: Path) -> None:
    (tmp_path / "shout").mkdir()
    (tmp_path / "shout/shout.py").write_text(SHOUT)
    result = run_sandboxed(_metric_task(task, tmp_path), tmp_path)
    assert result["frame"] == "result", result
    items = parse_items((tmp_path / "output/items-metric-shout.jsonl").read_bytes())
    scores = [(item.base.scores["same"], item.adapter.scores["same"]) for item in items]
    assert scores == [(0, 1_000_000), (1_000_000, 1_000_000)]
    assert (result["base"]["same"], result["adapter"]["same"]) == ("0.500000", "1.000000")


@pytest.mark.outside
def test_without_the_library_the_failure_says_how_to_get_it(task: Frame, tmp_path: Path) -> None:
    failure = run_sandboxed({**task, "packages": ""}, tmp_path)
    assert (failure["frame"], failure["code"]) == ("failure", "harness-missing")
    assert "pip install 'appliance[harness]'" in failure["message"] and "harness_packages" in failure["message"]


def _metric_task(task: Frame, tmp_path: Path) -> Frame:
    answer = Answer(confidence=None, label=None, right=None, scores={"loss": 1})
    slices = Slices(column=None, label=None, length="short")
    rows = ["1" * 64, "2" * 64]
    items = encode_items(
        EvaluationItem(adapter=answer, base=answer, cluster=None, row=row, slices=slices) for row in rows
    )
    answers = [("one", "two", "ONE"), ("two", "two", "Two")]
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers/items.jsonl").write_bytes(items)
    (tmp_path / "answers/answers.json").write_text(
        json.dumps(
            {
                row: dict(zip(("expected", "base", "adapter"), said, strict=True))
                for row, said in zip(rows, answers, strict=True)
            }
        )
    )
    changes = {"kind": "metric", "name": "shout", "set": "metric-shout", "folder": str(tmp_path / "shout")}
    return {**task, **changes, "answers": str(tmp_path / "answers")}
