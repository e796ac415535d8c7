"""The metadata of a build: JSON with its version and its compatibility number."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from appliance.formats.core.canonical import parse_json
from appliance.formats.core.fields import parse_count, parse_object, parse_text

_WHAT = "compatibility"


@dataclass(frozen=True)
class BuildMetadata:
    """A build: its version, and the number that all processes of one log have in common (`appliance.build`)."""

    version: str
    compatibility: int


def encode_build_metadata(build: BuildMetadata) -> bytes:
    """Encode a build's metadata."""
    return json.dumps(asdict(build)).encode() + b"\n"


def parse_build_metadata(data: bytes) -> BuildMetadata:
    """Parse a build's metadata.

    Raises: BadInput for anything else.
    """
    value = parse_object(parse_json(data, _WHAT), _WHAT, frozenset({"version", "compatibility"}))
    version = parse_text(value["version"], f"{_WHAT}, version")
    return BuildMetadata(version, parse_count(value["compatibility"], f"{_WHAT}, compatibility"))
