"""Keys and values of the requests at work, in blocks that each belong to one request, and attention over them.

A row attends to its own blocks and to nothing else. All rows' blocks are multiplied in one batched product of fixed
shape, and a row's partial sums are added up in the order of its own blocks: so its bits depend on its own length only,
never on its neighbours. A block is zeroed before it goes to another request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

from appliance.errors import Unavailable

# Tokens in a block.
BLOCK = 64
_FIRST_BLOCKS = 32


@dataclass
class Held:
    """What one request holds: its blocks in order, and how many tokens stand in them."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0


class Cache:
    """float32 whatever the compute dtype, so that a score is not rounded; [blocks, key heads, BLOCK, size] a layer."""

    def __init__(self, device: str, max_tokens: int) -> None:
        self.device = device
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
            held.blocks.append(free)

    @torch.inference_mode()
    def release(self, held: Held) -> None:
        """Zeroes what the request held, and gives it back."""
        for block in held.blocks:
            self._taken[block] = False
            for pair in self._layers.values():
                pair[0][block].zero_()
                pair[1][block].zero_()
        while self._taken and not self._taken[-1]:
            self._taken.pop()
        held.blocks.clear()
        held.length = 0

    def layer(self, number: int, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer; `key` [1, key heads, tokens, size] says their shape at the first use."""
        if number not in self._layers:
            shape = (max(_FIRST_BLOCKS, self.used), key.shape[1], BLOCK, key.shape[3])
            self._layers[number] = (
                torch.zeros(shape, device=self.device),
                torch.zeros(shape, device=self.device),
            )
        return self._layers[number]

    def _grow(self) -> None:
        for number, pair in self._layers.items():
            size = len(pair[0])
            if self.used > size:
                self._layers[number] = (_doubled(pair[0]), _doubled(pair[1]))


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, torch.zeros_like(tensor)])


class Filling:
    """A chunk of one request's prompt: `count` tokens behind those that it holds."""

    def __init__(self, cache: Cache, held: Held, count: int) -> None:
        self._cache, self._held = cache, held
        cache.reserve(held, held.length + count)
        places = range(held.length, held.length + count)
        self._blocks, self._offsets = _places([(held, place) for place in places], cache)

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Causal attention over what is held and the chunk; see `packing.attend`."""
        keys, values = self._cache.layer(number, key)
        keys[self._blocks, :, self._offsets] = key[0].transpose(0, 1).float()
        values[self._blocks, :, self._offsets] = value[0].transpose(0, 1).float()
        before, count = self._held.length, query.shape[2]
        if before == 0:
            # The very call of a pass without a cache, which is what was evaluated.
            return scaled_dot_product_attention(
                query, key, value, is_causal=count > 1, scale=scaling, enable_gqa=True
            ).transpose(1, 2)
        seen = [self._read(tensor, before + count).to(query.dtype) for tensor in (keys, values)]
        earlier = torch.ones(count, before + count, dtype=torch.bool, device=query.device).tril(before)
        output = scaled_dot_product_attention(
            query, seen[0], seen[1], attn_mask=earlier, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2)

    def _read(self, tensor: torch.Tensor, length: int) -> torch.Tensor:
        """[1, key heads, length, size]: the request's own tokens in order."""
        return tensor[self._held.blocks].transpose(0, 1).flatten(1, 2)[None, :, :length]


class Drawing:
    """One token more for each of these requests."""

    def __init__(self, cache: Cache, rows: Sequence[Held]) -> None:
        self._cache, self.rows = cache, rows
        for held in rows:
            cache.reserve(held, held.length + 1)
        self._used = cache.used
        self._blocks, self._offsets = _places([(held, held.length) for held in rows], cache)
        owner, filled = [0] * self._used, [0] * self._used
        longest = max(len(held.blocks) for held in rows)
        # The block at each step of adding up, by row; behind a row's last one stands a block of nothing.
        order = [[self._used] * len(rows) for _ in range(longest)]
        for row, held in enumerate(rows):
            for place, block in enumerate(held.blocks):
                owner[block], filled[block] = row, min(BLOCK, held.length + 1 - place * BLOCK)
                order[place][row] = block
        device = self._blocks.device
        self._owner = torch.tensor(owner, device=device)
        self._hidden = (torch.arange(BLOCK, device=device) >= torch.tensor(filled, device=device)[:, None])[
            :, None, None
        ]
        self._order = torch.tensor(order, device=device)

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Each row's one query over its own keys; query is [1, heads, rows, size]."""
        keys, values = self._cache.layer(number, key)
        keys[self._blocks, :, self._offsets] = key[0].transpose(0, 1).float()
        values[self._blocks, :, self._offsets] = value[0].transpose(0, 1).float()
        keys, values = keys[: self._used], values[: self._used]
        rows, groups, size = query.shape[2], key.shape[1], query.shape[3]
        shared = (query[0].transpose(0, 1).float() * scaling).reshape(rows, groups, -1, size)
        scores = shared.index_select(0, self._owner) @ keys.transpose(2, 3)
        scores = scores.masked_fill(self._hidden, float("-inf"))
        best = self._by_row(scores.amax(-1), float("-inf")).amax(0)
        weights = (scores - best.index_select(0, self._owner)[..., None]).exp()
        parts = self._by_row(torch.cat([weights @ values, weights.sum(-1, keepdim=True)], dim=-1), -0.0)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        output = total[..., :-1] / total[..., -1:]
        return output.reshape(1, rows, -1, size).to(query.dtype)

    def _by_row(self, blocks: torch.Tensor, nothing: float) -> torch.Tensor:
        """[steps, rows, ...] of what was computed by block; `nothing` changes no maximum, or no sum, by a bit."""
        filled = torch.cat([blocks, torch.full_like(blocks[:1], nothing)])
        return filled.index_select(0, self._order.flatten()).view(*self._order.shape, *blocks.shape[1:])


def _places(tokens: Sequence[tuple[Held, int]], cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
    """Block and offset of each token."""
    blocks = [held.blocks[place // BLOCK] for held, place in tokens]
    offsets = [place % BLOCK for _, place in tokens]
    return torch.tensor(blocks, device=cache.device), torch.tensor(offsets, device=cache.device)
