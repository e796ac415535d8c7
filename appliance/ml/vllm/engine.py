"""Answers by vLLM what `ml/serving/engine.py` answers by itself: the same slots, requests and events.

vLLM promises no bits: an answer can depend on those beside it. So a slot is filled where the probe is close, not equal,
and the response record says which engine answered. An adapter's file is gone once vLLM has read it: it cannot be read
again with other bytes.
"""

from __future__ import annotations

import json
import math
import secrets
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from appliance.domain.evaluation.engines import VLLM_SLOTS
from appliance.errors import BadInput, Conflict, NotFound, Tampered, TooMany, Unavailable
from appliance.ml.inference.adapters import CONFIG_FILE, parse_adapter_config
from appliance.ml.inference.choices import Choices
from appliance.ml.inference.drawing import draw_token
from appliance.ml.inference.probe import CLOSE, find_probe
from appliance.ml.inference.reading import Question, read_answerable, read_classifiable
from appliance.ml.inference.request import Request
from appliance.ml.inference.score import Branch
from appliance.ml.inference.text import Text
from appliance.ml.model.base import Base
from appliance.ml.model.grammars import Vocabulary
from appliance.ml.serving.engine import FAULTS, Done, Event, as_refusal, cut_off
from appliance.ml.vllm.loading import RANK

WEIGHTS_FILE = "adapter_model.safetensors"
_IDS_AT_ONCE = 100
"""Tokens whose probability one question asks for."""


@dataclass
class _Row:
    """A request at work. `salt`: requests with the same one share the beginnings of prompts in vLLM's cache. `plan` is
    told each list of scores that it asked for, and ends with the answer's text."""

    name: str
    slot: str
    question: Question
    text: Text
    limit: int
    salt: str
    completion_tokens: int = 0
    plan: Generator[Any, Any, str] | None = None
    asked: list[str] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        return len(self.question.prompt)


class Engine:
    """vLLM, its slots, and the requests at work; not for use by two threads at once."""

    def __init__(self, base: Base, vllm: Any) -> None:
        self.base = base
        self._vllm = vllm
        self._probe = find_probe(base)
        self._vocabulary = Vocabulary(base.chat, base.head().weight.shape[0])
        self._wanted: dict[str, list[int]] = {}
        self._slots: dict[str, Any] = {}
        self._numbers = 0
        self._rows: dict[str, _Row] = {}
        self._events: list[Event] = []
        self.computed = 0
        """Steps that gave something, since its start: vLLM does not say what it did in another."""
        self.off: dict[str, float] = {}
        """By slot, how far its probe is off: a share of the largest logit."""

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._events)

    @property
    def answering(self) -> int:
        return len(self._rows)

    # --- slots --------------------------------------------------------------------------------------------------------

    def load(self, slot: str, config: bytes, weights: bytes, probe: Mapping[str, Any]) -> None:
        """Fills a slot from buffers; where the probe is not close to the sealed one the slot is empty again."""
        from vllm.lora.request import LoRARequest

        if slot in self._slots:
            raise Conflict(f"slot {slot}: expected an empty one, got one that holds an adapter")
        if len(self._slots) == VLLM_SLOTS:
            raise TooMany(f"engine: expected at most {VLLM_SLOTS} adapters with vLLM, got one more", code="slots-full")
        rank = parse_adapter_config(config).rank
        if rank > RANK:
            raise Conflict(f"adapter: expected a rank of at most {RANK} with vLLM, got {rank}", code="rank")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CONFIG_FILE).write_bytes(config)
            (Path(folder) / WEIGHTS_FILE).write_bytes(weights)
            self._numbers += 1
            adapter = LoRARequest(slot, self._numbers, folder)
            if not self._vllm.add_lora(adapter):
                raise Conflict("adapter: expected one that vLLM takes, got one that it refuses", code="adapter-refused")
        self._slots[slot] = adapter
        try:
            self._verify_probe(slot, probe)
        except BaseException:
            self.unload(slot)
            raise

    def unload(self, slot: str) -> list[Event]:
        """Empties a slot. What it was answering is cut off before it goes."""
        if slot not in self._slots:
            raise NotFound(f"slot {slot}: expected one that holds an adapter, got an empty one")
        cut = [row for row in self._rows.values() if row.slot == slot]
        for row in cut:
            self._leave(row)
        self.off.pop(slot, None)
        self._vllm.remove_lora(self._slots.pop(slot).lora_int_id)
        return [Event(row.name, cut_off()) for row in cut]

    def _verify_probe(self, slot: str, sealed: Mapping[str, Any]) -> None:
        """Tampered where base or adapter are far from what was sealed, or the adapter changes nothing.

        vLLM gives log-probabilities, which are the logits less one number: differences are compared.
        """
        prompt, tokens, places = self._probe
        for key, value in (("prompt", prompt), ("tokens", tokens), ("indices", places)):
            if sealed.get(key) != value:
                raise Tampered(f"probe, {key}: expected what was sealed, got another", code="probe-differs")
        found = {}
        for name, adapter in (("base_logits", None), ("adapter_logits", slot)):
            expected = [float(text) for text in sealed[name]]
            found[name] = self._score_now(adapter, tokens, places)
            largest = max(map(abs, expected))
            pairs = zip(expected, found[name], strict=True)
            off = max(abs((one - expected[0]) - (other - found[name][0])) for one, other in pairs) / largest
            if not off <= CLOSE:
                raise Tampered(
                    f"probe, {name}: expected it within {CLOSE} of its largest logit, got it {off:.3g} away",
                    code="probe-differs",
                )
            self.off[slot] = max(self.off.get(slot, 0.0), off)
        if found["base_logits"] == found["adapter_logits"]:
            raise Tampered("probe: expected the adapter to change the logits, got the base's", code="adapter-inactive")

    def _score_now(self, slot: str | None, tokens: Sequence[int], places: Sequence[int]) -> list[float]:
        """One question and its answer; what other requests are given meanwhile waits for the next step."""
        self._ask("probe", slot, slot or "base", tokens, places)
        return self._read_scores(self._wait_for("probe"))

    def measure(self, slot: str, tokens: Sequence[int]) -> list[float]:
        """The log-probability of each token behind those before it; of the first, behind which nothing is, 0. For an
        evaluation, while no request is at work."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        self._add("measure", slot, slot, tokens, parameters)
        scores = self._wait_for("measure").prompt_logprobs
        return [0.0] + [float(some[token].logprob) for some, token in zip(scores[1:], tokens[1:], strict=True)]

    def _wait_for(self, name: str) -> Any:
        """The end of this question. A step also gives others their tokens, and all of them are heard."""
        found = None
        while found is None:
            for output in self._vllm.step():
                if output.request_id != name:
                    # An end takes what waits with it: the list is looked up after that, or all of it came twice.
                    heard = self._hear(output)
                    self._events += heard
                elif output.finished:
                    found = output
        return found

    # --- requests -----------------------------------------------------------------------------------------------------

    def read(self, request: Request, *, classifies: bool = False) -> Question:
        """The request as tokens. It changes nothing, so that another thread may do it beside the steps."""
        if request.tools or request.schema is not None:
            what = "tools" if request.tools else "response_format"
            raise BadInput(f"{what}: expected none from an appliance whose engine is vLLM, got it", code="vllm")
        chat, length = self.base.chat, self.base.context_length
        try:
            if classifies:
                return read_classifiable(chat, length, request)
            return read_answerable(chat, length, request, self._vocabulary)
        except FAULTS as error:
            raise as_refusal(error) from None

    def take(self, name: str, slot: str | None, question: Question) -> None:
        """Takes in what was read."""
        if slot is None or slot not in self._slots:
            raise cut_off()
        if name in self._rows:
            raise Conflict(f"request {name}: expected a new name, got one that is being answered")
        request = question.request
        limit = min(request.max_tokens, self.base.context_length - len(question.prompt))
        salt = _salt(slot, request.scope)
        row = _Row(name, slot, question, Text(self.base.chat.decode, request.stop), limit, salt)
        self._rows[name] = row
        try:
            if question.branches is None and question.choices is None:
                self._draw(row)
            else:
                row.plan = self._classify(row) if question.branches is not None else self._choose(row)
                begun = self._go_on(row)
                self._events += begun
        except FAULTS as error:
            self._leave(row)
            raise as_refusal(error) from None

    def cancel(self, name: str) -> list[Event]:
        """Ends one request and touches no other; nothing where it has ended already."""
        row = self._rows.get(name)
        return [] if row is None else self._end(row, "cancelled")

    def step(self) -> list[Event]:
        """What vLLM gives in a step of its own."""
        events, self._events = self._events, []
        if self._rows:
            outputs = self._vllm.step()
            self.computed += bool(outputs)
            for output in outputs:
                events += self._hear(output)
        return events

    def _hear(self, output: Any) -> list[Event]:
        name = output.request_id.rpartition("#")[0]
        row = self._rows.get(name)
        if row is None:
            return []
        try:
            if row.plan is None:
                return self._take_tokens(row, output)
            row.scores[output.request_id] = self._read_scores(output)
            return self._go_on(row) if len(row.scores) == len(row.asked) else []
        except FAULTS as error:
            self._leave(row)
            return [Event(row.name, as_refusal(error))]

    # --- answers ------------------------------------------------------------------------------------------------------

    def _draw(self, row: _Row) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        request = row.question.request
        self._add(
            f"{row.name}#",
            row.slot,
            row.salt,
            row.question.prompt,
            SamplingParams(
                max_tokens=row.limit,
                temperature=0.0 if request.is_greedy else request.temperature,
                top_p=request.top_p or 1e-6,
                seed=request.seed,
                stop_token_ids=sorted(self.base.chat.stop_ids()),
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            ),
        )
        row.asked = [f"{row.name}#"]

    def _take_tokens(self, row: _Row, output: Any) -> list[Event]:
        (drawn,) = output.outputs
        events: list[Event] = []
        for token in drawn.token_ids:
            row.completion_tokens += 1
            if token in self.base.chat.stop_ids():
                return events + self._end(row, "stop")
            events += _pieces(row, row.text.push(token))
            if row.text.stopped:
                return events + self._end(row, "stop")
            if row.completion_tokens == row.limit:
                return events + self._end(row, "length")
        return events

    def _choose(self, row: _Row) -> Generator[list[tuple[list[int], list[int]]], list[list[float]], str]:
        """One label, token by token: where the labels part, of those that lead to one."""
        request, generator = row.question.request, torch.Generator().manual_seed(row.question.request.seed)
        choices = row.question.choices
        drawn: list[int] = []
        assert isinstance(choices, Choices)
        while allowed := choices.allowed():
            token = allowed[0]
            if len(allowed) > 1:
                scores = yield [(list(drawn), allowed)]
                token = allowed[draw_token(torch.tensor(scores[0]), request, generator)]
            choices.take(token)
            drawn.append(token)
            row.completion_tokens += 1
            if token in self.base.chat.stop_ids():
                break
            if piece := row.text.push(token):
                self._events.append(Event(row.name, piece))
            if row.completion_tokens == row.limit:
                return "length"
        return "stop"

    def _classify(self, row: _Row) -> Generator[list[tuple[list[int], list[int]]], list[list[float]], str]:
        labels, branches = row.question.request.labels, row.question.branches or []
        total = [0.0] * len(labels)
        asked = [(list(branch.path), [token for token, _ in branch.choices]) for branch in branches]
        # Of a single label there is nothing to ask, and no answer would come to go on from.
        scores = (yield asked) if asked else []
        for branch, found in zip(branches, scores, strict=True):
            _add_scores(total, branch, found)
        shares = {label: f"{math.exp(score):.9f}" for label, score in zip(labels, total, strict=True)}
        self._events.append(Event(row.name, json.dumps(shares, ensure_ascii=False)))
        return "classified"

    def _go_on(self, row: _Row) -> list[Event]:
        """Gives a plan what it asked for, and asks what it wants next."""
        assert row.plan is not None
        told = None if not row.asked else _gather(row)
        try:
            wanted = next(row.plan) if told is None else row.plan.send(told)
        except StopIteration as ended:
            return self._end(row, ended.value)
        row.asked, row.scores = [], {}
        for place, (behind, ids) in enumerate(wanted):
            for part in range(0, len(ids), _IDS_AT_ONCE):
                name = f"{row.name}#{place}.{part}"
                row.asked.append(name)
                self._ask(name, row.slot, row.salt, [*row.question.prompt, *behind], ids[part : part + _IDS_AT_ONCE])
        return []

    def _ask(self, name: str, slot: str | None, salt: str, tokens: Sequence[int], ids: Sequence[int]) -> None:
        """How likely each of these tokens is to come next."""
        from vllm import SamplingParams

        self._wanted[name] = list(ids)
        parameters = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=list(ids), detokenize=False)
        self._add(name, slot, salt, tokens, parameters)

    def _read_scores(self, output: Any) -> list[float]:
        """The log-probabilities of the tokens that were asked for, in their order."""
        (drawn,) = output.outputs
        (scores,) = drawn.logprobs
        found = [float(scores[token].logprob) for token in self._wanted.pop(output.request_id)]
        if not all(map(math.isfinite, found)):
            raise Unavailable("answer: expected finite logits, got infinite ones or NaN", code="not-finite")
        return found

    def _add(self, name: str, slot: str | None, salt: str, tokens: Sequence[int], parameters: Any) -> None:
        prompt = {"prompt_token_ids": list(tokens), "cache_salt": salt}
        self._vllm.add_request(name, prompt, parameters, lora_request=None if slot is None else self._slots[slot])

    def _end(self, row: _Row, reason: str) -> list[Event]:
        self._leave(row)
        told, self._events = self._events, []
        own = _pieces(row, row.text.finish()) if reason != "classified" else []
        return [*told, *own, Event(row.name, Done(reason, row.prompt_tokens, row.completion_tokens))]

    def _leave(self, row: _Row) -> None:
        self._rows.pop(row.name, None)
        for name in row.asked:
            self._wanted.pop(name, None)
        if row.asked:
            self._vllm.abort_request(row.asked)


def _salt(slot: str, scope: str | None) -> str:
    """As the appliance's own engine has it: the same within one unit, adapter and epoch of the unit's tokens. Without a
    scope nothing is shared."""
    return f"{slot}\0{secrets.token_hex() if scope is None else scope}"


def _gather(row: _Row) -> list[list[float]]:
    """By question, in the order in which they were asked: log-probabilities among the tokens that were asked for."""
    found: dict[str, list[float]] = {}
    for name in row.asked:
        found.setdefault(name.rpartition("#")[2].partition(".")[0], []).extend(row.scores[name])
    return [torch.tensor(scores, dtype=torch.float64).log_softmax(0).tolist() for scores in found.values()]


def _add_scores(total: list[float], branch: Branch, found: Sequence[float]) -> None:
    for (_, behind), score in zip(branch.choices, found, strict=True):
        for label in behind:
            total[label] += score


def _pieces(row: _Row, piece: str) -> list[Event]:
    return [Event(row.name, piece)] if piece else []
