"""A whole log in one file: an uncompressed tar of five members, in this order, the same bytes for the same log.

    export.json        {"origin", "size", "version": 1}, canonical: the export's own description
    checkpoint         the signed note over `size` entries
    entries.jsonl      every entry's bytes and a newline, in order
    documents.jsonl    {"bytes": base64, "digest"} a line, in the order in which entries first bind them, each once
    disclosures.jsonl  {"commitment", "salt", "text"} a line, in the order of first use, each once

A commitment is used by an entry whose bytes hold it, and by one that first binds a document whose bytes, or whose
envelope's payload, hold it. The writer checks nothing: it leaves a missing document out and writes bytes as they are
stored, so that a verifier finds what is wrong. The reader accepts only what re-encodes to the same bytes. It keeps one
line at a time; its memory grows only with the numbers of documents and of disclosures.
"""

from __future__ import annotations

import re
import tarfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
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
from appliance.formats.signatures.dsse import parse_envelope

VERSION = 1
MEMBERS = ("export.json", "checkpoint", "entries.jsonl", "documents.jsonl", "disclosures.jsonl")
MAX_ENTRY_LINE = 65_535 + 1
MAX_LINE = (1 << 26) - 1
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_CUT = "was it copied whole?"
_CHUNK = 1 << 16
_READ = 1 << 18
_BATCH = 500
_MAX_SMALL = 1 << 20
_USTAR_LIMIT = 8**11
_COMMITMENT = re.compile(rb"hmac-sha256:[0-9a-f]{64}")
_DIGEST = re.compile(rb'"(sha256:[0-9a-f]{64})"')
_DOCUMENTS, _NONE = b'"documents":{', b'"documents":{}'
_NAME_BYTES = 32

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
    """The tar, a chunk at a time. `entries` is read twice, since a tar names each member's length before its bytes.

    `document` raises NotFound for one that is gone. Tampered for an entry that a line cannot hold.
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
        yield from _exactly(name, length, _chunked(lines))
        yield bytes(-length % _BLOCK)
    yield _END


@dataclass
class _Survey:
    """The first reading: how long each member will be, which documents and texts there are."""

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
        self._want(_opened(data))

    def _want(self, data: bytes) -> None:
        for match in _COMMITMENT.findall(data):
            self._wanted[match.decode("ascii")] = None

    def flush(self) -> None:
        """Asks for the texts found so far."""
        wanted = [commitment for commitment in self._wanted if commitment not in self.disclosures]
        self._wanted.clear()
        found = self.read_disclosures(wanted) if wanted else {}
        for commitment in wanted:
            if commitment in found:
                self.disclosures[commitment] = encode_disclosure(found[commitment]) + b"\n"


def _bound_by(data: bytes) -> list[str]:
    """The digests of an entry's documents, in its own order. Bytes that are no entry are exported too: for them, it is
    whatever is in this place."""
    # After the member `documents` an entry has no other object, so the last one of the name is the entry's own.
    start = data.rfind(_DOCUMENTS)
    if start < 0 or data.startswith(_NONE, start):
        return []
    return [digest.decode("ascii") for digest in _DIGEST.findall(data, start, data.find(b"}", start))]


def _opened(document: bytes) -> bytes:
    """The document's bytes, and what is signed where they are an envelope."""
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


def _exactly(name: str, length: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks, exactly as many bytes as the header declares; Conflict when the log changed under the export."""
    written = 0
    for chunk in chunks:
        written += len(chunk)
        if written > length:
            break
        yield chunk
    if written != length:
        raise Conflict(f"export, {name}: expected the {length} bytes of the first reading, got {written} or more")


def _encode_header(name: str, size: int) -> bytes:
    """A USTAR header block: mode 0444, no owner, no time. From 8 GiB on the size is in base 256, as GNU tar has it."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.USTAR_FORMAT if size < _USTAR_LIMIT else tarfile.GNU_FORMAT)


class Export:
    """An export as read. Nothing in it is trusted; every line is returned as its bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        """`stream` is a seekable file, which closing the export closes. BadInput when it is no whole export."""
        self._stream = stream
        self._spans = self._read_spans()
        header = parse_object(
            parse_canonical(self._whole("export.json")), "export.json", frozenset({"origin", "size", "version"})
        )
        parse_constant(header["version"], "export.json, version", VERSION)
        self.origin = parse_text(header["origin"], "export.json, origin")
        self.size = parse_count(header["size"], "export.json, size")
        self.checkpoint = self._whole("checkpoint")
        self._documents = self._index_documents()
        self.disorder: str | None = "entries.jsonl: expected to be read to its end, got less"
        """Once `entries` was read to its end: the first document or disclosure that is not where the entries use it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def entries(self) -> Iterator[bytes]:
        """Every entry's bytes, as many as there are, even if export.json has another number."""
        order = _Order(self)
        for _, line in self._lines("entries.jsonl", MAX_ENTRY_LINE):
            order.take(line)
            yield line
        self.disorder = order.close()

    def document(self, digest: str) -> bytes | None:
        """The bytes that the export keeps under the digest; whether they hash to it is for the reader to check."""
        place = self._documents.find(raw_digest(digest))
        if place is None:
            return None
        self._stream.seek(place)
        return _parse_document(self._stream.readline(MAX_LINE)[:-1])[1]

    def document_names(self) -> bytes:
        """The digests of documents.jsonl in its order, 32 bytes each."""
        return bytes(self._documents.names)

    def disclosure_names(self) -> bytes:
        """The commitments of disclosures.jsonl in its order, 32 bytes each."""
        return b"".join(_raw_commitment(disclosure.commitment) for disclosure in self.disclosures())

    def disclosures(self) -> Iterator[Disclosure]:
        seen: set[str] = set()
        for number, line in self._lines("disclosures.jsonl", MAX_LINE):
            disclosure = parse_disclosure(line)
            if disclosure.commitment in seen:
                raise BadInput(f"disclosures.jsonl, line {number}: expected {disclosure.commitment} once, got it again")
            seen.add(disclosure.commitment)
            yield disclosure

    def _read_spans(self) -> dict[str, tuple[int, int]]:
        """Where each member's bytes begin and end; the tar is exactly what the writer would write around them."""
        self._stream.seek(0, 2)
        total, place = self._stream.tell(), 0
        spans = {}
        for name in MEMBERS:
            self._stream.seek(place)
            block = self._stream.read(_BLOCK)
            if place and len(block) < _BLOCK:
                raise BadInput(f"export: the file ends before {name}: {_CUT}")
            length = _parse_header(block, name)
            start = place + _BLOCK
            place = start + length + -length % _BLOCK
            if place > total:
                raise BadInput(f"export: the file ends in the middle of {name}: {_CUT}")
            self._stream.seek(start + length)
            if any(self._stream.read(-length % _BLOCK)):
                raise BadInput(f"export, {name}: expected zeros up to the block's end, got other bytes")
            spans[name] = (start, start + length)
        self._stream.seek(place)
        if total < place + len(_END):
            raise BadInput(f"export: the file ends in the middle of its last 1,024 bytes: {_CUT}")
        if total != place + len(_END) or self._stream.read() != _END:
            raise BadInput(f"export, end: expected 1,024 zero bytes at {place}, got {total - place} bytes")
        return spans

    def _whole(self, name: str) -> bytes:
        start, stop = self._spans[name]
        if stop - start > _MAX_SMALL:
            raise BadInput(f"export, {name}: expected at most {_MAX_SMALL} bytes, got {stop - start}")
        self._stream.seek(start)
        return self._stream.read(stop - start)

    def _lines(self, name: str, limit: int) -> Iterator[tuple[int, bytes]]:
        """(line number from 1, line without its newline); others may read the stream between two lines."""
        place, stop = self._spans[name]
        number, rest = 1, b""
        while place < stop and len(rest) < limit:
            self._stream.seek(place)
            block = self._stream.read(min(_READ, stop - place))
            if not block:
                break
            place += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if len(line) >= limit:
                    rest = line
                    break
                yield number, line
                number += 1
        if rest or place < stop:
            expected = f"at most {limit} bytes and a newline"
            raise BadInput(f"{name}, line {number}: expected {expected}, got a longer line or no newline")

    def _index_documents(self) -> _Places:
        place = self._spans["documents.jsonl"][0]
        found = _Places()
        for _, line in self._lines("documents.jsonl", MAX_LINE):
            found.add(raw_digest(_parse_document(line)[0]), place)
            place += len(line) + 1
        twice = found.sort()
        if twice is not None:
            raise BadInput(f"documents.jsonl, sha256:{twice.hex()}: expected each document once, got it again")
        return found


class _Places:
    """Where the line of a digest begins, 48 bytes a line: there may be a million of them."""

    def __init__(self) -> None:
        self.names = bytearray()
        """The whole digests, in the order of their lines. An attacker could make any number of digests with the same
        first bytes."""
        self._places = array("Q")
        self._sorted = array("Q")

    def add(self, digest: bytes, place: int) -> None:
        self.names += digest
        self._places.append(place)

    def sort(self) -> bytes | None:
        """Once, after the last one: a digest that has two lines."""
        self._sorted = array("Q", sorted(range(len(self._places)), key=self._name))
        for one, other in pairwise(map(self._name, self._sorted)):
            if one == other:
                return one
        return None

    def find(self, digest: bytes) -> int | None:
        index = bisect_left(self._sorted, digest, key=self._name)
        if index == len(self._sorted) or self._name(self._sorted[index]) != digest:
            return None
        return self._places[self._sorted[index]]

    def _name(self, number: int) -> bytes:
        return bytes(self.names[number * _NAME_BYTES : (number + 1) * _NAME_BYTES])


class _Order:
    """Goes along documents.jsonl and disclosures.jsonl while the entries are read: in each, the next line is the one
    that is used next for the first time, and no line is left."""

    def __init__(self, export: Export) -> None:
        self._export = export
        self._documents = _Lines("documents.jsonl", "sha256:", export.document_names())
        self._disclosures = _Lines("disclosures.jsonl", "hmac-sha256:", export.disclosure_names())
        self._entry = -1

    def take(self, data: bytes) -> None:
        self._entry += 1
        self._use_texts(data)
        for digest in _bound_by(data):
            if self._documents.use(raw_digest(digest), self._entry):
                self._use_texts(_opened(self._export.document(digest) or b""))

    def _use_texts(self, data: bytes) -> None:
        for commitment in _COMMITMENT.findall(data):
            self._disclosures.use(_raw_commitment(commitment.decode("ascii")), self._entry)

    def close(self) -> str | None:
        return self._documents.close() or self._disclosures.close()


class _Lines:
    """The lines of a member, by name: they are used in their order."""

    def __init__(self, member: str, prefix: str, names: bytes) -> None:
        self._member, self._prefix, self._names = member, prefix, names
        self._unused = {names[at : at + _NAME_BYTES] for at in range(0, len(names), _NAME_BYTES)}
        self._next = 0
        self._fault: str | None = None

    def use(self, name: bytes, entry: int) -> bool:
        """Whether this is the first use of a line that is there."""
        if name not in self._unused:
            return False
        if name != self._head():
            self._find(f"{self._prefix}{name.hex()}, which entry {entry} uses first")
        self._unused.remove(name)
        self._next += 1
        return True

    def close(self) -> str | None:
        """The first line that is out of its place, or that no entry uses."""
        if self._unused:
            self._find("one that an entry uses")
        return self._fault

    def _find(self, expected: str) -> None:
        if self._fault is None:
            got = f"{self._prefix}{self._head().hex()}"
            self._fault = f"{self._member}, line {self._next + 1}: expected {expected}, got {got}"

    def _head(self) -> bytes:
        return self._names[self._next * _NAME_BYTES : (self._next + 1) * _NAME_BYTES]


def _raw_commitment(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("hmac-sha256:"))


def _parse_header(block: bytes, name: str) -> int:
    """The member's length, if the block is the header that the writer would write for it."""
    try:
        size = tarfile.TarInfo.frombuf(block, "ascii", "strict").size
    except (tarfile.HeaderError, ValueError):
        size = -1
    if size < 0 or block != _encode_header(name, size):
        raise BadInput(f"export: expected the tar header of {name}, got {show(block[:100].rstrip(bytes(1)))}")
    return size


def _parse_document(line: bytes) -> tuple[str, bytes]:
    value = parse_object(parse_canonical(line), "documents.jsonl, line", frozenset({"bytes", "digest"}))
    digest = parse_digest(value["digest"], "documents.jsonl, digest")
    return digest, parse_base64(value["bytes"], f"documents.jsonl, {digest}")
