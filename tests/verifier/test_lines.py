"""An export whose lines were moved, repeated, dropped or added is never verified."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance import verifier
from appliance.domain.audit.report import Report
from appliance.domain.core.names import add_seconds
from appliance.errors import ApplianceError
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import disclose, encode_disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.export import MEMBERS, _encode_header
from appliance.formats.log.note import add_signature, encode_note, parse_note, sign_note
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN, LogBuilder, stage
from tests.verifier.test_program import export_of

Lines = dict[str, list[bytes]]


def rotated() -> LogBuilder:
    """Every kind of text and document, and two valid keys of the log."""
    site = stage("serving")
    site.rotate_log_key(add_seconds(site.now, 3_600))
    site.add(site.request(7))
    return site


def lines_of(data: bytes) -> Lines:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {name: tar.extractfile(name).read().splitlines(keepends=True) for name in MEMBERS}  # type: ignore[union-attr]


def tar_of(lines: Lines) -> bytes:
    out = io.BytesIO()
    for name in MEMBERS:
        data = b"".join(lines[name])
        out.write(_encode_header(name, len(data)) + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024)


SITE = rotated()
WHOLE = lines_of(export_of(SITE))
DOCUMENTS, DISCLOSURES, CHECKPOINT = "documents.jsonl", "disclosures.jsonl", "checkpoint"


def document(digest: str, data: bytes) -> bytes:
    return encode_canonical({"bytes": encode_base64(data), "digest": digest}) + b"\n"


def digest_of(line: bytes) -> str:
    return str(parse_canonical(line[:-1])["digest"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines") / "ledger.tar"


def evaluate(place: Path, lines: Lines) -> Report:
    place.write_bytes(tar_of(lines))
    return verifier.verify_export(place, SITE.trust, SITE.now, without_cedar_policies=True)


def refused(place: Path, name: str, lines: list[bytes]) -> str:
    """Return the findings for these lines in the file's place."""
    try:
        report = evaluate(place, {**WHOLE, name: lines})
    except ApplianceError as error:
        return error.message
    assert report.verdict == "failed"
    return "\n".join(finding.message for finding in report.findings)


def test_the_lines_as_they_were_written_are_verified(place: Path) -> None:
    assert tar_of(WHOLE) == export_of(SITE)
    assert len(WHOLE[CHECKPOINT]) == 6 and min(map(len, (WHOLE[DOCUMENTS], WHOLE[DISCLOSURES]))) > 5
    assert evaluate(place, WHOLE).verdict == "verified, without Cedar policies"


@pytest.mark.parametrize("name", [DOCUMENTS, DISCLOSURES])
def test_lines_in_another_order_are_refused(name: str, place: Path) -> None:
    kept = WHOLE[name]
    said = refused(place, name, [*kept[:2], kept[3], kept[2], *kept[4:]])
    assert f"{name}, line 3: expected " in said and ", which entry " in said
    assert f"{name}, line 1: expected " in refused(place, name, kept[::-1])


@pytest.mark.parametrize("at", [0, 3, len(WHOLE[DOCUMENTS])])
@pytest.mark.parametrize("digest", [digest_bytes(b"more"), digest_bytes(b"other")])
def test_a_document_that_no_entry_binds_is_refused(at: int, digest: str, place: Path) -> None:
    kept = WHOLE[DOCUMENTS]
    said = refused(place, DOCUMENTS, [*kept[:at], document(digest, b"more"), *kept[at:]])
    assert f"documents.jsonl, line {at + 1}: expected " in said and f"got {digest}" in said


def test_a_disclosure_that_no_entry_uses_is_refused(place: Path) -> None:
    line = encode_disclosure(disclose("more", bytes(32))) + b"\n"
    kept = WHOLE[DISCLOSURES]
    said = refused(place, DISCLOSURES, [*kept, line])
    assert f"disclosures.jsonl, line {len(kept) + 1}: expected one that an entry uses" in said


def test_a_bound_document_with_other_bytes_is_refused(place: Path) -> None:
    kept = WHOLE[DOCUMENTS]
    assert digest_of(kept[4]) in refused(place, DOCUMENTS, [*kept[:4], document(digest_of(kept[4]), b"x"), *kept[5:]])


@pytest.mark.parametrize("between", [0, 1, 3])
def test_a_second_line_of_a_digest_is_refused_whatever_stands_between_them(between: int, place: Path) -> None:
    """Digests that begin alike, which anybody can write, hide no repetition."""
    digest = digest_of(WHOLE[DOCUMENTS][4])
    alike = [document(f"{digest[:23]}{number:048x}", b"x") for number in range(between)]
    added = [*alike, document(digest, b"other bytes")]
    for lines in ([*WHOLE[DOCUMENTS], *added], [*added, *WHOLE[DOCUMENTS]], [*WHOLE[DOCUMENTS], *added[::-1]]):
        assert f"documents.jsonl, {digest}: expected each document once" in refused(place, DOCUMENTS, lines)


def test_a_checkpoints_lines_are_those_of_the_logs_keys_in_force(place: Path) -> None:
    *text, first, second = WHOLE[CHECKPOINT]
    outsider = sign_note("other\n", ORIGIN, generate_ed25519()).splitlines(keepends=True)[-1]
    broken = first[:-20] + (b"A" if first[-20:-19] != b"A" else b"B") + first[-19:]
    repeated = ([first, first, second], [first, second, second], [second, second])
    others = ([second, first], [second], [first, second, outsider], [outsider, first, second], [broken, second])
    for lines in (*repeated, *others):
        expected = "each line once" if lines in repeated else f"a line of each of {ORIGIN}+"
        assert f": expected {expected}" in refused(place, CHECKPOINT, [*text, *lines])


def test_a_witness_may_add_its_line_to_the_checkpoint_once(place: Path) -> None:
    note = parse_note(b"".join(WHOLE[CHECKPOINT]))
    line = parse_note(sign_note(note.text, "witness.example/w", generate_ed25519())).signatures[0]
    lines = encode_note(add_signature(note, line)).splitlines(keepends=True)
    assert evaluate(place, {**WHOLE, CHECKPOINT: lines}).verdict == "verified, without Cedar policies"
    assert "expected each line once" in refused(place, CHECKPOINT, [*lines, lines[-1]])


def test_a_document_that_was_lost_is_named_by_its_entry_alone(place: Path) -> None:
    kept = WHOLE[DOCUMENTS]
    said = refused(place, DOCUMENTS, [*kept[:5], *kept[6:]])
    assert digest_of(kept[5]) in said and "documents.jsonl" not in said


MANY = [DOCUMENTS, DISCLOSURES, "entries.jsonl", CHECKPOINT]


@st.composite
def moved(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """Draw a file with up to three whole lines swapped, repeated, dropped, moved or taken from another file."""
    name = draw(st.sampled_from(MANY))
    lines = list(WHOLE[name])
    for _ in range(draw(st.integers(1, 3))):
        if not lines:
            break
        one, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        match draw(st.sampled_from(["swap", "repeat", "drop", "move", "alien", "forge"])):
            case "swap":
                lines[one], lines[other] = lines[other], lines[one]
            case "repeat":
                lines.insert(other, lines[one])
            case "drop":
                del lines[one]
            case "move":
                lines.insert(other, lines.pop(one))
            case "alien":
                lines.insert(other, draw(st.sampled_from(WHOLE[draw(st.sampled_from(MANY))])))
            case _ if name == DOCUMENTS:
                known = digest_of(WHOLE[DOCUMENTS][draw(st.integers(0, len(WHOLE[DOCUMENTS]) - 1))])
                digest = draw(st.sampled_from([known, known[:23] + "0" * 48, digest_bytes(b"x")]))
                lines.insert(other, document(digest, b"x"))
            case _:
                lines.insert(other, encode_disclosure(disclose("x", bytes(32))) + b"\n")
    return name, lines


@pytest.mark.thorough
@settings(max_examples=250, deadline=None)
@given(moved())
@example((DOCUMENTS, []))
@example((DISCLOSURES, []))
def test_no_export_with_moved_lines_is_verified(place: Path, changed: tuple[str, list[bytes]]) -> None:
    name, lines = changed
    if lines != WHOLE[name]:
        assert refused(place, name, lines)
