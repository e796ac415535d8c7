"""The fold, kept in a file under the log's seal, so that the next start continues there instead of at the first entry.

    <decimal length of the note>
    <note>      text, an empty line, the log key's signature: of which log the rest is, and what it hashes to
    <body>      the tree's right edge as a line of hexadecimal hashes, then the state

It is a cache, and only the service that wrote it uses it: the seal's key must be one of this service's, and the code
the same. A valid seal is evidence whatever code made it: the log had that root at that size. A log that is shorter now,
or different, is refused (docs/adr/0012-a-start-from-a-sealed-fold.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from appliance.domain.audit.snapshot import Snapshot, decode_snapshot, encode_snapshot, take_snapshot
from appliance.errors import ApplianceError, BadInput, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64, parse_base64, parse_decimal, show
from appliance.formats.core.merkle import Frontier
from appliance.formats.log.note import parse_note, sign_note, verify_note, vkey_of
from appliance.formats.signatures.keys import Signer
from appliance.store.files import disk
from appliance.store.ledger.fold import Fold, Seen

log = logging.getLogger("appliance")

MAX_BYTES = 4 << 30
_MAX_NOTE = 4_096

FindSigner = Callable[[str], Signer]
"""The signer of one of the log's vkeys; NotFound where it is not held here."""


class Kept(NamedTuple):
    """What a valid seal proves: the log's root at a size, and the fold there; None where other code made it, or
    where it is of too few entries to be worth it."""

    seen: Seen
    fold: Fold | None


class _Seal(NamedTuple):
    """The note's lines. `vkey` is the log's key of that moment, `code` a digest over what made the fold."""

    origin: str
    vkey: str
    size: int
    root: bytes
    code: str
    body: str

    @property
    def text(self) -> str:
        """The first line is no log's origin, so that this note is no checkpoint."""
        root = encode_base64(self.root)
        return f"{self.origin}/fold\n{self.vkey}\n{self.size}\n{root}\n{self.code}\n{self.body}\n"


class Snapshots:
    """The one snapshot at a path. Errors of the disk are Unavailable."""

    def __init__(self, path: Path, *, origin: str, code: str, signers: FindSigner, least: int = 0) -> None:
        """A fold of fewer entries than `least` is not taken from it."""
        self._path = path
        self._origin = origin
        self._code = code
        self._signers = signers
        self._least = least
        self.size = 0
        """Of the log whose fold was read or written last."""

    def read(self) -> Kept | None:
        """None where there is none, or none whose seal holds: every entry is folded then."""
        try:
            return self._read()
        except NotFound:
            return None
        except ApplianceError as error:
            log.warning("%s: nothing is taken from it: %s", self._path, error.message)
            return None

    def _read(self) -> Kept:
        what = f"snapshot {self._path}"
        with (
            disk.disk_errors(what),
            disk.open_folder(self._path.parent) as folder,
            disk.open_plain(folder, self._path.name, what) as file,
        ):
            data = disk.read_all(file, MAX_BYTES, what)
        length, _, rest = data.partition(b"\n")
        size = parse_decimal(length[:8].decode("ascii", "replace"), f"{what}, note")
        seal, body = self._open(rest[: min(size, _MAX_NOTE)], what), rest[size:]
        if digest_bytes(body) != seal.body:
            raise Tampered(f"{what}: expected the bytes of {seal.body}, got those of {digest_bytes(body)}")
        is_taken = seal.code == self._code and seal.size >= self._least
        fold = _decode(body, seal, what) if is_taken else None
        self.size = 0 if fold is None else seal.size
        return Kept(Seen(seal.size, seal.root), fold)

    def _open(self, data: bytes, what: str) -> _Seal:
        """The seal, once its signature holds under a key that this service holds."""
        note = parse_note(data)
        lines = note.text.split("\n")
        if len(lines) != 7 or lines[0] != f"{self._origin}/fold":
            raise Tampered(f"{what}: expected one of the log {self._origin}, got {show(lines[0])}")
        root = parse_base64(lines[3], f"{what}, root", size=32)
        seal = _Seal(self._origin, lines[1], parse_decimal(lines[2], f"{what}, size"), root, lines[4], lines[5])
        if vkey_of(self._origin, self._signers(seal.vkey)) != seal.vkey:
            raise Tampered(f"{what}: expected a key of the log, got {seal.vkey}")
        verify_note(note, seal.vkey)
        return seal

    def write(self, snapshot: Snapshot, frontier: Frontier, vkey: str) -> None:
        """Durably, in the place of the one before; `vkey` is the log's key at that moment."""
        edge = b" ".join(node.hex().encode() for node in frontier.hashes)
        body = edge + b"\n" + encode_snapshot(snapshot)
        seal = _Seal(self._origin, vkey, frontier.size, frontier.root(), self._code, digest_bytes(body))
        note = sign_note(seal.text, self._origin, self._signers(vkey))
        with disk.disk_errors(f"snapshot {self._path}"):
            disk.write_file(self._path, b"%d\n" % len(note) + note + body)
        self.size = seal.size


def copy_fold(fold: Fold) -> tuple[Snapshot, Frontier, str]:
    """What `write` needs of a fold, which may change meanwhile."""
    return take_snapshot(fold.state), fold.frontier, fold.state.site.log_key


def _decode(body: bytes, seal: _Seal, what: str) -> Fold:
    edge, _, rest = body.partition(b"\n")
    state = decode_snapshot(rest)
    frontier = Frontier(seal.size, tuple(bytes.fromhex(node) for node in edge.decode("ascii").split()))
    found = (state.size, frontier.root(), state.site.log_key)
    if found != (seal.size, seal.root, seal.vkey):
        raise BadInput(f"{what}: expected the size, root and key that it was sealed with, got size {state.size}")
    return Fold.restored(state, frontier)
