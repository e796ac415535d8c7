"""A sequence that outgrows the model's short rotary positions during generation is read again with the long ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from appliance.ml.data.rows import Sample
from appliance.ml.evaluation.evaluation import measure_losses
from appliance.ml.inference import sampling, score
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.cache import Cache, RequestCache
from appliance.ml.inference.request import InferenceRequest
from appliance.ml.inference.sampling import Lookahead, draw_tokens
from appliance.ml.inference.score import find_branches, score_in_passes
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.serving import engine as engine_module
from appliance.ml.serving.engine import Done, ServingEngine
from appliance.ml.training.loop import sample_losses
from scripts.kit.tiny_model import build_base
from tests.kit.scoring import score_labels

MESSAGES = ({"role": "user", "content": "pay and due in clause 3"},)
COUNT = 14
AFTER = 5
"""Tokens that an answer to MESSAGES has before it is long."""
LABELS = [[10, 11, 2], [10, 12, 2], [10, 12, 13, 2], [20, 2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Phi-4 whose first positions end some tokens behind the prompt of MESSAGES."""
    folder = build_base(tmp_path_factory.mktemp("phi4") / "base", "phi4")
    length = len(_load(folder).chat.encode(_load(folder).chat.render(MESSAGES))) + AFTER
    config = json.loads((folder / "config.json").read_bytes())
    config["original_max_position_embeddings"] = length
    config["rope_parameters"]["original_max_position_embeddings"] = length
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _load(folder: Path) -> LoadedBase:
    machine.use_determinism(7)
    return load_base(folder, quantisation="none", compute_dtype="float32", device="cpu", own_layers=True)


@pytest.fixture
def base(folder: Path) -> LoadedBase:
    return _load(folder)


@pytest.fixture
def likeliest(folder: Path) -> Callable[[list[int], int], list[int]]:
    """By transformers: every token by the whole sequence before it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    @torch.inference_mode()
    def draw(ids: list[int], count: int) -> list[int]:
        drawn: list[int] = []
        for _ in range(count):
            drawn.append(int(model(torch.tensor([ids + drawn]), use_cache=False).logits[0, -1].argmax()))
        return drawn

    return draw


def _finish(engine: ServingEngine) -> dict[str, str]:
    texts: dict[str, str] = {}
    while engine.busy:
        for event in engine.step():
            assert isinstance(event.content, str | Done)
            if isinstance(event.content, str):
                texts[event.name] = texts.get(event.name, "") + event.content
    return texts


def test_an_answer_that_becomes_long_is_the_library_s(
    base: LoadedBase, likeliest: Callable[[list[int], int], list[int]]
) -> None:
    prompt = base.chat.encode(base.chat.render(MESSAGES))
    assert not base.is_long(len(prompt) + AFTER) and base.is_long(len(prompt) + AFTER + 1)
    expected = likeliest(prompt, COUNT)
    assert list(draw_tokens(base, None, prompt, InferenceRequest(MESSAGES, COUNT), COUNT)) == expected
    engine = ServingEngine(base)
    engine.start("1", None, InferenceRequest(MESSAGES, max_tokens=COUNT))
    assert _finish(engine) == {"1": base.chat.decode(expected)}
    assert list(draw_tokens(base, engine.slots, prompt, InferenceRequest(MESSAGES, COUNT), COUNT)) == expected


def test_the_library_s_modules_are_shown_each_sequence_by_itself(
    folder: Path, likeliest: Callable[[list[int], int], list[int]]
) -> None:
    """For methods that go through them, whose base has no layers by hand: losses beside a longer row, and drawing."""
    machine.use_determinism(7)
    base = load_base(folder, quantisation="none", compute_dtype="float32", device="cpu")
    assert base.reads_sequences_separately and not base.uses_library_modules
    prompt = base.chat.encode(base.chat.render(MESSAGES))
    assert list(draw_tokens(base, None, prompt, InferenceRequest(MESSAGES, COUNT), COUNT)) == likeliest(prompt, COUNT)
    long = [7 * number % 300 + 3 for number in range(2 * (base.longest_short or 0))]
    rows = [Sample(0, tuple(long[:20]), ((17, 20),)), Sample(1, tuple(long), ((len(long) - 3, len(long)),))]
    together = sample_losses(base, None, rows)
    for row, loss in zip(rows, together, strict=True):
        logits = base.model(torch.tensor([row.ids]), use_cache=False).logits[0, -4:-1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(row.ids[-3:]), reduction="sum")
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    losses = measure_losses(base, rows, lambda rows, tokens: None)
    assert sum(losses) == pytest.approx(together.sum().item(), rel=1e-5)


def test_without_reading_again_the_answer_would_be_another(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = base.chat.encode(base.chat.render(MESSAGES))
    expected = list(draw_tokens(base, None, prompt, InferenceRequest(MESSAGES, COUNT), COUNT))
    monkeypatch.setattr("appliance.ml.inference.sampling.begin_long", lambda *_: False)
    other = list(draw_tokens(base, None, prompt, InferenceRequest(MESSAGES, COUNT), COUNT))
    assert other != expected and other[: AFTER + 1] == expected[: AFTER + 1]


@pytest.mark.thorough
def test_an_answer_that_becomes_long_has_the_same_bits_beside_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are long from their first token, become long at another one, or stay short."""
    monkeypatch.setattr(engine_module, "PROMPT_CHUNK", 16)
    asked = {
        "1": InferenceRequest(MESSAGES, max_tokens=COUNT, temperature=1.0, seed=1),
        "2": InferenceRequest(({"role": "user", "content": "pay"},), max_tokens=40, temperature=1.0, seed=2),
        "3": InferenceRequest(
            ({"role": "user", "content": "secret " * 20},), max_tokens=COUNT, temperature=1.0, seed=3
        ),
        "4": InferenceRequest(({"role": "user", "content": "fee"},), max_tokens=2, temperature=1.0, seed=4),
    }
    together, seen = _watch(ServingEngine(_load(folder)), asked, monkeypatch)
    for name, request in asked.items():
        alone, bits = _watch(ServingEngine(_load(folder)), {name: request}, monkeypatch)
        assert alone[name] == together[name] and len(seen[name]) == len(bits[name])
        assert all(torch.equal(one, other) for one, other in zip(seen[name], bits[name], strict=True))


def _watch(
    engine: ServingEngine, asked: dict[str, InferenceRequest], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, str], dict[str, list[torch.Tensor]]]:
    """Each request's text, and the logits of each of its tokens."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in asked}
    plain = ServingEngine._draw

    def draw(self: ServingEngine, row: Any, lookahead: Any) -> Any:
        assert isinstance(lookahead, Lookahead)
        seen[row.name].append(lookahead.logits.clone())
        return plain(self, row, lookahead)

    with monkeypatch.context() as patch:
        patch.setattr(ServingEngine, "_draw", draw)
        for name, request in asked.items():
            engine.start(name, None, request)
        return _finish(engine), seen


@pytest.mark.parametrize("before", [1, 2, 3])
def test_the_longest_label_makes_a_classified_row_a_long_sequence(
    base: LoadedBase, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one pass and in several."""
    assert base.longest_short is not None
    prompt = [7 * number % 300 + 3 for number in range(base.longest_short - before + 1)]
    one = score_labels(base, prompt, LABELS)
    monkeypatch.setattr(score, "PASS_TOKENS", 0)
    held, cache = RequestCache(), Cache("cpu", 512)
    *_, passes = score_in_passes(base, cache, held, prompt, find_branches(LABELS), len(LABELS))
    assert passes == pytest.approx(one, abs=1e-4)
    assert held.long == (before < 3), "the longest path behind the prompt has two tokens"


def test_what_was_held_of_a_short_sequence_is_zeroed_before_it_is_read_again(base: LoadedBase) -> None:
    slots, cache, held = AdapterSlots(base), Cache("cpu", 512), RequestCache()
    prompt = [7 * number % 300 + 3 for number in range(base.longest_short or 0)]
    sampling.read_prompt(base, slots, cache, held, prompt)
    blocks = list(held.blocks)
    assert sampling.begin_long(base, cache, held) and (held.length, held.blocks, held.long) == (0, [], True)
    assert not any(bool(tensor[blocks].any()) for pair in cache._layers.values() for tensor in pair)
    assert not sampling.begin_long(base, cache, held), "once"
