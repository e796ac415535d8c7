"""Adapters of different rows in one operation a layer: A and B stacked, each row multiplied by its own adapter's.

A row's bits must not depend on its neighbours, so no shape does either. Rows of one adapter stand in chunks of a fixed
size, filled up with zeros; a stack takes adapters of one family (padded rank and adapted layers), so that neither a
neighbour's rank nor its layers change what is computed; and a batched product computes each of its matrices as if it
were alone. The last is a fact about libraries: tests hold the logits of mixed batches against those of each row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

# Rows of one adapter that are multiplied at once.
CHUNK = 4
# Rows that a product sees whose bits depend on how many there are.
ROWS = 16
_LEAST_RANK = 8
_KEPT_STACKS = 4

Key = tuple[str, ...]


@dataclass(frozen=True)
class Adapter:
    """A and B of every adapted layer by the layer's name, float32, and their common scale."""

    scaling: float
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def rank(self) -> int:
        """The rank up to the next power of two."""
        rank = len(next(iter(self.weights.values()))[0])
        return max(_LEAST_RANK, 1 << (rank - 1).bit_length())

    @property
    def family(self) -> tuple[int, frozenset[str]]:
        """Adapters of one family can stand in one stack."""
        return self.rank, frozenset(self.weights)


@dataclass(frozen=True)
class Stack:
    """A chunk's adapter at each place: `scaling` [chunks, 1, 1]; A [chunks, rank, in] and B [chunks, rank, out]."""

    scaling: torch.Tensor
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Part:
    """One family's rows in a batch. `rows` are their places in it, `chunks` the row at each chunk's place (the batch's
    size where none is), `back` where in the chunks each of `rows` stands."""

    stack: Stack
    rows: torch.Tensor
    chunks: torch.Tensor
    back: torch.Tensor

    def add(self, name: str, x: torch.Tensor, result: torch.Tensor, quantised: bool) -> None:
        """Adds what the adapters add, in place, to the rows of this part; x is [rows, in], result [rows, out]."""
        pair = self.stack.weights.get(name)
        if pair is None:
            return
        wide = pad(x.float(), (0, 0, 0, 1)).index_select(0, self.chunks).view(-1, CHUNK, x.shape[1])
        added = torch.bmm(torch.bmm(wide, pair[0].transpose(1, 2)), pair[1]) * self.stack.scaling
        mine = added.flatten(0, 1).index_select(0, self.back)
        result.index_copy_(0, self.rows, combine(result.index_select(0, self.rows), mine, quantised))


Mix = tuple[Part, ...]


def combine(result: torch.Tensor, added: torch.Tensor, quantised: bool) -> torch.Tensor:
    """peft rounds before the sum over a quantised layer, and after it over a plain one."""
    return result + added.to(result.dtype) if quantised else (result + added).to(result.dtype)


class Mixer:
    """Makes the mix of a batch; what is stacked stays so while the same adapters are at work."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stacks: dict[Key, Stack] = {}

    def mix(self, rows: Sequence[str | None], adapters: Mapping[str, Adapter]) -> Mix:
        """The parts of a batch whose rows use these slots; None is the bare base."""
        families: dict[tuple[int, frozenset[str]], dict[str, list[int]]] = {}
        for place, slot in enumerate(rows):
            if slot is not None:
                families.setdefault(adapters[slot].family, {}).setdefault(slot, []).append(place)
        return tuple(self._part(dict(sorted(places.items())), len(rows), adapters) for places in families.values())

    def forget(self) -> None:
        """Drops every stack: nothing of an adapter stays behind."""
        self._stacks.clear()

    def _part(self, places: Mapping[str, list[int]], size: int, adapters: Mapping[str, Adapter]) -> Part:
        names: list[str] = []
        chunks: list[int] = []
        back: dict[int, int] = {}
        for slot, rows in places.items():
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                back |= {row: len(chunks) + offset for offset, row in enumerate(chunk)}
                chunks += chunk + [size] * (CHUNK - len(chunk))
                names.append(slot)
        order = sorted(back)
        return Part(
            self._stack(tuple(names), adapters),
            torch.tensor(order, device=self._device),
            torch.tensor(chunks, device=self._device),
            torch.tensor([back[row] for row in order], device=self._device),
        )

    def _stack(self, names: Key, adapters: Mapping[str, Adapter]) -> Stack:
        if names not in self._stacks:
            while len(self._stacks) >= _KEPT_STACKS:
                del self._stacks[next(iter(self._stacks))]
            self._stacks[names] = _stack([adapters[name] for name in names], self._device)
        return self._stacks[names]


def _stack(adapters: Sequence[Adapter], device: str) -> Stack:
    scaling = torch.tensor([adapter.scaling for adapter in adapters], dtype=torch.float32, device=device)
    weights = {}
    for name in adapters[0].weights:
        pairs = [adapter.weights[name] for adapter in adapters]
        rank = adapters[0].rank
        down = torch.stack([pad(a, (0, 0, 0, rank - len(a))) for a, _ in pairs])
        up = torch.stack([pad(b.T, (0, 0, 0, rank - b.shape[1])) for _, b in pairs])
        weights[name] = (down, up)
    return Stack(scaling[:, None, None], weights)


def multiply_rows(linear: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """linear(x) for x [rows, in], each row's bits its own, however many rows there are.

    The bf16 kernel for NF4 on the CPU does that by itself; every other product is only ever shown `ROWS` rows.
    """
    if getattr(linear, "support_avx512bf16_for_cpu", False) and x.device.type == "cpu":
        return linear(x)
    blocks = [linear(pad(block, (0, 0, 0, ROWS - len(block))))[: len(block)] for block in torch.split(x, ROWS)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
