"""The step records of a run, and early stopping, which is decided from the validation losses in them.

A record is one line of canonical JSON for each step, beginning with step 1. docs/formats/steps.md describes the format.
All fields except `seconds` and `peak_bytes` follow from the recipe, the base, the dataset and the kind of machine.
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
"""Name of the file of step records."""

SPIKE_WINDOW = 20
"""Number of earlier steps whose median loss is compared with a loss."""
SPIKE_FEWEST = 5
"""Smallest number of earlier steps for this comparison."""
SPIKE_FACTOR, SPIKE_MARGIN = Number("2"), Number("0.25")
"""A spike exceeds the median times the factor, and the median plus the margin, since doubling near 0 means little."""
SPIKE_ROWS = 8
"""Largest number of rows that a spike lists."""


Signed = Annotated[str, form(r"^-?(?:0|[1-9][0-9]{0,8})\.[0-9]{6}$", "a decimal of six places such as -0.012000")]
"""A decimal with six places that can be negative."""

Norm = Annotated[str, form(r"^(?:0|[1-9][0-9]{0,38})\.[0-9]{6}$", "a decimal of six places such as 0.500000")]
"""A finite norm in float32, whose largest number has 39 digits, with six places."""


class StepRecord(Canonical):
    """The record of one step.

    `loss`: mean over the step's trained tokens. `rows`: the loss of each row of the step, by its index in the dataset.
    `tokens` (with prompts), `trained_tokens` and `seconds` are totals of the run so far. `margin` and `accuracy` are
    null except for preferences: the mean over the rows of the chosen answer's reward above the rejected one's, and the
    share of rows where it is above 0.

    The record of a private step contains nothing that depends on which rows it drew: no loss, no rows, the expected
    number of tokens, and 0 for seconds and bytes.
    """

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
    """Return the record of the next step from a worker's frame. `losses`: those of all earlier steps.

    Raises:
        BadInput: the frame is malformed, or contains a loss of a private run.
    """
    if frame.get("step") != len(losses) + 1:
        raise BadInput(f"worker, frame step: expected step {len(losses) + 1}, got {frame.get('step')!r}")
    loss, rows = None if private else _read_decimal(frame, "loss", 6), _read_rows(frame)
    validation = _read_optional_decimal(frame, "validation_loss")
    if private and (rows or validation or frame.get("loss") is not None):
        raise BadInput("worker, frame step: expected no loss and no rows of a private run, got some")
    counts = {name: frame.get(name) for name in ("step", "steps", "tokens", "trained_tokens", "peak_bytes")}
    counts |= {"peak_bytes": 0} if private else {}
    try:
        return StepRecord(
            **counts,  # type: ignore[arg-type] # pydantic checks the types
            loss=loss,
            learning_rate=_read_decimal(frame, "learning_rate", 10),
            grad_norm=_read_decimal(frame, "grad_norm", 6),
            rows=rows,
            spike=find_spike(losses, loss, rows),
            validation_loss=validation,
            margin=_read_optional_decimal(frame, "margin"),
            accuracy=_read_optional_decimal(frame, "accuracy"),
            seconds="0.000" if private else _read_decimal(frame, "seconds", 3),
        )
    except ValidationError as error:
        raise BadInput(f"worker, frame step: {explain(error)}") from None


def _read_rows(frame: Mapping[str, Any]) -> tuple[tuple[int, str], ...]:
    row_losses = frame.get("row_losses")
    if not isinstance(row_losses, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in row_losses):
        raise BadInput(f"worker, frame step, row_losses: expected a list of row and loss, got {show(row_losses)}")
    return tuple((row, _read_decimal({"row_losses": loss}, "row_losses", 4)) for row, loss in row_losses)


def _read_optional_decimal(frame: Mapping[str, Any], name: str) -> str | None:
    return None if frame.get(name) is None else _read_decimal(frame, name, 6)


def _read_decimal(frame: Mapping[str, Any], name: str, digits: int) -> str:
    value = frame.get(name)
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise BadInput(f"worker, frame step, {name}: expected a finite number, got {value!r:.40}")
    # The loss of a well-learnt preference can be -0.0, which a record writes without a sign.
    return f"{value:z.{digits}f}"


def find_spike(
    before: Sequence[str | None], loss: str | None, rows: Sequence[tuple[int, str]]
) -> tuple[int, ...] | None:
    """Return the rows that caused a spike, the worst first, None if the step is not a spike.

    These are the rows above the bar, or the row with the highest loss if none is above it.
    """
    recent = [Number(earlier_loss) for earlier_loss in before[-SPIKE_WINDOW:] if earlier_loss is not None]
    if loss is None or len(recent) < SPIKE_FEWEST:
        return None
    median_loss = median(recent)
    bar = max(median_loss * SPIKE_FACTOR, median_loss + SPIKE_MARGIN)
    if Number(loss) <= bar:
        return None
    worst = sorted(rows, key=lambda row: (-Number(row[1]), row[0]))[:SPIKE_ROWS]
    return tuple(row for row, own in worst if Number(own) > bar) or tuple(row for row, _ in worst[:1])


def encode_steps(steps: Iterable[StepRecord]) -> bytes:
    """Return the bytes of a file of step records."""
    return b"".join(step.__pydantic_serializer__.to_json(step) + b"\n" for step in steps)


def parse_steps(data: bytes, what: str = STEPS_FILE) -> tuple[StepRecord, ...]:
    """Return the step records of a file.

    Raises:
        BadInput: a line is not the canonical encoding of its record, its number is wrong, or its spike does not follow
            from the earlier losses.
    """
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


Reading = tuple[int, str]
"""A step, and the validation loss after it."""


def is_read(step: int, planned: int, every: int) -> bool:
    """Return True if the validation loss is read after this step.

    It is read every `every` steps and after the last step, or never if `every` is 0.
    """
    return every > 0 and (step % every == 0 or step == planned)


def count_readings(step: int, planned: int, every: int) -> int:
    """Return the number of validation losses read by the end of this step."""
    if every == 0:
        return 0
    return step // every + (step == planned and step % every != 0)


def read_steps(step: int, planned: int, every: int) -> tuple[int, ...]:
    """Return the steps after which the validation loss was read, up to this step."""
    return tuple(
        planned if number * every > planned else number * every
        for number in range(1, count_readings(step, planned, every) + 1)
    )


def best_step(readings: Sequence[Reading]) -> int:
    """Return the step with the lowest loss, the first one if several are equal."""
    return min(readings, key=lambda reading: (Number(reading[1]), reading[0]))[0]


def should_stop_early(readings: Sequence[Reading], patience: int) -> bool:
    """Return True if none of the last `patience` readings is lower than the best before them.

    A patience of 0 never stops.
    """
    if not patience or len(readings) <= patience:
        return False
    return best_step(readings) <= readings[-patience - 1][0]
