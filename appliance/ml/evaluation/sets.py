"""The sets of rows that an evaluation judges on: the dataset's held-out rows, and validation sets in folders of their
own. Of a blind set only coarse numbers leave.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from appliance.domain.data.teaching import About
from appliance.domain.evaluation.basis import items_path
from appliance.domain.evaluation.items import Answer
from appliance.domain.evaluation.judging import WRITTEN, choose_judged
from appliance.errors import ApplianceError, BadInput
from appliance.formats.artifacts.rows import split_digests
from appliance.ml.data import overlap
from appliance.ml.data import rows as data
from appliance.ml.data.rows import Row
from appliance.ml.data.samples import Sample, tokenize_rows
from appliance.ml.evaluation import evaluation
from appliance.ml.evaluation.evaluation import Evaluation, Report
from appliance.ml.evaluation.items import write_items
from appliance.ml.inference.adapters import Slots
from appliance.ml.model.base import Base

T = TypeVar("T")

ANSWERS_FILE = "answers.json"
TOLD_OF_BLIND = ("accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l", "call_match", "margin", "loss")
"""Metrics that leave a blind set, to two places."""
NOISE_ROWS, NOISE_ANSWERS = 64, 16
"""Rows that are evaluated a second time; where answers are written out, fewer."""


@dataclass(frozen=True)
class JudgedSet:
    """Rows of one folder, and what their answers are held to: the labels of the dataset that is trained on."""

    name: str
    folder: Path
    blind: bool
    about: About
    rows: list[Row]
    samples: list[Sample]

    @property
    def passes(self) -> int:
        return evaluation.count_passes(self.about, self.rows)

    def evaluate(self, base: Base, slots: Slots | None, report: Report) -> Evaluation:
        return _quiet(self, lambda: evaluation.evaluate(base, slots, self.about, self.rows, self.samples, report))

    def write(self, output: Path, base: Sequence[Answer], adapter: Sequence[Answer], *, released: bool = False) -> None:
        """The set's items into the folder; `adapter`: the answers that stand in the adapter's place."""
        items = write_items(self.folder, self.about, self.rows, self.samples, base, adapter, blind=self.blind)
        (output / items_path(self.name, released=released)).write_bytes(items)

    def write_texts(self, output: Path, base: Sequence[str], adapter: Sequence[str]) -> None:
        """What was expected and answered to each row, by its digest: for a metric, and never sealed."""
        digests = split_digests((self.folder / data.DIGESTS_FILE).read_bytes())
        rows = choose_judged(self.about.task, self.rows, lambda row: row.calls is not None)
        said = {
            digests[row.index].hex(): {"expected": row.answer, "base": ours, "adapter": theirs}
            for row, ours, theirs in zip(rows, base, adapter, strict=True)
        }
        (output / ANSWERS_FILE).write_text(json.dumps(said), encoding="utf-8")

    def tell(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What of these metrics leaves the set."""
        if not self.blind:
            return dict(metrics)
        return {name: f"{float(metrics[name]):.2f}" for name in TOLD_OF_BLIND if name in metrics}


def load_set(name: str, folder: Path, base: Base, about: About, *, blind: bool = False) -> JudgedSet:
    """BadInput where a row's label is none of the dataset's; of a blind set no error quotes a row."""
    bare = JudgedSet(name, folder, blind, about, [], [])
    rows = data.load_rows(folder, data.HELD_OUT)
    unknown = {row.answer for row in rows} - set(about.labels) if about.labels else set()
    if unknown:
        raise BadInput(f"validation set {name}: expected labels of the dataset alone, got {len(unknown)} others")
    samples = _quiet(bare, lambda: tokenize_rows(rows, base.chat, max_length=base.context_length))
    return replace(bare, rows=rows, samples=samples)


def _quiet(judged: JudgedSet, act: Callable[[], T]) -> T:
    """Of a blind set an error says its code alone: its words may quote a row."""
    try:
        return act()
    except ApplianceError as error:
        if not judged.blind:
            raise
        said = f"validation set {judged.name}: expected rows that can be evaluated, got an error; the set is blind"
        raise BadInput(said, code=error.code) from None


def count_overlaps(dataset: Path, sets: Sequence[JudgedSet]) -> dict[str, dict[str, Any]]:
    """Of each set how many rows it has, and how many of them are trained on."""
    trained = [row.text for row in data.load_rows(dataset, data.TRAIN)]
    found = {}
    for judged in sets:
        counted = overlap.count_overlap(trained, [row.text for row in judged.rows])
        counted = overlap.blur(counted) if judged.blind else counted
        found[judged.name] = {"rows": len(judged.rows), **counted._asdict()}
    return found


def measure_noise(
    base: Base, slots: Slots | None, judged: JudgedSet, answers: Sequence[Answer], seed: int
) -> dict[str, int]:
    """A sample of rows evaluated again, in another order and in other batches: how many answers are `different`, and
    the `largest` difference of a score, in millionths.

    On a CPU none is, by construction: BadInput (`noisy`) where one is. A GPU may add in another order in other batches:
    there, only an answer that is right once and wrong once is refused.
    """
    pairs_of_all = list(zip(judged.rows, judged.samples, strict=True))
    chosen = choose_judged(judged.about.task, pairs_of_all, lambda pair: pair[0].calls is not None)
    written = judged.about.task in WRITTEN or any(row.calls is not None for row, _ in chosen)
    places = _sample_places(len(chosen), NOISE_ANSWERS if written else NOISE_ROWS)
    # Another limit would cut another answer: it is that of all rows, not of the sample.
    limit = evaluation.limit_answers(base.chat, [row for row, _ in chosen]) if written else None
    order = list(range(len(places)))
    random.Random(seed).shuffle(order)
    rows = [chosen[place][0] for place in places]
    samples = [replace(chosen[place][1], index=number) for place, number in zip(places, order, strict=True)]
    again = evaluation.evaluate(base, slots, judged.about, rows, samples, lambda more, tokens: None, limit).answers
    pairs = [(answers[place], one) for place, one in zip(places, again, strict=True)]
    different = sum(first != second for first, second in pairs)
    refused = different if base.device == "cpu" else sum(first.right != second.right for first, second in pairs)
    if refused:
        raise BadInput(
            f"evaluation, noise floor: expected the same answers to {len(places)} rows in another order and in other "
            f"batches, got {refused} others: this machine's arithmetic depends on them",
            code="noisy",
        )
    largest = max(abs(first.scores[name] - second.scores[name]) for first, second in pairs for name in first.scores)
    return {"rows": len(places), "different": different, "largest": largest}


def _sample_places(rows: int, most: int) -> list[int]:
    """Evenly over the rows, at most so many."""
    count = min(rows, most)
    return [number * rows // count for number in range(count)]
