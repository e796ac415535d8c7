"""A witness cosigns a checkpoint that continues the last one, and refuses all others with a reason."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance import witness as program
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.log.checkpoint import open_checkpoint, verify_cosignature, witness_vkey_of
from appliance.formats.log.note import NoteSignature, add_signature, encode_note, parse_note, sign_note, vkey_of
from appliance.formats.log.proof import WitnessRequest, encode_request, parse_request
from appliance.formats.signatures.keys import Ed25519Signer, ed25519_spki
from appliance.formats.signatures.ml_dsa import generate_ml_dsa
from appliance.witness import NO_KNOWN_HEAD, Witness, answer, cosign_file, load_log_key, parse_state
from tests.witness.bench import (
    FORK,
    LOG,
    LOG_KEY,
    LOG_VKEY,
    NEXT_LOG_KEY,
    NEXT_LOG_VKEY,
    NOW,
    ORIGIN,
    WITNESS,
    WITNESS_KEY,
    Desk,
    Log,
    signer,
)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(program.time, "time", lambda: NOW + 0.9)
    return Desk(tmp_path)


@pytest.fixture
def at_seven(desk: Desk) -> Desk:
    """Return a desk whose witness has seen the first 7 entries."""
    cosign_file(desk.bring(LOG.request(0, 7)), desk.state, desk.out, WITNESS, first=True)
    return desk


def refused(desk: Desk, data: bytes, error: type[ApplianceError], words: str, **changes: Any) -> None:
    """Nothing leaves, and nothing is remembered."""
    before = desk.state.read_bytes() if desk.state.exists() else None
    desk.out.unlink(missing_ok=True)
    with pytest.raises(error, match=words):
        cosign_file(desk.bring(data), desk.state, desk.out, changes.pop("witness", WITNESS), **changes)
    assert not desk.out.exists()
    assert (desk.state.read_bytes() if desk.state.exists() else None) == before


def test_a_growing_log_is_cosigned_again_and_again(at_seven: Desk) -> None:
    for old, size in ((7, 8), (8, 16), (16, 20)):
        cosigned = cosign_file(at_seven.bring(LOG.request(old, size)), at_seven.state, at_seven.out, WITNESS)
        assert at_seven.out.read_bytes() == at_seven.state.read_bytes() == cosigned
        assert open_checkpoint(cosigned, LOG_VKEY).size == size
        assert verify_cosignature(parse_note(cosigned), WITNESS.vkey) == NOW


def test_without_an_output_file_only_the_state_is_written(desk: Desk) -> None:
    cosigned = cosign_file(desk.bring(LOG.request(0, 7)), desk.state, None, WITNESS, first=True)
    assert desk.state.read_bytes() == cosigned
    assert not desk.out.exists()


def test_a_checkpoint_seen_already_is_cosigned_again_with_a_new_time(
    at_seven: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever size the request starts from: the answer may have been lost on its way, or grown old."""
    for old, later in ((0, 10), (5, 20), (7, 30)):
        monkeypatch.setattr(program.time, "time", lambda later=later: NOW + later)
        cosigned = cosign_file(at_seven.bring(LOG.request(old, 7)), at_seven.state, at_seven.out, WITNESS)
        assert verify_cosignature(parse_note(cosigned), WITNESS.vkey) == NOW + later
        assert len(parse_note(cosigned).signatures) == 2


def test_the_requests_of_another_witness_s_tests_are_answered_as_there(vectors: Any) -> None:
    lite = vectors["litewitness"]
    log_vkey = vkey_of(lite["origin"], ed25519_spki(bytes.fromhex(lite["logKey"])))
    key = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(lite["witnessSeed"])))
    witness = Witness("example.com/witness", key, log_vkey)
    states = [NO_KNOWN_HEAD]
    for request in lite["accepted"]:
        states.append(parse_state(answer(request.encode(), states[-1], witness, NOW), witness))
    assert [seen.checkpoint.size for seen in states] == [0, 1, 3, 5]
    for request in lite["wrongProofs"]:
        with pytest.raises(Tampered, match="consistency proof"):
            answer(request.encode(), states[1], witness, NOW)
    with pytest.raises(NotFound):
        answer(lite["wrongOrigin"].encode(), states[1], witness, NOW)
    with pytest.raises((BadInput, Tampered)):
        answer(lite["wrongSignature"].encode(), states[1], witness, NOW)
    with pytest.raises(Conflict, match="expected 3, the size seen last, got 1"):
        answer(lite["accepted"][2].replace("old 3", "old 1").encode(), states[2], witness, NOW)


# Refusals.


def test_a_log_that_lost_its_end(at_seven: Desk) -> None:
    refused(at_seven, LOG.request(5, 6), Conflict, "expected at least 7, which was seen, got 6")


def test_two_histories_of_one_size(at_seven: Desk) -> None:
    for old in (0, 5, 7):
        refused(at_seven, FORK.request(old, 7), Tampered, "two histories")


def test_a_longer_log_with_another_past(at_seven: Desk) -> None:
    """Neither the fork's own proof nor the true log's leads from what was seen to the fork."""
    fork, true = parse_request(FORK.request(7, 12)), parse_request(LOG.request(7, 12))
    for hashes in (fork.hashes, true.hashes, ()):
        data = encode_request(WitnessRequest(7, hashes, fork.checkpoint))
        refused(at_seven, data, Tampered, "consistency proof 7 to 12")


def test_a_proof_from_another_size_than_was_seen(at_seven: Desk) -> None:
    for old in (0, 5, 8):
        refused(at_seven, LOG.request(old, 12), Conflict, f"expected 7, the size seen last, got {old}")


def test_a_proof_that_claims_to_start_at_nothing_is_empty(desk: Desk) -> None:
    data = encode_request(WitnessRequest(0, (bytes(32),), LOG.checkpoint(7)))
    refused(desk, data, Tampered, "expected 0 hashes, got 1", first=True)


def test_another_log(at_seven: Desk) -> None:
    other = Log(["entry 0"] * 9, "log.example/two")
    refused(at_seven, other.request(7, 9), NotFound, "expected 'log.example/one', which this witness watches")


def test_a_checkpoint_that_the_log_did_not_sign(at_seven: Desk) -> None:
    refused(at_seven, LOG.request(7, 9, NEXT_LOG_KEY), Tampered, "expected one by log.example/one")
    note = parse_note(LOG.checkpoint(9))
    bad = NoteSignature(note.signatures[0].name, note.signatures[0].key_id, bytes(64))
    data = encode_request(
        WitnessRequest(7, parse_request(LOG.request(7, 9)).hashes, encode_note(add_signature(note, bad)))
    )
    refused(at_seven, data, Tampered, "signature, key")


def test_no_state_without_saying_so(desk: Desk) -> None:
    refused(desk, LOG.request(0, 7), NotFound, "--first")


def test_a_first_request_starts_at_nothing(desk: Desk) -> None:
    refused(desk, LOG.request(5, 7), Conflict, "expected 0, the size seen last, got 5", first=True)


def test_first_said_twice(at_seven: Desk) -> None:
    refused(at_seven, LOG.request(0, 9), Conflict, "repeat without --first", first=True)


def test_a_clock_that_went_back(at_seven: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.time, "time", lambda: NOW - 1)
    refused(at_seven, LOG.request(7, 9), Unavailable, f"clock: expected at least {NOW}")


def test_a_state_that_was_changed_or_cut(at_seven: Desk) -> None:
    good = at_seven.state.read_bytes()
    for bad in (b"", good[:-1], good.replace(b"\n7\n", b"\n6\n"), FORK.checkpoint(7), LOG.checkpoint(7)):
        at_seven.state.write_bytes(bad)
        refused(at_seven, LOG.request(7, 9), Tampered, "state file: ")


def test_another_log_s_state(at_seven: Desk) -> None:
    other = Log(["entry 0"] * 9, "log.example/two")
    witness = Witness(WITNESS.name, WITNESS_KEY, vkey_of("log.example/two", LOG_KEY))
    refused(at_seven, other.request(7, 9), Conflict, "state file, log: expected 'log.example/two'", witness=witness)


def test_another_witness_s_state(at_seven: Desk) -> None:
    for witness in (Witness("witness.example/w2", WITNESS_KEY, LOG_VKEY), Witness(WITNESS.name, signer(9), LOG_VKEY)):
        refused(at_seven, LOG.request(7, 9), Tampered, "expected one by", witness=witness)


def test_what_is_no_request(at_seven: Desk) -> None:
    refused(at_seven, b"", BadInput, "witness request")
    refused(at_seven, LOG.checkpoint(9), BadInput, "expected old and a size")
    refused(at_seven, LOG.request(7, 9) + b"\n" * (1 << 20), TooLarge, "at most 1048576 bytes")
    at_seven.request.unlink()
    with pytest.raises(NotFound, match="witness request"):
        cosign_file(at_seven.request, at_seven.state, None, WITNESS)


def test_an_output_over_the_state_or_the_request(at_seven: Desk) -> None:
    for out in (at_seven.state, at_seven.request, at_seven.state.parent / "x" / ".." / "log.state"):
        with pytest.raises(BadInput, match="a file of its own"):
            cosign_file(at_seven.bring(LOG.request(7, 9)), at_seven.state, out, WITNESS)


def test_a_folder_that_is_not_there(desk: Desk) -> None:
    with pytest.raises(Unavailable, match="lock"):
        cosign_file(desk.bring(LOG.request(0, 7)), desk.state.parent / "none/state", None, WITNESS, first=True)


def test_a_full_disk_lets_nothing_leave(at_seven: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program.os, "fsync", full)
    refused(at_seven, LOG.request(7, 9), Unavailable, "state file, .*No space left")


def _hold(state: Path, held: Any, done: Any) -> None:
    with program._hold_lock(state):
        held.set()
        done.wait(90)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_runs_at_once(at_seven: Desk) -> None:
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(at_seven.state, held, done))
    other.start()
    assert held.wait(90)
    refused(at_seven, LOG.request(7, 9), Unavailable, "another run of this witness")
    done.set()
    other.join()
    cosign_file(at_seven.bring(LOG.request(7, 9)), at_seven.state, at_seven.out, WITNESS)


# The log's key is rotated.


def test_while_the_log_signs_with_two_keys_either_is_enough(at_seven: Desk) -> None:
    both = LOG.request(7, 9, LOG_KEY, NEXT_LOG_KEY)
    cosigned = cosign_file(at_seven.bring(both), at_seven.state, at_seven.out, WITNESS)
    assert open_checkpoint(cosigned, LOG_VKEY) == open_checkpoint(cosigned, NEXT_LOG_VKEY)


def test_after_it_the_witness_is_told_the_new_key_and_continues_from_its_state(at_seven: Desk) -> None:
    refused(at_seven, LOG.request(7, 9, NEXT_LOG_KEY), Tampered, "expected one by")
    told = Witness(WITNESS.name, WITNESS_KEY, NEXT_LOG_VKEY)
    cosign_file(at_seven.bring(LOG.request(7, 9, NEXT_LOG_KEY)), at_seven.state, at_seven.out, told)
    refused(at_seven, FORK.request(9, 12, NEXT_LOG_KEY), Tampered, "consistency proof", witness=told)


def test_the_log_s_key_is_named_or_stands_in_a_trust_file(tmp_path: Path, trust_file: Path) -> None:
    assert load_log_key(LOG_VKEY) == LOG_VKEY
    assert load_log_key(str(trust_file)) == json.loads(trust_file.read_bytes())["logKey"]
    for given in ("", "trust.json", WITNESS.vkey, f"{ORIGIN}+00000000+AAAA", "x" * 300):
        with pytest.raises(BadInput, match="expected a vkey or a trust file"):
            load_log_key(given)


def test_a_line_of_ml_dsa_is_carried_and_not_checked(desk: Desk) -> None:
    """The log's second signature reaches the appliance again with the witness's line."""
    key = generate_ml_dsa()
    text = parse_note(LOG.checkpoint(7)).text
    data = encode_request(WitnessRequest(0, (), sign_note(text, ORIGIN, key, LOG_KEY)))
    cosign_file(desk.bring(data), desk.state, desk.out, WITNESS, first=True)
    cosigned = desk.out.read_bytes()
    assert open_checkpoint(cosigned, vkey_of(ORIGIN, key), LOG_VKEY).size == 7
    assert verify_cosignature(parse_note(cosigned), witness_vkey_of(WITNESS.name, WITNESS_KEY)) == NOW
