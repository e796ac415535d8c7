"""Adapters of different rows on the CPU: a kernel that reads each adapter's weights once for every two of its rows.

It reads them in the dtype that the base multiplies in, and sums in float32. Libraries have no such product: a batched
one copies what it multiplies, reads float32, and takes a call for every layer and every side of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import pad

from appliance.ml.lora.mixing import Adapter, Mix, RowGroup
from appliance.ml.quantised.kernels import PARTS, Group, load_kernels

# As in _lora.c.
_LANES, _RANKS, _COLUMNS, _BLOCK = 16, 4, 32, 64


class Pair(ctypes.Structure):
    """An adapter and one or two rows that use it, as in _kernels.h."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("rows", ctypes.c_int64 * 2),
        ("scale", ctypes.c_double),
        ("low", ctypes.c_void_p),
    )


def _load_kernel() -> Callable[[Any, int, Group, int, int], None]:
    function = load_kernels().add_lora
    pointers = ctypes.POINTER(Pair), ctypes.POINTER(Group)
    function.argtypes = (pointers[0], ctypes.c_int64, pointers[1], ctypes.c_void_p, ctypes.c_void_p)
    function.restype = None
    return function


_add_lora = _load_kernel()


class Packed:
    """An adapter's weights in one piece, as the kernel reads them, and where each layer's begin."""

    def __init__(self, adapter: Adapter, names: Iterable[str], dtype: torch.dtype) -> None:
        pairs = [adapter.weights.get(name) for name in names]
        parts = [[] if pair is None else _pack(*pair) for pair in pairs]
        starts = accumulate((sum(part.numel() for part in some) for some in parts), initial=0)
        self._weights = torch.cat([part.flatten() for some in parts for part in some]).to(dtype)
        places = [start * dtype.itemsize if some else -1 for start, some in zip(starts, parts, strict=False)]
        self._places = torch.tensor(places, dtype=torch.int64)
        self.rank = -(-adapter.rank // _RANKS) * _RANKS
        self._scaling = adapter.scaling

    def pair(self, some: int, other: int, low: int) -> Pair:
        """This adapter for two rows, the second -1 where there is one, as the kernel takes them; `low` is the address
        of its room."""
        pointers = self._weights.data_ptr(), self._places.data_ptr()
        return Pair(*pointers, self.rank, (some, other), self._scaling, low)

    def forget(self) -> None:
        self._weights.zero_()


class Pairs:
    """The rows of a batch that use adapters, two by two, as the kernel takes them."""

    def __init__(
        self, groups: Mapping[RowGroup, Group], rows: Mapping[str, Sequence[int]], packed: Mapping[str, Packed]
    ) -> None:
        found = [
            (packed[slot], mine[place], mine[place + 1] if place + 1 < len(mine) else -1)
            for slot, mine in rows.items()
            for place in range(0, len(mine), 2)
        ]
        starts = list(accumulate((2 * PARTS * adapter.rank for adapter, _, _ in found), initial=0))
        low = torch.empty(starts[-1])
        # The pairs hold the addresses of what was packed, and of their rooms.
        self._groups, self._held = groups, (packed, low)
        self.count = len(found)
        pairs = (
            adapter.pair(some, other, low.data_ptr() + start * low.itemsize)
            for (adapter, some, other), start in zip(found, starts, strict=False)
        )
        self.pairs = (Pair * self.count)(*pairs)

    def add(self, group: RowGroup, x: torch.Tensor, made: torch.Tensor) -> None:
        """See `Mix.add`; both contiguous."""
        assert x.is_contiguous() and made.is_contiguous()
        _add_lora(self.pairs, self.count, self._groups[group], x.data_ptr(), made.data_ptr())


class Rows:
    """A layout: each request is a row, in the order of the requests."""

    def __init__(self, groups: Sequence[RowGroup], dtype: torch.dtype) -> None:
        self._dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        self._names = [name for group in groups for name in group.names]
        self._groups = number_groups(groups, narrow=self._dtype == torch.bfloat16)
        self._packed: dict[str, Packed] = {}

    @torch.inference_mode()
    def lay_out(self, slots: Sequence[str | None], adapters: Mapping[str, Adapter]) -> Mix:
        """See `Layout`."""
        rows: dict[str, list[int]] = {}
        for row, slot in enumerate(slots):
            if slot is not None:
                rows.setdefault(slot, []).append(row)
        for slot in rows:
            if slot not in self._packed:
                self._packed[slot] = Packed(adapters[slot], self._names, self._dtype)
        packed = {slot: self._packed[slot] for slot in rows}
        return Mix(tuple(range(len(slots))), (Pairs(self._groups, rows, packed),) if rows else ())

    @torch.inference_mode()
    def forget(self, slot: str) -> None:
        """Zeroes what was packed, so that no value of the adapter remains in memory."""
        if (packed := self._packed.pop(slot, None)) is not None:
            packed.forget()

    def clear(self) -> None:
        """Drops every adapter."""
        self._packed.clear()


def number_groups(groups: Sequence[RowGroup], *, narrow: bool) -> dict[RowGroup, Group]:
    """Each group as the kernel takes it; `narrow`: adapters are bf16 there."""
    firsts = accumulate((len(group.names) for group in groups), initial=0)
    return {
        group: Group(first, group.inner, narrow, len(group.sizes), group.sizes)
        for group, first in zip(groups, firsts, strict=False)
    }


def _pack(down: torch.Tensor, up: torch.Tensor) -> list[torch.Tensor]:
    """A [rank, in] and B [out, rank] in the order in which the kernel reads them, filled up with zeros."""
    missing = -len(down) % _RANKS
    down = pad(down, (0, -down.shape[1] % _LANES, 0, missing))
    up = pad(up.T, (0, -len(up) % _COLUMNS, 0, missing))
    parts = []
    for low, high in zip(torch.split(down, _BLOCK), torch.split(up, _BLOCK), strict=True):
        parts.append(low.view(len(low) // _RANKS, _RANKS, -1, _LANES).transpose(1, 2))
        parts.append(high.view(len(high), -1, _COLUMNS).transpose(0, 1))
    return parts
