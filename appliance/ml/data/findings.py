"""What can be said of a file of rows before it is a dataset: every row that does not fit, and what fits and is odd.

An import refuses what is listed as an error here, by the same code; the rest is for people to look at. No torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.domain.data.labels import alike
from appliance.domain.data.tasks import Task
from appliance.errors import BadInput
from appliance.ml.data import rows as data
from appliance.ml.data.samples import tokenize_row
from appliance.ml.data.sources import Source
from appliance.ml.model.chat import Chat, uses_tools

MOST_ERRORS = 200
MOST_PAIRS = 50
MOST_PLACES = 5
_LONGEST = 400


@dataclass
class Errors:
    """All are counted, and the first ones are shown."""

    count: int = 0
    told: list[str] = field(default_factory=list)

    def add(self, errors: Iterable[BadInput]) -> None:
        for error in errors:
            self.count += 1
            if len(self.told) < MOST_ERRORS:
                self.told.append(error.message[:_LONGEST])

    def keep_rows(self, found: Iterable[Source | BadInput]) -> list[Source]:
        """The records among these; what is wrong with the others is added. A file that cannot be read on ends there."""
        kept: list[Source] = []
        try:
            for one in found:
                if isinstance(one, BadInput):
                    self.add([one])
                else:
                    kept.append(one)
        except BadInput as error:
            self.add([error])
        return kept


@dataclass(frozen=True)
class Rendering:
    """With what rows are rendered and counted in tokens, where a base is named."""

    chat: Chat
    context_length: int
    instruction: str


def examine(
    task: Task,
    sides: data.Sides,
    errors: Errors,
    declared: Sequence[str],
    rendering: Rendering | None,
    *,
    judges: bool = False,
) -> dict[str, Any]:
    """The findings over the rows that could be read; `errors` has what was wrong with the others."""
    if sides or not errors.count:  # where no row could be read, that is what is wrong, and nothing else
        if task == "classification":
            errors.add(data.find_wrong_labels(sides, declared, judges=judges))
        errors.add(() if judges else data.find_empty_splits(task, sides))
    lengths = [] if rendering is None else _measure(task, sides, errors, rendering)
    counts = _count_labels(sides) if task == "classification" else {}
    similar = alike({*list(counts)[: data.MAX_LABELS], *declared})
    repeated = _find_repeated(task, sides)
    return {
        "rows": len(sides),
        "train_rows": sum(side == data.TRAIN for _, side in sides),
        "held_out_rows": sum(side == data.HELD_OUT for _, side in sides),
        "labels": dict(list(counts.items())[: data.MAX_LABELS]),
        "label_count": len(counts),
        "similar_labels": [[*pair, *_find_rarer(sides, pair)] for pair in similar[:MOST_PAIRS]],
        "duplicates": [list(pair) for pair in repeated[:MOST_PAIRS]],
        "duplicate_count": len(repeated),
        "max_tokens": max(lengths, default=None),
        "mean_tokens": round(sum(lengths) / len(lengths)) if lengths else None,
        "context_length": None if rendering is None else rendering.context_length,
        "errors": sorted(errors.told, key=_line_of),
        "error_count": errors.count,
    }


def _count_labels(sides: data.Sides) -> dict[str, dict[str, int]]:
    counted = Counter((source.parts["label"][: data.MAX_LABEL_CHARACTERS], side) for source, side in sides)
    labels = sorted({label for label, _ in counted})
    return {label: {side: counted[label, side] for side in (data.TRAIN, data.HELD_OUT)} for label in labels}


def _find_rarer(sides: data.Sides, pair: tuple[str, str]) -> tuple[str, str]:
    """The rarer of two labels, which may be the slip, and where its first rows are."""
    places: dict[str, list[str]] = {label: [] for label in pair}
    for source, _ in sides:
        if source.parts.get("label") in places:
            places[source.parts["label"]].append(source.place)
    rarer = min(pair, key=lambda label: len(places[label]))
    more = f" and {len(places[rarer]) - MOST_PLACES} more" if len(places[rarer]) > MOST_PLACES else ""
    return rarer, "; ".join(places[rarer][:MOST_PLACES]) + more


_LINE = re.compile(r"^(.*?), (?:line|row) ([0-9]+)")


def _line_of(message: str) -> tuple[bool, str, int]:
    """Sorts what is said of a line by its file and line, and what is said of the whole file behind."""
    found = _LINE.match(message)
    return (True, "", 0) if found is None else (False, found[1], int(found[2]))


def _find_repeated(task: Task, sides: data.Sides) -> list[tuple[str, str]]:
    """(place, place of the first) of each row whose text came before, case and spacing aside."""
    seen: dict[str, str] = {}
    pairs = []
    for source, _ in sides:
        first = seen.setdefault(data.same_key(data.known_by(task, source)), source.place)
        if first != source.place:
            pairs.append((source.place, first))
    return pairs


def _measure(task: Task, sides: data.Sides, errors: Errors, rendering: Rendering) -> list[int]:
    """The tokens of each row that can be rendered for the base and fits its context."""
    chat, lengths = rendering.chat, []
    try:
        chat.check_plain(rendering.instruction, "dataset, instruction")
    except BadInput as error:
        errors.add([error])
        return []
    errors.add(data.find_toolless(sides, chat))
    for index, (source, side) in enumerate(sides):
        if chat.calls is None and uses_tools(source.messages, source.tools):
            continue
        try:
            row = data.render_row(index, source, side, chat, task, rendering.instruction)
            sample = tokenize_row(row, chat, rendering.context_length, source.place, "the base's context")
        except BadInput as error:
            errors.add([error])
        else:
            lengths.append(sample.longest)
    return lengths
