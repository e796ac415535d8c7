"""Answers many requests at once: a base, adapters in slots, and a step that gives every request one token more.

A slot is filled once its probe gives, bit for bit, what was sealed with the adapter. The base alone never answers. A
request joins and leaves at any token: its prompt is read by itself, in chunks, through the same arithmetic as the
probe; then it is a row of a batch in which no row's bits depend on another's (`ml/lora/mixing.py`,
`ml/inference/cache.py`), so that an answer can be drawn again alone.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from appliance.errors import ApplianceError, Conflict, Denied, Unavailable
from appliance.ml.inference.adapters import Slots
from appliance.ml.inference.cache import BLOCK, Cache, Held
from appliance.ml.inference.drawing import (
    PROMPT_CHUNK,
    Lookahead,
    begin_long,
    chunk_size,
    draw_token,
    make_lookahead,
    piece_size,
    read_drawn,
    read_prompt,
)
from appliance.ml.inference.prefixes import Prefixes, Prompt
from appliance.ml.inference.probe import Reading, read_probe, verify_probe
from appliance.ml.inference.reading import Question, read_answerable, read_classifiable
from appliance.ml.inference.request import Request
from appliance.ml.inference.score import score_in_passes
from appliance.ml.inference.text import Text
from appliance.ml.model.base import Base
from appliance.ml.model.call_stream import Called
from appliance.ml.model.grammars import Vocabulary
from appliance.ml.serving.turns import Turns

# Requests that are answered at once; more wait for their turn.
MAX_ROWS = 32
_CACHE_TOKENS = 1 << 16
# What one row's own work can raise: a defect in one answer ends that answer.
FAULTS = (ApplianceError, RuntimeError, MemoryError, ValueError, LookupError, TypeError, ArithmeticError)


@dataclass(frozen=True)
class Done:
    """How an answer ended: `stop` (end of turn or a stop text), `tool_calls` (the same, with calls), `length` or
    `cancelled`."""

    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    """Of the prompt's, those at its beginning that were not read again; None where that is not known."""


@dataclass(frozen=True)
class Event:
    """What became of a request: a piece of its answer, calls in it, its end, or why it has none."""

    name: str
    told: str | Called | Done | ApplianceError


class Row:
    """A request at work."""

    def __init__(
        self,
        name: str,
        slot: str | None,
        question: Question,
        room: int,
        text: Text,
        *,
        long: bool = False,
    ) -> None:
        self.name, self.slot, self.request, self.text = name, slot, question.request, text
        self.limit = min(self.request.max_tokens, room)
        self.prompt_tokens, self.completion_tokens, self.cached_tokens = len(question.prompt), 0, 0
        self.unread, self.is_long = question.prompt, question.is_long
        self.held = Held(long=long)
        self.drawn: list[int] = []
        # What a classification still has to do, pass by pass; its prompt stays unread until it ends.
        self.passes: Iterator[list[float] | None] | None = None
        self.calls = question.calls
        self._prompt, self._choices = question.prompt, question.choices
        self._generator = torch.Generator().manual_seed(self.request.seed)
        self.beginning = self._begin(question.prompt)

    def _begin(self, ids: Sequence[int]) -> Prompt | None:
        """What is read as a prompt, where others of its slot may begin alike; a classification shares nothing."""
        if self.slot is None or self.request.scope is None:
            return None
        return Prompt(self.slot, self.request.scope, ids, self.held)

    def draw(self, lookahead: Lookahead) -> int:
        """The next token, of those that may come where the answer is held to something."""
        choices = self._choices
        if self.request.is_greedy and (choices is None or choices.allows(lookahead.likeliest)):
            # The likeliest of all is also the likeliest of those that may come.
            token = lookahead.likeliest
        else:
            logits = lookahead.logits if choices is None else choices.narrow(lookahead.logits)
            token = draw_token(logits, self.request, self._generator)
        if choices is not None:
            choices.take(token)
        return token

    def tell(self, piece: str) -> list[Event]:
        """What a piece of the answer's text lets go."""
        return _events(self.name, [piece] if self.calls is None else self.calls.push(piece))

    def tell_rest(self) -> list[Event]:
        """What was held back, once no token follows."""
        piece = self.text.finish()
        if self.calls is None:
            return _events(self.name, [piece])
        return _events(self.name, [*self.calls.push(piece), *self.calls.finish()])

    @property
    def is_full(self) -> bool:
        """Whether its answer has come to its end, whatever may follow."""
        return self.text.stopped or (self.calls is not None and self.calls.full)

    def read_again(self) -> None:
        """Its prompt, and what was drawn behind it, as a prompt."""
        self.unread = [*self._prompt, *self.drawn]
        self.beginning = self._begin(self.unread)
        self.is_long = len(self.unread) > PROMPT_CHUNK

    @property
    def most(self) -> int:
        """Tokens that it can come to hold."""
        return self.prompt_tokens + self.limit


class Engine:
    """One base, its slots, and the requests at work; not for use by two threads at once."""

    def __init__(self, base: Base, prompt_cache_bytes: int = 0) -> None:
        """`prompt_cache_bytes`: what may be kept of prompts that were read, for all slots."""
        self.base = base
        self.slots = Slots(base)
        self._plain: Reading = read_probe(base)
        self._vocabulary = Vocabulary(base.chat, base.head().weight.shape[0])
        self._tokens = max(_CACHE_TOKENS, base.context_length)
        # A block more for each row: its last one may be filled in part.
        self._cache = Cache(base.device, self._tokens + MAX_ROWS * BLOCK)
        dtype = base.model.get_input_embeddings().weight.dtype
        self._prefixes = Prefixes(piece_size(base), prompt_cache_bytes, dtype)
        self._rows: list[Row] = []
        self._waiting: list[Row] = []
        self._turns = Turns()
        self.computed = 0
        """Chunks, passes of classifications and tokens of the batch, since its start."""

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._rows or self._waiting)

    @property
    def answering(self) -> int:
        """Requests in the batch; those that wait for room are not among them."""
        return len(self._rows)

    # --- slots --------------------------------------------------------------------------------------------------------

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
        self._prefixes.open(slot)

    def unload(self, slot: str) -> list[Event]:
        """Empties a slot. What it was answering is cut off before it goes."""
        cut = [row for row in self._rows + self._waiting if row.slot == slot]
        for row in cut:
            self._leave(row)
        self._turns.forget(slot)
        self._prefixes.forget(slot)
        self.slots.unload(slot)
        return [Event(row.name, cut_off()) for row in cut]

    # --- requests -----------------------------------------------------------------------------------------------------

    def start(self, name: str, slot: str | None, request: Request) -> None:
        """Takes a request in; it joins the batch when there is room. None is the bare base, which no unit can name."""
        self.take(name, slot, self.read(request))

    def classify(self, name: str, slot: str, request: Request) -> None:
        """Takes in a question for the probability of each label; its passes take turns with the others' tokens.

        The answer's text is a JSON object of decimal texts, by label in the order of the request.
        """
        self.take(name, slot, self.read(request, classifies=True))

    def read(self, request: Request, *, classifies: bool = False) -> Question:
        """The request as tokens. It changes nothing, so that another thread may do it beside the steps."""
        chat, length = self.base.chat, self.base.context_length
        try:
            if classifies:
                return read_classifiable(chat, length, request)
            return read_answerable(chat, length, request, self._vocabulary)
        except FAULTS as error:
            raise as_refusal(error) from None

    def take(self, name: str, slot: str | None, question: Question) -> None:
        """Takes in what was read."""
        if slot is not None and slot not in self.slots:
            # A slot is never filled twice: the request came when its adapter had just been taken out.
            raise cut_off()
        if any(row.name == name for row in self._rows + self._waiting):
            raise Conflict(f"request {name}: expected a new name, got one that is being answered")
        try:
            self._waiting.append(self._new_row(name, slot, question))
            if slot is not None and question.request.scope is not None:
                self._prefixes.enter(slot, question.request.scope)
        except FAULTS as error:
            raise as_refusal(error) from None

    def _new_row(self, name: str, slot: str | None, question: Question) -> Row:
        decode, prompt, request = self.base.chat.decode, question.prompt, question.request
        if question.branches is None:
            room, long = self.base.context_length - len(prompt), self.base.is_long(len(prompt))
            return Row(name, slot, question, room, Text(decode, request.stop), long=long)
        row = Row(name, slot, question, 0, Text(decode, ()))
        row.passes = score_in_passes(self.base, self._cache, row.held, prompt, question.branches, len(request.labels))
        return row

    def cancel(self, name: str) -> list[Event]:
        """Ends one request and touches no other; nothing where it has ended already."""
        found = [row for row in self._rows + self._waiting if row.name == name]
        return [event for row in found for event in self._end(row, "cancelled")]

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """A chunk of one prompt, and a token for each request whose prompt was read."""
        self._admit()
        events: list[Event] = []
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
        """While there is room for all that they can come to hold: first of the slot that holds least, each slot's in
        the order they came. One slot has half of the room at most, unless with a single request."""
        while self._waiting and len(self._rows) < MAX_ROWS:
            held: Counter[str | None] = Counter()
            for row in self._rows:
                held[row.slot] += row.most
            firsts = {row.slot: row for row in reversed(self._waiting)}.values()
            may = [row for row in firsts if not held[row.slot] or held[row.slot] + row.most <= self._tokens // 2]
            first = min(may, key=lambda row: (held[row.slot], self._waiting.index(row)), default=None)
            if first is None or (self._rows and held.total() + first.most > self._tokens):
                return
            self._waiting.remove(first)
            self._rows.append(first)

    def _read(self, row: Row) -> list[Event]:
        """The next chunk of its prompt, alone in its batch as the probe is; or the next pass of a classification."""
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

    def _restore(self, row: Row) -> None:
        """What was read before of this prompt's beginning is not read again."""
        if row.beginning is None:
            return
        restored = self._prefixes.restore(self._cache, row.beginning)
        row.unread = row.unread[restored:]
        row.is_long = row.is_long and len(row.unread) > PROMPT_CHUNK
        if not row.drawn:
            row.cached_tokens += restored

    def _score(self, row: Row, passes: Iterator[list[float] | None]) -> list[Event]:
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
        return [Event(row.name, text), Event(row.name, Done("classified", row.prompt_tokens, 0))]

    def _compute(self, rows: Sequence[Row]) -> list[Lookahead | ApplianceError]:
        """What may come next, by row. Where the batch fails each row is tried alone, and only the culprit ends."""
        if not rows:
            return []
        if self.base.library and len(rows) > 1:
            # Each writes into a cache of its own, which holds the token then: no row may be computed a second time.
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

    def _draw(self, row: Row, lookahead: Lookahead | ApplianceError) -> list[Event]:
        """One token more of an answer, and what of its text can be told."""
        try:
            if isinstance(lookahead, ApplianceError):
                raise lookahead
            _check_finite(lookahead.finite)
            row.drawn.append(row.draw(lookahead))
            row.completion_tokens += 1
            if row.drawn[-1] in self.base.chat.stop_ids():
                return self._end(row, "stop")
            events = row.tell(row.text.push(row.drawn[-1]))
            if row.is_full:
                return events + self._end(row, "stop")
            if row.completion_tokens == row.limit:
                return events + self._end(row, "length")
            if begin_long(self.base, self._cache, row.held):
                row.read_again()
            return events
        except FAULTS as error:
            return self._fail(row, error)

    def _end(self, row: Row, reason: str) -> list[Event]:
        self._leave(row)
        events = row.tell_rest()
        if reason == "stop" and row.calls is not None and row.calls.calls:
            reason = "tool_calls"
        return [*events, Event(row.name, Done(reason, row.prompt_tokens, row.completion_tokens, row.cached_tokens))]

    def _fail(self, row: Row, error: BaseException) -> list[Event]:
        self._leave(row)
        return [Event(row.name, as_refusal(error))]

    def _leave(self, row: Row) -> None:
        """Nothing of it stays: neither its place nor what the cache holds of it."""
        for rows in (self._rows, self._waiting):
            if row in rows:
                rows.remove(row)
        self._cache.release(row.held)


def _events(name: str, told: Sequence[str | Called]) -> list[Event]:
    return [Event(name, one) for one in told if one]


def _check_finite(finite: bool) -> None:
    if not finite:
        raise Unavailable("answer: expected finite logits, got infinite ones or NaN", code="not-finite")


def cut_off() -> ApplianceError:
    """Said to a request whose slot has been emptied, whether it was at work or had not begun."""
    return Denied("answer: cut off, its adapter was taken out", code="cut-off")


def as_refusal(error: BaseException) -> ApplianceError:
    """What is said of a row that failed; a defect's own words may quote a prompt, so they are not repeated."""
    if isinstance(error, ApplianceError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        return Unavailable("answer: expected enough memory, got too little", code="out-of-memory")
    return Unavailable(f"answer: expected to compute it, got {type(error).__name__}", code="answer-failed")
