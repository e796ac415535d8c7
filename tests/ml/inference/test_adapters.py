"""Adapters in slots: the arithmetic is peft's to the bit, and nothing of one slot is ever seen in another."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import BadInput, Conflict, NotFound
from appliance.ml.inference.adapters import AdaptedLinear, AdapterSlots, parse_adapter_config
from appliance.ml.inference.reading import read_fingerprint
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.training import methods
from scripts.kit.tiny_model import RECIPE
from tests.kit.mutations import mutated, reshaped

DTYPES = ["float32", "bfloat16"]


def make_adapter(
    base_folder: Path, seed: int, dtype: str = "float32", quantisation: str = "nf4-double", **changes: Any
) -> tuple[bytes, bytes, Any, LoadedBase]:
    """Make a random adapter that changes every logit: (configuration, weights, the peft model, its base)."""
    base = load_base(base_folder, quantisation=quantisation, compute_dtype=dtype, device="cpu")
    torch.manual_seed(seed)
    attached = methods.attach_adapter(base, {**RECIPE, **changes})
    with torch.no_grad():
        for parameter in methods.list_trainable(attached.model):
            parameter.normal_(std=0.1)
    weights, config = methods.encode_adapter(attached, "tiny")
    return config, weights, attached.model.eval(), base


@pytest.mark.parametrize("quantisation", ["nf4-double", "gptq"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slot_gives_the_bits_that_peft_gives(
    base_folder: Path, gptq_folder: Path, dtype: str, quantisation: str
) -> None:
    folder = gptq_folder if quantisation == "gptq" else base_folder
    config, weights, _, theirs = make_adapter(folder, 1, dtype, quantisation)
    ours = load_base(folder, quantisation=quantisation, compute_dtype=dtype, device="cpu")
    slots = AdapterSlots(ours)
    plain = read_fingerprint(ours)
    slots.load("a", config, weights)
    with slots.using("a"):
        assert read_fingerprint(ours) == read_fingerprint(theirs)
    assert read_fingerprint(ours) == plain, "outside the slot the base is as it was"
    assert plain != read_fingerprint(theirs)


def test_a_failed_call_leaves_no_adapter_behind(base: LoadedBase, base_folder: Path) -> None:
    """peft 0.21 answered the next call with the failed call's adapter (its issue 3475)."""
    slots = AdapterSlots(base)
    plain = read_fingerprint(base)
    readings = {}
    for seed, slot in enumerate("ab"):
        config, weights, _, _ = make_adapter(base_folder, seed)
        slots.load(slot, config, weights)
        with slots.using(slot):
            readings[slot] = read_fingerprint(base)
    assert len({plain, *readings.values()}) == 3
    with pytest.raises(IndexError), slots.using("b"):
        base.hidden(input_ids=torch.tensor([[10**6]]), use_cache=False)
    assert read_fingerprint(base) == plain
    with slots.using("a"):
        assert read_fingerprint(base) == readings["a"]


def test_an_unloaded_slot_is_gone(base: LoadedBase, base_folder: Path) -> None:
    slots = AdapterSlots(base)
    config, weights, _, _ = make_adapter(base_folder, 1)
    slots.load("a", config, weights)
    with pytest.raises(Conflict, match="slot a: expected an empty one"):
        slots.load("a", config, weights)
    slots.unload("a")
    assert "a" not in slots
    with pytest.raises(NotFound, match="slot a: expected a loaded adapter"), slots.using("a"):
        pass
    with pytest.raises(NotFound):
        slots.unload("a")


def test_two_slots_are_never_in_use_at_once(base: LoadedBase, base_folder: Path) -> None:
    slots = AdapterSlots(base)
    config, weights, _, _ = make_adapter(base_folder, 1)
    slots.load("a", config, weights)
    with slots.using("a"), pytest.raises(Conflict), slots.using("a"):
        pass
    assert slots.active is None


def test_the_head_and_the_embeddings_are_not_adapted(base: LoadedBase) -> None:
    AdapterSlots(base)
    adapted = [name for name, module in base.model.named_modules() if isinstance(module, AdaptedLinear)]
    assert len(adapted) == 2 * 7
    assert not isinstance(base.model.get_output_embeddings(), AdaptedLinear)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"layers_to_transform": [0]},
        {"fan_in_fan_out": True},
        {"trainable_token_indices": [1]},
        {"something_new": True},
        {"peft_type": "IA3"},
        {"r": 0},
        {"r": "8"},
        {"r": True},
        {"lora_alpha": 0},
        {"target_modules": "all-linear"},
        {"target_modules": []},
    ],
)
def test_what_is_not_plain_lora_is_refused(base_folder: Path, changes: dict[str, Any]) -> None:
    config = json.loads(make_adapter(base_folder, 1)[0])
    with pytest.raises(BadInput, match=f"adapter configuration, .*{next(iter(changes))}"):
        parse_adapter_config(json.dumps({**config, **changes}).encode())


PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}


@given(
    reshaped(PLAIN).map(lambda value: json.dumps(value).encode())
    | mutated(json.dumps(PLAIN).encode())
    | st.integers(300, 400).map(lambda zeros: json.dumps(PLAIN | {"r": 10**zeros, "lora_alpha": 10**zeros}).encode())
    | st.sampled_from(["1e999", "NaN", "9" * 400]).map(lambda alpha: json.dumps(PLAIN).replace("8", alpha).encode())
)
def test_a_configuration_of_any_shape_is_plain_lora_or_bad_input(data: bytes) -> None:
    with suppress(BadInput):
        assert 0 < parse_adapter_config(data).scaling < float("inf")


def test_rank_stabilised_lora_has_its_own_scale() -> None:
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    assert parse_adapter_config(json.dumps(plain).encode()).scaling == 2.0
    assert parse_adapter_config(json.dumps({**plain, "use_rslora": True}).encode()).scaling == 4.0


def test_what_peft_itself_writes_for_plain_lora_is_read(base_folder: Path, tmp_path: Path) -> None:
    _, _, model, _ = make_adapter(base_folder, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    config = parse_adapter_config((tmp_path / "adapter_config.json").read_bytes())
    assert (config.rank, config.scaling) == (8, 2.0)


def _edited(weights: bytes, edit: Any) -> bytes:
    tensors = safetensors.torch.load(weights)
    edit(tensors)
    return bytes(safetensors.torch.save(tensors))


_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(_KEY), "q_proj.lora_A.weight: expected floating point .*, got nothing"),
        (lambda t: t.update({_KEY: torch.zeros(4, 64)}), "expected floating point"),
        (lambda t: t.update({_KEY: torch.zeros(8, 64, dtype=torch.int8)}), "expected floating point"),
        (lambda t: t.update({_KEY: torch.full((8, 64), float("nan"))}), "expected finite numbers"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(2)}),
            "got base_model.model.lm_head.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(base: LoadedBase, base_folder: Path, edit: Any, message: str) -> None:
    config, weights, _, _ = make_adapter(base_folder, 1)
    slots = AdapterSlots(base)
    with pytest.raises(BadInput, match=message):
        slots.load("a", config, _edited(weights, edit))
    assert "a" not in slots


@pytest.mark.parametrize("weights", [b"", b"\x80\x04", b"\xff" * 64])
def test_bytes_that_are_no_safetensors_are_refused(base: LoadedBase, base_folder: Path, weights: bytes) -> None:
    config = make_adapter(base_folder, 1)[0]
    with pytest.raises(BadInput, match="adapter weights: expected safetensors"):
        AdapterSlots(base).load("a", config, weights)
