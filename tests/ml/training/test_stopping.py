"""Early stopping: decided from recorded losses alone, on rows that are not trained on, and repeatable to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from appliance.domain.runs.steps import best_step, read_steps, should_stop_early
from appliance.errors import BadInput
from appliance.ml.data import rows as data
from appliance.ml.data.rows import tokenize_rows
from appliance.ml.model import machine
from appliance.ml.model.base import load_base
from appliance.ml.training import checkpoint, loop, loss, methods
from scripts.kit.tiny_model import RECIPE

# A rate that overshoots: the validation loss rises again.
EARLY = {
    **RECIPE,
    "epochs": 10,
    "learning_rate": "0.05",
    "save_steps": 3,
    "early_stopping": 2,
    "validation": "0.4",
    "eval_steps": 2,
    "dropout": "0.1",
}
Run = Callable[..., tuple[bytes, dict[int, bytes], list[loop.StepMeasurement], checkpoint.TrainingState]]


@pytest.fixture(scope="module")
def run(base_folder: Path, dataset: Path) -> Run:
    """Return a function that trains: sealed weights, training checkpoints by step, steps and the last state."""

    def train(start: bytes | None = None, stop: int | None = None, **changes: Any) -> Any:
        recipe = EARLY | changes
        machine.use_determinism(recipe["seed"])
        dtype = recipe["compute_dtype"]
        base = load_base(base_folder, quantisation="nf4-double", compute_dtype=dtype, device="cpu")
        rows, validation = (
            tokenize_rows(side, base.chat, max_length=128)
            for side in loss.split_rows(data.load_rows(dataset, data.TRAIN), recipe)
        )
        attached = methods.attach_adapter(base, recipe)
        kept: dict[int, bytes] = {}
        steps: list[loop.StepMeasurement] = []

        def keep(training: checkpoint.TrainingState) -> None:
            kept[training.step] = checkpoint.encode_checkpoint(training)

        ended = loop.train(
            base,
            attached,
            rows,
            recipe,
            steps.append,
            save_checkpoint=keep,
            start=start,
            stop=stop,
            validation=validation,
        )
        loss.use_best(ended)
        return methods.encode_adapter(attached, "tiny")[0], kept, steps, ended

    return train


@pytest.fixture(scope="module")
def whole(run: Run) -> Any:
    return run()


@pytest.mark.thorough
def test_a_run_stops_where_its_losses_say_and_the_best_weights_are_sealed(run: Run, whole: Any) -> None:
    weights, kept, steps, ended = whole
    readings = loss.list_readings(ended)
    assert readings == [(s.step, f"{s.validation_loss:.6f}") for s in steps if s.validation_loss is not None]
    assert [step for step, _ in readings] == list(range(2, ended.step + 1, 2))
    assert ended.step < ended.steps, "it stopped early"
    assert max(kept) == ended.step, "and has a training checkpoint there"
    best = best_step(readings)
    assert best == readings[-3][0]
    assert weights == run(stop=best, early_stopping=0)[0], "the weights after the best step, and no other"


@pytest.mark.thorough
def test_a_run_that_continues_stops_at_the_same_step_with_the_same_bytes(run: Run, whole: Any) -> None:
    weights, kept, _, ended = whole
    for step, data_ in kept.items():
        again, later, _, resumed = run(start=data_)
        assert (again, resumed.step) == (weights, ended.step)
        assert later == {number: one for number, one in kept.items() if number > step}


def test_a_window_over_the_end_is_the_recorded_one(run: Run, whole: Any) -> None:
    kept = whole[1]
    *_, before, last = sorted(kept)
    assert run(start=kept[before], stop=last)[1] == {last: kept[last]}


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reading_a_validation_loss_changes_no_weight(run: Run, dtype: str) -> None:
    """Nor does it draw a random number, or leave a kernel behind that passes no gradient."""
    often = run(stop=6, early_stopping=0, eval_steps=1, compute_dtype=dtype)
    never = run(stop=6, early_stopping=0, eval_steps=100, compute_dtype=dtype)
    assert often[0] == never[0]
    assert [s.loss for s in often[2]] == [s.loss for s in never[2]]


def test_a_validation_loss_that_is_no_number_stops_the_run_and_names_the_rate(whole: Any) -> None:
    ended = replace(whole[3], step=whole[3].steps)
    with pytest.raises(
        BadInput, match=r"expected a finite validation loss, got nan \(learning_rate 0\.\d+\)"
    ) as caught:
        loss.take_reading(ended, torch.nn.Linear(1, 1), lambda: float("nan"))
    assert caught.value.code == "diverged"


def test_rows_to_validate_with_are_training_rows_and_equal_prompts_stand_on_one_side(dataset: Path) -> None:
    rows = data.load_rows(dataset, data.TRAIN)
    train, validation = loss.split_rows([*rows, rows[0]], EARLY)
    assert sorted(row.index for row in train + validation) == sorted([rows[0].index, *(r.index for r in rows)])
    assert not {row.text for row in train} & {row.text for row in validation}
    assert {row.split for row in validation} == {data.TRAIN}
    assert loss.split_rows(rows[::-1], EARLY)[1] == [r for r in rows[::-1] if r in validation], "order means nothing"
    assert loss.split_rows(rows, EARLY | {"seed": 8})[1] != validation
    assert loss.split_rows(rows, EARLY | {"validation": "0.0"}) == (rows, [])


def test_rows_with_one_prompt_or_one_cluster_stand_on_one_side() -> None:
    """As longer chats that begin in the same way, and the rows of one customer. A text without a prompt is alone."""
    prompts = [f"prompt {n % 30}" if n % 3 else "" for n in range(90)]
    rows = [
        data.RenderedRow(n, data.TRAIN, f"text {n}", "a", ((prompt, "a"),), f"c{n}" if n % 2 else None)
        for n, prompt in enumerate(prompts)
    ]
    rows += [replace(row, index=row.index + 90, text=f"more {row.index}", parts=(("", "a"),)) for row in rows]
    train, validation = loss.split_rows(rows, EARLY)
    assert {row.parts[0][0] for row in train} & {row.parts[0][0] for row in validation} == {""}
    assert {row.cluster for row in train} & {row.cluster for row in validation} == {None}
    assert sorted(row.index for row in train + validation) == list(range(180))


@pytest.mark.parametrize("share", ["0.0001", "0.9"])
def test_a_share_that_leaves_a_side_empty_is_refused(dataset: Path, share: str) -> None:
    rows = data.load_rows(dataset, data.TRAIN)
    rows = [row for row in rows if loss._is_validation(row.text, 7, Fraction(9, 10))][:2]
    with pytest.raises(BadInput, match=f"recipe, validation: expected a share .* of 2, got {share}, which leaves"):
        loss.split_rows(rows, EARLY | {"validation": share})


def test_when_enough_was_trained() -> None:
    falling = [(2, "3.0"), (4, "2.0"), (6, "1.0")]
    assert not should_stop_early(falling, 1)
    assert not should_stop_early(falling, 0)
    assert should_stop_early([*falling, (8, "1.0")], 1), "equal is not lower"
    assert not should_stop_early([*falling, (8, "1.1")], 2)
    assert should_stop_early([*falling, (8, "1.1"), (10, "1.000001")], 2)
    assert not should_stop_early([*falling, (8, "1.1"), (10, "0.999999")], 2)
    assert not should_stop_early([(2, "1.0")], 1)
    assert best_step([*falling, (8, "1.0")]) == 6
    assert read_steps(9, 10, 4) == (4, 8)
    assert read_steps(10, 10, 4) == (4, 8, 10)
    assert read_steps(10, 10, 5) == (5, 10)
    assert read_steps(10, 10, 0) == ()


def test_a_validation_loss_of_nothing_has_no_sign() -> None:
    """Of preferences that are learnt well it is -0.0, and a record holds no such decimal."""
    training = checkpoint.TrainingState(
        {}, cast(Any, None), steps=1, device="cpu", step=1, eval_steps=1, validation=[-0.0]
    )
    assert loss.list_readings(training) == [(1, "0.000000")]
