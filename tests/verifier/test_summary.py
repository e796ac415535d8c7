"""The summary of a broken export: one verdict, a line for each kind of finding, and its consequences."""

from __future__ import annotations

import json

import pytest

from appliance.formats.core.commitment import disclose, encode_disclosure
from appliance.formats.log.export import _encode_header
from tests.verifier.test_broken_files import parts_of
from tests.verifier.test_program import Files, export_of, run


def flip(files: Files, index: int, place: int = 40) -> list[bytes]:
    entries = list(files.site.entries)
    byte = entries[index][place] ^ 1
    entries[index] = entries[index][:place] + bytes([byte]) + entries[index][place + 1 :]
    return entries


def many_texts(files: Files, count: int) -> None:
    """Each review has the text that its reviewer signed."""
    for _ in range(count):
        files.site.review("rita", "privacy")


def test_a_flip_in_entry_0_is_one_break_with_what_follows_from_it(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    many_texts(files, 33)
    files.export.write_bytes(export_of(files.site, entries=flip(files, 0)))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    lines = out.splitlines()
    assert code == 6 and len(lines) <= 20
    assert lines[0] == "verdict        failed: entry 0 is the first that does not hold"
    texts = len(files.site.disclosures)
    (follows,) = (line for line in lines if line.startswith("follows"))
    assert texts >= 45 and f"{texts} texts have no entry that binds them" in follows and "from entry 0 alone" in follows
    assert "hmac-sha256" not in out
    _, whole, _ = run(capsys, files.export, "--trust", files.trust, "--all")
    assert whole.count("expected an entry or order that binds it") == texts
    _, value, _ = run(capsys, files.export, "--trust", files.trust, "--json")
    report = json.loads(value)
    assert len(report["findings"]) == sum(group["count"] for group in report["groups"])
    (texts_group,) = (group for group in report["groups"] if group["kind"] == "unbound-text")
    assert (texts_group["count"], texts_group["follows"]) == (texts, True)


@pytest.mark.parametrize("index", [0, 1, 5, 9, 20, -2, -1])
@pytest.mark.parametrize("place", [3, 40, 90, -3])
def test_any_flipped_entry_fails_in_at_most_20_lines(
    index: int, place: int, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.export.write_bytes(export_of(files.site, entries=flip(files, index, place)))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert code == 6 and len(out.splitlines()) <= 20 and out.startswith("verdict        failed")
    assert "\nfinding        " in out


def test_texts_that_nothing_binds_are_one_line_where_no_entry_is_broken(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    data = files.export.read_bytes()
    members = {name: data[start:stop] for name, (start, stop) in parts_of(data).items()}
    stray = [encode_disclosure(disclose(str(number), bytes(32))) + b"\n" for number in range(45)]
    members["disclosures.jsonl"] += b"".join(stray)
    packed = [_encode_header(name, len(part)) + part + bytes(-len(part) % 512) for name, part in members.items()]
    files.export.write_bytes(b"".join(packed) + bytes(1024))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert code == 6 and out.startswith("verdict        failed\n")
    assert "finding        45 texts have no entry that binds them: first disclosure hmac-sha256:" in out
    assert "follows" not in out
