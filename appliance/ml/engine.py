"""Answers one request at a time: a base, adapters in slots, and a stream of text.

A slot is filled once its probe gives, bit for bit, what was sealed with the adapter. The base alone never answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from appliance.errors import BadInput, TooLarge
from appliance.ml.adapters import Slots
from appliance.ml.base import Base
from appliance.ml.probe import Reading, read_probe, verify_probe

MAX_STOPS = 16
_INCOMPLETE = "�"
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Request:
    """What to answer and how. `temperature` 0 always takes the likeliest token; `seed` fixes every draw."""

    messages: tuple[Mapping[str, str], ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass
class Answer:
    """How an answer ended: `stop` (end of turn or a stop text), `length` or `cancelled`."""

    finish_reason: str = "length"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    pieces: list[str] = field(default_factory=list)


class Engine:
    """One base and its slots; not for use by two threads at once."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.slots = Slots(base.model, base.device)
        self._plain: Reading = read_probe(base)

    def load(self, slot: str, config: bytes, weights: bytes, probe: Mapping[str, Any]) -> None:
        """Fills a slot from buffers; where the probe differs from the sealed one the slot is empty again."""
        self.slots.load(slot, config, weights)
        try:
            with self.slots.using(slot):
                adapted = read_probe(self.base)
            verify_probe(self.base, probe, self._plain, adapted)
        except BaseException:
            self.slots.unload(slot)
            raise

    def unload(self, slot: str) -> None:
        self.slots.unload(slot)

    def generate(
        self, slot: str, request: Request, emit: Callable[[str], None], cancelled: Callable[[], bool]
    ) -> Answer:
        """Answers through `emit`, piece by piece; `cancelled` is asked before every token."""
        chat = self.base.chat
        prompt = chat.encode(chat.render(request.messages))
        room = self.base.context_length - len(prompt)
        if room < 1:
            raise TooLarge(
                f"messages: expected fewer than {self.base.context_length} tokens, got {len(prompt)}",
                code="context-length",
            )
        answer = Answer(prompt_tokens=len(prompt))
        text = _Text(chat.decode, request.stop)
        with self.slots.using(slot):
            for token in draw_tokens(self.base, prompt, request, min(request.max_tokens, room)):
                if cancelled():
                    answer.finish_reason = "cancelled"
                    break
                answer.completion_tokens += 1
                if token in chat.stop_ids():
                    answer.finish_reason = "stop"
                    break
                if piece := text.push(token):
                    answer.pieces.append(piece)
                    emit(piece)
                if text.stopped:
                    answer.finish_reason = "stop"
                    break
        if piece := text.finish():
            answer.pieces.append(piece)
            emit(piece)
        return answer


@torch.inference_mode()
def draw_tokens(base: Base, prompt: Sequence[int], request: Request, limit: int) -> Iterator[int]:
    """Token after token; the keys and values of what stands already are kept."""
    generator = torch.Generator().manual_seed(request.seed)
    cache = DynamicCache(config=base.model.config)
    ids, position = list(prompt), 0
    for _ in range(limit):
        hidden = base.hidden(
            input_ids=torch.tensor([ids], device=base.device),
            position_ids=torch.arange(position, position + len(ids), device=base.device)[None],
            use_cache=True,
            **{base.cache_argument: cache},
        )
        position += len(ids)
        logits = (hidden[0, -1] @ base.head_weight().T).float().cpu()
        ids = [draw_token(logits, request, generator)]
        yield ids[0]


def draw_token(logits: torch.Tensor, request: Request, generator: torch.Generator) -> int:
    """The likeliest token at temperature 0; else one of the smallest set whose probability reaches `top_p`."""
    if request.temperature == 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / request.temperature, dim=-1).sort(descending=True, stable=True)
    before = probabilities.cumsum(0) - probabilities
    probabilities[1:][before[1:] >= request.top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


class _Text:
    """Turns tokens into text that can be sent: whole characters, and nothing that may begin a stop text."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: tuple[str, ...]) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        self._text = ""
        self._sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token lets go."""
        self._ids.append(token)
        self._text = self._decode(self._ids)
        places = [place for stop in self._stop if (place := self._text.find(stop)) >= 0]
        if places:
            self.stopped = True
            self._text = self._text[: min(places)]
            return self._release(len(self._text))
        return self._release(len(self._text) - self._held())

    def finish(self) -> str:
        """What was held back, once no token follows."""
        return self._release(len(self._text))

    def _release(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _held(self) -> int:
        """How many last characters may still change: an unfinished character, or the beginning of a stop text."""
        if self._text.endswith(_INCOMPLETE):
            return len(self._text) - len(self._text.rstrip(_INCOMPLETE))
        ends = [size for stop in self._stop for size in range(1, len(stop)) if self._text.endswith(stop[:size])]
        return max(ends, default=0)


def parse_request(value: Mapping[str, Any]) -> Request:
    """A request's members, checked; BadInput names the one that is off."""
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"messages: expected a list with at least one, got {type(messages).__name__}")
    for place, message in enumerate(messages):
        if (
            not isinstance(message, dict)
            or message.get("role") not in _ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise BadInput(
                f"message {place}: expected a role of {', '.join(_ROLES)} and text content, got another shape"
            )
    stop = value.get("stop", [])
    if not isinstance(stop, list) or len(stop) > MAX_STOPS or not all(isinstance(item, str) and item for item in stop):
        raise BadInput(f"stop: expected at most {MAX_STOPS} texts, got {stop!r:.80}")
    return Request(
        messages=tuple({"role": message["role"], "content": message["content"]} for message in messages),
        max_tokens=int(_number(value, "max_tokens", 1, 1 << 20, whole=True)),
        temperature=_number(value, "temperature", 0, 2),
        top_p=_number(value, "top_p", 0, 1),
        seed=int(_number(value, "seed", 0, 2**63 - 1, whole=True)),
        stop=tuple(stop),
    )


def _number(value: Mapping[str, Any], name: str, least: float, most: float, *, whole: bool = False) -> float:
    defaults = {"max_tokens": 256, "temperature": 1.0, "top_p": 1.0, "seed": 0}
    number = value.get(name, defaults[name])
    kinds = (int,) if whole else (int, float)
    if type(number) not in kinds or not least <= number <= most:
        raise BadInput(
            f"{name}: expected {'an integer' if whole else 'a number'} from {least} to {most}, got {number!r:.40}"
        )
    return float(number) if not whole else number
