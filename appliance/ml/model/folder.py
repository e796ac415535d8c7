"""What may lie in a base model's folder, and what may stand in its configuration: an allow-list, checked by name.

A pickle runs code when it is read, `auto_map` runs code that came with a model, and a link points out of the folder.
No torch: the check comes before anything that could be fooled.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, TooLarge
from appliance.formats.artifacts.manifest import MANIFEST_PATH
from appliance.ml.model.bounds import check_claims, check_weights
from appliance.ml.model.library import find_refusal
from appliance.ml.model.tokenizer import check_size, check_tokenizer
from appliance.ml.quantised.gptq import find_layers
from appliance.ml.quantised.headers import check_index, read_headers
from appliance.ml.quantised.settings import NF4_FILE, SETTINGS_FILE, Quantised, read_quantised

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

REQUIRED_FILES = (CONFIG_FILE, "tokenizer.json", "tokenizer_config.json")
ALLOWED_FILES = frozenset(
    {
        *REQUIRED_FILES,
        WEIGHTS_FILE,
        WEIGHTS_INDEX_FILE,
        SETTINGS_FILE,
        "quant_log.csv",  # what gptqmodel writes beside: copied, never read
        "generation_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
    }
)
_SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_MAX_JSON_BYTES = 64 << 20
_MAX_CONFIG_BYTES = 1 << 20
_MAX_WEIGHTS_HEADER_BYTES = 16 << 20

_REASONS = {
    ".bin": "a pickle, which runs code when it is read",
    ".pt": "a pickle, which runs code when it is read",
    ".pth": "a pickle, which runs code when it is read",
    ".pkl": "a pickle, which runs code when it is read",
    ".pickle": "a pickle, which runs code when it is read",
    ".ckpt": "a pickle, which runs code when it is read",
    ".py": "remote code",
    ".gguf": "a GGUF file, which is imported by itself",
}


def is_allowed(name: str) -> bool:
    return name in ALLOWED_FILES or _SHARD.fullmatch(name) is not None


def check_folder(folder: Path, *, sealed: bool = False) -> list[str]:
    """The names of the folder's files, sorted. BadInput names the first entry that may not be there.

    A `sealed` folder is one of ours and may carry the manifest of its own files, and `NF4_FILE`; a stranger's may not.
    """
    ours = (MANIFEST_PATH, NF4_FILE) if sealed else ()
    names = sorted(name for name in os.listdir(folder) if name not in ours)
    for name in names:
        _check_entry(folder, name)
    for name in REQUIRED_FILES:
        if name not in names:
            raise BadInput(f"base, {name}: expected this file, got a folder without it")
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise BadInput("base: expected weights in safetensors, got none")
    config = _read_json(folder / CONFIG_FILE, _MAX_CONFIG_BYTES)
    _check_config(config)
    quantised = read_quantisation(folder)
    if sealed and quantised is not None and quantised.widened:
        raise BadInput(f"base, {CONFIG_FILE}: expected weights that an import has made bf16, got {quantised.widened}")
    times = 1 if quantised is None else quantised.weights_a_byte
    check_weights(config, times * sum(_measure_weights(folder / name) for name in weights), f"base, {CONFIG_FILE}")
    for name in names:
        if name.endswith(".json"):
            _check_no_code(_read_json(folder / name), name)
    tokenizer = _read_json(folder / "tokenizer.json")
    check_tokenizer(tokenizer)
    check_size(tokenizer, config["vocab_size"])
    if WEIGHTS_INDEX_FILE in names:
        _check_index(_read_json(folder / WEIGHTS_INDEX_FILE), set(weights))
    _check_tensors(folder, weights, quantised)
    return names


def read_quantisation(folder: Path) -> Quantised | None:
    """What the folder says that its weights are; None for plain ones."""
    config = _read_json(folder / CONFIG_FILE, _MAX_CONFIG_BYTES)
    path = folder / SETTINGS_FILE
    beside = _read_json(path, _MAX_CONFIG_BYTES) if path.exists() else None
    if beside is not None and not isinstance(beside, dict):
        raise BadInput(f"base, {SETTINGS_FILE}: expected a JSON object, got {type(beside).__name__}")
    return read_quantised(config, beside, f"base, {CONFIG_FILE}")


def _check_tensors(folder: Path, weights: list[str], quantised: Quantised | None) -> None:
    """By the headers: each tensor in one file, the one that the index names, and packed ones that fit one another."""
    headers = read_headers(folder, weights)
    if not (folder / WEIGHTS_INDEX_FILE).exists():
        if len(weights) > 1:
            raise BadInput(
                f"base, {WEIGHTS_INDEX_FILE}: expected it beside several files of weights, got none for "
                f"{', '.join(weights[:3])}"
            )
    else:
        check_index(_read_json(folder / WEIGHTS_INDEX_FILE), headers, WEIGHTS_INDEX_FILE)
    if quantised is not None and quantised.gptq is not None:
        find_layers(quantised.gptq, headers)


def _check_entry(folder: Path, name: str) -> None:
    mode = os.lstat(folder / name).st_mode
    if stat.S_ISLNK(mode):
        raise BadInput(f"base, {name}: expected a regular file, got a symbolic link", code="base-refused")
    if stat.S_ISDIR(mode):
        raise BadInput(f"base, {name}: expected files only, got a folder", code="base-refused")
    if not stat.S_ISREG(mode):
        raise BadInput(f"base, {name}: expected a regular file, got a special one", code="base-refused")
    if not is_allowed(name):
        reason = _REASONS.get(Path(name).suffix.lower(), "a file outside the allow-list")
        raise BadInput(
            f"base, {name}: expected only {', '.join(sorted(ALLOWED_FILES))} and shards, got {reason}",
            code="base-refused",
        )


def _measure_weights(path: Path) -> int:
    """How many weights the file can hold, at a byte or more each; TooLarge for a header that no model needs."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        # safetensors: the header's length, 8 bytes little-endian, and the header, before the weights.
        header = int.from_bytes(stream.read(8), "little")
    if header > min(size, _MAX_WEIGHTS_HEADER_BYTES):
        expected = f"safetensors in {path.name}, with a header of at most {_MAX_WEIGHTS_HEADER_BYTES} bytes"
        raise TooLarge(f"base, weights: expected {expected}, got {header}")
    return size - header


def _read_json(path: Path, most: int = _MAX_JSON_BYTES) -> Any:
    if path.stat().st_size > most:
        raise TooLarge(f"base, {path.name}: expected at most {most} bytes, got {path.stat().st_size}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"base, {path.name}: expected JSON, got: {str(error)[:200]}") from None


def _check_config(config: Any) -> None:
    architectures = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise BadInput(f"base, {CONFIG_FILE}, architectures: expected one name, got {architectures!r:.80}")
    if (refusal := find_refusal(config)) is not None:
        raise BadInput(f"base, {CONFIG_FILE}, {refusal}")
    check_claims(config, f"base, {CONFIG_FILE}")


def _check_no_code(value: Any, name: str) -> None:
    """Refuses what would make a library load code that came with the model."""
    if not isinstance(value, dict):
        raise BadInput(f"base, {name}: expected a JSON object, got {type(value).__name__}")
    for key in ("auto_map", "custom_pipelines", "trust_remote_code"):
        if value.get(key):
            raise BadInput(f"base, {name}: expected no remote code, got {key}", code="base-refused")


def _check_index(index: Any, weights: set[str]) -> None:
    shards = index.get("weight_map")
    named = set(shards.values()) if isinstance(shards, dict) else set()
    if named != weights:
        different = sorted(str(name) for name in named ^ weights)
        raise BadInput(
            f"base, {WEIGHTS_INDEX_FILE}: expected it to name the weights' files, got {', '.join(different)}"
        )
    # The library reads it, and fails without.
    if not isinstance(index.get("metadata"), dict):
        raise BadInput(f"base, {WEIGHTS_INDEX_FILE}, metadata: expected an object, got {index.get('metadata')!r:.40}")
