"""A GGUF file's header, read with every count held against the file before anything is allocated for it. No torch.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf library reads the header again afterwards, and
trusts every count.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from appliance.errors import BadInput
from appliance.ml.model.bounds import MAX_TOKEN_BYTES, MAX_VOCABULARY, check_claims, check_weights

ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3")
"""As GGUF names them; Mistral is a llama there."""
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
    """BadInput for a header that claims more than the file holds, or an architecture that is not known."""
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
    # Where the file leaves it out, it is as long as its list of tokens.
    config.setdefault("vocab_size", found.get("tokenizer.ggml.tokens"))
    check_claims(config, what)
    check_weights(config, weights, what)


class _Header:
    """Reads forward. A list is skipped, and its length is returned in its place."""

    def __init__(self, stream: BinaryIO, what: str) -> None:
        self.what = what
        self._stream = stream
        self._size = os.fstat(stream.fileno()).st_size

    def begin(self) -> tuple[int, int]:
        """How many tensors, and how many pairs of a name and a value."""
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
        """Of all tensors; each weight takes a bit of the file at least."""
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
