"""The rows that an adapter was judged on, as lines of items.jsonl: what each model answered, without any row's text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from appliance.domain.data.teaching import About
from appliance.domain.evaluation.items import SCALE, Answer, Item, Slices, classify_length, encode_items
from appliance.domain.evaluation.judging import choose_judged
from appliance.formats.artifacts.rows import split_digests
from appliance.ml.data.rows import DIGESTS_FILE, Row
from appliance.ml.data.samples import Sample

BLIND_STEP = SCALE // 20
"""Scores of a blind set are multiples of it: 0.05."""


def write_items(
    folder: Path,
    about: About,
    rows: Sequence[Row],
    samples: Sequence[Sample],
    base: Sequence[Answer],
    adapter: Sequence[Answer],
    *,
    blind: bool = False,
) -> bytes:
    """The file of these held-out rows. `folder`: the dataset's, whose row digests are keyed; `base` and `adapter`: what
    each answered to the rows of `choose_judged`; `blind`: answers are told coarsely."""
    if blind:
        base, adapter = [blur(one) for one in base], [blur(one) for one in adapter]
    digests = split_digests((folder / DIGESTS_FILE).read_bytes())
    chosen = choose_judged(about.task, list(zip(rows, samples, strict=True)), lambda pair: pair[0].calls is not None)
    return encode_items(
        Item(
            adapter=theirs,
            base=ours,
            cluster=row.cluster,
            row=digests[row.index].hex(),
            slices=_slices(about, row, sample),
        )
        for (row, sample), ours, theirs in zip(chosen, base, adapter, strict=True)
    )


def blur(answer: Answer) -> Answer:
    """Whether it is right, and scores in steps: exact ones would say of a text that was guessed whether it is the row,
    since everybody can compute what the base makes of it."""
    scores = {name: round(score / BLIND_STEP) * BLIND_STEP for name, score in answer.scores.items()}
    return Answer(confidence=None, label=None, right=answer.right, scores=scores)


def _slices(about: About, row: Row, sample: Sample) -> Slices:
    """The row's prompt is what comes before the first token that the model is to say."""
    label = row.answer if about.task == "classification" else None
    return Slices(column=row.slice, label=label, length=classify_length(sample.spans[0][0]))
