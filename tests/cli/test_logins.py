"""A login: commands use its name, key and appliance until the logout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.client.support.profile import load_profile, profile_path
from appliance.client.support.session import state_folder
from appliance.formats.log.trust import encode_trust
from tests.cli.conftest import Desk

Open = Callable[[str], Desk]


def _log_in(desk: Desk, name: str = "olga", *more: str) -> None:
    told = desk.type(
        "login", name, "--key", str(desk.key(name)), "--passphrase-file", str(desk.passphrase),
        "--trust", str(desk.trust), *more,
    )  # fmt: skip
    assert told.code == 0, told.err


def test_after_a_login_no_command_needs_a_name_a_key_or_a_trust_file(
    open_desk: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    desk = open_desk("staffed")
    _log_in(desk)
    monkeypatch.delenv("APPLIANCE_HOME")  # the folder is remembered, too
    monkeypatch.chdir(tmp_path)
    told = desk.type("dataset", "list")
    assert told.code == 0, told.err
    told = desk.type("key", "prove", "--passphrase-file", str(desk.passphrase))
    assert told.code == 0 and "olga proves" in told.err
    profile = load_profile()
    assert profile is not None and profile.trust == desk.trust and profile.where == desk.service.settings.home.resolve()
    assert b"correct horse" not in profile_path().read_bytes()


def test_nothing_is_remembered_unless_service_key_and_trust_file_fit(open_desk: Open, tmp_path: Path) -> None:
    desk = open_desk("staffed")
    options = ["--passphrase-file", str(desk.passphrase), "--trust", str(desk.trust)]
    refused = [
        (["login", "olga", "--key", str(desk.key("rita")), *options], 3),  # another's key
        (["login", "nobody", "--key", str(desk.key("rita")), *options], 3),
        (["login", "olga", "--key", str(tmp_path / "none.key"), *options], 4),
        (["login", "olga"], 3),
    ]
    other = tmp_path / "other.json"
    other.write_bytes(encode_trust(desk.site.trust).replace(b"sha256:", b"sha256:0", 1)[:-1] + b"\n")
    refused.append((["login", "olga", "--key", str(desk.key("olga")), *options[:2], "--trust", str(other)], 2))
    for words, code in refused:
        assert desk.type(*words).code == code, words
        assert not profile_path().exists()


def test_what_is_named_stands_over_what_is_remembered(
    open_desk: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    desk = open_desk("staffed")
    _log_in(desk)
    told = desk.as_("rita", "whoami", "--json")
    assert json.loads(told.out)["name"] == "rita"
    monkeypatch.setenv("APPLIANCE_PRINCIPAL", "rita")
    told = desk.type("whoami")
    assert told.code == 3 and "--key FILE" in told.err  # olga's key is not tried under rita's name
    monkeypatch.setenv("APPLIANCE_KEY", str(desk.key("rita")))
    assert json.loads(desk.type("whoami", "--json").out)["name"] == "rita"
    monkeypatch.delenv("APPLIANCE_PRINCIPAL")
    monkeypatch.delenv("APPLIANCE_KEY")
    told = desk.type("whoami", "--home", str(tmp_path / "elsewhere"))
    assert told.code == 3 and "a login, got none" in told.err  # a profile is of one appliance


def test_whoami_says_who_where_and_by_whose_word(open_desk: Open) -> None:
    desk = open_desk("staffed")
    assert desk.type("whoami").code == 3
    _log_in(desk)
    told = desk.type("whoami")
    assert told.code == 0, told.err
    for part in ("olga", "operator", desk.site.keys["olga"].keyid, desk.site.trust.origin, "the trust file"):
        assert part in told.out
    value = json.loads(desk.type("whoami", "--json").out)
    assert value["printed_name"] and value["key_until"] == "it is replaced or revoked"


def test_a_logout_forgets_profile_and_session_and_ends_it_at_the_service(open_desk: Open) -> None:
    desk = open_desk("staffed")
    _log_in(desk)
    (kept,) = (state_folder() / "sessions").iterdir()
    token = json.loads(kept.read_text())["token"]
    desk.service.authenticator.person(f"Bearer {token}")
    told = desk.type("logout")
    assert told.code == 0, told.err
    assert not profile_path().exists() and not kept.exists()
    with pytest.raises(Exception, match="expected a valid one"):
        desk.service.authenticator.person(f"Bearer {token}")
    told = desk.type("logout")
    assert told.code == 4


def test_a_damaged_profile_can_be_forgotten_and_replaced(open_desk: Open) -> None:
    desk = open_desk("staffed")
    _log_in(desk)
    profile_path().write_text("nothing")
    assert desk.type("whoami").code == 2
    assert desk.type("logout").code == 0 and not profile_path().exists()
    _log_in(desk)
    profile_path().write_text("nothing")
    _log_in(desk)
    assert load_profile() is not None


def test_a_logout_starts_no_service_and_says_that_it_was_not_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], open_desk: Open
) -> None:
    desk = open_desk("staffed")
    _log_in(desk)
    desk.service.settings.socket.unlink()
    told = desk.type("logout")
    assert told.code == 0 and "did not record the logout" in told.err
    assert not profile_path().exists()
