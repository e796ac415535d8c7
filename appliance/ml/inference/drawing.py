"""Token after token: a prompt read in chunks, then each drawn token as a row of a batch, or of a batch of one.

The same for the engine and for an evaluation that writes answers out. `slots`: those that wrap the base's layers; None
where none do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from appliance.ml.inference.adapters import Slots
from appliance.ml.inference.alone import read_alone, read_paths_alone
from appliance.ml.inference.cache import Cache, Drawing, Filling, Following, Held
from appliance.ml.inference.request import Request
from appliance.ml.layers.projections import Rows
from appliance.ml.layers.reader import Piece
from appliance.ml.lora.mixing import Mix, multiply_rows
from appliance.ml.model.base import Base

# Tokens of a prompt that are read at once: what the others wait for between two of their tokens.
PROMPT_CHUNK = 256
# Tokens of a chunk that are computed together. They begin at multiples of it, so that a prompt's beginning has the same
# bits in every prompt; smaller pieces would take longer.
PIECE = 128
# Tokens that are looked at first where an answer is drawn from the likeliest: to sort all takes thirty times as long.
LIKELIEST = 256


def read_prompt(base: Base, slots: Slots | None, cache: Cache, held: Held, chunk: Sequence[int]) -> torch.Tensor:
    """Reads tokens of one request, alone in their batch; the logits behind the last one, [vocabulary]."""
    return _find_logits(base, slots, read_chunk(base, cache, held, chunk, rows="few")[-1:])[0]


@torch.inference_mode()
def read_chunk(base: Base, cache: Cache, held: Held, chunk: Sequence[int], rows: Rows = "many") -> torch.Tensor:
    """Reads tokens of one request, alone in their batch: [tokens, hidden] behind the last norm; `rows` is the
    reader's."""
    if base.library:
        return read_alone(base, held, chunk)
    start, stop = held.length, held.length + len(chunk)
    # Every tensor of a piece has the same shape wherever a chunk begins: so has it the same bits.
    size = piece_size(base) or len(chunk)
    ends = [*range(start - start % size + size, stop, size), stop]
    places = [range(*both) for both in zip([start, *ends], ends, strict=False)]
    pieces = [
        Piece(chunk[one.start - start : one.stop - start], one, Filling(cache, held, one), [held.long] * len(one))
        for one in places
    ]
    # What follows a whole piece takes the weights that are made for it anyway, or would be.
    hidden = base.read_each(pieces, rows if stop < size else "many")
    held.length = stop
    return hidden


@torch.inference_mode()
def read_after(base: Base, cache: Cache, held: Held, paths: Sequence[Sequence[int]]) -> torch.Tensor:
    """What would follow: each path behind all that a request holds, and none behind another; nothing of them is kept.
    [tokens of all paths, hidden]."""
    if base.library:
        return read_paths_alone(base, held, paths)
    ids = [token for path in paths for token in path]
    places = [held.length + place for path in paths for place in range(len(path))]
    return base.read(ids, places, Following(cache, held, [len(path) for path in paths]), [held.long] * len(ids))


def read_drawn(base: Base, slots: Slots | None, cache: Cache, rows: Sequence[Held], ids: Sequence[int]) -> torch.Tensor:
    """Reads the last drawn token of each request; the logits behind them, [rows, vocabulary], in the compute dtype."""
    if base.library:
        return torch.stack([_read_row(base, slots, row, held, ids[row]) for row, held in enumerate(rows)])
    with nullcontext(Mix(tuple(range(len(rows))), ())) if slots is None else slots.laying_out() as mix:
        laid = [None if row is None else rows[row] for row in mix.rows]
        tokens = [0 if row is None else ids[row] for row in mix.rows]
        places = [0 if held is None else held.length for held in laid]
        drawing = Drawing(cache, laid)
        if slots is None or slots.stepper is None:
            hidden = base.read(tokens, places, drawing, [held is not None and held.long for held in laid])
        else:
            hidden = slots.stepper.read(tokens, places, drawing, mix)
    logits = _find_logits(base, slots, hidden.index_select(0, torch.tensor(mix.back, device=base.device)))
    for held in rows:
        held.length += 1
    return logits


def _read_row(base: Base, slots: Slots | None, row: int, held: Held, token: int) -> torch.Tensor:
    """The same for one request of a batch, whose base takes each by itself."""
    with nullcontext() if slots is None else slots.picking(row):
        return _find_logits(base, slots, read_alone(base, held, [token]))[0]


def _find_logits(base: Base, slots: Slots | None, hidden: torch.Tensor) -> torch.Tensor:
    if slots is not None and slots.stepper is not None:
        return slots.stepper.find_logits(hidden).cpu()
    head = base.head()
    return head.finish(multiply_rows(lambda block: block @ head.weight.T, hidden)).cpu()


@torch.inference_mode()
def draw_tokens(base: Base, slots: Slots | None, prompt: Sequence[int], request: Request, limit: int) -> Iterator[int]:
    """One answer with whatever adapter is in use: the tokens that the engine would draw."""
    generator = torch.Generator().manual_seed(request.seed)
    cache, held, ids = Cache(base.device, len(prompt) + limit), Held(long=base.is_long(len(prompt))), list(prompt)
    logits = _read_whole(base, slots, cache, held, ids)
    for _ in range(limit - 1):
        ids.append(draw_token(logits, request, generator))
        yield ids[-1]
        if begin_long(base, cache, held):
            logits = _read_whole(base, slots, cache, held, ids)
        else:
            logits = read_drawn(base, slots, cache, [held], ids[-1:])[0]
    yield draw_token(logits, request, generator)


def _read_whole(base: Base, slots: Slots | None, cache: Cache, held: Held, ids: Sequence[int]) -> torch.Tensor:
    """A prompt in chunks; the logits behind its last token."""
    size = chunk_size(base, len(ids), PROMPT_CHUNK)
    *chunks, last = (ids[start : start + size] for start in range(0, len(ids), size))
    for chunk in chunks:
        read_prompt(base, slots, cache, held, chunk)
    return read_prompt(base, slots, cache, held, last)


def piece_size(base: Base) -> int | None:
    """So many of a prompt's tokens are computed together, whatever was read before them; None for whole chunks."""
    return PIECE if base.reader is not None else None


def chunk_size(base: Base, tokens: int, most: int) -> int:
    """So many of a prompt's tokens are read at once: at most so many, unless it must be read in one piece."""
    return tokens if base.reads_whole else most


def begin_long(base: Base, cache: Cache, held: Held) -> bool:
    """Whether one token more makes the sequence a long one. What is held was then turned by other angles: it is
    released, and all tokens must be read again as a prompt (as the library does)."""
    if held.long or not base.is_long(held.length + 1):
        return False
    cache.release(held)
    held.long = True
    return True


@dataclass(frozen=True)
class Lookahead:
    """What may come next in one row: the logits, [vocabulary], and the likeliest token; whether all are numbers."""

    logits: torch.Tensor
    likeliest: int
    finite: bool


def make_lookahead(logits: torch.Tensor) -> list[Lookahead]:
    """Of every row of logits, [rows, vocabulary], in as few operations for all of them as for one."""
    wide = logits.float()
    # A sum over numbers that is none itself is none that a model computes.
    finite = wide.sum(-1).isfinite().tolist()
    return [Lookahead(*found) for found in zip(wide, wide.argmax(-1).tolist(), finite, strict=True)]


def draw_token(logits: torch.Tensor, request: Request, generator: torch.Generator) -> int:
    """The likeliest token of a greedy request; else one of the smallest set whose probability reaches `top_p`."""
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
    """As many of the likeliest as reach the share, in order: some where these do, else all."""
    if len(probabilities) > LIKELIEST:
        some = probabilities.topk(LIKELIEST)
        if float(some.values.sum()) >= share:
            return some.values, some.indices
    return probabilities.sort(descending=True, stable=True)
