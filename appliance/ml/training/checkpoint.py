"""A training checkpoint: everything that a run needs to continue as if it had never stopped, in one file.

docs/formats/training-checkpoint.md is the page. The bytes are a function of the state alone (no time, no place, no
machine), so that training the same steps again gives the same digest. A file from elsewhere is only data: nothing in it
is executed, and a file in which any name, shape or dtype differs from this run's is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from appliance.domain.runs.stopping import count_readings
from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import show
from appliance.ml.training.methods import name_trainable
from appliance.ml.training.optimisers import build_optimiser, like_state, read_state, restore_state

VERSION = 1
STATE = "training-checkpoint"
"""The one member of the safetensors metadata; canonical JSON."""
_COUNTS = ("step", "steps", "tokens", "trained_tokens", "version")
MOST_APART = 1e6
"""A larger share than this is no measure of anything."""


@dataclass
class Training:
    """What changes while a run trains; the random numbers are torch's own. `losses`: one for each step done."""

    weights: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    steps: int
    device: str
    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    losses: list[float] = field(default_factory=list)
    patience: int = 0
    validate_every: int = 0
    validation: list[float] = field(default_factory=list)
    """Every validation loss so far, as recorded."""
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    """With early stopping, the weights after the step of the lowest."""


def begin_training(model: Any, recipe: Mapping[str, Any], steps: int, device: str) -> Training:
    """A run before its first step."""
    weights = name_trainable(model)
    stopping = {"patience": recipe["early_stopping"], "validate_every": recipe["validate_every"]}
    return Training(weights, build_optimiser(weights, recipe, device), steps, device, **stopping)


def encode_checkpoint(training: Training) -> bytes:
    """The state after the steps done so far. Before the first the optimiser holds nothing, nor does the file."""
    tensors = {
        "losses": torch.tensor(training.losses, dtype=torch.float64),
        "random.cpu": torch.get_rng_state(),
    }
    if training.device == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    if training.validate_every:
        tensors["validation"] = torch.tensor(training.validation, dtype=torch.float64)
    tensors |= {f"best.{name}": weight for name, weight in training.best.items()}
    for name, weight in training.weights.items():
        tensors[f"weight.{name}"] = weight
        tensors |= {f"{part}.{name}": value for part, value in read_state(training.optimizer, weight).items()}
    counts = {
        "version": VERSION,
        "step": training.step,
        "steps": training.steps,
        "tokens": training.tokens,
        "trained_tokens": training.trained_tokens,
    }
    return _encode(tensors, counts)


def restore_checkpoint(training: Training, data: bytes) -> None:
    """Puts the state into a run that has just begun. BadInput names what does not fit, and nothing is changed then."""
    counts, tensors = parse_checkpoint(data)
    step = counts["step"]
    if counts["steps"] != training.steps or not 0 <= step <= training.steps:
        raise BadInput(f"training checkpoint: expected a step of {training.steps}, got {step} of {counts['steps']}")
    expected = _expected(training, step)
    if sorted(tensors) != sorted(expected):
        different = ", ".join(sorted(set(tensors) ^ set(expected))[:3])
        raise BadInput(f"training checkpoint, tensors: expected this run's own, got a difference in {different}")
    for name, like in expected.items():
        _check_like(name, tensors[name], like)
    with torch.no_grad():
        for name, weight in training.weights.items():
            weight.copy_(tensors[f"weight.{name}"])
            if step:
                parts = {part: tensors[f"{part}.{name}"] for part in like_state(training.optimizer, weight)}
                restore_state(training.optimizer, weight, step, parts)
    torch.set_rng_state(tensors["random.cpu"])
    if training.device == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"])
    training.losses = tensors["losses"].tolist()
    training.validation = tensors["validation"].tolist() if training.validate_every else []
    training.best = {
        name: tensors[f"best.{name}"].to(training.device) for name in training.weights if f"best.{name}" in tensors
    }
    training.step, training.tokens, training.trained_tokens = step, counts["tokens"], counts["trained_tokens"]


def parse_checkpoint(data: bytes) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    """Counts and tensors of a file; BadInput for what does not encode to exactly these bytes again."""
    try:
        tensors = safetensors.torch.load(data)
        # safetensors reads metadata from files alone. The header: its length (u64, little-endian), then JSON.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        stated = header["__metadata__"][STATE].encode()
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"training checkpoint: expected safetensors with the member {STATE}, got: {error}") from None
    counts = parse_canonical(stated)
    if not isinstance(counts, dict) or sorted(counts) != sorted(_COUNTS):
        raise BadInput(f"training checkpoint, metadata: expected {', '.join(_COUNTS)}, got {show(counts)}")
    if any(type(value) is not int or value < 0 for value in counts.values()) or counts["version"] != VERSION:
        raise BadInput(f"training checkpoint, metadata: expected counts of version {VERSION}, got {counts}")
    if _encode(tensors, counts) != data:
        raise BadInput("training checkpoint: expected the one encoding of this state, got different bytes")
    return counts, tensors


def _encode(tensors: Mapping[str, torch.Tensor], counts: Mapping[str, int]) -> bytes:
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(tensors.items())}
    data: bytes = safetensors.torch.save(plain, metadata={STATE: encode_canonical(counts).decode()})
    return data


def _expected(training: Training, step: int) -> dict[str, torch.Tensor]:
    """A tensor of the right shape and dtype for every name that must be there."""
    expected = {"losses": torch.empty(step, dtype=torch.float64), "random.cpu": torch.get_rng_state()}
    if training.device == "cuda":
        expected["random.cuda"] = torch.cuda.get_rng_state()
    readings = count_readings(step, training.steps, training.validate_every)
    if training.validate_every:
        expected["validation"] = torch.empty(readings, dtype=torch.float64)
    best = ("best",) if readings and training.patience else ()
    for name, weight in training.weights.items():
        expected |= {f"{part}.{name}": weight for part in ("weight", *best)}
        if step:
            expected |= {f"{part}.{name}": like for part, like in like_state(training.optimizer, weight).items()}
    return expected


def _check_like(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    if (tensor.dtype, tensor.shape) != (like.dtype, like.shape):
        raise BadInput(
            f"training checkpoint, {name}: expected {like.dtype} {tuple(like.shape)}, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise BadInput(f"training checkpoint, {name}: expected finite numbers, got infinite ones or NaN")


def write_checkpoint(folder: Path, training: Training) -> str:
    """The state as a file of the folder, whole or not at all; the file's name."""
    name = f"step-{training.step:07d}.safetensors"
    partial = folder / f".{name}"
    with open(partial, "wb") as file:
        file.write(encode_checkpoint(training))
        file.flush()
        os.fsync(file.fileno())
    os.rename(partial, folder / name)
    return name


def compare_checkpoints(before: bytes, expected: bytes, got: bytes) -> float | None:
    """The largest distance between two ends of a window over all weights, each as a share of what the window changed.

    Euclidean, of the weights alone. None where the ends are not of one step, one set of weights and one draw of
    random numbers: then nothing can be measured.
    """
    _, began = parse_checkpoint(before)
    (counts, recorded), (other_counts, again) = parse_checkpoint(expected), parse_checkpoint(got)
    same_draw = all(
        torch.equal(recorded[n], again.get(n, began["losses"])) for n in recorded if n.startswith("random.")
    )
    if counts != other_counts or recorded.keys() != again.keys() or not same_draw:
        return None
    shares = []
    for name in (name for name in recorded if name.startswith("weight.")):
        if name not in began or not recorded[name].shape == again[name].shape == began[name].shape:
            return None
        end = recorded[name].double()
        apart, moved = (end - again[name].double()).norm().item(), (end - began[name].double()).norm().item()
        shares.append(0.0 if apart == 0 else apart / moved if moved else math.inf)
    # One by one: a maximum passes over what is no number.
    return max(shares) if shares and all(share < MOST_APART for share in shares) else None
