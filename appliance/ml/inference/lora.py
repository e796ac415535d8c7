"""Adapters of different rows on the CPU: a kernel that reads each adapter's weights once for every two of its rows.

It reads them in the dtype that the base multiplies in, and sums in float32. Libraries have no such product: a batched
one copies what it multiplies, reads float32, and takes a call for every layer and every side of it.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch.nn.functional import pad

from appliance.ml.inference.mixing import Adapter, Mix, RowGroup
from appliance.ml.quantised.kernels import load_kernels

# As in _lora.c.
_LANES, _RANKS, _COLUMNS, _BLOCK = 16, 4, 32, 64
_PAIR = struct.Struct("@PPqqqd")


def _load_kernel() -> Callable[[bytes, int, bytes, int, int], None]:
    function = load_kernels().add_lora
    function.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)
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
        self._rank = -(-adapter.rank // _RANKS) * _RANKS
        self._scaling = adapter.scaling

    def pair(self, some: int, other: int) -> bytes:
        """This adapter for two rows, the second -1 where there is one, as the kernel takes them."""
        pointers = self._weights.data_ptr(), self._places.data_ptr()
        return _PAIR.pack(*pointers, self._rank, some, other, self._scaling)

    def forget(self) -> None:
        self._weights.zero_()


class _Pairs:
    """The rows of a batch that use adapters, two by two."""

    def __init__(
        self, groups: Mapping[RowGroup, bytes], rows: Mapping[str, Sequence[int]], packed: Mapping[str, Packed]
    ) -> None:
        # The pairs hold the addresses of what was packed.
        self._groups, self._packed = groups, packed
        self._pairs = b"".join(
            packed[slot].pair(mine[place], mine[place + 1] if place + 1 < len(mine) else -1)
            for slot, mine in rows.items()
            for place in range(0, len(mine), 2)
        )
        self._count = len(self._pairs) // _PAIR.size

    def add(self, group: RowGroup, x: torch.Tensor, made: torch.Tensor) -> None:
        """See `Mix.add`; both contiguous."""
        assert x.is_contiguous() and made.is_contiguous()
        _add_lora(self._pairs, self._count, self._groups[group], x.data_ptr(), made.data_ptr())


class Rows:
    """A layout: each request is a row, in the order of the requests."""

    def __init__(self, groups: Sequence[RowGroup], dtype: torch.dtype) -> None:
        self._dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        self._names = [name for group in groups for name in group.names]
        firsts = accumulate((len(group.names) for group in groups), initial=0)
        narrow = self._dtype == torch.bfloat16
        # Each group as the kernel takes it.
        self._groups = {
            group: struct.pack(f"@4q{len(group.sizes)}q", first, group.inner, narrow, len(group.sizes), *group.sizes)
            for group, first in zip(groups, firsts, strict=False)
        }
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
        return Mix(tuple(range(len(slots))), (_Pairs(self._groups, rows, packed),) if rows else ())

    @torch.inference_mode()
    def forget(self, slot: str) -> None:
        """Zeroes what was packed, so that no value of the adapter remains in memory."""
        if (packed := self._packed.pop(slot, None)) is not None:
            packed.forget()

    def clear(self) -> None:
        """Drops every adapter."""
        self._packed.clear()


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
