"""The cache of prompt beginnings: identical bits, separate slots, and memory that is zeroed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import ApplianceError
from appliance.ml.inference import cache, sampling
from appliance.ml.inference.cache import Prefixes, Prompt
from appliance.ml.inference.request import InferenceRequest
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.serving import engine
from appliance.ml.serving.engine import Done
from tests.kit.mixes import MODULES, Watched, plain_adapter, same_bits

PIECE = 16
SYSTEM = "the fee is due in clause 4 and the secret ends in clause 9 " * 3
MIB = 1 << 20


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK", PIECE)
    monkeypatch.setattr("appliance.ml.inference.cache.BLOCK", PIECE)
    monkeypatch.setattr(sampling, "PIECE", PIECE)
    monkeypatch.setattr(sampling, "PROMPT_CHUNK", 2 * PIECE)
    monkeypatch.setattr(engine, "PROMPT_CHUNK", 2 * PIECE)


def _ask(text: str, scope: str | None = "s", **changes: Any) -> InferenceRequest:
    messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": text})
    return InferenceRequest(messages, **{"max_tokens": 6, "scope": scope, **changes})


def _make(base: LoadedBase, *slots: str, most: int = MIB) -> Watched:
    watched = Watched(base, most)
    for slot in slots or ("a", "b"):
        _fill(watched, slot, 1 if slot != "other" else 2)
    return watched


def _fill(watched: Watched, slot: str, seed: int = 1) -> None:
    """As a load does, without a probe."""
    watched.slots.load(slot, *plain_adapter(watched.base, seed, 8, MODULES))
    watched._prefixes.open(slot)


def _run(watched: Watched, name: str, request: InferenceRequest, slot: str = "a") -> Done:
    watched.start(name, slot, request)
    return _finish(watched)[name]


def _finish(watched: Watched) -> dict[str, Done]:
    ends: dict[str, Done] = {}
    while watched.busy:
        for event in watched.step():
            assert not isinstance(event.content, ApplianceError), event.content
            if isinstance(event.content, Done):
                ends[event.name] = event.content
    return ends


def _kept(watched: Watched) -> list[torch.Tensor]:
    return [one for shelf in watched._prefixes._slot_caches.values() for one in shelf.pieces.values()]


@pytest.fixture(params=["nf4-double bfloat16", "none float32", "gptq bfloat16"])
def any_base(base_folder: Path, gptq_folder: Path, request: pytest.FixtureRequest) -> Iterator[LoadedBase]:
    machine.use_determinism(0)
    quantisation, dtype = request.param.split()
    folder = gptq_folder if quantisation == "gptq" else base_folder
    yield load_base(folder, quantisation=quantisation, compute_dtype=dtype, device="cpu", own_layers=True)


@pytest.mark.thorough
def test_what_was_read_before_is_not_read_again_and_the_bits_are_those_of_a_first_reading(any_base: LoadedBase) -> None:
    """Alone, beside others of the slot, and in a batch over two adapters."""
    texts = ["pay", "pay and due", "what is the price of a cut", "pay"]
    first = {text: _first_bits(any_base, text) for text in texts}
    watched = _make(any_base, "a", "other")
    for number, text in enumerate(texts):
        done = _run(watched, f"{number}", _ask(text))
        assert (done.cached_tokens or 0) > PIECE if number else done.cached_tokens == 0
        assert all(map(same_bits, watched.seen[f"{number}"], first[text])), text
    for number, text in enumerate(texts):
        watched.start(f"together {number}", "a", _ask(text))
        watched.start(f"other {number}", "other", _ask(text))
    ends = _finish(watched)
    for number, text in enumerate(texts):
        assert (ends[f"together {number}"].cached_tokens or 0) > PIECE
        assert all(map(same_bits, watched.seen[f"together {number}"], first[text])), text
        assert not same_bits(watched.seen[f"other {number}"][0], first[text][0])
    watched.slots.remove()


def _first_bits(base: LoadedBase, text: str, **changes: Any) -> list[torch.Tensor]:
    plain = _make(base, "a", most=0)
    assert _run(plain, "first", _ask(text, **changes)).cached_tokens == 0
    plain.slots.remove()
    return plain.seen["first"]


def _tokens(base: LoadedBase, count: int) -> list[int]:
    """So many tokens of no meaning."""
    return [7 * number % 200 + 3 for number in range(count)]


@pytest.mark.parametrize("count", [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1, 5 * PIECE, 5 * PIECE + 3])
def test_a_prompt_of_any_length_leaves_its_last_token_to_be_read(base: LoadedBase, count: int) -> None:
    """Shorter than a piece, at a boundary, the whole of it kept: the bits are those of a reading without a cache."""
    prompts, found = Prefixes(PIECE, MIB, torch.float32), []
    prompts.open("a")
    prompts.enter("a", "s")
    ids = _tokens(base, count)
    for _ in range(3):
        held, store = cache.RequestCache(), cache.Cache("cpu", 512)
        if count == 1 or not found:
            store = cache.Cache("cpu", 512)
        prompt = Prompt("a", "s", ids, held)
        # Layers are made when the first prompt is read, as in an engine.
        sampling.read_prompt(base, None, store, cache.RequestCache(), [5])
        restored = prompts.restore(store, prompt)
        assert restored == (0 if not found else (count - 1) // PIECE * PIECE)
        while held.length < count:
            start = held.length
            logits = sampling.read_prompt(base, None, store, held, ids[start : start + 2 * PIECE])
            prompts.keep(store, prompt, start)
        found.append(logits.float())
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


def test_another_slot_sees_nothing_of_what_was_read(base: LoadedBase) -> None:
    """The same prompt, the same adapter, the same scope: neither counts nor bits nor what is read tell of it."""
    watched = _make(base, "legal/labels/7", "claims/labels/9")
    _run(watched, "theirs", _ask("pay"), "legal/labels/7")
    read: list[int] = []
    plain = engine.read_prompt

    def counted(base: LoadedBase, slots: Any, store: Any, held: Any, chunk: Any) -> torch.Tensor:
        read.append(len(chunk))
        return plain(base, slots, store, held, chunk)

    engine.read_prompt = counted  # type: ignore[assignment]
    try:
        done = _run(watched, "mine", _ask("pay"), "claims/labels/9")
    finally:
        engine.read_prompt = plain  # type: ignore[assignment]
    assert (done.cached_tokens, sum(read)) == (0, done.prompt_tokens)
    marks = [set(shelf.pieces) for shelf in watched._prefixes._slot_caches.values()]
    assert all(marks) and not set.intersection(*marks)
    storages = {one.untyped_storage().data_ptr() for one in _kept(watched)}
    assert len(storages) == len(_kept(watched)), "each has memory of its own"


def test_requests_of_another_scope_share_nothing_and_end_what_was_kept(base: LoadedBase) -> None:
    """A raised token epoch is another scope. A request that came before it neither reads nor writes any more."""
    watched = _make(base, "a")
    _run(watched, "1", _ask("pay", "before"))
    old = _kept(watched)
    assert old and all(one.any() for one in old)
    watched.start("late", "a", _ask("pay and due", "before"))
    watched.start("2", "a", _ask("pay", "after"))
    assert not any(one.any() for one in old) and not _kept(watched)
    ends = _finish(watched)
    assert (ends["late"].cached_tokens, ends["2"].cached_tokens) == (0, 0)
    assert _run(watched, "3", _ask("pay", "after")).cached_tokens
    assert _run(watched, "4", _ask("pay", None)).cached_tokens == 0, "a request without a scope shares nothing"


def test_a_slot_that_is_emptied_leaves_zeros(base: LoadedBase) -> None:
    """Also in the middle of a prompt; the adapter that comes back in another slot has nothing."""
    watched = _make(base, "a", "b")
    _run(watched, "1", _ask("pay"))
    _run(watched, "2", _ask("pay"), "b")
    watched.start("3", "a", _ask("what is cut off in the middle"))
    watched.step()
    mine = list(watched._prefixes._slot_caches["a"].pieces.values())
    theirs = list(watched._prefixes._slot_caches["b"].pieces.values())
    (cut,) = watched.unload("a")
    assert cut.name == "3" and not any(one.any() for one in mine)
    assert all(one.any() for one in theirs)
    assert not any(tensor.any() for pair in watched._cache._layers.values() for tensor in pair)
    _fill(watched, "a2")
    assert _run(watched, "4", _ask("pay"), "a2").cached_tokens == 0


def test_an_answer_left_in_the_middle_of_its_prompt_keeps_whole_pieces_only(base: LoadedBase) -> None:
    watched = _make(base, "a")
    watched.start("1", "a", _ask("pay"))
    watched.step()
    watched.cancel("1")
    assert len(_kept(watched)) == 2 and watched._cache.used == 0
    done = _run(watched, "2", _ask("pay"))
    assert done.cached_tokens == 2 * PIECE
    watched.slots.remove()
    assert all(map(same_bits, watched.seen["2"], _first_bits(base, "pay")))


def test_two_requests_at_once_read_their_beginning_once(base: LoadedBase) -> None:
    watched = _make(base, "a")
    watched.start("1", "a", _ask("pay"))
    watched.start("2", "a", _ask("pay and due"))
    ends = _finish(watched)
    assert ends["1"].cached_tokens == 0 and (ends["2"].cached_tokens or 0) > PIECE
    watched.slots.remove()
    for name, text in (("1", "pay"), ("2", "pay and due")):
        assert all(map(same_bits, watched.seen[name], _first_bits(base, text)))


def test_a_share_is_never_exceeded_and_what_was_used_longest_ago_goes_first_as_zeros(base: LoadedBase) -> None:
    """Each slot has its own: what others ask takes nothing of it."""
    probe = _make(base, "a")
    _run(probe, "1", _ask("pay"))
    piece = _kept(probe)[0].nbytes
    probe.slots.remove()
    watched = _make(base, "a", "b", most=2 * 6 * piece)
    _run(watched, "1", _ask("pay"))
    first = list(watched._prefixes._slot_caches["a"].pieces.values())
    prompts = [InferenceRequest((), 2, prompt=f"{word} " * 40, scope="s") for word in ("fee", "end", "cut", "due")]
    for number, request in enumerate(prompts):
        _run(watched, f"b {number}", request, "b")
        assert sum(one.size for one in watched._prefixes._slot_caches.values()) <= 2 * 6 * piece
    assert (_run(watched, "2", _ask("pay")).cached_tokens or 0) > PIECE, "b took nothing of a"
    for number, request in enumerate(prompts):
        _run(watched, f"a {number}", request)
        assert watched._prefixes._slot_caches["a"].size <= 6 * piece
    assert not any(one.any() for one in first)
    assert _run(watched, "3", _ask("pay")).cached_tokens == 0
    _fill(watched, "c")
    assert sum(one.size for one in watched._prefixes._slot_caches.values()) <= 2 * 6 * piece


def test_without_memory_for_it_nothing_is_kept(base: LoadedBase) -> None:
    watched = _make(base, "a", most=0)
    for name in ("1", "2"):
        assert _run(watched, name, _ask("pay")).cached_tokens == 0
    assert not _kept(watched)


@pytest.mark.thorough
def test_an_answer_held_to_labels_or_a_schema_shares_its_beginning(base: LoadedBase) -> None:
    schema = {"type": "object", "properties": {"due": {"type": "boolean"}}, "required": ["due"]}
    asked: list[dict[str, Any]] = [{"labels": ("pay", "fee")}, {"schema": schema}, {"temperature": 1.0, "seed": 4}]
    expected = [_first_bits(base, "pay and due", **changes) for changes in asked]
    watched = _make(base, "a")
    _run(watched, "before", _ask("pay"))
    for number, changes in enumerate(asked):
        done = _run(watched, f"{number}", _ask("pay and due", **changes))
        assert (done.cached_tokens or 0) > PIECE
        assert all(map(same_bits, watched.seen[f"{number}"], expected[number]))
