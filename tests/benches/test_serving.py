"""The parts of the serving bench work on a tiny base: programs answer, adapters change answers, homes are served."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from scripts.benches import (
    models,
    programs,
    serving,
    serving_llama,
    serving_prompts,
    serving_service,
    serving_start,
)
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
    quick, full = (make(models.SMOLLM2, "cpu", "llama-server") for make in (serving.quick, serving.full))
    assert (quick.rounds, quick.tokens) < (full.rounds, full.tokens)
    assert (quick.vllm, full.vllm) == (False, True)
    assert quick.peers and full.peers
    assert (full.service.known, full.service.hot) == (1000, 64)
    assert all(
        0 < few <= many for few, many in zip(vars(quick.service).values(), vars(full.service).values(), strict=True)
    )


def test_each_model_has_its_own_limit_for_a_first_answer() -> None:
    """The larger model's quick bench leaves out what would take it longer than two minutes; its full one does not."""
    for make in (serving.quick, serving.full):
        plans = [make(model, "cpu", "llama-server") for model in models.MODELS.values()]
        assert [one.service.start_s for one in plans] == [3, 5]
        assert all(one.service.cold and one.service.lone and one.reads and one.starts for one in plans)
    assert not serving.quick(models.BILLION, "cpu", "").peers
    assert serving.full(models.BILLION, "cpu", "").peers


@pytest.mark.outside
def test_a_prompt_is_read_beside_llama_cpp_and_alone_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving_prompts, "WORDS", 300)
    monkeypatch.setattr(serving_prompts, "TOKENS", 32)
    base, asked = build_base(tmp_path / "base"), list[list[int]]()

    class Peer:
        """One second for each prompt."""

        def __call__(self, do: str, ids: list[int], count: int) -> list[float]:
            asked.append(ids)
            return [1.0] * count

    @contextmanager
    def started(*given: Any) -> Iterator[Peer]:
        assert given == (tmp_path / "model.Q4_0.gguf", "cpu", "llama", Path(sys.executable))
        yield Peer()

    with programs.start_program(base, "cpu", "ours") as ours:
        monkeypatch.setattr(serving_prompts, "LLAMA", tmp_path / "none" / "bin" / "python")
        (alone,) = serving_prompts.measure(ours, tmp_path / "model.Q4_0.gguf", rounds=1, reads=1)
        monkeypatch.setattr(serving_prompts, "LLAMA", Path(sys.executable))
        monkeypatch.setattr(serving_prompts, "start_program", started)
        (beside,) = serving_prompts.measure(ours, tmp_path / "model.Q4_0.gguf", rounds=2, reads=2)
    assert (alone.against, alone.met) == (None, None)
    assert "no row compares with llama.cpp" in capsys.readouterr().err
    assert (beside.against, beside.theirs, beside.goal) == ("llama.cpp, Q4_0", 32, "≥ 0.8×, mark 1.0×")
    assert [len(ids) for ids in asked] == [32] * 3 and len(set(map(tuple, asked))) == 1


@pytest.mark.outside
def test_the_parts_of_an_engine_s_start_are_all_of_it(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    (adapter,) = make_adapters(str(base), tmp_path, [4])
    with programs.start_program(base, "cpu", "ours") as ours:
        whole, *parts = serving_start.measure(ours, base, adapter, tmp_path, device="cpu", rounds=1)
    assert len(parts) == len(serving_start.PARTS)
    assert sum(one.ours for one in parts) == pytest.approx(whole.ours)
    assert all(one.ours > 0 for one in parts)


@pytest.mark.outside
def test_a_start_with_another_probe_is_an_error(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    (adapter,) = make_adapters(str(base), tmp_path, [4])
    (tmp_path / "logit_fingerprint.json").write_text("{}")
    task = {
        "base": str(base),
        "adapter": str(adapter),
        "logit_fingerprint": str(tmp_path / "logit_fingerprint.json"),
        "device": "cpu",
    }
    with pytest.raises(RuntimeError, match="expected a first token, got"):
        serving_start.start({**task, "prompt": "pay"})


def test_a_percentile_lies_between_the_samples_around_it() -> None:
    assert serving_service.p99([float(number) for number in range(101)]) == 99
    assert 9 > serving_service.p99([1.0] * 9 + [9.0]) > 8


def test_a_peer_without_our_adapter_is_no_comparison() -> None:
    assert serving_prompts.applies_adapter(0.70, 0.84)
    for adapted in (0.71, 0.63, 0.70, float("nan")):
        assert not serving_prompts.applies_adapter(0.70, adapted)
