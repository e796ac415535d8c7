"""A training checkpoint is complete: a resumed run ends in the bytes of an uninterrupted one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from appliance.errors import BadInput
from appliance.ml.data import rows as data
from appliance.ml.data.rows import tokenize_rows
from appliance.ml.model import machine
from appliance.ml.model.base import load_base
from appliance.ml.training import checkpoint, loop, methods
from appliance.ml.training import checkpoint as optimisers
from scripts.kit.tiny_model import RECIPE

Run = Callable[..., tuple[bytes, dict[int, bytes], checkpoint.TrainingState]]
EVERY_STEP = {**RECIPE, "save_steps": 1, "dropout": "0.1"}


@pytest.fixture(scope="module")
def run(base_folder: Path, dataset: Path) -> Run:
    """Return a function that trains: the adapter's bytes, the training checkpoints by step, and the last state."""

    def train(
        seed: int | None = None, optimiser: str = "adamw", **window: Any
    ) -> tuple[bytes, dict[int, bytes], checkpoint.TrainingState]:
        recipe = EVERY_STEP | {"optimiser": optimiser}
        machine.use_determinism(recipe["seed"] if seed is None else seed)
        base = load_base(base_folder, quantisation="nf4-double", compute_dtype="float32", device="cpu")
        rows = tokenize_rows(data.load_rows(dataset, data.TRAIN), base.chat, max_length=128)
        attached = methods.attach_adapter(base, recipe)
        kept: dict[int, bytes] = {}

        def keep(training: checkpoint.TrainingState) -> None:
            kept[training.step] = checkpoint.encode_checkpoint(training)

        ended = loop.train(base, attached, rows, recipe, lambda step: None, save_checkpoint=keep, **window)
        return methods.encode_adapter(attached, "tiny")[0], kept, ended

    return train


@pytest.fixture(scope="module")
def whole(run: Run) -> tuple[bytes, dict[int, bytes], checkpoint.TrainingState]:
    return run()


@pytest.mark.thorough
@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_run_that_continues_ends_in_the_same_bytes(run: Run, whole: Any, step: int) -> None:
    """Dropout draws from the random numbers: another seed at the start shows that they are the checkpoint's."""
    adapter, kept, ended = whole
    assert max(kept) == ended.steps == 6
    again, later, resumed = run(seed=99, start=kept[step])
    assert again == adapter
    assert later == {number: data for number, data in kept.items() if number > step}
    assert (resumed.losses, resumed.tokens, resumed.trained_tokens) == (
        ended.losses,
        ended.tokens,
        ended.trained_tokens,
    )


@pytest.mark.thorough
def test_an_8_bit_optimiser_continues_to_the_same_bytes(run: Run, whole: Any) -> None:
    """Its state is in the file: the two moments as bytes and the scale of each block, or as they are where a weight is
    small."""
    adapter, kept, _ = run(optimiser="adamw-8bit")
    assert adapter != whole[0]
    again, later, _ = run(seed=99, optimiser="adamw-8bit", start=kept[3])
    assert again == adapter
    assert later == {number: data for number, data in kept.items() if number > 3}
    tensors = checkpoint.parse_checkpoint(kept[3])[1]
    assert {name.split(".", 1)[0] for name in tensors} == {"losses", "random", "weight", "state1", "state2"}


def test_of_a_large_weight_the_moments_are_bytes_and_scales() -> None:
    """bitsandbytes leaves weights of fewer than 4,096 numbers in float32, and all of the tiny model's are."""
    recipe = EVERY_STEP | {"optimiser": "adamw-8bit"}

    def begin() -> checkpoint.TrainingState:
        torch.manual_seed(1)
        weight = torch.nn.Parameter(torch.randn(32, 200))
        training = checkpoint.TrainingState(
            {"w": weight}, optimisers.build_optimiser({"w": weight}, recipe, "cpu"), 9, "cpu"
        )
        return training

    def step(training: checkpoint.TrainingState) -> None:
        weight = training.weights["w"]
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(training.step))
        training.optimizer.step()
        training.step += 1
        training.losses.append(1.0)

    one, other = begin(), begin()
    for _ in range(3):
        step(one)
    data = checkpoint.encode_checkpoint(one)
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.parse_checkpoint(data)[1].items()}
    assert (dtypes["state1.w"], dtypes["absmax2.w"]) == (torch.uint8, torch.float32)
    checkpoint.restore_checkpoint(other, data)
    assert checkpoint.encode_checkpoint(other) == data
    for training in (one, other):
        step(training)
    assert checkpoint.encode_checkpoint(one) == checkpoint.encode_checkpoint(other)
    with pytest.raises(BadInput, match=r"got a difference in absmax1\.w"):
        plain = checkpoint.TrainingState({"w": one.weights["w"]}, torch.optim.AdamW([one.weights["w"]]), 9, "cpu")
        checkpoint.restore_checkpoint(plain, data)


def test_an_optimiser_that_the_device_has_not_is_refused() -> None:
    weights = {"w": torch.nn.Parameter(torch.zeros(2))}
    with pytest.raises(BadInput, match=r"recipe, optimiser: expected one that cpu has, .* got paged-adamw-8bit"):
        optimisers.build_optimiser(weights, EVERY_STEP | {"optimiser": "paged-adamw-8bit"}, "cpu")
    with pytest.raises(BadInput, match=r"recipe, optimiser: expected adamw, .* got 'lion'"):
        optimisers.build_optimiser(weights, EVERY_STEP | {"optimiser": "lion"}, "cpu")


def test_a_window_ends_in_the_recorded_bytes(run: Run, whole: Any) -> None:
    _, kept, _ = whole
    _, window, ended = run(start=kept[2], stop=4)
    assert (ended.step, window) == (4, {3: kept[3], 4: kept[4]})


def test_the_last_step_has_one_whatever_the_interval(whole: Any) -> None:
    training = whole[2]
    assert loop.is_due(training, 4)
    training.step = 4
    assert loop.is_due(training, 4)
    assert not loop.is_due(training, 5)
    training.step = training.steps


def test_no_pickle_and_nothing_of_place_or_time_is_in_it(whole: Any) -> None:
    data = whole[1][3]
    counts, tensors = checkpoint.parse_checkpoint(data)
    assert counts == {"version": 1, "step": 3, "steps": 6, **{k: counts[k] for k in ("tokens", "trained_tokens")}}
    assert tensors.keys() >= {"losses", "random.cpu"}
    assert {name.split(".", 1)[0] for name in tensors} == {"losses", "random", "weight", "exp_avg", "exp_avg_sq"}
    assert {t.dtype for n, t in tensors.items() if n.startswith(("weight", "exp"))} == {torch.float32}


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _restated(data: bytes, **counts: Any) -> bytes:
    header, _ = _header(data)
    stated = json.loads(header["__metadata__"]["training-checkpoint"]) | counts
    _, tensors = checkpoint.parse_checkpoint(data)
    return checkpoint._encode(tensors, {k: v for k, v in stated.items() if v is not None})


def _changed(data: bytes, **changes: torch.Tensor | None) -> bytes:
    counts, tensors = checkpoint.parse_checkpoint(data)
    merged = tensors | changes
    return checkpoint._encode({k: v for k, v in merged.items() if v is not None}, counts)


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no safetensors": (lambda data: b"\x80\x04}.", "expected safetensors"),
    "nothing": (lambda data: b"", "expected safetensors"),
    "cut off": (lambda data: data[:-1], "expected safetensors"),
    "without metadata": (lambda data: safetensors.torch.save({"losses": torch.zeros(1)}), "expected safetensors with"),
    "another encoding of the header": (lambda data: _joined(*_header(data)), "expected the one encoding"),
    "another version": (lambda data: _restated(data, version=2), "counts of version 1"),
    "a negative count": (lambda data: _restated(data, tokens=-1), "counts of version 1"),
    "a count that is no integer": (lambda data: _restated(data, tokens=True), "counts of version 1"),
    "a member more": (lambda data: _restated(data, place="/root"), "expected step, "),
    "a member less": (lambda data: _restated(data, tokens=None), "expected step, "),
    "another run's steps": (lambda data: _restated(data, steps=7), "a step of 6, got 3 of 7"),
    "a step past the end": (lambda data: _restated(data, step=7), "a step of 6, got 7 of 6"),
    "a step that its losses deny": (lambda data: _restated(data, step=4), r"losses: expected torch.float64 \(4,\)"),
    "no random numbers": (lambda data: _changed(data, **{"random.cpu": None}), "a difference in random.cpu"),
    "a tensor more": (lambda data: _changed(data, more=torch.zeros(1)), "a difference in more"),
    "another dtype": (lambda data: _changed(data, losses=torch.zeros(3)), "losses: expected torch.float64"),
    "a loss that is no number": (
        lambda data: _changed(data, losses=torch.full((3,), float("nan"), dtype=torch.float64)),
        "losses: expected finite numbers",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(whole: Any, name: str) -> None:
    change, message = BAD[name]
    _, kept, ended = whole
    before = checkpoint.encode_checkpoint(ended)
    with pytest.raises(BadInput, match=message):
        checkpoint.restore_checkpoint(ended, change(kept[3]))
    assert checkpoint.encode_checkpoint(ended) == before


def test_a_file_appears_whole_under_its_name(whole: Any, tmp_path: Path) -> None:
    name = checkpoint.write_checkpoint(tmp_path, whole[2])
    assert name == "step-0000006.safetensors"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert checkpoint.parse_checkpoint((tmp_path / name).read_bytes())[0]["step"] == 6


def _moved(data: bytes, by: float) -> bytes:
    """Every weight is another, by this much in each number."""
    _, tensors = checkpoint.parse_checkpoint(data)
    return _changed(data, **{n: t + by for n, t in tensors.items() if n.startswith("weight.")})


def test_a_difference_is_a_share_of_what_the_window_changed(whole: Any) -> None:
    """The largest over all weights: one that moved by 1 in each number and ends 0.25 away is a quarter off."""
    start = whole[1][2]
    end = _changed(_moved(start, 1.0), losses=checkpoint.parse_checkpoint(start)[1]["losses"])
    assert checkpoint.compare_checkpoints(start, end, end) == 0.0
    assert checkpoint.compare_checkpoints(start, end, _moved(end, 0.25)) == pytest.approx(0.25, rel=1e-4)
    name = next(n for n in checkpoint.parse_checkpoint(end)[1] if n.startswith("weight."))
    one = _changed(end, **{name: checkpoint.parse_checkpoint(end)[1][name] + 0.5})
    assert checkpoint.compare_checkpoints(start, end, one) == pytest.approx(0.5, rel=1e-4)


def test_what_cannot_be_measured_is_no_small_difference(whole: Any) -> None:
    _, kept, _ = whole
    start, end = kept[2], kept[4]
    assert checkpoint.compare_checkpoints(start, end, kept[5]) is None, "another step"
    state = checkpoint.parse_checkpoint(end)[1]["random.cpu"]
    assert checkpoint.compare_checkpoints(start, end, _changed(end, **{"random.cpu": state + 1})) is None
    assert checkpoint.compare_checkpoints(start, end, _changed(end, **{"random.cpu": None})) is None
    assert checkpoint.compare_checkpoints(start, start, _moved(start, 0.1)) is None, "nothing moved"
    names = sorted(n for n in checkpoint.parse_checkpoint(end)[1] if n.startswith("weight."))
    for name in (names[0], names[-1]):
        spoiled = _changed(end, **{name: checkpoint.parse_checkpoint(end)[1][name] * float("nan")})
        assert checkpoint.compare_checkpoints(start, end, spoiled) is None, "no number"
    with pytest.raises(BadInput, match="expected safetensors"):
        checkpoint.compare_checkpoints(start, end, b"")
