"""GGUF fields that transformers does not read: they are added to the configuration, or the file is refused.

transformers ignores fields and tensors that it does not support, and the result would be a different model. Names and
rules follow llama.cpp: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and its src/llama-model.cpp.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import torch
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from appliance.errors import BadInput
from appliance.ml.model.bounds import MAX_TOKEN_BYTES, MAX_VOCABULARY, check_claims, check_weights

_FREQUENCIES = "rope_freqs.weight"
# Divisors of the longest rotary angles in Llama 3.1 and 3.3 (8), and 3.2 (32).
_LLAMA3_FACTORS = (8.0, 32.0)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_ABSENT = ("expert_count", "attention.scale", "embedding_scale", "residual_scale", "logit_scale", "attention.causal")
# Number of layers of the 27-billion-parameter Gemma 2 and 3, which scale queries by another rule.
_WIDE_GEMMA = {"gemma2": 46, "gemma3": 62}


def complete_config(source: Path, model: Any) -> None:
    """Add the values of a GGUF file to a loaded model's configuration.

    Raises:
        BadInput: the configuration cannot express a field or tensor; the message names it.
    """
    reader = gguf.GGUFReader(str(source.absolute()))
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    architecture = str(fields["general.architecture"])
    own = {name.removeprefix(f"{architecture}."): value for name, value in fields.items()}
    what, config = f"base, {source.name}", model.config
    for name in _ABSENT:
        if own.get(name):
            raise _refuse(f"{what}, {architecture}.{name}", "none", own[name])
    _check_tensors(reader, architecture, model, what)
    _complete_window(own, architecture, config, what)
    _complete_rope(own, architecture, config, what)
    frequencies = next((tensor for tensor in reader.tensors if tensor.name == _FREQUENCIES), None)
    if frequencies is not None:
        config.rope_parameters = _read_llama3(torch.tensor(frequencies.data.tolist()), config, what)
    if architecture in _WIDE_GEMMA:
        _complete_gemma(own, architecture, config)


def _check_tensors(reader: Any, architecture: str, model: Any, what: str) -> None:
    """Check that every tensor of the file belongs to the model."""
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    known = {*get_gguf_hf_weights_map(model, processor), "output.weight", _FREQUENCIES}
    over = [tensor.name for tensor in reader.tensors if tensor.name not in known]
    if over or (architecture != "llama" and any(tensor.name == _FREQUENCIES for tensor in reader.tensors)):
        raise _refuse(f"{what}, tensors", f"those of {type(model).__name__} alone", ", ".join(over[:3]) or _FREQUENCIES)


def _complete_window(own: Mapping[str, Any], architecture: str, config: Any, what: str) -> None:
    window = own.get("attention.sliding_window")
    if not window or architecture in _WIDE_GEMMA:
        return
    if architecture != "phi3":
        raise _refuse(f"{what}, {architecture}.attention.sliding_window", "none", window)
    config.sliding_window = int(window)


def _complete_rope(own: Mapping[str, Any], architecture: str, config: Any, what: str) -> None:
    kind = str(own.get("rope.scaling.type", "none"))
    size, turned = _head_size(config), own.get("rope.dimension_count")
    parameters = dict(config.rope_parameters)
    full = parameters.get("full_attention", parameters)
    full = dict(full)
    if turned and int(turned) != size:
        if architecture != "phi3":
            raise _refuse(f"{what}, {architecture}.rope.dimension_count", str(size), turned)
        full["partial_rotary_factor"] = config.partial_rotary_factor = int(turned) / size
    if kind in ("linear", "yarn"):
        full |= {"rope_type": kind, "factor": float(own.get("rope.scaling.factor", 1.0))}
        if kind == "yarn":
            full["original_max_position_embeddings"] = int(own["rope.scaling.original_context_length"])
    elif kind != "none":
        raise _refuse(f"{what}, {architecture}.rope.scaling.type", "none, linear or yarn", kind)
    if "full_attention" in parameters:
        sliding = dict(parameters["sliding_attention"])
        sliding["rope_theta"] = float(own.get("rope.freq_base_swa", sliding["rope_theta"]))
        config.rope_parameters = {"full_attention": full, "sliding_attention": sliding}
    else:
        config.rope_parameters = full


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _read_llama3(divisors: torch.Tensor, config: Any, what: str) -> dict[str, Any]:
    """Return the rope parameters that give these divisors of the angles, by llama.cpp's formula."""
    base, size = float(config.rope_parameters["rope_theta"]), _head_size(config)
    for factor in _LLAMA3_FACTORS:
        expected = torch.tensor([_divide(base ** (-2 * place / size), factor) for place in range(size // 2)])
        if divisors.shape == expected.shape and torch.allclose(divisors, expected, rtol=1e-4):
            return {"rope_type": "llama3", "rope_theta": base, "factor": factor, **_LLAMA3}
    factors = " or ".join(f"{factor:g}" for factor in _LLAMA3_FACTORS)
    raise _refuse(f"{what}, {_FREQUENCIES}", f"Llama 3's, of factor {factors}", "others")


def _divide(frequency: float, factor: float) -> float:
    """Return Llama 3.1's divisor of an angle's frequency, computed from its wavelength."""
    length, wave = _LLAMA3["original_max_position_embeddings"], 2 * math.pi / frequency
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    if wave < length / high:
        return 1.0
    if wave > length / low:
        return factor
    smooth = (length / wave - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)


def _complete_gemma(own: Mapping[str, Any], architecture: str, config: Any) -> None:
    """Set the soft caps and the query scale, which llama.cpp derives from the number of layers."""
    wide = config.num_hidden_layers == _WIDE_GEMMA[architecture]
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if wide else _head_size(config)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name in own:
            setattr(config, name, float(own[name]))


def _refuse(what: str, expected: str, got: object) -> BadInput:
    return BadInput(
        f"{what}: expected {expected}, got {got!s:.80}; bring the publisher's folder of safetensors instead"
    )


ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3")
"""Supported architectures by their GGUF names; Mistral is `llama` there."""
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_PAIRS = 4_096
_MAX_TENSORS = 65_536
_MAX_ITEMS = 4 * MAX_VOCABULARY
_MAX_NAME_BYTES = 1_024
_MAX_TEXT_BYTES = 64 << 20
_MAX_AXES = 4
_TEXT, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_DIMENSIONS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
}


def check_gguf(path: Path) -> None:
    """Check the header of a GGUF file before a library reads it.

    Raises:
        BadInput: the header claims more than the file holds, or the architecture is not supported.
    """
    with open(path, "rb") as stream:
        header = _Header(stream, f"base, {path.name}")
        tensors, pairs = header.begin()
        found: dict[str, Any] = {}
        for _ in range(pairs):
            name = header.text(_MAX_NAME_BYTES)
            found[name] = header.value(header.number("<I"))
        _check_dimensions(found, header.count_weights(tensors), header.what)


def _check_dimensions(found: dict[str, Any], weights: int, what: str) -> None:
    architecture = found.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise BadInput(f"{what}: expected an architecture of {', '.join(ARCHITECTURES)}, got {architecture!r:.40}")
    own = {
        name.removeprefix(f"{architecture}."): value
        for name, value in found.items()
        if name.startswith(f"{architecture}.")
    }
    config = {_DIMENSIONS.get(name, name): value for name, value in own.items()}
    # Without this field the vocabulary size is the length of the token list.
    config.setdefault("vocab_size", found.get("tokenizer.ggml.tokens"))
    check_claims(config, what)
    check_weights(config, weights, what)


class _Header:
    """A forward reader of a GGUF header. It skips lists and returns their length instead."""

    def __init__(self, stream: BinaryIO, what: str) -> None:
        self.what = what
        self._stream = stream
        self._size = os.fstat(stream.fileno()).st_size

    def begin(self) -> tuple[int, int]:
        """Return the number of tensors and the number of key-value pairs."""
        if (start := self._take(len(_MAGIC))) != _MAGIC:
            raise self._refuse(f"the first bytes {start.hex()}", "a GGUF file")
        if (version := self.number("<I")) not in _VERSIONS:
            raise self._refuse(f"version {version}")
        tensors, pairs = self.number("<Q"), self.number("<Q")
        if tensors > _MAX_TENSORS or pairs > _MAX_PAIRS:
            raise self._refuse(
                f"{tensors} tensors and {pairs} values, expected {_MAX_TENSORS} and {_MAX_PAIRS} at most"
            )
        return tensors, pairs

    def number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def text(self, most: int) -> str:
        return self._take(self._length(most)).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text(_MAX_TEXT_BYTES)
        if kind == _ARRAY:
            return self._skip_list()
        if kind not in _SCALARS:
            raise self._refuse(f"a value of type {kind}")
        return self.number(_SCALARS[kind])

    def count_weights(self, tensors: int) -> int:
        """Return the number of weights in all tensors; each needs at least one bit of the file."""
        total = 0
        for _ in range(tensors):
            self.text(_MAX_NAME_BYTES)
            axes = self.number("<I")
            if axes > _MAX_AXES:
                raise self._refuse(f"a tensor of {axes} dimensions")
            count = 1
            for _ in range(axes):
                count *= self.number("<Q")
            self._take(4 + 8)  # its type and its place
            total += count
            if total > 8 * self._size:
                raise self._refuse(f"{total} weights in {self._size} bytes")
        return total

    def _skip_list(self) -> int:
        kind, count = self.number("<I"), self.number("<Q")
        if count > _MAX_ITEMS:
            raise self._refuse(f"a list of {count}, expected {_MAX_ITEMS} at most")
        if kind == _TEXT:
            for _ in range(count):
                self._skip(self._length(MAX_TOKEN_BYTES))
        elif kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise self._refuse(f"a list of type {kind}")
        return int(count)

    def _length(self, most: int) -> int:
        length = int(self.number("<Q"))
        if length > most:
            raise self._refuse(f"a text of {length} bytes, expected {most} at most")
        return length

    def _take(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise self._refuse("its end too early")
        return data

    def _skip(self, size: int) -> None:
        if size > self._size - self._stream.tell():
            raise self._refuse("its end too early")
        self._stream.seek(size, os.SEEK_CUR)

    def _refuse(self, got: str, expected: str = "a whole GGUF file") -> BadInput:
        return BadInput(f"{self.what}: expected {expected}, got {got}", code="base-refused")
