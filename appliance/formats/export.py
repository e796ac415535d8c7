"""A whole log in one file: an uncompressed tar of five members, in this order, the same bytes for the same log.

    export.json        {"origin", "size", "version": 1}, canonical: what the export says of itself
    checkpoint         the signed note over `size` entries
    entries.jsonl      every entry's bytes and a newline, in order
    documents.jsonl    {"bytes": base64, "digest"} a line, in the order in which entries first bind them, each once
    disclosures.jsonl  {"commitment", "salt", "text"} a line, in the order of first use, each once

The writer judges nothing: a document that is gone is left out and bytes are written as they are kept, so that whoever
verifies the export finds what is wrong. The reader is as strict as encoding again, and holds one line at a time;
its memory grows with the number of documents alone.
"""

from __future__ import annotations

import json
import re
import tarfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO, Self

from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered
from appliance.formats.canonical import encode_canonical, parse_canonical
from appliance.formats.commitment import Disclosure, encode_disclosure, parse_disclosure
from appliance.formats.digest import parse_digest, raw_digest
from appliance.formats.dsse import parse_envelope
from appliance.formats.fields import encode_base64, parse_base64, parse_constant, parse_count, parse_object, parse_text

VERSION = 1
MEMBERS = ("export.json", "checkpoint", "entries.jsonl", "documents.jsonl", "disclosures.jsonl")
MAX_ENTRY_LINE = 65_535 + 1
MAX_LINE = (1 << 26) - 1
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_CHUNK = 1 << 16
_READ = 1 << 18
_BATCH = 500
_MAX_SMALL = 1 << 20
_USTAR_LIMIT = 8**11
_COMMITMENT = re.compile(rb"hmac-sha256:[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

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
        self._want(data)
        try:
            self._want(parse_envelope(data).payload)
        except ApplianceError:
            return  # no envelope

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
    """The digests of an entry's documents; none for bytes that are no entry, which the export carries all the same."""
    try:
        documents = json.loads(data)["documents"]
        return [digest for digest in documents.values() if isinstance(digest, str) and _DIGEST.fullmatch(digest)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


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
    """The chunks, as many bytes as the header has promised; Conflict when the log changed under the export."""
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
    """An export as read: nothing in it is believed, every line is given out as the bytes it holds."""

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def entries(self) -> Iterator[bytes]:
        """Every entry's bytes, as many as there are, whatever export.json says."""
        for _, line in self._lines("entries.jsonl", MAX_ENTRY_LINE):
            yield line

    def document(self, digest: str) -> bytes | None:
        """The bytes that the export keeps under the digest; whether they hash to it is for the reader to check."""
        for place in self._documents.find(raw_digest(digest)):
            kept, data = self._document_at(place)
            if kept == digest:
                return data
        return None

    def _document_at(self, place: int) -> tuple[str, bytes]:
        self._stream.seek(place)
        return _parse_document(self._stream.readline(MAX_LINE)[:-1])

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
            length = _parse_header(self._stream.read(_BLOCK), name)
            start = place + _BLOCK
            place = start + length + -length % _BLOCK
            if place + len(_END) > total:
                raise BadInput(f"export, {name}: expected {length} bytes and more after them, got the end of the file")
            self._stream.seek(start + length)
            if any(self._stream.read(-length % _BLOCK)):
                raise BadInput(f"export, {name}: expected zeros up to the block's end, got other bytes")
            spans[name] = (start, start + length)
        self._stream.seek(place)
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
            raise BadInput(f"{name}, line {number}: expected at most {limit} bytes and a newline, got more or none")

    def _index_documents(self) -> _Places:
        place = self._spans["documents.jsonl"][0]
        found = _Places()
        for _, line in self._lines("documents.jsonl", MAX_LINE):
            found.add(raw_digest(_parse_document(line)[0]), place)
            place += len(line) + 1
        for one, other in found.sort():
            digest = self._document_at(other)[0]
            if digest == self._document_at(one)[0]:
                raise BadInput(f"documents.jsonl, {digest}: expected each document once, got it again")
        return found


class _Places:
    """Where the line of a digest begins, 16 bytes a line: there may be a million of them."""

    def __init__(self) -> None:
        self._keys = array("Q")
        self._places = array("Q")

    def add(self, digest: bytes, place: int) -> None:
        self._keys.append(_key(digest))
        self._places.append(place)

    def sort(self) -> Iterator[tuple[int, int]]:
        """Once, after the last one: the neighbours whose digests begin alike, and may be the same."""
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        self._places = array("Q", map(self._places.__getitem__, order))
        self._keys = array("Q", map(self._keys.__getitem__, order))
        for index in range(1, len(order)):
            if self._keys[index] == self._keys[index - 1]:
                yield self._places[index - 1], self._places[index]

    def find(self, digest: bytes) -> Iterator[int]:
        key = _key(digest)
        for index in range(bisect_left(self._keys, key), len(self._keys)):
            if self._keys[index] != key:
                return
            yield self._places[index]


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def _parse_header(block: bytes, name: str) -> int:
    """The member's length, if the block is the header that the writer would write for it."""
    try:
        size = tarfile.TarInfo.frombuf(block, "ascii", "strict").size
    except (tarfile.HeaderError, ValueError):
        size = -1
    if size < 0 or block != _encode_header(name, size):
        raise BadInput(f"export: expected the tar header of {name}, got something else")
    return size


def _parse_document(line: bytes) -> tuple[str, bytes]:
    value = parse_object(parse_canonical(line), "documents.jsonl, line", frozenset({"bytes", "digest"}))
    digest = parse_digest(value["digest"], "documents.jsonl, digest")
    return digest, parse_base64(value["bytes"], f"documents.jsonl, {digest}")
