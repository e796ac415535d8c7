"""Items made to measure, for the tests of gates and verdicts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.domain.evaluation.items import SCALE, Answer, EvaluationItem, Slices


@dataclass(frozen=True)
class Group:
    """`items` alike: whether adapter and base are right, and where the rows belong to."""

    items: int
    adapter: bool
    base: bool
    label: str = "billing"
    length: str = "short"
    column: str | None = None


def answer(right: bool, label: str = "billing", score: int | None = None) -> Answer:
    points = SCALE * right if score is None else score
    return Answer(confidence=900_000, label=label if right else "other", right=right, scores={"token_f1": points})


def make_items(
    groups: Sequence[Group], *, cluster: int = 1, rows: Sequence[str] | None = None
) -> tuple[EvaluationItem, ...]:
    """Sorted by row; with `cluster`, so many items of one group after the other belong together. `rows`: the keyed
    digests, one for each item."""
    found = []
    for group in groups:
        for _ in range(group.items):
            number = len(found)
            found.append(
                EvaluationItem(
                    adapter=answer(group.adapter, group.label),
                    base=answer(group.base, group.label),
                    cluster=None if cluster == 1 else digest(f"cluster {number // cluster}"),
                    row=digest(f"row {number}") if rows is None else rows[number],
                    slices=Slices(column=group.column, label=group.label, length=group.length),
                )
            )
    return tuple(sorted(found, key=lambda item: item.row))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
