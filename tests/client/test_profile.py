from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from appliance.client.support.connection import Address, parse_address
from appliance.client.support.profile import Profile, forget_profile, load_profile, profile_path, save_profile
from appliance.errors import ApplianceError, BadInput, Denied

OLGA = Profile("olga", Path('/keys/a "b" \\ ü.key'), Path("/srv/appliance"), Path("/keys/trust.json"))


def test_what_was_saved_is_read_back_for_its_owner_alone() -> None:
    assert load_profile() is None
    path = save_profile(OLGA)
    assert load_profile() == OLGA
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["profile.toml"]
    assert forget_profile() and not forget_profile()
    assert load_profile() is None


@pytest.mark.parametrize(
    "where",
    [
        parse_address("10.0.0.7:8333", Path("/ca.pem")),
        parse_address("[fe80::7]:8333", Path("/ca.pem"), (Path("/own.pem"), Path("/own.key"))),
        parse_address("localhost:1", None),
    ],
)
def test_an_address_is_read_back_too(where: Address) -> None:
    profile = Profile("olga", Path("/own.key"), where)
    save_profile(profile)
    assert load_profile() == profile


@pytest.mark.parametrize("text", ["host", ":1", "host:0", "host:70000", "a@b:1", "a/b:1", "ho st:1", "host:\u0661"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="HOST:PORT"):
        parse_address(text, Path("/ca.pem"))


def test_a_path_that_text_cannot_hold_is_refused_and_nothing_is_written() -> None:
    with pytest.raises(BadInput, match="UTF-8"):
        save_profile(Profile("olga", Path(os.fsdecode(b"/keys/\xff")), Path("/srv"), None))
    assert not profile_path().exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name = 1",
        "version = 2\nname = 'olga'\nkey = '/k'\nhome = '/h'\n",
        "version = 1\nname = 'olga'\nkey = 'k'\nhome = '/h'\n",
        "version = 1\nname = 'olga'\nkey = '/k'\n",
        "version = 1\nname = ''\nkey = '/k'\nhome = '/h'\n",
        "version = 1\nname = 'olga'\nkey = '/k'\nhome = '/h'\npassphrase = 'x'\n",
    ],
)
def test_what_is_no_profile_is_refused_with_what_to_type(text: str) -> None:
    profile_path().parent.mkdir(parents=True)
    profile_path().write_text(text)
    profile_path().chmod(0o600)
    with pytest.raises(BadInput, match="appliance login"):
        load_profile()


def test_a_profile_that_others_can_read_or_that_is_a_link_is_not_believed(tmp_path: Path) -> None:
    path = save_profile(OLGA)
    path.chmod(0o640)
    with pytest.raises(Denied, match="0600"):
        load_profile()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ApplianceError, match="link"):
        load_profile()
