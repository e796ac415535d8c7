"""The seal of a state snapshot: a signed note over the log's root at a size and the digest of the snapshot's body.

Its first line is not a log's origin, so the note cannot be used as a checkpoint (docs/adr/0012).
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import BadInput
from appliance.formats.core.digest import parse_digest
from appliance.formats.core.fields import encode_base64, parse_base64, parse_decimal, show
from appliance.formats.core.merkle import HASH_BYTES
from appliance.formats.log.note import parse_vkey

_SUFFIX = "/state"


@dataclass(frozen=True, slots=True)
class LogSeal:
    """The lines of a seal. `vkey` is the log's key at that time, `code` a digest of the code that made the state."""

    origin: str
    vkey: str
    size: int
    root: bytes
    code: str
    body: str


def encode_seal(seal: LogSeal) -> str:
    """Encode the seal as the text of a note."""
    lines = (f"{seal.origin}{_SUFFIX}", seal.vkey, str(seal.size), encode_base64(seal.root), seal.code, seal.body)
    return "".join(f"{line}\n" for line in lines)


def parse_seal(text: str) -> LogSeal:
    """Parse the text of a note as a seal."""
    lines = text.split("\n")
    if len(lines) != 7 or lines[6] or not lines[0].endswith(_SUFFIX):
        raise BadInput(
            f"seal of a snapshot: expected 6 lines, the first a log's origin and {_SUFFIX}, got {show(text)}"
        )
    origin = lines[0].removesuffix(_SUFFIX)
    if parse_vkey(lines[1]).name != origin:
        raise BadInput(f"seal of a snapshot, key: expected one of the log {show(origin)}, got {show(lines[1])}")
    root = parse_base64(lines[3], "seal of a snapshot, root", size=HASH_BYTES)
    size = parse_decimal(lines[2], "seal of a snapshot, size")
    code, body = (parse_digest(line, "seal of a snapshot, digest") for line in lines[4:6])
    return LogSeal(origin, lines[1], size, root, code, body)
