"""Batches whose rows use different adapters: their layout, and the addition of each row's own adapter.

A row's bits must not depend on the other rows. On a CPU this project's kernel multiplies each row separately
(`RowLayout`); on a GPU adapters are stacked and shapes are fixed (`Stacks`). Tests compare the logits of mixed batches
with those of each row alone.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch.nn.functional import pad

from appliance.ml.layers.fixed import multiply_in_blocks
from appliance.ml.quantised.kernels import PARTS, KernelGroup, load_kernels
from appliance.ml.quantised.linear import find_few_rows

# Number of rows in a product whose bits depend on the number of rows.
ROWS = 16
# The same on a GPU, where the time hardly depends on it; every batch there has a multiple of this number.
GPU_ROWS = 64


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Layers that share an input: their names, the input's size and the size of each output. Compared by identity."""

    names: tuple[str, ...]
    inner: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class AdapterWeights:
    """The weights of an adapter.

    `weights` holds A [rank, in] and B [out, rank] of each adapted layer by the layer's name, float32. `scaling`
    multiplies B A x.
    """

    scaling: float
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def rank(self) -> int:
        return len(next(iter(self.weights.values()))[0])


class BatchPart(Protocol):
    """Rows of a batch and their adapters."""

    def add(self, group: RowGroup, x: torch.Tensor, made: torch.Tensor) -> None: ...


@dataclass(frozen=True)
class Mix:
    """The layout of a batch: the request of each row (None for padding), and the parts of the batch."""

    rows: tuple[int | None, ...]
    parts: tuple[BatchPart, ...]

    @property
    def back(self) -> list[int]:
        """Row index of each request."""
        places = {row: place for place, row in enumerate(self.rows) if row is not None}
        return [places[row] for row in range(len(places))]

    def add(self, group: RowGroup, x: torch.Tensor, made: torch.Tensor) -> None:
        """Add each row's adapter output for x, float32 [rows, in], to `made`, float32 [rows, all outputs], in place."""
        for part in self.parts:
            part.add(group, x, made)


class Layout(Protocol):
    """Creates layouts of batches and holds the adapters in the form that they use."""

    def lay_out(self, slots: Sequence[str | None], adapters: Mapping[str, AdapterWeights]) -> Mix: ...

    def forget(self, slot: str) -> None:
        """Remove every value of the slot's adapter."""

    def clear(self) -> None:
        """Remove all adapters."""


def multiply_rows(linear: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return linear(x) for x [rows, in], such that a row's bits do not depend on the number of rows.

    The bf16 kernels for NF4 and GPTQ on a CPU have this property. Every other product always has `ROWS` rows, or
    `GPU_ROWS` on a GPU.
    """
    if getattr(linear, "support_avx512bf16_for_cpu", False) and x.device.type == "cpu":
        return linear(x)
    if (few := find_few_rows(linear, x)) is not None:
        return few(x)
    rows = ROWS if x.device.type == "cpu" else GPU_ROWS
    return multiply_in_blocks(linear, x, rows)


# Must equal the values in _lora.c.
_LANES, _RANKS, _COLUMNS, _BLOCK = 16, 4, 32, 64


class AdapterPair(ctypes.Structure):
    """An adapter and one or two rows that use it, as in _kernels.h."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("rows", ctypes.c_int64 * 2),
        ("scale", ctypes.c_double),
        ("low", ctypes.c_void_p),
    )


def _load_kernel() -> Callable[[Any, int, KernelGroup, int, int], None]:
    function = load_kernels().add_lora
    pointers = ctypes.POINTER(AdapterPair), ctypes.POINTER(KernelGroup)
    function.argtypes = (pointers[0], ctypes.c_int64, pointers[1], ctypes.c_void_p, ctypes.c_void_p)
    function.restype = None
    return function


_add_lora = _load_kernel()


class PackedAdapter:
    """An adapter's weights in one tensor in the kernel's order, and the offset of each layer."""

    def __init__(self, adapter: AdapterWeights, names: Iterable[str], dtype: torch.dtype) -> None:
        pairs = [adapter.weights.get(name) for name in names]
        parts = [[] if pair is None else _pack(*pair) for pair in pairs]
        starts = accumulate((sum(part.numel() for part in some) for some in parts), initial=0)
        self._weights = torch.cat([part.flatten() for some in parts for part in some]).to(dtype)
        places = [start * dtype.itemsize if some else -1 for start, some in zip(starts, parts, strict=False)]
        self._places = torch.tensor(places, dtype=torch.int64)
        self.rank = -(-adapter.rank // _RANKS) * _RANKS
        self._scaling = adapter.scaling

    def pair(self, some: int, other: int, low: int) -> AdapterPair:
        """Return the kernel's structure for this adapter and two rows, the second -1 if there is only one.

        `low` is the address of the buffer for A x.
        """
        pointers = self._weights.data_ptr(), self._places.data_ptr()
        return AdapterPair(*pointers, self.rank, (some, other), self._scaling, low)

    def forget(self) -> None:
        self._weights.zero_()


class AdapterPairs:
    """The rows of a batch that use adapters, in pairs, as the kernel takes them."""

    def __init__(
        self,
        groups: Mapping[RowGroup, KernelGroup],
        rows: Mapping[str, Sequence[int]],
        packed: Mapping[str, PackedAdapter],
    ) -> None:
        found = [
            (packed[slot], mine[place], mine[place + 1] if place + 1 < len(mine) else -1)
            for slot, mine in rows.items()
            for place in range(0, len(mine), 2)
        ]
        starts = list(accumulate((2 * PARTS * adapter.rank for adapter, _, _ in found), initial=0))
        low = torch.empty(starts[-1])
        # Kept alive because the pairs hold the addresses of the packed weights and buffers.
        self._groups, self._held = groups, (packed, low)
        self.count = len(found)
        pairs = (
            adapter.pair(some, other, low.data_ptr() + start * low.itemsize)
            for (adapter, some, other), start in zip(found, starts, strict=False)
        )
        self.pairs = (AdapterPair * self.count)(*pairs)

    def add(self, group: RowGroup, x: torch.Tensor, made: torch.Tensor) -> None:
        """Add the adapters' outputs as specified by `Mix.add`; both tensors are contiguous."""
        assert x.is_contiguous() and made.is_contiguous()
        _add_lora(self.pairs, self.count, self._groups[group], x.data_ptr(), made.data_ptr())


class RowLayout:
    """A CPU layout in which each request is one row, in the order of the requests."""

    def __init__(self, groups: Sequence[RowGroup], dtype: torch.dtype) -> None:
        self._dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        self._names = [name for group in groups for name in group.names]
        self._groups = number_groups(groups, narrow=self._dtype == torch.bfloat16)
        self._packed: dict[str, PackedAdapter] = {}

    @torch.inference_mode()
    def lay_out(self, slots: Sequence[str | None], adapters: Mapping[str, AdapterWeights]) -> Mix:
        """Return the layout of a batch (`Layout`)."""
        rows: dict[str, list[int]] = {}
        for row, slot in enumerate(slots):
            if slot is not None:
                rows.setdefault(slot, []).append(row)
        for slot in rows:
            if slot not in self._packed:
                self._packed[slot] = PackedAdapter(adapters[slot], self._names, self._dtype)
        packed = {slot: self._packed[slot] for slot in rows}
        return Mix(tuple(range(len(slots))), (AdapterPairs(self._groups, rows, packed),) if rows else ())

    @torch.inference_mode()
    def forget(self, slot: str) -> None:
        """Zero the packed weights, so that no value of the adapter remains in memory."""
        if (packed := self._packed.pop(slot, None)) is not None:
            packed.forget()

    def clear(self) -> None:
        """Remove all adapters."""
        self._packed.clear()


def number_groups(groups: Sequence[RowGroup], *, narrow: bool) -> dict[RowGroup, KernelGroup]:
    """Return each group as the kernel's structure; `narrow` is True for bf16 adapters."""
    firsts = accumulate((len(group.names) for group in groups), initial=0)
    return {
        group: KernelGroup(first, group.inner, narrow, len(group.sizes), group.sizes)
        for group, first in zip(groups, firsts, strict=False)
    }


def _pack(down: torch.Tensor, up: torch.Tensor) -> list[torch.Tensor]:
    """Return A [rank, in] and B [out, rank] in the kernel's order, padded with zeros."""
    missing = -len(down) % _RANKS
    down = pad(down, (0, -down.shape[1] % _LANES, 0, missing))
    up = pad(up.T, (0, -len(up) % _COLUMNS, 0, missing))
    parts = []
    for low, high in zip(torch.split(down, _BLOCK), torch.split(up, _BLOCK), strict=True):
        parts.append(low.view(len(low) // _RANKS, _RANKS, -1, _LANES).transpose(1, 2))
        parts.append(high.view(len(high), -1, _COLUMNS).transpose(0, 1))
    return parts


# Number of rows with the same adapter that are multiplied together.
CHUNK = 2
# Number of chunks in a batched product; the last product is padded.
CHUNKS = 4
_LEAST_RANK = 8

Family = tuple[int, frozenset[str]]
"""The padded rank and the adapted layers of an adapter."""


@dataclass
class Stacked:
    """The adapted layers of a group, for all stacked adapters.

    `down` is A of all layers [adapters, in, layers * rank], multiplied by the scale; `ups` is B of each layer
    [adapters, rank, out]; `layers` are the indices of the layers in the group.
    """

    layers: tuple[int, ...]
    down: torch.Tensor
    ups: list[torch.Tensor]


class Stack:
    """The adapters of one family, each repeated for each of its chunks; entries are rewritten only if necessary."""

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
    def arrange(self, slots: Sequence[str], adapters: Mapping[str, AdapterWeights]) -> list[str]:
        """Arrange these slots, with repeats, in the first entries of the stack; return the slot of each entry."""
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
        """Zero the entries of a slot, so that no value of the adapter remains."""
        for place, held in enumerate(self._held):
            if held == slot:
                self._held[place] = None
                for stacked in self.groups.values():
                    for tensor in (stacked.down, *stacked.ups):
                        tensor[place].zero_()

    def _write(self, place: int, slot: str, adapter: AdapterWeights) -> None:
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
        """Grow the stack by half, in one allocation ordered by layer."""
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
    """The rows of one family in a batch.

    There are `chunks` chunks from row `start` on. Each is multiplied by its own entry of the stack, or all by the first
    one if `places` is 1.
    """

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
        """Add the adapters' outputs as specified by `Mix.add`."""
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
    """Multiply each chunk by its own matrix, in batched products of one size."""
    pairs = zip(torch.split(x, CHUNKS), torch.split(stacked, CHUNKS), strict=True)
    parts = [torch.bmm(some, matrices) for some, matrices in pairs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Stacks:
    """A GPU layout of chunks of rows by family; stacks are kept while the same adapters are in use."""

    def __init__(self, groups: Sequence[RowGroup], device: str) -> None:
        self._groups, self._device = groups, device
        self._stacks: dict[Family, Stack] = {}

    def lay_out(self, slots: Sequence[str | None], adapters: Mapping[str, AdapterWeights]) -> Mix:
        """Return the layout of a batch (`Layout`)."""
        families: dict[Family, dict[str, list[int]]] = {}
        for request, slot in enumerate(slots):
            if slot is not None:
                families.setdefault(_find_family(adapters[slot]), {}).setdefault(slot, []).append(request)
        rows: list[int | None] = []
        parts = []
        for family, requests in families.items():
            stack = self._stacks.setdefault(family, Stack(family, self._groups, self._device))
            chunks = {slot: _make_chunks(mine) for slot, mine in requests.items()}
            needed = [slot for slot, mine in chunks.items() for _ in mine]
            # A single adapter is stored once and used for all chunks.
            order = stack.arrange(needed[:1] if len(chunks) == 1 else needed, adapters)
            parts.append(Chunks(len(rows), len(needed), stack, len(order)))
            for slot in needed if len(chunks) == 1 else order:
                rows += chunks[slot].pop()
        rows += [request for request, slot in enumerate(slots) if slot is None]
        return Mix((*rows, *[None] * (-len(rows) % GPU_ROWS)), tuple(parts))

    def forget(self, slot: str) -> None:
        """Remove every value of the slot's adapter."""
        for family, stack in list(self._stacks.items()):
            stack.forget(slot)
            if stack.empty:
                del self._stacks[family]

    def clear(self) -> None:
        """Drop all stacks."""
        self._stacks.clear()


def _make_chunks(requests: Sequence[int]) -> list[list[int | None]]:
    chunks = [list[int | None](requests[start : start + CHUNK]) for start in range(0, len(requests), CHUNK)]
    chunks[-1] += [None] * (CHUNK - len(chunks[-1]))
    return chunks


def _find_family(adapter: AdapterWeights) -> Family:
    """Return the family of an adapter; adapters of one family fit in one stack.

    They have the same layers, and ranks with the same next power of two.
    """
    return max(_LEAST_RANK, 1 << (adapter.rank - 1).bit_length()), frozenset(adapter.weights)
