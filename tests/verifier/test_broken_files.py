"""Truncated, torn or edited files are reported in plain words."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest

from appliance.formats.core.canonical import encode_canonical
from appliance.formats.log.export import MEMBERS
from tests.verifier.test_program import Files, run


def parts_of(data: bytes) -> dict[str, tuple[int, int]]:
    """Where each member's bytes begin and end."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {one.name: (one.offset_data, one.offset_data + one.size) for one in tar.getmembers()}


@pytest.mark.parametrize("name", MEMBERS)
def test_an_export_that_was_cut_off_fails_and_says_where_it_ends(
    name: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    data = files.export.read_bytes()
    start, stop = parts_of(data)[name]
    files.export.write_bytes(data[: (start + stop) // 2])
    code, out, err = run(capsys, files.export, "--trust", files.trust)
    assert (code, out, err.count("\n")) == (6, "", 1)
    assert f"the file ends in the middle of {name}" in err and "was it copied whole?" in err
    assert err.startswith(f"appliance-verify: failed: {files.export}: ")


@pytest.mark.parametrize("what", ["before a member", "in its last block", "torn", "longer"])
def test_an_export_with_bytes_missing_or_added_fails(
    what: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    data = files.export.read_bytes()
    entries, documents = (parts_of(data)[name] for name in ("entries.jsonl", "documents.jsonl"))
    changed = {
        "before a member": data[: documents[0] - 100],
        "in its last block": data[:-600],
        "torn": data[: documents[0]] + bytes(documents[1] - documents[0]) + data[documents[1] :],
        "longer": data + bytes(512),
    }
    assert entries[1] < documents[0]
    files.export.write_bytes(changed[what])
    code, out, err = run(capsys, files.export, "--trust", files.trust)
    assert (code, out, err.count("\n")) == (6, "", 1) and err.startswith("appliance-verify: failed: ")


@pytest.mark.parametrize("member", ["origin", "key id", "key"])
def test_an_edited_trust_file_is_named_in_plain_words(
    member: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    value = json.loads(files.trust.read_bytes())
    name, key_id, key = value["logKey"].split("+", 2)
    changed = {"key id": f"{name}+00000000+{key}", "key": f"{name}+{key_id}+{key[:-4]}AAA=", "origin": value["logKey"]}
    value["logKey"] = changed[member]
    if member == "origin":
        value["origin"] = "other.example/log"
    files.trust.write_bytes(encode_canonical(value) + b"\n")
    code, out, err = run(capsys, files.export, "--trust", files.trust)
    assert (code, out) == (2, "")
    if member == "origin":
        assert "the trust file's origin line or log key line was changed: expected the key of" in err
    else:
        assert "the trust file's log key line was changed: its key id does not fit its key" in err


@pytest.mark.parametrize("name", MEMBERS)
def test_an_export_that_was_packed_again_is_named_as_one(
    name: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    """An auditor who unpacked an export and packed it with tar has every byte of its members, and other headers."""
    data = bytearray(files.export.read_bytes())
    header = parts_of(bytes(data))[name][0] - 512
    info = tarfile.TarInfo.frombuf(bytes(data[header : header + 512]), "ascii", "strict")
    info.mtime += 1
    data[header : header + 512] = info.tobuf(tarfile.USTAR_FORMAT)
    files.export.write_bytes(data)
    code, out, err = run(capsys, files.export, "--trust", files.trust)
    assert (code, out) == (6, "")
    assert f"expected the tar header of {name} as appliance ledger export writes it, got one with other fields" in err
    assert "the file was changed, or packed again" in err


def test_a_file_that_cannot_be_used_is_named_with_what_was_expected(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, pretty = files.export.with_suffix(".tar.gz"), files.trust.with_name("pretty.json")
    packed.write_bytes(gzip.compress(files.export.read_bytes()))
    pretty.write_text(json.dumps(json.loads(files.trust.read_bytes()), indent=2))
    missing = files.export.with_name("missing.tar")
    for words, said in (
        ((packed, "--trust", files.trust), f"export, {packed}: expected a tar, got a file packed with gzip"),
        ((files.export, "--trust", pretty), f"trust file, {pretty}: expected the line that appliance init printed"),
        ((files.trust, "--trust", files.trust), "expected the tar header of export.json as appliance ledger export"),
        ((files.export, "--trust", files.trust, "--archive", missing), f"archive, {missing}: expected a readable file"),
    ):
        code, out, err = run(capsys, *words)
        assert (code, out, err.count("\n")) == (2, "", 1) and said in err, err


def test_a_byte_of_the_end_is_named_as_another_one(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.export.write_bytes(files.export.read_bytes()[:-1] + b"x")
    code, _, err = run(capsys, files.export, "--trust", files.trust)
    assert code == 6 and "export, end: expected 1,024 zero bytes at " in err and err.endswith("got other bytes\n")


def test_a_changed_document_is_named_as_one(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    data = files.export.read_bytes()
    place = data.index(b'"bytes":"', parts_of(data)["documents.jsonl"][0]) + 40
    files.export.write_bytes(data[:place] + (b"B" if data[place : place + 1] == b"A" else b"A") + data[place + 1 :])
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    (finding,) = (line for line in out.splitlines() if line.startswith("finding"))
    assert code == 6 and "a document is missing, or it was changed: it does not fit the digest in its entry" in finding
    assert "the rules refuse" not in finding
    assert "\nfollows " in out and out.startswith("verdict        failed: entry 0 is the first that does not hold\n")
