"""The program that computes a verdict, in a process of its own: it counts and draws for seconds, and answers go first.

Descriptor 0 gives it one line of JSON (`encode_question`), then the lines of each record, then an empty line.
Descriptor 1 gets one JSON object: verdict and calibration, or a failure.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from appliance.domain.evaluation.evidence import Conclusion, conclude
from appliance.domain.evaluation.gates import HELD_OUT, parse_gates
from appliance.domain.evaluation.items import Item, parse_items
from appliance.domain.evaluation.verdict import Evidence, Overlap
from appliance.errors import ApplianceError
from appliance.runners.program import END
from appliance.runners.walls.privileges import forbid_dumps

POLITENESS = 10
"""Answers go first where the processor is wanted."""


@dataclass(frozen=True)
class Question:
    """`gates`: canonical bytes, None where none are bound. `sets`: the run's items by set. `others`: by comparison and
    set the items of another record; None where no version is released, and missing where there are none of the same
    rows. The rest is as `Evidence` has it."""

    gates: bytes | None
    sets: Mapping[str, bytes]
    others: Mapping[tuple[str, str], bytes | None] = field(default_factory=dict)
    judged_before: Mapping[str, int] = field(default_factory=dict)
    named_before: Mapping[str, int] = field(default_factory=dict)
    overlaps: Mapping[str, Overlap] = field(default_factory=dict)


def encode_question(question: Question) -> Iterator[bytes]:
    """Lines for `run_program`."""
    sets, others = sorted(question.sets.items()), sorted(question.others.items())
    value = {
        "gates": None if question.gates is None else question.gates.decode(),
        "sets": [[name, items.count(b"\n")] for name, items in sets],
        "others": [[*key, None if items is None else items.count(b"\n")] for key, items in others],
        "judged_before": dict(question.judged_before),
        "named_before": dict(question.named_before),
        "overlaps": {name: list(found) for name, found in question.overlaps.items()},
    }
    yield json.dumps(value).encode() + b"\n"
    for _, data in (*sets, *others):
        if data is not None:
            yield from data.splitlines(keepends=True)


def answer(given: BinaryIO) -> Conclusion:
    value: dict[str, Any] = json.loads(given.readline())

    def read(lines: int) -> tuple[Item, ...]:
        return parse_items(b"".join(given.readline() for _ in range(lines)))

    sets = {name: read(lines) for name, lines in value["sets"]}
    others = {(model, name): None if lines is None else read(lines) for model, name, lines in value["others"]}
    if given.readline() != END:
        os._exit(1)  # the service has died
    threading.Thread(target=_end_with_service, name="end-with-service", daemon=True).start()
    gates = None if value["gates"] is None else parse_gates(value["gates"].encode())
    overlaps = {name: Overlap(*found) for name, found in value["overlaps"].items()}
    evidence = Evidence(sets, others, value["judged_before"], value["named_before"], overlaps)
    return conclude(gates, sets[HELD_OUT], evidence)


def main() -> int:
    forbid_dumps()
    os.nice(POLITENESS)
    given, told = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        found = answer(given)
        said: dict[str, Any] = {name: None if data is None else data.decode() for name, data in found._asdict().items()}
    except ApplianceError as error:
        said = {"failure": {"code": error.code, "message": error.message}}
    told.write(json.dumps(said).encode())
    told.close()
    return 0


def _end_with_service() -> None:
    while os.read(0, 1):
        continue
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
