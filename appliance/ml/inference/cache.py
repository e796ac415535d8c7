"""Keys and values of the requests at work, in blocks that each belong to one request, and attention over them.

A row attends to its own blocks and to nothing else. All rows' blocks are multiplied in one batched product of fixed
shape, and a row's partial sums are added up in the order of its own blocks: so its bits depend on its own length only,
never on its neighbours. A block is zeroed before it goes to another request; the first is padding, and stays empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from appliance.errors import Unavailable
from appliance.ml.layers.packing import attend_causal
from appliance.ml.layers.scores import Scoring

# Tokens in a block.
BLOCK = 64
_FIRST_BLOCKS = 8
# Blocks that a batched product on a GPU sees: a library chooses its kernel, and with it the bits, by their number.
GPU_BLOCKS = 64


@dataclass
class Held:
    """What one request holds: its blocks in order, and how many tokens stand in them."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0
    long: bool = False
    """Whether its positions are those of a long sequence (`ml/layers/positions.py`)."""
    own: Any = None
    """The library's cache of this request, where the library's modules keep one (`ml/inference/alone.py`)."""


class Cache:
    """float32 whatever the compute dtype, so that a score is not rounded; [blocks, key heads, BLOCK, size] a layer."""

    def __init__(self, device: str, max_tokens: int) -> None:
        self.device = device
        self.step = 1 if device == "cpu" else GPU_BLOCKS
        """A multiple of so many blocks is multiplied, so many at once; 1 where their number changes no bit."""
        self._most = -(-max_tokens // BLOCK)
        self._taken: list[bool] = []
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def used(self) -> int:
        """Blocks up to the last one that belongs to a request."""
        return len(self._taken)

    def reserve(self, held: Held, length: int) -> None:
        """Blocks for so many tokens; Unavailable where no more may be taken."""
        while len(held.blocks) * BLOCK < length:
            free = next((place for place, taken in enumerate(self._taken) if not taken), len(self._taken))
            if free == self._most:
                raise Unavailable(f"cache: expected at most {self._most} blocks in use, got more", code="cache-full")
            if free == len(self._taken):
                self._taken.append(False)
                self._grow()
            self._taken[free] = True
            # The first one is padding.
            held.blocks.append(free + 1)

    @torch.inference_mode()
    def release(self, held: Held) -> None:
        """Zeroes what the request held, and gives it back; whether it is long stays."""
        for block in held.blocks:
            self._taken[block - 1] = False
            for pair in self._layers.values():
                pair[0][block].zero_()
                pair[1][block].zero_()
        while self._taken and not self._taken[-1]:
            self._taken.pop()
        held.blocks.clear()
        held.length = 0
        if held.own is not None:
            for tensor in list_tensors(held.own):
                tensor.zero_()
            held.own = None

    def copy_out(self, held: Held, places: range, dtype: torch.dtype) -> torch.Tensor:
        """A copy of the keys and values at these places, which are whole blocks, flat; exact in the dtype that they
        were computed in."""
        blocks = held.blocks[places.start // BLOCK : places.stop // BLOCK]
        pairs = [self._layers[number] for number in sorted(self._layers)]
        return torch.cat([tensor[blocks].to(dtype).flatten() for pair in pairs for tensor in pair])

    def copy_in(self, held: Held, copied: torch.Tensor, tokens: int) -> None:
        """Puts so many tokens of a copy, whole blocks, behind those that a request holds."""
        self.reserve(held, held.length + tokens)
        first = held.length // BLOCK
        blocks = held.blocks[first : first + tokens // BLOCK]
        tensors = [tensor for number in sorted(self._layers) for tensor in self._layers[number]]
        parts = torch.split(copied, [tensor[0].numel() * len(blocks) for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            for block, own in zip(blocks, part.view(len(blocks), *tensor.shape[1:]), strict=True):
                tensor[block].copy_(own)
        held.length += tokens

    def layer(self, number: int, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer; `key` [tokens, key heads, size] says their shape at the first use."""
        if number not in self._layers:
            blocks = max(_FIRST_BLOCKS, self.used + 1)
            shape = (blocks + -blocks % self.step, key.shape[1], BLOCK, key.shape[2])
            self._layers[number] = (
                torch.zeros(shape, device=self.device),
                torch.zeros(shape, device=self.device),
            )
        return self._layers[number]

    def _grow(self) -> None:
        for number, pair in self._layers.items():
            size = len(pair[0])
            if self.used + 1 > size:
                self._layers[number] = (_doubled(pair[0]), _doubled(pair[1]))


def list_tensors(own: Any) -> list[torch.Tensor]:
    """Of a library's cache: keys and values, and what recurrent layers carry."""
    members = [member for layer in own.layers for member in vars(layer).values()]
    members += [one for member in members if isinstance(member, dict) for one in member.values()]
    members += [one for member in members if isinstance(member, list | tuple) for one in member]
    return [one for one in members if isinstance(one, torch.Tensor)]


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, torch.zeros_like(tensor)])


class Filling:
    """Tokens of one request's prompt at these places, behind those that it holds."""

    def __init__(self, cache: Cache, held: Held, places: range) -> None:
        self._cache, self._held, self._before = cache, held, places.start
        cache.reserve(held, places.stop)
        self._blocks, self._offsets = _places([(held, place) for place in places], cache)

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Causal attention over what is held and the chunk; see `Seen`."""
        keys, values = self._cache.layer(number, key)
        keys[self._blocks, :, self._offsets] = key.float()
        values[self._blocks, :, self._offsets] = value.float()
        before, count = self._before, len(query)
        seen = [tensor.transpose(0, 1) for tensor in (key, value)]
        if before:
            seen = [read_held(tensor, self._held, before + count, query.dtype) for tensor in (keys, values)]
        return attend_causal(query.transpose(0, 1), seen[0], seen[1], scoring).transpose(0, 1)


class Following:
    """Paths of so many tokens each that go on from what one request holds; they see neither each other nor are they
    kept."""

    def __init__(self, cache: Cache, held: Held, sizes: Sequence[int]) -> None:
        self._cache, self._held, self._sizes = cache, held, list(sizes)

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Causal attention over what is held and the path itself; see `Seen`."""
        held = [read_held(one, self._held, self._held.length, query.dtype) for one in self._cache.layer(number, key)]
        parts = [torch.split(tensor.transpose(0, 1), self._sizes, dim=1) for tensor in (query, key, value)]
        outputs = [
            attend_causal(own, torch.cat([held[0], keys], dim=1), torch.cat([held[1], values], dim=1), scoring)
            for own, keys, values in zip(*parts, strict=True)
        ]
        return torch.cat(outputs, dim=1).transpose(0, 1)


def read_held(tensor: torch.Tensor, held: Held, length: int, dtype: torch.dtype) -> torch.Tensor:
    """[key heads, length, size]: a request's own keys or values in order."""
    return tensor[held.blocks].transpose(0, 1).flatten(1, 2)[:, :length].to(dtype)


class Drawing:
    """One token more for each of these rows; None is a row of padding, which sees nothing."""

    def __init__(self, cache: Cache, rows: Sequence[Held | None]) -> None:
        self.cache, self.rows = cache, rows
        for held in rows:
            if held is not None:
                cache.reserve(held, held.length + 1)

    @cached_property
    def _attention(self) -> _BlockAttention:
        return _BlockAttention(self.cache, self.rows)

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """For the library's modules, see `Seen`."""
        return self.read(number, query.float(), key.float(), value.float(), scoring).to(query.dtype)

    def read(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Each row's one query over its own keys: [rows, heads, size]; query [rows, heads, size], key and value
        [rows, key heads, size], all float32."""
        return self._attention.read(number, query, key, value, scoring)


class _BlockAttention:
    """Attention of a step's rows in torch: all of their blocks in one batched product."""

    def __init__(self, cache: Cache, rows: Sequence[Held | None]) -> None:
        self._cache = cache
        held_by = [(row, held) for row, held in enumerate(rows) if held is not None]
        self._used = cache.used + 1 + -(cache.used + 1) % cache.step
        self._blocks, self._offsets = _places([(held, held.length) for _, held in held_by], cache)
        # Nobody's block hides all of its keys, and whatever is read of it changes no sum.
        owner, filled, ends = [held_by[0][0]] * self._used, [0] * self._used, [0] * self._used
        steps = max(len(held.blocks) for _, held in held_by)
        # The block at each step of adding up, by row, and one of the row's own wherever there is none.
        order, own = ([[0] * len(rows) for _ in range(steps)] for _ in range(2))
        for row, held in held_by:
            for place, block in enumerate(held.blocks):
                owner[block], filled[block] = row, min(BLOCK, held.length + 1 - place * BLOCK)
                ends[block] = held.length - place * BLOCK
                order[place][row] = block
            for place in range(steps):
                own[place][row] = held.blocks[min(place, len(held.blocks) - 1)]
        device = cache.device
        self._writing = None if len(held_by) == len(rows) else torch.tensor([row for row, _ in held_by], device=device)
        self._owner = torch.tensor(owner, device=device)
        hidden = torch.arange(BLOCK, device=device) >= torch.tensor(filled, device=device)[:, None]
        self._hidden = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf"))
        # How far behind its row's query a key stands, and the most that a row holds with it.
        self._behind = torch.tensor(ends, device=device)[:, None] - torch.arange(BLOCK, device=device)
        self._longest = max(held.length + 1 for _, held in held_by)
        self._order, self._own = (torch.tensor(one, device=device).flatten() for one in (order, own))
        self._steps = steps
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    def read(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """See `Drawing.read`."""
        (count, heads, size), groups = query.shape, key.shape[1]
        keys, values = (tensor[: self._used] for tensor in self._write(number, key, value))
        shared = query.reshape(count, -1).index_select(0, self._owner).view(-1, heads // groups, size)
        mask = self._mask(groups, heads // groups, scoring.window)
        scores = self._in_steps(partial(self._score, scoring=scoring), shared, keys.flatten(0, 1), mask)
        best = scores.amax(-1).view(self._used, heads)
        best = best.index_select(0, self._own).view(self._steps, count, heads).amax(0)
        weights = scores.sub_(best.index_select(0, self._owner).view(-1, heads // groups, 1)).exp_()
        total = self._add_up(self._in_steps(_weigh, weights, values.flatten(0, 1)).view(self._used, -1), count)
        total = total.view(count, heads, size + 1)
        return total[..., :-1] / total[..., -1:]

    def _in_steps(self, multiply: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        """What is multiplied by block, so many blocks at once as the cache says."""
        if self._cache.step == 1:
            return multiply(*tensors)
        size = len(tensors[0]) // self._used * self._cache.step
        parts = [multiply(*some) for some in zip(*(torch.split(one, size) for one in tensors), strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _score(self, query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        if scoring.softcap is None:
            return torch.baddbmm(mask, query, keys.transpose(1, 2), alpha=scoring.scaling)
        scores = torch.bmm(query, keys.transpose(1, 2)).mul_(scoring.scaling / scoring.softcap)
        return scores.tanh_().mul_(scoring.softcap).add_(mask)

    def _write(self, number: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._cache.layer(number, key)
        for held, made in ((keys, key), (values, value)):
            own = made if self._writing is None else made.index_select(0, self._writing)
            held[self._blocks, :, self._offsets] = own
        return keys, values

    def _mask(self, groups: int, shared: int, window: int | None) -> torch.Tensor:
        """What hides keys, for every head: [blocks * key heads, heads that share a key head, BLOCK]."""
        if window is not None and window > self._longest:
            window = None
        if (groups, window) not in self._masks:
            hidden = self._hidden
            if window is not None:
                hidden = hidden.masked_fill(self._behind >= window, float("-inf"))
            made = hidden[:, None, None].expand(-1, groups, shared, -1).flatten(0, 1).contiguous()
            self._masks[groups, window] = made
        return self._masks[groups, window]

    def _add_up(self, blocks: torch.Tensor, count: int) -> torch.Tensor:
        """What was computed by block, added up by row, in the order of the row's own blocks."""
        taken = blocks.index_select(0, self._order).view(self._steps, count, -1)
        total = taken[0]
        for step in taken[1:]:
            total = total + step
        # Nobody's zero turns a negative zero into a positive one; so does this, where it was not added.
        return total + 0.0


def _weigh(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[blocks * key heads, heads that share one, size + 1]: the weighted values, and behind them the weights' sum."""
    return torch.cat([torch.bmm(weights, values), weights.sum(-1, keepdim=True)], dim=-1)


def _places(tokens: Sequence[tuple[Held, int]], cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
    """Block and offset of each token."""
    blocks = [held.blocks[place // BLOCK] for held, place in tokens]
    offsets = [place % BLOCK for _, place in tokens]
    return torch.tensor(blocks, device=cache.device), torch.tensor(offsets, device=cache.device)
