"""Cost of a verdict: evaluated once where the adapter is sealed, and computed again from the items' bytes by a client
that checks it. Processor time, since both are one thread's plain Python: a busy machine does not change it."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from appliance.domain.core.names import encode_value
from appliance.domain.evaluation.gates import COUNTED, GatesFile, parse_gate_file
from appliance.domain.evaluation.items import EvaluationItem, encode_items
from appliance.domain.evaluation.rules import HELD_OUT
from appliance.domain.evaluation.verdict import (
    EvaluatedSet,
    VerdictInputs,
    conclude,
    evaluate_gates,
    parse_verdict,
    read_verdict_inputs,
    verify_verdict,
)
from scripts.benches.measure import Row, row
from scripts.kit.item_groups import Group, make_items

FULL, QUICK = 10_000, 2_000
"""Items."""
COUNTED_S, DRAWN_S = 1, 10
"""The goals, of a verdict whose gate counts, and of one whose gate draws."""

_TESTS: dict[str, dict[str, Any]] = {
    "mcnemar": {"metric": "accuracy", "claim": "better"},
    "tango": {"metric": "accuracy", "claim": "better", "margin": "0.01"},
    "permutation": {"metric": "token_f1", "claim": "better"},
    "bootstrap": {"metric": "token_f1", "claim": "better"},
    "tost": {"metric": "token_f1", "claim": "equivalent", "margin": "0.2"},
}


def make_gates(test: str) -> GatesFile:
    """One gate of this test, with every slice."""
    gate = {
        "name": "measured", "kind": "target", "set": HELD_OUT, "comparison": "base", "test": test, "least_items": 200,
        "slices": ["label", "length"], **_TESTS[test],
    }  # fmt: skip
    return parse_gate_file(json.dumps({"version": 1, "name": "bench", "seed": 1, "gates": [gate]}).encode())


def make_record(count: int, *, cluster: int = 1) -> tuple[EvaluationItem, ...]:
    """Ten labels and two lengths; of ten items the adapter alone is right in two, the base alone in one."""
    kinds = ((True, False), (True, False), (False, True), (False, False), *((True, True),) * 6)
    share = count // 100
    groups = [
        Group(share, adapter, base, f"label-{label}", ("short", "long")[label % 2])
        for label in range(10)
        for adapter, base in kinds
    ]
    return make_items(groups, cluster=cluster)


def measure(count: int = FULL, rounds: int = 3) -> Iterator[Row]:
    alone, together = make_record(count), make_record(count, cluster=4)
    for test in _TESTS:
        yield from _both(f"{test}, {len(alone):,} items", test, alone, rounds)
    yield from _both(f"bootstrap, {len(together):,} items in clusters of 4", "bootstrap", together, rounds)


def _both(name: str, test: str, items: tuple[EvaluationItem, ...], rounds: int) -> Iterator[Row]:
    gates, goal = make_gates(test), COUNTED_S if test in COUNTED else DRAWN_S
    evidence, data = VerdictInputs({HELD_OUT: items}, {}, {HELD_OUT: 0}), encode_items(items)
    written = conclude(gates, items, evidence).verdict
    assert written is not None
    verdict = parse_verdict(written)

    def read(one: EvaluatedSet) -> bytes:
        return data

    def verify() -> None:
        verify_verdict(parse_verdict(written), gates, read_verdict_inputs(verdict, gates, read))

    yield row(
        f"verdict by {name}", _seconds(lambda: encode_value(evaluate_gates(gates, evidence)), rounds), "s", at_most=goal
    )
    yield row(f"... verified, from the items' {len(data) / 1e6:.1f} MB", _seconds(verify, rounds), "s", at_most=goal)


def _seconds(act: Callable[[], object], rounds: int) -> float:
    """Return the median of the processor seconds."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        act()
        found.append(time.process_time() - began)
    return statistics.median(found)
