"""A response record is checked without a service: entry, proof, text. Whatever was changed in one is found."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.domain.queries.proofs import ResponseRecord, derive_salt, parse_record, verify_record, verify_text
from appliance.domain.serving.requests import RequestRefused
from appliance.errors import ApplianceError
from appliance.formats.core.commitment import commit
from appliance.formats.core.merkle import hash_leaf, inclusion_proof, root_of
from appliance.formats.log.log_policy import LogPolicy
from appliance.formats.log.note import vkey_of
from appliance.formats.log.proof import Proof, encode_proof
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN, LogBuilder, stage
from tests.kit.log_policies import quorum_policy
from tests.kit.mutations import mutated, reshaped
from tests.verifier.test_program import run

TEXT = "payment, due in thirty days"
SALT = derive_salt(b"k" * 32, "2" * 32, "answer")


def record_of(site: LogBuilder, index: int | None = None, size: int | None = None, **changes: Any) -> dict[str, Any]:
    size = len(site.entries) if size is None else size
    at = size - 1 if index is None else index
    leaves = [hash_leaf(data) for data in site.entries[:size]]

    def node(level: int, place: int) -> bytes:
        return root_of(leaves[place << level : (place + 1) << level])

    proof = Proof(at, tuple(inclusion_proof(at, size, node)), site.checkpoint(size))
    record = ResponseRecord(
        entry=site.entries[at].decode(),
        proof=encode_proof(proof).decode(),
        prompt_salt=base64.b64encode(SALT).decode(),
        answer_salt=base64.b64encode(SALT).decode(),
    )
    return record.model_dump(mode="json", exclude_none=True) | changes


class Kept:
    """What a unit has in a folder: record, text and trust file."""

    def __init__(self, folder: Path) -> None:
        self.site = stage("serving")
        self.site.add(self.site.answered(2, answer=commit(TEXT, SALT)))
        self.record, self.answer, self.trust = (folder / name for name in ("record.json", "answer.txt", "trust.json"))
        self.trust.write_bytes(encode_trust(self.site.trust))
        self.answer.write_text(TEXT)
        self.write(record_of(self.site))

    def write(self, value: dict[str, Any]) -> None:
        self.record.write_text(json.dumps(value, indent=1))


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_a_record_and_its_text_are_verified(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--record", kept.record, "--trust", kept.trust, "--answer", kept.answer)
    assert (code, err) == (0, "")
    manifest = kept.site.state.adapters.get("clauses@1").manifest  # type: ignore[union-attr]
    assert f"clauses@1 ({manifest})" in out
    slot = kept.site.state.slots.get("legal/labels")
    assert slot is not None
    rests = ", ".join(map(str, (slot.admitted, slot.release, *slot.approvals)))
    assert f"rests on       entries {rests}:" in out
    assert "text           is the one that was answered" in out
    code, out, _ = run(capsys, "--record", kept.record, "--trust", kept.trust, "--json")
    value = json.loads(out)
    assert (code, value["body"]["unit"], value["verdict"]) == (0, "legal", "verified, without its text")
    assert value["log_size"] == len(kept.site.entries)


def test_a_records_own_text_is_checked_whenever_it_is_there(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    record = record_of(kept.site)
    wanted = ("--record", kept.record, "--trust", kept.trust)
    kept.write(record | {"text": TEXT})
    code, out, _ = run(capsys, *wanted)
    assert (
        code == 0
        and out.startswith("verdict        verified\n")
        and out.endswith("text           is the one that was answered\n")
    )
    for more in ((), ("--json",), ("--answer", kept.answer)):
        kept.write(record | {"text": TEXT + "!"})
        code, out, err = run(capsys, *wanted, *more)
        assert (code, out) == (6, "") and "answer: expected the text of hmac-sha256:" in err
    kept.write({key: value for key, value in record.items() if key != "answer_salt"} | {"text": TEXT})
    code, out, err = run(capsys, *wanted)
    assert (code, out) == (2, "") and "response record, answer_salt" in err


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_newline_behind_the_answer_is_noticed(end: str, kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("--record", kept.record, "--trust", kept.trust, "--answer", kept.answer)
    kept.answer.write_bytes(TEXT.encode() + end.encode())
    code, out, err = run(capsys, *wanted)
    assert (code, out) == (6, "") and "the file has one newline more than the answer" in err and "printf %s" in err
    assert "hmac" not in err
    for other in (TEXT + end + end, "other" + end, TEXT + " "):
        kept.answer.write_bytes(other.encode())
        code, out, err = run(capsys, *wanted)
        assert (code, out) == (6, "") and "newline" not in err


def test_no_record_is_plainly_verified_while_its_text_is_not(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--record", kept.record, "--trust", kept.trust)
    assert code == 0 and "text           not checked: give --answer FILE\n" in out
    assert out.startswith("verdict        verified, without its text\n")
    kept.site.add(kept.site.request(3))
    kept.site.add(kept.site.answered(3, answer=None))
    kept.write(record_of(kept.site))
    code, out, _ = run(capsys, "--record", kept.record, "--trust", kept.trust)
    assert (
        code == 0 and out.startswith("verdict        verified\n") and out.endswith("text           none was answered\n")
    )
    kept.write(record_of(kept.site, text=TEXT))
    assert run(capsys, "--record", kept.record, "--trust", kept.trust)[0] == 6


def test_a_record_that_two_readers_could_read_in_two_ways_is_refused(
    kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.dumps(record_of(kept.site, text=TEXT))
    for data in ('{"text":"forged",' + whole[1:], "\ufeff" + whole, "[" * 100_000, '{"entry":NaN}'):
        kept.record.write_text(data)
        code, out, err = run(capsys, "--record", kept.record, "--trust", kept.trust)
        assert (code, out, err.count("\n")) == (2, "", 1)


def test_nothing_is_believed_of_a_file_that_is_read_in_part(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("--record", kept.record, "--trust", kept.trust, "--answer", kept.answer)
    kept.answer.write_text("x" * 1_000_001)
    code, _, err = run(capsys, *wanted)
    assert code == 2 and "answer, " in err and "expected at most 1000000 bytes, got more" in err
    kept.answer.write_text(TEXT)
    kept.trust.write_bytes(kept.trust.read_bytes() + b"x" * 65_536)
    code, _, err = run(capsys, *wanted)
    assert code == 2 and "trust file, " in err and "expected at most 65536 bytes, got more" in err


def test_a_record_holds_while_the_log_grows(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    index = len(kept.site.entries) - 1
    for number in range(5, 12):
        kept.site.add(kept.site.request(number))
        kept.write(record_of(kept.site, index))
        assert run(capsys, "--record", kept.record, "--trust", kept.trust)[0] == 0


def test_another_text_is_not_the_answers(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    kept.answer.write_text(TEXT + ".")
    code, _, err = run(capsys, "--record", kept.record, "--trust", kept.trust, "--answer", kept.answer)
    assert code == 6 and "answer: expected the text of hmac-sha256:" in err and TEXT not in err
    kept.write({key: value for key, value in record_of(kept.site).items() if key != "answer_salt"})
    assert run(capsys, "--record", kept.record, "--trust", kept.trust, "--answer", kept.answer)[0] == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"unit":"legal"', '"unit":"sales"'),
        ('"adapter":"clauses@1"', '"adapter":"clauses@2"'),
        ('"completion_tokens":4', '"completion_tokens":5'),
        ('"outcome":"success"', '"outcome":"failure"'),
    ],
)
def test_a_changed_entry_is_found(kept: Kept, capsys: pytest.CaptureFixture[str], old: str, new: str) -> None:
    record = record_of(kept.site)
    assert old in record["entry"]
    kept.write(record | {"entry": record["entry"].replace(old, new)})
    assert run(capsys, "--record", kept.record, "--trust", kept.trust)[0] == 6


def test_a_proof_of_another_entry_or_log_is_found(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    record, size = record_of(kept.site), len(kept.site.entries)
    for wrong in (
        record_of(kept.site, size - 2)["proof"],
        record["proof"].replace(f"index {size - 1}", f"index {size - 2}"),
        record["proof"].replace("tlog-proof@v1", "tlog-proof@v2"),
        "\u00e9",
        "",
    ):
        kept.write(record | {"proof": wrong})
        assert run(capsys, "--record", kept.record, "--trust", kept.trust)[0] == 6, wrong
    kept.write(record)
    outsider = vkey_of(ORIGIN, generate_ed25519())
    assert run(capsys, "--record", kept.record, "--trust", kept.trust, "--log-key", outsider)[0] == 6


def test_an_entry_that_ends_no_request_is_no_record(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    kept.site.add(RequestRefused(unit="legal", application=None, served_model=None, code="denied", count=1))
    kept.write(record_of(kept.site))
    code, _, err = run(capsys, "--record", kept.record, "--trust", kept.trust)
    assert code == 6 and "expected request.finished, got request.refused" in err


def test_what_cannot_be_read_ends_with_its_own_code(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--record", kept.record)[0] == 7
    assert run(capsys, "--record", kept.trust, "--trust", kept.trust)[0] == 2
    assert run(capsys, "--record", kept.record.with_name("none"), "--trust", kept.trust)[0] == 2
    assert run(capsys)[0] == 2
    assert run(capsys, kept.record, "--record", kept.record)[0] == 2


@cache
def whole() -> tuple[dict[str, Any], LogPolicy]:
    site = stage("serving")
    site.add(site.answered(2, answer=commit(TEXT, SALT)))
    return record_of(site), quorum_policy([site.trust.log_key], [], 0)


@pytest.mark.thorough
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_whatever_is_handed_in_for_a_record_is_answered_with_an_error_of_ours(data: st.DataObject) -> None:
    record, policy = whole()
    changed = data.draw(
        reshaped(record).map(lambda value: json.dumps(value).encode()) | mutated(json.dumps(record).encode())
    )
    with suppress(ApplianceError):
        verify_text(verify_record(parse_record(changed), policy), "answer", TEXT)
