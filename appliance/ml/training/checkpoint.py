"""Training checkpoints and optimiser state: one file with everything that a run needs to resume exactly.

The format is docs/formats/training-checkpoint.md. The bytes depend only on the state (no time, path or machine), so
training the same steps again gives the same digest. A file from elsewhere is treated as data: nothing in it is
executed, and a file in which any name, shape or dtype differs from this run's is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bitsandbytes
import safetensors
import safetensors.torch
import torch

from appliance.domain.recipe.methods import CUDA_OPTIMISERS
from appliance.domain.runs.steps import count_readings
from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import show
from appliance.ml.training.methods import name_trainable

_EIGHT_BIT: dict[str, Any] = {
    "adamw-8bit": bitsandbytes.optim.AdamW8bit,
    "paged-adamw-8bit": bitsandbytes.optim.PagedAdamW8bit,
}
_CONSTANT = ("step", "qmap1", "qmap2")
"""Parts of an optimiser's state that follow from the number of steps or from the library."""


def build_optimiser(
    weights: Mapping[str, torch.nn.Parameter], recipe: Mapping[str, Any], device: str
) -> torch.optim.Optimizer:
    """Return the recipe's optimiser for these weights.

    Each parameter group has a `ratio` to the recipe's learning rate: LoRA+'s for B, otherwise 1.

    Raises:
        BadInput: the optimiser is unknown or not available on the device.
    """
    name, rate, ratio = recipe["optimiser"], float(recipe["learning_rate"]), float(recipe["loraplus_lr_ratio"])
    if name in CUDA_OPTIMISERS and device != "cuda":
        raise BadInput(f"recipe, optimiser: expected one that {device} has, since it pages on CUDA alone, got {name}")
    faster = [weight for key, weight in weights.items() if ratio != 1 and "lora_B" in key]
    others = [weight for weight in weights.values() if not any(weight is other for other in faster)]
    groups = [{"params": others, "ratio": 1.0, "lr": rate}]
    if faster:
        groups.append({"params": faster, "ratio": ratio, "lr": rate * ratio})
    decay = float(recipe["weight_decay"])
    if name == "adamw":
        # Fused on the CPU: one kernel for each of the hundreds of small weights instead of a dozen.
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=device == "cpu" or None)
    if name not in _EIGHT_BIT:
        raise BadInput(f"recipe, optimiser: expected adamw, {', '.join(_EIGHT_BIT)}, got {name!r}")
    optimiser: torch.optim.Optimizer = _EIGHT_BIT[name](groups, lr=rate, weight_decay=decay)
    return optimiser


def read_state(optimiser: torch.optim.Optimizer, weight: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """Return the optimiser's state of a weight, by the library's names; empty before the first step."""
    return {part: value for part, value in optimiser.state.get(weight, {}).items() if part not in _CONSTANT}


def like_state(optimiser: torch.optim.Optimizer, weight: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """Return tensors with the shapes and dtypes of a weight's state after a step, without changing the optimiser."""
    if isinstance(optimiser, torch.optim.AdamW):
        return {"exp_avg": weight, "exp_avg_sq": weight}
    made: Any = type(optimiser)
    scratch = made([weight])
    _begin_state(scratch, weight, 1)
    return read_state(scratch, weight)


def _begin_state(optimiser: Any, weight: torch.nn.Parameter, step: int) -> None:
    if isinstance(optimiser, torch.optim.AdamW):
        moments = {part: torch.zeros_like(weight, requires_grad=False) for part in ("exp_avg", "exp_avg_sq")}
        optimiser.state[weight] = {"step": torch.tensor(float(step)), **moments}
    else:
        optimiser.init_state(optimiser.param_groups[0], weight, 0, 0)
        optimiser.state[weight]["step"] = step


def restore_state(
    optimiser: torch.optim.Optimizer, weight: torch.nn.Parameter, step: int, parts: Mapping[str, torch.Tensor]
) -> None:
    """Restore the state that `read_state` returned after `step` steps."""
    _begin_state(optimiser, weight, step)
    for part, value in parts.items():
        optimiser.state[weight][part].copy_(value)


VERSION = 1
STATE = "training-checkpoint"
"""The only field of the safetensors metadata; its value is canonical JSON."""
_COUNTS = ("step", "steps", "tokens", "trained_tokens", "version")
MOST_APART = 1e6
"""Largest share that is a meaningful measure of a difference."""


@dataclass
class TrainingState:
    """The changing state of a run; torch holds the random numbers. `losses` has one loss for each finished step."""

    weights: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    steps: int
    device: str
    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    losses: list[float] = field(default_factory=list)
    patience: int = 0
    eval_steps: int = 0
    validation: list[float] = field(default_factory=list)
    """All validation losses so far, as recorded."""
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    """With early stopping, the weights after the step with the lowest validation loss."""


def begin_training(model: Any, recipe: Mapping[str, Any], steps: int, device: str) -> TrainingState:
    """Return the state of a run before its first step."""
    weights = name_trainable(model)
    stopping = {"patience": recipe["early_stopping"], "eval_steps": recipe["eval_steps"]}
    return TrainingState(weights, build_optimiser(weights, recipe, device), steps, device, **stopping)


def encode_checkpoint(training: TrainingState) -> bytes:
    """Return the bytes of the current state. Before the first step there is no optimiser state."""
    tensors = {
        "losses": torch.tensor(training.losses, dtype=torch.float64),
        "random.cpu": torch.get_rng_state(),
    }
    if training.device == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    if training.eval_steps:
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


def restore_checkpoint(training: TrainingState, data: bytes) -> None:
    """Load a checkpoint into a run that has just begun.

    Raises:
        BadInput: a part does not fit the run; the run is unchanged.
    """
    counts, tensors = parse_checkpoint(data)
    step = counts["step"]
    if counts["steps"] != training.steps or not 0 <= step <= training.steps:
        raise BadInput(f"training checkpoint: expected a step of {training.steps}, got {step} of {counts['steps']}")
    expected = _list_expected(training, step)
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
    training.validation = tensors["validation"].tolist() if training.eval_steps else []
    training.best = {
        name: tensors[f"best.{name}"].to(training.device) for name in training.weights if f"best.{name}" in tensors
    }
    training.step, training.tokens, training.trained_tokens = step, counts["tokens"], counts["trained_tokens"]


def parse_checkpoint(data: bytes) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    """Return the counts and tensors of a checkpoint.

    Raises:
        BadInput: the data is not the canonical encoding of a checkpoint.
    """
    try:
        tensors = safetensors.torch.load(data)
        # safetensors reads metadata from files only. The header is its length (u64, little-endian), then JSON.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        stated = header["__metadata__"][STATE].encode()
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"training checkpoint: expected safetensors with the field {STATE}, got: {error}") from None
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


def _list_expected(training: TrainingState, step: int) -> dict[str, torch.Tensor]:
    """Return a tensor of the expected shape and dtype for each expected name."""
    expected = {"losses": torch.empty(step, dtype=torch.float64), "random.cpu": torch.get_rng_state()}
    if training.device == "cuda":
        expected["random.cuda"] = torch.cuda.get_rng_state()
    readings = count_readings(step, training.steps, training.eval_steps)
    if training.eval_steps:
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


def write_checkpoint(folder: Path, training: TrainingState) -> str:
    """Write the state atomically to a file of the folder and return the file's name."""
    name = f"step-{training.step:07d}.safetensors"
    partial = folder / f".{name}"
    with open(partial, "wb") as file:
        file.write(encode_checkpoint(training))
        file.flush()
        os.fsync(file.fileno())
    os.rename(partial, folder / name)
    return name


def compare_checkpoints(before: bytes, expected: bytes, got: bytes) -> float | None:
    """Return the largest difference between two ends of a window, as a share of the window's change.

    The differences are Euclidean norms for each weight. Return None if the ends differ in step, set of weights or
    random state, so that there is no measure.
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
    # Tested individually: a maximum ignores NaN.
    return max(shares) if shares and all(share < MOST_APART for share in shares) else None
