"""An engine with vLLM and the interface of `ml/serving/engine.py`: the same slots, requests and events.

vLLM does not guarantee reproducible bits: a response can depend on the other requests. So an adapter is accepted into a
slot if its logit fingerprint is close to the sealed one, and the response record names the engine. The adapter's files
are deleted once vLLM has read them, so that they cannot be read again with other content.
"""

from __future__ import annotations

import json
import math
import secrets
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from appliance.domain.data.kinds import PREFERENCE
from appliance.domain.evaluation.quality import VLLM_SLOTS
from appliance.errors import BadInput, Conflict, NotFound, RateLimited, Tampered, Unavailable
from appliance.ml.data.rows import Sample
from appliance.ml.evaluation import metrics
from appliance.ml.evaluation.sets import EvaluatedRows
from appliance.ml.inference.adapters import CONFIG_FILE, parse_adapter_config
from appliance.ml.inference.reading import (
    CLOSE,
    PreparedPrompt,
    find_fingerprint_prompt,
    read_answerable,
    read_classifiable,
)
from appliance.ml.inference.request import Encode, InferenceRequest
from appliance.ml.inference.sampling import TextStream, draw_token
from appliance.ml.inference.score import Choices, find_branches, sum_paths
from appliance.ml.model.base import LoadedBase
from appliance.ml.model.grammars import Vocabulary
from appliance.ml.serving.engine import FAULTS, Done, RequestEvent, as_refusal, cut_off
from appliance.ml.vllm.loading import RANK

WEIGHTS_FILE = "adapter_model.safetensors"
_IDS_AT_ONCE = 100
"""Number of tokens whose probability one vLLM request returns."""


@dataclass
class _RunningRequest:
    """A running request.

    Requests with the same `salt` share prompt beginnings in vLLM's cache. `plan` is a generator that yields questions,
    receives their scores, and returns the finish reason.
    """

    name: str
    slot: str
    question: PreparedPrompt
    text: TextStream
    limit: int
    salt: str
    completion_tokens: int = 0
    plan: Generator[Any, Any, str] | None = None
    asked: list[str] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        return len(self.question.prompt)


class VllmEngine:
    """vLLM, its slots, and the running requests; not thread-safe."""

    def __init__(self, base: LoadedBase, vllm: Any) -> None:
        self.base = base
        self._vllm = vllm
        self._fingerprint_prompt = find_fingerprint_prompt(base)
        self._vocabulary = Vocabulary(base.chat, base.head().weight.shape[0])
        self._wanted: dict[str, list[int]] = {}
        self._slots: dict[str, Any] = {}
        self._numbers = 0
        self._rows: dict[str, _RunningRequest] = {}
        self._events: list[RequestEvent] = []
        self.computed = 0
        """Number of steps with output since the engine started; vLLM does not report its other work."""
        self.deviations: dict[str, float] = {}
        """Deviation of each slot's fingerprint, as a share of the largest logit."""

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._events)

    @property
    def answering(self) -> int:
        return len(self._rows)

    # --- slots --------------------------------------------------------------------------------------------------------

    def load(self, slot: str, config: bytes, weights: bytes, fingerprint: Mapping[str, Any]) -> None:
        """Load an adapter from buffers into a slot, which stays empty if the logit fingerprint is not close.

        Raises:
            Tampered: the fingerprint is not close.
            Conflict: the slot holds an adapter, or vLLM does not support this one.
            RateLimited: all slots are in use.
        """
        if slot in self._slots:
            raise Conflict(f"slot {slot}: expected an empty one, got one that holds an adapter")
        if len(self._slots) == VLLM_SLOTS:
            raise RateLimited(
                f"engine: expected at most {VLLM_SLOTS} adapters with vLLM, got one more", code="slots-full"
            )
        rank = parse_adapter_config(config).rank
        if rank > RANK:
            raise Conflict(f"adapter: expected a rank of at most {RANK} with vLLM, got {rank}", code="rank-too-large")
        adapter = self._read_adapter(slot, config, weights)
        self._slots[slot] = adapter
        try:
            self._verify_fingerprint(slot, fingerprint)
        except BaseException:
            self.unload(slot)
            raise

    def _read_adapter(self, slot: str, config: bytes, weights: bytes) -> Any:
        """Return the adapter after vLLM has read its files, which are deleted then.

        vLLM raises errors of any class for weights that it does not expect. They must not end the engine, which has the
        adapters of other units.

        Raises:
            Conflict: vLLM refuses the adapter.
        """
        from vllm.lora.request import LoRARequest

        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CONFIG_FILE).write_bytes(config)
            (Path(folder) / WEIGHTS_FILE).write_bytes(weights)
            self._numbers += 1
            adapter = LoRARequest(slot, self._numbers, folder)
            try:
                problem = None if self._vllm.add_lora(adapter) else "no"
            except Exception as error:  # noqa: BLE001 - vLLM has no class of its own for them
                problem = type(error).__name__
            if problem is not None:
                message = f"adapter: expected one that vLLM takes, got one that it refuses: {problem}"
                raise Conflict(message, code="adapter-refused")
        return adapter

    def unload(self, slot: str) -> list[RequestEvent]:
        """Empty a slot; its requests are cut off first."""
        if slot not in self._slots:
            raise NotFound(f"slot {slot}: expected one that holds an adapter, got an empty one")
        cut = [row for row in self._rows.values() if row.slot == slot]
        for row in cut:
            self._leave(row)
        self.deviations.pop(slot, None)
        self._vllm.remove_lora(self._slots.pop(slot).lora_int_id)
        return [RequestEvent(row.name, cut_off()) for row in cut]

    def _verify_fingerprint(self, slot: str, sealed: Mapping[str, Any]) -> None:
        """Compare the slot's fingerprint with the sealed one.

        vLLM returns log-probabilities, which are logits minus a constant, so differences are compared.
        """
        prompt, tokens, places = self._fingerprint_prompt
        for key, value in (("prompt", prompt), ("tokens", tokens), ("indices", places)):
            if sealed.get(key) != value:
                raise Tampered(
                    f"logit fingerprint, {key}: expected what was sealed, got another", code="fingerprint-differs"
                )
        found = {}
        for name, adapter in (("base_logits", None), ("adapter_logits", slot)):
            expected = _parse_logits(sealed, name, len(places))
            found[name] = self._score_now(adapter, tokens, places)
            largest = max(map(abs, expected))
            pairs = zip(expected, found[name], strict=True)
            deviation = max(abs((one - expected[0]) - (other - found[name][0])) for one, other in pairs) / largest
            if not deviation <= CLOSE:
                raise Tampered(
                    f"logit fingerprint, {name}: expected at most {CLOSE} of the largest logit away, "
                    f"got {deviation:.3g}",
                    code="fingerprint-differs",
                )
            self.deviations[slot] = max(self.deviations.get(slot, 0.0), deviation)
        if found["base_logits"] == found["adapter_logits"]:
            raise Tampered(
                "logit fingerprint: expected the adapter to change the logits, got the base's", code="adapter-inactive"
            )

    def _score_now(self, slot: str | None, tokens: Sequence[int], places: Sequence[int]) -> list[float]:
        """Return the scores of one question now; events of other requests are kept for the next step."""
        self._ask("logit_fingerprint", slot, slot or "base", tokens, places)
        return self._read_scores(self._wait_for("logit_fingerprint"))

    def measure(self, slot: str, tokens: Sequence[int]) -> list[float]:
        """Return the log-probability of each token given those before it; 0 for the first.

        It is for an evaluation, while no request is running.
        """
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        self._add("measure", slot, slot, tokens, parameters)
        scores = self._wait_for("measure").prompt_logprobs
        return [0.0] + [float(some[token].logprob) for some, token in zip(scores[1:], tokens[1:], strict=True)]

    def _wait_for(self, name: str) -> Any:
        """Step until this question has its output, and return it; outputs of other requests become events."""
        found = None
        while found is None:
            for output in self._vllm.step():
                if output.request_id != name:
                    # The end of a request replaces `_events`, so the list must be read after `_handle_output`;
                    # otherwise events are duplicated.
                    new_events = self._handle_output(output)
                    self._events += new_events
                elif output.finished:
                    found = output
        return found

    # --- requests -----------------------------------------------------------------------------------------------------

    def read(
        self, request: InferenceRequest, *, classifies: bool = False, encode: Encode | None = None
    ) -> PreparedPrompt:
        """Return the request as tokens, without changing the engine, so another thread may call this during steps.

        `encode` renders and tokenizes elsewhere.

        Raises:
            BadInput: the request has tools or a schema, which are not supported with vLLM.
        """
        if request.tools or request.schema is not None:
            what = "tools" if request.tools else "response_format"
            raise BadInput(f"{what}: expected none from an appliance whose engine is vLLM, got it", code="vllm")
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
        if slot is None or slot not in self._slots:
            raise cut_off()
        if name in self._rows:
            raise Conflict(f"request {name}: expected a new name, got one that is being answered")
        request = question.request
        limit = min(request.max_tokens, self.base.context_length - len(question.prompt))
        salt = _make_salt(slot, request.scope)
        row = _RunningRequest(name, slot, question, TextStream(self.base.chat.decode, request.stop), limit, salt)
        self._rows[name] = row
        try:
            if question.branches is None and question.choices is None:
                self._draw(row)
            else:
                row.plan = self._classify(row) if question.branches is not None else self._choose(row)
                begun = self._advance_plan(row)
                self._events += begun
        except FAULTS as error:
            self._leave(row)
            raise as_refusal(error) from None

    def cancel(self, name: str) -> list[RequestEvent]:
        """End one request without effect on others; do nothing if it has ended already."""
        row = self._rows.get(name)
        return [] if row is None else self._end(row, "cancelled")

    def step(self) -> list[RequestEvent]:
        """Run one step of vLLM and return all new events."""
        events, self._events = self._events, []
        if self._rows:
            outputs = self._vllm.step()
            self.computed += bool(outputs)
            for output in outputs:
                events += self._handle_output(output)
        return events

    def _handle_output(self, output: Any) -> list[RequestEvent]:
        name = output.request_id.rpartition("#")[0]
        row = self._rows.get(name)
        if row is None:
            return []
        try:
            if row.plan is None:
                return self._take_tokens(row, output)
            row.scores[output.request_id] = self._read_scores(output)
            return self._advance_plan(row) if len(row.scores) == len(row.asked) else []
        except FAULTS as error:
            self._leave(row)
            return [RequestEvent(row.name, as_refusal(error))]

    # --- responses ----------------------------------------------------------------------------------------------------

    def _draw(self, row: _RunningRequest) -> None:
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

    def _take_tokens(self, row: _RunningRequest, output: Any) -> list[RequestEvent]:
        (drawn,) = output.outputs
        events: list[RequestEvent] = []
        for token in drawn.token_ids:
            row.completion_tokens += 1
            if token in self.base.chat.stop_ids():
                return events + self._end(row, "stop")
            events += _make_events(row, row.text.push(token))
            if row.text.stopped:
                return events + self._end(row, "stop")
            if row.completion_tokens == row.limit:
                return events + self._end(row, "length")
        return events

    def _choose(self, row: _RunningRequest) -> Generator[list[tuple[list[int], list[int]]], list[list[float]], str]:
        """Choose one label token by token.

        Where labels branch, ask for the scores of the tokens that lead to a label.
        """
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
                self._events.append(RequestEvent(row.name, piece))
            if row.completion_tokens == row.limit:
                return "length"
        return "stop"

    def _classify(self, row: _RunningRequest) -> Generator[list[tuple[list[int], list[int]]], list[list[float]], str]:
        labels, branches = row.question.request.labels, row.question.branches or []
        asked = [(list(branch.path), [token for token, _ in branch.choices]) for branch in branches]
        # With a single label there are no branches, and so no questions.
        scores = (yield asked) if asked else []
        total = sum_paths(branches, scores, len(labels))
        shares = {label: f"{math.exp(score):.9f}" for label, score in zip(labels, total, strict=True)}
        self._events.append(RequestEvent(row.name, json.dumps(shares, ensure_ascii=False)))
        return "classified"

    def _advance_plan(self, row: _RunningRequest) -> list[RequestEvent]:
        """Send a plan the scores that it asked for, and ask its next questions."""
        assert row.plan is not None
        scores = None if not row.asked else _gather(row)
        try:
            wanted = next(row.plan) if scores is None else row.plan.send(scores)
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
        """Ask vLLM for the probability of each of these tokens as the next one."""
        from vllm import SamplingParams

        self._wanted[name] = list(ids)
        parameters = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=list(ids), detokenize=False)
        self._add(name, slot, salt, tokens, parameters)

    def _read_scores(self, output: Any) -> list[float]:
        """Return the log-probabilities of the requested tokens, in their order."""
        (drawn,) = output.outputs
        (scores,) = drawn.logprobs
        found = [float(scores[token].logprob) for token in self._wanted.pop(output.request_id)]
        if not all(map(math.isfinite, found)):
            raise Unavailable("answer: expected finite logits, got infinite ones or NaN", code="not-finite")
        return found

    def _add(self, name: str, slot: str | None, salt: str, tokens: Sequence[int], parameters: Any) -> None:
        prompt = {"prompt_token_ids": list(tokens), "cache_salt": salt}
        self._vllm.add_request(name, prompt, parameters, lora_request=None if slot is None else self._slots[slot])

    def _end(self, row: _RunningRequest, reason: str) -> list[RequestEvent]:
        self._leave(row)
        events, self._events = self._events, []
        own = _make_events(row, row.text.finish()) if reason != "classified" else []
        return [*events, *own, RequestEvent(row.name, Done(reason, row.prompt_tokens, row.completion_tokens))]

    def _leave(self, row: _RunningRequest) -> None:
        self._rows.pop(row.name, None)
        for name in row.asked:
            self._wanted.pop(name, None)
        if row.asked:
            self._vllm.abort_request(row.asked)


def _parse_logits(sealed: Mapping[str, Any], name: str, count: int) -> list[float]:
    """Return sealed logits as numbers.

    Raises:
        Tampered: they are not `count` finite numbers, or all of them are 0.
    """
    try:
        found = [float(text) for text in sealed[name]]
    except (LookupError, TypeError, ValueError):
        found = []
    if len(found) != count or not all(map(math.isfinite, found)) or not any(found):
        raise Tampered(f"logit fingerprint, {name}: expected {count} finite numbers", code="fingerprint-differs")
    return found


def _make_salt(slot: str, scope: str | None) -> str:
    """Return the cache salt: the same within one unit, adapter and epoch of the unit's tokens.

    Without a scope the salt is random, so nothing is shared.
    """
    return f"{slot}\0{secrets.token_hex() if scope is None else scope}"


def _gather(row: _RunningRequest) -> list[list[float]]:
    """Return the log-probabilities of each question, normalised over its tokens, in the order of the questions."""
    found: dict[str, list[float]] = {}
    for name in row.asked:
        found.setdefault(name.rpartition("#")[2].partition(".")[0], []).extend(row.scores[name])
    return [torch.tensor(scores, dtype=torch.float64).log_softmax(0).tolist() for scores in found.values()]


def _make_events(row: _RunningRequest, piece: str) -> list[RequestEvent]:
    return [RequestEvent(row.name, piece)] if piece else []


MOST_ROWS = 256
"""Largest number of evaluated rows, evenly spaced over the held-out ones."""
SLOT = "evaluated"

Report = Callable[[int, int], None]


def evaluate(
    engine: VllmEngine, files: Mapping[str, bytes], fingerprint: Mapping[str, Any], rows: EvaluatedRows, report: Report
) -> Any:
    """Return the adapter's metrics with vLLM: rows, loss, accuracy, and the deviation of its fingerprint.

    Raises:
        Tampered: the fingerprint deviates by more than `CLOSE`.
    """
    engine.load(SLOT, files["adapter_config.json"], files["adapter_model.safetensors"], fingerprint)
    try:
        places = choose_rows(len(rows.rows))
        samples = [rows.samples[place] for place in places]
        found: dict[str, Any] = {"rows": len(places)}
        if rows.about.dataset_kind != PREFERENCE:
            found |= _measure_losses(engine, samples, report)
        if rows.about.dataset_kind == "classification":
            expected = [rows.rows[place].answer for place in places]
            answered = [_choose(engine, sample, rows.about.labels, report) for sample in samples]
            right = sum(one == other for one, other in zip(expected, answered, strict=True))
            found["accuracy"] = metrics.encode_metric(Fraction(right, len(expected)))
        return {**found, "logit_difference": f"{engine.deviations[SLOT]:.6f}", "logit_tolerance": f"{CLOSE:.6f}"}
    finally:
        engine.unload(SLOT)


def choose_rows(count: int) -> list[int]:
    """Return the indices of the evaluated rows, in order."""
    most = min(count, MOST_ROWS)
    return [place * count // most for place in range(most)]


def _measure_losses(engine: VllmEngine, samples: Sequence[Sample], report: Report) -> dict[str, str | int]:
    losses, tokens = [], 0
    for sample in samples:
        scores = engine.measure(SLOT, sample.ids)
        losses += [-scores[place] for start, stop in sample.spans for place in range(start, stop)]
        tokens += sample.trained_tokens
        report(1, len(sample.ids))
    total = math.fsum(losses)
    if not math.isfinite(total):
        raise Unavailable("evaluation: expected finite losses, got infinite ones or NaN", code="not-finite")
    return metrics.summarize_loss(total, tokens)


def _choose(engine: VllmEngine, sample: Sample, labels: Sequence[str], report: Report) -> str:
    """Return the most likely label, as in a unit's classification; the first of equal ones."""
    chat = engine.base.chat
    prompt = list(sample.ids[: sample.spans[0][0]])
    branches = find_branches(chat.encode_all([chat.answer(label) for label in labels]))
    request = InferenceRequest(messages=(), max_tokens=1, labels=tuple(labels))
    engine.take("row", SLOT, PreparedPrompt(request, prompt, branches=branches))
    events: list[RequestEvent] = []
    while not any(isinstance(event.content, Done | Exception) for event in events):
        events += engine.step()
    for event in events:
        if isinstance(event.content, Exception):
            raise event.content
    report(1, len(prompt))
    shares: dict[str, str] = json.loads("".join(event.content for event in events if isinstance(event.content, str)))
    return max(labels, key=lambda label: float(shares[label]))
