"""The training loop, to be read from top to bottom.

Deterministic: the same recipe, rows, base and machine give the same adapter, byte for byte, so a run can be replayed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from appliance.errors import BadInput, Unavailable
from appliance.ml.data.samples import Sample
from appliance.ml.layers.decoder import Decoder, fits_decoder
from appliance.ml.layers.packing import pack_sequences
from appliance.ml.model.base import Base
from appliance.ml.model.machine import measure_peak_bytes
from appliance.ml.training.checkpoint import Training, begin_training, restore_checkpoint
from appliance.ml.training.loss import token_losses
from appliance.ml.training.methods import Attached, is_changed
from appliance.ml.training.preferences import preference_losses
from appliance.ml.training.privacy import PrivatePlan, set_private_gradients
from appliance.ml.training.ranks import ALONE, Ranks
from appliance.ml.training.starts import STARTS
from appliance.ml.training.stopping import has_ended, take_reading

# A batch is computed in packs of at most so many tokens. The loss is summed over tokens, so this changes no gradient.
PACK_TOKENS = 2048
# So many rows an error names.
MOST_NAMED = 8


@dataclass(frozen=True)
class Step:
    """One optimiser step: `loss` is the mean over its trained tokens, or over its preferences; `tokens` counts prompts.

    `seconds` are those of this process; `row_losses` has each row's index and the mean over its own trained tokens.
    Of preferences, `margin` is the mean of how far the chosen answer's reward is above the rejected one's, and
    `accuracy` the share of rows where it is. A private step tells nothing of its rows: it has no losses, and the tokens
    are those that are expected.
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
    """(row of the dataset, mean loss of its trained tokens), for each row of the step."""
    validation_loss: float | None = None
    margin: float | None = None
    accuracy: float | None = None


def train(
    base: Base,
    attached: Attached,
    samples: Sequence[Sample],
    recipe: Mapping[str, Any],
    report: Callable[[Step], None],
    *,
    keep: Callable[[Training], None] = lambda training: None,
    start: bytes | None = None,
    stop: int | None = None,
    validation: Sequence[Sample] = (),
    ranks: Ranks = ALONE,
    secret: bytes = b"",
    asked: Callable[[], bool] = lambda: False,
) -> Training:
    """Trains the adapter in place; a loss that is not a number is an error, not a result.

    `keep` is called whenever a training checkpoint is due, or somebody has `asked` for one. `start` is one to go on
    from, `stop` the step to end at. Every rank of a run calls this with the same arguments, and ends with the same
    weights. `secret`: of a private run.
    """
    private = PrivatePlan(samples, recipe, secret) if recipe["privacy"] else None
    plan = list(plan_steps(samples, recipe)) if private is None else []
    steps = len(plan) if private is None else len(private)
    warmup = round(float(recipe["warmup_ratio"]) * steps)
    training = begin_training(attached.model, recipe, steps, base.device)
    decoder = begin_decoder(base, recipe)
    if start is not None:
        restore_checkpoint(training, start)
    began = time.monotonic()
    for number in range(training.step, steps if stop is None else min(stop, steps)):
        if has_ended(training):
            break
        learning_rate = float(recipe["learning_rate"]) * schedule(number, steps, warmup)
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate * group["ratio"]
        if private is None:
            found = _plain_step(base, decoder, plan[number], recipe, training, ranks, number)
        else:
            found = _private_step(base, decoder, private, recipe, training, secret, number)
        training.optimizer.step()
        training.optimizer.zero_grad()
        reading = take_reading(training, attached.model, lambda: mean_loss(base, validation, recipe, ranks))
        peak = ranks.exchange_peaks(measure_peak_bytes(training.device), training.device)
        seconds = time.monotonic() - began
        report(
            Step(
                *(training.step, training.steps, found.loss, learning_rate, found.norm),
                *(training.tokens, training.trained_tokens, seconds, peak, found.rows),
                validation_loss=reading,
                margin=found.margin,
                accuracy=found.accuracy,
            )
        )
        due = is_due(training, recipe["checkpoint_every"])
        if due:
            ranks.check_same(training.weights)
        if due or asked():
            keep(training)
    if has_ended(training) and not (training.trained_tokens and is_changed(attached)):
        raise Unavailable(
            f"training, learning_rate {recipe['learning_rate']}: expected a changed adapter after {training.step} "
            "steps, got the one it began with",
            code="nothing-trained",
        )
    return training


@dataclass(frozen=True)
class _Found:
    """What a step's gradients came with."""

    loss: float | None
    norm: float
    rows: tuple[tuple[int, float], ...] = ()
    margin: float | None = None
    accuracy: float | None = None


def _plain_step(
    base: Base,
    decoder: Decoder | None,
    batch: Sequence[Sample],
    recipe: Mapping[str, Any],
    training: Training,
    ranks: Ranks,
    number: int,
) -> _Found:
    """The gradients of a step, clipped together; BadInput where they are no numbers."""
    weights = training.weights.values()
    ranks.begin_step(recipe["seed"], number)
    row_losses, margins = map(ranks.merge, compute_gradients(base, decoder, batch, recipe, ranks))
    ranks.add_gradients(weights)
    loss = math.fsum(row_losses.values()) / sum(sample.weight for sample in batch)
    norm = torch.nn.utils.clip_grad_norm_(weights, float(recipe["max_grad_norm"])).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise BadInput(f"training, step {number + 1}: {describe_break(row_losses, norm, recipe)}", code="diverged")
    training.step = number + 1
    training.losses.append(loss)
    training.tokens += sum(sample.tokens for sample in batch)
    training.trained_tokens += sum(sample.trained_tokens for sample in batch)
    means = tuple((sample.index, row_losses[sample.index] / sample.weight) for sample in batch)
    return _Found(loss, norm, means, *summarise_margins(list(margins.values())))


def _private_step(
    base: Base,
    decoder: Decoder | None,
    plan: PrivatePlan,
    recipe: Mapping[str, Any],
    training: Training,
    secret: bytes,
    number: int,
) -> _Found:
    """The noised gradients of a step; BadInput where the weights are no numbers any more."""

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
    return _Found(None, norm)


def compute_gradients(
    base: Base, decoder: Decoder | None, batch: Sequence[Sample], recipe: Mapping[str, Any], ranks: Ranks
) -> tuple[dict[int, float], dict[int, float]]:
    """Adds the gradients of this rank's rows of a step, of a mean over all its rows; the loss of each row, and of each
    preference its margin."""
    weight = sum(sample.weight for sample in batch)
    row_losses: dict[int, float] = {}
    margins: dict[int, float] = {}
    for part in split_batch(ranks.share(sort_batch(batch)), recipe["batch_size"]):
        losses, found = part_losses(base, decoder, part, recipe)
        torch.autograd.backward(losses.sum() / weight)
        row_losses |= zip((sample.index for sample in part), losses.tolist(), strict=True)
        # Other rows have none.
        margins |= zip((sample.index for sample in part), found, strict=False)
    return row_losses, margins


def describe_break(row_losses: Mapping[int, float], norm: float, recipe: Mapping[str, Any]) -> str:
    """What was no number in a step: the loss of these rows or, where each has one, the gradient."""
    rows = sorted(row for row, loss in row_losses.items() if not math.isfinite(loss))
    if not rows:
        return f"expected a finite gradient, got the norm {norm} (learning_rate {recipe['learning_rate']})"
    named = ", ".join(map(str, rows[:MOST_NAMED])) + (", ..." if len(rows) > MOST_NAMED else "")
    got = f"{row_losses[rows[0]]} in rows {named} (learning_rate {recipe['learning_rate']})"
    return f"expected a finite loss, got {got}"


def begin_decoder(base: Base, recipe: Mapping[str, Any]) -> Decoder | None:
    """The quick way through the layers, where it computes the same: a difference from a start needs all of float32."""
    if recipe["method"] in STARTS or not fits_decoder(base.model):
        return None
    return Decoder(base.model, recipe["gradient_checkpointing"])


def is_due(training: Training, every: int) -> bool:
    """A training checkpoint after every so many steps, and after the last."""
    return training.step % every == 0 or has_ended(training)


def summarise_margins(margins: Sequence[float]) -> tuple[float | None, float | None]:
    """Of a step's preferences: the mean margin, and the share above 0; None where it has none."""
    if not margins:
        return None, None
    return math.fsum(margins) / len(margins), sum(margin > 0 for margin in margins) / len(margins)


def part_losses(
    base: Base, decoder: Decoder | None, samples: Sequence[Sample], recipe: Mapping[str, Any]
) -> tuple[torch.Tensor, list[float]]:
    """[samples], float32: each one's loss, and of preferences its margin."""
    if samples[0].rejected:
        return preference_losses(base, decoder, samples, float(recipe["beta"]))
    return sample_losses(base, decoder, samples), []


def sample_losses(base: Base, decoder: Decoder | None, samples: Sequence[Sample]) -> torch.Tensor:
    """[samples], float32: the summed cross-entropy of each one's trained tokens."""
    if decoder is None and base.apart:
        return torch.cat([_sample_loss(base, sample) for sample in samples])
    own = max(len(sample.ids) - sample.spans[0][0] for sample in samples) + 1
    pack, segments = pack_sequences([sample.ids for sample in samples], keep=own, longest_short=base.longest_short)
    places: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    for row, (sample, segment) in enumerate(zip(samples, segments, strict=True)):
        for start, stop in sample.spans:
            # A token is predicted at the place before it; the segment's last token is the sample's last.
            places += range(segment.stop - len(sample.ids) + start - 1, segment.stop - len(sample.ids) + stop - 1)
            targets += sample.ids[start:stop]
            rows += [row] * (stop - start)
    device = base.device
    hidden = base.hidden(**pack.arguments(device))[0] if decoder is None else decoder.hidden(pack, device)
    chosen = hidden[torch.tensor(places, device=device)]
    losses = token_losses(chosen, base.head(), torch.tensor(targets, device=device))
    return losses.new_zeros(len(samples)).index_add(0, torch.tensor(rows, device=device), losses)


def _sample_loss(base: Base, sample: Sample) -> torch.Tensor:
    """[1]: the same of one sample, which goes through the library's modules by itself."""
    places = [place for start, stop in sample.spans for place in range(start - 1, stop - 1)]
    targets = [token for start, stop in sample.spans for token in sample.ids[start:stop]]
    chosen = base.hidden_alone(sample.ids)[torch.tensor(places, device=base.device)]
    return token_losses(chosen, base.head(), torch.tensor(targets, device=base.device)).sum()[None]


def mean_loss(base: Base, samples: Sequence[Sample], recipe: Mapping[str, Any], ranks: Ranks = ALONE) -> float:
    """The mean over all trained tokens of these samples, or all preferences; through the library's own modules, which
    drop nothing then."""
    parts = ranks.share(list(enumerate(split_batch(samples, recipe["batch_size"]))))
    losses = ranks.merge({number: part_losses(base, None, part, recipe)[0].sum().item() for number, part in parts})
    return sum(losses[number] for number in sorted(losses)) / sum(sample.weight for sample in samples)


def plan_steps(samples: Sequence[Sample], recipe: Mapping[str, Any]) -> Iterator[list[Sample]]:
    """The samples of each optimiser step: every epoch in a new order that the seed fixes."""
    size = recipe["batch_size"] * recipe["accumulation"]
    generator = torch.Generator().manual_seed(recipe["seed"])
    for _ in range(recipe["epochs"]):
        order = torch.randperm(len(samples), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [samples[place] for place in order[start : start + size]]


def sort_batch(batch: Sequence[Sample]) -> list[Sample]:
    """Long samples with long ones."""
    return sorted(batch, key=lambda sample: (sample.tokens, sample.index))


def split_batch(batch: Sequence[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """Samples in parts of at most `batch_size` that fit into memory; none of no samples."""
    part: list[Sample] = []
    for sample in sort_batch(batch):
        full = sum(other.tokens for other in part) + sample.tokens > PACK_TOKENS
        if part and (full or len(part) == batch_size):
            yield part
            part = []
        part.append(sample)
    if part:
        yield part


def schedule(number: int, steps: int, warmup: int) -> float:
    """The share of the learning rate at a step counted from 0: linear up, then a cosine down to a tenth."""
    if number < warmup:
        return (number + 1) / (warmup + 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - warmup) / max(1, steps - warmup)))
