"""The database's part of an upgrade: each build reads the log first, and tables are migrated there and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from appliance import wiring
from appliance.build import build_version, find_folder
from appliance.config.settings import Settings
from appliance.errors import BadInput, Conflict, Tampered
from appliance.store.database.engine import open_engine
from appliance.store.database.processes import Processes
from appliance.store.database.tables import REVISION
from appliance.store.files.lock import lock_folder
from scripts.kit.postgres import Server, postgres
from tests.cli.conftest import type_alone
from tests.kit.backups import BackedUp, on_postgresql, on_sqlite
from tests.kit.later_build import NOTES, REVISION_OF_TEST, as_later_build, write_migrations
from tests.store.database.test_processes import about

__all__ = ["postgres"]


@pytest.fixture(params=["sqlite", "postgresql"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> BackedUp:
    if request.param == "sqlite":
        return on_sqlite(tmp_path, "sealed")
    return on_postgresql(tmp_path, cast(Server, request.getfixturevalue("postgres")), "initialized")


@pytest.fixture
def later(made: BackedUp, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    url = f"sqlite:///{tmp_path}/empty.db"
    if made.environment:
        server = cast(Server, request.getfixturevalue("postgres"))
        url = server.url(server.create_database())
    write_migrations(tmp_path / "migrations", url)
    yield tmp_path / "migrations"


def has_notes(settings: Settings) -> bool:
    engine = open_engine(settings.migration_url.get_secret_value())
    found = inspect(engine).has_table(NOTES)
    engine.dispose()
    return found


@pytest.mark.thorough
def test_tables_are_migrated_there_and_back_without_a_change_of_the_log(made: BackedUp, later: Path) -> None:
    settings = made.settings
    before = wiring.check_database(settings)
    assert before.revision == REVISION and before.entries > 0
    with as_later_build(later):
        with pytest.raises(Conflict, match=f"expected {REVISION_OF_TEST}, got {REVISION}"):
            wiring.check_database(settings)
        assert wiring.migrate_database(settings, None) == (REVISION, REVISION_OF_TEST)
        assert wiring.migrate_database(settings, None) == (REVISION_OF_TEST, REVISION_OF_TEST)
        found = wiring.check_database(settings)
    assert (found.revision, found.entries) == (REVISION_OF_TEST, before.entries)
    assert has_notes(settings)
    with pytest.raises(Conflict, match=f"expected {REVISION}, got {REVISION_OF_TEST}"):
        wiring.check_database(settings)
    with as_later_build(later):
        with pytest.raises(BadInput, match="expected one that this build migrates from, got unheard-of"):
            wiring.migrate_database(settings, "unheard-of")
        assert wiring.migrate_database(settings, REVISION) == (REVISION_OF_TEST, REVISION)
    assert wiring.check_database(settings) == before and not has_notes(settings)


def test_no_table_is_migrated_beside_a_service(made: BackedUp, later: Path) -> None:
    with (
        lock_folder(made.settings.lock),
        as_later_build(later),
        pytest.raises(Conflict, match="expected no other service"),
    ):
        wiring.migrate_database(made.settings, None)
    assert not has_notes(made.settings)
    if made.environment:  # one on another host
        engine = open_engine(made.settings.database_url.get_secret_value())
        refused = pytest.raises(Conflict, match="no other process uses")
        with as_later_build(later), Processes(engine, "other", about()), refused:
            wiring.migrate_database(made.settings, None)
        assert not has_notes(made.settings)


def test_a_migration_without_a_way_back_is_named(tmp_path: Path) -> None:
    made = on_sqlite(tmp_path, "initialized")
    write_migrations(tmp_path / "migrations", f"sqlite:///{tmp_path}/empty.db", leads_back=False)
    with as_later_build(tmp_path / "migrations"):
        wiring.migrate_database(made.settings, None)
        with pytest.raises(Conflict, match=f"expected migrations that lead back to {REVISION}"):
            wiring.migrate_database(made.settings, REVISION)
    assert has_notes(made.settings)


def test_each_migration_of_this_build_leads_back() -> None:
    for script in ScriptDirectory(str(find_folder("migrations"))).walk_revisions():
        assert script.down_revision is None or callable(getattr(script.module, "downgrade", None)), script.revision


def test_a_changed_entry_is_named(tmp_path: Path) -> None:
    made = on_sqlite(tmp_path, "sealed")
    engine = open_engine(made.settings.migration_url.get_secret_value())
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER entries_refuse_update")
    engine.dispose()
    with pytest.raises(Tampered, match="entries_refuse_update"):
        wiring.check_database(made.settings)


def test_the_commands_say_what_they_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = on_sqlite(tmp_path, "sealed")
    told = type_alone(capsys, "--home", str(made.home), "database", "check")
    assert told.code == 0 and f"verified by the rules of {build_version()}" in told.out
    told = type_alone(capsys, "--home", str(made.home), "database", "check", "--json")
    found = json.loads(told.out)
    assert found.keys() == {"revision", "entries", "continuing", "ending"} and found["continuing"] == []
    told = type_alone(capsys, "--home", str(made.home), "database", "migrate")
    assert told.code == 0 and told.out.split() == ["revision:", REVISION]
    told = type_alone(capsys, "--home", str(made.home), "database", "migrate", "--to", "other")
    assert told.code == 2 and "expected one that this build migrates from, got other" in told.err
    told = type_alone(capsys, "--home", str(tmp_path / "none"), "database", "check")
    assert told.code == 4
