"""Sessions stand in the database under a digest, apart from the ledger, and go when they have ended."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, insert, text

from appliance.errors import Tampered
from appliance.store.database.sessions import SessionRow, Sessions, digest_of
from appliance.store.database.tables import sessions

ROW = SessionRow("olga", "sha256:" + "1" * 64, "2026-11-26T15:00:00.000Z", 3)


def test_a_session_is_found_by_its_token_by_whoever_has_the_database(engine: Engine) -> None:
    Sessions(engine).add("secret", ROW)
    another = Sessions(engine)
    assert another.find("secret") == ROW
    assert another.find("secret ") is None
    another.remove("secret")
    another.remove("secret")
    assert Sessions(engine).find("secret") is None


def test_a_session_is_moved_to_another_token_once_and_goes_with_its_entry(engine: Engine) -> None:
    kept = Sessions(engine)
    kept.add("secret", ROW)
    assert (kept.move("secret", "next"), kept.move("secret", "other")) == (ROW, None)
    assert (kept.find("secret"), kept.find("next"), kept.find("other")) == (None, ROW, None)
    assert (kept.remove_opened_by(ROW.entry), kept.remove_opened_by(ROW.entry)) == (ROW, None)
    kept.add("one", ROW)
    kept.add("two", ROW)
    assert kept.remove_opened_by(ROW.entry) == ROW and kept.all() == []


def test_the_token_itself_stands_nowhere(engine: Engine) -> None:
    Sessions(engine).add("secret", ROW)
    with engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM sessions")).all()
    assert bytes(row[0]) == digest_of("secret") and "secret" not in map(str, row[1:])


def test_a_sweep_removes_those_that_do_not_stand_and_no_other(engine: Engine) -> None:
    kept = Sessions(engine)
    for name in ("olga", "rita", "rob"):
        kept.add(name, SessionRow(name, ROW.keyid, ROW.expires_at, ROW.entry))
    assert kept.sweep(lambda row: row.principal != "rita") == 1
    assert (kept.find("olga"), kept.find("rita") is None) == (ROW, True)
    assert kept.sweep(lambda row: True) == 0


def test_a_sweep_removes_more_than_a_statement_has_parameters(engine: Engine) -> None:
    """65,535 on PostgreSQL."""
    rows = [{"digest": number.to_bytes(32), **vars(ROW)} for number in range(66_000)]
    with engine.begin() as connection:
        connection.execute(insert(sessions), rows)
    assert Sessions(engine).sweep(lambda row: False) == 66_000
    assert Sessions(engine).of("olga") == []


def test_a_row_that_is_no_session_is_refused(engine: Engine) -> None:
    Sessions(engine).add("secret", ROW)
    with pytest.raises(Tampered):
        Sessions(engine).add("secret", ROW)
