"""Objects that were added to, removed from or changed in the database are named, and nothing starts on it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from appliance.errors import Tampered
from appliance.store.database.catalogue import FOLDER, check_catalogue, expected_catalogue, read_catalogue
from appliance.store.database.engine import check_migrated, migrate, open_engine
from appliance.store.ledger.checks import check_guards
from scripts.kit.postgres import APPLICATION, OWNER, SUPERUSER, Server
from tests.store.conftest import Databases

COPY = "CREATE TABLE copied (text TEXT)"
STEAL = "CREATE TRIGGER steal AFTER INSERT ON disclosures BEGIN INSERT INTO copied VALUES (NEW.text); END"
FUNCTION = "CREATE FUNCTION steal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"


def test_the_catalogue_that_is_compared_with_is_what_the_migrations_make(owner_engine: Engine) -> None:
    """Else: .venv/bin/python scripts/catalogue URL, with an empty database of each kind."""
    with owner_engine.connect() as connection:
        assert read_catalogue(connection) == expected_catalogue(owner_engine.dialect.name)
        assert json.loads((FOLDER / f"catalogue-{owner_engine.dialect.name}.json").read_text())


SQLITE = {
    COPY: ["table copied"],
    f"{COPY}; {STEAL}": ["table copied", "trigger steal on disclosures"],
    "CREATE VIEW shown AS SELECT text FROM disclosures": ["view shown"],
    "CREATE INDEX by_text ON disclosures (text)": ["index by_text on disclosures"],
    "DROP TRIGGER entries_refuse_delete": ["trigger entries_refuse_delete on entries"],
    "DROP INDEX ix_projections_kind_since_until": ["index ix_projections_kind_since_until on projections"],
    "ALTER TABLE head ADD COLUMN more TEXT": ["table head"],
    "ANALYZE": ["table sqlite_stat1"],
    "CREATE VIRTUAL TABLE found USING fts5(text)": ["table found", "table found_content"],
}  # fmt: skip


@pytest.mark.parametrize(("planted", "named"), SQLITE.items(), ids=range(len(SQLITE)))
def test_what_was_planted_in_sqlite_is_named_and_nothing_starts(
    sqlite_path: Path, planted: str, named: list[str]
) -> None:
    with closing(sqlite3.connect(sqlite_path)) as shell:
        shell.executescript(planted)
    said = refused(f"sqlite:///{sqlite_path}")
    assert all(f"{what}" in said for what in named), said


def test_a_refusal_that_was_changed_by_writable_schema_is_named(sqlite_path: Path) -> None:
    with closing(sqlite3.connect(sqlite_path)) as shell:
        shell.execute("PRAGMA writable_schema = ON")
        shell.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'BEFORE DELETE ON entries BEGIN', "
            "'BEFORE DELETE ON entries WHEN false BEGIN') WHERE name = 'entries_refuse_delete'"
        )
        shell.commit()
    said = refused(f"sqlite:///{sqlite_path}")
    assert "trigger entries_refuse_delete on entries: expected CREATE TRIGGER" in said and "WHEN false" in said


def test_a_changed_table_is_named_with_its_columns_and_without_its_sql(sqlite_path: Path) -> None:
    with closing(sqlite3.connect(sqlite_path)) as shell:
        shell.execute("ALTER TABLE entries ADD COLUMN note TEXT")
        shell.commit()
    said = refused(f"sqlite:///{sqlite_path}")
    assert "table entries: expected its columns as migrations/ makes them, got others: note" in said
    assert "CREATE TABLE" not in said


POSTGRESQL = {
    "CREATE TABLE copied (text text)": "table public.copied",
    f"{FUNCTION}; CREATE TRIGGER steal AFTER INSERT ON disclosures FOR EACH ROW EXECUTE FUNCTION steal()":
        "trigger steal on public.disclosures",
    FUNCTION: "function public.steal()",
    "CREATE RULE quiet AS ON DELETE TO disclosures DO INSTEAD NOTHING": "rule quiet on public.disclosures",
    "CREATE VIEW shown AS SELECT text FROM disclosures": "view public.shown",
    "CREATE MATERIALIZED VIEW kept AS SELECT text FROM disclosures": "materialized view public.kept",
    "CREATE TABLE child () INHERITS (entries)": "table public.child",
    "ALTER TABLE entries DISABLE TRIGGER entries_refuse": "trigger entries_refuse on public.entries",
    "ALTER TABLE documents ENABLE TRIGGER documents_refuse": "trigger documents_refuse on public.documents",
    "ALTER TABLE entries DISABLE TRIGGER ALL": "trigger of fk_entry_documents_index on public.entries",
    "CREATE OR REPLACE FUNCTION appliance_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$":
        "function public.appliance_refuse()",
    "ALTER FUNCTION appliance_refuse() SET search_path = x": "function public.appliance_refuse()",
    "ALTER TABLE disclosures ENABLE ROW LEVEL SECURITY": "table public.disclosures",
    "CREATE POLICY few ON disclosures USING (false)": "row security policy few on public.disclosures",
    "ALTER TABLE disclosures REPLICA IDENTITY FULL": "table public.disclosures",
    "CREATE PUBLICATION told FOR ALL TABLES": "publication told",
    "SELECT lo_create(0)": "large object",
    "CREATE SCHEMA evil": "schema evil",
    "CREATE SCHEMA evil; CREATE TABLE evil.entries (LIKE entries)": "table evil.entries",
    "CREATE FUNCTION length(text, text) RETURNS int LANGUAGE sql AS 'SELECT 33'": "function public.length(text, text)",
    "CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)": "operator public.===",
    "CREATE STATISTICS told (mcv) ON commitment, text FROM disclosures": "statistics",
    "CREATE TYPE mood AS ENUM ('good')": "type",
    "CREATE DOMAIN short AS text": "type",
    "CREATE SEQUENCE counted": "sequence public.counted",
    f"GRANT UPDATE ON entries TO {APPLICATION}": "grant on public.entries to appliance_app",
    f"GRANT UPDATE (bytes) ON entries TO {APPLICATION}": "grant on column public.entries.bytes to appliance_app",
    "GRANT SELECT ON disclosures TO PUBLIC": "grant on public.disclosures to PUBLIC",
    "GRANT SELECT ON disclosures TO pg_monitor": "grant on public.disclosures to pg_monitor",
    f"REVOKE INSERT ON entries FROM {APPLICATION}": "grant on public.entries to appliance_app",
    f"GRANT CREATE ON SCHEMA public TO {APPLICATION}": "grant on schema public to appliance_app",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC": "default acl",
    "ALTER TABLE documents OWNER TO postgres": "table public.documents",
    "ALTER TABLE entries DROP CONSTRAINT ck_entries_bytes": "constraint ck_entries_bytes on public.entries",
    "ALTER TABLE head ADD COLUMN more text DEFAULT 'x'": "column public.head.more",
    "ALTER TABLE disclosures ALTER COLUMN text SET DEFAULT 'x'": "column public.disclosures.text",
    "DROP INDEX ix_projections_current": "index public.ix_projections_current",
    f"{FUNCTION.replace('RETURNS trigger', 'RETURNS event_trigger').replace('RETURN NEW;', 'NULL;')};"
    "CREATE EVENT TRIGGER heard ON ddl_command_end EXECUTE FUNCTION steal()": "event trigger heard",
    f"ALTER ROLE {APPLICATION} IN DATABASE %s SET session_replication_role = replica":
        "setting session_replication_role of role appliance_app",
    "ALTER DATABASE %s SET session_preload_libraries = 'auto_explain'": "setting session_preload_libraries",
}  # fmt: skip


@pytest.fixture
def name(databases: Databases, tmp_path: Path) -> Iterator[str]:
    with databases.copy("postgresql", databases.migrated("postgresql"), tmp_path) as url:
        yield url.rpartition("/")[2]


@pytest.mark.parametrize(("planted", "named"), POSTGRESQL.items())
def test_what_was_planted_in_postgresql_is_named_and_nothing_starts(
    databases: Databases, name: str, planted: str, named: str
) -> None:
    server = databases.server()
    server.execute(planted.replace("%s", name), name)
    assert named in refused(server.url(name, APPLICATION))


def test_a_role_that_may_more_than_it_should_is_named(databases: Databases, name: str) -> None:
    server = databases.server()
    for statement, undo, said in (
        (f"GRANT {OWNER} TO {APPLICATION}", f"REVOKE {OWNER} FROM {APPLICATION}", f"member of {OWNER}"),
        (f"ALTER ROLE {APPLICATION} SUPERUSER", f"ALTER ROLE {APPLICATION} NOSUPERUSER", "superuser"),
        (f"ALTER ROLE {APPLICATION} BYPASSRLS", f"ALTER ROLE {APPLICATION} NOBYPASSRLS", "bypasses row security"),
    ):
        server.execute(statement)
        try:
            told = refused(server.url(name, APPLICATION))
            assert f"role {APPLICATION}: expected one, got " in told and said in told
        finally:
            server.execute(undo)


def refused(url: str) -> str:
    """Return the errors of a start, a migration, and `ledger verify` of a running service."""
    engine = open_engine(url)
    with pytest.raises(Tampered, match=r"^database, schema: expected what the migrations make") as caught:
        check_migrated(engine)
    with engine.connect() as connection:
        findings = check_catalogue(connection)
        assert set(findings) <= set(check_guards(connection))
    engine.dispose()
    assert caught.value.code == "schema" and all(finding in caught.value.message for finding in findings)
    return caught.value.message


def test_a_table_of_another_schema_is_not_taken_for_the_ledgers(databases: Databases, name: str) -> None:
    """Whatever the search path of the role or database is, and whatever the session's own schema has."""
    server = databases.server()
    server.execute(
        f"CREATE SCHEMA evil; CREATE TABLE evil.head (LIKE head); GRANT ALL ON SCHEMA evil TO {APPLICATION}", name
    )
    server.execute(f"ALTER DATABASE {name} SET search_path = evil, public")
    engine = open_engine(server.url(name, APPLICATION))
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE head (size int)")
        assert connection.exec_driver_sql("SELECT size FROM head").all() == [(0,)]
    engine.dispose()


@pytest.mark.thorough
def test_a_migration_over_what_was_planted_changes_nothing(databases: Databases, tmp_path: Path) -> None:
    server, path = databases.server(), tmp_path / "planted.db"
    with closing(sqlite3.connect(path)) as shell:
        shell.execute(COPY)
    planted = server.create_database()
    server.execute(COPY, planted)
    server.execute(f"GRANT ALL ON copied TO {OWNER}", planted)
    for url in (f"sqlite:///{path}", server.url(planted), server.url(planted, SUPERUSER)):
        engine = open_engine(url)
        with pytest.raises(Tampered, match="copied: expected none"):
            migrate(engine)
        engine.dispose()
    with closing(sqlite3.connect(path)) as shell:
        assert shell.execute("SELECT name FROM sqlite_master").fetchall() == [("copied",)]
    assert server.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND oid >= 16384", planted) == [("copied",)]
    server.drop_database(planted)


def test_a_server_that_the_tests_started_is_left_as_it_was(postgres: Server) -> None:
    """The role belongs to all databases: a test that fails must not make others fail."""
    assert postgres.execute(f"SELECT rolsuper FROM pg_roles WHERE rolname = '{APPLICATION}'") in ([(False,)], [])
