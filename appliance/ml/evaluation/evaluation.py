"""Evaluation of one model on held-out rows: the loss of the targets, and the metrics of the kind of dataset.

Base and adapter are evaluated on the same rows, in the same order and packs. Responses are generated greedily, as for a
unit's client at temperature 0. Their number and length are limited, so that an evaluation ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from appliance.domain.data.kinds import PREFERENCE, DatasetDescription
from appliance.domain.data.tool_calls import canonical_call
from appliance.domain.evaluation.items import MOST_SCORE, SCALE, Answer
from appliance.domain.evaluation.rules import choose_evaluated
from appliance.domain.planning.packs import PACK_TOKENS, split_into_packs
from appliance.errors import BadInput
from appliance.ml.data.rows import RenderedRow, Sample
from appliance.ml.evaluation import metrics
from appliance.ml.evaluation.labels import LabelTree, evaluate_rows
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.request import InferenceRequest
from appliance.ml.inference.sampling import draw_tokens
from appliance.ml.layers.head import sum_losses
from appliance.ml.layers.packing import pack_sequences
from appliance.ml.model.base import LoadedBase
from appliance.ml.model.calls import CallForm
from appliance.ml.model.chat import Chat
from appliance.ml.training.loss import adapter_off, has_adapter

PACK_ROWS = 16
MAX_ANSWER_TOKENS = 256

COMPARED = {"question-answering": metrics.summarize_answers, "summarisation": metrics.summarize_summaries}
"""Function of the metrics, by kind of dataset, if responses are generated and compared with the rows' own."""

Report = Callable[[int, int], None]
"""Callback with the number of rows that have gone through the model since the last call, and their tokens."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    `metrics` are the recorded values by name: counts, and fractions as decimal text. `answers` has the result of each
    row that `choose_evaluated` returns, in its order. `texts` are the responses, if they are texts.
    """

    metrics: dict[str, Any]
    answers: list[Answer]
    texts: tuple[str, ...] = ()


def count_passes(about: DatasetDescription, rows: Sequence[RenderedRow]) -> int:
    """Return the number of passes of rows through the model in one evaluation.

    A row has one pass for loss and label, and one for a generated response; a preference has one for each completion.
    """
    if about.dataset_kind == PREFERENCE:
        return 2 * len(rows)
    called = [row for row in rows if row.calls is not None]
    return len(rows) + (
        len(choose_evaluated(about.dataset_kind, rows, has_tools)) if about.dataset_kind in COMPARED or called else 0
    )


def has_tools(row: RenderedRow) -> bool:
    """Return True if the row is evaluated by its tool calls."""
    return row.calls is not None


def evaluate(
    base: LoadedBase,
    slots: AdapterSlots | None,
    about: DatasetDescription,
    rows: Sequence[RenderedRow],
    samples: Sequence[Sample],
    report: Report,
    limit: int | None = None,
) -> Evaluation:
    """Evaluate one model on the rows.

    `slots` wrap the base's layers; None if nothing does. `limit` is the largest number of tokens of a generated
    response; None for the limit of these rows (`limit_answers`).

    Raises:
        BadInput: the loss is not finite.
    """
    if about.dataset_kind == "classification":
        return classify(base, about.labels, rows, samples, report)
    if about.dataset_kind == PREFERENCE:
        return prefer(base, slots, samples, report)
    losses = measure_losses(base, samples, report)
    tokens = sum(sample.trained_tokens for sample in samples)
    metrics_found: dict[str, Any] = {
        "rows": len(rows),
        **metrics.summarize_loss(_check_finite(math.fsum(losses)), tokens),
    }
    chosen = choose_evaluated(
        about.dataset_kind, list(zip(rows, samples, losses, strict=True)), lambda one: has_tools(one[0])
    )
    scores = [{"loss": scale(loss / sample.trained_tokens)} for _, sample, loss in chosen]
    if has_tools(chosen[0][0]):
        return call_tools(base, slots, [row for row, _, _ in chosen], scores, metrics_found, report, limit)
    if about.dataset_kind not in COMPARED:
        return Evaluation(metrics_found, [_answer(one) for one in scores])
    expected = [row.answer for row, _, _ in chosen]
    written, cut = write_answers(base, slots, [row for row, _, _ in chosen], report, limit)
    metrics_found |= COMPARED[about.dataset_kind](expected, written) | {"answers": len(chosen), "answers_cut": cut}
    answers = [
        _score_response(about.dataset_kind, ours, theirs, one)
        for ours, theirs, one in zip(expected, written, scores, strict=True)
    ]
    return Evaluation(metrics_found, answers, tuple(written))


def call_tools(
    base: LoadedBase,
    slots: AdapterSlots | None,
    rows: Sequence[RenderedRow],
    scores: Sequence[dict[str, int]],
    found: dict[str, Any],
    report: Report,
    limit: int | None = None,
) -> Evaluation:
    """Evaluate rows with tools.

    A response is right if its calls are those of the row, in the same order and with arguments that are equal as
    canonical JSON; if the row has no calls, if the response has none. `found` has the metrics so far.
    """
    form = base.chat.calls
    if form is None:
        raise BadInput(f"evaluation: {base.chat.toolless}")
    written, cut = write_answers(base, slots, rows, report, limit)
    right = [_list_calls(form, row.answer) == _list_calls(form, text) for row, text in zip(rows, written, strict=True)]
    found |= metrics.summarize_calls(right) | {"answers": len(rows), "answers_cut": cut}
    answers = [_answer(one, right=hit) for one, hit in zip(scores, right, strict=True)]
    return Evaluation(found, answers, tuple(written))


def _list_calls(form: CallForm, answer: str) -> list[str]:
    return [canonical_call(call.name, call.arguments) for call in form.read_answer(answer)[1]]


def _score_response(dataset_kind: str, expected: str, written: str, scores: dict[str, int]) -> Answer:
    """Return the result of one response; in question answering it is right if it matches exactly."""
    if dataset_kind == "summarisation":
        return _answer({**scores, "rouge_l": scale(metrics.rouge_l(expected, written))})
    right = metrics.normalise(expected) == metrics.normalise(written)
    return _answer({**scores, "token_f1": scale(metrics.token_f1(expected, written))}, right=right)


def _answer(scores: dict[str, int], right: bool | None = None) -> Answer:
    return Answer(confidence=None, label=None, right=right, scores=scores)


def scale(value: float | Fraction) -> int:
    """Return the value in millionths, rounded half to even and clamped to ±MOST_SCORE."""
    return max(-MOST_SCORE, min(MOST_SCORE, round(value * SCALE)))


def measure_losses(base: LoadedBase, samples: Sequence[Sample], report: Report) -> list[float]:
    """Return the sum of the cross-entropy of each row's trained tokens, in nats."""
    return [loss for loss, _ in _measure(base, samples, report, False)]


def measure_continuations(base: LoadedBase, samples: Sequence[Sample], report: Report) -> list[tuple[float, bool]]:
    """Return the same sum, and True if each of these tokens is the most likely one at its position."""
    return _measure(base, samples, report, True)


def _measure(base: LoadedBase, samples: Sequence[Sample], report: Report, ranks: bool) -> list[tuple[float, bool]]:
    found: dict[int, tuple[float, bool]] = {}
    ordered = sorted(samples, key=lambda sample: (len(sample.ids), sample.index))
    for pack in split_into_packs(ordered, lambda sample: len(sample.ids), PACK_TOKENS, PACK_ROWS):
        found |= zip((sample.index for sample in pack), _read_pack(base, pack, ranks), strict=True)
        report(len(pack), sum(len(sample.ids) for sample in pack))
    return [found[sample.index] for sample in samples]


def _check_finite(total: float) -> float:
    if not math.isfinite(total):
        raise BadInput(f"evaluation: expected a finite loss on the held-out rows, got {total}", code="diverged")
    return total


@torch.inference_mode()
def _read_pack(base: LoadedBase, samples: Sequence[Sample], ranks: bool) -> list[tuple[float, bool]]:
    """Return the loss of each row and, with `ranks`, True if all of its trained tokens are the most likely ones."""
    own = max(len(sample.ids) - sample.spans[0][0] for sample in samples) + 1
    pack, segments = pack_sequences([sample.ids for sample in samples], keep=own, longest_short=base.longest_short)
    hidden, head = base.read_pack(pack), base.head()
    rows = [sample.targets(segment.stop - len(sample.ids)) for sample, segment in zip(samples, segments, strict=True)]
    losses = sum_losses(hidden, rows, head.token_losses).tolist()
    if not ranks:
        return [(loss, False) for loss in losses]
    missed = sum_losses(hidden, rows, lambda states, targets: (head.find_likeliest(states) != targets).int())
    return list(zip(losses, (missed == 0).tolist(), strict=True))


def classify(
    base: LoadedBase, labels: Sequence[str], rows: Sequence[RenderedRow], samples: Sequence[Sample], report: Report
) -> Evaluation:
    """Evaluate a classification: loss, accuracy and macro-F1, with the model restricted to the dataset's labels."""
    chat = base.chat
    tree = LabelTree([chat.encode(chat.answer(label)) for label in labels])
    evaluated = evaluate_rows(base, samples, [sample.spans[0][0] for sample in samples], [tree] * len(samples), report)
    total = _check_finite(math.fsum(one.loss for one in evaluated))
    found = metrics.summarize_loss(total, sum(sample.trained_tokens for sample in samples))
    chosen = [labels[one.label] for one in evaluated]
    found |= metrics.summarize([row.answer for row in rows], chosen)
    answers = [
        Answer(
            confidence=min(SCALE, round(math.exp(one.log_probability) * SCALE)),
            label=label,
            right=label == row.answer,
            scores={"loss": scale(one.loss / sample.trained_tokens)},
        )
        for row, sample, one, label in zip(rows, samples, evaluated, chosen, strict=True)
    ]
    return Evaluation({"rows": len(rows), **found}, answers, tuple(chosen))


def prefer(base: LoadedBase, slots: AdapterSlots | None, samples: Sequence[Sample], report: Report) -> Evaluation:
    """Evaluate preferences: which completion of each pair the model prefers.

    The base prefers the more likely one. A trained model prefers the one with the higher reward, the gain of its
    log-probability over the base. `margin` is the mean difference of log-probability (or reward, without beta) between
    the chosen and the rejected completion.
    """
    sides = [one for sample in samples for one in _divide(sample)]
    losses = measure_losses(base, sides, report)
    chosen = losses[::2]
    margins = [other - own for own, other in zip(chosen, losses[1::2], strict=True)]
    if has_adapter(base.model) if slots is None else slots.active is not None:
        with adapter_off(base.model) if slots is None else slots.bare():
            theirs = measure_losses(base, sides, lambda rows, tokens: None)
        before = [other - own for own, other in zip(theirs[::2], theirs[1::2], strict=True)]
        margins = [margin - one for margin, one in zip(margins, before, strict=True)]
    lengths = [one.trained_tokens for one in sides[::2]]
    found = metrics.summarize_loss(_check_finite(math.fsum(chosen)), sum(lengths))
    found |= metrics.summarize_margins([scale(margin) for margin in margins], SCALE)
    answers = [
        _answer({"loss": scale(loss / count), "margin": scale(margin)}, right=scale(margin) > 0)
        for loss, count, margin in zip(chosen, lengths, margins, strict=True)
    ]
    return Evaluation({"rows": len(samples), **found}, answers)


def _divide(sample: Sample) -> tuple[Sample, Sample]:
    """Return both completions of a preference, each with the prompt, as separate rows."""
    start = sample.spans[0][0]
    ids = sample.ids[:start] + sample.rejected
    return (
        Sample(2 * sample.index, sample.ids, sample.spans),
        Sample(2 * sample.index + 1, ids, ((start, len(ids)),)),
    )


def limit_answers(chat: Chat, rows: Sequence[RenderedRow]) -> int:
    """Return the largest number of tokens of a generated response to one of these rows.

    It is the length of the longest expected response, and at most MAX_ANSWER_TOKENS.
    """
    return min(MAX_ANSWER_TOKENS, max(len(chat.encode(row.parts[row.calls or 0][1])) for row in rows))


def write_answers(
    base: LoadedBase, slots: AdapterSlots | None, rows: Sequence[RenderedRow], report: Report, limit: int | None = None
) -> tuple[list[str], int]:
    """Return the model's response to each row, and the number of responses that were cut off.

    No response is longer than `limit` (see `limit_answers`) or than the base's context allows after the prompt.
    """
    chat = base.chat
    most = limit_answers(chat, rows) if limit is None else limit
    answers, cut = [], 0
    for row in rows:
        place = row.calls or 0
        ids: list[int] = []
        ended = False
        prompt = [token for part in row.parts[:place] for text in part for token in chat.encode(text)]
        prompt += chat.encode(row.parts[place][0])
        room = min(most, base.context_length - len(prompt))
        for token in draw_tokens(base, slots, prompt, InferenceRequest((), room), room):
            if ended := token in chat.stop_ids():
                break
            ids.append(token)
        answers.append(chat.decode(ids))
        cut += not ended
        report(1, len(prompt) + len(ids))
    return answers, cut
