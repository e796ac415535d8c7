"""Tensor headers of a folder's safetensors files. No torch, and no weights are read.

The format (https://huggingface.co/docs/safetensors): the header's length in 8 bytes, little-endian, the header as JSON,
the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import BadInput

MAX_HEADER_BYTES = 16 << 20
SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
    **{"U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8},
}
"""Bytes per number of each dtype that a base may hold."""


@dataclass(frozen=True)
class Header:
    """The header of one tensor; `file` is the name of its file."""

    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def bytes(self) -> int:
        return SIZES[self.dtype] * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read_headers(folder: Path, files: Iterable[str]) -> dict[str, Header]:
    """Return the headers of all tensors in the files, by tensor name.

    Raises:
        BadInput: a tensor is in two files, or its offsets do not match its dtype and shape.
    """
    found: dict[str, Header] = {}
    for file in sorted(files):
        for name, header in _read_file(folder / file).items():
            if name in found:
                raise BadInput(
                    f"base, {name}: expected this tensor in one file, got it in {found[name].file} and {file}: "
                    "bring the publisher's own shards"
                )
            found[name] = header
    return found


def _read_file(path: Path) -> dict[str, Header]:
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        data = stream.read(length) if length <= min(size, MAX_HEADER_BYTES) else b""
    try:
        members = json.loads(data)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise BadInput(f"base, weights: expected safetensors in {path.name}, got another header")
    members.pop("__metadata__", None)
    headers, spans = {}, []
    for name, member in members.items():
        headers[name], span = _read_member(name, member, path.name)
        spans.append((*span, name))
    _check_spans(spans, size - 8 - length, path.name)
    return headers


def _read_member(name: str, member: Any, file: str) -> tuple[Header, tuple[int, int]]:
    dtype: Any
    shape: Any
    span: Any
    dtype, shape, span = [member.get(key) if isinstance(member, dict) else None for key in _MEMBERS]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise BadInput(f"base, {name} in {file}: expected a dtype of {', '.join(SIZES)}, got {dtype!r:.40}")
    if not _are_counts(shape) or not _are_counts(span) or len(span) != 2:
        raise BadInput(f"base, {name} in {file}: expected a shape and two offsets, got {shape!r:.40} and {span!r:.40}")
    header = Header(dtype, tuple(shape), file)
    if span[1] - span[0] != header.bytes:
        raise BadInput(f"base, {name} in {file}: expected {header.bytes} bytes of {header}, got offsets {span}")
    return header, (span[0], span[1])


_MEMBERS = ("dtype", "shape", "data_offsets")


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _check_spans(spans: list[tuple[int, int, str]], size: int, file: str) -> None:
    """Check that the tensors are contiguous and fill the file."""
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            kind = "that overlap" if start < end else "with a gap before it"
            raise BadInput(f"base, {name} in {file}: expected it to begin at byte {end}, got {start}: tensors {kind}")
        end = stop
    if end != size:
        raise BadInput(f"base, weights: expected {end} bytes of tensors in {file}, got {size}: the file is not whole")


def check_index(index: Mapping[str, Any], headers: Mapping[str, Header], file: str) -> None:
    """Check that the index of shards names the file of every tensor.

    Raises:
        BadInput: the index names another file for a tensor, or a tensor that does not exist, or omits one.
    """
    named = index.get("weight_map")
    if not isinstance(named, dict):
        raise BadInput(f"base, {file}: expected a weight_map, got {type(named).__name__}")
    for name, shard in named.items():
        held = headers.get(name)
        if held is None or held.file != shard:
            got = "none that has it" if held is None else held.file
            raise BadInput(f"base, {name}: expected it in {shard!r:.60}, as {file} says, got {got}")
    for name, held in headers.items():
        if name not in named:
            raise BadInput(f"base, {name}: expected it in {file}, since {held.file} has it, got no such tensor")
