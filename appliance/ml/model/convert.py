"""A model folder or a GGUF file becomes a base: safetensors, a tokenizer, a template, and nothing else.

Parsing strangers' files is the riskiest thing the appliance does, so it happens here, in the sandboxed preparing
worker. A folder's files are copied byte for byte, so that their digests are still the publisher's.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import safetensors
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.errors import BadInput
from appliance.ml.layers.architecture import find_architecture
from appliance.ml.layers.head import check_head
from appliance.ml.model.chat import (
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    digest_template,
    digest_tokenizer,
    load_chat,
)
from appliance.ml.model.folder import check_folder, read_quantisation
from appliance.ml.model.gguf_fields import complete_config
from appliance.ml.model.gguf_header import check_gguf
from appliance.ml.model.library import EXPERTS, check_modules, list_roles
from appliance.ml.quantised.gptq import Gptq
from appliance.ml.quantised.loading import count_packed, load_arguments
from appliance.ml.quantised.nf4 import write_nf4
from appliance.ml.quantised.settings import SETTINGS_FILE
from appliance.ml.quantised.values import check_values
from appliance.ml.quantised.widening import widen_folder

LIBRARY_WARNING = "this architecture goes through the library's modules, without packing: see docs/models.md"
_CHUNK_BYTES = 1 << 20
_DTYPE = torch.bfloat16


def convert_base(source: Path, output: Path) -> dict[str, Any]:
    """Writes the base into an empty folder and describes it; BadInput names what may not be imported."""
    mode = os.lstat(source).st_mode
    if stat.S_ISLNK(mode):
        raise BadInput(f"base, {source.name}: expected a folder or a file, got a symbolic link", code="base-refused")
    if stat.S_ISDIR(mode):
        warnings = _copy_folder(source, output)
    elif stat.S_ISREG(mode):
        warnings = _convert_gguf(source, output)
    else:
        raise BadInput(
            f"base, {source.name}: expected a folder or a regular file, got a special file", code="base-refused"
        )
    return _describe(output, warnings)


def _copy_folder(source: Path, output: Path) -> list[str]:
    names, quantised = check_folder(source), read_quantisation(source)
    check_modules(source)
    warnings = []
    if quantised is not None and quantised.widened:
        weights = _weights(names)
        warnings.append(widen_folder(source, output, weights, quantised.widened))
        names = [name for name in names if name not in {*weights, SETTINGS_FILE}]
    elif quantised is not None and quantised.gptq is not None:
        check_values(source, _weights(names), quantised.gptq)
    for name in names:
        if not (output / name).exists():
            _copy_file(source / name, output / name)
    # What the check saw may have been changed since; what counts is what was copied.
    check_folder(output)
    config = json.loads((output / TOKENIZER_CONFIG_FILE).read_bytes())
    if not (output / TEMPLATE_FILE).exists():
        template = config.get("chat_template")
        if not isinstance(template, str):
            raise BadInput(
                f"base, {TEMPLATE_FILE}: expected a chat template in a file or in {TOKENIZER_CONFIG_FILE}, got none"
            )
        (output / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        warnings.append(f"the chat template was taken from {TOKENIZER_CONFIG_FILE}")
    return warnings


def _weights(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".safetensors")]


def _copy_file(source: Path, target: Path) -> None:
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(handle, "rb") as reader, open(target, "xb") as writer:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BadInput(f"base, {source.name}: expected a regular file, got a special one", code="base-refused")
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)


def _convert_gguf(source: Path, output: Path) -> list[str]:
    check_gguf(source)
    folder, name = str(source.parent.absolute()), source.name
    try:
        with _read_once():
            pre_type = _read_pre_type(source)
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, local_files_only=True, dtype=_DTYPE, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
            _check_loaded(loading)
            complete_config(source, model)
    except (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
        raise BadInput(f"base, {source.name}: expected a GGUF model that transformers can read, got: {error}") from None
    if not isinstance(tokenizer.chat_template, str):
        raise BadInput(f"base, {source.name}: expected a chat template in the GGUF file, got none")
    backend = tokenizer.backend_tokenizer
    if pre_type == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    _save_model(model, output)
    backend.save(str(output / TOKENIZER_FILE))
    (output / TEMPLATE_FILE).write_text(tokenizer.chat_template, encoding="utf-8")
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    special["tokenizer_class"] = "PreTrainedTokenizerFast"
    (output / TOKENIZER_CONFIG_FILE).write_text(json.dumps(special, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return [
        "the weights were quantised in the GGUF file and are what dequantising gives, not the publisher's originals"
    ]


@contextmanager
def _read_once() -> Iterator[None]:
    """transformers reads the file three times and rebuilds a table for every tensor: 15 of 20 seconds."""
    names = ("GGUFReader", "get_tensor_name_map")
    plain = {name: getattr(gguf, name) for name in names}
    try:
        for name in names:
            setattr(gguf, name, functools.cache(plain[name]))
        yield
    finally:
        for name in names:
            setattr(gguf, name, plain[name])


def _read_pre_type(source: Path) -> str:
    """The tokenizer's pre-type."""
    try:
        reader = gguf.GGUFReader(str(source.absolute()))
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise BadInput(f"base, {source.name}: expected a whole GGUF file, got: {error}") from None
    field = reader.get_field("tokenizer.ggml.pre")
    return str(None if field is None else field.contents())


def _save_model(model: Any, output: Path) -> None:
    """transformers refuses to save what it read from GGUF until the marks of its quantiser are off."""
    model.hf_quantizer = None
    for mark in ("quantization_method", "is_quantized"):
        if hasattr(model, mark):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = ""
    model.to(_DTYPE).save_pretrained(str(output), safe_serialization=True)


def _check_weights(path: Path) -> None:
    try:
        with safetensors.safe_open(path, framework="pt") as weights:
            weights.keys()
    except safetensors.SafetensorError as error:
        raise BadInput(f"base, weights: expected safetensors in {path.name}, got: {error}") from None


def _check_loaded(loading: Mapping[str, Any]) -> None:
    """The library fills in random numbers for weights that are missing."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if loading.get(kind):
            names = sorted(map(str, loading[kind]))[:3]
            raise BadInput(f"base, weights: expected exactly the architecture's own, got {kind}: {names}")


def _describe(output: Path, warnings: list[str]) -> dict[str, Any]:
    """Loads what was written, whole, and says what it is; weights that are missing or over are refused."""
    names = check_folder(output, sealed=True)
    for name in _weights(names):
        _check_weights(output / name)
    quantised = read_quantisation(output)
    gptq = None if quantised is None else quantised.gptq
    if gptq is not None:
        check_values(output, _weights(names), gptq)
    model, loading = AutoModelForCausalLM.from_pretrained(
        str(output.absolute()),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype="auto",
        output_loading_info=True,
        **load_arguments(output, gptq),
    )
    _check_loaded(loading)
    if find_architecture(model) is None:
        if not check_head(model):
            raise BadInput(
                f"base, {model.config.architectures[0]}: expected logits that are the head's product with the last "
                "norm's output, scaled or capped, got others"
            )
        warnings = [*warnings, LIBRARY_WARNING]
    elif gptq is None:
        write_nf4(output)
    chat = load_chat(output)
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    return {
        "architecture": model.config.architectures[0],
        "parameters": sum(parameter.numel() for parameter in model.parameters()) + count_packed(model),
        "dtype": "+".join(dtypes),
        **_describe_quantisation(gptq),
        "context_length": int(model.config.max_position_embeddings),
        "vocab_size": int(model.config.vocab_size),
        "shape": describe_shape(model),
        "chat_template_digest": digest_template(output),
        "tokenizer_digest": digest_tokenizer(output),
        "end_of_turn": chat.end_of_turn,
        "warnings": warnings,
    }


def _describe_quantisation(gptq: Gptq | None) -> dict[str, Any]:
    return {"quantisation": "none"} if gptq is None else {"quantisation": "gptq", "gptq": gptq.describe()}


def describe_shape(model: Any) -> dict[str, Any]:
    """The dimensions that a plan needs (`domain/planning/shape.py`)."""
    config, head, words = model.config, model.get_output_embeddings().weight, model.get_input_embeddings().weight
    heads, architecture = int(config.num_attention_heads), find_architecture(model)
    return {
        "layers": int(config.num_hidden_layers),
        "hidden": int(config.hidden_size),
        "inner": int(getattr(config, "shared_intermediate_size", None) or config.intermediate_size),
        "heads": heads,
        "key_heads": int(getattr(config, "num_key_value_heads", None) or heads),
        "head_size": int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        "words": int(words.shape[0]),
        "tied": head is words,
        "fused": architecture is not None and len(architecture.row.reading) == 1,
        **({} if architecture is not None else _describe_library(model)),
    }


def _describe_library(model: Any) -> dict[str, Any]:
    """What a plan needs beside, of a model that goes through the library's modules."""
    head = model.get_output_embeddings()
    linear = sum(
        module.in_features * module.out_features
        for module in model.modules()
        if hasattr(module, "in_features") and module is not head
    )
    stacks = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] == EXPERTS]
    weights = [part for stack in stacks for part in stack.parameters(recurse=False) if part.dim() == 3]
    experts = max((len(part) for part in weights), default=0)
    chosen = int(getattr(model.config, "num_experts_per_tok", 0) or 0) if experts else 0
    inner = next((part.numel() // (experts * int(model.config.hidden_size)) for part in reversed(weights)), 0)
    return {
        "library": True,
        "roles": list_roles(model),
        "linear_total": linear,
        "experts": experts,
        "chosen": chosen,
        "expert_inner": inner,
        "expert_layers": len(stacks),
        "shared": bool(experts) and bool(getattr(model.config, "shared_intermediate_size", 0)),
    }
