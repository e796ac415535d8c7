"""Keys and values of prompts' beginnings, so that a slot does not read again what it has read before.

A beginning is kept in pieces of `drawing.PIECE` tokens, each computed by itself: so its bits are those of a first
reading. It is found by a digest over its owner, the length class of its positions and every token up to its end. The
owner is a slot, which is one unit's, one task's and one adapter's and never used twice, and in it a scope, which the
service makes of unit, adapter and token epoch. What is kept is a copy: no two requests share memory, and none waits for
it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from appliance.ml.inference.cache import BLOCK, Cache, Held


@dataclass(eq=False)
class Prompt:
    """A prompt that is being read: whose it is, its tokens, and what holds their keys and values."""

    slot: str
    scope: str
    ids: Sequence[int]
    held: Held
    _marks: list[bytes] = field(default_factory=list)

    def mark(self, piece: int, size: int) -> bytes:
        """What the beginning up to the end of a piece is found by."""
        if not self._marks:
            owner = f"{self.slot}\0{self.scope}\0{self.held.long}"
            self._marks.append(hashlib.sha256(owner.encode()).digest())
        while len(self._marks) <= piece + 1:
            start = (len(self._marks) - 1) * size
            tokens = array("q", self.ids[start : start + size]).tobytes()
            self._marks.append(hashlib.sha256(self._marks[-1] + tokens).digest())
        return self._marks[piece + 1]


@dataclass
class _Shelf:
    """What is kept for a slot, by its mark: the piece that was used longest ago is the first."""

    scope: str | None = None
    pieces: OrderedDict[bytes, torch.Tensor] = field(default_factory=OrderedDict)
    size: int = 0


class Prefixes:
    """Each slot has an equal share of so many bytes, whatever the others ask: so none learns of another's prompts."""

    def __init__(self, piece: int | None, most_bytes: int, dtype: torch.dtype) -> None:
        """`piece`: its tokens; with None, or without bytes, nothing is kept. `dtype`: of keys and values when they were
        computed."""
        if piece is not None and piece % BLOCK:
            raise ValueError(f"a piece is whole blocks of {BLOCK} tokens, and not {piece}")
        self._piece, self._most_bytes, self._dtype = piece if most_bytes else None, most_bytes, dtype
        self._shelves: dict[str, _Shelf] = {}

    @property
    def held_bytes(self) -> int:
        """What is kept for all slots."""
        return sum(shelf.size for shelf in self._shelves.values())

    def open(self, slot: str) -> None:
        """A slot was filled: from now on it has a share."""
        self._shelves[slot] = _Shelf()
        for shelf in self._shelves.values():
            self._trim(shelf)

    def forget(self, slot: str) -> None:
        """A slot is emptied: what was kept for it is zeroed."""
        if (shelf := self._shelves.pop(slot, None)) is not None:
            _clear(shelf)

    def enter(self, slot: str, scope: str) -> None:
        """A request came under this scope: what was kept for the slot under another one is zeroed."""
        shelf = self._shelves.get(slot)
        if shelf is not None and shelf.scope != scope:
            _clear(shelf)
            shelf.scope = scope

    @torch.inference_mode()
    def restore(self, cache: Cache, prompt: Prompt) -> int:
        """Copies what was read before behind what the prompt's request holds; how many tokens. The last token is always
        left: what follows it must be computed."""
        shelf, size, start = self._find(prompt), self._piece, prompt.held.length
        if shelf is None or size is None or start % size:
            return 0
        while prompt.held.length + size < len(prompt.ids):
            mark = prompt.mark(prompt.held.length // size, size)
            if (kept := shelf.pieces.get(mark)) is None:
                break
            cache.copy_in(prompt.held, kept, size)
        self._touch(shelf, prompt)
        return prompt.held.length - start

    @torch.inference_mode()
    def keep(self, cache: Cache, prompt: Prompt, start: int) -> None:
        """Copies the whole pieces that were read from this place on."""
        shelf, size = self._find(prompt), self._piece
        if shelf is None or size is None or start % size:
            return
        for piece in range(start // size, prompt.held.length // size):
            mark = prompt.mark(piece, size)
            if mark in shelf.pieces:
                continue
            kept = cache.copy_out(prompt.held, range(piece * size, (piece + 1) * size), self._dtype)
            shelf.pieces[mark] = kept
            shelf.size += kept.nbytes
        self._touch(shelf, prompt)
        self._trim(shelf)

    @property
    def _share(self) -> int:
        return self._most_bytes // len(self._shelves)

    def _find(self, prompt: Prompt) -> _Shelf | None:
        """The slot's shelf, unless it is under another scope by now."""
        shelf = self._shelves.get(prompt.slot)
        return shelf if self._piece is not None and shelf is not None and shelf.scope == prompt.scope else None

    def _touch(self, shelf: _Shelf, prompt: Prompt) -> None:
        """All pieces that the prompt holds were used now, the first one last: a beginning goes after what follows."""
        assert self._piece is not None
        for piece in reversed(range(prompt.held.length // self._piece)):
            if (mark := prompt.mark(piece, self._piece)) in shelf.pieces:
                shelf.pieces.move_to_end(mark)

    @torch.inference_mode()
    def _trim(self, shelf: _Shelf) -> None:
        while shelf.size > self._share:
            _, kept = shelf.pieces.popitem(last=False)
            shelf.size -= kept.nbytes
            kept.zero_()


@torch.inference_mode()
def _clear(shelf: _Shelf) -> None:
    for kept in shelf.pieces.values():
        kept.zero_()
    shelf.pieces.clear()
    shelf.size = 0
