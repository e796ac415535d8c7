"""One pass for loss and label gives the same labels and losses as separate passes."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from appliance.ml.data import rows as data
from appliance.ml.data.rows import Sample, tokenize_rows
from appliance.ml.data.sources import parse_source
from appliance.ml.evaluation import labels as subject
from appliance.ml.evaluation.labels import LabelTree, evaluate_rows
from appliance.ml.inference.score import find_branches
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from scripts.kit.tiny_model import build_base, clauses
from tests.kit.scoring import score_labels

LABELS = ["zq a", "zq b", "zq b c", "zq b d", "zq b d e", "y", "y x", "payment"]


def _rows(base: LoadedBase) -> tuple[list[data.RenderedRow], list[Sample]]:
    lines = [{"text": text, "label": LABELS[n % len(LABELS)]} for n, (text, _) in enumerate(clauses(40))]
    source = "".join(json.dumps(line) + "\n" for line in lines).encode()
    sources = parse_source(source, "jsonl", "classification", {"text": "text", "label": "label"})
    sides = data.split_sources("classification", sources, 1, Fraction(1, 2))
    rows = [row for row in data.render_rows(sides, base.chat, "classification", instruction="Say it.")]
    return rows, tokenize_rows(rows, base.chat, max_length=256)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["llama", "mistral", "phi4", "gemma2"])
@pytest.mark.parametrize("tokens", [2048, 150, 1])
def test_labels_probabilities_and_losses_are_those_of_every_label_and_row_by_itself(
    kind: str, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.use_determinism(5)
    monkeypatch.setattr(subject, "PACK_TOKENS", tokens)
    base = load_base(
        build_base(tmp_path / kind, kind),
        quantisation="nf4-double",
        compute_dtype="float32",
        device="cpu",
        own_layers=True,
    )
    rows, samples = _rows(base)
    answers = [base.chat.encode(base.chat.answer(label)) for label in LABELS]
    assert len(find_branches(answers)) > 3, "the labels begin alike"
    told: list[int] = []
    trees = [LabelTree(answers)] * len(samples)
    evaluated = evaluate_rows(
        base, samples, [sample.spans[0][0] for sample in samples], trees, lambda more, tokens: told.append(more)
    )
    assert sum(told) == len(rows) == len(evaluated)
    prompts = [sample.ids[: sample.spans[0][0]] for sample in samples]
    scores = [score_labels(base, prompt, answers) for prompt in prompts]
    assert [one.label for one in evaluated] == [row.index(max(row)) for row in scores]
    for one, sample, expected in zip(evaluated, samples, scores, strict=True):
        assert one.index == sample.index
        assert one.log_probability == pytest.approx(max(expected), abs=1e-4)
        with torch.inference_mode():
            logits = base.model(input_ids=torch.tensor([sample.ids]), use_cache=False).logits[0].float()
        ((start, stop),) = sample.spans
        chosen = logits[start - 1 : stop - 1].log_softmax(-1)[range(stop - start), list(sample.ids[start:stop])]
        assert one.loss == pytest.approx(-chosen.sum().item(), rel=1e-4)
    assert sum(math.exp(score) for score in scores[0]) == pytest.approx(1)


def test_a_single_label_is_certain(base: LoadedBase) -> None:
    _, samples = _rows(base)
    answers = [base.chat.encode(base.chat.answer("payment"))]
    trees = [LabelTree(answers)] * 3
    evaluated = evaluate_rows(
        base, samples[:3], [sample.spans[0][0] for sample in samples[:3]], trees, lambda more, tokens: None
    )
    assert [(one.label, one.log_probability) for one in evaluated] == [(0, 0.0)] * 3


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["llama", "mistral", "phi4", "gemma2"])
@pytest.mark.parametrize("tokens", [2048, 150, 1])
def test_rows_with_labels_of_their_own_are_evaluated_by_those_alone_and_whole(
    kind: str, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.use_determinism(5)
    monkeypatch.setattr(subject, "PACK_TOKENS", tokens)
    base = load_base(
        build_base(tmp_path / kind, kind),
        quantisation="nf4-double",
        compute_dtype="float32",
        device="cpu",
        own_layers=True,
    )
    rows, samples = _rows(base)
    answers = [base.chat.encode(base.chat.answer(label)) for label in LABELS]
    # The row's own label, and two others that begin like it or not.
    numbers = [sorted({LABELS.index(row.answer), n % 8, (n + 3) % 8, (n + 5) % 8}) for n, row in enumerate(rows)]
    trees = [LabelTree([answers[number] for number in some]) for some in numbers]
    prompts = [sample.spans[0][0] for sample in samples]
    whole = evaluate_rows(base, samples, prompts, trees, lambda more, tokens: None, whole=True)
    parts = evaluate_rows(base, samples, prompts, trees, lambda more, tokens: None)
    for sample, some, one, other in zip(samples, numbers, whole, parts, strict=True):
        expected = score_labels(base, sample.ids[: sample.spans[0][0]], [answers[number] for number in some])
        assert one.every == pytest.approx(expected, abs=1e-4)
        assert one.label == other.label == max(range(len(some)), key=expected.__getitem__)
        assert one.log_probability == pytest.approx(one.every[one.label], abs=1e-9)
        assert (one.log_probability, one.loss) == pytest.approx((other.log_probability, other.loss), abs=1e-4)


def test_the_order_in_which_rows_are_given_changes_no_bit(base: LoadedBase) -> None:
    rows, samples = _rows(base)
    answers = [base.chat.encode(base.chat.answer(label)) for label in LABELS]
    trees = {row.index: LabelTree(answers[: 3 + row.index % 5]) for row in rows}

    def evaluate(some: list[Sample]) -> dict[int, subject.LabelResult]:
        prompts = [sample.spans[0][0] for sample in some]
        given = [trees[sample.index] for sample in some]
        return {one.index: one for one in evaluate_rows(base, some, prompts, given, lambda *_: None, whole=True)}

    assert evaluate(samples) == evaluate(samples[::-1]) == evaluate(samples[7:] + samples[:7])
