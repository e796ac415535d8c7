"""Token after token: a prompt read in chunks, then each drawn token as a row of a batch, or of a batch of one.

The same for the engine and for an evaluation that writes answers out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from appliance.ml.asked import Request
from appliance.ml.base import Base
from appliance.ml.cache import Cache, Drawing, Filling, Held
from appliance.ml.mixing import multiply_rows

# Tokens of a prompt that are read at once: what the others wait for between two of their tokens.
PROMPT_CHUNK = 256


def read_prompt(base: Base, cache: Cache, held: Held, chunk: Sequence[int]) -> torch.Tensor:
    """Reads tokens of one request, alone in their batch; the logits behind the last one, [vocabulary], float32."""
    places = range(held.length, held.length + len(chunk))
    hidden = _pass(base, chunk, places, Filling(cache, held, len(chunk)))
    held.length += len(chunk)
    return _find_logits(base, hidden[-1:])[0]


def read_drawn(base: Base, cache: Cache, rows: Sequence[Held], ids: Sequence[int]) -> torch.Tensor:
    """Reads the last drawn token of each request; the logits behind them, [rows, vocabulary], float32 on the CPU."""
    places = [held.length for held in rows]
    logits = _find_logits(base, _pass(base, ids, places, Drawing(cache, rows)))
    for held in rows:
        held.length += 1
    return logits


def _pass(base: Base, ids: Sequence[int], places: Sequence[int], rows: Filling | Drawing) -> torch.Tensor:
    """[tokens, hidden]."""
    return base.hidden(
        input_ids=torch.tensor([list(ids)], device=base.device),
        position_ids=torch.tensor([list(places)], device=base.device),
        use_cache=False,
        rows=rows,
    )[0]


def _find_logits(base: Base, hidden: torch.Tensor) -> torch.Tensor:
    weight = base.head_weight()
    return multiply_rows(lambda block: block @ weight.T, hidden).float().cpu()


@torch.inference_mode()
def draw_tokens(base: Base, prompt: Sequence[int], request: Request, limit: int) -> Iterator[int]:
    """One answer with whatever adapter is in use: the tokens that the engine would draw."""
    generator = torch.Generator().manual_seed(request.seed)
    cache, held = Cache(base.device, len(prompt) + limit), Held()
    *chunks, last = (prompt[start : start + PROMPT_CHUNK] for start in range(0, len(prompt), PROMPT_CHUNK))
    for chunk in chunks:
        read_prompt(base, cache, held, chunk)
    logits = read_prompt(base, cache, held, last)
    for _ in range(limit - 1):
        token = draw_token(logits, request, generator)
        yield token
        logits = read_drawn(base, cache, [held], [token])[0]
    yield draw_token(logits, request, generator)


def draw_token(logits: torch.Tensor, request: Request, generator: torch.Generator) -> int:
    """The likeliest token at temperature 0; else one of the smallest set whose probability reaches `top_p`."""
    if request.temperature == 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / request.temperature, dim=-1).sort(descending=True, stable=True)
    before = probabilities.cumsum(0) - probabilities
    probabilities[1:][before[1:] >= request.top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
