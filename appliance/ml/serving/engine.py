"""The inference engine: a base, adapters in slots, and steps that generate one token for every running request.

An adapter is accepted into a slot only if its logit fingerprint equals the sealed one, bit for bit. Units never get
responses of the base alone. A request can join and leave at any token. Its prompt is read alone, in chunks, with the
same arithmetic as the fingerprint. Then it is a row of a batch in which no row's bits depend on another's
(`ml/inference/lora.py`, `ml/inference/cache.py`), so that a response can be reproduced alone.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, TypeVar

import torch

from appliance.errors import ApplianceError, Conflict, Denied, Unavailable
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.cache import BLOCK, Cache, Prefixes, Prompt, RequestCache
from appliance.ml.inference.reading import (
    PreparedPrompt,
    Reading,
    read_answerable,
    read_classifiable,
    read_fingerprint,
    verify_fingerprint,
)
from appliance.ml.inference.request import Encode, InferenceRequest
from appliance.ml.inference.sampling import (
    PROMPT_CHUNK,
    Lookahead,
    TextStream,
    begin_long,
    chunk_size,
    draw_token,
    make_lookahead,
    piece_size,
    read_drawn,
    read_prompt,
)
from appliance.ml.inference.score import score_in_passes
from appliance.ml.model.base import LoadedBase
from appliance.ml.model.calls import CallOutput
from appliance.ml.model.grammars import Vocabulary

DRAWING = 2
"""Multiple of a long prompt's reading time that other requests get for sampling meanwhile."""


class SchedulableRequest(Protocol):
    """The part of a running request that `PromptScheduler` uses: its slot, and if its prompt takes several chunks."""

    slot: str | None
    is_long: bool


T = TypeVar("T", bound=SchedulableRequest)


class PromptScheduler:
    """The scheduler of prompt reading: slots take turns, and requests of a slot are read in order of arrival.

    While requests of other slots sample tokens, a long prompt is read for at most half of their sampling time. It thus
    takes at most a third of the time, whatever its length.
    """

    def __init__(self) -> None:
        self._number = count(1)
        self._last: dict[str | None, int] = {}
        self._lead_s = 0.0

    def choose(self, unread: Sequence[T], drawing: Sequence[T]) -> T | None:
        """Return the request to read a chunk of; None if there is none or if it is the others' turn to sample."""
        may = [row for row in unread if self._lead_s <= 0 or not _delays_others(row, drawing)]
        if not may:
            return None
        chosen = min(may, key=lambda row: self._last.get(row.slot, 0))
        self._last[chosen.slot] = next(self._number)
        return chosen

    def spend_reading(self, row: SchedulableRequest, drawing: Sequence[SchedulableRequest], seconds: float) -> None:
        """Record the seconds of a chunk."""
        if _delays_others(row, drawing):
            self._lead_s += seconds * DRAWING

    def spend_drawing(self, seconds: float) -> None:
        """Record the seconds of a sampling step; unused reading time is not accumulated."""
        self._lead_s = max(0.0, self._lead_s - seconds)

    def forget(self, slot: str) -> None:
        """Remove a slot that was emptied."""
        self._last.pop(slot, None)


def _delays_others(row: SchedulableRequest, drawing: Sequence[SchedulableRequest]) -> bool:
    return row.is_long and any(other.slot != row.slot for other in drawing)


# Largest number of requests in a batch; others wait. The service sends half as many while no unit is below its share,
# so that a unit below its share finds room.
MAX_ROWS = 64
_CACHE_TOKENS = 1 << 16
# Errors that the work on one row can raise: they end that request only.
FAULTS = (ApplianceError, RuntimeError, MemoryError, ValueError, LookupError, TypeError, ArithmeticError)


@dataclass(frozen=True)
class Done:
    """The end of a response.

    `finish_reason` is `stop` (end of turn or a stop text), `tool_calls` (the same, with calls), `length`, `cancelled`
    or `classified`.
    """

    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    """Number of prompt tokens that were restored from the cache; None if unknown."""


@dataclass(frozen=True)
class RequestEvent:
    """An event of a request: a piece of its text, calls, its end, or an error."""

    name: str
    content: str | CallOutput | Done | ApplianceError


class RunningRequest:
    """A running request."""

    def __init__(
        self,
        name: str,
        slot: str | None,
        question: PreparedPrompt,
        room: int,
        text: TextStream,
        *,
        long: bool = False,
    ) -> None:
        self.name, self.slot, self.request, self.text = name, slot, question.request, text
        # A slot is named UNIT/SERVED_MODEL/ENTRY.
        self.unit = (slot or "").partition("/")[0]
        self.limit = min(self.request.max_tokens, room)
        self.prompt_tokens, self.completion_tokens, self.cached_tokens = len(question.prompt), 0, 0
        self.unread, self.is_long = question.prompt, question.is_long
        self.held = RequestCache(long=long)
        self.drawn: list[int] = []
        # The remaining passes of a classification; `unread` stays set until they end.
        self.passes: Iterator[list[float] | None] | None = None
        self.calls = question.calls
        self._prompt, self._choices = question.prompt, question.choices
        self._generator = torch.Generator().manual_seed(self.request.seed)
        self.beginning = self._begin(question.prompt)

    def _begin(self, ids: Sequence[int]) -> Prompt | None:
        """Return the prompt for the prefix cache; None without slot or scope."""
        if self.slot is None or self.request.scope is None:
            return None
        return Prompt(self.slot, self.request.scope, ids, self.held)

    def draw(self, lookahead: Lookahead) -> int:
        """Return the next token, restricted to the allowed ones if the response is constrained."""
        choices = self._choices
        if self.request.is_greedy and (choices is None or choices.allows(lookahead.likeliest)):
            # The most likely token is allowed, so it is also the most likely of the allowed ones.
            token = lookahead.likeliest
        else:
            logits = lookahead.logits if choices is None else choices.narrow(lookahead.logits)
            token = draw_token(logits, self.request, self._generator)
        if choices is not None:
            choices.take(token)
        return token

    def make_events(self, piece: str) -> list[RequestEvent]:
        """Return the events for a piece of the response's text."""
        return _make_events(self.name, [piece] if self.calls is None else self.calls.push(piece))

    def finish_events(self) -> list[RequestEvent]:
        """Return the events for the remaining text, after the last token."""
        piece = self.text.finish()
        if self.calls is None:
            return _make_events(self.name, [piece])
        return _make_events(self.name, [*self.calls.push(piece), *self.calls.finish()])

    @property
    def is_full(self) -> bool:
        """True if the response has ended, whatever may follow."""
        return self.text.stopped or (self.calls is not None and self.calls.full)

    def read_again(self) -> None:
        """Mark the prompt and the sampled tokens to be read again as a prompt."""
        self.unread = [*self._prompt, *self.drawn]
        self.beginning = self._begin(self.unread)
        self.is_long = len(self.unread) > PROMPT_CHUNK

    @property
    def most(self) -> int:
        """Largest number of tokens that the request can have in the cache."""
        return self.prompt_tokens + self.limit


class ServingEngine:
    """One base, its slots, and the running requests; not thread-safe."""

    def __init__(self, base: LoadedBase, prompt_cache_bytes: int = 0) -> None:
        """Create an engine; `prompt_cache_bytes` is the size of the prompt cache for all slots."""
        self.base = base
        self.slots = AdapterSlots(base)
        self._plain: Reading = read_fingerprint(base)
        self._vocabulary = Vocabulary(base.chat, base.head().weight.shape[0])
        self._tokens = max(_CACHE_TOKENS, base.context_length)
        # One more block for each row, whose last block may be partly filled.
        self._cache = Cache(base.device, self._tokens + MAX_ROWS * BLOCK)
        dtype = base.model.get_input_embeddings().weight.dtype
        self._prefixes = Prefixes(piece_size(base), prompt_cache_bytes, dtype)
        self._rows: list[RunningRequest] = []
        self._waiting: list[RunningRequest] = []
        self._turns = PromptScheduler()
        self.computed = 0
        """Number of prompt chunks, classification passes and batch steps since the engine started."""

    @property
    def busy(self) -> bool:
        """True if there are running or waiting requests."""
        return bool(self._rows or self._waiting)

    @property
    def answering(self) -> int:
        """Number of requests in the batch, without the waiting ones."""
        return len(self._rows)

    # --- slots --------------------------------------------------------------------------------------------------------

    def load(self, slot: str, config: bytes, weights: bytes, fingerprint: Mapping[str, Any]) -> None:
        """Load an adapter from buffers into a slot, which stays empty if the logit fingerprint differs.

        Raises:
            Tampered: the fingerprint differs.
            Conflict: the slot holds an adapter.
        """
        self.slots.load(slot, config, weights)
        try:
            with self.slots.using(slot):
                adapted = read_fingerprint(self.base)
            verify_fingerprint(self.base, fingerprint, self._plain, adapted)
        except BaseException:
            self.slots.unload(slot)
            raise
        self._prefixes.open(slot)

    def unload(self, slot: str) -> list[RequestEvent]:
        """Empty a slot; its requests are cut off first."""
        cut = [row for row in self._rows + self._waiting if row.slot == slot]
        for row in cut:
            self._leave(row)
        self._turns.forget(slot)
        self._prefixes.forget(slot)
        self.slots.unload(slot)
        return [RequestEvent(row.name, cut_off()) for row in cut]

    # --- requests -----------------------------------------------------------------------------------------------------

    def start(self, name: str, slot: str | None, request: InferenceRequest) -> None:
        """Start a request, which joins the batch when there is room.

        Slot None is the bare base, which units cannot name.
        """
        self.take(name, slot, self.read(request))

    def classify(self, name: str, slot: str, request: InferenceRequest) -> None:
        """Start a classification; its passes take turns with the others' tokens.

        The response is a JSON object of probabilities as decimal text, by label in the order of the request.
        """
        self.take(name, slot, self.read(request, classifies=True))

    def read(
        self, request: InferenceRequest, *, classifies: bool = False, encode: Encode | None = None
    ) -> PreparedPrompt:
        """Return the request as tokens, without changing the engine, so another thread may call this during steps.

        `encode` renders and tokenizes elsewhere.
        """
        chat, length = self.base.chat, self.base.context_length
        try:
            if classifies:
                return read_classifiable(chat, length, request, encode)
            return read_answerable(chat, length, request, self._vocabulary, encode)
        except FAULTS as error:
            raise as_refusal(error) from None

    def take(self, name: str, slot: str | None, question: PreparedPrompt) -> None:
        """Start a request that `read` returned.

        Raises:
            Denied: the slot has been emptied.
            Conflict: a running request has the same name.
        """
        if slot is not None and slot not in self.slots:
            # The request arrived when its adapter had just been unloaded; slot names are not reused.
            raise cut_off()
        if any(row.name == name for row in self._rows + self._waiting):
            raise Conflict(f"request {name}: expected a new name, got one that is being answered")
        try:
            self._waiting.append(self._new_row(name, slot, question))
            if slot is not None and question.request.scope is not None:
                self._prefixes.enter(slot, question.request.scope)
        except FAULTS as error:
            raise as_refusal(error) from None

    def _new_row(self, name: str, slot: str | None, question: PreparedPrompt) -> RunningRequest:
        decode, prompt, request = self.base.chat.decode, question.prompt, question.request
        if question.branches is None:
            room, long = self.base.context_length - len(prompt), self.base.is_long(len(prompt))
            return RunningRequest(name, slot, question, room, TextStream(decode, request.stop), long=long)
        row = RunningRequest(name, slot, question, 0, TextStream(decode, ()))
        row.passes = score_in_passes(self.base, self._cache, row.held, prompt, question.branches, len(request.labels))
        return row

    def cancel(self, name: str) -> list[RequestEvent]:
        """End one request without effect on others; do nothing if it has ended already."""
        found = [row for row in self._rows + self._waiting if row.name == name]
        return [event for row in found for event in self._end(row, "cancelled")]

    @torch.inference_mode()
    def step(self) -> list[RequestEvent]:
        """Read a chunk of one prompt, and sample a token for each request whose prompt was read."""
        self._admit()
        events: list[RequestEvent] = []
        drawing = [row for row in self._rows if not row.unread]
        if reading := self._turns.choose([row for row in self._rows if row.unread], drawing):
            began = time.monotonic()
            events += self._read(reading)
            self.computed += 1
            self._turns.spend_reading(reading, drawing, time.monotonic() - began)
        began, drawing = time.monotonic(), [row for row in self._rows if not row.unread]
        for row, lookahead in zip(drawing, self._compute(drawing), strict=True):
            events += self._draw(row, lookahead)
        self.computed += bool(drawing)
        self._turns.spend_drawing(time.monotonic() - began)
        return events

    def _admit(self) -> None:
        """Let waiting requests join while there is room for all tokens that they can come to hold.

        The unit that holds least comes first, its requests in order of arrival. After a unit's second request at least
        as much room stays free as the unit then holds. So one unit takes at most half of the room, two units take a
        third each, and another unit always finds room.
        """
        while self._waiting and len(self._rows) < MAX_ROWS:
            held: Counter[str] = Counter()
            for row in self._rows:
                held[row.unit] += row.most
            free = self._tokens - held.total()
            firsts = {row.unit: row for row in reversed(self._waiting)}.values()
            may = [row for row in firsts if not held[row.unit] or held[row.unit] + row.most <= free - row.most]
            first = min(may, key=lambda row: (held[row.unit], self._waiting.index(row)), default=None)
            if first is None or (self._rows and first.most > free):
                return
            self._waiting.remove(first)
            self._rows.append(first)

    def _read(self, row: RunningRequest) -> list[RequestEvent]:
        """Read the next chunk of a prompt, alone in its batch, or run the next pass of a classification."""
        if row.passes is not None:
            return self._score(row, row.passes)
        try:
            self._restore(row)
            size, start = chunk_size(self.base, len(row.unread), PROMPT_CHUNK), row.held.length
            chunk, rest = row.unread[:size], row.unread[size:]
            with self.slots.using(row.slot):
                logits = read_prompt(self.base, self.slots, self._cache, row.held, chunk)
            if row.beginning is not None:
                self._prefixes.keep(self._cache, row.beginning, start)
            row.unread = rest
            return [] if rest else self._draw(row, make_lookahead(logits[None])[0])
        except FAULTS as error:
            return self._fail(row, error)

    def _restore(self, row: RunningRequest) -> None:
        """Restore the beginning of the prompt from the cache."""
        if row.beginning is None:
            return
        restored = self._prefixes.restore(self._cache, row.beginning)
        row.unread = row.unread[restored:]
        row.is_long = row.is_long and len(row.unread) > PROMPT_CHUNK
        if not row.drawn:
            row.cached_tokens += restored

    def _score(self, row: RunningRequest, passes: Iterator[list[float] | None]) -> list[RequestEvent]:
        try:
            with self.slots.using(row.slot):
                scores = next(passes)
            if scores is None:
                return []
            _check_finite(all(map(math.isfinite, scores)))
            found = zip(row.request.labels, scores, strict=True)
            text = json.dumps({label: f"{math.exp(score):.9f}" for label, score in found}, ensure_ascii=False)
        except FAULTS as error:
            return self._fail(row, error)
        self._leave(row)
        return [RequestEvent(row.name, text), RequestEvent(row.name, Done("classified", row.prompt_tokens, 0))]

    def _compute(self, rows: Sequence[RunningRequest]) -> list[Lookahead | ApplianceError]:
        """Return the lookahead or the error of each row.

        If the batch fails, each row is tried alone, and only the failing one ends.
        """
        if not rows:
            return []
        if self.base.uses_library_modules and len(rows) > 1:
            # Each row's cache has the token after a pass, so no row may be computed a second time.
            return [found for row in rows for found in self._compute([row])]
        lengths = [row.held.length for row in rows]
        try:
            with self.slots.mixing([row.slot for row in rows]):
                held = [row.held for row in rows]
                last = [row.drawn[-1] for row in rows]
                return list(make_lookahead(read_drawn(self.base, self.slots, self._cache, held, last)))
        except FAULTS as error:
            if len(rows) == 1:
                return [as_refusal(error)]
            for row, length in zip(rows, lengths, strict=True):
                row.held.length = length
            return [found for row in rows for found in self._compute([row])]

    def _draw(self, row: RunningRequest, lookahead: Lookahead | ApplianceError) -> list[RequestEvent]:
        """Sample one token of a response and return the events."""
        try:
            if isinstance(lookahead, ApplianceError):
                raise lookahead
            _check_finite(lookahead.finite)
            row.drawn.append(row.draw(lookahead))
            row.completion_tokens += 1
            if row.drawn[-1] in self.base.chat.stop_ids():
                return self._end(row, "stop")
            events = row.make_events(row.text.push(row.drawn[-1]))
            if row.is_full:
                return events + self._end(row, "stop")
            if row.completion_tokens == row.limit:
                return events + self._end(row, "length")
            if begin_long(self.base, self._cache, row.held):
                row.read_again()
            return events
        except FAULTS as error:
            return self._fail(row, error)

    def _end(self, row: RunningRequest, reason: str) -> list[RequestEvent]:
        self._leave(row)
        events = row.finish_events()
        if reason == "stop" and row.calls is not None and row.calls.calls:
            reason = "tool_calls"
        return [
            *events,
            RequestEvent(row.name, Done(reason, row.prompt_tokens, row.completion_tokens, row.cached_tokens)),
        ]

    def _fail(self, row: RunningRequest, error: BaseException) -> list[RequestEvent]:
        self._leave(row)
        return [RequestEvent(row.name, as_refusal(error))]

    def _leave(self, row: RunningRequest) -> None:
        """Remove a request and release its cache."""
        for rows in (self._rows, self._waiting):
            if row in rows:
                rows.remove(row)
        self._cache.release(row.held)


def _make_events(name: str, pieces: Sequence[str | CallOutput]) -> list[RequestEvent]:
    return [RequestEvent(name, one) for one in pieces if one]


def _check_finite(finite: bool) -> None:
    if not finite:
        raise Unavailable("answer: expected finite logits, got infinite ones or NaN", code="not-finite")


def cut_off() -> ApplianceError:
    """Return the error for a request whose slot has been emptied, whether it had begun or not."""
    return Denied("The answer was cut off because its adapter was unloaded.", code="cut-off")


def as_refusal(error: BaseException) -> ApplianceError:
    """Return the error for a row that failed.

    The text of an unexpected error is dropped, since it may quote a prompt.
    """
    if isinstance(error, ApplianceError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        return Unavailable("answer: expected enough memory, got too little", code="out-of-memory")
    return Unavailable(f"answer: expected to compute it, got {type(error).__name__}", code="answer-failed")
