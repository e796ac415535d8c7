"""Bounds on the cost of one request in one step of the engine."""

from __future__ import annotations

import time
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.ml.inference import score
from appliance.ml.inference.request import InferenceRequest, parse_request
from appliance.ml.inference.sampling import PROMPT_CHUNK, TextStream
from appliance.ml.model.base import LoadedBase
from appliance.ml.serving.engine import Done, RequestEvent, ServingEngine
from tests.ml.serving.test_engine import MESSAGES, Sealed, engine, sealed

__all__ = ["engine", "sealed"]

STEP_S = 2.0
"""Of the processor, so that a busy machine changes nothing; a step of the tiny base takes some 20 ms. What this guards
against took minutes."""
LONG = [{"role": "user", "content": "due " * 25}]
WIDE = [f"{number:03}" for number in range(1000)]
CHAIN = ["a" * depth + "b" for depth in range(126)]
STOPS = ["a" * 255 + end for end in "bcde"]
WORST: dict[str, dict[str, Any]] = {
    "many labels to choose from": {"labels": WIDE, "messages": LONG, "temperature": 2.0},
    "labels that go on from each other": {"labels": CHAIN, "messages": LONG, "temperature": 2.0},
    "stop texts": {"stop": STOPS, "max_tokens": 1024, "temperature": 2.0},
    "a draw from everything": {"messages": LONG, "temperature": 2.0, "top_p": 0.999999, "max_tokens": 1024},
    "many messages": {"messages": [{"role": "user", "content": ""}] * 20, "max_tokens": 1024},
}


def longest_step(engine: ServingEngine) -> float:
    """Seconds of the processor; every request has come to its end."""
    ends: list[RequestEvent] = []
    longest = 0.0
    while engine.busy:
        began = time.process_time()
        events = engine.step()
        longest = max(longest, time.process_time() - began)
        ends += [event for event in events if not isinstance(event.content, str)]
    assert all(isinstance(end.content, Done) for end in ends), ends
    return longest


@pytest.mark.thorough
@pytest.mark.parametrize("worst", WORST)
def test_no_step_is_held_up_by_the_worst_that_may_be_asked(engine: ServingEngine, worst: str) -> None:
    """Nor what is done of it between two steps, once it is tokens."""
    request = parse_request({"messages": list(MESSAGES), **WORST[worst]})
    questions = [engine.read(request)]
    if request.labels:
        questions.append(engine.read(request, classifies=True))
    for number, question in enumerate(questions):
        began = time.process_time()
        engine.take(f"{number}", "a", question)
        assert time.process_time() - began < STEP_S
    assert longest_step(engine) < STEP_S


@pytest.mark.thorough
@pytest.mark.parametrize("labels", [WIDE, CHAIN])
@pytest.mark.parametrize("keys", [2000, 1 << 16])
def test_a_pass_has_a_bound_of_tokens_branches_and_keys(
    engine: ServingEngine, labels: list[str], keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the labels are: each path of a pass copies the keys of the whole prompt."""
    passes: list[tuple[int, int, int]] = []
    real = score.read_after

    def count(base: LoadedBase, cache: Any, held: Any, paths: Any) -> Any:
        passes.append((sum(map(len, paths)), len(paths), len(paths) * held.length))
        return real(base, cache, held, paths)

    monkeypatch.setattr(score, "read_after", count)
    monkeypatch.setattr(score, "PASS_KEYS", keys)
    monkeypatch.setattr(score, "PASS_TOKENS", 64)
    engine.classify("c", "a", parse_request({"messages": list(MESSAGES), "labels": labels}))
    longest_step(engine)
    assert len(passes) > 1
    tokens, branches, looked = (max(found) for found in zip(*passes, strict=True))
    assert tokens <= PROMPT_CHUNK
    assert branches <= score.PASS_BRANCHES
    assert looked <= keys


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("labels", ["a" * 300], "expected at most 256 tokens in each, got one of 301"),
        ("labels", [f"{number:04}" + "x" * 8 for number in range(1000)], "expected at most 8192 tokens in all, got"),
        ("labels", ["x" * 66_000], "expected at most 65536 characters in all, got 66000"),
        ("stop", ["x" * 257], "expected at most 256 characters in each, got one of 257"),
        ("messages", [{"role": "user", "content": "x" * 100_001}] * 2, "expected at most 200000 characters in all"),
    ],
)
def test_what_is_over_a_bound_is_refused_by_what_it_has(
    engine: ServingEngine, member: str, value: Any, words: str
) -> None:
    with pytest.raises(BadInput, match=words) as refused:
        engine.start("1", "a", parse_request({"messages": list(MESSAGES), member: value}))
    assert refused.value.message.startswith(member)
    assert refused.value.status == 400


@pytest.mark.thorough
def test_a_stop_text_of_any_length_is_looked_for_in_time() -> None:
    """The longest that was allowed once took seconds a token."""
    text = TextStream(lambda ids: "a" * len(ids), ("a" * 1_000_000,))
    began = time.process_time()
    assert [text.push(1) for _ in range(500)] == [""] * 500
    assert time.process_time() - began < STEP_S
    assert text.finish() == "a" * 500


@pytest.mark.thorough
def test_a_slot_with_long_prompts_lets_anothers_short_one_begin(base: LoadedBase, sealed: Sealed) -> None:
    """After one chunk of them, not after all."""
    engine = ServingEngine(base)
    engine.load("a", *sealed)
    engine.load("b", *sealed)
    long = parse_request({"messages": [{"role": "user", "content": "due in " * 20}], "labels": WIDE})
    for number in range(8):
        engine.take(f"long {number}", "a", engine.read(long, classifies=True))
    engine.start("short", "b", InferenceRequest(MESSAGES, max_tokens=3))
    pieces: list[RequestEvent] = []
    steps = 0
    while not any(event.name == "short" and isinstance(event.content, Done) for event in pieces):
        pieces += engine.step()
        steps += 1
    assert steps <= 6
    longest_step(engine)


@pytest.mark.thorough
def test_a_slot_holds_half_of_the_room_at_most_and_one_that_holds_less_goes_first(
    base: LoadedBase, sealed: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ServingEngine(base)
    engine.load("a", *sealed)
    engine.load("b", *sealed)
    monkeypatch.setattr(engine, "_tokens", 400)
    for number in range(6):
        engine.start(f"a{number}", "a", InferenceRequest(MESSAGES, max_tokens=40))
    engine.step()
    most = engine._rows[0].most
    assert [row.name for row in engine._rows] == [f"a{number}" for number in range(200 // most)]
    engine.start("b0", "b", InferenceRequest(MESSAGES, max_tokens=40))
    engine.step()
    assert engine._rows[-1].name == "b0", "it has overtaken what waits of the other slot"
    longest_step(engine)


@pytest.mark.thorough
def test_a_request_that_alone_is_over_half_of_the_room_is_answered(
    engine: ServingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_tokens", 80)
    for number in range(3):
        engine.start(f"{number}", "a", InferenceRequest(MESSAGES, max_tokens=40))
    engine.step()
    assert engine.answering == 1
    longest_step(engine)
