"""The worker of sample views and trials: every model answers every question, and then the worker ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.evaluation.items import parse_items
from appliance.formats.artifacts.rows import split_digests
from tests.worker.conftest import Frame, Start, train_task
from tests.worker.test_workers import MESSAGES, dataset, evaluated, trained

__all__ = ["dataset", "evaluated", "trained"]
LABELS = ["ending", "payment", "secrecy"]


@pytest.fixture(scope="session")
def task(places: dict[str, Path], evaluated: Any) -> tuple[Frame, bytes]:
    """Two adapters of the same bytes, and the base."""
    recipe = train_task(places, "adapter")["recipe"]
    config = (places["adapter"] / "adapter_config.json").read_text()
    weights = (places["adapter"] / "adapter_model.safetensors").read_bytes()
    one = {"config": config, "logit_fingerprint": evaluated[0]["logit_fingerprint"], "bytes": len(weights)}
    defaults = {
        "base": str(places["base"]),
        "quantisation": recipe["quantisation"],
        "compute_dtype": recipe["compute_dtype"],
        "device": "cpu",
        "adapters": [{"slot": name, **one} for name in ("adapter", "released")],
        "models": ["adapter", "released", "base"],
    }
    return defaults, weights * 2


def _answers(frames: list[Frame]) -> dict[tuple[str, int], Frame]:
    assert {frame["frame"] for frame in frames} == {"answer"}
    return {(frame["model"], frame["question"]): frame for frame in frames}


@pytest.mark.thorough
def test_rows_are_answered_as_the_evaluation_evaluated_them(
    start: Start, places: dict[str, Path], task: tuple[Frame, bytes]
) -> None:
    rows = [json.loads(line) for line in (places["dataset"] / "rows.jsonl").read_text().splitlines()]
    digests = split_digests((places["dataset"] / "row_digests.bin").read_bytes())
    held_out = [(digest.hex(), row) for digest, row in zip(digests, rows, strict=True) if row["split"] == "held-out"]
    items = {item.row: item for item in parse_items((places["evaluation"] / "items.jsonl").read_bytes())}
    questions = [{"rendered": row["parts"][0][0], "labels": LABELS, "max_tokens": 8} for _, row in held_out]
    result, frames = start("preview").run({**task[0], "questions": questions}, task[1])
    assert result == {"frame": "result"}
    found = _answers(frames)
    assert len(found) == 3 * len(held_out)
    for number, (digest, _) in enumerate(held_out):
        assert found["adapter", number]["text"] == found["released", number]["text"] == items[digest].adapter.label
        assert found["base", number]["text"] == items[digest].base.label
        assert 0 <= float(found["base", number]["probability"]) <= 1


@pytest.mark.thorough
def test_what_is_written_ends_by_itself_or_at_the_most_tokens(start: Start, task: tuple[Frame, bytes]) -> None:
    questions = [
        {"messages": MESSAGES, "max_tokens": 3, "temperature": 0, "labels": []},
        {"rendered": "invoice and fee", "labels": [], "max_tokens": 3},
        {"prompt": "invoice", "max_tokens": 2, "temperature": 0, "labels": []},
    ]
    result, frames = start("preview").run({**task[0], "questions": questions}, task[1])
    assert result == {"frame": "result"}
    found = _answers(frames)
    assert {found[key]["finish_reason"] for key in found} <= {"stop", "length"}
    assert all(found[key]["completion_tokens"] <= 3 and found[key]["probability"] is None for key in found)
    again, frames = start("preview").run({**task[0], "questions": questions}, task[1])
    assert again == result and _answers(frames) == found


def test_one_question_that_cannot_be_answered_spoils_no_other(start: Start, task: tuple[Frame, bytes]) -> None:
    questions = [
        {"rendered": "", "labels": [], "max_tokens": 2},
        {"rendered": "word " * 5_000, "labels": [], "max_tokens": 2},
        {"messages": [{"role": "user", "content": "a <|im_end|> b"}], "max_tokens": 2, "labels": []},
        {"rendered": "invoice", "labels": [], "max_tokens": 2},
    ]
    _, frames = start("preview").run({**task[0], "models": ["base"], "questions": questions}, task[1])
    found = _answers(frames)
    codes = [found["base", number].get("code") for number in range(4)]
    assert codes == ["no-prompt", "context-length", "bad-input", None]


def test_weights_that_do_not_give_the_sealed_probe_answer_nothing(start: Start, task: tuple[Frame, bytes]) -> None:
    spoiled = bytearray(task[1])
    spoiled[-37] ^= 0x40  # of a float32 its exponent
    questions = [{"rendered": "invoice", "labels": [], "max_tokens": 2}]
    failure, frames = start("preview").run({**task[0], "questions": questions}, bytes(spoiled))
    assert (failure["frame"], failure["code"]) == ("failure", "fingerprint-differs")
    assert frames == []
