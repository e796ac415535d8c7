"""Predicted time of a run: its operations divided by the machine's rate, and a constant time for each pack.

The count of operations follows `ml/layers/decoder.py` and `ml/training/loss.py`. `run plan --calibrate` measures the
rate. Without a measurement it is an assumption, and the interval is wider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from appliance.domain.core.names import Value
from appliance.domain.planning.footprint import Subject, count_trainable, is_quick
from appliance.domain.planning.packs import PlannedPack, count_trained_rows, draw_packs
from appliance.domain.planning.shape import Card, DecoderShape, Machine, MachineCalibration
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.errors import BadInput

MEASURED = (0.85, 1.25)
"""Factors on the likely time for the ends of its interval, where this machine was calibrated for the same run.

The same run has the same base, method, quantisation and dtype. This interval and the next two are assumed; they were
not compared with whole runs.
"""
LIKE_MEASURED = (0.6, 1.8)
"""The same factors, where this machine was calibrated for the base with another method, quantisation or dtype."""
ASSUMED = (0.33, 3.0)
"""The same factors, where this machine was not calibrated for the base."""

THREAD_OPERATIONS = {True: 100e9, False: 45e9}
"""Assumed operations a second of a CPU thread, with bf16 in hardware (True) and without (False).

It is about half of what two threads of a Xeon reached.
"""
CARD_SHARE = 0.3
"""Assumed share of a card's rate on its data sheet that is reached."""
CARD_LAYER_S = 0.002
"""Assumed seconds on a card for each layer and pack: a small model waits for its kernels to start."""
CPU_LAYER_S = 0.004
"""Seconds for each layer and pack on a CPU with NF4, which dequantises weights for each pack. Measured on two threads.
"""
LIBRARY_SHARE = {"full": 0.6}
"""Share of the rate that methods reach with the library's modules. Measured; see docs/guides/training.md."""
OTHER_LIBRARY_SHARE = 0.25
"""The same share for methods that are not in LIBRARY_SHARE."""
START_S = 8.0
"""Seconds that a worker takes to start its sandbox, its probes and its libraries."""


class Duration(Value):
    """A predicted time in seconds: the likely value and the interval around it.

    `measured` is true if this machine was calibrated for this base, method, quantisation and dtype.
    """

    low: float
    likely: float = Field(ge=0)
    high: float
    measured: bool


class MachineRate(Value):
    """The rate of a machine: seconds for each pack, operations a second, and seconds to load the base.

    `around` is the interval of a prediction, as factors on the likely time.
    """

    pack_s: float
    operations_a_second: float
    load_s: float
    around: tuple[float, float]
    measured: bool


def pace_of_machine(machine: Machine, recipe: ResolvedRecipe, shape: DecoderShape) -> MachineRate:
    """Return the pace of this machine.

    It is that of the last calibration with the same base, method, quantisation and dtype, else of the last one with the
    same base, else an assumption.
    """
    wanted = (recipe.base, recipe.method, recipe.quantisation, recipe.compute_dtype)
    found = [one for one in machine.calibrations if one.host == machine.host]
    for one in reversed(found):
        if (one.base, one.method, one.quantisation, one.compute_dtype) == wanted:
            return _make_pace(one, MEASURED, measured=True)
    for one in reversed(found):
        if one.base == recipe.base:
            like = recipe.model_copy(update={"method": one.method, "quantisation": one.quantisation})
            return _make_pace(
                one,
                LIKE_MEASURED,
                measured=False,
                times=_find_rate_share(recipe, shape) / _find_rate_share(like, shape),
            )
    if machine.device == "cuda":
        return pace_of_card(None, recipe, shape)
    rate = (
        _find_rate_share(recipe, shape)
        * machine.threads
        * THREAD_OPERATIONS[machine.bfloat16 and recipe.compute_dtype == "bfloat16"]
    )
    pack_s = shape.layers * CPU_LAYER_S if recipe.quantisation != "none" else 0.0
    return MachineRate(
        pack_s=pack_s, operations_a_second=rate, load_s=shape.parameters / 50e6, around=ASSUMED, measured=False
    )


def _find_rate_share(recipe: ResolvedRecipe, shape: DecoderShape) -> float:
    return 1.0 if is_quick(recipe, shape) else _find_library_share(recipe)


def _find_library_share(recipe: ResolvedRecipe) -> float:
    return LIBRARY_SHARE.get(recipe.method, OTHER_LIBRARY_SHARE)


def _make_pace(
    one: MachineCalibration, around: tuple[float, float], *, measured: bool, times: float = 1.0
) -> MachineRate:
    return MachineRate(
        pack_s=one.pack_s,
        operations_a_second=times * one.operations_a_second,
        load_s=one.load_s,
        around=around,
        measured=measured,
    )


def pace_of_card(card: Card | None, recipe: ResolvedRecipe, shape: DecoderShape) -> MachineRate:
    """Return the assumed pace of a card. An unknown card has the pace of the slowest known one."""
    rate = 25e12 if card is None else card.operations_a_second
    return MachineRate(
        pack_s=shape.layers * CARD_LAYER_S,
        operations_a_second=rate * CARD_SHARE * _find_rate_share(recipe, shape),
        load_s=shape.parameters * 2 / 1e9,
        around=ASSUMED,
        measured=False,
    )


def count_operations(shape: DecoderShape, recipe: ResolvedRecipe, pack: PlannedPack) -> float:
    """Return the operations of one pack, forward and backward. A multiplication with its addition counts as two."""
    forward, trained = 2.0 * shape.passed_weights, 2.0 * count_trainable(shape, recipe)
    again = {"none": 0.0, "layer": 1.0, "mlp": 2 * shape.hidden * shape.inner * shape.layers / shape.passed_weights}
    repeats = again[recipe.gradient_checkpointing]
    times = 2.0 + (repeats if is_quick(recipe, shape) else float(repeats > 0))
    # For preferences, the base without the adapter also reads every token.
    times += float(recipe.beta) > 0
    linear = forward * (times + 1) if recipe.method == "full" else forward * times + 3 * trained
    # Scores and their product with the values: once forward, twice for their gradients, and once to compute them again.
    score_count = pack.segments * pack.longest * (pack.root + pack.longest)
    attention = 4.0 * shape.layers * shape.query * score_count * 4
    head = 4.0 * shape.head_weights * pack.trained * (2 if recipe.method == "full" else 1)
    return linear * pack.tokens + attention + head


def training_seconds(subject: Subject, recipe: ResolvedRecipe, pace: MachineRate) -> float:
    """Return the seconds of all training steps, extrapolated from the packs that are drawn."""
    trained = count_trained_rows(recipe, subject.rows)
    drawn = list(draw_packs(subject.lengths, recipe, subject.rows))[:-1]
    tokens = sum(pack.tokens + pack.root * (pack.segments - 1) for pack in drawn)
    share = trained * recipe.epochs * subject.lengths.mean / max(1, tokens)
    return share * seconds_of(subject.shape, recipe, drawn, pace)


def validation_seconds(subject: Subject, recipe: ResolvedRecipe, pace: MachineRate) -> float:
    """Return the seconds of all validation losses, of which the last is after the last step.

    Each is a pass over the validation rows (two passes for preferences) through the library's modules, for every
    method.
    """
    if not recipe.eval_steps:
        return 0.0
    passes = -(-count_planned_steps(recipe, subject.rows) // recipe.eval_steps) * (2 if float(recipe.beta) else 1)
    slower = _find_rate_share(recipe, subject.shape) / _find_library_share(recipe)
    return slower * _pass_seconds(subject, passes * (subject.rows - count_trained_rows(recipe, subject.rows)), pace)


def _pass_seconds(subject: Subject, rows: int, pace: MachineRate) -> float:
    """Return the seconds of a forward pass of this number of rows."""
    return rows * subject.lengths.mean * 2.0 * subject.shape.passed_weights / pace.operations_a_second


def seconds_of(shape: DecoderShape, recipe: ResolvedRecipe, packs: Iterable[PlannedPack], pace: MachineRate) -> float:
    """Return the seconds of these packs, forward and backward."""
    return sum(pace.pack_s + count_operations(shape, recipe, pack) / pace.operations_a_second for pack in packs)


def plan_duration(subject: Subject, recipe: ResolvedRecipe, pace: MachineRate) -> Duration:
    """Return the time from the worker's start to the evaluated adapter.

    Held-out rows pass the model four times: for their loss and for their labels, with the adapter and without. A run
    that may stop early is planned with all its steps. Generated answers are not included, since their rate is unknown;
    docs/guides/planning.md lists what is not counted.
    """
    start = 2 * (START_S + pace.load_s)
    training = training_seconds(subject, recipe, pace) + validation_seconds(subject, recipe, pace)
    likely = start + training + _pass_seconds(subject, 4 * subject.held_out, pace)
    low, high = (likely * share for share in pace.around)
    return Duration(low=low, likely=likely, high=high, measured=pace.measured)


def read_calibration(
    shape: DecoderShape, recipe: ResolvedRecipe, found: Mapping[str, Any], *, host: str, time: str
) -> MachineCalibration:
    """Return the calibration from measurements of batches of two lengths.

    The rate is the difference of their operations divided by the difference of their seconds. The rest is the constant
    time of a pack.

    Raises: BadInput where the measurements are not possible, such as a longer batch that took less time.
    """
    try:
        (short, long), (quick, slow) = found["lengths"], found["seconds"]
        rows, answer = int(found["rows"]), int(found["answer"])
        packs = [PlannedPack(rows * length, rows, 0, length, rows * answer) for length in (int(short), int(long))]
        few, many = (count_operations(shape, recipe, pack) for pack in packs)
        rate = (many - few) / (float(slow) - float(quick))
        return MachineCalibration(
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
    """Return the optimiser steps of a run with this number of training rows."""
    return recipe.count_steps(count_trained_rows(recipe, rows))
