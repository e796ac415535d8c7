"""Reading of prompts, sampling of tokens, and text for streaming.

Requests to a base that runs in the library's modules are computed one at a time, with the library's own cache. That
cache may hold keys and values, a window of them, or the state of recurrent layers. It belongs to one request, and
`Cache.release` zeroes it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache

from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.cache import (
    Cache,
    DecodeAttention,
    PathAttention,
    PrefillAttention,
    RequestCache,
    list_tensors,
)
from appliance.ml.inference.lora import Mix, multiply_rows
from appliance.ml.inference.request import InferenceRequest
from appliance.ml.layers.decoder import Piece
from appliance.ml.layers.projections import Rows
from appliance.ml.model.base import LoadedBase


@torch.inference_mode()
def read_alone(base: LoadedBase, held: RequestCache, ids: Sequence[int]) -> torch.Tensor:
    """Read tokens after those in a request's library cache and return their states [tokens, hidden].

    The tokens are added to the cache.
    """
    if held.own is None:
        held.own = DynamicCache(config=base.model.config)
    places = torch.arange(held.length, held.length + len(ids), device=base.device)
    hidden = base.hidden(
        input_ids=torch.tensor([list(ids)], device=base.device),
        position_ids=places[None],
        cache=held.own,
        use_cache=True,
    )
    held.length += len(ids)
    return hidden[0]


def read_paths_alone(base: LoadedBase, held: RequestCache, paths: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the states [tokens of all paths, hidden] of paths that each continue a request; they are not cached."""
    found = []
    for path in paths:
        branch = RequestCache(length=held.length, own=copy.deepcopy(held.own))
        # One token at a time: a recurrent layer continues by single tokens.
        found += [read_alone(base, branch, [token]) for token in path]
        for tensor in list_tensors(branch.own):
            tensor.zero_()
    return torch.cat(found)


# Number of prompt tokens that are read at once; other requests wait for that long between two tokens.
PROMPT_CHUNK = 256
# Number of tokens of a chunk that are computed together. Pieces begin at multiples of it, so that a prompt's beginning
# has the same bits in every prompt; smaller pieces would take longer.
PIECE = 128
# Number of most likely tokens that top-p sampling tries first; sorting all takes thirty times as long.
LIKELIEST = 256


def read_prompt(
    base: LoadedBase, slots: AdapterSlots | None, cache: Cache, held: RequestCache, chunk: Sequence[int]
) -> torch.Tensor:
    """Read tokens of one request, alone in their batch, and return the logits after the last one, [vocabulary]."""
    return _find_logits(base, slots, read_chunk(base, cache, held, chunk, rows="few")[-1:])[0]


@torch.inference_mode()
def read_chunk(
    base: LoadedBase, cache: Cache, held: RequestCache, chunk: Sequence[int], rows: Rows = "many"
) -> torch.Tensor:
    """Read tokens of one request, alone in their batch, and return the last norm's output, [tokens, hidden].

    `rows` is as in `LoadedBase.read`.
    """
    if base.uses_library_modules:
        return read_alone(base, held, chunk)
    start, stop = held.length, held.length + len(chunk)
    # Every tensor of a piece has the same shape wherever a chunk begins, and therefore the same bits.
    size = piece_size(base) or len(chunk)
    ends = [*range(start - start % size + size, stop, size), stop]
    places = [range(*both) for both in zip([start, *ends], ends, strict=False)]
    pieces = [
        Piece(
            chunk[one.start - start : one.stop - start], one, PrefillAttention(cache, held, one), [held.long] * len(one)
        )
        for one in places
    ]
    # A remainder after a whole piece uses the weights that are dequantised for that piece.
    hidden = base.read(pieces, rows if stop < size else "many")
    held.length = stop
    return hidden


@torch.inference_mode()
def read_after(base: LoadedBase, cache: Cache, held: RequestCache, paths: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the states [tokens of all paths, hidden] of paths that each continue a request.

    Paths do not see each other and are not cached.
    """
    if base.uses_library_modules:
        return read_paths_alone(base, held, paths)
    ids = [token for path in paths for token in path]
    places = [held.length + place for path in paths for place in range(len(path))]
    seen = PathAttention(cache, held, [len(path) for path in paths])
    return base.read([Piece(ids, places, seen, [held.long] * len(ids))])


def read_drawn(
    base: LoadedBase, slots: AdapterSlots | None, cache: Cache, rows: Sequence[RequestCache], ids: Sequence[int]
) -> torch.Tensor:
    """Read the last sampled token of each request and return the logits after it.

    The logits are [rows, vocabulary] in the compute dtype, on the CPU.
    """
    if base.uses_library_modules:
        return torch.stack([_read_row(base, slots, row, held, ids[row]) for row, held in enumerate(rows)])
    with nullcontext(Mix(tuple(range(len(rows))), ())) if slots is None else slots.laying_out() as mix:
        laid = [None if row is None else rows[row] for row in mix.rows]
        tokens = [0 if row is None else ids[row] for row in mix.rows]
        places = [0 if held is None else held.length for held in laid]
        drawing = DecodeAttention(cache, laid)
        if slots is None or slots.stepper is None:
            hidden = base.read([Piece(tokens, places, drawing, [held is not None and held.long for held in laid])])
        else:
            hidden = slots.stepper.read(tokens, places, drawing, mix)
    logits = _find_logits(base, slots, hidden.index_select(0, torch.tensor(mix.back, device=base.device)))
    for held in rows:
        held.length += 1
    return logits


def _read_row(base: LoadedBase, slots: AdapterSlots | None, row: int, held: RequestCache, token: int) -> torch.Tensor:
    """Return the logits after the token of one request in a batch, for a base that reads requests separately."""
    with nullcontext() if slots is None else slots.picking(row):
        return _find_logits(base, slots, read_alone(base, held, [token]))[0]


def _find_logits(base: LoadedBase, slots: AdapterSlots | None, hidden: torch.Tensor) -> torch.Tensor:
    if slots is not None and slots.stepper is not None:
        return slots.stepper.find_logits(hidden).cpu()
    head = base.head()
    return head.finish(multiply_rows(lambda block: block @ head.weight.T, hidden)).cpu()


@torch.inference_mode()
def draw_tokens(
    base: LoadedBase, slots: AdapterSlots | None, prompt: Sequence[int], request: InferenceRequest, limit: int
) -> Iterator[int]:
    """Yield the tokens of one response with the adapter in use, the same tokens that the engine samples."""
    generator = torch.Generator().manual_seed(request.seed)
    cache, held, ids = (
        Cache(base.device, len(prompt) + limit),
        RequestCache(long=base.is_long(len(prompt))),
        list(prompt),
    )
    logits = _read_whole(base, slots, cache, held, ids)
    for _ in range(limit - 1):
        ids.append(draw_token(logits, request, generator))
        yield ids[-1]
        if begin_long(base, cache, held):
            logits = _read_whole(base, slots, cache, held, ids)
        else:
            logits = read_drawn(base, slots, cache, [held], ids[-1:])[0]
    yield draw_token(logits, request, generator)


def _read_whole(
    base: LoadedBase, slots: AdapterSlots | None, cache: Cache, held: RequestCache, ids: Sequence[int]
) -> torch.Tensor:
    """Read a prompt in chunks and return the logits after its last token."""
    size = chunk_size(base, len(ids), PROMPT_CHUNK)
    *chunks, last = (ids[start : start + size] for start in range(0, len(ids), size))
    for chunk in chunks:
        read_prompt(base, slots, cache, held, chunk)
    return read_prompt(base, slots, cache, held, last)


def piece_size(base: LoadedBase) -> int | None:
    """Return the number of prompt tokens that are computed together; None for whole chunks."""
    return PIECE if base.reader is not None else None


def chunk_size(base: LoadedBase, tokens: int, most: int) -> int:
    """Return the number of prompt tokens that are read at once: all if the base must read a prompt in one piece."""
    return tokens if base.reads_whole else most


def begin_long(base: LoadedBase, cache: Cache, held: RequestCache) -> bool:
    """Return True if one more token makes the sequence a long one, and release its cache.

    The cached keys were rotated by other angles, so all tokens must be read again as a prompt (as the library does).
    """
    if held.long or not base.is_long(held.length + 1):
        return False
    cache.release(held)
    held.long = True
    return True


@dataclass(frozen=True)
class Lookahead:
    """The logits of the next token in one row, [vocabulary].

    The most likely token; and whether all logits are finite.
    """

    logits: torch.Tensor
    likeliest: int
    finite: bool


def make_lookahead(logits: torch.Tensor) -> list[Lookahead]:
    """Return a lookahead for each row of logits, [rows, vocabulary], in one operation for all rows."""
    wide = logits.float()
    # A finite sum implies finite logits; finite logits of a model never overflow the sum.
    finite = wide.sum(-1).isfinite().tolist()
    return [Lookahead(*found) for found in zip(wide, wide.argmax(-1).tolist(), finite, strict=True)]


def draw_token(logits: torch.Tensor, request: InferenceRequest, generator: torch.Generator) -> int:
    """Return the most likely token of a greedy request; otherwise sample from the smallest set that reaches `top_p`."""
    if request.is_greedy:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / request.temperature, dim=-1)
    if request.top_p == 1:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    likeliest, order = _take_likeliest(probabilities, request.top_p)
    before = likeliest.cumsum(0) - likeliest
    likeliest[1:][before[1:] >= request.top_p] = 0
    return int(order[torch.multinomial(likeliest, 1, generator=generator)])


def _take_likeliest(probabilities: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most likely probabilities and tokens, in order, that reach the share.

    Some if enough, otherwise all.
    """
    if len(probabilities) > LIKELIEST:
        some = probabilities.topk(LIKELIEST)
        if float(some.values.sum()) >= share:
            return some.values, some.indices
    return probabilities.sort(descending=True, stable=True)


_INCOMPLETE = "�"


class TextStream:
    """Converts tokens to text that can be sent: whole characters that are not the beginning of a stop text."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: tuple[str, ...]) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        self._text = ""
        self._sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        self._ids.append(token)
        self._text = self._decode(self._ids)
        places = [place for stop in self._stop if (place := self._text.find(stop)) >= 0]
        if places:
            self.stopped = True
            self._text = self._text[: min(places)]
            return self._release(len(self._text))
        return self._release(len(self._text) - self._count_uncertain())

    def finish(self) -> str:
        """Return the remaining text, after the last token."""
        return self._release(len(self._text))

    def _release(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _count_uncertain(self) -> int:
        """Return the number of last characters that may still change.

        These are an incomplete character, and the beginning of a stop text.
        """
        whole = self._text.rstrip(_INCOMPLETE)
        begun = max((_count_begun(whole, stop) for stop in self._stop), default=0)
        return len(self._text) - len(whole) + begun


def _count_begun(text: str, stop: str) -> int:
    """Return the length of the text's end that is a proper beginning of the stop text."""
    for start in range(max(0, len(text) - len(stop) + 1), len(text)):
        if stop.startswith(text[start:]):
            return len(text) - start
    return 0
