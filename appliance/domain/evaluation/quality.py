"""Warnings and measures that people see of a sealed adapter's metrics or of a run's steps, and the engines measured.

A warning refuses nothing: people decide, and must see if a run made the adapter worse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from decimal import Decimal as Number
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.domain.core.names import OtherEngine


VLLM: OtherEngine = "vllm"
VLLM_SLOTS = 8
"""Adapters that vLLM holds at a time; it reserves memory for all of them when it starts."""
_SHARE = re.compile(r"[01]\.[0-9]{1,12}")


def list_engines_evaluated(metrics: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the other engines that evaluated the adapter and whose logit fingerprint was within the tolerance."""
    return tuple(sorted(name for name, found in metrics.get("engines", {}).items() if _is_close(found)))


def _is_close(found: object) -> bool:
    texts = [found.get(name) for name in ("logit_difference", "logit_tolerance")] if isinstance(found, dict) else []
    if len(texts) != 2 or not all(isinstance(text, str) and _SHARE.fullmatch(text) for text in texts):
        return False
    off, within = (Decimal(str(text)) for text in texts)
    return off <= within <= 1


def describe_engine(name: str, found: Mapping[str, Any]) -> str:
    """Describe an engine's results in one line for a reviewer."""
    if "refused" in found:
        return f"{name} cannot load this adapter ({found['refused']})"
    shown = [f"{member} {found[member]}" for member in ("accuracy", "loss") if member in found]
    return (
        f"{name} {found['version']}, {found['form']}: {', '.join(shown) or 'fingerprint alone'} on {found['rows']} "
        f"held-out rows; its logit fingerprint is off by {found['logit_difference']} of the largest logit, "
        f"{found['logit_tolerance']} is allowed"
    )


LEADING = ("accuracy", "exact_match", "rouge_l", "call_match")
"""Measures by which an adapter is evaluated, in order of preference; one with none of them is evaluated by its loss."""
FAR = Number("1.5")
"""Ratio to the base's loss on the held-out rows above which a loss is "far above" it."""
ROSE = Number("1.05")
"""Ratio of the last to the first mean training loss above which the loss rose."""
WINDOW = 20
"""Most steps of a mean loss, which covers a tenth of the run; the loss of one step varies with its rows."""

_PLACES = Number("0.000001")


def summarize_training(losses: Sequence[str]) -> dict[str, str]:
    """Return the mean training loss of the first and of the last steps; empty before the first step."""
    if not losses:
        return {}
    width = max(1, min(WINDOW, len(losses) // 10))
    return {"first_loss": _mean(losses[:width]), "last_loss": _mean(losses[-width:])}


def list_warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return the warnings about an adapter.

    `metrics` are those of its sealing: `base`, `adapter`, and where present `majority` and `training`.
    """
    return [*_warn_of_training(metrics), *_warn_of_held_out(metrics), *_warn_of_majority(metrics)]


def list_measures(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (measure, value) pairs of the held-out rows, the leading measure first.

    A value is for example `0.286, its base 0.429, the majority class 0.429`.
    """
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
    return measures + _describe_noise(metrics)


def list_scores(metrics: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the adapter's own value of each measure on the held-out rows."""
    found = ((name, _number(metrics, "adapter", name)) for name in (*LEADING, "loss"))
    return {name.replace("_", " "): _show(value) for name, value in found if value is not None}


MAJORITY = "the majority class"


def _warn_of_training(metrics: Mapping[str, Any]) -> list[str]:
    first, last = _number(metrics, "training", "first_loss"), _number(metrics, "training", "last_loss")
    if first is None or last is None or last <= first * ROSE:
        return []
    return [f"the training loss rose from {_show(first)} to {_show(last)}: {_RATE_HINT}"]


def _warn_of_held_out(metrics: Mapping[str, Any]) -> list[str]:
    """Return warnings where the adapter is worse than its base by the leading measure, or has a higher loss.

    With a leading measure, only a loss far above the base's is a warning.
    """
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


def _warn_of_majority(metrics: Mapping[str, Any]) -> list[str]:
    ours, theirs = _number(metrics, "adapter", "accuracy"), _number(metrics, "majority", "accuracy")
    if ours is None or theirs is None or ours > theirs:
        return []
    return [
        f"no better than always naming {MAJORITY}: accuracy {_show(ours)}, {MAJORITY} alone {_show(theirs)}; "
        "it may ignore the texts"
    ]


_RATE_HINT = "the learning rate may be too high"


def _describe_noise(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the noise floor in words; empty where it was not measured."""
    noise = metrics.get("noise")
    found = [noise.get(name) for name in ("rows", "different", "largest")] if isinstance(noise, Mapping) else []
    counts = [count for count in found if isinstance(count, int)]
    if len(counts) != 3:
        return []
    rows, different, largest = counts
    unchanged = "every answer was the same"
    changed = f"{different} answers were others, a score by at most {Number(largest).scaleb(-6):f}"
    description = f"{rows} rows in another order and other batches: {changed if different else unchanged}"
    return [("evaluated again", description)]


def _number(metrics: Mapping[str, Any], of: str, name: str) -> Number | None:
    """Return a measure, which is decimal text; None for anything else, since workers write the metrics."""
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
    """Return a number with three places, or with fewer if it has more than four digits."""
    places = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:.{places}f}"
