"""A model's head: from the last norm's output to logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from appliance.ml.layers.architecture import find_architecture
from appliance.ml.layers.fixed import multiply_in_blocks

# Rows whose logits are held at once.
ROWS = 512
_CLOSE = 0.02
"""Of the largest logit: what bfloat16 may round otherwise."""


@dataclass(frozen=True)
class Head:
    """`weight` is [words, hidden]; logits are divided by `divisor`, then l becomes cap tanh(l / cap). `fixed`: rows
    that are judged go through products of one shape (`fixed.py`)."""

    weight: torch.Tensor
    divisor: float = 1.0
    softcap: float | None = None
    fixed: bool = False

    def logits(self, hidden: torch.Tensor, words: Sequence[int] | None = None) -> torch.Tensor:
        """[rows, words] of hidden [rows, size], in its dtype; of some words only where they are named."""
        return self.finish(hidden @ (self.weight if words is None else self.weight[list(words)]).to(hidden.dtype).T)

    def judge(self, hidden: torch.Tensor, words: Sequence[int] | None = None) -> torch.Tensor:
        """The same; on a CPU no row's bits depend on the others."""
        return (
            multiply_in_blocks(lambda block: self.logits(block, words), hidden)
            if self.fixed
            else self.logits(hidden, words)
        )

    def token_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[rows], float64: the cross-entropy of each target, without gradients; some hundred rows' logits at once."""
        parts = zip(torch.split(hidden, ROWS), torch.split(targets, ROWS), strict=True)
        losses = [cross_entropy(self.judge(one).float(), target, reduction="none") for one, target in parts]
        return torch.cat(losses).double()

    def find_likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows]: the likeliest token behind each; some hundred rows' logits at once."""
        return torch.cat([self.judge(one).argmax(dim=-1) for one in torch.split(hidden, ROWS)])

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """What is done to the product with the weight."""
        if self.divisor != 1:
            logits = logits / self.divisor
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def finish_backward(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient of the product, of that of finished logits, which are given too."""
        if self.softcap is not None:
            grad = grad * (1 - (logits / self.softcap).square())
        return grad if self.divisor == 1 else grad / self.divisor


@torch.no_grad()
def check_head(model: Any) -> bool:
    """Whether the library's own logits are what `make_head` makes of its last norm's output."""
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    expected, got = model(input_ids=ids, use_cache=False).logits[0].float(), make_head(model).logits(hidden).float()
    bias = getattr(model.get_output_embeddings(), "bias", None)
    return bias is None and bool((got - expected).abs().max() <= _CLOSE * expected.abs().max())


def make_head(model: Any) -> Head:
    """Of a loaded model, which may have adapters of peft's."""
    architecture, weight = find_architecture(model), model.get_output_embeddings().weight
    if architecture is None:
        # What decoders of the library do to the product, by their configuration; `check_head` holds it against them.
        config = model.config.to_dict()
        divisor = float(config.get("logits_scaling") or 1) / float(config.get("logit_scale") or 1)
        return Head(weight, divisor, config.get("final_logit_softcapping"))
    return Head(weight, architecture.logits_scaling, architecture.logits_softcap)
