"""The allow-list of files in a base model's folder and of values in its configuration.

Pickle files run code when they are read, `auto_map` runs code that came with a model, and a link can point outside the
folder. No torch: this check comes before any library reads the files.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, TooLarge
from appliance.formats.artifacts.manifest import (
    ALLOWED_FILES,
    MANIFEST_PATH,
    REQUIRED_FILES,
    SETTINGS_FILE,
    WEIGHTS_INDEX_FILE,
    find_danger,
    is_needed,
)
from appliance.ml.model.bounds import check_claims, check_weights
from appliance.ml.model.library import find_refusal
from appliance.ml.model.tokenizer import check_size, check_tokenizer
from appliance.ml.quantised.gptq import find_layers
from appliance.ml.quantised.headers import Header, check_index, read_headers
from appliance.ml.quantised.nf4 import NF4_FILE, Quantised, read_quantised

CONFIG_FILE = "config.json"

_MAX_JSON_BYTES = 64 << 20
_MAX_CONFIG_BYTES = 1 << 20
_EXPERT = re.compile(r"\.experts\.[0-9]+\.")
_MAX_WEIGHTS_HEADER_BYTES = 16 << 20


def check_folder(folder: Path, *, sealed: bool = False) -> list[str]:
    """Return the names of the files of a base, sorted.

    A `sealed` folder is the service's own: besides, it may hold only the manifest of its files and `NF4_FILE`. In a
    publisher's folder other entries are ignored (`list_ignored`), except pickles and code.

    Raises:
        BadInput: an entry is refused or missing; the message names the first one.
    """
    ours = (MANIFEST_PATH, NF4_FILE) if sealed else ()
    names = sorted(name for name in os.listdir(folder) if name not in ours)
    for name in names:
        _check_entry(folder, name, sealed=sealed)
    names = [name for name in names if is_needed(name)]
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


def list_ignored(folder: Path) -> list[str]:
    """Return the names of the entries of a publisher's folder that an import ignores, sorted."""
    return sorted(name for name in os.listdir(folder) if not is_needed(name))


def read_quantisation(folder: Path) -> Quantised | None:
    """Return the quantisation that a folder states; None for unquantised weights."""
    config = _read_json(folder / CONFIG_FILE, _MAX_CONFIG_BYTES)
    path = folder / SETTINGS_FILE
    beside = _read_json(path, _MAX_CONFIG_BYTES) if path.exists() else None
    if beside is not None and not isinstance(beside, dict):
        raise BadInput(f"base, {SETTINGS_FILE}: expected a JSON object, got {type(beside).__name__}")
    return read_quantised(config, beside, f"base, {CONFIG_FILE}")


def _check_tensors(folder: Path, weights: list[str], quantised: Quantised | None) -> None:
    """Check by the headers that each tensor is in the file that the index names, and that packed tensors fit."""
    headers = read_headers(folder, weights)
    if not (folder / WEIGHTS_INDEX_FILE).exists():
        if len(weights) > 1:
            raise BadInput(
                f"base, {WEIGHTS_INDEX_FILE}: expected it beside several files of weights, got none for "
                f"{', '.join(weights[:3])}"
            )
    else:
        check_index(_read_json(folder / WEIGHTS_INDEX_FILE), headers, WEIGHTS_INDEX_FILE)
    _check_experts(headers)
    if quantised is not None and quantised.gptq is not None:
        find_layers(quantised.gptq, headers)


def _check_experts(headers: Mapping[str, Header]) -> None:
    """Refuse experts of a layer with different shapes: the library joins them into one tensor and fails unclearly."""
    first: dict[str, str] = {}
    for name, header in headers.items():
        like = first.setdefault(_EXPERT.sub(".experts.", name), name)
        if _EXPERT.search(name) and header.shape != headers[like].shape:
            raise BadInput(
                f"base, {name}: expected {list(headers[like].shape)}, as {like} has, got {list(header.shape)}"
            )


def _check_entry(folder: Path, name: str, *, sealed: bool) -> None:
    if not is_needed(name):
        danger = find_danger(name)
        if danger is None and not sealed:
            return
        raise BadInput(
            f"base, {name}: expected only {', '.join(sorted(ALLOWED_FILES))} and shards, got "
            f"{danger or 'a file outside the allow-list'}",
            code="base-refused",
        )
    mode = os.lstat(folder / name).st_mode
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a folder"))
        got = next((kind for test, kind in kinds if test(mode)), "a special one")
        raise BadInput(f"base, {name}: expected a regular file, got {got}", code="base-refused")


def _measure_weights(path: Path) -> int:
    """Return the largest number of weights that the file can hold, at one byte or more each."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        # safetensors begins with the header's length, 8 bytes little-endian, then the header, then the weights.
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
    """Refuse fields that would make a library load code that came with the model."""
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
    # The library reads this field and fails without it.
    if not isinstance(index.get("metadata"), dict):
        raise BadInput(f"base, {WEIGHTS_INDEX_FILE}, metadata: expected an object, got {index.get('metadata')!r:.40}")
