"""The migrations make exactly the tables that the code was written for, on SQLite and on PostgreSQL."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Engine, inspect

from appliance.errors import Conflict, Unavailable
from appliance.store.database import tables
from appliance.store.database.engine import check_migrated, migrate, open_engine
from scripts.kit.postgres import OWNER
from tests.store.conftest import Databases


def test_the_migrated_tables_are_the_codes_tables(owner_engine: Engine) -> None:
    with owner_engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []


def test_the_migrated_checks_are_the_codes_checks(owner_engine: Engine) -> None:
    """Alembic compares no check constraints."""
    inspector = inspect(owner_engine)
    for table in tables.metadata.sorted_tables:
        expected = {str(c.name) for c in table.constraints if isinstance(c, CheckConstraint)}
        assert {check["name"] for check in inspector.get_check_constraints(table.name)} == expected
        assert inspector.get_pk_constraint(table.name)["constrained_columns"] == list(table.primary_key.columns.keys())


def test_the_code_names_the_last_migration(owner_engine: Engine) -> None:
    with owner_engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == tables.REVISION
    scripts = ScriptDirectory(str(Path(__file__).resolve().parents[3] / "migrations"))
    assert scripts.get_heads() == [tables.REVISION]


@pytest.mark.thorough
def test_alembic_by_hand_migrates_the_settings_database(home: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-m", "alembic", "-c", str(root / "alembic.ini"), "upgrade", "head"]
    subprocess.run(command, check=True, capture_output=True, cwd=home, timeout=60)
    engine = open_engine(f"sqlite:///{home / 'ledger.db'}")
    check_migrated(engine)
    engine.dispose()


def test_migrating_again_changes_nothing(owner_engine: Engine) -> None:
    migrate(owner_engine)
    check_migrated(owner_engine)
    with owner_engine.connect() as connection:
        assert connection.execute(tables.head.select()).all() == [(1, 0, bytes(32), None, 0)]


def test_the_services_role_can_see_that_the_database_is_migrated(engine: Engine) -> None:
    check_migrated(engine)


def test_an_unmigrated_database_is_a_conflict(databases: Databases, tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    empty.touch()
    urls = [f"sqlite:///{empty}", databases.server().url(databases.server().create_database(), OWNER)]
    for url in urls:
        engine = open_engine(url)
        with pytest.raises(Conflict, match="revision: expected initial, got an empty database"):
            check_migrated(engine)
        engine.dispose()


@pytest.mark.parametrize("act", [check_migrated, migrate])
def test_a_database_of_a_development_build_is_refused_and_left_as_it_is(
    databases: Databases, tmp_path: Path, act: Callable[[Engine], None]
) -> None:
    with databases.copy("sqlite", databases.migrated("sqlite"), tmp_path) as url:
        engine = open_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0004'")
        with pytest.raises(Conflict, match=r"\(revision 0004\) was made by a development build") as caught:
            act(engine)
        assert caught.value.code == "development-database"
        with engine.connect() as connection:
            assert MigrationContext.configure(connection).get_current_revision() == "0004"
        engine.dispose()


def test_a_new_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    engine.dispose()
    assert set(modes.values()) == {0o600}, modes


def test_a_sqlite_file_behind_a_link_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "elsewhere.db")
    engine = open_engine(f"sqlite:///{tmp_path / 'link.db'}")
    with pytest.raises(Unavailable):
        migrate(engine)
    assert not (tmp_path / "elsewhere.db").exists()


def test_a_migration_that_fails_leaves_an_empty_database(databases: Databases, tmp_path: Path) -> None:
    """The whole migration is one transaction: a role that may not make the application's role leaves no table."""
    server = databases.server()
    databases.migrated("postgresql")
    name = server.create_database()
    server.execute(f"CREATE ROLE intruder_{name} LOGIN PASSWORD 'x'")
    server.execute(f"GRANT ALL ON DATABASE {name} TO intruder_{name}")
    server.execute(f"CREATE TABLE head (x int); GRANT ALL ON head TO intruder_{name}", database=name)
    server.execute(f"GRANT CREATE ON SCHEMA public TO intruder_{name}", database=name)
    engine = open_engine(f"postgresql://intruder_{name}:x@127.0.0.1:{server.port}/{name}")
    with pytest.raises(Unavailable):
        migrate(engine)
    assert inspect(engine).get_table_names() == ["head"]
    engine.dispose()
