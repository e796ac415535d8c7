"""Direct preference optimisation (Rafailov et al., 2023, https://arxiv.org/abs/2305.18290), with its sigmoid loss.

An answer's reward is beta times how much likelier it is to the adapter than to its reference, the base with the adapter
switched off: no second model is in memory. The loss of a row is -log sigmoid(chosen reward - rejected reward). The
reference reads the same pack in the same step, so that a resumed or replayed step needs nothing from before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.functional import logsigmoid

from appliance.ml.data.samples import Sample
from appliance.ml.layers.decoder import Decoder
from appliance.ml.layers.packing import Segment, pack_pairs
from appliance.ml.model.base import Base
from appliance.ml.training.loss import token_losses

Answers = list[tuple[Segment, Segment, Segment]]


def preference_losses(
    base: Base, decoder: Decoder | None, samples: Sequence[Sample], beta: float
) -> tuple[torch.Tensor, list[float]]:
    """[samples], float32: the loss of each; and each one's margin, the chosen answer's reward above the rejected's."""
    with torch.no_grad(), adapter_off(base.model, decoder):
        reference = _differences(base, decoder, samples, bare=True)
    margins = beta * (_differences(base, decoder, samples, bare=False) - reference)
    return -logsigmoid(margins), margins.tolist()


def _differences(base: Base, decoder: Decoder | None, samples: Sequence[Sample], *, bare: bool) -> torch.Tensor:
    """[samples], float32: how much larger the chosen answer's log-probability is than the rejected one's."""
    device = base.device
    if decoder is None and base.apart:
        losses = torch.stack(
            [_sum_apart(base, prompt + ids, len(prompt)) for prompt, *both in _parts(samples) for ids in both]
        )
        return losses[1::2] - losses[::2]
    pack, found = pack_pairs(_parts(samples))
    if decoder is None:
        hidden = base.hidden(**pack.arguments(device))[0]
    else:
        hidden = decoder.bare(pack, device) if bare else decoder.hidden(pack, device)
    places: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    for row, (prompt, *both) in enumerate(found):
        for side, answer in enumerate(both):
            # A token is predicted at the place before it, the first one at the prompt's last.
            places += [prompt.stop - 1, *range(answer.start, answer.stop - 1)]
            targets += pack.ids[answer.start : answer.stop]
            rows += [2 * row + side] * (answer.stop - answer.start)
    chosen = hidden[torch.tensor(places, device=device)]
    losses = token_losses(chosen, base.head(), torch.tensor(targets, device=device))
    sums = losses.new_zeros(2 * len(samples)).index_add(0, torch.tensor(rows, device=device), losses)
    return sums[1::2] - sums[::2]


def _parts(samples: Sequence[Sample]) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Prompt, chosen and rejected answer of each."""
    starts = [sample.spans[0][0] for sample in samples]
    return [(one.ids[:start], one.ids[start:], one.rejected) for one, start in zip(samples, starts, strict=True)]


def _sum_apart(base: Base, ids: Sequence[int], start: int) -> torch.Tensor:
    """The summed cross-entropy of the tokens from `start` on, of a sequence that goes through the library by itself."""
    hidden = base.hidden_alone(ids)[start - 1 : len(ids) - 1]
    return token_losses(hidden, base.head(), torch.tensor(list(ids[start:]), device=base.device)).sum()


def has_adapter(model: Any) -> bool:
    """Whether one of peft's is on it."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@contextmanager
def adapter_off(model: Any, decoder: Decoder | None = None) -> Iterator[None]:
    """Within it the library's modules answer as the base that the adapter is on. A decoder needs no switch."""
    layers = [] if decoder is not None else [one for one in model.modules() if isinstance(one, BaseTunerLayer)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad] if layers else []
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        # peft's switch is also one of what is trained.
        for layer in layers:
            layer.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
