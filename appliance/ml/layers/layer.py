"""One decoder layer: attention and a gated feed-forward half, each added to its input, forward and backward.

Each half may have a norm before it, after it, or both, and a multiplier, according to the table of architectures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from appliance.ml.layers.architecture import Architecture, LayerKind
from appliance.ml.layers.attention import Attention, Layout
from appliance.ml.layers.head import ACTIVATIONS, Norm, make_norm
from appliance.ml.layers.packing import Rotation
from appliance.ml.layers.projections import LowRank, Projections, Rows

Kept = tuple[Any, ...]
"""Tensors of a half's forward pass that its backward pass needs."""


class ReadPiece(NamedTuple):
    """Tokens that are computed together without gradients.

    `x` is [tokens, hidden]; `rotation` holds their positions; `seen` computes their attention (`PassAttention`).
    """

    x: torch.Tensor
    rotation: Rotation | None
    seen: Any


class Layer:
    """A decoder layer around a `module` of the library, whose linear layers may have an adapter."""

    def __init__(self, module: Any, kind: LayerKind, architecture: Architecture, *, keeps: bool) -> None:
        row = architecture.row
        self.rope, self._multiplier = kind.rope, architecture.residual_multiplier
        self.attention = Attention(module, kind, architecture)
        self._activation = ACTIVATIONS[architecture.activation]
        names = (row.before_attention, row.after_attention, row.before_mlp, row.after_mlp)
        self._before, self._behind, self._before_mlp, self._behind_mlp = (make_norm(module, n, row) for n in names)
        self.names = (row.reading, (row.writing,), row.widening, (row.narrowing,))
        self.parts = tuple(
            Projections([module.get_submodule(name) for name in some], keeps=keeps) for some in self.names
        )
        self._reading, self._writing, self._widening, self._narrowing = self.parts
        self.parameters = [parameter for part in self.parts for parameter in part.parameters]

    @property
    def drops(self) -> bool:
        return any(part.drops for part in self.parts)

    # For each half, forward returns the tensor that is added to the stream and the tensors that backward needs.

    def attend(
        self, x: torch.Tensor, rotation: Rotation | None, layout: Layout, seed: int
    ) -> tuple[torch.Tensor, Kept]:
        flat, low_read = self._reading.forward(_norm(self._before, x), seed)
        seen = self.attention.forward(flat, rotation, layout)
        made, low_write = self._writing.forward(seen, seed + 1)
        added, before = self._add(self._behind, made)
        return added, (flat, seen, low_read, low_write, before)

    def attend_backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        kept: Kept,
        rotation: Rotation | None,
        layout: Layout,
        seed: int,
        deep: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        flat, seen, low_read, low_write, made = kept
        grad = self._add_backward(self._behind, grad, made)
        grad_seen, grads_write = self._writing.backward(grad, seen, low_write, seed + 1, needs_x=True)
        assert grad_seen is not None
        grad_flat = self.attention.backward(grad_seen, flat, rotation, layout)
        normal, units = _divide(self._before, x)
        grad_x, grads_read = self._reading.backward(grad_flat, normal, low_read, seed, needs_x=deep)
        if grad_x is not None and self._before is not None:
            grad_x = self._before.backward(grad_x, *units)
        return grad_x, grads_read + grads_write

    def feed(self, x: torch.Tensor, seed: int) -> tuple[torch.Tensor, Kept]:
        wide, low_wide = self._widening.forward(_norm(self._before_mlp, x), seed + 2)
        gate, up = wide.chunk(2, dim=1)
        made, low_narrow = self._narrowing.forward(self._activation.forward(gate).mul_(up), seed + 3)
        added, before = self._add(self._behind_mlp, made)
        return added, (wide, low_wide, low_narrow, before)

    def feed_backward(
        self, grad: torch.Tensor, x: torch.Tensor, kept: Kept, seed: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        wide, low_wide, low_narrow, made = kept
        gate, up = wide.chunk(2, dim=1)
        passed = self._activation.forward(gate)
        grad = self._add_backward(self._behind_mlp, grad, made)
        inner, grads_narrow = self._narrowing.backward(grad, passed * up, low_narrow, seed + 3, needs_x=True)
        assert inner is not None
        grad_wide = torch.empty_like(wide)
        grad_gate, grad_up = grad_wide.chunk(2, dim=1)
        torch.mul(passed, inner, out=grad_up)
        self._activation.backward(inner.mul_(up), gate, grad_gate)
        normal, units = _divide(self._before_mlp, x)
        grad_x, grads_wide = self._widening.backward(grad_wide, normal, low_wide, seed + 2, needs_x=True)
        assert grad_x is not None
        if self._before_mlp is not None:
            grad_x = self._before_mlp.backward(grad_x, *units)
        return grad_x, grads_wide + grads_narrow

    def read(
        self, number: int, pieces: Sequence[ReadPiece], lows: tuple[LowRank | None, ...], rows: Rows
    ) -> list[torch.Tensor]:
        """Run both halves without gradients and return the input of the next layer for each piece.

        `lows` holds the adapter's update of each of the four products. Each piece is computed separately, from weights
        that are dequantised once; `rows` is as in `Projections.multiply_each`.
        """
        flats = self._reading.multiply_each([_norm(self._before, one.x) for one in pieces], lows[0], rows)
        heads = [
            one.seen.attend(number, *self.attention.split(flat, one.rotation), self.attention.scoring).flatten(1)
            for one, flat in zip(pieces, flats, strict=True)
        ]
        written = self._writing.multiply_each(heads, lows[1], rows)
        middles = [self._add(self._behind, made)[0].add_(one.x) for one, made in zip(pieces, written, strict=True)]
        wide = self._widening.multiply_each([_norm(self._before_mlp, x) for x in middles], lows[2], rows)
        parts = [one.chunk(2, dim=1) for one in wide]
        inner = [self._activation.forward(gate).mul_(up) for gate, up in parts]
        narrow = self._narrowing.multiply_each(inner, lows[3], rows)
        return [self._add(self._behind_mlp, made)[0].add_(x) for made, x in zip(narrow, middles, strict=True)]

    def _add(self, norm: Norm | None, made: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the tensor that a half adds to the stream, and the input of the norm after the half, if any."""
        added = made if norm is None else norm.forward(made)
        if self._multiplier != 1:
            added = added.mul_(self._multiplier)
        return added, None if norm is None else made

    def _add_backward(self, norm: Norm | None, grad: torch.Tensor, made: torch.Tensor | None) -> torch.Tensor:
        if self._multiplier != 1:
            grad = grad * self._multiplier
        if norm is None:
            return grad
        assert made is not None
        return norm.backward(grad, *norm.divide(made))


def _norm(norm: Norm | None, x: torch.Tensor) -> torch.Tensor:
    return x if norm is None else norm.forward(x)


def _divide(norm: Norm | None, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return x normalised, and the tensors that the norm's backward pass needs."""
    if norm is None:
        return x, ()
    unit, scale = norm.divide(x)
    return norm.scale(unit), (unit, scale)
