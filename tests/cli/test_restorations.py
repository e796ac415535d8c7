"""Two administrators restore a log that lost its end, and every client continues."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.client.support import log as client_log
from appliance.client.support.log import PAUSES_S
from appliance.client.support.session import state_folder
from appliance.domain.governance.restoration import RestoreLog
from appliance.domain.operations import ArtifactsChecked
from appliance.errors import ApplianceError
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.checkpoint import (
    Checkpoint,
    claimed_size,
    cosign,
    open_checkpoint,
    sign_checkpoint,
    witness_vkey_of,
)
from appliance.formats.log.note import add_signature, encode_note, parse_note
from appliance.formats.log.restoration import parse_restoration, verify_restoration
from appliance.formats.signatures.keys import Ed25519Signer, encode_key_file, generate_ed25519
from appliance.workflows import restoration
from appliance.workflows.core.record import append
from appliance.workflows.queries.people import pending_orders
from appliance.workflows.witnesses import accept, compare
from tests.cli.conftest import PASSPHRASE, Desk
from tests.kit.founded import policy_set
from tests.kit.restored import sign_larger

WITNESS, NAME = generate_ed25519(), "witness.example/w1"
CHECKED = ArtifactsChecked(folders=0, size=0, changed=(), unread=())


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.client.support.log.PAUSES_S", PAUSES_S[:0])


def log_signer(desk: Desk) -> Ed25519Signer:
    signer = desk.service.context.keyring.log_signers(desk.site.state.site.origin)[desk.site.state.site.log_key]
    assert isinstance(signer, Ed25519Signer)
    return signer


def larger(desk: Desk, more: int = 50, root: bytes = b"\1" * 32) -> bytes:
    """Return a checkpoint of the log before it lost its end."""
    ledger = desk.site.ledger
    return sign_larger(ledger.checkpoint(), log_signer(desk), desk.site.state.site.log_key, more, root)


def remember(note: bytes, ago_s: float = 600.0) -> Path:
    """Record that this account saw the checkpoint some minutes ago."""
    (path,) = (state_folder() / "logs").glob("*.checkpoint")
    path.write_bytes(note)
    os.utime(path, (time.time() - ago_s,) * 2)
    return path


def test_two_administrators_restore_a_log_and_everybody_who_saw_more_continues(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("sealed")
    trust = ("--trust", str(desk.trust))
    assert desk.as_("rita", "ledger", "show", "0", *trust).code == 0
    kept = desk.site.state.size
    lost = larger(desk)
    path = remember(lost)
    refused = desk.as_("rita", "ledger", "show", "0", *trust)
    assert refused.code == 6 and "two administrators have to order that: appliance restoration order" in refused.err
    shown = json.loads(desk.type("restoration", "show", "--json", *trust).out)
    assert (shown["size"], shown["lost"], shown["waiting"]) == (kept, [kept + 50], [])

    first = desk.as_("anna", "restoration", "order", "--yes", *trust)
    assert first.code == 0, first.err
    assert f"Given up: the entries {kept:,} to {kept + 49:,}, 50 in all, known from this account." in first.err
    assert "Revoke again what was revoked" in first.err
    assert "another administrator types: appliance restoration countersign" in first.err
    alone = desk.as_("anna", "restoration", "countersign", "--yes", *trust)
    assert alone.code == 3 and "cannot countersign it" in alone.err
    other = desk.as_("rita", "restoration", "countersign", "--yes", *trust)
    assert other.code == 3 and "This action needs administrator" in other.err
    second = desk.as_("ben", "restoration", "countersign", "--yes", *trust)
    assert second.code == 0, second.err
    (done,) = desk.site.state.site.restorations
    assert (done.kept_size, done.lost_size, done.signers) == (kept, kept + 50, ("anna", "ben"))

    # Accounts that saw the lost checkpoint or an earlier one go on, and are told.
    told = desk.as_("rita", "ledger", "show", "0", *trust)
    assert told.code == 0, told.err
    assert "anna and ben ordered at" in told.err and "50 of those are given up. They signed this very" in told.err
    assert claimed_size(path.read_bytes()) <= desk.site.state.size
    assert "This log was restored" not in desk.as_("rita", "ledger", "show", "0", *trust).err
    remember(larger(desk, kept + 20 - desk.site.state.size))
    told = desk.as_("rita", "ledger", "show", "0", *trust)
    assert told.code == 0 and "20 of those are given up. They signed a later checkpoint" in told.err


def test_an_administrator_withdraws_the_own_order_while_the_service_waits(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("sealed")
    trust = ("--trust", str(desk.trust))
    assert desk.as_("anna", "ledger", "show", "0", *trust).code == 0
    remember(larger(desk))
    monkeypatch.setattr(desk.service.context, "awaits_restoration", True)
    none = desk.as_("anna", "restoration", "withdraw", "--yes", *trust)
    assert none.code == 4 and "expected an order of anna that waits, got none" in none.err
    assert desk.as_("anna", "restoration", "order", "--yes", *trust).code == 0
    assert desk.as_("ben", "restoration", "withdraw", "--yes", *trust).code == 4, "it is another person's"
    told = desk.as_("anna", "restoration", "withdraw", "--reason", "A newer backup was found.", "--yes", *trust)
    assert told.code == 0 and "the order was withdrawn" in told.out + told.err, told.err
    assert json.loads(desk.type("restoration", "show", "--json", *trust).out)["waiting"] == []
    second = desk.as_("ben", "restoration", "countersign", "--yes", *trust)
    assert second.code == 4 and "expected an order that waits, got none" in second.err
    assert not desk.site.state.site.restorations


def test_an_order_is_shown_without_its_reason_to_a_reader_without_a_session_and_not_after_its_end(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("sealed")
    trust = ("--trust", str(desk.trust))
    assert desk.as_("anna", "ledger", "show", "0", *trust).code == 0
    lost = larger(desk)
    remember(lost)
    reason = desk.site.text("The disk of Ines failed.")
    desk.site.pend(restore_order(desk, lost, reason), {"lost": lost})
    answer = restoration.describe(desk.service.context, None)
    assert [row.signer for row in answer.waiting] == ["anna"] and answer.waiting[0].disclosures == ()
    assert "The disk of Ines" not in answer.model_dump_json()
    (row,) = pending_orders(desk.service.context)
    assert [one.text for one in row.disclosures] == ["The disk of Ines failed."], "a session shows it"
    second = desk.as_("ben", "restoration", "countersign", "--yes", *trust)
    assert second.code == 0 and reason in second.err and "The disk of Ines" not in second.err, second.err
    assert [one.signers for one in desk.site.state.site.restorations] == [("anna", "ben")]


def test_an_order_that_has_expired_waits_no_longer(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    lost = larger(desk)
    desk.site.pend(restore_order(desk, lost, None), {"lost": lost})
    context = desk.service.context
    assert len(restoration.describe(context, None).waiting) == 1
    later = datetime.now(UTC) + timedelta(days=3)
    context.clock = lambda: later
    assert restoration.describe(context, None).waiting == ()


def restore_order(desk: Desk, lost: bytes, reason: str | None) -> RestoreLog:
    """Anna's order to give up a checkpoint."""
    note, kept = open_checkpoint(lost, desk.site.state.site.log_key), desk.site.state.size
    return desk.site.order(
        RestoreLog,
        "anna",
        reason=reason,
        kept_size=kept,
        kept_root=f"sha256:{desk.site.ledger.root_at(kept).hex()}",
        lost=digest_bytes(lost),
        lost_size=note.size,
        lost_root=f"sha256:{note.root.hex()}",
    )


def test_the_orders_for_a_signer_are_refused_before_a_file_is_written_if_the_log_does_not_know_a_key(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_desk("sealed")
    trust = ("--trust", str(desk.trust))
    assert desk.as_("anna", "ledger", "show", "0", *trust).code == 0
    remember(larger(desk))
    kept = desk.site.state.size
    desk.service.bend["/v1/restoration"] = lambda answer: {
        **answer,
        "signer_ahead": True,
        "edge": [],
        "kept_size": kept,
    }
    desk.site.keys["nora"] = generate_ed25519()  # an administrator of the lost entries alone
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for name in ("nora", "rita"):
        told = desk.as_(name, "restoration", "order", "--output", str(first), "--yes", *trust)
        assert told.code == 5 and "expected that of an administrator whom the first" in told.err, told.err
    assert not first.exists()
    told = desk.as_("anna", "restoration", "order", "--output", str(first), "--yes", *trust)
    assert told.code == 0 and first.exists(), told.err
    told = desk.as_("nora", "restoration", "countersign", str(first), "--output", str(second), "--yes", *trust)
    assert told.code == 5 and "expected that of an administrator whom the first" in told.err, told.err
    assert not second.exists()
    told = desk.as_("ben", "restoration", "countersign", str(first), "--output", str(second), "--yes", *trust)
    assert told.code == 0 and second.exists(), told.err


def restore(desk: Desk, *options: str) -> None:
    for name, words in (("anna", ("order", *options)), ("ben", ("countersign",))):
        told = desk.as_(name, "restoration", *words, "--yes", "--trust", str(desk.trust))
        assert told.code == 0, told.err


@pytest.mark.thorough
def test_accounts_with_another_memory_than_the_order_names_still_refuse(
    open_desk: Callable[[str], Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("sealed")
    trust = ("--trust", str(desk.trust))
    assert desk.as_("rita", "ledger", "show", "0", *trust).code == 0
    file, kept = tmp_path / "lost.note", desk.site.state.size
    file.write_bytes(lost := larger(desk))
    restore(desk, "--checkpoint", str(file))
    size = desk.site.state.size

    def refused(note: bytes, words: str, ago_s: float = 600.0) -> None:
        path = remember(note, ago_s)
        told = desk.as_("rita", "ledger", "show", "0", *trust)
        assert told.code == 6 and words in told.err, told.err
        assert path.read_bytes() == note

    refused(sign_larger_at(desk, kept + 51), f"expected a checkpoint of at most {kept + 50} entries, got {kept + 51}")
    refused(sign_larger_at(desk, kept + 50, b"\2" * 32), "expected the root")
    # What was seen after the order belongs to the restored log, which lost its end once more.
    refused(sign_larger_at(desk, kept + 30), "before the order", -60.0)
    # An order of a later time would give up what is seen until then.
    remember(lost)
    with monkeypatch.context() as patch:
        patch.setattr(client_log, "time", SimpleNamespace(time=lambda: time.time() - 1_200, sleep=time.sleep))
        told = desk.as_("rita", "ledger", "show", "0", *trust)
        assert told.code == 6 and "after this machine's clock" in told.err
    # Without a session nothing of this can be verified.
    remember(lost)
    told = desk.as_("anna", "clock", "reset", "--yes", *trust)
    assert told.code == 6 and "A command with a session verifies that" in told.err
    # Their checkpoint is given up by a second restoration.
    note = sign_larger_at(desk, kept + 80)
    remember(note)
    restore(desk)
    assert [one.lost_size for one in desk.site.state.site.restorations] == [kept + 50, kept + 80]
    told = desk.as_("rita", "ledger", "show", "0", *trust)
    assert told.code == 0, told.err
    assert desk.site.state.size > size


def sign_larger_at(desk: Desk, size: int, root: bytes = b"\1" * 32) -> bytes:
    known = open_checkpoint(larger(desk), desk.site.state.site.log_key)
    return sign_checkpoint(Checkpoint(known.origin, size, root), log_signer(desk))


def test_a_log_that_grew_before_anybody_noticed_keeps_the_entries_of_the_backup(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_desk("sealed")
    trust = ("--trust", str(desk.trust))
    assert desk.as_("rita", "ledger", "show", "0", *trust).code == 0
    kept = desk.site.state.size
    note = sign_larger_at(desk, kept + 2)
    for _ in range(5):
        append(desk.service.context, CHECKED)
    remember(note)
    told = desk.as_("rita", "ledger", "show", "0", *trust)
    assert told.code == 6 and "a fork" in told.err
    nothing = desk.as_("anna", "restoration", "order", "--yes", *trust)
    assert nothing.code == 4 and "--checkpoint FILE" in nothing.err
    file = tmp_path / "lost.note"
    file.write_bytes(note)
    beyond = desk.as_("anna", "restoration", "order", "--yes", "--checkpoint", str(file), "--kept", "999999", *trust)
    assert beyond.code == 2 and "the entries of the log" in beyond.err
    restore(desk, "--checkpoint", str(file), "--kept", str(kept))
    told = desk.as_("rita", "ledger", "show", "0", *trust)
    assert told.code == 0 and "This log was restored" in told.err


@pytest.mark.thorough
def test_a_witness_accepts_the_file_and_its_cosignature_is_an_entry(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_desk("sealed")
    trust, context = ("--trust", str(desk.trust)), desk.service.context
    desk.site.adopt(policy_set(witnesses=(witness_vkey_of(NAME, WITNESS),), witness_quorum=1))
    body, documents = desk.site.cosigned(WITNESS, NAME)
    context.known_checkpoints.store_cosigned(NAME, documents["note"])
    desk.site.add(body, documents=documents)
    note = parse_note(larger(desk))
    early = int(time.time()) - 600
    lost = encode_note(add_signature(note, cosign(note, NAME, WITNESS, early)))
    context.known_checkpoints.store_cosigned(NAME, lost)
    for path in context.known_checkpoints.folder.glob("*.note"):
        os.utime(path, (early, early))
    assert [error.code for error in compare(context)] == ["log-truncated"]
    restore(desk)
    assert compare(context) == [] and context.missing_from_log == []
    (given_up,) = context.known_checkpoints.list_given_up()
    assert given_up == lost
    # The witness's lost cosignature is handed in again: it shows no new loss.
    with pytest.raises(ApplianceError, match="accept-restoration") as caught:
        accept(context, lost, "unix")
    assert caught.value.code == "given-up"
    file, state, out = tmp_path / "restoration.json", tmp_path / "w1.state", tmp_path / "cosigned"
    written = desk.as_("anna", "restoration", "export", str(file), *trust)
    assert written.code == 0, written.err
    made = parse_restoration(file.read_bytes())
    trusted = tuple(desk.site.keys[name].keyid for name in ("anna", "ben"))
    assert verify_restoration(made, [desk.site.state.site.log_key], trusted).signers == ("anna", "ben")
    state.write_bytes(lost)
    key = tmp_path / "w1.key"
    key.write_bytes(encode_key_file(WITNESS.private, PASSPHRASE, salt=b"s" * 32, nonce=b"n" * 12))
    key.chmod(0o600)
    words = ("--name", NAME, "--log", str(desk.trust), "--state", str(state), "--output", str(out))
    accepted = desk.type(
        *("witness", "accept-restoration", str(file), *words, "--key", str(key)),
        *("--passphrase-file", str(desk.passphrase)),
    )
    assert accepted.code == 0, accepted.err
    told = desk.as_("anna", "witness", "accept", str(out), *trust)
    assert told.code == 0, told.err
    assert context.missing_from_log == []
