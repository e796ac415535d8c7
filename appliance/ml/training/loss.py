"""Training losses: cross-entropy of selected tokens, preference loss, and validation loss.

The output head is applied only to the selected tokens, one chunk at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.functional import cross_entropy, logsigmoid
from torch.utils.checkpoint import checkpoint

from appliance.domain.planning.packs import LOGIT_CHUNK
from appliance.domain.runs.steps import best_step, is_read, read_steps, should_stop_early
from appliance.errors import BadInput
from appliance.ml.data.rows import RenderedRow, Sample, join_rows, same_key
from appliance.ml.layers.decoder import Decoder
from appliance.ml.layers.head import Head, sum_losses
from appliance.ml.layers.packing import pack_pairs
from appliance.ml.model.base import LoadedBase
from appliance.ml.training.checkpoint import TrainingState


class _TokenLosses(torch.autograd.Function):
    """The loss of each position.

    The forward pass also computes the gradient of `hidden`, while the logits are in memory.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
        losses = torch.empty(len(targets), device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), LOGIT_CHUNK):
            part = slice(start, start + LOGIT_CHUNK)
            logits = head.logits(hidden[part])
            logs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            rows, chosen = torch.arange(len(logs), device=hidden.device), targets[part]
            losses[part] = -logs[rows, chosen]
            if grad is None:
                continue
            # The gradient of the logits is softmax minus one-hot target.
            shares = logs.exp_()
            shares[rows, chosen] -= 1
            grad[part] = head.finish_backward(shares, logits).to(head.weight.dtype) @ head.weight
        ctx.grad = grad
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return ctx.grad * grad[:, None].to(ctx.grad.dtype), None, None


def token_losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each target, float32 [positions].

    `hidden` is [positions, size] in the dtype of the head's weight; `targets` is int64 [positions]. If the head itself
    is trained, its chunks are recomputed in the backward pass.
    """
    if not head.weight.requires_grad:
        losses: torch.Tensor = _TokenLosses.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
        return losses
    parts = [slice(start, start + LOGIT_CHUNK) for start in range(0, len(targets), LOGIT_CHUNK)]
    return torch.cat([checkpoint(_plain, hidden[part], head, targets[part], use_reentrant=False) for part in parts])


def _plain(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(head.logits(hidden).float(), targets, reduction="none")


def preference_losses(
    base: LoadedBase, decoder: Decoder | None, samples: Sequence[Sample], beta: float
) -> tuple[torch.Tensor, list[float]]:
    """Return the DPO loss of each sample, float32 [samples], and the margin of each.

    The loss is -log sigmoid(margin). The margin is β times the difference between chosen and rejected completion of the
    log-probability's gain over the base (https://arxiv.org/abs/2305.18290).
    """
    with torch.no_grad(), adapter_off(base.model, decoder):
        reference = _compute_differences(base, decoder, samples)
    margins = beta * (_compute_differences(base, decoder, samples) - reference)
    return -logsigmoid(margins), margins.tolist()


def _compute_differences(base: LoadedBase, decoder: Decoder | None, samples: Sequence[Sample]) -> torch.Tensor:
    """Return log-probability of the chosen minus that of the rejected completion, float32 [samples]."""
    device = base.device
    if decoder is None and base.reads_sequences_separately:
        losses = torch.stack(
            [
                _sum_single_loss(base, prompt + ids, len(prompt))
                for prompt, *both in _split_samples(samples)
                for ids in both
            ]
        )
        return losses[1::2] - losses[::2]
    pack, found = pack_pairs(_split_samples(samples))
    hidden = base.hidden(**pack.arguments(device))[0] if decoder is None else decoder.hidden(pack, device)
    rows = [
        # A token is predicted at the position before it, the first one at the prompt's last position.
        ([prompt.stop - 1, *range(answer.start, answer.stop - 1)], pack.ids[answer.start : answer.stop])
        for prompt, *both in found
        for answer in both
    ]
    sums = sum_losses(hidden, rows, partial(token_losses, base.head()))
    return sums[1::2] - sums[::2]


def _split_samples(samples: Sequence[Sample]) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Return prompt, chosen completion and rejected completion of each sample."""
    starts = [sample.spans[0][0] for sample in samples]
    return [(one.ids[:start], one.ids[start:], one.rejected) for one, start in zip(samples, starts, strict=True)]


def _sum_single_loss(base: LoadedBase, ids: Sequence[int], start: int) -> torch.Tensor:
    """Return the sum of the cross-entropy of tokens from `start` on, for one sequence in the library's modules."""
    hidden = base.hidden_alone(ids)[start - 1 : len(ids) - 1]
    return token_losses(base.head(), hidden, torch.tensor(list(ids[start:]), device=base.device)).sum()


def has_adapter(model: Any) -> bool:
    """Return True if the model has a PEFT adapter."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@contextmanager
def adapter_off(model: Any, decoder: Decoder | None = None) -> Iterator[None]:
    """Disable the adapter within the block, in the decoder or else in the library's modules."""
    if decoder is not None:
        with decoder.without_adapter():
            yield
        return
    layers = [one for one in model.modules() if isinstance(one, BaseTunerLayer)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        # PEFT's switch also changes which parameters are trained.
        for layer in layers:
            layer.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


MeanLoss = Callable[[], float]
"""Function that returns the mean loss of the validation rows' trained tokens with the current weights."""


def split_rows(rows: Sequence[RenderedRow], recipe: Mapping[str, Any]) -> tuple[list[RenderedRow], list[RenderedRow]]:
    """Return the rows for training and those for validation; the two share no text, prompt or cluster.

    Raises:
        BadInput: one of the two is empty.
    """
    share = Fraction(recipe["validation"])
    if not share:
        return list(rows), []
    prompts = [same_key(row.parts[0][0]) or None for row in rows]
    keys = join_rows([same_key(row.text) for row in rows], prompts, [row.cluster for row in rows])
    sides: tuple[list[RenderedRow], list[RenderedRow]] = [], []
    for row, key in zip(rows, keys, strict=True):
        sides[_is_validation(key, recipe["seed"], share)].append(row)
    if not all(sides):
        raise BadInput(
            f"recipe, validation: expected a share that leaves rows on both sides of {len(rows)}, got "
            f"{recipe['validation']}, which leaves {len(sides[0])} to train on and {len(sides[1])} to validate with; "
            "rows with one prompt or one cluster stay together"
        )
    return sides


def _is_validation(key: str, seed: int, share: Fraction) -> bool:
    value = hashlib.sha256(f"validation/v1\x00{seed}\x00{key}".encode()).digest()
    return Fraction(int.from_bytes(value, "big"), 1 << 256) < share


def take_reading(training: TrainingState, model: torch.nn.Module, mean_loss: MeanLoss) -> float | None:
    """Compute the validation loss if it is due, rounded to six decimals; keep the weights of the lowest.

    Return None if it is not due.

    Raises:
        BadInput: the loss is not finite.
    """
    if not is_read(training.step, training.steps, training.eval_steps):
        return None
    with torch.no_grad(), _without_dropout(model):
        loss = round(mean_loss(), 6)
    if not math.isfinite(loss):
        rate = training.optimizer.param_groups[0]["lr"]
        raise BadInput(
            f"training, step {training.step}: expected a finite validation loss, got {loss} (learning_rate {rate:g})",
            code="diverged",
        )
    training.validation.append(loss)
    if training.patience and best_step(list_readings(training)) == training.step:
        training.best = {name: weight.detach().clone() for name, weight in training.weights.items()}
    return loss


@contextmanager
def _without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Disable dropout within the block.

    In evaluation mode (`model.eval()`) bitsandbytes would pack weights for kernels without gradients.
    """
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.training]
    for module in dropouts:
        module.eval()
    try:
        yield
    finally:
        for module in dropouts:
            module.train()


def list_readings(training: TrainingState) -> list[tuple[int, str]]:
    """Return the step and the text of every validation loss so far."""
    at = read_steps(training.step, training.steps, training.eval_steps)
    return [(step, f"{loss:z.6f}") for step, loss in zip(at, training.validation, strict=True)]


def has_ended(training: TrainingState) -> bool:
    """Return True if no step follows: it was the last one, or early stopping applies."""
    return training.step == training.steps or should_stop_early(list_readings(training), training.patience)


def use_best(training: TrainingState) -> int:
    """Load the weights to be sealed and return their step: the best one with early stopping, otherwise the last."""
    if not training.best:
        return training.step
    with torch.no_grad():
        for name, weight in training.weights.items():
            weight.copy_(training.best[name])
    return best_step(list_readings(training))
