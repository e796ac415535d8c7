"""Adapters of different rows in one batch: how a batch is laid out, and what adds each row's own adapter to it.

A row's bits must not depend on its neighbours. On the CPU a kernel of our own multiplies each row by itself
(`ml/lora/kernel.py`); on a GPU adapters are stacked, and shapes are fixed (`ml/lora/stacking.py`). Tests hold
the logits of mixed batches against those of each row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from appliance.ml.layers.fixed import multiply_in_blocks
from appliance.ml.quantised.few_rows import find_few_rows

# Rows that a product sees whose bits depend on how many there are.
ROWS = 16
# The same on a GPU, where the time of a product hardly depends on it; a batch there has no other number of rows.
GPU_ROWS = 64


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Layers that read one input: their names, the input's width, and each one's outputs. Known by itself."""

    names: tuple[str, ...]
    inner: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Adapter:
    """A [rank, in] and B [out, rank] of every adapted layer by the layer's name, float32, and their common scale."""

    scaling: float
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def rank(self) -> int:
        return len(next(iter(self.weights.values()))[0])


class Part(Protocol):
    """Some rows of a batch, and the adapters that they use."""

    def add(self, group: RowGroup, x: torch.Tensor, made: torch.Tensor) -> None: ...


@dataclass(frozen=True)
class Mix:
    """How a batch is laid out: which request each row belongs to (None: padding), and its parts."""

    rows: tuple[int | None, ...]
    parts: tuple[Part, ...]

    @property
    def back(self) -> list[int]:
        """Where each request stands."""
        places = {row: place for place, row in enumerate(self.rows) if row is not None}
        return [places[row] for row in range(len(places))]

    def add(self, group: RowGroup, x: torch.Tensor, made: torch.Tensor) -> None:
        """Adds, in place, what each row's own adapter makes of x [rows, in] to what the group's layers made of it,
        [rows, all of their outputs]; both float32."""
        for part in self.parts:
            part.add(group, x, made)


class Layout(Protocol):
    """Lays out batches, and holds adapters as they are multiplied there."""

    def lay_out(self, slots: Sequence[str | None], adapters: Mapping[str, Adapter]) -> Mix: ...

    def forget(self, slot: str) -> None:
        """Nothing of an adapter stays behind."""

    def clear(self) -> None:
        """Drops every adapter."""


class Mixer:
    """The layout of the batch at work, as long as the same slots are at work in it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._last: tuple[tuple[str | None, ...], Mix] | None = None

    def mix(self, slots: Sequence[str | None], adapters: Mapping[str, Adapter]) -> Mix:
        """The layout of a batch whose requests use these slots; None is the bare base."""
        if self._last is None or self._last[0] != tuple(slots):
            self._last = tuple(slots), self._layout.lay_out(slots, adapters)
        return self._last[1]

    def forget(self, slot: str) -> None:
        """Nothing of an adapter stays behind."""
        self._last = None
        self._layout.forget(slot)

    def clear(self) -> None:
        """Drops every adapter."""
        self._last = None
        self._layout.clear()


def multiply_rows(linear: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """linear(x) for x [rows, in], each row's bits its own, however many rows there are.

    The bf16 kernels for NF4 and GPTQ on the CPU do that by themselves; every other product is only ever shown `ROWS`
    rows, or on a GPU `GPU_ROWS`.
    """
    if getattr(linear, "support_avx512bf16_for_cpu", False) and x.device.type == "cpu":
        return linear(x)
    if (few := find_few_rows(linear, x)) is not None:
        return few(x)
    rows = ROWS if x.device.type == "cpu" else GPU_ROWS
    return multiply_in_blocks(linear, x, rows)
