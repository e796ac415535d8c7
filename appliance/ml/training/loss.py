"""The cross-entropy of chosen tokens, with the output head computed for these alone and a chunk at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from appliance.ml.layers.head import Head

# Positions whose logits are in memory at once: with 49,152 words a chunk is 25 MB in float32.
CHUNK = 128


class _TokenLosses(torch.autograd.Function):
    """Each position's loss; the gradient of hidden is computed in the forward pass, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
        losses = torch.empty(len(targets), device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = head.logits(hidden[part])
            logs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            rows, chosen = torch.arange(len(logs), device=hidden.device), targets[part]
            losses[part] = -logs[rows, chosen]
            if grad is None:
                continue
            # softmax minus the target: the gradient of the logits.
            shares = logs.exp_()
            shares[rows, chosen] -= 1
            grad[part] = head.finish_backward(shares, logits).to(head.weight.dtype) @ head.weight
        ctx.grad = grad
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return ctx.grad * grad[:, None].to(ctx.grad.dtype), None, None


def token_losses(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    """[positions], float32: the cross-entropy of each target.

    hidden is [positions, size], of the dtype of the head's weight, targets [positions]. A head that is trained
    itself has its chunks computed again in the backward pass.
    """
    if not head.weight.requires_grad:
        losses: torch.Tensor = _TokenLosses.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
        return losses
    parts = [slice(start, start + CHUNK) for start in range(0, len(targets), CHUNK)]
    return torch.cat([checkpoint(_plain, hidden[part], head, targets[part], use_reentrant=False) for part in parts])


def _plain(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(head.logits(hidden).float(), targets, reduction="none")
