"""Conversion of a model folder or a GGUF file into a base: safetensors, a tokenizer and a template only.

Parsing untrusted files is the appliance's largest risk, so it happens in the sandboxed preparing worker. The files of a
folder are copied unchanged, so their digests equal the publisher's.
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
from appliance.formats.artifacts.manifest import SETTINGS_FILE, describe_ignored
from appliance.ml.layers.architecture import find_architecture
from appliance.ml.layers.head import check_head
from appliance.ml.model.chat import (
    CONFIG_FILE,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    digest_template,
    digest_tokenizer,
    list_mismatches,
    load_chat,
)
from appliance.ml.model.folder import check_folder, list_ignored, read_quantisation
from appliance.ml.model.gguf import check_gguf, complete_config
from appliance.ml.model.library import EXPERTS, check_modules, list_roles
from appliance.ml.quantised.gptq import Gptq
from appliance.ml.quantised.loading import count_packed, load_arguments
from appliance.ml.quantised.nf4 import write_nf4
from appliance.ml.quantised.widening import check_numbers, check_values, widen_folder

LIBRARY_WARNING = "this architecture goes through the library's modules, without packing: see docs/guides/models.md"
_CHUNK_BYTES = 1 << 20
_DTYPE = torch.bfloat16


def convert_base(source: Path, output: Path) -> dict[str, Any]:
    """Write the base to an empty folder and return its description.

    Raises:
        BadInput: a file or setting may not be imported; the message names it.
    """
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
    ignored = list_ignored(source)
    warnings = [f"these entries of the folder are not part of the base: {describe_ignored(ignored)}"] if ignored else []
    if quantised is not None and quantised.widened:
        weights = _weights(names)
        warnings.append(widen_folder(source, output, weights, quantised.widened))
        names = [name for name in names if name not in {*weights, SETTINGS_FILE}]
    elif quantised is not None and quantised.gptq is not None:
        check_values(source, _weights(names), quantised.gptq)
    for name in names:
        if not (output / name).exists():
            _copy_file(source / name, output / name)
    # The files may have changed since the first check; this one is of the copies.
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
                folder,
                gguf_file=name,
                local_files_only=True,
                dtype=_DTYPE,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
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
    """Cache transformers' reads of a GGUF file.

    It reads the file three times and rebuilds a table for every tensor, 15 of 20 seconds.
    """
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
    """Return the name of the tokenizer's pre-tokenizer type."""
    try:
        reader = gguf.GGUFReader(str(source.absolute()))
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise BadInput(f"base, {source.name}: expected a whole GGUF file, got: {error}") from None
    field = reader.get_field("tokenizer.ggml.pre")
    return str(None if field is None else field.contents())


def _save_model(model: Any, output: Path) -> None:
    """Save a model read from GGUF; transformers refuses to do so while its quantiser's attributes are set."""
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
    """Refuse missing, unexpected or misshapen weights, which the library would replace by random numbers."""
    for name, stored, wanted in sorted(loading.get("mismatched_keys") or ()):
        raise BadInput(f"base, {name}: expected {list(wanted)}, as {CONFIG_FILE} says, got {list(stored)}")
    for kind in ("missing_keys", "unexpected_keys", "error_msgs"):
        if loading.get(kind):
            names = sorted(map(str, loading[kind]))[:3]
            raise BadInput(f"base, weights: expected exactly the architecture's own, got {kind}: {names}")


def _describe(output: Path, warnings: list[str]) -> dict[str, Any]:
    """Load the written base completely and return its description; refuse missing or unexpected weights."""
    names = check_folder(output, sealed=True)
    weights = _weights(names)
    for name in weights:
        _check_weights(output / name)
    warnings = [*warnings, *check_numbers(output, weights)]
    quantised = read_quantisation(output)
    gptq = None if quantised is None else quantised.gptq
    if gptq is not None:
        check_values(output, weights, gptq)
    model, loading = AutoModelForCausalLM.from_pretrained(
        str(output.absolute()),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype="auto",
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
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
    warnings = [*warnings, *list_mismatches(output, chat, len(model.get_input_embeddings().weight))]
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
    """Return the dimensions that a plan needs (`domain/planning/shape.py`)."""
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
    """Return the additional dimensions for a model that runs in the library's modules."""
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
