"""What one model makes of held-out rows: its loss on the answers, and what its task is measured by beside.

The same rows, in the same order and packs, for base and adapter. Answers are drawn greedily, as a unit's client at
temperature 0 would get them, from so many rows and of so many tokens at most that an evaluation ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from appliance.domain.data.teaching import About
from appliance.errors import BadInput
from appliance.ml.data.rows import Row
from appliance.ml.data.samples import Sample
from appliance.ml.evaluation import metrics
from appliance.ml.evaluation.labels import judge_rows
from appliance.ml.inference.adapters import Slots
from appliance.ml.inference.drawing import draw_tokens
from appliance.ml.inference.request import Request
from appliance.ml.layers.packing import pack_sequences
from appliance.ml.model.base import Base

PACK_TOKENS = 2048
PACK_ROWS = 16
MAX_ANSWERS = 64
MAX_ANSWER_TOKENS = 256

COMPARED = {"question-answering": metrics.summarize_answers, "summarisation": metrics.summarize_summaries}
"""Tasks whose answers are written out and compared with the rows' own."""

Report = Callable[[int], None]
"""Called with the number of further rows that went through the model."""


def count_passes(about: About, rows: Sequence[Row]) -> int:
    """How often a row goes through the model in one evaluation: for its loss and label, and again for its answer."""
    return len(rows) + (len(choose_rows(rows)) if about.task in COMPARED else 0)


def evaluate(
    base: Base, slots: Slots | None, about: About, rows: Sequence[Row], samples: Sequence[Sample], report: Report
) -> dict[str, Any]:
    """What a record holds of one evaluation, by the metric's name: counts, and fractions as decimal text.

    `slots`: those that wrap the base's layers, None where none do.
    """
    if about.task == "classification":
        return {"rows": len(rows), **classify(base, about.labels, rows, samples, report)}
    found: dict[str, Any] = {"rows": len(rows), **metrics.summarize_loss(*measure_loss(base, samples, report))}
    if about.task in COMPARED:
        chosen = choose_rows(rows)
        expected, answers, cut = [row.answer for row in chosen], *write_answers(base, slots, chosen, report)
        return found | COMPARED[about.task](expected, answers) | {"answers": len(chosen), "answers_cut": cut}
    return found


def measure_loss(base: Base, samples: Sequence[Sample], report: Report) -> tuple[float, int]:
    """The summed cross-entropy of the rows' trained tokens, and how many they are."""
    total = 0.0
    for pack in _packs(samples):
        total += _sum_loss(base, pack)
        report(len(pack))
    return _check_finite(total), sum(sample.trained_tokens for sample in samples)


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
def _sum_loss(base: Base, samples: Sequence[Sample]) -> float:
    own = max(len(sample.ids) - sample.spans[0][0] for sample in samples) + 1
    pack, segments = pack_sequences([sample.ids for sample in samples], keep=own, longest_short=base.longest_short)
    places: list[int] = []
    targets: list[int] = []
    for sample, segment in zip(samples, segments, strict=True):
        first = segment.stop - len(sample.ids)
        for start, stop in sample.spans:
            places += range(first + start - 1, first + stop - 1)
            targets += sample.ids[start:stop]
    hidden = base.read_pack(pack)[places]
    return base.head().token_losses(hidden, torch.tensor(targets, device=base.device)).sum().item()


def classify(
    base: Base, labels: Sequence[str], rows: Sequence[Row], samples: Sequence[Sample], report: Report
) -> dict[str, Any]:
    """Loss, accuracy and macro-F1, the model held to the dataset's labels."""
    chat = base.chat
    answers = [chat.encode(chat.answer(label)) for label in labels]
    judged = judge_rows(base, samples, [sample.spans[0][0] for sample in samples], answers, report)
    total = _check_finite(math.fsum(one.loss for one in judged))
    found = metrics.summarize_loss(total, sum(sample.trained_tokens for sample in samples))
    return found | metrics.summarize([row.answer for row in rows], [labels[one.label] for one in judged])


def choose_rows(rows: Sequence[Row]) -> list[Row]:
    """At most MAX_ANSWERS, spread evenly over all."""
    count = min(len(rows), MAX_ANSWERS)
    return [rows[number * len(rows) // count] for number in range(count)]


def write_answers(base: Base, slots: Slots | None, rows: Sequence[Row], report: Report) -> tuple[list[str], int]:
    """What the model writes for each row, and how many answers came to no end by themselves.

    None may be longer than the longest that was expected, nor than MAX_ANSWER_TOKENS.
    """
    chat = base.chat
    limit = min(MAX_ANSWER_TOKENS, max(len(chat.encode(row.parts[-1][1])) for row in rows))
    answers, cut = [], 0
    for row in rows:
        ids: list[int] = []
        ended = False
        for token in draw_tokens(base, slots, chat.encode(row.parts[0][0]), Request((), limit), limit):
            if ended := token in chat.stop_ids():
                break
            ids.append(token)
        answers.append(chat.decode(ids))
        cut += not ended
        report(1)
    return answers, cut
