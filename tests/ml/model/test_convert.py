"""A GGUF file becomes a base: its weights dequantised, its tokenizer and template as the file means them."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch

from appliance.errors import BadInput
from appliance.ml.inference.reading import read_fingerprint
from appliance.ml.model.base import load_base
from appliance.ml.model.chat import load_chat
from appliance.ml.model.convert import convert_base
from scripts.kit.tiny_model import SPECIAL, TEMPLATE, build_tokenizer

HIDDEN, INNER, LAYERS, HEADS, GROUPS = 64, 128, 2, 4, 2


def _tensors(vocabulary: int) -> dict[str, np.ndarray[Any, Any]]:
    """Values that bf16 holds exactly, so that the conversion can be compared for equality."""
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        key_size = HIDDEN // HEADS * GROUPS
        shapes |= {
            f"blk.{layer}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k.weight": (key_size, HIDDEN),
            f"blk.{layer}.attn_v.weight": (key_size, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down.weight": (HIDDEN, INNER),
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
        }
    return {name: (generator.integers(-64, 65, shape) / 256).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path, *, architecture: str = "llama", template: str | None = TEMPLATE, pre: str = "smollm"
) -> Path:
    vocabulary = json.loads(build_tokenizer().to_str())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    for name, tensor in _tensors(len(tokens)).items():
        if tensor.ndim == 2 and ".ffn_" in name:
            data = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def test_a_gguf_file_becomes_a_base_that_loads(tmp_path: Path, output: Path) -> None:
    facts = convert_base(write_gguf(tmp_path / "tiny.gguf"), output)
    tensors = safetensors.torch.load_file(output / "model.safetensors")
    original = _tensors(320)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    embedding = tensors["model.embed_tokens.weight"].float().numpy()
    assert np.array_equal(embedding, original["token_embd.weight"][: len(embedding)])
    up = tensors["model.layers.1.mlp.up_proj.weight"].float().numpy()
    assert np.abs(up - original["blk.1.ffn_up.weight"]).max() < 0.005, "Q8_0, dequantised"
    config = json.loads((output / "config.json").read_bytes())
    assert "quantization_config" not in config
    assert str(tmp_path) not in (output / "config.json").read_text(), "no path of this machine"
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert "dequantising" in facts["warnings"][0]
    base = load_base(output, quantisation="nf4-double", compute_dtype="float32", device="cpu")
    assert read_fingerprint(base) == read_fingerprint(base)


def test_digits_are_apart_where_the_file_says_smollm(tmp_path: Path, output: Path) -> None:
    """The converted tokenizer lacks the step, and numbers would become other tokens than in the original."""
    convert_base(write_gguf(tmp_path / "tiny.gguf"), output)
    chat = load_chat(output)
    assert [chat.tokenizer.id_to_token(token) for token in chat.encode("2024")] == ["2", "0", "2", "4"]
    steps = json.loads((output / "tokenizer.json").read_bytes())["pre_tokenizer"]["pretokenizers"]
    assert steps[0] == {"type": "Digits", "individual_digits": True}
    assert chat.render([{"role": "user", "content": "x"}]).endswith("<|im_start|>assistant\n")
    assert (output / "chat_template.jinja").read_text() == TEMPLATE


def test_the_same_file_gives_the_same_base(tmp_path: Path, output: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    convert_base(source, output)
    again = tmp_path / "again"
    again.mkdir()
    convert_base(source, again)
    for path in output.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": None}, "expected a chat template in the GGUF file, got none"),
        ({"architecture": "gemma4"}, "expected an architecture of llama, .*, gemma3, got 'gemma4'"),
        ({"template": "{{ ''.__class__.__mro__ }}"}, r"chat_template\.jinja: expected to render"),
    ],
)
def test_a_gguf_file_that_cannot_be_used_is_refused(
    tmp_path: Path, output: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        convert_base(write_gguf(tmp_path / "tiny.gguf", **changes), output)


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 300, 20_000])
def test_a_cut_gguf_file_is_refused(tmp_path: Path, output: Path, keep: int) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:keep])
    with pytest.raises(BadInput, match=r"base, cut\.gguf: expected"):
        convert_base(cut, output)


def header(pairs: bytes, count: int = 1, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + pairs


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def whole(name: str, value: int) -> bytes:
    """Return a pair whose value is a 64-bit number."""
    return text(name.encode()) + struct.pack("<IQ", 10, value)


LLAMA = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
SHAPE = {
    "block_count": 2, "embedding_length": 64, "feed_forward_length": 128, "attention.head_count": 4,
    "vocab_size": 300, "context_length": 256,
}  # fmt: skip


def shaped(**changes: int) -> bytes:
    shape = SHAPE | changes
    return header(LLAMA + b"".join(whole(f"llama.{name}", value) for name, value in shape.items()), 1 + len(shape))


HOSTILE = {
    "array": header(text(b"x") + struct.pack("<IIQ", 9, 4, 2**50)),
    "array-of-texts": header(text(b"x") + struct.pack("<IIQ", 9, 8, 2**50)),
    "array-of-arrays": header(text(b"x") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 50_000),
    "array-longer-than-the-file": header(text(b"x") + struct.pack("<IIQ", 9, 4, 10**6)),
    "text": header(text(b"x") + struct.pack("<IQ", 8, 2**62)),
    "token": header(text(b"x") + struct.pack("<IIQQ", 9, 8, 1, 2**40)),
    "name": header(struct.pack("<Q", 2**62)),
    "values": header(b"", count=2**60),
    "tensors": header(LLAMA, tensors=2**60),
    "tensor": header(LLAMA, tensors=1) + text(b"w") + struct.pack("<IQQQQIQ", 4, *[2**32] * 4, 0, 0),
    "dimensions": header(LLAMA, tensors=1) + text(b"w") + struct.pack("<I", 2**31),
    "type": header(text(b"x") + struct.pack("<I", 99)),
    "version": header(b"", 0, version=2**31),
    "layers": shaped(block_count=10**9),
    "context": shaped(context_length=10**18),
    "vocabulary": shaped(vocab_size=2**40),
    "no-weights": shaped(),
    "end": header(LLAMA[:-2]),
}


@pytest.mark.thorough
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_gguf_header_that_claims_more_than_there_is_is_refused_at_once(
    tmp_path: Path, output: Path, data: bytes
) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    began = time.process_time()
    with pytest.raises(BadInput, match=r"base, model.gguf.*: expected"):
        convert_base(tmp_path / "model.gguf", output)
    assert time.process_time() - began < 1 and not list(output.iterdir())


def test_a_pickle_called_gguf_is_refused(tmp_path: Path, output: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"\x80\x04\x95cposix\nsystem\n")
    with pytest.raises(BadInput, match="expected a GGUF file, got the first bytes"):
        convert_base(source, output)
