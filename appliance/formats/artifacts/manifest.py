"""The manifest of a sealed folder: the path, size and digest of every file; and the files of a base model's folder.

The digest of the manifest is the identity of the adapter. The manifest is stored in the folder that it describes, as
`manifest.json`, and does not list itself. Paths are narrower than any file system allows: names that a reader could
hide, change or resolve to another file are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from appliance.errors import BadInput
from appliance.formats.core.canonical import MAX_INTEGER, encode_canonical, parse_canonical
from appliance.formats.core.digest import digest_bytes, parse_digest
from appliance.formats.core.fields import (
    parse_constant,
    parse_count,
    parse_identifier,
    parse_list,
    parse_object,
    parse_record,
    parse_text,
    show,
)

MANIFEST_TYPE = "urn:appliance:manifest:v1"
MANIFEST_PATH = "manifest.json"
MAX_FILES = 10_000
_MEMBERS = frozenset({"_type", "files", "name", "version"})
# No leading dot: the public model_signing command ignores .git* and similar files.
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,126}")
_MAX_COMPONENTS = 8
_FRACTION = re.compile(r"(?:0|[1-9][0-9]{0,8})\.[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of the sealed folder; `size` is in bytes."""

    path: str
    size: int
    digest: str

    def __post_init__(self) -> None:
        parse_path(self.path, "manifest, path")
        if parse_count(self.size, f"manifest, size of {self.path}") > MAX_INTEGER:
            raise BadInput(f"manifest, size of {self.path}: expected at most {MAX_INTEGER}, got {self.size}")
        parse_digest(self.digest, f"manifest, digest of {self.path}")


@dataclass(frozen=True, slots=True)
class PrivacyGuarantee:
    """The differential-privacy guarantee (epsilon, delta) of an adapter, per training row, as decimal text."""

    epsilon: str
    delta: str

    def __post_init__(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("delta", self.delta)):
            if _FRACTION.fullmatch(parse_text(value, f"manifest, privacy, {name}")) is None:
                raise BadInput(f"manifest, privacy, {name}: expected a decimal fraction such as 2.5, got {show(value)}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a sealed folder, with the adapter's name and version.

    `files` has 1 to `MAX_FILES` files, sorted by path, without `manifest.json`; no two paths may be equal in any file
    system. `privacy` is set for adapters that were trained privately.
    """

    name: str
    version: int
    files: tuple[ManifestFile, ...]
    privacy: PrivacyGuarantee | None = None

    def __post_init__(self) -> None:
        parse_identifier(self.name, "manifest, name")
        if parse_count(self.version, "manifest, version", least=1) > MAX_INTEGER:
            raise BadInput(f"manifest, version: expected at most {MAX_INTEGER}, got {self.version}")
        if not 1 <= len(self.files) <= MAX_FILES:
            raise BadInput(f"manifest, files: expected 1 to {MAX_FILES}, got {len(self.files)}")
        paths = [file.path for file in self.files]
        if paths != sorted(paths):
            first = next(path for path, expected in zip(paths, sorted(paths), strict=True) if path != expected)
            raise BadInput(f"manifest, files: expected them sorted by path, got {show(first)} out of order")
        check_paths(paths, "manifest")
        if MANIFEST_PATH in {path.lower() for path in paths}:
            raise BadInput(f"manifest, files: expected all but {MANIFEST_PATH}, got it too")

    @property
    def digest(self) -> str:
        """Return the SHA-256 digest of the encoded manifest, which identifies the adapter."""
        return digest_bytes(encode_manifest(self))


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode the manifest as canonical JSON (RFC 8785)."""
    value = {
        "_type": MANIFEST_TYPE,
        "files": [asdict(file) for file in manifest.files],
        "name": manifest.name,
        "version": manifest.version,
    }
    if manifest.privacy is not None:
        value["privacy"] = asdict(manifest.privacy)
    return encode_canonical(value)


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest from canonical JSON."""
    parsed = parse_canonical(data)
    private = isinstance(parsed, dict) and "privacy" in parsed
    value = parse_object(parsed, "manifest", _MEMBERS | {"privacy"} if private else _MEMBERS)
    parse_constant(value["_type"], "manifest, _type", MANIFEST_TYPE)
    files = parse_list(value["files"], "manifest, files")
    return Manifest(
        name=value["name"],
        version=value["version"],
        files=tuple(parse_record(ManifestFile, file, "manifest, file") for file in files),
        privacy=parse_record(PrivacyGuarantee, value["privacy"], "manifest, privacy") if private else None,
    )


def parse_path(value: Any, what: str) -> str:
    """Return the value if it is a plain relative path.

    A path has at most 8 components of letters, digits, `.`, `_` and `-`. No component starts with a dot or a hyphen.
    """
    path = parse_text(value, what)
    steps = path.split("/")
    if len(steps) > _MAX_COMPONENTS or not all(_COMPONENT.fullmatch(step) for step in steps):
        raise BadInput(f"{what}: expected a plain relative path, got {show(path)}")
    return path


def check_paths(paths: Iterable[str], what: str) -> None:
    """Check that every path is unique, ignoring letter case, and that no path is a folder of another one."""
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        folded = path.lower()
        steps = folded.split("/")
        if folded in seen:
            raise BadInput(f"{what}, path {show(path)}: expected it once, got it twice, letter case aside")
        seen.add(folded)
        folders.update("/".join(steps[:depth]) for depth in range(1, len(steps)))
    if both := seen & folders:
        raise BadInput(f"{what}, path {show(min(both))}: expected a file or a folder, got both")


REQUIRED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
SETTINGS_FILE = "quantize_config.json"
"""Settings of quantised weights as AutoGPTQ wrote them, before they became part of `config.json`."""
ALLOWED_FILES = frozenset(
    {
        *REQUIRED_FILES,
        WEIGHTS_FILE,
        WEIGHTS_INDEX_FILE,
        SETTINGS_FILE,
        "quant_log.csv",  # written by gptqmodel; copied, never read
        "generation_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
    }
)
_SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_PICKLE = "a pickle, which runs code when it is read"
_REFUSED = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"), _PICKLE),
    ".py": "remote code",
    ".gguf": "a GGUF file, which is imported by itself",
}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_LISTED = 16


def is_needed(name: str) -> bool:
    """Return True if an import reads or copies a file of this name."""
    return name in ALLOWED_FILES or _SHARD.fullmatch(name) is not None


def find_danger(name: str) -> str | None:
    """Return the reason why a model folder must not hold a file of this name, or None if the name is harmless."""
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    return _REFUSED.get(suffix)


def describe_ignored(names: list[str]) -> str:
    """List the names of ignored files for a message: at most 16 of plain characters, and the number of the others."""
    plain = [name for name in names if _PLAIN_NAME.fullmatch(name)][:_MAX_LISTED]
    others = len(names) - len(plain)
    return ", ".join([*plain, *([f"{others} more"] if others else [])])
