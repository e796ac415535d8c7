"""The engine answers only through a slot whose fingerprint is the sealed one, and streams exactly what it drew."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import ApplianceError, BadInput, Conflict, Denied, Tampered, TooLarge, Unavailable
from appliance.ml.inference import score
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.reading import encode_fingerprint, encode_number, read_fingerprint
from appliance.ml.inference.request import LEAST_TEMPERATURE, InferenceRequest, parse_request
from appliance.ml.inference.sampling import Lookahead, draw_token, draw_tokens, make_lookahead
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.serving.engine import Done, RequestEvent, ServingEngine
from tests.kit.scoring import score_labels
from tests.ml.inference.test_adapters import make_adapter

MESSAGES = ({"role": "user", "content": "pay and due in clause 3"},)
Sealed = tuple[bytes, bytes, dict[str, Any]]


@pytest.fixture
def sealed(base_folder: Path) -> Sealed:
    """Return (configuration, weights, fingerprint) as evaluation would seal them, read in another model."""
    config, weights, _, _ = make_adapter(base_folder, 1)
    theirs = load_base(base_folder, quantisation="nf4-double", compute_dtype="float32", device="cpu", own_layers=True)
    slots = AdapterSlots(theirs)
    slots.load("evaluated", config, weights)
    with slots.using("evaluated"):
        adapted = read_fingerprint(theirs)
    return config, weights, encode_fingerprint(theirs, read_fingerprint(theirs), adapted)


@pytest.fixture
def engine(base: LoadedBase, sealed: Sealed) -> ServingEngine:
    engine = ServingEngine(base)
    engine.load("a", *sealed)
    return engine


def _finish(engine: ServingEngine) -> dict[str, tuple[str, Done | ApplianceError]]:
    """Step until all requests are answered. Return each one's text and end."""
    texts: dict[str, str] = {}
    ends: dict[str, Done | ApplianceError] = {}
    while engine.busy:
        for event in engine.step():
            _note(event, texts, ends)
    return {name: (texts.get(name, ""), end) for name, end in ends.items()}


def _note(event: RequestEvent, texts: dict[str, str], ends: dict[str, Done | ApplianceError]) -> None:
    assert event.name not in ends, "nothing is told after the end"
    if isinstance(event.content, str):
        assert event.content, "no empty piece is sent"
        texts[event.name] = texts.get(event.name, "") + event.content
    else:
        ends[event.name] = event.content


def _answer(engine: ServingEngine, **changes: Any) -> tuple[Done, str]:
    engine.start("1", "a", InferenceRequest(**{"messages": MESSAGES, "max_tokens": 12, **changes}))
    text, end = _finish(engine)["1"]
    assert isinstance(end, Done)
    return end, text


def _greedy(base: LoadedBase, count: int) -> list[int]:
    """Return the likeliest tokens by whole passes without a cache."""
    ids = base.chat.encode(base.chat.render(MESSAGES))
    drawn: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            hidden = base.hidden(input_ids=torch.tensor([ids + drawn]), use_cache=False)[0, -1]
            drawn.append(int((hidden @ base.head().weight.T).argmax()))
    return drawn


@pytest.mark.thorough
def test_the_cache_changes_no_token(engine: ServingEngine) -> None:
    """Nor does it where an evaluation writes the answer out, with the adapter in use."""
    prompt = engine.base.chat.encode(engine.base.chat.render(MESSAGES))
    with engine.slots.using("a"):
        expected = _greedy(engine.base, 12)
        assert (
            list(draw_tokens(engine.base, engine.slots, prompt, InferenceRequest(MESSAGES, max_tokens=12), 12))
            == expected
        )
    answer, text = _answer(engine)
    assert text == engine.base.chat.decode(expected)
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 12)
    assert answer.prompt_tokens == len(engine.base.chat.encode(engine.base.chat.render(MESSAGES)))


@pytest.mark.thorough
def test_an_adapter_writes_its_own_answers_after_the_base_wrote(base: LoadedBase, sealed: Sealed) -> None:
    """As an evaluation does: what was laid out for the base alone is not used for the adapter."""
    slots, prompt = AdapterSlots(base), base.chat.encode(base.chat.render(MESSAGES))
    plain = list(draw_tokens(base, slots, prompt, InferenceRequest(MESSAGES, max_tokens=12), 12))
    slots.load("a", *sealed[:2])
    with slots.using("a"):
        expected = _greedy(base, 12)
        assert (
            list(draw_tokens(base, slots, prompt, InferenceRequest(MESSAGES, max_tokens=12), 12)) == expected != plain
        )
    assert list(draw_tokens(base, slots, prompt, InferenceRequest(MESSAGES, max_tokens=12), 12)) == plain


@pytest.mark.thorough
def test_a_seed_fixes_every_draw(engine: ServingEngine) -> None:
    drawn = {seed: _answer(engine, temperature=1.0, seed=seed)[1] for seed in range(4)}
    assert drawn == {seed: _answer(engine, temperature=1.0, seed=seed)[1] for seed in range(4)}
    assert len(set(drawn.values())) > 1


def test_a_stop_text_ends_the_answer_and_is_not_sent(engine: ServingEngine) -> None:
    _, whole = _answer(engine)
    stop = whole[3:6]
    answer, text = _answer(engine, stop=(stop,))
    assert text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"


@pytest.mark.thorough
def test_the_beginning_of_a_stop_text_that_does_not_come_is_sent_in_the_end(engine: ServingEngine) -> None:
    _, whole = _answer(engine)
    assert _answer(engine, stop=(whole[-1] + "never",))[1] == whole


def test_the_end_of_the_turn_ends_the_answer(engine: ServingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.slots.using("a"):
        tokens = _greedy(engine.base, 3)
    monkeypatch.setattr(type(engine.base.chat), "stop_ids", lambda chat: frozenset({tokens[2]}))
    answer, text = _answer(engine)
    assert answer.finish_reason == "stop"
    assert text == engine.base.chat.decode(tokens[: tokens.index(tokens[2])])


LABELS = ("payment", "secrecy", "ending", "pay")


def test_an_answer_held_to_labels_is_one_of_them(engine: ServingEngine) -> None:
    """`pay` begins `payment`: the end of the turn tells them apart."""
    drawn = [_answer(engine, labels=LABELS, temperature=2.0, seed=seed, max_tokens=30) for seed in range(6)]
    assert {text for _, text in drawn} <= set(LABELS)
    assert {end.finish_reason for end, _ in drawn} == {"stop"}
    assert len({text for _, text in drawn}) > 1
    with pytest.raises(BadInput, match="control tokens"):
        _answer(engine, labels=("a<|im_end|>",))


def _classify(engine: ServingEngine, **changes: Any) -> tuple[dict[str, float], Done]:
    engine.classify("c", "a", InferenceRequest(**{"messages": MESSAGES, "max_tokens": 1, "labels": LABELS, **changes}))
    text, end = _finish(engine)["c"]
    assert isinstance(end, Done), end
    return json.loads(text), end


def test_a_classification_is_what_an_evaluation_scores(engine: ServingEngine) -> None:
    chat = engine.base.chat
    found, done = _classify(engine)
    prompt, labels = chat.encode(chat.render(MESSAGES)), [chat.encode(chat.answer(label)) for label in LABELS]
    with engine.slots.using("a"):
        scores = score_labels(engine.base, prompt, labels)
    assert found == dict(zip(LABELS, (f"{math.exp(score):.9f}" for score in scores), strict=True))
    assert sum(map(float, found.values())) == pytest.approx(1, abs=1e-6)
    assert done == Done("classified", len(prompt), 0)
    with pytest.raises(BadInput, match="labels: expected at least one"):
        engine.classify("2", "a", InferenceRequest(MESSAGES, max_tokens=1))


@pytest.mark.thorough
def test_a_long_classification_takes_turns_with_answers_and_says_the_same(
    engine: ServingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt and labels in passes of a few tokens: between any two of them the other request gets its next token."""
    found, _ = _classify(engine)
    for name in ("PASS_TOKENS", "PROMPT_CHUNK"):
        monkeypatch.setattr(score, name, 16)
    engine.start("1", "a", InferenceRequest(MESSAGES, max_tokens=40))
    engine.step()
    before, steps = engine.answering, 0
    engine.classify("c", "a", InferenceRequest(MESSAGES, max_tokens=1, labels=LABELS))
    pieces: list[RequestEvent] = []
    while engine.busy and not any(event.name == "c" for event in pieces):
        drawn = engine._rows[0].completion_tokens
        pieces += engine.step()
        steps += 1
        assert engine._rows[0].completion_tokens == drawn + 1, "a token at every step"
    assert steps >= 4
    assert engine.answering == before, "it has left, and its blocks with it"
    passes = json.loads(next(event.content for event in pieces if event.name == "c"))  # type: ignore[arg-type]
    assert {label: float(value) for label, value in passes.items()} == pytest.approx(
        {label: float(value) for label, value in found.items()}, rel=1e-4
    )
    _finish(engine)
    assert engine._cache.used == 0


def test_a_classification_that_is_cut_off_holds_nothing(engine: ServingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PASS_TOKENS", "PROMPT_CHUNK"):
        monkeypatch.setattr(score, name, 16)
    engine.classify("c", "a", InferenceRequest(MESSAGES, max_tokens=1, labels=LABELS))
    computed = engine.computed
    assert engine.step() == [] and engine.computed == computed + 1, "a pass of which nothing is told counts"
    assert engine._cache.used > 0
    (cut,) = engine.unload("a")
    assert (cut.name, cut.content.code) == ("c", "cut-off")  # type: ignore[union-attr]
    assert engine._cache.used == 0
    assert not engine.busy


@pytest.mark.parametrize("passes", [True, False])
def test_a_classification_of_logits_that_are_no_numbers_is_refused(
    engine: ServingEngine, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    if passes:
        monkeypatch.setattr(score, "PASS_TOKENS", 0)
    broken = {"read_after", "read_chunk"} if passes else {"branch_scores"}
    plain = {name: getattr(score, name) for name in broken}
    for name, function in plain.items():
        monkeypatch.setattr(score, name, lambda *given, function=function: function(*given) * float("nan"))
    engine.classify("c", "a", InferenceRequest(MESSAGES, max_tokens=1, labels=LABELS))
    text, end = _finish(engine)["c"]
    assert isinstance(end, Unavailable) and (text, end.code) == ("", "not-finite")


@pytest.mark.thorough
def test_a_batch_that_fails_behind_its_last_layer_is_tried_again_from_where_it_began(
    engine: ServingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish() -> dict[str, tuple[str, Done | ApplianceError]]:
        for name in "123":
            engine.start(name, "a", InferenceRequest(({"role": "user", "content": f"pay {name}"},), max_tokens=8))
        return _finish(engine)

    def fail(logits: torch.Tensor) -> list[Lookahead]:
        if len(logits) > 1:
            raise MemoryError
        return make_lookahead(logits)

    whole = finish()
    monkeypatch.setattr("appliance.ml.serving.engine.make_lookahead", fail)
    assert finish() == whole


def test_a_prompt_that_is_text_is_gone_on_with_as_it_is(engine: ServingEngine) -> None:
    """The text of a rendered prompt cannot be smuggled in: it holds control tokens."""
    prompt = "pay and due in clause 3"
    end, text = _answer(engine, messages=(), prompt=prompt, max_tokens=5)
    ids = engine.base.chat.encode(prompt)
    with engine.slots.using("a"):
        expected = list(draw_tokens(engine.base, engine.slots, ids, InferenceRequest((), max_tokens=5), 5))
    assert (end.prompt_tokens, text) == (len(ids), engine.base.chat.decode(expected))
    with pytest.raises(BadInput, match="prompt: expected text without control tokens"):
        _answer(engine, messages=(), prompt=engine.base.chat.render(MESSAGES))


def test_a_cancelled_answer_ends_at_once(engine: ServingEngine) -> None:
    engine.start("1", "a", InferenceRequest(MESSAGES, max_tokens=50))
    for _ in range(3):
        engine.step()
    (*_, end) = engine.cancel("1")
    assert (end.name, end.content) == ("1", Done("cancelled", end.content.prompt_tokens, 4, 0))  # type: ignore[union-attr]
    assert not engine.busy
    assert engine.cancel("1") == []


@pytest.fixture
def shared(engine: ServingEngine, sealed: Sealed) -> ServingEngine:
    """Return an engine in which three units have a slot."""
    for unit in ("legal", "claims", "sales"):
        engine.load(f"{unit}/labels/1", *sealed)
    return engine


def _fill(engine: ServingEngine, count: int) -> None:
    for number in range(count):
        for unit in ("legal", "claims"):
            engine.start(f"{unit}-{number}", f"{unit}/labels/1", InferenceRequest(MESSAGES, max_tokens=100))


def test_a_unit_joins_the_batch_in_the_next_step_while_two_others_hold_the_services_places(
    shared: ServingEngine,
) -> None:
    _fill(shared, 16)
    shared.step()
    assert shared.answering == 32
    shared.start("late", "sales/labels/1", InferenceRequest(MESSAGES, max_tokens=2))
    shared.step()
    assert shared.answering == 33 and not shared._waiting


def test_units_that_fill_the_cache_leave_room_for_another(shared: ServingEngine) -> None:
    """With two units each holds at most a third of the room, whatever waits."""
    _fill(shared, 4)
    most = shared._waiting[0].most
    shared._tokens = 6 * most
    shared.step()
    assert sorted(row.unit for row in shared._rows) == ["claims", "claims", "legal", "legal"]
    shared.start("late", "sales/labels/1", InferenceRequest(MESSAGES, max_tokens=100))
    shared.step()
    assert shared._rows[-1].name == "late" and len(shared._waiting) == 4


def test_a_request_that_comes_when_its_slot_was_emptied_is_cut_off(base: LoadedBase) -> None:
    with pytest.raises(Denied, match=r"The answer was cut off because its adapter was unloaded\.") as refused:
        ServingEngine(base).start("1", "a", InferenceRequest(MESSAGES, max_tokens=1))
    assert refused.value.code == "cut-off"


def test_a_prompt_over_the_context_is_refused_and_a_long_answer_cut(engine: ServingEngine) -> None:
    with pytest.raises(TooLarge, match="expected fewer than 256 tokens"):
        _answer(engine, messages=({"role": "user", "content": "x y " * 300},))
    answer, _ = _answer(engine, messages=({"role": "user", "content": "x y " * 50},), max_tokens=10_000)
    assert answer.prompt_tokens + answer.completion_tokens == 256


Spoil = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda fingerprint: fingerprint["adapter_logits"].__setitem__(0, "0.125"),
        lambda fingerprint: fingerprint["base_logits"].__setitem__(7, "0.125"),
        lambda fingerprint: fingerprint.__setitem__("adapter_digest", fingerprint["base_digest"]),
        lambda fingerprint: fingerprint["tokens"].pop(),
        lambda fingerprint: fingerprint.pop("indices"),
        lambda fingerprint: fingerprint.clear(),
    ],
)
def test_another_probe_than_the_sealed_one_leaves_the_slot_empty(
    base: LoadedBase, sealed: Sealed, spoil: Spoil
) -> None:
    engine, (config, weights, fingerprint) = ServingEngine(base), sealed
    spoil(fingerprint)
    with pytest.raises(Tampered, match="logit fingerprint, "):
        engine.load("a", config, weights, fingerprint)
    assert "a" not in engine.slots
    assert engine.slots.active is None


def test_one_changed_weight_is_seen(base: LoadedBase, sealed: Sealed) -> None:
    config, weights, fingerprint = sealed
    changed = bytearray(weights)
    changed[-1] ^= 0x01
    with pytest.raises(Tampered, match="logit fingerprint, adapter_"):
        ServingEngine(base).load("a", config, bytes(changed), fingerprint)


def test_another_compute_dtype_is_seen(base_folder: Path, sealed: Sealed) -> None:
    """Serve the tuple that was evaluated: the same weights in bf16 are another model."""
    machine.use_determinism(0)
    other = load_base(base_folder, quantisation="nf4-double", compute_dtype="bfloat16", device="cpu")
    with pytest.raises(Tampered, match="logit fingerprint, base_logits"):
        ServingEngine(other).load("a", *sealed)


def test_an_adapter_that_does_nothing_is_refused(base_folder: Path) -> None:
    from appliance.ml.training import methods
    from scripts.kit.tiny_model import RECIPE

    theirs = load_base(base_folder, quantisation="nf4-double", compute_dtype="float32", device="cpu")
    weights, config = methods.encode_adapter(methods.attach_adapter(theirs, RECIPE), "tiny")
    base = load_base(base_folder, quantisation="nf4-double", compute_dtype="float32", device="cpu")
    plain = read_fingerprint(base)
    with pytest.raises(Tampered, match="expected the adapter to change the logits") as caught:
        ServingEngine(base).load("a", config, weights, encode_fingerprint(base, plain, plain))
    assert caught.value.code == "adapter-inactive"


def test_a_slot_is_filled_once(engine: ServingEngine, sealed: Sealed) -> None:
    with pytest.raises(Conflict):
        engine.load("a", *sealed)
    assert "a" in engine.slots, "a refused second load does not empty the first"


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)

    def draw(top_p: float, temperature: float) -> set[int]:
        request = InferenceRequest(MESSAGES, max_tokens=1, temperature=temperature, top_p=top_p)
        return {draw_token(logits, request, generator) for _ in range(300)}

    least = ((top_p, {0}) for top_p in (0.0, 5e-324, 1e-38, 1e-9))
    for top_p, possible in (*least, (0.5, {0}), (0.6, {0, 1}), (1.0, {0, 1, 2, 3})):
        assert draw(top_p, 1.0) == possible
        assert draw(top_p, LEAST_TEMPERATURE) == draw(top_p, 1e-3) == {0}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1"), (-12.5, "-12.5"), (1e-7, "0.0000001"), (16777216.0, "16777216.0"), (0.0, "0.0")],
)
def test_numbers_are_the_shortest_text_of_a_float32(value: float, text: str) -> None:
    assert encode_number(torch.tensor(value, dtype=torch.float32).item()) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "root", "content": "x"}]}, "message 0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "message 0"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": "text"}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"prompt": "x"}, "no messages with it"),
        ({"labels": ["x", "x"]}, "labels"),
        ({"labels": [1]}, "labels"),
    ],
)
def test_a_request_that_is_off_is_refused_naming_the_member(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_request({"messages": list(MESSAGES), **changes})
