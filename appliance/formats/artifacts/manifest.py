"""The manifest of a sealed folder: every file with size and digest. Its own digest is the adapter's identity.

The manifest is in the folder that it describes, as `manifest.json`, and does not list itself. Paths are narrower than
any file system allows: a name that some reader would hide, change or follow to another file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
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
    parse_text,
    show,
)

MANIFEST_TYPE = "urn:appliance:manifest:v1"
MANIFEST_PATH = "manifest.json"
MAX_FILES = 10_000
_MEMBERS = frozenset({"_type", "files", "name", "version"})
_PRIVATE_MEMBERS = frozenset({"delta", "epsilon"})
_FILE_MEMBERS = frozenset({"digest", "path", "size"})
# No leading dot: the public model_signing command looks past .git* and the like.
_STEP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,126}")
_MAX_STEPS = 8
_FRACTION = re.compile(r"(?:0|[1-9][0-9]{0,8})\.[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """`size` in bytes."""

    path: str
    size: int
    digest: str

    def __post_init__(self) -> None:
        parse_path(self.path, "manifest, path")
        if parse_count(self.size, f"manifest, size of {self.path}") > MAX_INTEGER:
            raise BadInput(f"manifest, size of {self.path}: expected at most {MAX_INTEGER}, got {self.size}")
        parse_digest(self.digest, f"manifest, digest of {self.path}")


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What an adapter tells of any one row that it was trained on: differential privacy, in decimal text."""

    epsilon: str
    delta: str

    def __post_init__(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("delta", self.delta)):
            if _FRACTION.fullmatch(parse_text(value, f"manifest, privacy, {name}")) is None:
                raise BadInput(f"manifest, privacy, {name}: expected a decimal fraction such as 2.5, got {show(value)}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """`files` sorted by path, at least one, no two alike in any file system, `manifest.json` not among them; `privacy`
    of an adapter that was trained privately."""

    name: str
    version: int
    files: tuple[ManifestFile, ...]
    privacy: Guarantee | None = None

    def __post_init__(self) -> None:
        parse_identifier(self.name, "manifest, name")
        if parse_count(self.version, "manifest, version", least=1) > MAX_INTEGER:
            raise BadInput(f"manifest, version: expected at most {MAX_INTEGER}, got {self.version}")
        if not 1 <= len(self.files) <= MAX_FILES:
            raise BadInput(f"manifest, files: expected 1 to {MAX_FILES}, got {len(self.files)}")
        paths = [file.path for file in self.files]
        if paths != sorted(paths):
            first = next(path for path, place in zip(paths, sorted(paths), strict=True) if path != place)
            raise BadInput(f"manifest, files: expected them sorted by path, got {show(first)} out of order")
        check_paths(paths, "manifest")
        if MANIFEST_PATH in {path.lower() for path in paths}:
            raise BadInput(f"manifest, files: expected all but {MANIFEST_PATH}, got it too")

    @property
    def digest(self) -> str:
        return digest_bytes(encode_manifest(self))


def encode_manifest(manifest: Manifest) -> bytes:
    value = {
        "_type": MANIFEST_TYPE,
        "files": [{"digest": file.digest, "path": file.path, "size": file.size} for file in manifest.files],
        "name": manifest.name,
        "version": manifest.version,
    }
    if manifest.privacy is not None:
        value["privacy"] = {"delta": manifest.privacy.delta, "epsilon": manifest.privacy.epsilon}
    return encode_canonical(value)


def parse_manifest(data: bytes) -> Manifest:
    found = parse_canonical(data)
    private = isinstance(found, dict) and "privacy" in found
    value = parse_object(found, "manifest", _MEMBERS | {"privacy"} if private else _MEMBERS)
    parse_constant(value["_type"], "manifest, _type", MANIFEST_TYPE)
    return Manifest(
        name=parse_identifier(value["name"], "manifest, name"),
        version=parse_count(value["version"], "manifest, version", least=1),
        files=tuple(_parse_file(item) for item in parse_list(value["files"], "manifest, files")),
        privacy=_parse_guarantee(value["privacy"]) if private else None,
    )


def _parse_guarantee(value: object) -> Guarantee:
    members = parse_object(value, "manifest, privacy", _PRIVATE_MEMBERS)
    return Guarantee(**{name: parse_text(one, f"manifest, privacy, {name}") for name, one in members.items()})


def _parse_file(value: object) -> ManifestFile:
    file = parse_object(value, "manifest, file", _FILE_MEMBERS)
    path = parse_path(file["path"], "manifest, path")
    return ManifestFile(
        path=path,
        size=parse_count(file["size"], f"manifest, size of {path}"),
        digest=parse_digest(file["digest"], f"manifest, digest of {path}"),
    )


def parse_path(value: Any, what: str) -> str:
    """A relative path of at most 8 steps: letters, digits, `.`, `_`, `-`, and no step that starts with a dot or `-`."""
    path = parse_text(value, what)
    steps = path.split("/")
    if len(steps) > _MAX_STEPS or not all(_STEP.fullmatch(step) for step in steps):
        raise BadInput(f"{what}: expected a plain relative path, got {show(path)}")
    return path


def check_paths(paths: Iterable[str], what: str) -> None:
    """No path twice, not even in a file system that folds case, and none that is also another's folder."""
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
