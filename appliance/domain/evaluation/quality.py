"""What the metrics of a sealed adapter, or the steps of a run, warn of: one judgement, wherever they are shown.

A warning refuses nothing. People decide, and must be able to see that a run made its task worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal as Number
from decimal import InvalidOperation
from typing import Any

from appliance.domain.evaluation.engines import describe_engine

LEADING = ("accuracy", "exact_match", "rouge_l", "call_match")
"""What a task is judged by first; a task without any of these by its loss."""
FAR = Number("1.5")
"""A loss on the held-out rows above so many times the base's is far from it."""
ROSE = Number("1.05")
"""A training loss rose where the mean of its last steps is above so many times that of its first."""
WINDOW = 20
"""Means are over a tenth of the steps, and over so many at most: one step's loss is its rows' luck."""

_PLACES = Number("0.000001")


def summarize_training(losses: Sequence[str]) -> dict[str, str]:
    """The training loss at first and at last; nothing before the first step."""
    if not losses:
        return {}
    width = max(1, min(WINDOW, len(losses) // 10))
    return {"first_loss": _mean(losses[:width]), "last_loss": _mean(losses[-width:])}


def list_warnings(metrics: Mapping[str, Any]) -> list[str]:
    """What speaks against an adapter by `metrics` of its sealing: `base`, `adapter`, and where they are there
    `majority` and `training`."""
    return [*_training(metrics), *_held_out(metrics), *_majority(metrics)]


def list_measures(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(measure, `0.286, its base 0.429, the majority class 0.429`) of the held-out rows, the leading one first."""
    measures = []
    for name in (*LEADING, "loss"):
        ours = _number(metrics, "adapter", name)
        if ours is None:
            continue
        beside = ((who, _number(metrics, of, name)) for of, who in (("base", "its base"), ("majority", MAJORITY)))
        others = [f"{who} {_show(value)}" for who, value in beside if value is not None]
        measures.append((name.replace("_", " "), ", ".join([_show(ours), *others])))
    engines = sorted(metrics.get("engines", {}).items())
    measures += [("on another engine", describe_engine(name, found)) for name, found in engines]
    return measures + _judged_again(metrics)


MAJORITY = "the majority class"


def _training(metrics: Mapping[str, Any]) -> list[str]:
    first, last = _number(metrics, "training", "first_loss"), _number(metrics, "training", "last_loss")
    if first is None or last is None or last <= first * ROSE:
        return []
    return [f"the training loss rose from {_show(first)} to {_show(last)}: {_LESS}"]


def _held_out(metrics: Mapping[str, Any]) -> list[str]:
    """Worse than the base by the leading measure, or far above it by the loss."""
    found = []
    leading = next((name for name in LEADING if _number(metrics, "adapter", name) is not None), None)
    if leading is not None:
        ours, theirs = _number(metrics, "adapter", leading), _number(metrics, "base", leading)
        if ours is not None and theirs is not None and ours < theirs:
            found.append(
                f"worse than its base: {leading.replace('_', ' ')} {_show(ours)} on the held-out rows, "
                f"the base without it {_show(theirs)}"
            )
    ours, theirs = _number(metrics, "adapter", "loss"), _number(metrics, "base", "loss")
    if ours is not None and theirs is not None and ours > theirs * (1 if leading is None else FAR):
        far = "far above" if ours > theirs * FAR else "above"
        found.append(f"the loss on the held-out rows, {_show(ours)}, is {far} its base's {_show(theirs)}")
    return found


def _majority(metrics: Mapping[str, Any]) -> list[str]:
    ours, theirs = _number(metrics, "adapter", "accuracy"), _number(metrics, "majority", "accuracy")
    if ours is None or theirs is None or ours > theirs:
        return []
    return [
        f"no better than always naming {MAJORITY}: accuracy {_show(ours)}, {MAJORITY} alone {_show(theirs)}; "
        "it may have learned nothing of the texts"
    ]


_LESS = "the learning rate may be too high"


def _judged_again(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The noise floor in words; nothing where none was measured."""
    noise = metrics.get("noise")
    found = [noise.get(name) for name in ("rows", "different", "largest")] if isinstance(noise, Mapping) else []
    counts = [count for count in found if isinstance(count, int)]
    if len(counts) != 3:
        return []
    rows, different, largest = counts
    same = "every answer was the same"
    other = f"{different} answers were others, a score by at most {Number(largest).scaleb(-6):f}"
    told = f"{rows} rows in another order and other batches: {other if different else same}"
    return [("judged again", told)]


def _number(metrics: Mapping[str, Any], of: str, name: str) -> Number | None:
    """A measure, which is decimal text; None for anything else, since metrics come from others."""
    found = metrics.get(of)
    value = found.get(name) if isinstance(found, Mapping) else None
    if not isinstance(value, str):
        return None
    try:
        number = Number(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _mean(losses: Sequence[str]) -> str:
    return str((sum(map(Number, losses), Number(0)) / len(losses)).quantize(_PLACES))


def _show(value: Number) -> str:
    return f"{value:.3f}"
