"""The model of the benches: an import accepts it, and llama.cpp's file has the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from appliance.ml.model.convert import convert_base
from scripts.benches.llama_file import write_model
from scripts.kit import random_llama
from scripts.kit.random_llama import BILLION, Shape, build_llama
from scripts.kit.tiny_model import build_base

TINY = Shape(layers=3, hidden=64, inner=128, heads=4, key_heads=2, context=256)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(random_llama, "LAYERS_A_SHARD", 2)
    return build_llama(tmp_path / "made", build_base(tmp_path / "tiny"), TINY)


def write_vocabulary(path: Path, words: int) -> Path:
    """Write a GGUF file of a tokenizer alone."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"word {number}" for number in range(words)])
    writer.add_token_types([1] * words)
    writer.add_token_merges(["w o", "r d"])
    writer.add_bos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_random_llama_is_imported_from_its_shards(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "base"
    output.mkdir()
    said = convert_base(made, output)
    assert (said["architecture"], said["dtype"], said["context_length"]) == ("LlamaForCausalLM", "bfloat16", 256)
    assert said["shape"]["tied"] is False
    assert len(list(output.glob("model-*.safetensors"))) == 4


def test_the_random_llama_is_made_once_and_is_the_same_every_time(made: Path, tmp_path: Path) -> None:
    again = build_llama(tmp_path / "again", tmp_path / "tiny", TINY)
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    assert {path.name: path.read_bytes() for path in again.iterdir()} == files
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    assert build_llama(made, tmp_path / "none", TINY) == made
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before


def test_one_that_was_broken_off_is_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        build_llama(tmp_path / "made", tmp_path / "none", TINY)
    assert list(tmp_path.iterdir()) == []


def test_the_larger_model_has_1_1_billion_weights() -> None:
    shards = random_llama._list_shards(BILLION, 49_152)
    count = sum(torch.Size(size).numel() for shard in shards for size in shard.values())
    assert 1.1e9 < count < 1.2e9


def test_the_gguf_file_has_the_weights_rounded_to_four_bits(made: Path, tmp_path: Path) -> None:
    words = json.loads((made / "config.json").read_bytes())["vocab_size"]
    path = write_model(made, write_vocabulary(tmp_path / "words.gguf", words), tmp_path / "model.gguf")
    read = gguf.GGUFReader(path)
    kinds = {one.tensor_type.name for one in read.tensors if one.name.endswith(("attn_q.weight", "ffn_down.weight"))}
    assert kinds == {"Q4_0"}
    assert len(read.get_field("tokenizer.ggml.tokens").data) == words
    # transformers undoes llama.cpp's order of the rows of q and k.
    back = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="model.gguf", dtype=torch.float32)
    wanted = AutoModelForCausalLM.from_pretrained(str(made), dtype=torch.float32).state_dict()
    found = back.state_dict()
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        # A step of a block is an eighth of its largest weight, and five spreads are the largest of all.
        torch.testing.assert_close(found[name], weight, atol=0.02 * 5 / 8, rtol=0)


def test_a_tokenizer_of_another_size_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected a tokenizer of 320 tokens, got 7"):
        write_model(made, write_vocabulary(tmp_path / "words.gguf", 7), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
