"""Rows checked before they are imported: sent, read in the service's sandboxed worker, and not kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.client.support.door import Door
from appliance.client.support.uploads import Source
from appliance.errors import BadInput, TooMany, Unavailable

WAIT_S = 20
TURN_S, AGAIN_S = 600, 2
"""How long a check waits for its turn, and how often it asks."""
SHOWN = 20


@dataclass(frozen=True)
class Teaching:
    """What an import would say of the rows; without a base nothing is rendered, and lengths are not known."""

    task: str
    columns: Mapping[str, str]
    labels: Sequence[str]
    instruction: str
    base: str | None
    seed: int = 1
    held_out: str = "0.2"
    judges: bool = False
    """They are for a validation set: all of them judge."""


def check_rows(door: Door, teaching: Teaching, sources: Sequence[Source], *, keep: bool) -> dict[str, Any]:
    """The findings over uploaded rows; `keep`: the uploads stay for an import where nothing is wrong with them."""
    body = {
        "task": teaching.task,
        "format": sources[0].format,
        "file": sources[0].digest,
        "columns": dict(teaching.columns),
        "labels": list(teaching.labels),
        "instruction": teaching.instruction,
        "base": teaching.base,
        "seed": teaching.seed,
        "held_out": teaching.held_out,
        "judges": teaching.judges,
        "held_out_file": sources[1].digest if len(sources) > 1 else None,
        "keep": keep,
    }
    key = _begin(door, body)
    while not (state := door.get(f"/v1/dataset-checks/{key}", wait_s=WAIT_S))["ended"]:
        continue
    if state["error"] is not None:
        error = Unavailable if state["error"]["code"] in ("unavailable", "worker-ended", "wall-open") else BadInput
        raise error(f"dataset check: {state['error']['message']}", code=str(state["error"]["code"]))
    return dict(state["result"])


def _begin(door: Door, body: Mapping[str, Any]) -> str:
    """The key of a check. One is done for a person at a time: another waits for its turn, as an import does."""
    until = time.monotonic() + TURN_S
    while True:
        try:
            return str(door.post("/v1/dataset-checks", body)["key"])
        except TooMany:
            if time.monotonic() > until:
                raise
            time.sleep(AGAIN_S)


def refuse_errors(found: Mapping[str, Any], what: str, then: str = "") -> None:
    """BadInput with every row that does not fit, as many of them as were told. `then`: what follows from them."""
    told, count = tuple(map(str, found["errors"])), int(found["error_count"])
    if count:
        more = (f"and {count - len(told)} more",) if count > len(told) else ()
        problems = "1 problem" if count == 1 else f"{count} problems"
        raise BadInput(f"dataset, {what}: {problems}{then}", reasons=(*told, *more))


def list_warnings(found: Mapping[str, Any]) -> list[str]:
    """What fits and is odd: nearly equal labels, texts that come again."""
    warnings = [
        f"labels {one!r} and {other!r} are nearly the same" + (f"; {rarer!r} is the rarer: {places}" if places else "")
        for one, other, rarer, places in found["similar_labels"]
    ]
    pairs, count = found["duplicates"], int(found["duplicate_count"])
    if count:
        shown = "; ".join(f"{place} is that of {first}" for place, first in pairs[:SHOWN])
        more = f"; and {count - SHOWN} more" if count > SHOWN else ""
        have = "1 row has" if count == 1 else f"{count} rows have"
        warnings.append(f"{have} a text that came before, case and spaces aside: {shown}{more}")
    for name, one in found.get("overlaps", {}).items():
        if one["duplicates"] or one["near_duplicates"]:
            told = f"{one['duplicates']} of {one['rows']} rows are among those to train on"
            warnings.append(f"validation set {name}: {told}, and {one['near_duplicates']} nearly")
    for label, sides in found["labels"].items():
        if sides["train"] and not sides["held-out"]:
            warnings.append(f"label {label!r} has no held-out row: nothing will measure it")
    return warnings


def tell_label(sides: Mapping[str, int]) -> str:
    """How many rows have a label: all, to train on, and held out."""
    return f"{sides['train'] + sides['held-out']}, {sides['train']} to train on, {sides['held-out']} held out"


def list_facts(found: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What was counted: rows, labels, lengths."""
    facts: list[tuple[str, object]] = [
        ("rows", f"{found['rows']}, {found['train_rows']} to train on, {found['held_out_rows']} held out")
    ]
    for label, sides in found["labels"].items():
        facts.append((f"label {label}", tell_label(sides)))
    if found["max_tokens"] is not None:
        lengths = f"{found['max_tokens']} tokens at most, {found['mean_tokens']} in the mean"
        facts.append(("length", f"{lengths}, of the base's context of {found['context_length']}"))
    return facts
