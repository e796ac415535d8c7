"""What a run records of each of its steps: one line of canonical JSON a step, the first line step 1.

docs/formats/steps.md is the page. All but `seconds` and `peak_bytes` follow from recipe, base,
dataset and kind of machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal as Number
from statistics import median
from typing import Annotated, Any

from pydantic import Field, ValidationError

from appliance.domain.core.names import Canonical, Decimal, explain, parse_value
from appliance.domain.core.words import form
from appliance.errors import BadInput
from appliance.formats.core.fields import show

STEPS_FILE = "steps.jsonl"

SPIKE_WINDOW = 20
"""A loss is held against the median of so many steps before it ..."""
SPIKE_FEWEST = 5
"""... once there are these."""
SPIKE_FACTOR, SPIKE_MARGIN = Number("2"), Number("0.25")
"""It is a spike above the median times the one, and above the median plus the other: near 0 doubling means nothing."""
SPIKE_ROWS = 8
"""So many rows a spike names at most."""


Signed = Annotated[str, form(r"^-?(?:0|[1-9][0-9]{0,8})\.[0-9]{6}$", "a decimal of six places such as -0.012000")]

Norm = Annotated[str, form(r"^(?:0|[1-9][0-9]{0,38})\.[0-9]{6}$", "a decimal of six places such as 0.500000")]
"""Any finite norm in float32, whose largest number has 39 digits."""


class StepRecord(Canonical):
    """One step. `loss`: the mean over its trained tokens; `rows`: that of each row of the step, by its index in the
    dataset. Tokens (prompts too), trained tokens and seconds are those of the run so far. Of preferences, else null:
    `margin`, the mean over its rows of the chosen answer's reward above the rejected one's, and `accuracy`, the share
    of rows where it is above 0.

    A private step says nothing that follows from which rows it drew: no loss, no rows, the expected tokens, and 0 for
    seconds and bytes."""

    step: int = Field(ge=1)
    steps: int = Field(ge=1)
    loss: Decimal | None
    learning_rate: Decimal
    grad_norm: Norm
    tokens: int = Field(ge=1)
    trained_tokens: int = Field(ge=1)
    rows: tuple[tuple[int, Decimal], ...]
    spike: tuple[int, ...] | None
    validation_loss: Decimal | None
    margin: Signed | None
    accuracy: Decimal | None
    seconds: Decimal
    peak_bytes: int = Field(ge=0)


def record_step(frame: Mapping[str, Any], losses: Sequence[str | None], *, private: bool = False) -> StepRecord:
    """A worker's frame as the record of the next step; `losses`: of all steps before. BadInput where it cannot be, and
    where a private run tells a loss."""
    if frame.get("step") != len(losses) + 1:
        raise BadInput(f"worker, frame step: expected step {len(losses) + 1}, got {frame.get('step')!r}")
    loss, rows = None if private else _decimal(frame, "loss", 6), _rows(frame)
    validation = _perhaps(frame, "validation_loss")
    if private and (rows or validation or frame.get("loss") is not None):
        raise BadInput("worker, frame step: expected no loss and no rows of a private run, got some")
    counts = {name: frame.get(name) for name in ("step", "steps", "tokens", "trained_tokens", "peak_bytes")}
    counts |= {"peak_bytes": 0} if private else {}
    try:
        return StepRecord(
            **counts,  # type: ignore[arg-type] # checked right here
            loss=loss,
            learning_rate=_decimal(frame, "learning_rate", 10),
            grad_norm=_decimal(frame, "grad_norm", 6),
            rows=rows,
            spike=find_spike(losses, loss, rows),
            validation_loss=validation,
            margin=_perhaps(frame, "margin"),
            accuracy=_perhaps(frame, "accuracy"),
            seconds="0.000" if private else _decimal(frame, "seconds", 3),
        )
    except ValidationError as error:
        raise BadInput(f"worker, frame step: {explain(error)}") from None


def _rows(frame: Mapping[str, Any]) -> tuple[tuple[int, str], ...]:
    found = frame.get("row_losses")
    if not isinstance(found, list) or any(not isinstance(one, list) or len(one) != 2 for one in found):
        raise BadInput(f"worker, frame step, row_losses: expected a list of row and loss, got {show(found)}")
    return tuple((row, _decimal({"row_losses": loss}, "row_losses", 4)) for row, loss in found)


def _perhaps(frame: Mapping[str, Any], name: str) -> str | None:
    return None if frame.get(name) is None else _decimal(frame, name, 6)


def _decimal(frame: Mapping[str, Any], name: str, digits: int) -> str:
    value = frame.get(name)
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise BadInput(f"worker, frame step, {name}: expected a finite number, got {value!r:.40}")
    # The loss of a preference that is learnt well can be -0.0, which has no sign in a record.
    return f"{value:z.{digits}f}"


def find_spike(
    before: Sequence[str | None], loss: str | None, rows: Sequence[tuple[int, str]]
) -> tuple[int, ...] | None:
    """None, or the rows that made it one: those above the bar, else the highest; the worst first."""
    recent = [Number(one) for one in before[-SPIKE_WINDOW:] if one is not None]
    if loss is None or len(recent) < SPIKE_FEWEST:
        return None
    middle = median(recent)
    bar = max(middle * SPIKE_FACTOR, middle + SPIKE_MARGIN)
    if Number(loss) <= bar:
        return None
    worst = sorted(rows, key=lambda row: (-Number(row[1]), row[0]))[:SPIKE_ROWS]
    return tuple(row for row, own in worst if Number(own) > bar) or tuple(row for row, _ in worst[:1])


def encode_steps(steps: Iterable[StepRecord]) -> bytes:
    return b"".join(step.__pydantic_serializer__.to_json(step) + b"\n" for step in steps)


def parse_steps(data: bytes, what: str = STEPS_FILE) -> tuple[StepRecord, ...]:
    """Every line, each the one encoding of its value, with the spike that the losses before it make of it."""
    lines = data.split(b"\n")
    if lines.pop():
        raise BadInput(f"{what}: expected whole lines, got a last one without its end")
    steps: list[StepRecord] = []
    losses: list[str | None] = []
    for number, line in enumerate(lines, start=1):
        step = parse_value(StepRecord, line, f"{what}, line {number}")
        if step.step != number:
            raise BadInput(f"{what}, line {number}: expected step {number}, got {step.step}")
        spike = find_spike(losses, step.loss, step.rows)
        if step.spike != spike:
            raise BadInput(f"{what}, line {number}, spike: expected {spike}, got {step.spike}")
        steps.append(step)
        losses.append(step.loss)
    return tuple(steps)
