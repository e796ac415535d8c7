"""The serving bench's instruments work on a tiny base: programs answer, adapters change answers, homes are served."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from scripts.benches import serving, serving_llama, serving_service
from scripts.benches.serving_worker import make_adapters
from scripts.kit.tiny_model import build_base


def test_adapters_fit_the_base_and_none_is_another(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    made = list(make_adapters(str(base), tmp_path, [4, 8]))
    tensors = [safetensors.torch.load_file(path / "adapter_model.safetensors") for path in made]
    assert [len(one) for one in tensors] == [2 * 7 * 2] * 2
    assert all(bool(tensor.any()) for one in tensors for tensor in one.values()), "B too"
    assert [json.loads((path / "adapter_config.json").read_text())["r"] for path in made] == [4, 8]


def test_an_adapter_for_llama_cpp_has_the_same_weights_in_its_base_s_order(tmp_path: Path) -> None:
    """transformers, which reads a base's q and k out of a GGUF file, turns B's rows back into ours."""
    base = build_base(tmp_path / "base")
    (path,) = make_adapters(str(base), tmp_path, [4])
    serving_llama.write_adapter(path, base, tmp_path / "adapter.gguf")
    read = gguf.GGUFReader(tmp_path / "adapter.gguf")
    said = {name: field.contents() for name, field in read.fields.items() if name.startswith(("general.", "adapter."))}
    assert said == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {f"{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}
    back = LlamaTensorProcessor({"num_attention_heads": 4, "num_key_value_heads": 2})
    found = {tensor.name: tensor.data for tensor in read.tensors}
    for key, weight in safetensors.numpy.load_file(path / "adapter_model.safetensors").items():
        _, _, _, _, layer, _, module, half, _ = key.split(".")
        name = f"blk.{layer}.{names[module]}.weight"
        got = found.pop(f"{name}.{half.lower()}")
        moved = half == "lora_B" and module in ("q_proj", "k_proj")
        assert np.array_equal(got, weight) is not moved
        assert np.array_equal(back.process(got, name).weights if moved else got, weight)
    assert not found


def test_a_server_that_ends_before_it_answers_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\necho no such model >&2\nexit 1\n")
    binary.chmod(0o755)
    with (
        pytest.raises(RuntimeError, match="no such model"),
        serving_llama.serving(str(binary), tmp_path, tmp_path, [], streams=2),
    ):
        pass


def test_quick_measures_all_that_full_does() -> None:
    """Every row comes in both, but vLLM's, which takes long to start; else only rounds and counts differ."""
    quick, full = (make("cpu", "llama-server") for make in (serving.quick, serving.full))
    assert (quick.rounds, quick.tokens) < (full.rounds, full.tokens)
    assert (quick.vllm, full.vllm) == (False, True)
    assert (full.service.known, full.service.hot) == (1000, 64)
    assert all(
        0 < few <= many for few, many in zip(vars(quick.service).values(), vars(full.service).values(), strict=True)
    )


def test_a_percentile_lies_between_the_samples_around_it() -> None:
    assert serving_service.p99([float(number) for number in range(101)]) == 99
    assert 9 > serving_service.p99([1.0] * 9 + [9.0]) > 8
