"""How long a run will take: its operations over the machine's pace, and what every pack costs beside.

The count follows `ml/layers/decoder.py` and `ml/training/loss.py`. The pace is measured by `run plan --calibrate`;
where it was not, it is an assumption, and the interval says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from appliance.domain.core.names import Value
from appliance.domain.planning.cards import Calibration, Card, Machine
from appliance.domain.planning.footprint import Pack, count_trainable, count_trained_rows, draw_packs, is_quick
from appliance.domain.planning.shape import Lengths, Shape
from appliance.domain.recipe.recipe import ResolvedRecipe, count_steps
from appliance.errors import BadInput

MEASURED = (0.85, 1.25)
"""Shares of the likely time: for a base, method, quantisation and dtype that were calibrated on this machine. The three
intervals are assumed; they were not compared with whole runs."""
LIKE_MEASURED = (0.6, 1.8)
"""For the base of a calibration on this machine, with another method, quantisation or dtype."""
ASSUMED = (0.33, 3.0)
"""Without a calibration of the base on this machine."""

THREAD_OPERATIONS = {True: 100e9, False: 45e9}
"""Assumed of a CPU's thread, with bf16 in hardware and without: about what two threads of a Xeon reached, halved."""
CARD_SHARE = 0.3
"""Assumed of a card's data sheet."""
CARD_LAYER_S = 0.002
"""Assumed of a card for each layer and pack: a small model waits for its kernels to start."""
CPU_LAYER_S = 0.004
"""Measured on two threads for NF4, whose weights are dequantised for each pack."""
LIBRARY_SHARE = {"full": 0.6}
"""Of that pace, what is left for a method that goes through the library's own modules: measured, docs/training.md."""
OTHER_LIBRARY_SHARE = 0.25
START_S = 8.0
"""A worker's start: its sandbox, its probes, its libraries."""


class Duration(Value):
    """Seconds: the likely number, and the interval around it. `measured`: this machine was calibrated for this base,
    method, quantisation and dtype."""

    low: float
    likely: float = Field(ge=0)
    high: float
    measured: bool


class Pace(Value):
    pack_s: float
    operations_a_second: float
    load_s: float
    around: tuple[float, float]
    measured: bool


def pace_of_machine(machine: Machine, recipe: ResolvedRecipe, shape: Shape) -> Pace:
    """Of this machine: from its last calibration for this base, method, quantisation and dtype; else from its last for
    this base; else assumed."""
    wanted = (recipe.base, recipe.method, recipe.quantisation, recipe.compute_dtype)
    found = [one for one in machine.calibrations if one.host == machine.host]
    for one in reversed(found):
        if (one.base, one.method, one.quantisation, one.compute_dtype) == wanted:
            return _calibrated(one, MEASURED, measured=True)
    for one in reversed(found):
        if one.base == recipe.base:
            like = recipe.model_copy(update={"method": one.method, "quantisation": one.quantisation})
            return _calibrated(one, LIKE_MEASURED, measured=False, times=_share(recipe, shape) / _share(like, shape))
    if machine.device == "cuda":
        return pace_of_card(None, recipe, shape)
    rate = (
        _share(recipe, shape)
        * machine.threads
        * THREAD_OPERATIONS[machine.bfloat16 and recipe.compute_dtype == "bfloat16"]
    )
    pack_s = shape.layers * CPU_LAYER_S if recipe.quantisation != "none" else 0.0
    return Pace(pack_s=pack_s, operations_a_second=rate, load_s=shape.parameters / 50e6, around=ASSUMED, measured=False)


def _share(recipe: ResolvedRecipe, shape: Shape) -> float:
    return 1.0 if is_quick(recipe, shape) else _library_share(recipe)


def _library_share(recipe: ResolvedRecipe) -> float:
    return LIBRARY_SHARE.get(recipe.method, OTHER_LIBRARY_SHARE)


def _calibrated(one: Calibration, around: tuple[float, float], *, measured: bool, times: float = 1.0) -> Pace:
    return Pace(
        pack_s=one.pack_s,
        operations_a_second=times * one.operations_a_second,
        load_s=one.load_s,
        around=around,
        measured=measured,
    )


def pace_of_card(card: Card | None, recipe: ResolvedRecipe, shape: Shape) -> Pace:
    """For a card that was not measured. An unknown card has the pace of the slowest known one."""
    rate = 25e12 if card is None else card.operations_a_second
    return Pace(
        pack_s=shape.layers * CARD_LAYER_S,
        operations_a_second=rate * CARD_SHARE * _share(recipe, shape),
        load_s=shape.parameters * 2 / 1e9,
        around=ASSUMED,
        measured=False,
    )


def count_operations(shape: Shape, recipe: ResolvedRecipe, pack: Pack) -> float:
    """Of one pack, forward and backward; an addition and a multiplication are two."""
    forward, trained = 2.0 * shape.passed_weights, 2.0 * count_trainable(shape, recipe)
    again = {"none": 0.0, "layer": 1.0, "mlp": 2 * shape.hidden * shape.inner * shape.layers / shape.passed_weights}
    repeats = again[recipe.gradient_checkpointing]
    times = 2.0 + (repeats if is_quick(recipe, shape) else float(repeats > 0))
    # Of preferences the base with the adapter switched off reads every token too.
    times += float(recipe.beta) > 0
    linear = forward * (times + 1) if recipe.method == "full" else forward * times + 3 * trained
    # Scores and their product with the values, forward, twice again for their gradients, and once more in between.
    seen = pack.segments * pack.longest * (pack.root + pack.longest)
    attention = 4.0 * shape.layers * shape.query * seen * 4
    head = 4.0 * shape.head_weights * pack.trained * (2 if recipe.method == "full" else 1)
    return linear * pack.tokens + attention + head


def training_seconds(shape: Shape, lengths: Lengths, recipe: ResolvedRecipe, rows: int, pace: Pace) -> float:
    """Of all steps; the packs that are drawn stand for all."""
    kept = count_trained_rows(recipe, rows)
    drawn = list(draw_packs(lengths, recipe, rows))[:-1]
    tokens = sum(pack.tokens + pack.root * (pack.segments - 1) for pack in drawn)
    share = kept * recipe.epochs * lengths.mean / max(1, tokens)
    return share * seconds_of(shape, recipe, drawn, pace)


def validation_seconds(shape: Shape, lengths: Lengths, recipe: ResolvedRecipe, rows: int, pace: Pace) -> float:
    """Of all readings of the validation loss, the last after the last step. Each is a pass over the validation rows, of
    preferences two, through the library's own modules whatever the method."""
    if not recipe.validate_every:
        return 0.0
    passes = -(-count_planned_steps(recipe, rows) // recipe.validate_every) * (2 if float(recipe.beta) else 1)
    slower = _share(recipe, shape) / _library_share(recipe)
    return slower * _pass_seconds(shape, lengths, passes * (rows - count_trained_rows(recipe, rows)), pace)


def _pass_seconds(shape: Shape, lengths: Lengths, rows: int, pace: Pace) -> float:
    """So many rows go forward through the model."""
    return rows * lengths.mean * 2.0 * shape.passed_weights / pace.operations_a_second


def seconds_of(shape: Shape, recipe: ResolvedRecipe, packs: Iterable[Pack], pace: Pace) -> float:
    return sum(pace.pack_s + count_operations(shape, recipe, pack) / pace.operations_a_second for pack in packs)


def plan_duration(
    shape: Shape, lengths: Lengths, recipe: ResolvedRecipe, rows: tuple[int, int], pace: Pace
) -> Duration:
    """From the worker's start to the judged adapter; `rows` to train on and held out.

    Held-out rows go through the model four times: for their loss and their labels, with the adapter and without. A run
    that stops early is planned with all its steps. docs/planning.md names what is not counted: no plan knows the pace
    of answers that are written out.
    """
    start = 2 * (START_S + pace.load_s)
    training = training_seconds(shape, lengths, recipe, rows[0], pace)
    training += validation_seconds(shape, lengths, recipe, rows[0], pace)
    likely = start + training + _pass_seconds(shape, lengths, 4 * rows[1], pace)
    low, high = (likely * share for share in pace.around)
    return Duration(low=low, likely=likely, high=high, measured=pace.measured)


def read_calibration(
    shape: Shape, recipe: ResolvedRecipe, found: Mapping[str, Any], *, host: str, time: str
) -> Calibration:
    """What two lengths say of the machine: the operations that one has more, over the seconds that it took more, and
    what a pack costs whatever its length. BadInput for what cannot have been measured."""
    try:
        (short, long), (quick, slow) = found["lengths"], found["seconds"]
        rows, answer = int(found["rows"]), int(found["answer"])
        packs = [Pack(rows * length, rows, 0, length, rows * answer) for length in (int(short), int(long))]
        few, many = (count_operations(shape, recipe, pack) for pack in packs)
        rate = (many - few) / (float(slow) - float(quick))
        return Calibration(
            host=host,
            base=recipe.base,
            method=recipe.method,
            quantisation=recipe.quantisation,
            compute_dtype=recipe.compute_dtype,
            pack_s=max(0.0, float(quick) - few / rate),
            operations_a_second=rate,
            load_s=float(found["load_s"]),
            peak_bytes=int(found["peak_bytes"]),
            memory_bytes=int(found["memory_bytes"]),
            machine=dict(found["machine"]),
            time=time,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise BadInput("calibration: expected a longer batch to take longer, got other times; try again") from None


def count_planned_steps(recipe: ResolvedRecipe, rows: int) -> int:
    kept = count_trained_rows(recipe, rows)
    return count_steps(kept, recipe.epochs, recipe.batch_size * recipe.accumulation)
