"""Commands for keys, texts and holds, and what the second administrator sees of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.client.support.session import state_folder
from appliance.domain.core.names import add_seconds
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.log.note import name_key, vkey_of
from appliance.formats.signatures.keys import generate_ed25519, parse_key_file
from scripts.kit.log_builder import ORIGIN
from tests.cli.conftest import PASSPHRASE, Desk, Told, one_line
from tests.kit.founded import policy_set


def _order(desk: Desk, *words: str, by: str = "anna") -> Told:
    told = desk.as_(by, *words, "--yes")
    assert told.code == 0, told.err
    return told


def _second(desk: Desk, first: Told) -> Told:
    """Type the command that the first administrator's output names, as the second one."""
    line = next(line for line in first.err.splitlines() if line.startswith("next: another administrator types:"))
    return _order(desk, *line.partition("appliance ")[2].split(), by="ben")


def _proof(desk: Desk, name: str) -> Path:
    """Write the proof of another key, which the person made because theirs is lost."""
    desk.site.keys[f"{name}-2"] = generate_ed25519()
    proof = desk.folder / f"{name}.proof"
    told = desk.type(
        "key", "prove", "--as", name, "--key", str(desk.key(f"{name}-2")), "--output", str(proof),
        "--passphrase-file", str(desk.passphrase),
    )  # fmt: skip
    assert told.code == 0, told.err
    return proof


# A person's keys.


@pytest.mark.thorough
def test_a_person_rotates_their_own_key_and_is_told_which_file_to_use(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    new = desk.folder / "rita2.key"
    told = _order(desk, "key", "rotate", str(new), "--old-until", "7d", by="rita")
    for text in ("rotate-key", "old until", f"From now on sign with --key {new}", str(desk.key("rita"))):
        assert text in told.err
    signer = parse_key_file(new.read_bytes(), PASSPHRASE)
    assert signer.keyid in told.out
    keys = json.loads(desk.as_("rita", "key", "list", "rita", "--json").out)
    assert [key["until"] is None for key in keys] == [False, True]
    assert keys[1]["keyid"] == signer.keyid
    # Until its end the old one still signs, and the new one does.
    for key in (new, desk.key("rita")):
        again = desk.folder / f"{key.stem}-next.key"
        told = desk.type(
            "key", "rotate", str(again), "--as", "rita", "--key", str(key), "--yes",
            "--passphrase-file", str(desk.passphrase),
        )  # fmt: skip
        assert told.code == 0, told.err


def test_a_rotation_takes_a_key_that_is_there_and_never_the_old_one(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    desk.site.keys["other"] = generate_ed25519()
    told = _order(desk, "key", "rotate", str(desk.key("other")), by="rita")
    assert desk.site.keys["other"].keyid in told.out
    told = desk.as_("rita", "key", "rotate", str(desk.key("rita")), "--yes")
    assert told.code == 2
    assert "expected a file of its own, got that of the old key" in told.err


def test_an_overlap_is_as_long_as_policy_lets_it_and_no_longer(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("rita", "key", "rotate", str(desk.folder / "n.key"), "--old-until", "52w", "--yes")
    assert told.code == 3
    assert "Policy lets the old keys be valid until" in told.err
    told = _order(desk, "key", "rotate", str(desk.folder / "n.key"), "--json", by="rita")
    value = json.loads(told.out)
    assert value["old_until"] > add_seconds(desk.site.now, 2_500_000)
    assert value["key"] == str(desk.folder / "n.key")


def test_two_administrators_give_another_key_for_one_that_was_lost(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    proof = _proof(desk, "rita")
    first = _order(desk, "principal", "replace-key", "rita", "--proof", str(proof), "--reason", "lost on a train")
    told = _second(desk, first)
    keyid = desk.site.keys["rita-2"].keyid
    assert "lost on a train" in told.err and keyid in told.err
    assert f"rita signs with the key {keyid}" in told.err
    desk.site.keys["rita"] = desk.site.keys["rita-2"]
    old, new = json.loads(desk.as_("rita", "key", "list", "rita", "--json").out)
    assert (new["keyid"], new["revoked"]) == (keyid, None)
    assert old["revoked"] is not None


def test_a_key_is_revoked_from_an_entry_on(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("approved")
    enrolled = json.loads(desk.as_("anna", "key", "list", "rita", "--json").out)[0]["enrolled"]
    told = _order(desk, "key", "revoke", "rita", "--since-entry", str(enrolled + 1), "--reason", "stolen")
    for text in ("revoke-key", "since:", "stolen", "rita has no key left"):
        assert text in told.err
    assert "valid before" in desk.as_("anna", "key", "list", "rita").out
    told = desk.as_("anna", "key", "revoke", "rita", "--yes")
    assert (told.code, f"is revoked from entry {enrolled + 1} on." in told.err) == (3, True)
    told = desk.as_("anna", "key", "revoke", "raul", "--since-entry", "1", "--yes")
    assert (told.code, "can be revoked from an entry between" in told.err) == (3, True)


def test_which_of_several_keys_is_revoked_must_be_said(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    old = desk.site.keys["rita"].keyid
    _order(desk, "key", "rotate", str(desk.folder / "n.key"), by="rita")
    told = desk.as_("rita", "key", "revoke", "rita", "--yes")
    assert told.code == 2
    assert "expected the start (6 digits or more) of one of this person's keys, got 2 that fit" in told.err
    told = _order(desk, "key", "revoke", "rita", old.removeprefix("sha256:")[:8], by="rita")
    assert "is revoked" in told.out and "no key left" not in told.err
    told = desk.as_("anna", "key", "revoke", "nobody", "--yes")
    assert (told.code, "got one that was never enrolled" in told.err) == (4, True)


# The log's key.


def test_two_administrators_rotate_the_logs_key_and_the_trust_file_is_still_enough(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("staffed")
    first_key = desk.site.state.site.log_key
    first = _order(desk, "log-key", "rotate", "--old-until", "7d", "--trust", str(desk.trust))
    told = _second(desk, first)
    vkey = desk.site.state.site.log_key
    assert vkey != first_key
    for text in ("rotate-log-key", vkey, "Trust files stay valid", "appliance-witness cosign"):
        assert text in told.err
    told = desk.as_("audrey", "ledger", "show", "0", "--trust", str(desk.trust))
    assert told.code == 0, told.err
    assert "its key: the trust file." in told.err


def test_once_the_first_key_signs_no_more_the_log_is_verified_from_it_and_the_next_key_remembered(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("staffed")
    told = _second(desk, _order(desk, "log-key", "rotate", "--old-until", "now", "--trust", str(desk.trust)))
    assert "tell each witness the new key now, not by the stick alone" in one_line(told.err)
    show = ("ledger", "show", "0", "--trust", str(desk.trust))
    desk.service.bend["/v1/ledger/export"] = lambda _: b"tar" * 1_000
    assert desk.as_("audrey", *show).code == 2, "an export that is none"
    del desk.service.bend["/v1/ledger/export"]
    told = desk.as_("audrey", *show)
    assert told.code == 0, told.err
    assert "the log verified from it to today's key" in told.err
    desk.service.seen.clear()
    assert desk.as_("audrey", *show).code == 0
    assert ("GET", "/v1/ledger/export") not in desk.service.seen


def test_a_login_follows_a_rotated_key_and_what_opens_no_session_needs_none_for_it(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("staffed")
    secret = ("--passphrase-file", str(desk.passphrase))
    login = ("login", "olga", "--key", str(desk.key("olga")), *secret, "--trust", str(desk.trust))
    assert desk.type(*login).code == 0
    _second(desk, _order(desk, "log-key", "rotate", "--old-until", "now"))
    (session,) = (state_folder() / "sessions").glob("*-olga.json")
    session.unlink()
    desk.service.seen.clear()
    assert desk.type("clock", "show").code == 0
    assert desk.type("key", "prove", *secret).code == 0
    assert ("POST", "/v1/sessions") not in desk.service.seen
    assert "the log verified from it" in desk.type("whoami", *secret).out


def _tree(desk: Desk) -> tuple[int, bytes]:
    ledger = desk.site.ledger
    return ledger.state.size, ledger.edge.root()


def test_a_key_that_no_rotation_leads_to_is_not_believed(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    _second(desk, _order(desk, "log-key", "rotate", "--old-until", "now"))
    outsider = generate_ed25519()
    other = vkey_of(ORIGIN, outsider)
    desk.service.bend["/v1/ledger/0"] = lambda shown: {
        **shown,
        "checkpoint": sign_checkpoint(Checkpoint(ORIGIN, *_tree(desk)), outsider).decode(),
    }
    desk.service.bend["/v1/about"] = lambda about: {**about, "log_key": other}
    told = desk.as_("audrey", "ledger", "show", "0", "--trust", str(desk.trust))
    assert told.code == 6
    assert f"or a verified log that changes to {name_key(other)}" in told.err


# Texts and holds.


def test_two_administrators_erase_a_text_and_both_read_it_first(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    text = "Sales, which was closed"
    _order(desk, "principal", "revoke", "sales", "--reason", text)
    entry = len(desk.site.entries) - 1
    first = _order(desk, "text", "erase", "--entry", str(entry))
    told = _second(desk, first)
    for shown in (first.err, told.err):
        assert text in shown and "This text is destroyed" in shown
    assert text not in [disclosure.text for disclosure in desk.site.disclosures]
    told = desk.as_("anna", "text", "erase", "--entry", str(entry), "--yes")
    assert told.code == 4
    assert f"reason of entry {entry}: expected a text that is disclosed, got one that is not" in told.err


def test_a_printed_name_is_erased_once_its_owner_has_gone(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    desk.site.adopt(policy_set(name_retention_s=0))
    told = desk.as_("anna", "text", "erase", "--printed-name-of", "olga", "--yes")
    assert told.code == 3
    assert "The text is the printed name of an enrolled principal: olga." in told.err
    _order(desk, "principal", "revoke", "olga")
    first = _order(desk, "text", "erase", "--printed-name-of", "olga")
    assert "Olga Example" in first.err
    assert "the order erase of anna took effect" in _second(desk, first).out
    told = desk.as_("anna", "text", "erase", "--printed-name-of", "anna", "--yes")
    assert (told.code, "who has none" in told.err) == (4, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "text: expected --printed-name-of or --entry, got neither"),
        (["--entry", "1", "--printed-name-of", "olga"], 2, "got both"),
        (["--entry", "0"], 2, "texts: none"),
        (["--entry", "1", "--field", "owner"], 2, "texts: printed_name"),
        (["--printed-name-of", "nobody"], 4, "expected that of an enrolled name"),
    ],
)
def test_an_erasure_says_what_it_needs(
    open_desk: Callable[[str], Desk], words: list[str], code: int, said: str
) -> None:
    told = open_desk("staffed").as_("anna", "text", "erase", *words, "--yes")
    assert told.code == code, told.err
    assert said in told.err


def test_a_hold_is_placed_by_an_auditor_listed_and_lifted_by_two_administrators(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("staffed")
    _order(desk, "hold", "place", "principal:olga", "--reason", "case 12/2026", by="audrey")
    assert "principal:olga" in desk.as_("ben", "hold", "list").out
    desk.site.adopt(policy_set(name_retention_s=0))
    _order(desk, "principal", "revoke", "olga")
    told = desk.as_("anna", "text", "erase", "--printed-name-of", "olga", "--yes")
    assert (told.code, "keeps texts about olga." in told.err) == (3, True)
    told = _second(desk, _order(desk, "hold", "lift", "principal:olga"))
    assert "lift-hold" in told.err and "principal:olga" in told.err
    assert json.loads(desk.as_("ben", "hold", "list", "--json").out) == []
    told = desk.as_("anna", "hold", "place", "no subject", "--yes")
    assert (told.code, "order place-hold: subject" in told.err) == (2, True)
