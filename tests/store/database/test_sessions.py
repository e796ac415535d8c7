"""Sessions are stored under a digest, apart from the ledger, and removed after they end."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert, text

from appliance.errors import Tampered
from appliance.store.database import sessions as database_sessions
from appliance.store.database.sessions import SessionRow, Sessions, digest_of
from appliance.store.database.tables import sessions

ROW = SessionRow("olga", "sha256:" + "1" * 64, "2026-11-26T15:00:00.000Z", 3)


KEY = bytes(32)


def test_a_session_is_found_by_its_token_by_whoever_has_the_database_and_the_key(engine: Engine) -> None:
    token = Sessions(engine, KEY).add("program", ROW)
    another = Sessions(engine, KEY)
    assert another.find("program", token) == ROW
    for kind, wrong in (("program", f"{token} "), ("program", token[:-1]), ("browser", token), ("program", "\u00e4")):
        assert another.find(kind, wrong) is None
    another.remove("program", token)
    another.remove("program", token)
    assert Sessions(engine, KEY).find("program", token) is None


def test_a_session_is_moved_to_another_token_once_and_goes_with_its_entry(engine: Engine) -> None:
    kept = Sessions(engine, KEY)
    token = kept.add("link", ROW)
    moved = kept.move("link", token, "browser")
    assert moved is not None and moved[1] == ROW and kept.move("link", token, "browser") is None
    assert (kept.find("link", token), kept.find("browser", moved[0])) == (None, ROW)
    assert (kept.remove_opened_by(ROW.entry), kept.remove_opened_by(ROW.entry)) == (ROW, None)
    kept.add("program", ROW)
    kept.add("program", ROW)
    assert kept.remove_opened_by(ROW.entry) == ROW and kept.all() == []


@pytest.mark.parametrize(
    "changed",
    [{"principal": "anna"}, {"keyid": "sha256:" + "2" * 64}, {"expires_at": "2099-01-01T00:00:00.000Z"}, {"entry": 4}],
)
def test_a_row_that_somebody_changed_is_no_session(engine: Engine, changed: dict[str, Any]) -> None:
    kept = Sessions(engine, KEY)
    token = kept.add("link", ROW)
    with engine.begin() as connection:
        connection.execute(delete(sessions))
        connection.execute(insert(sessions), {"digest": digest_of("link", token), **vars(ROW), **changed})
    assert kept.find("link", token) is None and kept.move("link", token, "browser") is None


def test_a_row_that_somebody_added_is_no_session(engine: Engine) -> None:
    """Also with a token of another key, or one whose row was copied under a secret of theirs."""
    kept = Sessions(engine, KEY)
    kept.add("program", ROW)
    foreign = Sessions(engine, bytes([1]) * 32).add("program", ROW)
    with engine.begin() as connection:
        connection.execute(insert(sessions), {"digest": digest_of("program", "made-up"), **vars(ROW)})
    assert (kept.find("program", foreign), kept.find("program", "made-up")) == (None, None)


def test_the_token_itself_stands_nowhere(engine: Engine) -> None:
    token = Sessions(engine, KEY).add("program", ROW)
    with engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM sessions")).all()
    assert bytes(row[0]) == digest_of("program", token) and token not in map(str, row[1:])


def test_a_sweep_removes_those_that_do_not_stand_and_no_other(engine: Engine) -> None:
    kept = Sessions(engine, KEY)
    tokens = [
        kept.add("program", SessionRow(name, ROW.keyid, ROW.expires_at, ROW.entry)) for name in ("olga", "rita", "rob")
    ]
    assert kept.sweep(lambda row: row.principal != "rita") == 1
    assert (kept.find("program", tokens[0]), kept.find("program", tokens[1])) == (ROW, None)
    assert kept.sweep(lambda row: True) == 0


@pytest.mark.thorough
def test_a_sweep_removes_more_than_a_statement_has_parameters(engine: Engine) -> None:
    """65,535 on PostgreSQL."""
    rows = [{"digest": number.to_bytes(32), **vars(ROW)} for number in range(66_000)]
    with engine.begin() as connection:
        connection.execute(insert(sessions), rows)
    assert Sessions(engine, KEY).sweep(lambda row: False) == 66_000
    assert Sessions(engine, KEY).of("olga") == []


def test_a_row_that_is_no_session_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Sessions(engine, KEY)
    monkeypatch.setattr(database_sessions.secrets, "token_bytes", bytes)
    kept.add("program", ROW)
    with pytest.raises(Tampered):
        kept.add("program", ROW)
