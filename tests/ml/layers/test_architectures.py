"""Every architecture of the table against the library's own model: logits, a training step's gradient, decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from appliance.ml.data.rows import Sample
from appliance.ml.inference import sampling
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.cache import Cache, RequestCache
from appliance.ml.layers import architecture, fixed, scores
from appliance.ml.layers.architecture import TABLE, describe, find_architecture, find_gap
from appliance.ml.layers.decoder import Decoder, DecoderReader, fits_decoder
from appliance.ml.layers.packing import Pack, pack_sequences
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase
from appliance.ml.training import loop
from scripts.kit.tiny_model import KINDS, SAMPLE_KINDS, build_model

COMMON = [7, 50, 60, 70, 80, 90, 100, 110, 33]
# Below and beyond the window (8) and longrope's first length (16); the third shares nothing.
TAILS = ([5, 6, 7], list(range(20, 31)), [12])
SEQUENCES = [COMMON + tail for tail in TAILS]
LONG = [3 * number % 300 + 3 for number in range(40)]


def _load(kind: str, **changes: Any) -> Any:
    machine.use_determinism(3)
    model = build_model(kind).eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    return model


def _base(model: Any) -> LoadedBase:
    """Ours over the library's modules."""
    found = find_architecture(model)
    assert found is not None
    return LoadedBase(model, None, "cpu", reader=DecoderReader(model, found, kept_bytes=0))  # type: ignore[arg-type]


def _expected(model: Any, ids: list[int]) -> torch.Tensor:
    """[tokens, words], by the library, alone and without a cache."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def _differ(some: torch.Tensor, other: torch.Tensor) -> float:
    return float((some - other).abs().max() / other.abs().max())


def test_every_row_of_the_table_has_a_tiny_model() -> None:
    assert {f"{name}ForCausalLM" for name, _ in KINDS.values()} == set(TABLE)


@pytest.mark.parametrize(("block", "apart"), [(3, True), (scores.SCORE_BLOCK, True), (3, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_of_a_pack_are_those_of_each_sequence_in_the_library(
    kind: str, block: int, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows behind a common beginning, continuations of a row, and one long row alone; where a processor keeps rows
    apart by itself, and where it is shown one shape alone."""
    monkeypatch.setattr(scores, "SCORE_BLOCK", block)
    monkeypatch.setattr(fixed, "QUERIES", block)
    monkeypatch.setattr("appliance.ml.model.base.has_independent_rows", lambda device: apart)
    model = _load(kind)
    base = _base(model)
    for sequences in (SEQUENCES, [*SEQUENCES[:2], LONG], [LONG]):
        pack, segments = pack_sequences(sequences, longest_short=base.longest_short)
        got = base.head().logits(base.read_pack(pack))
        for ids, segment in zip(sequences, segments, strict=True):
            own = segment.stop - segment.start
            assert _differ(got[segment.start : segment.stop], _expected(model, ids)[-own:]) < 2e-5
    pack = Pack()
    root = pack.add(COMMON[:5])
    row = pack.add(COMMON[5:7], after=root)
    other = pack.add(COMMON[6:8], after=root)
    paths = [pack.add(tail, after=row) for tail in TAILS[::2]]
    got = base.head().logits(base.read_pack(pack))
    assert _differ(got[other.start : other.stop], _expected(model, COMMON[:5] + COMMON[6:8])[-2:]) < 2e-5
    for tail, path in zip(TAILS[::2], paths, strict=True):
        expected = _expected(model, COMMON[:7] + tail)
        assert _differ(got[path.start : path.stop], expected[-len(tail) :]) < 2e-5


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "block"), [*((kind, 3) for kind in KINDS), *((kind, scores.SCORE_BLOCK) for kind in SAMPLE_KINDS)]
)
def test_the_gradient_of_a_training_step_is_the_library_s(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "SCORE_BLOCK", block)
    model = _load(kind)
    roles = TABLE[type(model).__name__].modules.values()
    targets = sorted({name.rsplit(".", 1)[-1] for name in roles})
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    base = LoadedBase(model, None, "cpu")  # type: ignore[arg-type]
    samples = [Sample(place, tuple(ids), ((len(ids) - 3, len(ids)),)) for place, ids in enumerate([*SEQUENCES, LONG])]
    assert fits_decoder(model)
    for again in ("none", "layer"):
        for together in (samples[:3], samples):
            decoder = Decoder(model, again)  # type: ignore[arg-type]
            losses = loop.sample_losses(base, decoder, together)
            got = torch.autograd.grad(losses.sum(), trained)
            total = torch.zeros(())
            for sample, ours in zip(together, losses, strict=True):
                logits = wrapped(torch.tensor([sample.ids]), use_cache=False).logits[0, -4:-1]
                loss = torch.nn.functional.cross_entropy(logits, torch.tensor(sample.ids[-3:]), reduction="sum")
                assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
                total = total + loss
            for ours, theirs in zip(got, torch.autograd.grad(total, trained), strict=True):
                assert _differ(ours, theirs) < 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_token_by_token_is_the_whole_sequence_in_the_library(kind: str) -> None:
    """A prompt read in chunks, then tokens as rows of one batch whose requests are at other places, across the window's
    edge and beyond the first rope segment."""
    model = _load(kind)
    expected = {length: _expected(model, LONG[:length]) for length in range(2, len(LONG) + 1)}
    base = _base(model)
    slots, cache = AdapterSlots(base), Cache("cpu", 512)
    rows = [RequestCache(), RequestCache()]
    firsts = (3, 20)
    for held, first in zip(rows, firsts, strict=True):
        held.long = base.longest_short is not None and first > base.longest_short
        for start in range(0, first, 7):
            sampling.read_prompt(base, slots, cache, held, LONG[start : min(start + 7, first)])
    for step in range(12):
        ids = [LONG[first + step] for first in firsts]
        with slots.mixing([None, None]):
            got = sampling.read_drawn(base, slots, cache, rows, ids)
        for row, first in zip(got, firsts, strict=True):
            assert _differ(row, expected[first + step + 1][-1]) < 5e-5


def test_a_configuration_beyond_the_table_is_told_by_its_member() -> None:
    plain = {**build_model("llama").config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    cases = {
        "architectures: expected one of": {"architectures": ["BloomForCausalLM"]},
        "hidden_act: expected silu or gelu_pytorch_tanh, got 'relu'": {"hidden_act": "relu"},
        "num_local_experts: expected 0, got 8": {"num_local_experts": 8},
        "rope_type: expected default or linear": {"rope_parameters": {"rope_type": "dynamic"}},
        "layer_types: expected full_attention or sliding_attention, got 'mamba'": {"layer_types": ["mamba", "mamba"]},
    }
    assert find_gap(plain) is None
    for message, change in cases.items():
        gap = find_gap({**plain, **change})
        assert gap is not None and gap.startswith(message)
        assert describe({**plain, **change}) is None
    assert architecture.find_gap({"rope_scaling": {"type": "dynamic"}, **{"architectures": plain["architectures"]}})
