"""A program that computes a verdict in its own process with a low priority, since the computation takes seconds.

Descriptor 0 gives one line of JSON (`encode_question`), then the lines of each record, then an empty line. Descriptor 1
gets one JSON object: verdict and calibration, or a failure.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from appliance.domain.evaluation.gates import HELD_OUT, parse_gates
from appliance.domain.evaluation.items import EvaluationItem, parse_items
from appliance.domain.evaluation.verdict import Conclusion, TrainingOverlap, VerdictInputs, conclude
from appliance.errors import ApplianceError
from appliance.sandbox.kernel import forbid_dumps
from appliance.sandbox.program import END

POLITENESS = 10
"""Niceness of the program, so that serving has precedence on the processor."""


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


def answer(source: BinaryIO) -> Conclusion:
    """Read a question and return its conclusion."""
    value: dict[str, Any] = json.loads(source.readline())

    def read(lines: int) -> tuple[EvaluationItem, ...]:
        return parse_items(b"".join(source.readline() for _ in range(lines)))

    sets = {name: read(lines) for name, lines in value["sets"]}
    others = {(model, name): None if lines is None else read(lines) for model, name, lines in value["others"]}
    if source.readline() != END:
        os._exit(1)  # the service has ended
    threading.Thread(target=_end_with_service, name="end-with-service", daemon=True).start()
    gates = None if value["gates"] is None else parse_gates(value["gates"].encode())
    overlaps = {name: TrainingOverlap(*found) for name, found in value["overlaps"].items()}
    evidence = VerdictInputs(sets, others, value["evaluated_before"], value["named_before"], overlaps)
    return conclude(gates, sets[HELD_OUT], evidence)


def main() -> int:
    """Answer the question of descriptor 0 and return the exit code."""
    forbid_dumps()
    os.nice(POLITENESS)
    source, output = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        found = answer(source)
        reply: dict[str, Any] = {
            name: None if data is None else data.decode() for name, data in found._asdict().items()
        }
    except ApplianceError as error:
        reply = {"failure": {"code": error.code, "message": error.message}}
    output.write(json.dumps(reply).encode())
    output.close()
    return 0


def _end_with_service() -> None:
    while os.read(0, 1):
        continue
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
