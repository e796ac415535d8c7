"""Export of a whole log in one file: an uncompressed tar of five members in fixed order, deterministic for a given log.

    export.json        {"origin", "size", "version": 1}, canonical: the description of the export
    checkpoint         the signed note over `size` entries
    entries.jsonl      the bytes of every entry and a newline, in order; {"removed": leaf hash} for a removed entry
    documents.jsonl    {"bytes": base64, "digest"} per line, in the order in which entries first bind them, each once
    disclosures.jsonl  {"commitment", "salt", "text"} per line, in the order of first use, each once

An entry uses a commitment if its bytes contain it, or if it is the first to bind a document whose bytes, or whose
envelope's payload, contain it. The writer checks nothing: it omits missing documents and writes bytes as they are
stored, so that a verifier can detect damage. The reader accepts only bytes that re-encode to themselves. It holds one
line at a time; its memory grows with the numbers of documents and disclosures only.
"""

from __future__ import annotations

import re
import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import BinaryIO, Self

from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import Disclosure, encode_disclosure, parse_disclosure
from appliance.formats.core.digest import parse_digest, raw_digest
from appliance.formats.core.fields import (
    encode_base64,
    parse_base64,
    parse_constant,
    parse_count,
    parse_object,
    parse_text,
    show,
)
from appliance.formats.core.merkle import hash_leaf
from appliance.formats.signatures.dsse import parse_envelope

VERSION = 1
MEMBERS = ("export.json", "checkpoint", "entries.jsonl", "documents.jsonl", "disclosures.jsonl")
MAX_ENTRY_LINE = 65_535 + 1
MAX_LINE = (1 << 26) - 1
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_TRUNCATED_HINT = "was it copied whole?"
_CHUNK = 1 << 16
_READ = 1 << 18
_BATCH = 500
_MAX_SMALL = 1 << 20
_USTAR_LIMIT = 8**11
_COMMITMENT = re.compile(rb"hmac-sha256:[0-9a-f]{64}")
_DIGEST = re.compile(rb'"(sha256:[0-9a-f]{64})"')
_DOCUMENTS, _NONE = b'"documents":{', b'"documents":{}'

_REMOVED = re.compile(rb'\{"removed":"sha256:([0-9a-f]{64})"\}')


def encode_removed(leaf: bytes) -> bytes:
    """Return the line of an entry whose bytes an archive removed from the log, by its leaf hash."""
    return b'{"removed":"sha256:%s"}' % leaf.hex().encode()


def read_removed(data: bytes) -> bytes | None:
    """Return the leaf hash of a removed entry's line, or None for an entry's bytes. No entry has such bytes."""
    found = _REMOVED.fullmatch(data) if data.startswith(b'{"removed"') else None
    return None if found is None else bytes.fromhex(found[1].decode())


def hash_line(data: bytes) -> bytes:
    """Return the leaf hash of an entry's bytes, or of a removed entry's line."""
    return read_removed(data) or hash_leaf(data)


ReadEntries = Callable[[], Iterable[bytes]]
ReadDocument = Callable[[str], bytes]
ReadDisclosures = Callable[[list[str]], Mapping[str, Disclosure]]


def write_export(
    *,
    origin: str,
    size: int,
    checkpoint: bytes,
    entries: ReadEntries,
    document: ReadDocument,
    disclosures: ReadDisclosures,
) -> Iterator[bytes]:
    """Yield the tar in chunks.

    `entries` is read twice, since a tar has the length of each member before its bytes. `document` raises NotFound for
    a missing document, which is then omitted.

    Raises:
        Tampered: an entry contains a line break.
        Conflict: the log changed between the two readings.
    """
    survey = _Survey(document, disclosures)
    for data in entries():
        survey.take(data)
    survey.flush()
    header = encode_canonical({"origin": origin, "size": size, "version": VERSION})
    parts = [
        (len(header), iter([header])),
        (len(checkpoint), iter([checkpoint])),
        (survey.entry_bytes, (data + b"\n" for data in entries())),
        (survey.document_bytes, _document_lines(survey.documents, document)),
        (sum(map(len, survey.disclosures.values())), iter(survey.disclosures.values())),
    ]
    for name, (length, lines) in zip(MEMBERS, parts, strict=True):
        yield _encode_header(name, length)
        yield from _require_length(name, length, _chunked(lines))
        yield bytes(-length % _BLOCK)
    yield _END


@dataclass
class _Survey:
    """The first reading of the log, which collects the lengths of the members, the documents and the texts."""

    document: ReadDocument
    read_disclosures: ReadDisclosures
    entry_bytes: int = 0
    count: int = 0
    document_bytes: int = 0
    documents: dict[str, None] = field(default_factory=dict)
    disclosures: dict[str, bytes] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _wanted: dict[str, None] = field(default_factory=dict)

    def take(self, data: bytes) -> None:
        if b"\n" in data:
            raise Tampered(f"entry {self.count}: expected canonical JSON, got a line break in it")
        self.count += 1
        self.entry_bytes += len(data) + 1
        self._want(data)
        for digest in _bound_by(data):
            if digest not in self._seen:
                self._seen.add(digest)
                self._take_document(digest)
        if len(self._wanted) >= _BATCH:
            self.flush()

    def _take_document(self, digest: str) -> None:
        try:
            data = self.document(digest)
        except NotFound:
            return
        self.documents[digest] = None
        self.document_bytes += len(_encode_document(digest, data))
        self._want(_with_payload(data))

    def _want(self, data: bytes) -> None:
        for match in _COMMITMENT.findall(data):
            self._wanted[match.decode("ascii")] = None

    def flush(self) -> None:
        """Read the disclosures of the commitments that were found since the last call."""
        wanted = [commitment for commitment in self._wanted if commitment not in self.disclosures]
        self._wanted.clear()
        found = self.read_disclosures(wanted) if wanted else {}
        for commitment in wanted:
            if commitment in found:
                self.disclosures[commitment] = encode_disclosure(found[commitment]) + b"\n"


def _bound_by(data: bytes) -> list[str]:
    """Return the digests of an entry's documents, in the order of the entry.

    Bytes that are not an entry are exported, too. For them, return the digests at the same position.
    """
    # An entry has no other object after the field `documents`, so the last match is the entry's own.
    start = data.rfind(_DOCUMENTS)
    if start < 0 or data.startswith(_NONE, start):
        return []
    return [digest.decode("ascii") for digest in _DIGEST.findall(data, start, data.find(b"}", start))]


def _with_payload(document: bytes) -> bytes:
    """Return the document's bytes, followed by the payload if the document is an envelope."""
    try:
        return document + b"\n" + parse_envelope(document).payload
    except ApplianceError:
        return document


def _encode_document(digest: str, data: bytes) -> bytes:
    return encode_canonical({"bytes": encode_base64(data), "digest": digest}) + b"\n"


def _document_lines(digests: Iterable[str], document: ReadDocument) -> Iterator[bytes]:
    for digest in digests:
        yield _encode_document(digest, document(digest))


def _chunked(lines: Iterable[bytes]) -> Iterator[bytes]:
    chunk = bytearray()
    for line in lines:
        chunk += line
        if len(chunk) >= _CHUNK:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


def _require_length(name: str, length: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the chunks and check that they have `length` bytes."""
    written = 0
    for chunk in chunks:
        written += len(chunk)
        if written > length:
            break
        yield chunk
    if written != length:
        raise Conflict(f"export, {name}: expected the {length} bytes of the first reading, got {written} or more")


def _encode_header(name: str, size: int) -> bytes:
    """Encode a USTAR header block: mode 0444, no owner, no time; sizes from 8 GiB on are in base 256, as in GNU tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.USTAR_FORMAT if size < _USTAR_LIMIT else tarfile.GNU_FORMAT)


class ParsedExport:
    """A parsed export. Its content is not verified; lines are returned as bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        """Read the structure of an export from a seekable file; closing the export closes the file.

        Raises:
            BadInput: the file is not a complete export.
        """
        self._stream = stream
        self._spans = self._read_spans()
        header = parse_object(
            parse_canonical(self._whole("export.json")), "export.json", frozenset({"origin", "size", "version"})
        )
        parse_constant(header["version"], "export.json, version", VERSION)
        self.origin = parse_text(header["origin"], "export.json, origin")
        self.size = parse_count(header["size"], "export.json, size")
        self.checkpoint = self._whole("checkpoint")
        self._offsets = array("Q")
        """Offsets of the lines of documents.jsonl."""
        self.documents = self._index_documents()
        """The line of each document, by its digest of 32 bytes, counted from 0."""
        self.disorder: str | None = "entries.jsonl: expected to be read to its end, got less"
        """The first document or disclosure out of order, or None; valid after `entries` was read to its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def entries(self) -> Iterator[bytes]:
        """Yield the bytes of every entry in the file, even if export.json states another number."""
        order = _Order(self)
        for _, line in self._lines("entries.jsonl", MAX_ENTRY_LINE):
            order.take(line)
            yield line
        self.disorder = order.close()

    def document(self, digest: str) -> bytes | None:
        """Return the bytes stored under the digest, or None; the caller must check that they hash to it."""
        number = self.documents.get(raw_digest(digest))
        if number is None:
            return None
        self._stream.seek(self._offsets[number])
        return _parse_document(self._stream.readline(MAX_LINE)[:-1])[1]

    def disclosures(self) -> Iterator[Disclosure]:
        """Yield the disclosures in the order of the file; `verify_disclosure` verifies them.

        Raises:
            BadInput: a line is malformed, or a commitment is repeated.
        """
        seen: set[str] = set()
        for number, line in self._lines("disclosures.jsonl", MAX_LINE):
            disclosure = parse_disclosure(line)
            if disclosure.commitment in seen:
                raise BadInput(f"disclosures.jsonl, line {number}: expected {disclosure.commitment} once, got it again")
            seen.add(disclosure.commitment)
            yield disclosure

    def _read_spans(self) -> dict[str, tuple[int, int]]:
        """Return the start and the end offset of each member; check that the tar is exactly as the writer makes it."""
        self._stream.seek(0, 2)
        total, offset = self._stream.tell(), 0
        spans = {}
        for name in MEMBERS:
            self._stream.seek(offset)
            block = self._stream.read(_BLOCK)
            if offset and len(block) < _BLOCK:
                raise BadInput(f"export: the file ends before {name}: {_TRUNCATED_HINT}")
            length = _parse_header(block, name)
            start = offset + _BLOCK
            offset = start + length + -length % _BLOCK
            if offset > total:
                raise BadInput(f"export: the file ends in the middle of {name}: {_TRUNCATED_HINT}")
            self._stream.seek(start + length)
            if any(self._stream.read(-length % _BLOCK)):
                raise BadInput(f"export, {name}: expected zeros up to the block's end, got other bytes")
            spans[name] = (start, start + length)
        self._stream.seek(offset)
        if total < offset + len(_END):
            raise BadInput(f"export: the file ends in the middle of its last 1,024 bytes: {_TRUNCATED_HINT}")
        if total != offset + len(_END):
            raise BadInput(f"export, end: expected 1,024 zero bytes at {offset}, got {total - offset} bytes")
        if self._stream.read() != _END:
            raise BadInput(f"export, end: expected 1,024 zero bytes at {offset}, got other bytes")
        return spans

    def _whole(self, name: str) -> bytes:
        start, stop = self._spans[name]
        if stop - start > _MAX_SMALL:
            raise BadInput(f"export, {name}: expected at most {_MAX_SMALL} bytes, got {stop - start}")
        self._stream.seek(start)
        return self._stream.read(stop - start)

    def _lines(self, name: str, limit: int) -> Iterator[tuple[int, bytes]]:
        """Yield (line number from 1, line without its newline). The caller may move the stream between two lines."""
        offset, stop = self._spans[name]
        number, rest = 1, b""
        while offset < stop and len(rest) < limit:
            self._stream.seek(offset)
            block = self._stream.read(min(_READ, stop - offset))
            if not block:
                break
            offset += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if len(line) >= limit:
                    rest = line
                    break
                yield number, line
                number += 1
        if rest or offset < stop:
            expected = f"at most {limit} bytes and a newline"
            raise BadInput(f"{name}, line {number}: expected {expected}, got a longer line or no newline")

    def _index_documents(self) -> dict[bytes, int]:
        offset = self._spans["documents.jsonl"][0]
        found: dict[bytes, int] = {}
        for _, line in self._lines("documents.jsonl", MAX_LINE):
            digest = _parse_document(line)[0]
            if found.setdefault(raw_digest(digest), len(self._offsets)) != len(self._offsets):
                raise BadInput(f"documents.jsonl, {digest}: expected each document once, got it again")
            self._offsets.append(offset)
            offset += len(line) + 1
        return found


class _Order:
    """A check of the order of documents.jsonl and disclosures.jsonl while the entries are read.

    In both, the lines must be in the order in which the entries first use them, and every line must be used.
    """

    def __init__(self, export: ParsedExport) -> None:
        self._export = export
        disclosed = (_raw_commitment(disclosure.commitment) for disclosure in export.disclosures())
        self._documents = _Lines("documents.jsonl", "sha256:", export.documents)
        self._disclosures = _Lines(
            "disclosures.jsonl", "hmac-sha256:", {name: number for number, name in enumerate(disclosed)}
        )
        self._entry = -1

    def take(self, data: bytes) -> None:
        self._entry += 1
        self._use_texts(data)
        for digest in _bound_by(data):
            if self._documents.use(raw_digest(digest), self._entry):
                self._use_texts(_with_payload(self._export.document(digest) or b""))

    def _use_texts(self, data: bytes) -> None:
        for commitment in _COMMITMENT.findall(data):
            self._disclosures.use(_raw_commitment(commitment.decode("ascii")), self._entry)

    def close(self) -> str | None:
        return self._documents.close() or self._disclosures.close()


class _Lines:
    """The lines of one member, by digest or commitment, which the entries must use in the order of the lines."""

    def __init__(self, member: str, prefix: str, numbers: Mapping[bytes, int]) -> None:
        self._member, self._prefix, self._numbers = member, prefix, numbers
        self._is_used = bytearray(len(numbers))
        self._next = 0
        self._fault: str | None = None

    def use(self, name: bytes, entry: int) -> bool:
        """Use a line; return True if the line exists and this is its first use."""
        number = self._numbers.get(name)
        if number is None or self._is_used[number]:
            return False
        if number != self._next:
            self._note_fault(f"{self._prefix}{name.hex()}, which entry {entry} uses first")
        self._is_used[number] = True
        self._next += 1
        return True

    def close(self) -> str | None:
        """Return a description of the first line that is out of order or unused, or None."""
        if self._next < len(self._numbers):
            self._note_fault("one that an entry uses")
        return self._fault

    def _note_fault(self, expected: str) -> None:
        if self._fault is None:
            got = f"{self._prefix}{next(islice(self._numbers, self._next, None)).hex()}"
            self._fault = f"{self._member}, line {self._next + 1}: expected {expected}, got {got}"


def _raw_commitment(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("hmac-sha256:"))


def _parse_header(block: bytes, name: str) -> int:
    """Return the length of the member."""
    size, found = -1, ""
    try:
        header = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        size, found = header.size, header.name
    except (tarfile.HeaderError, ValueError):
        pass
    if size < 0 or block != _encode_header(name, size):
        expected = f"export: expected the tar header of {name} as appliance ledger export writes it"
        if found == name:
            raise BadInput(f"{expected}, got one with other fields: the file was changed, or packed again")
        raise BadInput(f"{expected}, got {show(block[:100].rstrip(bytes(1)))}")
    return size


def _parse_document(line: bytes) -> tuple[str, bytes]:
    value = parse_object(parse_canonical(line), "documents.jsonl, line", frozenset({"bytes", "digest"}))
    digest = parse_digest(value["digest"], "documents.jsonl, digest")
    return digest, parse_base64(value["bytes"], f"documents.jsonl, {digest}")
