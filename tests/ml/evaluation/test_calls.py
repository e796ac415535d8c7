"""A chat with tools is evaluated by its calls, by name and canonical arguments, or by that nothing is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.data.kinds import DatasetDescription, map_columns
from appliance.domain.evaluation.items import parse_items
from appliance.ml.data import rows as data
from appliance.ml.data.rows import tokenize_rows
from appliance.ml.data.sources import parse_source
from appliance.ml.evaluation import evaluation
from appliance.ml.evaluation.evaluation import evaluate
from appliance.ml.evaluation.sets import write_items
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from scripts.kit.tiny_model import build_base
from scripts.kit.tool_templates import HERMES
from tests.kit.toolful import ASKED, CALLED, OTHER, RESULT, SAID, TOOLS, TURNS

ABOUT = DatasetDescription("chat", ())
TWICE = [*TURNS, {"role": "user", "content": "And?"}, {**CALLED, "tool_calls": [OTHER]}]
RECORDS: list[dict[str, Any]] = [
    {"messages": TURNS, "tools": TOOLS},
    {"messages": [ASKED, SAID]},
    {"messages": [ASKED, SAID], "tools": TOOLS},
    {"messages": [ASKED, {**CALLED, "content": ""}, RESULT, SAID], "tools": TOOLS},
    {"messages": [*TURNS[:1], SAID, *TWICE[-2:]], "tools": TOOLS},
]
WRITTEN = [
    '<tool_call>{"arguments": {"most": 2.0, "kind": "payment"}, "name": "find"}</tool_call>',  # the same, otherwise
    "Nothing is due.",  # no call, as in the row
    '<tool_call>{"name": "find", "arguments": {"kind": "payment"}}</tool_call>',  # an argument is missing
    '<tool_call>{"name": "stop", "arguments": {}}</tool_call> Done.',
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    machine.use_determinism(7)
    folder = build_base(tmp_path_factory.mktemp("calls") / "base", template=HERMES, max_position_embeddings=1024)
    return load_base(folder, quantisation="none", compute_dtype="float32", device="cpu", own_layers=True)


@pytest.fixture(scope="module")
def rows(base: LoadedBase) -> list[data.RenderedRow]:
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
    sources = parse_source(lines, "jsonl", "chat", map_columns("chat", {}))
    return data.render_rows(data.hold_out_sources(sources), base.chat, "chat", instruction="", is_validation_set=True)


def test_an_answer_is_right_where_it_calls_what_the_row_calls(
    base: LoadedBase, rows: list[data.RenderedRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows without tools are no items, and the loss is that of all rows."""
    asked: list[str] = []

    def draw(base: LoadedBase, slots: object, prompt: Sequence[int], request: object, limit: int) -> list[int]:
        asked.append(base.chat.tokenizer.decode(list(prompt), skip_special_tokens=False))
        return base.chat.encode(WRITTEN[len(asked) - 1] + base.chat.end_of_turn)

    monkeypatch.setattr(evaluation, "draw_tokens", draw)
    samples = tokenize_rows(rows, base.chat, max_length=1024)
    found = evaluate(base, None, ABOUT, rows, samples, lambda more, tokens: None)
    assert [answer.right for answer in found.answers] == [True, True, False, True]
    assert (found.metrics["call_match"], found.metrics["answers"], found.metrics["rows"]) == ("0.750000", 4, 5)
    assert [prompt.endswith("<|im_start|>assistant\n") for prompt in asked] == [True] * 4
    assert asked[0] == base.chat.render([ASKED], TOOLS)
    assert asked[3] == base.chat.render([ASKED, SAID, {"role": "user", "content": "And?"}], TOOLS), (
        "where it first calls"
    )
    data.write_rows(rows, ABOUT, tmp_path, bytes(32))
    items = parse_items(write_items(tmp_path, ABOUT, rows, samples, found.answers, found.answers))
    assert len(items) == 4 and sum(bool(item.adapter.right) for item in items) == 3
    assert evaluation.count_passes(ABOUT, rows) == 5 + 4


@pytest.mark.thorough
def test_the_same_rows_are_evaluated_the_same_again(base: LoadedBase, rows: list[data.RenderedRow]) -> None:
    samples = tokenize_rows(rows, base.chat, max_length=1024)
    first, second = (evaluate(base, None, ABOUT, rows, samples, lambda more, tokens: None) for _ in range(2))
    assert first == second and len(first.texts) == 4
