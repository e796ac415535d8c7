"""How databases are opened: which URLs, and with what settings."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine

from appliance.errors import BadInput, Unavailable
from appliance.store.database.engine import (
    connect_reader,
    connect_writer,
    connection_parameters,
    database_errors,
    open_engine,
    parse_database_url,
)
from tests.kit.small_log import SmallLog
from tests.store.conftest import Databases


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////tmp/x.db?mode=ro",
        "sqlite+aiosqlite:////tmp/x.db",
        "postgresql+psycopg2://u@h/d",
        "mysql://root:secret@localhost/x",
    ],
)
def test_other_databases_and_spellings_are_refused_without_showing_a_password(text: str) -> None:
    with pytest.raises(BadInput, match="database URL") as caught:
        parse_database_url(text)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_is_spoken_through_psycopg_3(scheme: str) -> None:
    assert parse_database_url(f"{scheme}://u:p@h/d").drivername == "postgresql+psycopg"


def test_a_url_of_several_hosts_is_given_to_postgresql_s_own_library_as_it_reads_them() -> None:
    """A notification's connection and pg_dump do not go through SQLAlchemy."""
    several = "postgresql://u:p%40@/d?host=a.example:1&host=b.example:2&target_session_attrs=primary"
    assert connection_parameters(parse_database_url(several)) == {
        **{"dbname": "d", "user": "u", "password": "p@", "host": "a.example,b.example", "port": "1,2"},
        "target_session_attrs": "primary",
    }
    one = connection_parameters(parse_database_url("postgresql://u:p@h:5/d?sslmode=verify-full"))
    assert one == {"dbname": "d", "user": "u", "password": "p", "host": "h", "port": 5, "sslmode": "verify-full"}


def test_sqlite_is_opened_for_durable_commits(sqlite_path: Path) -> None:
    engine = open_engine(f"sqlite:///{sqlite_path}")
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "secure_delete")
        }
    engine.dispose()
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "trusted_schema": 0, "secure_delete": 1}
    assert settings == expected


def test_postgresql_is_opened_for_durable_commits(databases: Databases) -> None:
    """Whatever the role's own settings say."""
    name = databases.server().create_database()
    databases.server().execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    engine = open_engine(databases.server().url(name))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
    engine.dispose()


def test_a_missing_sqlite_file_is_unavailable_and_is_not_made(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'none.db'}")
    with pytest.raises(Unavailable), database_errors("test"), engine.connect():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_path_with_characters_of_a_uri_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a b#c&d=e.db"
    sqlite3.connect(path).close()
    engine = open_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    engine.dispose()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_writers_wait_for_each_other_and_a_reader_sees_one_moment(engine: Engine, site: SmallLog) -> None:
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    with connect_reader(engine) as reader:
        query = "SELECT size FROM head"
        before = reader.exec_driver_sql(query).scalar()
        thread = threading.Thread(target=lambda: ledger.append(site.enrolment("carol").pending))
        thread.start()
        thread.join()
        assert reader.exec_driver_sql(query).scalar() == before == 1
    with connect_reader(engine) as reader:
        assert reader.exec_driver_sql(query).scalar() == 2
    ledger.close()


@pytest.mark.thorough
def test_a_database_that_stays_locked_is_unavailable(
    engine: Engine, site: SmallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.store.database.engine.BUSY_TIMEOUT_S", 1)
    monkeypatch.setattr(
        "appliance.store.database.engine._SQLITE_PRAGMAS", ("PRAGMA journal_mode = WAL", "PRAGMA busy_timeout = 200")
    )
    monkeypatch.setitem(open_engine.__globals__["_POSTGRESQL_OPTIONS"], "lock_timeout", "200ms")
    waiting = open_engine(engine.url.render_as_string(hide_password=False))
    ledger = site.open_ledger(waiting)
    ledger.append(site.first_draft())
    with connect_writer(engine) as holder, holder.begin():
        holder.exec_driver_sql("UPDATE head SET probes = probes + 1")
        with pytest.raises(Unavailable):
            ledger.append(site.enrolment("carol").pending)
    assert ledger.append(site.enrolment("carol").pending).entry.index == 1
    ledger.close()
