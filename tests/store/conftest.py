"""The same tests on SQLite and on PostgreSQL: each gets an engine on a migrated, empty database of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import Engine

from appliance.store.database.engine import migrate, open_engine
from appliance.store.ledger import search_index
from appliance.store.ledger.ledger import Ledger
from scripts.kit.postgres import APPLICATION, Server, postgres
from tests.kit.small_log import SmallLog

__all__ = ["postgres"]

KINDS = ("sqlite", "postgresql")


@pytest.fixture
def filed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry is a block of its own."""
    monkeypatch.setattr(search_index, "BLOCK", 1)


class Databases:
    """Migrated databases, made once and copied for each test: a migration costs more than most tests."""

    def __init__(self, folder: Path, postgres: Callable[[], Server]) -> None:
        self._folder = folder
        self._postgres = postgres
        self._templates: dict[tuple[str, str], str] = {}

    def server(self) -> Server:
        return self._postgres()

    def migrated(self, kind: str) -> str:
        """Return the path of a file or the name of a database with all tables and no entry."""
        if (kind, "migrated") not in self._templates:
            place = str(self._folder / "migrated.db") if kind == "sqlite" else self.server().create_database()
            engine = open_engine(f"sqlite:///{place}" if kind == "sqlite" else self.server().url(place))
            migrate(engine)
            engine.dispose()
            if kind == "postgresql":
                self.server().let_application_log_in()
            self._templates[kind, "migrated"] = place
        return self._templates[kind, "migrated"]

    def filled(self, kind: str, name: str, fill: Callable[[str], None]) -> str:
        """Return the same with what `fill`, given the URL of the service's role, has written into it once."""
        if (kind, name) not in self._templates:
            migrated = self.migrated(kind)
            if kind == "sqlite":
                place = str(self._folder / f"{name}.db")
                shutil.copyfile(migrated, place)
                fill(f"sqlite:///{place}")
            else:
                place = self.server().create_database(migrated)
                fill(self.server().url(place, APPLICATION))
            self._templates[kind, name] = place
        return self._templates[kind, name]

    @contextmanager
    def copy(self, kind: str, template: str, folder: Path) -> Iterator[str]:
        """Yield a copy's URL, by which the service's own role connects."""
        if kind == "sqlite":
            path = folder / "ledger.db"
            shutil.copyfile(template, path)
            yield f"sqlite:///{path}"
            return
        name = self.server().create_database(template)
        yield self.server().url(name, APPLICATION)
        self.server().drop_database(name)


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Databases:
    return Databases(tmp_path_factory.mktemp("templates"), lambda: cast(Server, request.getfixturevalue("postgres")))


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> Iterator[str]:
    """Yield the URL that the service connects with: in PostgreSQL as the application's role, which owns nothing."""
    kind = str(request.param)
    with databases.copy(kind, databases.migrated(kind), tmp_path) as url:
        yield url


BLOCKS = {"all filed": 1, "some filed": 5, "none filed": 1_024}


@pytest.fixture(scope="module", params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=BLOCKS)
def shared_engine(
    database_kind: str, request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """Yield the engine of one database for all tests of a file, which only read it, for each size of a block."""
    with (
        pytest.MonkeyPatch.context() as patch,
        databases.copy(database_kind, databases.migrated(database_kind), tmp_path_factory.mktemp("shared")) as url,
    ):
        patch.setattr(search_index, "BLOCK", BLOCKS[request.param])
        engine = open_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def sqlite_path(databases: Databases, tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    shutil.copyfile(databases.migrated("sqlite"), path)
    return path


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def owner_engine(database_url: str, databases: Databases) -> Iterator[Engine]:
    """Yield the engine of the database's administrator, who may change whatever no trigger refuses."""
    url = database_url
    if url.startswith("postgresql"):
        url = databases.server().url(url.rpartition("/")[2])
    engine = open_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def site() -> SmallLog:
    return SmallLog()


@pytest.fixture
def open_ledger(site: SmallLog, database_url: str) -> Iterator[Callable[[], Ledger]]:
    """Yield a function that opens the ledger as another process would: with its own engine, state and lock."""
    opened: list[Ledger] = []

    def open_one() -> Ledger:
        opened.append(site.open_ledger(open_engine(database_url)))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: Callable[[], Ledger], site: SmallLog) -> Ledger:
    """Return a loaded ledger with its first entry."""
    ledger = open_ledger()
    ledger.load()
    ledger.append(site.first_draft())
    return ledger
