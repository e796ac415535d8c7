"""A program that computes a verdict in its own process with a low priority, since the computation takes seconds.

Descriptor 0 gives one line of JSON (`encode_question`), then the lines of each record, then an empty line. Descriptor 1
gets one JSON object: verdict and calibration, or a failure.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from appliance.domain.evaluation.gates import HELD_OUT, parse_gates
from appliance.domain.evaluation.items import EvaluationItem, parse_items
from appliance.domain.evaluation.verdict import TrainingOverlap, VerdictInputs, conclude
from appliance.sandbox.program import END, answer_once, end_with_service


@dataclass(frozen=True)
class VerdictInput:
    """The input of a verdict.

    `gates`: canonical bytes, or None if no gates are bound. `sets`: the run's items by set. `others`: the items of
    another record by comparison and set; None if no version is released, and absent if no record has the same rows. The
    other fields are those of `VerdictInputs`.
    """

    gates: bytes | None
    sets: Mapping[str, bytes]
    others: Mapping[tuple[str, str], bytes | None] = field(default_factory=dict)
    evaluated_before: Mapping[str, int] = field(default_factory=dict)
    named_before: Mapping[str, int] = field(default_factory=dict)
    overlaps: Mapping[str, TrainingOverlap] = field(default_factory=dict)


def encode_question(question: VerdictInput) -> Iterator[bytes]:
    """Yield the lines for `run_program`."""
    sets, others = sorted(question.sets.items()), sorted(question.others.items())
    value = {
        "gates": None if question.gates is None else question.gates.decode(),
        "sets": [[name, items.count(b"\n")] for name, items in sets],
        "others": [[*key, None if items is None else items.count(b"\n")] for key, items in others],
        "evaluated_before": dict(question.evaluated_before),
        "named_before": dict(question.named_before),
        "overlaps": {name: list(found) for name, found in question.overlaps.items()},
    }
    yield json.dumps(value).encode() + b"\n"
    for _, data in (*sets, *others):
        if data is not None:
            yield from data.splitlines(keepends=True)


def answer(source: BinaryIO) -> dict[str, str | None]:
    """Read a question and return its conclusion."""
    value: dict[str, Any] = json.loads(source.readline())

    def read(lines: int) -> tuple[EvaluationItem, ...]:
        return parse_items(b"".join(source.readline() for _ in range(lines)))

    sets = {name: read(lines) for name, lines in value["sets"]}
    others = {(model, name): None if lines is None else read(lines) for model, name, lines in value["others"]}
    if source.readline() != END:
        os._exit(1)  # the service has ended
    end_with_service()
    gates = None if value["gates"] is None else parse_gates(value["gates"].encode())
    overlaps = {name: TrainingOverlap(*found) for name, found in value["overlaps"].items()}
    evidence = VerdictInputs(sets, others, value["evaluated_before"], value["named_before"], overlaps)
    found = conclude(gates, sets[HELD_OUT], evidence)
    return {name: None if data is None else data.decode() for name, data in found._asdict().items()}


if __name__ == "__main__":
    sys.exit(answer_once(answer))
