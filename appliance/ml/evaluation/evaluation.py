"""What one model makes of held-out rows: its loss on the answers, and what its task is measured by beside.

The same rows, in the same order and packs, for base and adapter. Answers are drawn greedily, as a unit's client at
temperature 0 would get them, from so many rows and of so many tokens at most that an evaluation ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from appliance.domain.data.tasks import PREFERENCE
from appliance.domain.data.teaching import About
from appliance.domain.data.tool_calls import canonical_call
from appliance.domain.evaluation.items import MOST_SCORE, SCALE, Answer
from appliance.domain.evaluation.judging import choose_judged
from appliance.errors import BadInput
from appliance.ml.data.rows import Row
from appliance.ml.data.samples import Sample
from appliance.ml.evaluation import metrics
from appliance.ml.evaluation.labels import LabelTree, judge_rows
from appliance.ml.inference.adapters import Slots
from appliance.ml.inference.drawing import draw_tokens
from appliance.ml.inference.request import Request
from appliance.ml.layers.packing import pack_sequences
from appliance.ml.model.base import Base
from appliance.ml.model.calls import CallForm
from appliance.ml.model.chat import Chat
from appliance.ml.training.preferences import adapter_off, has_adapter

PACK_TOKENS = 2048
PACK_ROWS = 16
MAX_ANSWER_TOKENS = 256

COMPARED = {"question-answering": metrics.summarize_answers, "summarisation": metrics.summarize_summaries}
"""Tasks whose answers are written out and compared with the rows' own."""

Report = Callable[[int, int], None]
"""Called with how many rows more have gone through the model, and their tokens."""


@dataclass(frozen=True)
class Evaluation:
    """`metrics`: what a record holds of it, by name: counts, and fractions as decimal text. `answers`: of each row that
    `choose_judged` gives, in its order. `texts`: what was answered, where that is a text."""

    metrics: dict[str, Any]
    answers: list[Answer]
    texts: tuple[str, ...] = ()


def count_passes(about: About, rows: Sequence[Row]) -> int:
    """How often a row goes through the model in one evaluation: for its loss and label, and again for its answer; of a
    preference for both answers."""
    if about.task == PREFERENCE:
        return 2 * len(rows)
    called = [row for row in rows if row.calls is not None]
    return len(rows) + (len(choose_judged(about.task, rows, has_tools)) if about.task in COMPARED or called else 0)


def has_tools(row: Row) -> bool:
    """Whether the row is judged by its calls."""
    return row.calls is not None


def evaluate(
    base: Base,
    slots: Slots | None,
    about: About,
    rows: Sequence[Row],
    samples: Sequence[Sample],
    report: Report,
    limit: int | None = None,
) -> Evaluation:
    """What one model makes of the rows. `slots`: those that wrap the base's layers, None where none do. `limit`: tokens
    of a written answer at most; None for the limit that these rows give by themselves (`limit_answers`)."""
    if about.task == "classification":
        return classify(base, about.labels, rows, samples, report)
    if about.task == PREFERENCE:
        return prefer(base, slots, samples, report)
    losses = measure_losses(base, samples, report)
    tokens = sum(sample.trained_tokens for sample in samples)
    metrics_found: dict[str, Any] = {
        "rows": len(rows),
        **metrics.summarize_loss(_check_finite(math.fsum(losses)), tokens),
    }
    chosen = choose_judged(about.task, list(zip(rows, samples, losses, strict=True)), lambda one: has_tools(one[0]))
    scores = [{"loss": scale(loss / sample.trained_tokens)} for _, sample, loss in chosen]
    if has_tools(chosen[0][0]):
        return call_tools(base, slots, [row for row, _, _ in chosen], scores, metrics_found, report, limit)
    if about.task not in COMPARED:
        return Evaluation(metrics_found, [_answer(one) for one in scores])
    expected = [row.answer for row, _, _ in chosen]
    written, cut = write_answers(base, slots, [row for row, _, _ in chosen], report, limit)
    metrics_found |= COMPARED[about.task](expected, written) | {"answers": len(chosen), "answers_cut": cut}
    answers = [
        _judge(about.task, ours, theirs, one) for ours, theirs, one in zip(expected, written, scores, strict=True)
    ]
    return Evaluation(metrics_found, answers, tuple(written))


def call_tools(
    base: Base,
    slots: Slots | None,
    rows: Sequence[Row],
    scores: Sequence[dict[str, int]],
    found: dict[str, Any],
    report: Report,
    limit: int | None = None,
) -> Evaluation:
    """Rows with tools: an answer is right where it calls what the row calls, in that order, with arguments that are the
    same as canonical JSON; where the row calls nothing, where it calls nothing. `found`: the metrics so far."""
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


def _judge(task: str, expected: str, written: str, scores: dict[str, int]) -> Answer:
    """One written answer; of question answering it is right where it matches exactly."""
    if task == "summarisation":
        return _answer({**scores, "rouge_l": scale(metrics.rouge_l(expected, written))})
    right = metrics.normalise(expected) == metrics.normalise(written)
    return _answer({**scores, "token_f1": scale(metrics.token_f1(expected, written))}, right=right)


def _answer(scores: dict[str, int], right: bool | None = None) -> Answer:
    return Answer(confidence=None, label=None, right=right, scores=scores)


def scale(value: float | Fraction) -> int:
    """In millionths, half to even."""
    return max(-MOST_SCORE, min(MOST_SCORE, round(value * SCALE)))


def measure_losses(base: Base, samples: Sequence[Sample], report: Report) -> list[float]:
    """The summed cross-entropy of each row's trained tokens."""
    return [loss for loss, _ in _measure(base, samples, report, False)]


def measure_continuations(base: Base, samples: Sequence[Sample], report: Report) -> list[tuple[float, bool]]:
    """The same, and whether each of these tokens is the likeliest where it is."""
    return _measure(base, samples, report, True)


def _measure(base: Base, samples: Sequence[Sample], report: Report, ranks: bool) -> list[tuple[float, bool]]:
    found: dict[int, tuple[float, bool]] = {}
    for pack in _packs(samples):
        found |= zip((sample.index for sample in pack), _read_pack(base, pack, ranks), strict=True)
        report(len(pack), sum(len(sample.ids) for sample in pack))
    return [found[sample.index] for sample in samples]


def _check_finite(total: float) -> float:
    if not math.isfinite(total):
        raise BadInput(f"evaluation: expected a finite loss on the held-out rows, got {total}", code="diverged")
    return total


def _packs(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Short with short; a row that is longer than a pack is one by itself."""
    packs: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda sample: (len(sample.ids), sample.index)):
        size = sum(len(other.ids) for other in packs[-1]) + len(sample.ids) if packs else 0
        if not packs or size > PACK_TOKENS or len(packs[-1]) == PACK_ROWS:
            packs.append([])
        packs[-1].append(sample)
    return packs


@torch.inference_mode()
def _read_pack(base: Base, samples: Sequence[Sample], ranks: bool) -> list[tuple[float, bool]]:
    """Each row's loss, and with `ranks` whether its trained tokens are all the likeliest."""
    own = max(len(sample.ids) - sample.spans[0][0] for sample in samples) + 1
    pack, segments = pack_sequences([sample.ids for sample in samples], keep=own, longest_short=base.longest_short)
    places, targets, owners = list[int](), list[int](), list[int]()
    for number, (sample, segment) in enumerate(zip(samples, segments, strict=True)):
        first = segment.stop - len(sample.ids)
        for start, stop in sample.spans:
            places += range(first + start - 1, first + stop - 1)
            targets += sample.ids[start:stop]
            owners += [number] * (stop - start)
    hidden = base.read_pack(pack)[places]
    wanted = torch.tensor(targets, device=base.device)
    losses = base.head().token_losses(hidden, wanted)
    total = losses.new_zeros(len(samples)).index_add(0, torch.tensor(owners, device=base.device), losses)
    missed = set[int]()
    if ranks:
        likeliest = base.head().find_likeliest(hidden) == wanted
        missed = {owner for owner, hit in zip(owners, likeliest.tolist(), strict=True) if not hit}
    return [(loss, number not in missed) for number, loss in enumerate(total.tolist())]


def classify(
    base: Base, labels: Sequence[str], rows: Sequence[Row], samples: Sequence[Sample], report: Report
) -> Evaluation:
    """Loss, accuracy and macro-F1, the model held to the dataset's labels."""
    chat = base.chat
    tree = LabelTree([chat.encode(chat.answer(label)) for label in labels])
    judged = judge_rows(base, samples, [sample.spans[0][0] for sample in samples], [tree] * len(samples), report)
    total = _check_finite(math.fsum(one.loss for one in judged))
    found = metrics.summarize_loss(total, sum(sample.trained_tokens for sample in samples))
    chosen = [labels[one.label] for one in judged]
    found |= metrics.summarize([row.answer for row in rows], chosen)
    answers = [
        Answer(
            confidence=min(SCALE, round(math.exp(one.log_probability) * SCALE)),
            label=label,
            right=label == row.answer,
            scores={"loss": scale(one.loss / sample.trained_tokens)},
        )
        for row, sample, one, label in zip(rows, samples, judged, chosen, strict=True)
    ]
    return Evaluation({"rows": len(rows), **found}, answers, tuple(chosen))


def prefer(base: Base, slots: Slots | None, samples: Sequence[Sample], report: Report) -> Evaluation:
    """Which answer of each pair a model prefers. The base: the one that is likelier to it. What was trained: the one
    whose reward is higher, so how much likelier it made it than its reference, the base, has it.

    `margin`: the mean of the chosen answer's log-probability (or reward, without beta) above the rejected one's.
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
    """Both answers of a preference, each behind the prompt, as rows of their own."""
    start = sample.spans[0][0]
    ids = sample.ids[:start] + sample.rejected
    return (
        Sample(2 * sample.index, sample.ids, sample.spans),
        Sample(2 * sample.index + 1, ids, ((start, len(ids)),)),
    )


def limit_answers(chat: Chat, rows: Sequence[Row]) -> int:
    """Tokens that a written answer to one of these rows may have: as many as the longest expected one, and
    MAX_ANSWER_TOKENS at most."""
    return min(MAX_ANSWER_TOKENS, max(len(chat.encode(row.parts[row.calls or 0][1])) for row in rows))


def write_answers(
    base: Base, slots: Slots | None, rows: Sequence[Row], report: Report, limit: int | None = None
) -> tuple[list[str], int]:
    """What the model writes for each row, and how many answers came to no end by themselves.

    None is longer than `limit` (see `limit_answers`), nor than the base's context leaves behind its prompt.
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
        for token in draw_tokens(base, slots, prompt, Request((), room), room):
            if ended := token in chat.stop_ids():
                break
            ids.append(token)
        answers.append(chat.decode(ids))
        cut += not ended
        report(1, len(prompt) + len(ids))
    return answers, cut
