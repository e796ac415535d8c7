from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.client.support import session
from appliance.client.support.session import SavedSession, state_folder
from appliance.domain.core.records.people import Principal
from appliance.errors import NotAuthenticated
from appliance.formats.signatures.keys import generate_ed25519
from tests.client.conftest import Office


def _cache() -> Path:
    (found,) = (state_folder() / "sessions").glob("*.json")
    return found


def _opened(office: Office) -> int:
    return office.service.seen.count(("POST", "/v1/sessions"))


def _locked() -> None:
    raise AssertionError("the key was needed")


def test_a_signed_challenge_opens_a_session_that_can_read(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    names = [row.name for row in office.as_("audrey").get("/v1/principals", list[Principal])]
    assert "olga" in names


def test_the_token_is_kept_for_its_owner_alone_and_used_again_without_the_key(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("staffed")
    office.as_("audrey").get("/v1/principals", list[Principal])
    assert stat.S_IMODE(_cache().stat().st_mode) == 0o600
    assert stat.S_IMODE(_cache().parent.stat().st_mode) == 0o700
    connection = office.as_("audrey")
    connection.bearer = SavedSession(connection, "audrey", _locked)  # type: ignore[arg-type]
    connection.get("/v1/principals", list[Principal])
    assert _opened(office) == 1


def test_each_person_has_a_token_of_their_own(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    office.as_("audrey").get("/v1/principals", list[Principal])
    office.as_("olga").get("/v1/principals", list[Principal])
    assert len(list((state_folder() / "sessions").iterdir())) == 2


def test_a_token_that_the_service_has_forgotten_is_renewed_once(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    connection = office.as_("audrey")
    connection.get("/v1/principals", list[Principal])
    office.service.forget_sessions()
    connection.get("/v1/principals", list[Principal])
    assert _opened(office) == 2


def test_an_expired_token_is_not_sent(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    office.as_("audrey").get("/v1/principals", list[Principal])
    kept = json.loads(_cache().read_text())
    _cache().write_text(json.dumps({**kept, "expires_at": "2026-01-01T00:00:00.000Z"}))
    office.as_("audrey").get("/v1/principals", list[Principal])
    assert _opened(office) == 2


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o644), lambda path: path.write_text("{}")])
def test_a_kept_token_that_others_could_read_or_that_is_none_is_not_believed(
    open_office: Callable[..., Office], spoil: Callable[[Path], object]
) -> None:
    office = open_office("staffed")
    office.as_("audrey").get("/v1/principals", list[Principal])
    spoil(_cache())
    office.as_("audrey").get("/v1/principals", list[Principal])
    assert _opened(office) == 2
    assert stat.S_IMODE(_cache().stat().st_mode) == 0o600


def test_a_key_that_is_not_enrolled_opens_nothing_and_the_error_says_where_to_look(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("staffed")
    connection = office.as_("audrey")
    connection.bearer = SavedSession(connection, "audrey", generate_ed25519)
    with pytest.raises(NotAuthenticated, match="appliance key show FILE"):
        connection.get("/v1/principals", list[Principal])
    assert not (state_folder() / "sessions").exists()


def test_a_wrong_clock_is_named_without_advice_about_keys(
    open_office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    office = open_office("staffed")
    monkeypatch.setattr(session, "_now", lambda _: "2099-01-01T00:00:00.000Z")
    with pytest.raises(NotAuthenticated, match="Correct the clock of your machine") as refused:
        office.as_("audrey").get("/v1/principals", list[Principal])
    assert "key ids" not in str(refused.value)
