"""Passkeys from the command line: enrolled, listed, revoked by name; and an order in a file, read elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.actions.proposals import Proposal, encode_proposal
from appliance.domain.core.credentials import PasskeyPossession, encode_credential
from appliance.domain.core.order import Order
from appliance.formats.core.fields import encode_base64url
from appliance.formats.signatures.dsse import Envelope, encode_envelope, sign_envelope
from scripts.kit.authenticator import PLACE, Authenticator, new_passkey
from scripts.kit.log_builder import ORIGIN, b64, stage
from tests.cli.conftest import Desk, Told, one_line, type_alone

Open = Callable[[str], Desk]


def proof_of(folder: Path, name: str, passkey: Authenticator, now: str, **fields: Any) -> Path:
    """Write the proof that the console lets a person download."""
    said: dict[str, Any] = {
        "origin": ORIGIN, "signer": name, "nonce": "0" * 32, "issued_at": now, "key": b64(passkey.spki),
        "keyid": passkey.keyid, "passkey": "blue", "credential_id": encode_base64url(passkey.credential_id),
        "rp_id": passkey.rp_id, "origins": (passkey.origin,), "backup_eligible": passkey.is_backup_eligible,
    }  # fmt: skip
    statement = PasskeyPossession(**said | fields)
    path = folder / f"{name}.proof"
    path.write_bytes(encode_envelope(sign_envelope(encode_credential(statement), passkey)) + b"\n")
    return path


def enrol(desk: Desk, name: str, passkey: Authenticator) -> Told:
    proof = proof_of(desk.folder, name, passkey, desk.site.now)
    told = desk.as_("anna", "principal", "enrol-passkey", name, "--proof", str(proof), "--yes")
    assert told.code == 0, told.err
    countersigned = desk.as_("ben", "order", "countersign", "--yes")
    assert countersigned.code == 0, countersigned.err
    return told


def test_two_administrators_enrol_a_passkey_from_its_proof(open_desk: Open) -> None:
    desk, passkey = open_desk("staffed"), new_passkey()
    told = enrol(desk, "rita", passkey)
    shown = one_line(told.err)
    for text in (
        passkey.keyid,
        f"signs at: {PLACE}",
        "can be copied to a cloud: no",
        "passkey: blue",
        "at these addresses only",
    ):
        assert text in shown
    rows = json.loads(desk.as_("rita", "key", "list", "rita", "--json").out)
    assert [row.get("passkey", {}).get("name") for row in rows] == [None, "blue"]
    assert "blue" in desk.as_("rita", "key", "list", "rita").out


def test_a_passkey_is_revoked_by_its_name(open_desk: Open) -> None:
    desk, passkey = open_desk("staffed"), new_passkey()
    enrol(desk, "rita", passkey)
    told = desk.as_("rita", "key", "revoke", "rita", "blue", "--yes")
    assert told.code == 0, told.err
    rows = json.loads(desk.as_("rita", "key", "list", "rita", "--json").out)
    assert [row["revoked"] is None for row in rows] == [True, False]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"signer": "raul"}, "proof of a passkey, principal: expected rita, got raul"),
        ({"origin": "other.example/log"}, "proof of a passkey, log: expected bank.example/log, got other.example/log"),
        ({"origins": (f"{PLACE}:8443",)}, "origin: expected https://appliance.example:8443"),
    ],
)
def test_a_proof_that_says_otherwise_is_refused_before_signing(
    fields: dict[str, Any], words: str, open_desk: Open
) -> None:
    desk = open_desk("staffed")
    proof = proof_of(desk.folder, "rita", new_passkey(), desk.site.now, **fields)
    told = desk.as_("anna", "principal", "enrol-passkey", "rita", "--proof", str(proof), "--yes")
    assert told.code != 0
    assert words in one_line(told.err)
    assert desk.ordered() == 0


def test_a_cloud_copied_passkey_is_refused_before_signing(open_desk: Open) -> None:
    desk = open_desk("staffed")
    proof = proof_of(desk.folder, "rita", new_passkey(flags=0x0D), desk.site.now)
    told = desk.as_("anna", "principal", "enrol-passkey", "rita", "--proof", str(proof), "--yes")
    assert (
        told.code,
        "This passkey can be copied, such as to a cloud. Policy (passkeys_synced)" in one_line(told.err),
    ) == (3, True)
    assert desk.ordered() == 0


# An order in a file.


def review(folder: Path, envelope: Envelope | None = None, order: Order | None = None) -> tuple[Path, Order]:
    site = stage("sealed")
    made = order or site.review_order("rita", "privacy")
    texts = tuple(text for text in site.disclosures if text.commitment in made.commitments().values())
    path = folder / "review.order.json"
    path.write_bytes(encode_proposal(Proposal(made, texts), envelope))
    return path, made


def test_a_file_is_read_without_a_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, order = review(tmp_path)
    told = type_alone(capsys, "order", "check", str(path))
    assert told.code == 0, told.err
    envelope = stage("sealed").sign(order)
    assert envelope.pae_digest in told.out
    for text in (
        "action: review",
        "adapter: clauses",
        "signer: rita",
        "What it means:",
        "I have examined this adapter.",
    ):
        assert text in one_line(told.err), told.err


def test_the_text_of_a_statement_alone_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, order = review(tmp_path)
    envelope = stage("sealed").sign(order)
    path = tmp_path / "copied.txt"
    path.write_bytes(envelope.payload + b"\n")
    told = type_alone(capsys, "order", "check", str(path), "--json")
    assert json.loads(told.out)["order"] == envelope.pae_digest


def test_a_signature_in_a_file_is_checked_under_the_key_that_a_proof_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, passkey = stage("sealed"), new_passkey(counter=7)
    order = site.review_order("rita", "privacy")
    proof = proof_of(tmp_path, "rita", passkey, site.now)
    path, _ = review(tmp_path, site.sign(order, passkey), order)
    told = type_alone(capsys, "order", "check", str(path), "--proof", str(proof))
    assert told.code == 0, told.err
    assert f"holds: by a passkey at {PLACE}, its counter at 7" in one_line(told.out)
    path, _ = review(tmp_path, site.sign(order, passkey.wrong(origin=f"{PLACE}:9999")), order)
    told = type_alone(capsys, "order", "check", str(path), "--proof", str(proof))
    assert (told.code, f"origin: expected {PLACE}, got '{PLACE}:9999'" in one_line(told.err)) == (6, True)
    other = proof_of(tmp_path, "raul", passkey, site.now)
    told = type_alone(capsys, "order", "check", str(path), "--proof", str(other))
    assert (told.code, "expected that of rita at bank.example/log" in one_line(told.err)) == (2, True)


def test_a_changed_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, order = review(tmp_path)
    value = json.loads(path.read_bytes())
    value["disclosures"][0]["text"] = "I read nothing."
    path.write_text(json.dumps(value, separators=(",", ":"), sort_keys=True))
    told = type_alone(capsys, "order", "check", str(path))
    assert told.code == 6, told
    site = stage("sealed")
    other = site.sign(site.review_order("rita", "privacy", decision="reject", valid_until=None))
    path, _ = review(tmp_path, None, order)
    changed = json.loads(path.read_bytes()) | {"envelope": json.loads(encode_envelope(other))}
    path.write_text(json.dumps(changed, separators=(",", ":"), sort_keys=True))
    told = type_alone(capsys, "order", "check", str(path))
    assert (told.code, "expected one over the statement beside it" in one_line(told.err)) == (6, True)


def test_the_service_names_the_key_where_no_proof_is_given(open_desk: Open) -> None:
    desk, passkey = open_desk("sealed"), new_passkey()
    enrol(desk, "rita", passkey)
    order = desk.site.review_order("rita", "privacy")
    path, _ = review(desk.folder, sign_envelope(desk.site.sign(order).payload, passkey), order)
    told = desk.as_("rita", "order", "check", str(path))
    assert told.code == 0, told.err
    assert "holds: by a passkey" in one_line(told.out)
    path, _ = review(desk.folder, sign_envelope(desk.site.sign(order).payload, new_passkey()), order)
    told = desk.as_("rita", "order", "check", str(path))
    assert (told.code, "to be enrolled for them, got another's or none" in one_line(told.err)) == (4, True)


def test_what_was_left_to_the_appliance_is_resolved_again(open_desk: Open) -> None:
    desk = open_desk("imported")
    path = desk.folder / "train.order.json"
    order, left = desk.site.train_order("olga"), frozenset({"recipe.weight_decay", "recipe.eval_steps"})
    path.write_bytes(encode_proposal(Proposal(order, reported=left)))
    told = desk.as_("olga", "order", "check", str(path))
    assert told.code == 0, told.err
    assert "weight decay: 0.0 (auto)" in one_line(told.err)
    assert "every (auto) value is what this machine makes of it" in one_line(told.out)
    path.write_bytes(encode_proposal(Proposal(order, reported=left | {"recipe.batch_size"})))
    told = desk.as_("olga", "order", "check", str(path))
    assert (told.code, "recipe, resolved again: batch_size: expected 8, got 4" in one_line(told.err)) == (6, True)
