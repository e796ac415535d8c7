"""Keys, enrolment and orders that need two."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli import main
from appliance.cli.support import caller
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
    from appliance.formats.signatures.keys import generate_ed25519

    desk.site.keys[name] = generate_ed25519()
    proof = desk.folder / f"{name}.proof"
    assert desk.as_(name, "key", "prove", "--output", str(proof)).code == 0
    told = desk.as_(
        "anna", "principal", "enroll", name, "--proof", str(proof), "--printed-name", "Dora Example",
        "--role", role, "--yes",
    )  # fmt: skip
    assert told.code == 0, told.err
    assert "outcome:  pending" in told.out
    second = told.err.splitlines()[-1]
    assert second.startswith("next: another administrator types: appliance order endorse sha256:")
    told = desk.as_("ben", *second.partition("appliance ")[2].split(), "--yes")
    assert told.code == 0, told.err
    assert "the order enroll of anna took effect" in told.out


def test_an_order_that_waits_already_is_said_before_it_is_signed_twice(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    words = ("principal", "grant", "olga", "reviewer:cost", "--yes")
    assert "already waits" not in desk.as_("anna", *words).err
    again = desk.as_("anna", *words)
    assert again.code == 0 and "warning: the same order by anna already waits (entry" in one_line(again.err)
    assert again.err.index("already waits") < again.err.index("signed: ")
    assert "already waits" not in desk.as_("anna", "principal", "grant", "olga", "reviewer:safety", "--yes").err


def test_an_order_that_cannot_be_carried_out_any_more_is_named_and_skipped(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    words = ("principal", "grant", "olga", "reviewer:cost", "--yes")
    digests = []
    for _ in range(2):
        assert desk.as_("anna", *words).code == 0
        digests.append(json.loads(desk.as_("ben", "order", "list", "--json").out)[-1]["digest"])
    assert desk.as_("ben", "order", "endorse", digests[0], "--yes").code == 0
    told = desk.as_("ben", "order", "list")
    assert f"{digests[1][:19]} cannot be endorsed any more: " in told.err
    assert desk.as_("anna", "principal", "grant", "olga", "reviewer:safety", "--yes").code == 0
    told = desk.as_("ben", "order", "endorse", "--yes")
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
    told = desk.as_("ben", "order", "endorse", digest[:13], "--yes")
    for text in ("reviewer:privacy", "anna", digest):
        assert text in shown
        assert text in told.err
    assert "The order of anna" in told.err


def test_one_administrator_cannot_endorse_the_own_order(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "principal", "grant", "olga", "reviewer:privacy", "--yes", "--json")
    told = desk.as_("anna", "order", "endorse", json.loads(told.out)["order"], "--yes")
    assert told.code == 3
    assert "separation of duties: expected an administrator other than anna" in told.err


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
