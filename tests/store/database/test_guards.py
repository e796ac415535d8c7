"""The database itself refuses to change the ledger's rows: by triggers in both, in PostgreSQL also by rights."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from appliance.store.database import tables
from appliance.store.database.engine import open_engine
from appliance.store.ledger.checks import check_guards
from appliance.store.ledger.ledger import Ledger
from scripts.kit.postgres import APPLICATION, OWNER, SUPERUSER, Server
from tests.kit.small_log import SmallLog
from tests.store.conftest import Databases

pytestmark = pytest.mark.usefixtures("filed")

LEDGER = [table.name for table in tables.APPEND_ONLY]
FIRST_COLUMN = {table.name: table.columns.keys()[0] for table in (*tables.APPEND_ONLY, tables.disclosures)}


def fill(site: SmallLog, engine: Engine, owner: Engine) -> Ledger:
    """At least one row in every table. The owner writes what only an archive makes: a record of it that is removed."""
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    ledger.close()
    with owner.begin() as connection:
        for index, kind in ((2, "request.refused"), (3, "log.archived")):
            data = json.dumps({"type": kind}).encode()
            row = {"index": index, "time": "2026-11-24T12:00:00.000Z", "nodes": bytes(32), "bytes": data}
            connection.execute(tables.entries.insert().values(row))
        connection.execute(tables.removed_entries.insert().values({"index": 2, "archive": 3}))
    owner.dispose()
    return ledger


@pytest.fixture
def file(databases: Databases, tmp_path: Path, site: SmallLog) -> Path:
    with databases.copy("sqlite", databases.migrated("sqlite"), tmp_path) as url:
        fill(site, open_engine(url), open_engine(url))
    return tmp_path / "ledger.db"


@pytest.fixture
def shell(file: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection as anybody with the file has it: sqlite3's defaults, without the service's settings."""
    connection = sqlite3.connect(file)
    yield connection
    connection.close()


@pytest.fixture
def name(databases: Databases, tmp_path: Path, site: SmallLog) -> Iterator[str]:
    with databases.copy("postgresql", databases.migrated("postgresql"), tmp_path) as url:
        name = url.rpartition("/")[2]
        fill(site, open_engine(url), open_engine(databases.server().url(name, OWNER)))
        yield name


def statements(table: str) -> list[str]:
    column = FIRST_COLUMN[table]
    return [f'UPDATE {table} SET "{column}" = "{column}"', f"DELETE FROM {table}"]


@pytest.mark.parametrize("table", LEDGER)
def test_sqlite_refuses_every_change_of_a_ledger_row(shell: sqlite3.Connection, table: str) -> None:
    before = shell.execute(f"SELECT * FROM {table}").fetchall()
    assert before
    replacing = [f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}", f"REPLACE INTO {table} SELECT * FROM {table}"]
    for statement in (
        *statements(table),
        *replacing,
        f"INSERT INTO {table} SELECT * FROM {table} WHERE true ON CONFLICT DO UPDATE "
        f'SET "{FIRST_COLUMN[table]}" = excluded."{FIRST_COLUMN[table]}"',
    ):
        with pytest.raises(sqlite3.IntegrityError, match=rf"{table}: append-only, \w+ refused"):
            shell.execute(statement)
    assert shell.execute(f"SELECT * FROM {table}").fetchall() == before


def test_sqlite_has_no_row_id_beside_a_key(shell: sqlite3.Connection) -> None:
    """It would be a second unique key: REPLACE by it removes another row without firing a trigger that sees it."""
    for (table,) in shell.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = shell.execute(f"PRAGMA table_info({table})").fetchall()
        keys = [(row[1], row[2]) for row in columns if row[5]]
        if table == "alembic_version":
            continue
        try:
            row_ids = shell.execute(f"SELECT rowid FROM {table}").fetchall()
        except sqlite3.OperationalError:
            continue
        ((key, kind),) = keys
        assert kind == "INTEGER" and row_ids == shell.execute(f'SELECT "{key}" FROM {table}').fetchall(), table


def test_sqlite_lets_a_disclosure_be_erased_but_not_changed(shell: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="disclosures: append-only, UPDATE refused"):
        shell.execute("UPDATE disclosures SET text = 'x'")
    assert shell.execute("DELETE FROM disclosures").rowcount == 1


def test_sqlite_lets_the_head_only_grow(shell: sqlite3.Connection) -> None:
    for statement in (
        "UPDATE head SET size = size - 1",
        "UPDATE head SET id = 2",
        "DELETE FROM head",
        "REPLACE INTO head VALUES (1, 0, zeroblob(32), NULL, 0)",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            shell.execute(statement)
    assert shell.execute("SELECT size FROM head").fetchone() == (2,)


def test_an_erased_text_is_not_left_in_the_file(file: Path) -> None:
    assert b"carol Example" in file.read_bytes()
    engine = open_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        connection.execute(tables.disclosures.delete())
    engine.dispose()
    assert b"carol Example" not in file.read_bytes()


def postgres_as(server: Server, name: str, user: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(server.url(name, user), autocommit=True)


@pytest.mark.parametrize("table", LEDGER)
@pytest.mark.parametrize("user", [APPLICATION, OWNER, SUPERUSER])
def test_postgresql_refuses_every_change_of_a_ledger_row_whoever_asks(
    databases: Databases, name: str, table: str, user: str
) -> None:
    refusal = psycopg.errors.InsufficientPrivilege if user == APPLICATION else psycopg.errors.IntegrityError
    with postgres_as(databases.server(), name, user) as connection:
        if user == SUPERUSER:
            connection.execute("SET session_replication_role = replica")
        before = connection.execute(f"SELECT * FROM {table}".encode()).fetchall()
        assert before
        for statement in (*statements(table), f"{statements(table)[1]} WHERE false", f"TRUNCATE {table} CASCADE"):
            with pytest.raises(refusal):
                connection.execute(statement.encode())
        assert connection.execute(f"SELECT * FROM {table}".encode()).fetchall() == before


def test_postgresql_lets_the_head_only_grow(databases: Databases, name: str) -> None:
    for user in (APPLICATION, OWNER, SUPERUSER):
        with postgres_as(databases.server(), name, user) as connection:
            for statement in (
                b"UPDATE head SET size = size - 1",
                b"UPDATE head SET id = 2",
                b"DELETE FROM head",
                b"TRUNCATE head",
                b"INSERT INTO head VALUES (2, 0, decode(repeat('00', 32), 'hex'), NULL, 0)",
            ):
                with pytest.raises((psycopg.errors.IntegrityError, psycopg.errors.InsufficientPrivilege)):
                    connection.execute(statement)


def test_postgresqls_application_role_may_erase_a_disclosure_and_change_no_table(
    databases: Databases, name: str
) -> None:
    with postgres_as(databases.server(), name, APPLICATION) as connection:
        for statement in (
            b"UPDATE disclosures SET text = 'x'",
            b"DROP TABLE entries",
            b"ALTER TABLE entries DISABLE TRIGGER ALL",
            b"DROP TRIGGER entries_refuse ON entries",
            b"CREATE TABLE mine (x int)",
            b"SET session_replication_role = replica",
            b"UPDATE alembic_version SET version_num = '9'",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        assert connection.execute(b"DELETE FROM disclosures").rowcount == 1


def test_a_whole_database_has_no_finding_but_what_the_test_server_lacks(engine: Engine, site: SmallLog) -> None:
    findings = site.open_ledger(engine).ask(check_guards)
    assert findings == ([] if engine.dialect.name == "sqlite" else ["database server, fsync: expected on, got off"])


def test_a_trigger_that_was_dropped_or_switched_off_is_a_finding(owner_engine: Engine) -> None:
    with owner_engine.begin() as connection:
        if owner_engine.dialect.name == "sqlite":
            for action in ("update", "delete"):
                connection.exec_driver_sql(f"DROP TRIGGER entries_refuse_{action}")
            sql = "CREATE TRIGGER entries_refuse_delete BEFORE DELETE ON entries BEGIN SELECT 1; END"
            connection.exec_driver_sql(sql)
            expected = {"entries_refuse_update", "entries_refuse_delete"}
        else:
            connection.exec_driver_sql("ALTER TABLE entries DISABLE TRIGGER entries_refuse")
            connection.exec_driver_sql("ALTER TABLE documents ENABLE TRIGGER documents_refuse")
            connection.exec_driver_sql("DROP TRIGGER head_refuse ON head")
            expected = {"entries_refuse", "documents_refuse", "head_refuse"}
        findings = check_guards(connection)
    assert {finding.split()[1] for finding in findings if finding.startswith("trigger")} == expected


def test_a_service_that_connects_as_the_owner_is_a_finding(databases: Databases, name: str) -> None:
    engine = open_engine(databases.server().url(name, OWNER))
    with engine.connect() as connection:
        findings = check_guards(connection)
    engine.dispose()
    assert "role of the service, entries: expected no right to UPDATE, got it" in findings
