"""Keys and values of the running requests, in blocks that each belong to one request, and attention over them.

A row attends to its own blocks only. The blocks of all rows are multiplied in one batched product of fixed shape, and a
row's partial sums are added in the order of its own blocks. Its bits therefore depend only on its own length. A block
is zeroed before another request receives it. The first block is padding and stays empty.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from appliance.errors import Unavailable
from appliance.ml.layers.packing import attend_causal
from appliance.ml.layers.scores import Scoring

# Number of tokens in a block.
BLOCK = 64
_FIRST_BLOCKS = 8
# Number of blocks in a batched product on a GPU, where it determines the kernel and so the bits.
GPU_BLOCKS = 64


@dataclass
class RequestCache:
    """The cache of one request: its blocks in order, and the number of tokens in them."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0
    long: bool = False
    """True if its rotary angles are those of a long sequence (`ml/layers/packing.py`)."""
    own: Any = None
    """The library's own cache of this request, if the library's modules run the base (`ml/inference/sampling.py`)."""


class Cache:
    """The key and value cache, float32 [blocks, key heads, BLOCK, size] per layer.

    It is float32 for any compute dtype, so that scores are not rounded.
    """

    def __init__(self, device: str, max_tokens: int) -> None:
        self.device = device
        self.step = 1 if device == "cpu" else GPU_BLOCKS
        """Number of blocks per product.

        Their count is padded to a multiple. It is 1 where the count changes no bits.
        """
        self._most = -(-max_tokens // BLOCK)
        self._taken: list[bool] = []
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def used(self) -> int:
        """Number of blocks up to the last one that belongs to a request."""
        return len(self._taken)

    def reserve(self, held: RequestCache, length: int) -> None:
        """Reserve blocks for a request of `length` tokens.

        Raises:
            Unavailable: the cache is full.
        """
        while len(held.blocks) * BLOCK < length:
            free = next((place for place, taken in enumerate(self._taken) if not taken), len(self._taken))
            if free == self._most:
                raise Unavailable(f"cache: expected at most {self._most} blocks in use, got more", code="cache-full")
            if free == len(self._taken):
                self._taken.append(False)
                self._grow()
            self._taken[free] = True
            # Block 0 is padding.
            held.blocks.append(free + 1)

    @torch.inference_mode()
    def release(self, held: RequestCache) -> None:
        """Zero and release the blocks of a request; `long` keeps its value."""
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

    def copy_out(self, held: RequestCache, places: range, dtype: torch.dtype) -> torch.Tensor:
        """Return a flat copy of the keys and values at these positions, which are whole blocks.

        The copy is exact in `dtype`, the dtype in which they were computed.
        """
        blocks = held.blocks[places.start // BLOCK : places.stop // BLOCK]
        pairs = [self._layers[number] for number in sorted(self._layers)]
        return torch.cat([tensor[blocks].to(dtype).flatten() for pair in pairs for tensor in pair])

    def copy_in(self, held: RequestCache, copied: torch.Tensor, tokens: int) -> None:
        """Append `tokens` tokens of a copy, whole blocks, to those of a request."""
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
        """Return the keys and values of a layer; at the first use `key` [tokens, key heads, size] gives their shape."""
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
                self._layers[number] = (_double(pair[0]), _double(pair[1]))


def list_tensors(own: Any) -> list[torch.Tensor]:
    """Return the tensors of a library's cache: keys and values, and the states of recurrent layers."""
    members = [member for layer in own.layers for member in vars(layer).values()]
    members += [one for member in members if isinstance(member, dict) for one in member.values()]
    members += [one for member in members if isinstance(member, list | tuple) for one in member]
    return [one for one in members if isinstance(one, torch.Tensor)]


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, torch.zeros_like(tensor)])


class PrefillAttention:
    """The attention of a chunk of a prompt, at these positions after the request's cached tokens."""

    def __init__(self, cache: Cache, held: RequestCache, places: range) -> None:
        self._cache, self._held, self._before = cache, held, places.start
        cache.reserve(held, places.stop)
        self._blocks, self._offsets = _locate_tokens([(held, place) for place in places], cache)

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Return causal attention over the cached tokens and the chunk, and cache the chunk (`PassAttention`)."""
        keys, values = self._cache.layer(number, key)
        keys[self._blocks, :, self._offsets] = key.float()
        values[self._blocks, :, self._offsets] = value.float()
        before, count = self._before, len(query)
        seen = [tensor.transpose(0, 1) for tensor in (key, value)]
        if before:
            seen = [read_held(tensor, self._held, before + count, query.dtype) for tensor in (keys, values)]
        return attend_causal(query.transpose(0, 1), seen[0], seen[1], scoring).transpose(0, 1)


class PathAttention:
    """The attention of several paths that continue one request; paths do not see each other and are not cached."""

    def __init__(self, cache: Cache, held: RequestCache, sizes: Sequence[int]) -> None:
        self._cache, self._held, self._sizes = cache, held, list(sizes)

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Return causal attention over the cached tokens and each path itself (`PassAttention`)."""
        held = [read_held(one, self._held, self._held.length, query.dtype) for one in self._cache.layer(number, key)]
        parts = [torch.split(tensor.transpose(0, 1), self._sizes, dim=1) for tensor in (query, key, value)]
        outputs = [
            attend_causal(own, torch.cat([held[0], keys], dim=1), torch.cat([held[1], values], dim=1), scoring)
            for own, keys, values in zip(*parts, strict=True)
        ]
        return torch.cat(outputs, dim=1).transpose(0, 1)


def read_held(tensor: torch.Tensor, held: RequestCache, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a request's keys or values in order, [key heads, length, size]."""
    return tensor[held.blocks].transpose(0, 1).flatten(1, 2)[:, :length].to(dtype)


class DecodeAttention:
    """The attention of one new token for each row; a row of None is padding."""

    def __init__(self, cache: Cache, rows: Sequence[RequestCache | None]) -> None:
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
        """Return the attention output for the library's modules (`PassAttention`)."""
        return self.read(number, query.float(), key.float(), value.float(), scoring).to(query.dtype)

    def read(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Return the attention of each row's query over its own keys, float32 [rows, heads, size].

        `query` is [rows, heads, size]; `key` and `value` are [rows, key heads, size]; all float32.
        """
        return self._attention.read(number, query, key, value, scoring)


class _BlockAttention:
    """Attention of a step's rows in torch, with all of their blocks in one batched product."""

    def __init__(self, cache: Cache, rows: Sequence[RequestCache | None]) -> None:
        self._cache = cache
        held_by = [(row, held) for row, held in enumerate(rows) if held is not None]
        self._used = cache.used + 1 + -(cache.used + 1) % cache.step
        self._blocks, self._offsets = _locate_tokens([(held, held.length) for _, held in held_by], cache)
        # In a block without owner all keys are masked, so its values do not change any sum.
        owner, filled, ends = [held_by[0][0]] * self._used, [0] * self._used, [0] * self._used
        steps = max(len(held.blocks) for _, held in held_by)
        # By row, the block at each step of the sum; after the last one, padding in `order` and the last block in `own`.
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
        # Distance of each key from its row's query, and the largest number of keys of a row.
        self._behind = torch.tensor(ends, device=device)[:, None] - torch.arange(BLOCK, device=device)
        self._longest = max(held.length + 1 for _, held in held_by)
        self._order, self._own = (torch.tensor(one, device=device).flatten() for one in (order, own))
        self._steps = steps
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    def read(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Return the attention output as specified by `DecodeAttention.read`."""
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
        """Multiply by block, with the number of blocks per product that the cache requires."""
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
        """Return the additive mask, [blocks * key heads, heads per key head, BLOCK]."""
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
        """Sum block results by row, in the order of the row's own blocks."""
        taken = blocks.index_select(0, self._order).view(self._steps, count, -1)
        total = taken[0]
        for step in taken[1:]:
            total = total + step
        # Adding zero turns a negative zero into a positive one, as padding does for shorter rows.
        return total + 0.0


def _weigh(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the weighted values and the sum of weights, [blocks * key heads, heads per key head, size + 1]."""
    return torch.cat([torch.bmm(weights, values), weights.sum(-1, keepdim=True)], dim=-1)


def _locate_tokens(tokens: Sequence[tuple[RequestCache, int]], cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the block and the offset of each token, int64 [tokens]."""
    blocks = [held.blocks[place // BLOCK] for held, place in tokens]
    offsets = [place % BLOCK for _, place in tokens]
    return torch.tensor(blocks, device=cache.device), torch.tensor(offsets, device=cache.device)


@dataclass(eq=False)
class Prompt:
    """A prompt that is being read: its slot and scope, its tokens, and its cache."""

    slot: str
    scope: str
    ids: Sequence[int]
    held: RequestCache
    _marks: list[bytes] = field(default_factory=list)

    def mark(self, piece: int, size: int) -> bytes:
        """Return the SHA-256 key of the prompt's beginning up to the end of a piece, with slot, scope and `long`."""
        if not self._marks:
            owner = f"{self.slot}\0{self.scope}\0{self.held.long}"
            self._marks.append(hashlib.sha256(owner.encode()).digest())
        while len(self._marks) <= piece + 1:
            start = (len(self._marks) - 1) * size
            tokens = array("q", self.ids[start : start + size]).tobytes()
            self._marks.append(hashlib.sha256(self._marks[-1] + tokens).digest())
        return self._marks[piece + 1]


@dataclass
class _SlotCache:
    """The cached prompt pieces of a slot, by key, least recently used first."""

    scope: str | None = None
    pieces: OrderedDict[bytes, torch.Tensor] = field(default_factory=OrderedDict)
    size: int = 0


class Prefixes:
    """A cache of prompt beginnings.

    Each slot has an equal share of the memory, independent of the others' requests, so no slot learns of another's
    prompts.
    """

    def __init__(self, piece: int | None, most_bytes: int, dtype: torch.dtype) -> None:
        """Create a cache of at most `most_bytes` bytes.

        `piece` is the number of tokens in a piece; with None, or without bytes, nothing is cached. `dtype` is the dtype
        in which keys and values were computed.
        """
        if piece is not None and piece % BLOCK:
            raise ValueError(f"a piece is whole blocks of {BLOCK} tokens, and not {piece}")
        self._piece, self._most_bytes, self._dtype = piece if most_bytes else None, most_bytes, dtype
        self._slot_caches: dict[str, _SlotCache] = {}

    def open(self, slot: str) -> None:
        """Give a slot a share of the cache, after an adapter was loaded into it."""
        self._slot_caches[slot] = _SlotCache()
        for slot_cache in self._slot_caches.values():
            self._trim(slot_cache)

    def forget(self, slot: str) -> None:
        """Zero and drop the cache of a slot."""
        if (slot_cache := self._slot_caches.pop(slot, None)) is not None:
            _clear(slot_cache)

    def enter(self, slot: str, scope: str) -> None:
        """Set the scope of a slot; if it changes, zero the slot's cache."""
        slot_cache = self._slot_caches.get(slot)
        if slot_cache is not None and slot_cache.scope != scope:
            _clear(slot_cache)
            slot_cache.scope = scope

    @torch.inference_mode()
    def restore(self, cache: Cache, prompt: Prompt) -> int:
        """Copy cached pieces of a prompt to its request and return the number of tokens.

        The last token is never restored, since its logits must be computed.
        """
        slot_cache, size, start = self._find(prompt), self._piece, prompt.held.length
        if slot_cache is None or size is None or start % size:
            return 0
        while prompt.held.length + size < len(prompt.ids):
            mark = prompt.mark(prompt.held.length // size, size)
            if (kept := slot_cache.pieces.get(mark)) is None:
                break
            cache.copy_in(prompt.held, kept, size)
        self._touch(slot_cache, prompt)
        return prompt.held.length - start

    @torch.inference_mode()
    def keep(self, cache: Cache, prompt: Prompt, start: int) -> None:
        """Copy the whole pieces that were read from the token `start` on into the cache."""
        slot_cache, size = self._find(prompt), self._piece
        if slot_cache is None or size is None or start % size:
            return
        for piece in range(start // size, prompt.held.length // size):
            mark = prompt.mark(piece, size)
            if mark in slot_cache.pieces:
                continue
            kept = cache.copy_out(prompt.held, range(piece * size, (piece + 1) * size), self._dtype)
            slot_cache.pieces[mark] = kept
            slot_cache.size += kept.nbytes
        self._touch(slot_cache, prompt)
        self._trim(slot_cache)

    @property
    def _share(self) -> int:
        return self._most_bytes // len(self._slot_caches)

    def _find(self, prompt: Prompt) -> _SlotCache | None:
        """Return the slot's cache; None if it has another scope by now."""
        slot_cache = self._slot_caches.get(prompt.slot)
        return (
            slot_cache
            if self._piece is not None and slot_cache is not None and slot_cache.scope == prompt.scope
            else None
        )

    def _touch(self, slot_cache: _SlotCache, prompt: Prompt) -> None:
        """Mark the prompt's pieces as recently used, the first one last.

        A beginning is then dropped after its continuation.
        """
        assert self._piece is not None
        for piece in reversed(range(prompt.held.length // self._piece)):
            if (mark := prompt.mark(piece, self._piece)) in slot_cache.pieces:
                slot_cache.pieces.move_to_end(mark)

    @torch.inference_mode()
    def _trim(self, slot_cache: _SlotCache) -> None:
        while slot_cache.size > self._share:
            _, kept = slot_cache.pieces.popitem(last=False)
            slot_cache.size -= kept.nbytes
            kept.zero_()


@torch.inference_mode()
def _clear(slot_cache: _SlotCache) -> None:
    for kept in slot_cache.pieces.values():
        kept.zero_()
    slot_cache.pieces.clear()
    slot_cache.size = 0
