"""Measures on the held-out rows are those that a plain pass over each row alone gives, for every dataset kind."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch

from appliance.domain.data.kinds import DatasetDescription, DatasetKind, map_columns
from appliance.domain.evaluation import rules as evaluation_rules
from appliance.ml.data import rows as data
from appliance.ml.data.rows import Sample, tokenize_rows
from appliance.ml.data.sources import parse_source
from appliance.ml.evaluation import evaluation
from appliance.ml.inference.request import InferenceRequest
from appliance.ml.inference.sampling import draw_tokens
from appliance.ml.model.base import LoadedBase
from appliance.ml.training import loop, methods
from scripts.kit.tiny_model import RECIPE, clauses

WORDS = [text for text, _ in clauses(20)]
RECORDS: dict[DatasetKind, list[dict[str, Any]]] = {
    "classification": [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(WORDS)],
    "instruction": [{"instruction": text, "output": "pay"} for text in WORDS],
    "completion": [{"text": text} for text in WORDS],
    "summarisation": [{"text": text, "summary": text.split()[0]} for text in WORDS],
    "question-answering": [{"context": text, "question": "Which?", "answer": text.split()[-1]} for text in WORDS],
    "chat": [
        {"messages": [{"role": role, "content": text} for role in ("user", "assistant", "user", "assistant")]}
        for text in WORDS
    ],
    "preference": [{"prompt": text, "chosen": "pay", "rejected": text.split()[-1] + "!"} for text in WORDS],
}
NAMES = {
    "preference": {"accuracy", "margin"},
    "classification": {"accuracy", "macro_f1"},
    "summarisation": {"rouge_l", "answers", "answers_cut"},
    "question-answering": {"exact_match", "token_f1", "answers", "answers_cut"},
}


def _rows(
    dataset_kind: DatasetKind, base: LoadedBase
) -> tuple[list[data.RenderedRow], list[Sample], DatasetDescription]:
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS[dataset_kind])
    sources = parse_source(lines, "jsonl", dataset_kind, map_columns(dataset_kind, {}))
    sides = data.split_sources(dataset_kind, sources, 1, Fraction(1, 2))
    labels = data.check_labels(sides, ()) if dataset_kind == "classification" else ()
    rows = [
        row for row in data.render_rows(sides, base.chat, dataset_kind, instruction="") if row.split == data.HELD_OUT
    ]
    return rows, tokenize_rows(rows, base.chat, max_length=256), DatasetDescription(dataset_kind, labels)


def _plain_loss(base: LoadedBase, samples: list[Sample]) -> float:
    total, count = 0.0, 0
    for sample in samples:
        with torch.inference_mode():
            logits = base.model(input_ids=torch.tensor([sample.ids]), use_cache=False).logits[0].float()
        for start, stop in sample.spans:
            chosen = logits[start - 1 : stop - 1].log_softmax(-1)
            total -= chosen[range(stop - start), list(sample.ids[start:stop])].sum().item()
            count += stop - start
    return total / count


@pytest.mark.thorough
@pytest.mark.parametrize("dataset_kind", RECORDS)
def test_every_task_is_measured_by_its_loss_and_by_what_is_its_own(dataset_kind: DatasetKind, base: LoadedBase) -> None:
    rows, samples, about = _rows(dataset_kind, base)
    told: list[int] = []
    found = evaluation.evaluate(base, None, about, rows, samples, lambda more, tokens: told.append(more)).metrics
    assert found.keys() == {"rows", "loss", "perplexity", "trained_tokens", *NAMES.get(dataset_kind, set())}
    assert sum(told) == evaluation.count_passes(about, rows)
    expected = _plain_loss(base, samples)
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(found["perplexity"]) == pytest.approx(math.exp(expected), rel=1e-2)
    assert found["rows"] == len(rows) > 3
    assert (
        found == evaluation.evaluate(base, None, about, rows, samples, lambda more, tokens: told.append(more)).metrics
    ), "the same again"


@pytest.mark.thorough
def test_what_was_learnt_by_heart_is_answered_and_measured_so(base: LoadedBase) -> None:
    """Trained on the very rows, so that the greedy answers are the rows' own: ROUGE-L is 1, none is cut short."""
    with torch.no_grad():  # the tiny model pads with its end of turn, whose row is nothing and cannot be learnt
        base.head().weight[base.chat.encode("<|im_end|>")] = torch.randn(64) / 5
    base = replace(base, reader=None)  # it has adapters of peft's from here on
    rows, samples, about = _rows("summarisation", base)
    before = evaluation.evaluate(base, None, about, rows, samples, lambda more, tokens: None).metrics
    attached = methods.attach_adapter(base, {**RECIPE, "dropout": "0.0"})
    loop.train(base, attached, samples, {**RECIPE, "dropout": "0.0", "epochs": 40}, lambda step: None)
    after = evaluation.evaluate(base, None, about, rows, samples, lambda more, tokens: None).metrics
    assert float(before["rouge_l"]) < 0.2
    assert (after["rouge_l"], after["answers"], after["answers_cut"]) == ("1.000000", len(rows), 0)
    assert float(after["loss"]) < 0.1 < float(before["loss"])


def test_answers_are_bounded_in_rows_and_in_tokens(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_rules, "MOST_ANSWERS", 3)
    monkeypatch.setattr(evaluation, "MAX_ANSWER_TOKENS", 2)
    rows, samples, about = _rows("question-answering", base)
    drawn: list[int] = []

    def draw(*arguments: Any) -> Any:
        for token in draw_tokens(*arguments):
            drawn.append(token)
            yield token

    monkeypatch.setattr(evaluation, "draw_tokens", draw)
    found = evaluation.evaluate(base, None, about, rows, samples, lambda more, tokens: None).metrics
    assert found["answers"] == found["answers_cut"] == 3 < found["rows"]
    assert len(drawn) == 3 * 2
    chosen = [row.index for row in evaluation_rules.choose_evaluated(about.dataset_kind, rows)]
    assert chosen[0] == rows[0].index and chosen == sorted(set(chosen)), "spread over all, each once"


def test_an_answer_is_not_drawn_beyond_the_context(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, samples, about = _rows("question-answering", base)
    longest = max(len(sample.ids) for sample in samples)
    monkeypatch.setattr(LoadedBase, "context_length", longest)
    ends: list[int] = []

    def draw(base: LoadedBase, slots: object, prompt: list[int], request: InferenceRequest, limit: int) -> list[int]:
        assert request.max_tokens == limit >= 1
        ends.append(len(prompt) + limit)
        return []

    monkeypatch.setattr(evaluation, "draw_tokens", draw)
    monkeypatch.setattr(evaluation, "limit_answers", lambda chat, rows: longest)
    evaluation.evaluate(base, None, about, rows, samples, lambda more, tokens: None)
    assert ends == [longest] * len(rows)
