"""Communication between the ranks of a run: n processes that train one adapter, each on its share of every step.

Every rank runs the same steps with the same weights. The rows of a step are divided among the ranks. Rank 0 adds their
results in float32, in the order of the ranks, and sends the sums to all. The bits of a step thus depend only on the
recipe, the step and the number of ranks.

A rank reads only from its channels: a pipe to a rank on the same machine, or frames that the launchers of a cluster's
nodes forward. Numbers are sent in their memory representation, and both sides know the number of bytes.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import torch

from appliance.errors import Unavailable

Item = TypeVar("Item")
_COUNT, _PAIR = struct.Struct("=Q"), struct.Struct("=qd")
_PART_BYTES = 8 << 20
"""Approximate size of a message with gradients, in bytes; the gradients in a message have one dtype."""


class Channel(Protocol):
    """A byte stream to and from one other rank.

    Raises:
        EOFError: the other rank has ended.
        OSError: the other rank has ended.
        TimeoutError: the other rank did not send anything for too long.
    """

    def write(self, data: memoryview) -> None: ...

    def read(self, into: memoryview) -> None:
        """Fill the whole buffer."""


class Pipe:
    """A channel to a rank on this machine: a descriptor to read from and one to write to."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing

    def write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._writing, data) :]

    def read(self, into: memoryview) -> None:
        while into:
            got = os.readv(self._reading, [into])
            if not got:
                raise EOFError
            into = into[got:]


class Ranks:
    """One rank of `count`.

    `ends` are channels to the other ranks: rank 0 has one to each of them, in order; every other rank has one to rank
    0.
    """

    def __init__(self, rank: int = 0, count: int = 1, ends: Sequence[Channel] = ()) -> None:
        if len(ends) != (count - 1 if rank == 0 else 1):
            raise ValueError(f"ranks: expected channels for rank {rank} of {count}, got {len(ends)}")
        self.rank, self.count = rank, count
        self._ends = tuple(ends)
        self._peaks: dict[int, float] = {}

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this rank's share of a list that all ranks have: every `count`-th item."""
        return list(items[self.rank :: self.count])

    def begin_step(self, seed: int, number: int) -> None:
        """Set the random generator of a step.

        Rank 0 continues with the state of the training checkpoint. Every other rank derives the state from seed, step
        and rank, so that a resumed run uses the same random numbers.
        """
        if self.rank:
            drawn = hashlib.sha256(f"rank/v1\x00{seed}\x00{number}\x00{self.rank}".encode()).digest()
            torch.manual_seed(int.from_bytes(drawn[:8], "big") >> 1)

    def merge(self, values: Mapping[int, float]) -> dict[int, float]:
        """Return the values of all ranks, in the order of the ranks; keys are distinct."""
        if self.count == 1:
            return dict(values)
        if self.rank:
            self._send(self._ends[0], _encode(values))
            return self._receive_values(self._ends[0])
        merged = dict(values)
        for end in self._ends:
            merged |= self._receive_values(end)
        for end in self._ends:
            self._send(end, _encode(merged))
        return merged

    def add_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Replace every rank's gradients by the sum over all ranks, with the same bits on each."""
        if self.count == 1:
            return
        trained = list(weights)
        for weight in trained:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        parts = list(_part_gradients([weight.grad for weight in trained if weight.grad is not None]))
        if self.rank:
            for part in parts:
                self._send(self._ends[0], _bytes_of(_join(part)))
            for part in parts:
                _copy_back(part, self._receive_like(self._ends[0], _join(part)))
            return
        sums = []
        for part in parts:
            own = _join(part)
            total = own.float()
            for end in self._ends:
                total += self._receive_like(end, own).float()
            sums.append(total.to(own.dtype))
            _copy_back(part, sums[-1])
        for end in self._ends:
            for added in sums:
                self._send(end, _bytes_of(added))

    def check_same(self, weights: Mapping[str, torch.nn.Parameter]) -> None:
        """Check that all ranks have the same weights; another kind of processor can cause a difference.

        Raises:
            Unavailable: a rank differs from rank 0 (`ranks-differ`).
        """
        if self.count == 1:
            return
        hasher = hashlib.sha256()
        for name in sorted(weights):
            hasher.update(_bytes_of(weights[name]))
        own = hasher.digest()
        if self.rank:
            self._send(self._ends[0], own)
            return
        for rank, end in enumerate(self._ends, start=1):
            got = bytearray(len(own))
            self._receive(end, memoryview(got))
            if got != own:
                raise Unavailable(
                    f"training, rank {rank}: expected the weights of rank 0, got others; train on nodes of one kind",
                    code="ranks-differ",
                )

    def exchange_peaks(self, own: int, device: str) -> int:
        """Return the peak memory of all ranks in bytes: the sum on a CPU, which they share; the largest on CUDA."""
        self._peaks = self.merge({self.rank: float(own)})
        return self.total_peak(own, device)

    def total_peak(self, own: int, device: str) -> int:
        """Return the peak memory with this rank's current value and the last known values of the others."""
        peaks = [int(peak) for rank, peak in self._peaks.items() if rank != self.rank]
        return max([own, *peaks]) if device == "cuda" else own + sum(peaks)

    def _send(self, end: Channel, data: memoryview | bytes) -> None:
        try:
            end.write(memoryview(data))
        except (EOFError, OSError) as error:
            raise self._make_lost_error(end, error) from None

    def _receive(self, end: Channel, into: memoryview) -> None:
        try:
            end.read(into)
        except (EOFError, OSError) as error:
            raise self._make_lost_error(end, error) from None

    def _receive_values(self, end: Channel) -> dict[int, float]:
        head = bytearray(_COUNT.size)
        self._receive(end, memoryview(head))
        body = bytearray(_PAIR.size * _COUNT.unpack(head)[0])
        self._receive(end, memoryview(body))
        return dict(_PAIR.iter_unpack(body))

    def _receive_like(self, end: Channel, like: torch.Tensor) -> torch.Tensor:
        buffer = torch.empty(like.numel() * like.element_size(), dtype=torch.uint8)
        self._receive(end, buffer.numpy().data)
        return buffer.view(like.dtype).view(like.shape)

    def _make_lost_error(self, end: Channel, error: Exception) -> Unavailable:
        other = 0 if self.rank else self._ends.index(end) + 1
        silent = isinstance(error, TimeoutError)
        return Unavailable(
            f"training, rank {other}: expected its part of a step, got {'nothing' if silent else 'its end'}; see the "
            "worker's log",
            code="rank-silent" if silent else "rank-ended",
        )


ALONE = Ranks()
"""The rank of a run with a single process; it does not communicate."""


def _encode(values: Mapping[int, float]) -> bytes:
    return _COUNT.pack(len(values)) + b"".join(_PAIR.pack(key, value) for key, value in values.items())


def _part_gradients(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield runs of consecutive gradients of one dtype and limited size: few messages, and no copy of all gradients."""
    part: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        if part and (size >= _PART_BYTES or gradient.dtype != part[0].dtype):
            yield part
            part, size = [], 0
        part.append(gradient)
        size += gradient.numel() * gradient.element_size()
    if part:
        yield part


def _join(part: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient.detach().reshape(-1) for gradient in part]).cpu()


def _copy_back(part: Sequence[torch.Tensor], joined: torch.Tensor) -> None:
    start = 0
    for gradient in part:
        gradient.copy_(joined[start : start + gradient.numel()].view(gradient.shape))
        start += gradient.numel()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    plain = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return plain.numpy().data
