"""What the ranks of a run tell each other: n processes that train one adapter, each with its share of every step.

Every rank goes through the same steps with the same weights. The rows of a step are divided over them, and what each
computed is added up by rank 0, in float32 and in the order of the ranks, and sent to all. So a step's bits depend on
the recipe, the step and the number of ranks, and on nothing that a scheduler decides.

A rank reads only from its pipes, which the worker that forked it made. Numbers are sent as they are in memory.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch

from appliance.errors import Unavailable

Item = TypeVar("Item")
_COUNT, _PAIR = struct.Struct("=Q"), struct.Struct("=qd")


class Ranks:
    """One rank's place among `count`. `ends`: pipes to the others, to read and to write; rank 0 has one pair for each
    of them, in their order, every other rank one pair, to rank 0."""

    def __init__(self, rank: int = 0, count: int = 1, ends: Sequence[tuple[int, int]] = ()) -> None:
        if len(ends) != (count - 1 if rank == 0 else 1):
            raise ValueError(f"ranks: expected pipes for rank {rank} of {count}, got {len(ends)}")
        self.rank, self.count = rank, count
        self._ends = tuple(ends)
        self._peaks: dict[int, float] = {}

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's items of an order that all ranks have: every n-th one."""
        return list(items[self.rank :: self.count])

    def begin_step(self, seed: int, number: int) -> None:
        """Rank 0 goes on with the random numbers of the training checkpoint. Each other rank draws those of its step,
        so that a run goes on from that checkpoint with the same ones."""
        if self.rank:
            drawn = hashlib.sha256(f"rank/v1\x00{seed}\x00{number}\x00{self.rank}".encode()).digest()
            torch.manual_seed(int.from_bytes(drawn[:8], "big") >> 1)

    def merge(self, values: Mapping[int, float]) -> dict[int, float]:
        """The values of all ranks, in the order of the ranks; no two have one key."""
        if self.count == 1:
            return dict(values)
        if self.rank:
            self._send(self._ends[0], _encode(values))
            return self._receive_values(self._ends[0])
        merged = dict(values)
        for pair in self._ends:
            merged |= self._receive_values(pair)
        for pair in self._ends:
            self._send(pair, _encode(merged))
        return merged

    def add_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Every rank's gradients become the sum of all ranks', the same bits in each."""
        if self.count == 1:
            return
        trained = list(weights)
        for weight in trained:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in trained if weight.grad is not None]
        if self.rank:
            for gradient in gradients:
                self._send(self._ends[0], _bytes_of(gradient))
            for gradient in gradients:
                gradient.copy_(self._receive_like(self._ends[0], gradient))
            return
        for gradient in gradients:
            total = gradient.float()
            for pair in self._ends:
                total = total + self._receive_like(pair, gradient).to(total.device).float()
            gradient.copy_(total)
        for pair in self._ends:
            for gradient in gradients:
                self._send(pair, _bytes_of(gradient))

    def exchange_peaks(self, own: int, device: str) -> int:
        """The most memory of all ranks: added up on the CPU, which they share; of the fullest card on CUDA."""
        self._peaks = self.merge({self.rank: float(own)})
        return self.total_peak(own, device)

    def total_peak(self, own: int, device: str) -> int:
        """The same with this rank's own as it is now, and the others' as they were told last."""
        peaks = [int(peak) for rank, peak in self._peaks.items() if rank != self.rank]
        return max([own, *peaks]) if device == "cuda" else own + sum(peaks)

    def _send(self, pair: tuple[int, int], data: memoryview | bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(pair[1], rest) :]
        except OSError:
            raise self._ended(pair) from None

    def _receive(self, pair: tuple[int, int], into: memoryview) -> None:
        while into:
            got = os.readv(pair[0], [into])
            if not got:
                raise self._ended(pair)
            into = into[got:]

    def _receive_values(self, pair: tuple[int, int]) -> dict[int, float]:
        head = bytearray(_COUNT.size)
        self._receive(pair, memoryview(head))
        body = bytearray(_PAIR.size * _COUNT.unpack(head)[0])
        self._receive(pair, memoryview(body))
        return dict(_PAIR.iter_unpack(body))

    def _receive_like(self, pair: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        buffer = torch.empty(like.numel() * like.element_size(), dtype=torch.uint8)
        self._receive(pair, buffer.numpy().data)
        return buffer.view(like.dtype).view(like.shape)

    def _ended(self, pair: tuple[int, int]) -> Unavailable:
        other = 0 if self.rank else self._ends.index(pair) + 1
        return Unavailable(
            f"training, rank {other}: expected its part of a step, got its end; see the worker's log", code="rank-ended"
        )


ALONE = Ranks()
"""A run of one process, which tells nobody anything."""


def _encode(values: Mapping[int, float]) -> bytes:
    return _COUNT.pack(len(values)) + b"".join(_PAIR.pack(key, value) for key, value in values.items())


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    plain = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return plain.numpy().data
