"""`scripts/bench dpo`: training on preferences beside TRL's DPOTrainer, in processes that take turns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benches.measure import Row, row
from scripts.benches.training import Plan, Runs, run_worker

WORKER = Path(__file__).with_name("preferring_worker.py")
SIZE = 8
"""Rows of an optimiser step."""
WORDS = 60
"""Words of an answer; a prompt has twice as many."""


@dataclass(frozen=True)
class _Size:
    steps: int
    warm_up: int


def measure(folder: Path, plan: Plan, *, quick: bool) -> Iterator[Row]:
    """Yield the rows. Tokens are those of the prompt with each of its two answers, as TRL computes them. Ours computes
    each prompt once.
    """
    size = _Size(steps=4, warm_up=1) if quick else _Size(steps=12, warm_up=2)
    base, rows = plan.model.convert(folder), folder / "pairs.jsonl"
    rows.write_text("".join(json.dumps(one) + "\n" for one in _pair(plan.data, size.steps * SIZE)), "utf-8")
    recipe = {"beta": "0.1", "learning_rate": "0.00005", "batch_size": SIZE, "device": plan.device}
    task = {"base": str(base), "device": plan.device, "rows": str(rows), "warm_up": size.warm_up}
    runs = Runs()
    for number in range(plan.rounds):
        for name, peer in (("ours", None), ("TRL", "trl"))[:: -1 if number % 2 else 1]:
            runs.take(name, run_worker(WORKER, name, peer, {**task, "kind": peer or "ours"}, recipe))
    if not {"ours", "TRL"} <= runs.found.keys():
        return
    yield row(
        "preferences: tokens a second",
        *(runs.median("ours", "tokens_a_second"), "1/s"),
        against="TRL's DPOTrainer",
        theirs=runs.median("TRL", "tokens_a_second"),
        ratio=runs.ratio("ours", "TRL", "tokens_a_second"),
        ratio_at_least=2.0,
    )
    yield row(
        "preferences: peak memory",
        *(runs.median("ours", "peak_bytes") / 1e6, "MB"),
        against="TRL's DPOTrainer",
        theirs=runs.median("TRL", "peak_bytes") / 1e6,
        ratio=runs.ratio("ours", "TRL", "peak_bytes"),
        ratio_at_most=0.6,
    )
    for name in ("ours", "TRL"):
        yield row(f"preferences: loss of the last step, {name}", runs.median(name, "loss"), "nats")


def _pair(data: Path, count: int) -> list[dict[str, Any]]:
    """Return pairs from texts of contracts. The chosen answer continues the prompt, the rejected one follows later."""
    with (data / "cuad/clauses_train.csv").open(encoding="utf-8-sig", newline="") as stream:
        words = [word for one in csv.DictReader(stream) for word in one["text"].split()]
    size = 4 * WORDS
    if len(words) < count * size:
        raise SystemExit(f"bench: expected {count * size} words of clauses in {data}, got {len(words)}")
    pieces = [words[place * size : (place + 1) * size] for place in range(count)]
    return [
        {
            "prompt": " ".join(piece[: 2 * WORDS]),
            "chosen": " ".join(piece[2 * WORDS : 3 * WORDS]),
            "rejected": " ".join(piece[3 * WORDS :]),
        }
        for piece in pieces
    ]
