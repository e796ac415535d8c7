"""Step records: one encoding, and spikes that follow from the losses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.domain.runs.steps import StepRecord, encode_steps, find_spike, parse_steps, record_step
from appliance.errors import BadInput


def frame(step: int, loss: float, **changes: Any) -> dict[str, Any]:
    defaults = {
        "frame": "step",
        "step": step,
        "steps": 30,
        "loss": loss,
        "learning_rate": 0.001,
        "grad_norm": 0.5,
        "tokens": 90 * step,
        "trained_tokens": 9 * step,
        "seconds": 0.25 * step,
        "peak_bytes": 1_000_000,
        "validation_loss": None,
        "row_losses": [[3, loss / 2], [8, loss * 1.5]],
    }
    return defaults | changes


def record(losses: list[float]) -> list[StepRecord]:
    steps: list[StepRecord] = []
    for step, loss in enumerate(losses, start=1):
        steps.append(record_step(frame(step, loss), [one.loss for one in steps]))
    return steps


def test_lines_are_read_as_they_were_written() -> None:
    steps = record([2.0, 1.5, 1.25])
    data = encode_steps(steps)
    assert parse_steps(data) == tuple(steps)
    assert json.loads(data.splitlines()[1]) == {
        "accuracy": None,
        "grad_norm": "0.500000",
        "learning_rate": "0.0010000000",
        "loss": "1.500000",
        "margin": None,
        "peak_bytes": 1_000_000,
        "rows": [[3, "0.7500"], [8, "2.2500"]],
        "seconds": "0.500",
        "spike": None,
        "step": 2,
        "steps": 30,
        "tokens": 180,
        "trained_tokens": 18,
        "validation_loss": None,
    }


def test_a_step_of_preferences_has_its_margin_and_accuracy() -> None:
    step = record_step(frame(1, 0.5) | {"margin": -0.0125, "accuracy": 0.25}, [])
    assert (step.margin, step.accuracy) == ("-0.012500", "0.250000")
    assert parse_steps(encode_steps([step])) == (step,)
    with pytest.raises(BadInput, match="margin: expected a finite number"):
        record_step(frame(1, 0.5) | {"margin": float("nan"), "accuracy": 0.25}, [])


@pytest.mark.parametrize("loss", [-0.0, -1e-9])
def test_a_loss_of_nothing_has_no_sign(loss: float) -> None:
    step = record_step(frame(1, loss, validation_loss=loss), [])
    assert (step.loss, step.validation_loss) == ("0.000000", "0.000000")
    assert step.rows == ((3, "0.0000"), (8, "0.0000"))


def test_the_largest_norm_that_a_run_can_have_is_recorded() -> None:
    largest = (2 - 2**-23) * 2.0**127
    step = record_step(frame(1, 1.0, grad_norm=largest), [])
    assert float(step.grad_norm) == largest and parse_steps(encode_steps([step])) == (step,)


def test_a_spike_names_the_rows_above_the_bar_the_worst_first() -> None:
    steps = record([1.0, 0.9, 1.1, 1.0, 1.0, 2.1])
    assert [one.spike for one in steps] == [None] * 5 + [(8,)]
    before = ["1.0"] * 20
    assert find_spike(before, "2.0", ((1, "9.0"),)) is None, "twice the median is the bar, and not above it"
    assert find_spike(before, "2.1", ((1, "2.2"), (2, "9.0"), (3, "1.0"))) == (2, 1)
    assert find_spike(before, "2.1", ((1, "2.0"), (2, "1.9"))) == (1,), "the highest, where none is above"
    assert find_spike(["0.01"] * 20, "0.2", ((1, "0.2"),)) is None, "near 0 doubling means nothing"
    assert find_spike(["1.0"] * 4, "9.0", ((1, "9.0"),)) is None, "four losses are no measure"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": 3}, "expected step 1, got 3"),
        ({"loss": float("nan")}, "loss: expected a finite number, got nan"),
        ({"loss": "1.0"}, "loss: expected a finite number"),
        ({"loss": -1.0}, "loss: expected a decimal fraction"),
        ({"tokens": 0}, "tokens: expected at least"),
        ({"peak_bytes": 1.5}, "peak_bytes"),
        ({"row_losses": [[1]]}, "expected a list of row and loss"),
        ({"row_losses": [["a", 1.0]]}, "rows.0.0"),
        ({"row_losses": [[1, float("inf")]]}, "expected a finite number"),
        ({"validation_loss": float("inf")}, "validation_loss: expected a finite number"),
    ],
)
def test_what_a_worker_says_of_a_step_is_not_believed(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words.replace("[", r"\[")):
        record_step(frame(1, 1.0) | change, [])


@pytest.mark.parametrize(
    ("bend", "words"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "expected whole lines"),
        (lambda lines: lines[1:], "line 1: expected step 1, got 2"),
        (lambda lines: [lines[0], lines[0]], "line 2: expected step 2, got 1"),
        (lambda lines: [lines[0].replace(b'"loss":', b'"loss": ')], "expected canonical JSON"),
        (lambda lines: [*lines[:5], lines[5].replace(b'"spike":[8]', b'"spike":[3]')], "line 6, spike: expected"),
        (lambda lines: [*lines[:5], lines[5].replace(b'"spike":[8]', b'"spike":null')], "line 6, spike: expected"),
    ],
)
def test_a_file_that_was_changed_is_refused_where_it_was(bend: Any, words: str) -> None:
    lines = encode_steps(record([1.0, 1.0, 1.0, 1.0, 1.0, 3.0])).splitlines(keepends=True)
    with pytest.raises(BadInput, match=words):
        parse_steps(b"".join(bend(lines)))


PRIVATE = {"loss": None, "row_losses": []}


def test_a_private_step_says_nothing_of_its_rows_nor_of_its_time() -> None:
    steps: list[StepRecord] = []
    for step in range(1, 9):
        steps.append(record_step(frame(step, 1.0) | PRIVATE, [one.loss for one in steps], private=True))
    assert parse_steps(encode_steps(steps)) == tuple(steps)
    assert {(one.loss, one.rows, one.spike, one.seconds, one.peak_bytes) for one in steps} == {
        (None, (), None, "0.000", 0)
    }


@pytest.mark.parametrize("told", [{"loss": 1.0}, {"row_losses": [[1, 2.0]]}, {"validation_loss": 2.0}])
def test_a_worker_that_tells_a_loss_of_a_private_run_ends_it(told: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="expected no loss and no rows of a private run, got some"):
        record_step(frame(1, 1.0) | PRIVATE | told, (), private=True)
    with pytest.raises(BadInput, match="loss: expected a finite number, got None"):
        record_step(frame(1, 1.0) | PRIVATE, ())
