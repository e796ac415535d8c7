"""Computation for a card stays on it, checked on tensors that have only a shape and a device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from appliance.ml.data.rows import Sample
from appliance.ml.inference import sampling
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.cache import Cache, RequestCache
from appliance.ml.layers import packing, scores
from appliance.ml.layers.architecture import TABLE, find_architecture
from appliance.ml.layers.decoder import Decoder, DecoderReader
from appliance.ml.layers.packing import pack_sequences
from appliance.ml.model.base import LoadedBase
from appliance.ml.training import loop
from scripts.kit.tiny_model import KINDS, SAMPLE_KINDS, build_model

CARD = "meta"
aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
ROWS = [[5, 6, 7, 8, *range(20, 20 + more)] for more in (3, 9, 30)]


class OneDevice(TorchDispatchMode):
    """Refuses an operation that mixes devices, but for copies and indices: `meta` stands for a card, which no CPU's
    torch can name in every operation. What is copied from it has any values."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        # In inference mode an operation that is made of others comes whole.
        with self:
            made = function.decompose(*arguments, **named)
        if made is not NotImplemented:
            return made
        if function is aten._to_copy.default and (device := named.get("device")) is not None:
            (x,) = arguments
            if device.type != x.device.type:
                return torch.ones(x.shape, dtype=named.get("dtype") or x.dtype, device=device)
        if function is aten.copy_.default and arguments[0].device.type != arguments[1].device.type:
            return arguments[0]
        counted = arguments[:1] + arguments[2:] if function in INDEXED else arguments
        tensors = [one for one in tree_leaves((counted, named)) if isinstance(one, torch.Tensor) and one.dim()]
        devices = {one.device.type for one in tensors}
        assert len(devices) < 2, f"{function}: expected tensors of one device, got {', '.join(sorted(devices))}"
        return function(*arguments, **named)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention goes block by block."""
    monkeypatch.setattr(scores, "SCORE_BLOCK", 8)
    with OneDevice():
        yield


def _base(kind: str) -> LoadedBase:
    with torch.device(CARD):
        model = build_model(kind).eval().requires_grad_(False)
    found = find_architecture(model)
    assert found is not None
    model.config._attn_implementation = packing.ATTENTION
    return LoadedBase(model, None, CARD, reader=DecoderReader(model, found, kept_bytes=0))  # type: ignore[arg-type]


def test_a_mixed_operation_is_refused_here(card: None) -> None:
    with pytest.raises(AssertionError, match=r"aten\.mm.*expected tensors of one device, got cpu, meta"):
        torch.ones(2, 2, device=CARD) @ torch.ones(2, 2)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.family(keep=5)
@pytest.mark.parametrize(
    ("kind", "again"), [*((kind, "none") for kind in KINDS), *((kind, "layer") for kind in SAMPLE_KINDS)]
)
def test_a_training_step_stays_on_the_card(card: None, kind: str, again: Any) -> None:
    base = _base(kind)
    targets = sorted({name.rsplit(".", 1)[-1] for name in TABLE[type(base.model).__name__].modules.values()})
    with torch.device(CARD):
        model = get_peft_model(base.model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    samples = [Sample(place, tuple(ids), ((len(ids) - 3, len(ids)),)) for place, ids in enumerate(ROWS)]
    for decoder in (Decoder(base.model, again), None):
        losses = loop.sample_losses(base, decoder, samples)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        found = torch.autograd.grad(losses.sum(), trained)
        assert losses.device.type == CARD
        assert {one.device.type for one in found} == {CARD}


@pytest.mark.thorough
@torch.inference_mode()
@pytest.mark.family(keep=5)
@pytest.mark.parametrize("kind", KINDS)
def test_reading_scoring_and_drawing_stay_on_the_card(card: None, kind: str) -> None:
    base = _base(kind)
    pack, segments = pack_sequences(ROWS, longest_short=base.longest_short)
    pack.add([9, 10], after=segments[0])
    assert base.read_pack(pack).device.type == CARD
    slots = AdapterSlots(base)
    _load(slots, base)
    cache, rows = Cache(CARD, 4096), [RequestCache(), RequestCache(), RequestCache()]
    for held, ids, slot in zip(rows, ROWS, ("a", "b", None), strict=True):
        with slots.using(slot):
            for start in range(0, len(ids), 5):
                sampling.read_chunk(base, cache, held, ids[start : start + 5])
            assert sampling.read_after(base, cache, held, [[3, 4], [5]]).device.type == CARD
    with slots.mixing(["a", "b", None]):
        logits = sampling.read_drawn(base, slots, cache, rows, [7, 8, 9])
    assert (logits.device.type, len(logits)) == ("cpu", 3)
    cache.release(rows[0])
    slots.unload("a")
    slots.remove()


def _load(slots: AdapterSlots, base: LoadedBase) -> None:
    """Two adapters, as they lie after their weights were read; values are read only from real ones."""
    from appliance.ml.inference.lora import AdapterWeights

    for name, rank in (("a", 4), ("b", 12)):
        with torch.device(CARD):
            weights = {
                key: (torch.ones(rank, layer.base.in_features), torch.ones(layer.base.out_features, rank))
                for key, layer in slots._layers.items()
            }
        assert base.reader is not None
        slots._read[name] = base.reader.join(weights, 2.0)
        slots._adapters[name] = AdapterWeights(2.0, weights)
