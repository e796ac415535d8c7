"""Adapters of different rows on a GPU, in one operation a layer: A and B stacked, gathered by row.

A row's bits must not depend on its neighbours, so no shape does either. A batch is laid out in chunks of a fixed number
of rows of one adapter, filled up with rows of nobody; a stack takes adapters of one family (padded rank and adapted
layers), so that neither a neighbour's rank nor its layers change what is computed; and a batched product has always
the same number of matrices, since a library chooses its kernel by that. So have all rows together, by which it chooses
how a sum over one of them is divided. Tests hold the shapes and the logits of mixed batches against those of each row
alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from appliance.ml.lora.mixing import GPU_ROWS, Adapter, Mix, RowGroup

# Rows of one adapter that are multiplied at once.
CHUNK = 2
# Chunks of one batched product; the last is filled up with padding.
CHUNKS = 4
_LEAST_RANK = 8

Family = tuple[int, frozenset[str]]
"""A padded rank, and the adapted layers."""


@dataclass
class Stacked:
    """A group's adapted layers: A of all of them [places, in, layers * rank], scaled; B of each [places, rank, out].
    `layers` are those layers' places in the group."""

    layers: tuple[int, ...]
    down: torch.Tensor
    ups: list[torch.Tensor]


class Stack:
    """Adapters of one family, each in as many places as it has chunks; a place is only written where it must be."""

    def __init__(self, family: Family, groups: Sequence[RowGroup], device: str) -> None:
        self._rank = family[0]
        self._device = device
        self._named = {
            group: layers
            for group in groups
            if (layers := tuple(n for n, name in enumerate(group.names) if name in family[1]))
        }
        self._held: list[str | None] = []
        self.groups: dict[RowGroup, Stacked] = {}

    @torch.inference_mode()
    def arrange(self, slots: Sequence[str], adapters: Mapping[str, Adapter]) -> list[str]:
        """Brings these slots, each as often as it is named, into the first places; the slot in each of them."""
        missing, holes = Counter(slots), []
        for place in range(len(slots)):
            held = self._held[place] if place < len(self._held) else None
            if held is not None and missing[held]:
                missing[held] -= 1
            else:
                holes.append(place)
        for place, slot in zip(holes, missing.elements(), strict=True):
            self._write(place, slot, adapters[slot])
        return [held for held in self._held[: len(slots)] if held is not None]

    @property
    def empty(self) -> bool:
        return not any(self._held)

    @torch.inference_mode()
    def forget(self, slot: str) -> None:
        """Zeroes its places: nothing of an adapter stays behind."""
        for place, held in enumerate(self._held):
            if held == slot:
                self._held[place] = None
                for stacked in self.groups.values():
                    for tensor in (stacked.down, *stacked.ups):
                        tensor[place].zero_()

    def _write(self, place: int, slot: str, adapter: Adapter) -> None:
        if place >= len(self._held):
            self._grow()
        self._held[place] = None
        for group, layers in self._named.items():
            stacked = self.groups[group]
            for number, layer in enumerate(layers):
                down, up = adapter.weights[group.names[layer]]
                columns = stacked.down[place, :, number * self._rank : (number + 1) * self._rank]
                columns[:, : len(down)].copy_(down.T).mul_(adapter.scaling)
                columns[:, len(down) :].zero_()
                stacked.ups[number][place, : up.shape[1]].copy_(up.T)
                stacked.ups[number][place, up.shape[1] :].zero_()
        self._held[place] = slot

    def _grow(self) -> None:
        """Half as many places more, all in one piece of memory, layer by layer as they are read."""
        size = len(self._held) + max(1, len(self._held) // 2)
        size += -size % CHUNKS
        shapes: dict[RowGroup, list[tuple[int, int]]] = {}
        for group, layers in self._named.items():
            ups = [(self._rank, group.sizes[layer]) for layer in layers]
            shapes[group] = [(group.inner, len(layers) * self._rank), *ups]
        flat = torch.zeros(size * sum(a * b for some in shapes.values() for a, b in some), device=self._device)
        for group, layers in self._named.items():
            made = []
            for a, b in shapes[group]:
                made.append(flat[: size * a * b].view(size, a, b))
                flat = flat[size * a * b :]
            if (before := self.groups.get(group)) is not None:
                for tensor, earlier in zip(made, (before.down, *before.ups), strict=True):
                    tensor[: len(earlier)] = earlier
            self.groups[group] = Stacked(layers, made[0], made[1:])
        self._held += [None] * (size - len(self._held))


class Chunks:
    """One family's rows in a batch: `chunks` chunks from row `start` on, each multiplied by its place in the stack, or
    all by the first one."""

    def __init__(self, start: int, chunks: int, stack: Stack, places: int) -> None:
        self._rows, self._chunks = slice(start, start + chunks * CHUNK), chunks
        self._filled = chunks + -chunks % CHUNKS

        def cut(stacked: torch.Tensor) -> torch.Tensor:
            return stacked[:1].expand(self._filled, -1, -1) if places == 1 else stacked[: self._filled]

        self._stacked = {
            group: Stacked(one.layers, cut(one.down), [cut(up) for up in one.ups])
            for group, one in stack.groups.items()
        }

    def add(self, group: RowGroup, x: torch.Tensor, made: torch.Tensor) -> None:
        """See `Mix.add`."""
        stacked = self._stacked.get(group)
        if stacked is None:
            return
        filled = pad(x[self._rows], (0, 0, 0, (self._filled - self._chunks) * CHUNK))
        low = _multiply(filled.view(self._filled, CHUNK, -1), stacked.down)
        lows = [low] if len(stacked.ups) == 1 else low.chunk(len(stacked.ups), dim=2)
        results = torch.split(made, list(group.sizes), dim=1)
        for layer, own, up in zip(stacked.layers, lows, stacked.ups, strict=True):
            results[layer][self._rows] += _multiply(own, up)[: self._chunks].flatten(0, 1)


def _multiply(x: torch.Tensor, stacked: torch.Tensor) -> torch.Tensor:
    """Chunk by chunk with its own matrix, in batched products of one size."""
    pairs = zip(torch.split(x, CHUNKS), torch.split(stacked, CHUNKS), strict=True)
    parts = [torch.bmm(some, matrices) for some, matrices in pairs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Stacks:
    """A layout: chunks of rows, family by family; what is stacked stays so while the same adapters are at work."""

    def __init__(self, groups: Sequence[RowGroup], device: str) -> None:
        self._groups, self._device = groups, device
        self._stacks: dict[Family, Stack] = {}

    def lay_out(self, slots: Sequence[str | None], adapters: Mapping[str, Adapter]) -> Mix:
        """See `Layout`."""
        families: dict[Family, dict[str, list[int]]] = {}
        for request, slot in enumerate(slots):
            if slot is not None:
                families.setdefault(_family(adapters[slot]), {}).setdefault(slot, []).append(request)
        rows: list[int | None] = []
        parts = []
        for family, requests in families.items():
            stack = self._stacks.setdefault(family, Stack(family, self._groups, self._device))
            chunks = {slot: _chunk(mine) for slot, mine in requests.items()}
            needed = [slot for slot, mine in chunks.items() for _ in mine]
            # One adapter alone is not laid down more than once.
            order = stack.arrange(needed[:1] if len(chunks) == 1 else needed, adapters)
            parts.append(Chunks(len(rows), len(needed), stack, len(order)))
            for slot in needed if len(chunks) == 1 else order:
                rows += chunks[slot].pop()
        rows += [request for request, slot in enumerate(slots) if slot is None]
        return Mix((*rows, *[None] * (-len(rows) % GPU_ROWS)), tuple(parts))

    def forget(self, slot: str) -> None:
        """Nothing of an adapter stays behind."""
        for family, stack in list(self._stacks.items()):
            stack.forget(slot)
            if stack.empty:
                del self._stacks[family]

    def clear(self) -> None:
        """Drops every stack."""
        self._stacks.clear()


def _chunk(requests: Sequence[int]) -> list[list[int | None]]:
    chunks = [list[int | None](requests[start : start + CHUNK]) for start in range(0, len(requests), CHUNK)]
    chunks[-1] += [None] * (CHUNK - len(chunks[-1]))
    return chunks


def _family(adapter: Adapter) -> Family:
    """Adapters of one family can stand in one stack: they have the same layers, and the same power of two at or above
    their ranks."""
    return max(_LEAST_RANK, 1 << (adapter.rank - 1).bit_length()), frozenset(adapter.weights)
