"""Keys, enrolment, and orders that need two administrators."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli import main
from appliance.cli.support import caller
from appliance.domain.core.names import add_seconds
from appliance.formats.core.digest import short_code
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.keys import encode_spki_pem, generate_ed25519
from tests.cli.conftest import PASSPHRASE, Desk, one_line, type_alone


def _passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "pass"
    path.write_bytes(PASSPHRASE)
    path.chmod(0o600)
    return path


def test_a_key_is_made_shown_and_proved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, secret = tmp_path / "ada.key", _passphrase(tmp_path)
    told = type_alone(capsys, "key", "new", str(key), "--passphrase-file", str(secret))
    assert told.code == 0
    assert "appliance key prove --key" in told.err
    keyid = told.out.rpartition("key id:")[2].strip()
    for path in (key, tmp_path / "ada.pub"):
        told = type_alone(capsys, "key", "show", str(path))
        assert keyid in told.out and "BEGIN PUBLIC KEY" in told.out
        assert short_code(keyid) in told.out
    told = type_alone(
        capsys, "key", "prove", "--key", str(key), "--as", "ada", "--origin", "a.example/1",
        "--passphrase-file", str(secret), "--output", str(tmp_path / "ada.proof"), "--json",
    )  # fmt: skip
    assert json.loads(told.out)["keyid"] == keyid
    assert (tmp_path / "ada.proof").read_bytes().startswith(b'{"payload":')


def test_no_passphrase_is_taken_from_an_argument_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APPLIANCE_PASSPHRASE", PASSPHRASE.decode())
    told = type_alone(capsys, "key", "new", str(tmp_path / "a.key"), "--passphrase", PASSPHRASE.decode())
    assert told.code == 2 and "No such option" in told.err
    told = type_alone(capsys, "key", "new", str(tmp_path / "a.key"))
    assert told.code == 3
    assert "--passphrase-fd N or --passphrase-file FILE" in told.err
    assert not (tmp_path / "a.key").exists()


def test_a_passphrase_comes_from_a_descriptor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.write(writing, PASSPHRASE)
    os.close(writing)
    told = type_alone(capsys, "key", "new", str(tmp_path / "a.key"), "--passphrase-fd", str(reading))
    assert told.code == 0


def test_a_passphrase_is_asked_for_twice_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "is_interactive", lambda: True)
    typed = "correct horse\ncorrect horse\n"
    result = CliRunner().invoke(main.cli, ["key", "new", str(tmp_path / "a.key")], input=typed)
    assert result.exit_code == 0
    assert "New passphrase for" in result.stderr and "Repeat for confirmation" in result.stderr
    assert "correct horse" not in result.output


def test_a_passphrase_that_is_too_short_or_differs_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "is_interactive", lambda: True)
    typed = ["short", "correct horse", "correct house", "correct horse", "correct horse"]
    result = CliRunner().invoke(main.cli, ["key", "new", str(tmp_path / "a.key")], input="\n".join([*typed, ""]))
    assert result.exit_code == 0
    assert "at least 8 characters, got 5. Try again." in result.stderr
    assert "The two differ. Try again." in result.stderr
    assert result.stderr.count("Repeat for confirmation") == 2, "a short one is not repeated"


def test_an_existing_key_is_refused_before_a_passphrase_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.key").write_text("mine")
    told = type_alone(capsys, "key", "new", str(tmp_path / "a.key"))
    assert told.code == 5
    assert (tmp_path / "a.key").read_text() == "mine"


def _enrol(desk: Desk, name: str = "dora", role: str = "operator") -> None:
    """As two administrators do it."""
    desk.site.keys[name] = generate_ed25519()
    proof = desk.folder / f"{name}.proof"
    assert desk.as_(name, "key", "prove", "--output", str(proof)).code == 0
    told = desk.as_(
        "anna", "principal", "enrol", name, "--proof", str(proof), "--printed-name", "Dora Example",
        "--role", role, "--yes",
    )  # fmt: skip
    assert told.code == 0, told.err
    assert "outcome:  pending" in told.out
    second = told.err.splitlines()[-1]
    assert second.startswith("next: another administrator types: appliance order countersign sha256:")
    told = desk.as_("ben", *second.partition("appliance ")[2].split(), "--yes")
    assert told.code == 0, told.err
    assert "the order enrol of anna took effect" in told.out


def test_an_order_that_waits_already_is_said_before_it_is_signed_twice(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    words = ("principal", "grant", "olga", "reviewer:cost", "--yes")
    assert "already waits" not in desk.as_("anna", *words).err
    again = desk.as_("anna", *words)
    assert again.code == 0 and "warning: the same order by anna already waits (entry" in one_line(again.err)
    assert again.err.index("already waits") < again.err.index("signed: ")
    assert "already waits" not in desk.as_("anna", "principal", "grant", "olga", "reviewer:safety", "--yes").err


@pytest.mark.thorough
def test_a_recovery_says_what_comes_before_the_countersignature(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    desk.site.enrol("vault", "recovery")
    desk.site.keys["carl"] = generate_ed25519()
    proof = str(desk.folder / "carl.proof")
    assert desk.as_("carl", "key", "prove", "--output", proof).code == 0
    words = ("principal", "recover", "carl", "--proof", proof, "--printed-name", "Carl Orff", "--yes")
    told = desk.as_("vault", *words)
    said = one_line(told.err)
    assert told.code == 0 and "next: tell all administrators" in said and "appliance principal revoke vault" in said
    (start,) = re.findall(r"From about (\S+Z) on", said)
    half = desk.site.state.parameters.order_lifetime_s // 2
    assert start >= add_seconds(encode_time(datetime.now(UTC)), half - 3_600)
    refused = desk.as_("anna", "order", "countersign", "--yes")
    assert refused.code == 3 and "can be countersigned from" in refused.err
    # Once the key is revoked, the order is listed as one that cannot take effect, and waits for nobody.
    keyid = desk.site.keys["vault"].keyid
    assert desk.as_("anna", "key", "revoke", "vault", keyid, "--yes").code == 0
    listed = desk.as_("anna", "order", "list")
    assert f"cannot be countersigned any more: The key {keyid} is no longer valid" in one_line(listed.err)
    refused = desk.as_("anna", "order", "countersign", "--yes")
    assert refused.code == 2 and "exactly one pending order" in refused.err, refused.err


def test_files_of_another_kind_are_named_with_what_was_expected(open_desk: Callable[[str], Desk]) -> None:
    """Key, public key, proof and trust file have similar names."""
    desk = open_desk("staffed")
    key, public = str(desk.key("olga")), desk.folder / "olga.pub"
    public.write_bytes(encode_spki_pem(desk.site.keys["olga"].spki))
    for file in (key, str(public)):
        told = desk.as_("anna", "principal", "replace-key", "olga", "--proof", file, "--yes")
        said = f"proof of possession, {file}: expected the file that appliance key prove makes"
        assert told.code == 2 and said in one_line(told.err), told.err
        told = desk.as_("anna", "principal", "enrol-passkey", "olga", "--proof", file, "--yes")
        assert told.code == 2 and f"{file}: expected the file that the console makes" in one_line(told.err), told.err
        told = desk.as_("anna", "run", "list", "--trust", file)
        assert told.code == 2 and f"trust file, {file}: expected the line that appliance init printed" in told.err
    told = desk.type("key", "prove", "--as", "olga", "--key", str(public), "--origin", "x")
    assert told.code == 2 and "expected the key file, such as ada.key, got a public key" in told.err, told.err


def test_a_name_that_is_not_enrolled_is_no_defect_of_the_policy(open_desk: Callable[[str], Desk]) -> None:
    told = open_desk("staffed").as_("anna", "principal", "grant", "nobody", "operator", "--yes")
    assert told.code == 3 and "nobody is not enrolled" in told.err
    assert "the order names something that the log does not have" in told.err and "corrected policy set" not in told.err


def test_an_administrator_withdraws_the_own_order(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "principal", "grant", "olga", "reviewer:cost", "--yes", "--json")
    digest = json.loads(told.out)["order"]
    assert desk.as_("ben", "order", "withdraw", digest[:19], "--yes").code == 3
    told = desk.as_("ben", "order", "withdraw", "--yes")
    assert told.code == 2 and "exactly one pending order, got 0" in told.err, "the order of another person is left out"
    told = desk.as_("anna", "order", "withdraw", "--reason", "The role was wrong.", "--yes")
    assert told.code == 0 and "the order grant was withdrawn" in told.out and "reviewer:cost" in told.err, told.err
    assert digest[:19] not in desk.as_("ben", "order", "list").out
    assert desk.as_("ben", "order", "countersign", digest, "--yes").code != 0


def test_an_order_that_cannot_be_carried_out_any_more_is_named_and_skipped(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    words = ("principal", "grant", "olga", "reviewer:cost", "--yes")
    digests = []
    for _ in range(2):
        assert desk.as_("anna", *words).code == 0
        digests.append(json.loads(desk.as_("ben", "order", "list", "--json").out)[-1]["digest"])
    assert desk.as_("ben", "order", "countersign", digests[0], "--yes").code == 0
    told = desk.as_("ben", "order", "list")
    assert f"{digests[1][:19]} cannot be countersigned any more: " in told.err
    assert desk.as_("anna", "principal", "grant", "olga", "reviewer:safety", "--yes").code == 0
    told = desk.as_("ben", "order", "countersign", "--yes")
    assert told.code == 0 and "reviewer:safety" in told.err, told.err


def test_two_administrators_enrol_a_person_by_typing_what_they_are_told(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    _enrol(desk)
    rows = json.loads(desk.as_("dora", "principal", "list", "--json").out)
    assert [row["printed_name"] for row in rows if row["name"] == "dora"] == ["Dora Example"]
    assert "Dora Example" in desk.as_("dora", "principal", "list").out


def test_the_second_administrator_sees_everything_that_the_first_signed(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    desk.as_("anna", "principal", "grant", "olga", "reviewer:privacy", "--yes")
    listed = desk.as_("ben", "order", "list")
    assert "grant" in listed.out and "principal:olga" in listed.out
    digest = json.loads(desk.as_("ben", "order", "list", "--json").out)[0]["digest"]
    shown = desk.as_("ben", "order", "show", digest[:13]).out
    told = desk.as_("ben", "order", "countersign", digest[:13], "--yes")
    for text in ("reviewer:privacy", "anna", digest):
        assert text in shown
        assert text in told.err
    assert "The order of anna" in told.err


def test_one_administrator_cannot_countersign_the_own_order(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "principal", "grant", "olga", "reviewer:privacy", "--yes", "--json")
    told = desk.as_("anna", "order", "countersign", json.loads(told.out)["order"], "--yes")
    assert told.code == 3
    assert "anna signed this order and cannot countersign it. Ask another administrator." in told.err
    assert "The order of anna" not in told.err


def test_one_administrator_revokes_alone_and_says_why(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "principal", "revoke", "sales", "--reason", "closed", "--yes")
    assert told.code == 0
    assert "reason:" in told.err and "closed" in told.err
    assert "sales is revoked" in told.out


def test_nothing_is_signed_without_a_yes(open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    desk = open_desk("staffed")
    words = ["principal", "revoke", "sales", *desk.options("anna")]
    told = desk.type(*words)
    assert told.code == 2 and "expected --yes" in told.err
    monkeypatch.setattr(caller, "is_interactive", lambda: True)
    refused = CliRunner().invoke(main.cli, words, input="n\n")
    assert refused.exit_code == 1
    assert desk.ordered() == 0
    agreed = CliRunner().invoke(main.cli, words, input="y\n")
    assert agreed.exit_code == 0
    assert desk.ordered() == 1
    assert "Sign this? [y/N]" in agreed.stderr
    unsure = CliRunner().invoke(main.cli, words, input="correct horse\n\n")
    assert unsure.exit_code == 1 and "Type y or n." in unsure.stderr
    assert desk.ordered() == 1, "an empty line is a no"


def test_a_wrong_passphrase_signs_nothing(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    desk.passphrase.write_bytes(b"another passphrase\n")
    told = desk.as_("anna", "principal", "revoke", "sales", "--yes")
    assert told.code == 3
    assert "anna.key: expected its passphrase" in told.err


def test_a_wrong_passphrase_is_asked_for_again_at_a_terminal_three_times_in_all(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("staffed")
    monkeypatch.setattr(caller, "is_interactive", lambda: True)
    words = ["principal", "revoke", "sales", "--yes", "--as", "anna", "--key", str(desk.key("anna"))]
    right, wrong = PASSPHRASE.decode(), "another passphrase"
    refused = CliRunner().invoke(main.cli, words, input="\n".join([wrong, wrong, wrong, right, ""]))
    assert refused.exit_code != 0 and desk.ordered() == 0
    assert refused.stderr.count("That is not its passphrase. Try again.") == 2
    agreed = CliRunner().invoke(main.cli, words, input="\n".join([wrong, right, ""]))
    assert agreed.exit_code == 0, agreed.stderr
    assert desk.ordered() == 1


def test_options_may_stand_before_the_command_or_in_the_environment(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("staffed")
    before = desk.type(*desk.options("audrey"), "--json", "base", "list")
    assert (before.code, json.loads(before.out)) == (0, [])
    monkeypatch.setenv("APPLIANCE_PRINCIPAL", "audrey")
    monkeypatch.setenv("APPLIANCE_KEY", str(desk.key("audrey")))
    monkeypatch.setenv("APPLIANCE_TRUST", str(desk.trust))
    after = desk.type("ledger", "show", "0", "--passphrase-file", str(desk.passphrase))
    assert after.code == 0
    assert "the trust file" in after.err
