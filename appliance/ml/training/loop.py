"""The training loop, which can be read from top to bottom.

It is deterministic: the same recipe, rows, base and machine give the same adapter, byte for byte, so a run can be
replayed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from appliance.domain.planning.packs import PACK_TOKENS, split_into_packs
from appliance.domain.recipe.recipe import count_rows_a_step, count_warmup
from appliance.errors import BadInput, Unavailable
from appliance.ml.data.rows import Sample
from appliance.ml.layers.decoder import Decoder, fits_decoder
from appliance.ml.layers.head import sum_losses
from appliance.ml.layers.packing import pack_sequences
from appliance.ml.model.base import LoadedBase
from appliance.ml.model.machine import measure_peak_bytes
from appliance.ml.training.checkpoint import TrainingState, begin_training, restore_checkpoint
from appliance.ml.training.loss import has_ended, preference_losses, take_reading, token_losses
from appliance.ml.training.methods import STARTS, TrainableModel, is_changed
from appliance.ml.training.privacy import PrivatePlan, set_private_gradients
from appliance.ml.training.ranks import ALONE, Ranks

# Largest number of rows that an error names.
MOST_NAMED = 8


@dataclass(frozen=True)
class StepMeasurement:
    """The measurements of one optimiser step.

    `loss` is the mean over the step's trained tokens, or over its preferences. `tokens` includes prompts. `seconds` are
    since the start of this process's training. For preferences, `margin` is the mean difference between the rewards of
    the chosen and the rejected completion, and `accuracy` the share of rows with a positive difference. A private step
    reveals nothing about its rows: it has no losses, and its token counts are expected values.
    """

    step: int
    steps: int
    loss: float | None
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    seconds: float
    peak_bytes: int
    row_losses: tuple[tuple[int, float], ...]
    """Row index in the dataset and mean loss of its trained tokens, for each row of the step."""
    validation_loss: float | None = None
    margin: float | None = None
    accuracy: float | None = None


def train(
    base: LoadedBase,
    attached: TrainableModel,
    samples: Sequence[Sample],
    recipe: Mapping[str, Any],
    report: Callable[[StepMeasurement], None],
    *,
    save_checkpoint: Callable[[TrainingState], None] = lambda training: None,
    start: bytes | None = None,
    stop: int | None = None,
    validation: Sequence[Sample] = (),
    ranks: Ranks = ALONE,
    secret: bytes = b"",
    is_checkpoint_requested: Callable[[], bool] = lambda: False,
) -> TrainingState:
    """Train the adapter in place.

    - `save_checkpoint` is called when a training checkpoint is due, or when `is_checkpoint_requested` returns True.
    - `start` is a checkpoint to resume from; `stop` is the step to end at.
    - `secret` is the secret of a private run.

    Every rank of a run calls this with the same arguments and ends with the same weights.

    Raises:
        BadInput: a loss or a weight is not finite.
        Unavailable: no weight has changed when training ends.
    """
    private = PrivatePlan(samples, recipe, secret) if recipe["privacy"] else None
    plan = list(plan_steps(samples, recipe)) if private is None else []
    steps = len(plan) if private is None else len(private)
    warmup = count_warmup(recipe["warmup_ratio"], steps)
    training = begin_training(attached.model, recipe, steps, base.device)
    decoder = begin_decoder(base, recipe)
    if start is not None:
        restore_checkpoint(training, start)
    began = time.monotonic()
    for number in range(training.step, steps if stop is None else min(stop, steps)):
        if has_ended(training):
            break
        learning_rate = _set_learning_rate(training, float(recipe["learning_rate"]) * schedule(number, steps, warmup))
        if private is None:
            found = _plain_step(base, decoder, plan[number], recipe, training, ranks, number)
        else:
            found = _private_step(base, decoder, private, recipe, training, secret, number)
        training.optimizer.step()
        training.optimizer.zero_grad()
        reading = take_reading(training, attached.model, lambda: mean_loss(base, validation, recipe, ranks))
        peak = ranks.exchange_peaks(measure_peak_bytes(training.device), training.device)
        measured = StepMeasurement(
            step=training.step,
            steps=training.steps,
            learning_rate=learning_rate,
            tokens=training.tokens,
            trained_tokens=training.trained_tokens,
            seconds=time.monotonic() - began,
            peak_bytes=peak,
            validation_loss=reading,
            **vars(found),
        )
        report(measured)
        due = is_due(training, recipe["save_steps"])
        if due:
            ranks.check_same(training.weights)
        if due or is_checkpoint_requested():
            save_checkpoint(training)
    if has_ended(training) and not (training.trained_tokens and is_changed(attached)):
        raise _build_nothing_trained(training, recipe)
    return training


def _set_learning_rate(training: TrainingState, rate: float) -> float:
    for group in training.optimizer.param_groups:
        group["lr"] = rate * group["ratio"]
    return rate


def _build_nothing_trained(training: TrainingState, recipe: Mapping[str, Any]) -> Unavailable:
    return Unavailable(
        f"training, learning_rate {recipe['learning_rate']}: expected a changed adapter after {training.step} "
        "steps, got the one it began with",
        code="nothing-trained",
    )


@dataclass(frozen=True)
class _StepResult:
    """The measurements that come with a step's gradients, as in `StepMeasurement`."""

    loss: float | None
    grad_norm: float
    row_losses: tuple[tuple[int, float], ...] = ()
    margin: float | None = None
    accuracy: float | None = None


def _plain_step(
    base: LoadedBase,
    decoder: Decoder | None,
    batch: Sequence[Sample],
    recipe: Mapping[str, Any],
    training: TrainingState,
    ranks: Ranks,
    number: int,
) -> _StepResult:
    """Compute the gradients of a step and clip their common norm."""
    weights = training.weights.values()
    ranks.begin_step(recipe["seed"], number)
    row_losses, margins = map(ranks.merge, compute_gradients(base, decoder, batch, recipe, ranks))
    ranks.add_gradients(weights)
    loss = math.fsum(row_losses.values()) / sum(sample.weight for sample in batch)
    norm = torch.nn.utils.clip_grad_norm_(weights, float(recipe["max_grad_norm"])).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise _make_divergence_error(number, row_losses, norm, recipe)
    training.step = number + 1
    training.losses.append(loss)
    training.tokens += sum(sample.tokens for sample in batch)
    training.trained_tokens += sum(sample.trained_tokens for sample in batch)
    means = tuple((sample.index, row_losses[sample.index] / sample.weight) for sample in batch)
    return _StepResult(loss, norm, means, *summarise_margins(list(margins.values())))


def _private_step(
    base: LoadedBase,
    decoder: Decoder | None,
    plan: PrivatePlan,
    recipe: Mapping[str, Any],
    training: TrainingState,
    secret: bytes,
    number: int,
) -> _StepResult:
    """Compute the noised gradients of a private step."""

    def row_loss(sample: Sample) -> torch.Tensor:
        return part_losses(base, decoder, [sample], recipe)[0].sum() / sample.weight

    set_private_gradients(training.weights, plan.draw(number), row_loss, plan, recipe, secret, number)
    norm = torch.nn.utils.get_total_norm([w.grad for w in training.weights.values() if w.grad is not None]).item()
    if not all(bool(weight.isfinite().all()) for weight in training.weights.values()):
        raise BadInput(
            f"training, step {number + 1}: expected finite weights, got others "
            f"(learning_rate {recipe['learning_rate']})",
            code="diverged",
        )
    training.step = number + 1
    training.losses.append(0.0)
    training.tokens = plan.count_expected(number + 1, lambda sample: sample.tokens)
    training.trained_tokens = plan.count_expected(number + 1, lambda sample: sample.trained_tokens)
    return _StepResult(None, norm)


def compute_gradients(
    base: LoadedBase, decoder: Decoder | None, batch: Sequence[Sample], recipe: Mapping[str, Any], ranks: Ranks
) -> tuple[dict[int, float], dict[int, float]]:
    """Add the gradients of this rank's rows to the weights, scaled as a mean over all rows of the step.

    Return the loss of each row and, for preferences, the margin of each row, by row index.
    """
    weight = sum(sample.weight for sample in batch)
    row_losses: dict[int, float] = {}
    margins: dict[int, float] = {}
    for part in split_batch(ranks.share(sort_batch(batch)), recipe["batch_size"]):
        losses, found = part_losses(base, decoder, part, recipe)
        torch.autograd.backward(losses.sum() / weight)
        row_losses |= zip((sample.index for sample in part), losses.tolist(), strict=True)
        # `found` is empty for rows that are not preferences.
        margins |= zip((sample.index for sample in part), found, strict=False)
    return row_losses, margins


def _make_divergence_error(
    number: int, row_losses: Mapping[int, float], norm: float, recipe: Mapping[str, Any]
) -> BadInput:
    """Return the error of a step that is not finite; before the first update no learning rate can have caused it."""
    cause, code = f"learning_rate {recipe['learning_rate']}", "diverged"
    if number == 0:
        cause, code = f"before the first update, so base {recipe['base']} or these rows cause it", "base-not-finite"
    return BadInput(f"training, step {number + 1}: {describe_break(row_losses, norm)} ({cause})", code=code)


def describe_break(row_losses: Mapping[int, float], norm: float) -> str:
    """Describe the loss or gradient of a step that is not finite.

    The loss of these rows or, if finite, the gradient.
    """
    rows = sorted(row for row, loss in row_losses.items() if not math.isfinite(loss))
    if not rows:
        return f"expected a finite gradient, got the norm {norm}"
    named = ", ".join(map(str, rows[:MOST_NAMED])) + (", ..." if len(rows) > MOST_NAMED else "")
    return f"expected a finite loss, got {row_losses[rows[0]]} in rows {named}"


def begin_decoder(base: LoadedBase, recipe: Mapping[str, Any]) -> Decoder | None:
    """Return the decoder with hand-written layers if it gives the same result; None otherwise.

    Methods that start from a decomposition of the weights need float32 throughout.
    """
    if recipe["method"] in STARTS or not fits_decoder(base.model):
        return None
    return Decoder(base.model, recipe["gradient_checkpointing"])


def is_due(training: TrainingState, every: int) -> bool:
    """Return True after every `every` steps and after the last one, when a training checkpoint is due."""
    return training.step % every == 0 or has_ended(training)


def summarise_margins(margins: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean margin of a step's preferences and the share above 0; None for each without preferences."""
    if not margins:
        return None, None
    return math.fsum(margins) / len(margins), sum(margin > 0 for margin in margins) / len(margins)


def part_losses(
    base: LoadedBase, decoder: Decoder | None, samples: Sequence[Sample], recipe: Mapping[str, Any]
) -> tuple[torch.Tensor, list[float]]:
    """Return the loss of each sample, float32 [samples], and for preferences the margin of each."""
    if samples[0].rejected:
        return preference_losses(base, decoder, samples, float(recipe["beta"]))
    return sample_losses(base, decoder, samples), []


def sample_losses(base: LoadedBase, decoder: Decoder | None, samples: Sequence[Sample]) -> torch.Tensor:
    """Return the sum of the cross-entropy of each sample's trained tokens, float32 [samples]."""
    if decoder is None and base.reads_sequences_separately:
        return torch.cat([_sample_loss(base, sample) for sample in samples])
    own = max(len(sample.ids) - sample.spans[0][0] for sample in samples) + 1
    pack, segments = pack_sequences([sample.ids for sample in samples], keep=own, longest_short=base.longest_short)
    hidden = base.hidden(**pack.arguments(base.device))[0] if decoder is None else decoder.hidden(pack, base.device)
    # The segment's last token is the sample's last.
    rows = [sample.targets(segment.stop - len(sample.ids)) for sample, segment in zip(samples, segments, strict=True)]
    return sum_losses(hidden, rows, partial(token_losses, base.head()))


def _sample_loss(base: LoadedBase, sample: Sample) -> torch.Tensor:
    """Return the sum of one sample's cross-entropy, float32 [1], computed by the library's modules."""
    places, targets = sample.targets()
    chosen = base.hidden_alone(sample.ids)[torch.tensor(places, device=base.device)]
    return token_losses(base.head(), chosen, torch.tensor(targets, device=base.device)).sum()[None]


def mean_loss(base: LoadedBase, samples: Sequence[Sample], recipe: Mapping[str, Any], ranks: Ranks = ALONE) -> float:
    """Return the mean loss over all trained tokens of these samples, or over all preferences.

    The library's modules compute it, without dropout.
    """
    parts = ranks.share(list(enumerate(split_batch(samples, recipe["batch_size"]))))
    losses = ranks.merge({number: part_losses(base, None, part, recipe)[0].sum().item() for number, part in parts})
    return sum(losses[number] for number in sorted(losses)) / sum(sample.weight for sample in samples)


def plan_steps(samples: Sequence[Sample], recipe: Mapping[str, Any]) -> Iterator[list[Sample]]:
    """Yield the samples of each optimiser step; every epoch has a new order, determined by the seed."""
    size = count_rows_a_step(recipe)
    generator = torch.Generator().manual_seed(recipe["seed"])
    for _ in range(recipe["epochs"]):
        order = torch.randperm(len(samples), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [samples[place] for place in order[start : start + size]]


def sort_batch(batch: Sequence[Sample]) -> list[Sample]:
    """Return samples in order of length, so that a part has samples of similar length."""
    return sorted(batch, key=lambda sample: (sample.tokens, sample.index))


def split_batch(batch: Sequence[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """Yield parts of at most `batch_size` samples and about PACK_TOKENS tokens; nothing for an empty batch."""
    return split_into_packs(sort_batch(batch), lambda sample: sample.tokens, PACK_TOKENS, batch_size)


def schedule(number: int, steps: int, warmup: int) -> float:
    """Return the factor of the learning rate at a step, counted from 0: a linear warm-up, then a cosine down to 0.1."""
    if number < warmup:
        return (number + 1) / (warmup + 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - warmup) / max(1, steps - warmup)))
