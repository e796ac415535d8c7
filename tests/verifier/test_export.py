"""The export: one tar that any tar reads, written as the log is kept, read as strictly as it is written."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.domain.core.entry import parse_entry
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.export import MEMBERS, ParsedExport, _bound_by, _encode_header, _parse_header, write_export
from scripts.kit.log_builder import ORIGIN, policy_digest, stage

SITE = stage("serving")
TEXTS = {disclosure.commitment: disclosure for disclosure in SITE.disclosures}


def document(digest: str) -> bytes:
    if digest not in SITE.documents:
        raise NotFound(digest)
    return SITE.documents[digest]


def disclosed(wanted: list[str]) -> dict[str, Disclosure]:
    return {name: TEXTS[name] for name in wanted if name in TEXTS}


def write(**changes: Any) -> bytes:
    given_: dict[str, Any] = {
        "origin": ORIGIN,
        "size": len(SITE.entries),
        "checkpoint": SITE.checkpoint(),
        "entries": lambda: iter(SITE.entries),
        "document": document,
        "disclosures": disclosed,
    }
    return b"".join(write_export(**given_ | changes))


def read(data: bytes) -> ParsedExport:
    return ParsedExport(io.BytesIO(data))


WHOLE = write()


def test_what_was_written_is_read_again() -> None:
    with read(WHOLE) as export:
        assert (export.origin, export.size, export.checkpoint) == (ORIGIN, len(SITE.entries), SITE.checkpoint())
        assert list(export.entries()) == SITE.entries
        assert {digest: export.document(digest) for digest in SITE.documents} == SITE.documents
        assert {d.commitment: d for d in export.disclosures()} == TEXTS
        assert export.document(digest_bytes(b"nothing")) is None


def test_documents_may_be_read_between_two_entries() -> None:
    with read(WHOLE) as export:
        seen = []
        for data in export.entries():
            seen.append(data)
            assert export.document(next(iter(SITE.documents))) is not None
        assert seen == SITE.entries


def test_the_same_log_gives_the_same_bytes() -> None:
    assert write() == WHOLE


def test_any_tar_reads_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE), mode="r:") as tar:
        members = tar.getmembers()
        assert tuple(member.name for member in members) == MEMBERS
        assert all(member.isreg() and member.mode == 0o444 and member.mtime == 0 for member in members)
        stream = tar.extractfile("entries.jsonl")
        assert stream is not None and stream.read().split(b"\n")[:-1] == SITE.entries
        stream = tar.extractfile("checkpoint")
        assert stream is not None and stream.read() == SITE.checkpoint()


def test_documents_stand_in_the_order_in_which_entries_bind_them() -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        stream = tar.extractfile("documents.jsonl")
        assert stream is not None
        lines = stream.read().splitlines()
    assert len(lines) == len(SITE.documents)
    assert lines[0].startswith(b'{"bytes":"')
    assert f'"digest":"{policy_digest(SITE.policy)}"}}'.encode() in lines[0]


def test_an_erased_text_and_a_lost_document_are_left_out() -> None:
    lost = next(digest for digest in SITE.documents if digest != policy_digest(SITE.policy))

    def without(digest: str) -> bytes:
        if digest == lost:
            raise NotFound(digest)
        return document(digest)

    with read(write(document=without, disclosures=lambda wanted: {})) as export:
        assert export.document(lost) is None
        assert list(export.disclosures()) == []


def test_entries_that_are_no_entries_are_carried_all_the_same() -> None:
    junk = [b"", b"junk", b"[]", b'{"documents":[1]}', b'{"documents":{"order":1}}', b'{"documents":{"a":"sha256:x"}}']
    junk += [f'{more}"documents":{{"a":"{digest}"'.encode() for digest in SITE.documents for more in ("", "x")]
    with read(write(entries=lambda: iter([*junk, *SITE.entries]))) as export:
        assert list(export.entries()) == [*junk, *SITE.entries]
        assert export.disorder is None


def test_the_order_of_an_export_is_known_once_all_entries_were_read() -> None:
    with read(WHOLE) as export:
        entries = export.entries()
        next(entries)
        assert export.disorder == "entries.jsonl: expected to be read to its end, got less"
        assert len(list(entries)) == len(SITE.entries) - 1
        assert export.disorder is None


def test_the_documents_of_an_entry_are_those_of_its_own_member() -> None:
    """Whatever else an entry holds, in a base's facts, looks like them."""
    for data in SITE.entries:
        assert _bound_by(data) == list(parse_entry(data).documents.values())
    documents = {"manifest": digest_bytes(b"a"), "order": digest_bytes(b"b")}
    alike = {"documents": {"x": digest_bytes(b"c")}, "text": f'"documents":{{"x":"{digest_bytes(b"d")}"}}'}
    value = parse_canonical(SITE.entries[3]) | {"body": {"facts": alike}}
    for bound in (documents, {}):
        assert _bound_by(encode_canonical(value | {"documents": bound})) == list(bound.values())


def test_an_entry_that_no_line_holds_is_named() -> None:
    with pytest.raises(Tampered, match="entry 1: expected canonical JSON, got a line break"):
        write(entries=lambda: iter([SITE.entries[0], b"a\nb"]))


def test_nothing_is_written_before_everything_was_looked_at_once() -> None:
    chunks = write_export(
        origin=ORIGIN,
        size=1,
        checkpoint=b"",
        entries=lambda: iter([b"a\nb"]),
        document=document,
        disclosures=disclosed,
    )
    with pytest.raises(Tampered):
        next(chunks)


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_log_that_changes_under_the_export_is_a_conflict(more: bytes) -> None:
    readings = iter([SITE.entries, [*SITE.entries[:-1], *([SITE.entries[-1], more] if more else [])]])
    with pytest.raises(Conflict, match=r"entries\.jsonl: expected the \d+ bytes of the first reading"):
        write(entries=lambda: iter(next(readings)))


def test_texts_are_asked_for_once_in_batches() -> None:
    query: list[list[str]] = []

    def note(wanted: list[str]) -> dict[str, Disclosure]:
        query.append(wanted)
        return disclosed(wanted)

    write(disclosures=note)
    (wanted,) = query
    assert len(wanted) == len(set(wanted)) and set(TEXTS) <= set(wanted)


# Strictness.


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 513, len(WHOLE) // 2, len(WHOLE) - 1024, len(WHOLE) - 1])
def test_a_file_that_was_cut_is_no_export(cut: int) -> None:
    with pytest.raises(BadInput, match="export"):
        read(WHOLE[:cut])


@pytest.mark.parametrize("tail", [b"\0", b"x", bytes(512), bytes(10_240)])
def test_bytes_after_the_end_are_refused(tail: bytes) -> None:
    with pytest.raises(BadInput, match="export, end"):
        read(WHOLE + tail)


def tar_of(parts: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    for name, data in parts:
        out.write(_encode_header(name, len(data)) + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024)


def parts(**changes: bytes) -> list[tuple[str, bytes]]:
    names = {name.partition(".")[0]: name for name in MEMBERS}
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        kept = {name: tar.extractfile(name).read() for name in MEMBERS}  # type: ignore[union-attr]
    kept |= {names[key]: data for key, data in changes.items()}
    return list(kept.items())


def test_the_parts_put_together_again_are_the_export() -> None:
    assert tar_of(parts()) == WHOLE


@pytest.mark.parametrize(
    "wrong",
    [
        parts()[1:],
        parts()[:4],
        [parts()[1], parts()[0], *parts()[2:]],
        [*parts(), ("more", b"")],
        [parts()[0], *parts()],
        [("./export.json", parts()[0][1]), *parts()[1:]],
    ],
)
def test_members_are_these_five_in_this_order(wrong: list[tuple[str, bytes]]) -> None:
    with pytest.raises(BadInput, match="export"):
        read(tar_of(wrong))


def test_a_tar_with_other_headers_is_refused() -> None:
    """An owner, a time, a mode or a format of another tool would be bytes that nothing checks."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in parts():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o444, 1
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(BadInput, match=r"expected the tar header of export\.json"):
        read(out.getvalue())


def test_padding_holds_nothing() -> None:
    place = 512 + len(parts()[0][1])
    with pytest.raises(BadInput, match=r"export\.json: expected zeros"):
        read(WHOLE[:place] + b"x" + WHOLE[place + 1 :])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{}", "fields"),
        (b'{"origin":"a","size":1,"version":2}', "version"),
        (b'{"origin":"a","size":-1,"version":1}', "size"),
        (b'{"origin":"a","size":true,"version":1}', "size"),
        (b'{"origin":1,"size":1,"version":1}', "origin"),
        (b'{"size":1,"origin":"a","version":1}', "canonical JSON"),
        (b'{"origin":"a","size":1,"version":1}\n', "canonical JSON"),
        (b"x" * 2_000_000, "expected at most 1048576 bytes"),
    ],
)
def test_the_head_is_read_strictly(data: bytes, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tar_of(parts(export=data)))
    assert words in caught.value.message


LINE = encode_canonical({"bytes": "YQ==", "digest": digest_bytes(b"a")})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (LINE, "a newline"),
        (b"\n", "canonical JSON"),
        (LINE + b"\n" + LINE + b"\n", "each document once"),
        (LINE.replace(b"YQ==", b"YR==") + b"\n", "one spelling"),
        (LINE.replace(b"sha256", b"sha512") + b"\n", "digest"),
        (LINE[:-1] + b',"more":1}\n', "fields"),
        (b" " + LINE + b"\n", "canonical JSON"),
    ],
)
def test_document_lines_are_read_strictly(data: bytes, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tar_of(parts(documents=data)))
    assert words in caught.value.message


def test_a_document_of_other_bytes_is_given_out_for_the_verifier_to_find() -> None:
    with read(tar_of(parts(documents=LINE.replace(b"YQ==", b"Yg==") + b"\n"))) as export:
        assert export.document(digest_bytes(b"a")) == b"b"


def test_disclosure_lines_are_read_strictly() -> None:
    first = parts()[4][1].split(b"\n")[0] + b"\n"
    for data in (first + first, b"{}\n", first[:-1]):
        with read(tar_of(parts(disclosures=data))) as export, pytest.raises(BadInput):
            list(export.disclosures())


def test_an_entry_line_beyond_an_entrys_length_is_refused() -> None:
    with read(tar_of(parts(entries=b"x" * 65_535 + b"\n"))) as export:
        assert list(export.entries()) == [b"x" * 65_535]
    with read(tar_of(parts(entries=b"x" * 65_536 + b"\n"))) as export, pytest.raises(BadInput, match="line 1"):
        list(export.entries())


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_any_byte_changed_is_refused_or_seen(place: int, byte: int) -> None:
    """Nothing in the file is beyond the reader's sight."""
    changed = WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :]
    try:
        with read(changed) as export:
            seen = (
                export.origin,
                export.size,
                export.checkpoint,
                list(export.entries()),
                {digest: export.document(digest) for digest in SITE.documents},
                list(export.disclosures()),
            )
    except ApplianceError:
        return
    assert changed == WHOLE or seen != SEEN


def _seen() -> Any:
    with read(WHOLE) as export:
        return (
            export.origin,
            export.size,
            export.checkpoint,
            list(export.entries()),
            {digest: export.document(digest) for digest in SITE.documents},
            list(export.disclosures()),
        )


SEEN = _seen()


@pytest.mark.parametrize("size", [0, 1, 8**11 - 1, 8**11, 10 * 8**11])
def test_a_member_may_be_longer_than_ustar_counts(size: int) -> None:
    block = _encode_header("entries.jsonl", size)
    assert len(block) == 512
    assert _parse_header(block, "entries.jsonl") == size
    assert tarfile.TarInfo.frombuf(block, "ascii", "strict").size == size


def test_memory_does_not_grow_with_the_entries() -> None:
    """Twenty thousand entries are written in less than what a tenth of them weigh."""
    entry = SITE.entries[-1]
    count = 20_000

    def entries() -> Iterator[bytes]:
        return (entry for _ in range(count))

    tracemalloc.start()
    total = 0
    for chunk in write_export(
        origin=ORIGIN, size=count, checkpoint=b"", entries=entries, document=document, disclosures=disclosed
    ):
        total += len(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > count * len(entry)
    assert peak < count * len(entry) / 10
