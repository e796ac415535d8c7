"""A file that was cut off, torn or edited by hand is named in plain words."""

from __future__ import annotations

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
