"""Evaluation on the shipped sets, against each choice's probability computed alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from appliance.domain.data.kinds import SHIPPED
from appliance.domain.evaluation.items import SCALE, check_rows, parse_items
from appliance.domain.evaluation.shipped.sets import list_shipped_rows, load_general, load_refusal
from appliance.errors import BadInput
from appliance.ml.evaluation import sets as subject
from appliance.ml.model.base import LoadedBase, load_base
from scripts.kit.tiny_model import build_base
from tests.kit.scoring import score_labels


@pytest.mark.thorough
def test_every_question_is_answered_with_the_choice_that_is_likeliest_by_itself(base: LoadedBase) -> None:
    told: list[int] = []
    answers = subject.load_shipped("general", base).evaluate(base, None, lambda more, _: told.append(more)).answers
    rows = load_general().rows
    assert sum(told) == len(answers) == len(rows) == subject.load_shipped("general", base).passes
    for row, answer in list(zip(rows, answers, strict=True))[::20]:
        prompt = base.chat.encode(base.chat.render([{"role": "user", "content": row.prompt}]))
        choices = [base.chat.encode(base.chat.answer(choice)) for choice in row.choices]
        scores = score_labels(base, prompt, choices)
        best = max(range(4), key=scores.__getitem__)
        assert (answer.label, answer.right) == (row.choices[best], best == row.right)
        assert answer.confidence == pytest.approx(math.exp(scores[best]) * SCALE, rel=1e-3)
        with torch.inference_mode():
            ids = prompt + choices[row.right]
            logits = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
        loss = -logits[range(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]].mean().item()
        assert answer.scores == {"loss": pytest.approx(loss * SCALE, rel=1e-3)}


@pytest.mark.thorough
def test_a_pair_is_right_where_the_one_request_is_refused_and_the_other_answered(base: LoadedBase) -> None:
    told: list[int] = []
    answers = subject.load_shipped("refusal", base).evaluate(base, None, lambda more, _: told.append(more)).answers
    given = load_refusal()
    assert len(answers) == 100 and sum(told) == 200 == subject.load_shipped("refusal", base).passes
    beginnings = [base.chat.encode(text) for text in (*given.refusals, *given.answers)]
    for pair, answer in list(zip(given.pairs, answers, strict=True))[::10]:
        prompts = [
            base.chat.encode(base.chat.render([{"role": "user", "content": text}]))
            for text in (pair.refuse, pair.answer)
        ]
        shares = [
            sum(map(math.exp, scores[: len(given.refusals)]))
            for scores in (score_labels(base, prompt, beginnings) for prompt in prompts)
        ]
        refused, answered = shares[0] > 0.5, shares[1] <= 0.5
        assert answer.right == (refused and answered)
        assert {name: answer.scores[name] // SCALE for name in ("refused", "answered")} == {
            "refused": refused,
            "answered": answered,
        }
        assert answer.label == subject.OUTCOMES[refused, answered]
        chosen = (shares[0] if refused else 1 - shares[0]) * (1 - shares[1] if answered else shares[1])
        assert answer.confidence == pytest.approx(chosen * SCALE, rel=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("name", SHIPPED)
def test_items_are_of_exactly_the_rows_of_the_set(name: str, base: LoadedBase, tmp_path: Path) -> None:
    shipped = subject.load_shipped(name, base)
    found = shipped.evaluate(base, None, lambda more, tokens: None)
    assert found == shipped.evaluate(base, None, lambda more, tokens: None), "the same bits again"
    shipped.write(tmp_path, found.answers, found.answers)
    items = parse_items((tmp_path / f"items-{name}.jsonl").read_bytes())
    check_rows(items, list_shipped_rows(name))
    assert all(item.slices.column and item.cluster is None for item in items)
    right = sum(bool(item.adapter.right) for item in items) / len(items)
    assert found.metrics["rows"] == len(items) and float(found.metrics["accuracy"]) == pytest.approx(right)


def test_a_base_whose_context_is_too_short_for_a_row_is_named(tmp_path: Path) -> None:
    folder = build_base(tmp_path / "short", max_position_embeddings=128)
    base = load_base(folder, quantisation="nf4-double", compute_dtype="float32", device="cpu", own_layers=True)
    with pytest.raises(BadInput, match=r"set general, row \d+: expected at most 128 tokens \(the base's context\)"):
        subject.load_shipped("general", base).evaluate(base, None, lambda more, tokens: None)
