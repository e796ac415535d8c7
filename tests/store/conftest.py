"""The same tests on SQLite and on PostgreSQL: each gets an engine on a migrated, empty database of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from appliance.store.engine import migrate, open_engine
from appliance.store.ledger import Ledger
from tests.postgres import APPLICATION, Server, postgres
from tests.store.site import Site

__all__ = ["postgres"]

KINDS = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database to copy: a migration costs more than most tests."""
    path = tmp_path_factory.mktemp("migrated") / "ledger.db"
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Server) -> str:
    """The name of a migrated, empty database to copy."""
    name = postgres.create_database()
    engine = open_engine(postgres.url(name))
    migrate(engine)
    engine.dispose()
    postgres.let_application_log_in()
    return name


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL that the service connects with: in PostgreSQL as the application's role, which owns nothing."""
    if request.param == "sqlite":
        path = tmp_path / "ledger.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    server: Server = request.getfixturevalue("postgres")
    name = server.create_database(template=request.getfixturevalue("migrated_postgres"))
    yield server.url(name, APPLICATION)
    server.drop_database(name)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def owner_engine(database_url: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """What an administrator of the database connects with: may change whatever no trigger refuses."""
    url = database_url
    if url.startswith("postgresql"):
        server: Server = request.getfixturevalue("postgres")
        url = server.url(url.rpartition("/")[2])
    engine = open_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def site() -> Site:
    return Site()


@pytest.fixture
def open_ledger(site: Site, database_url: str) -> Iterator[Callable[[], Ledger]]:
    """Opens the ledger as another process would: an engine, a fold and a lock of its own."""
    opened: list[Ledger] = []

    def open_one() -> Ledger:
        opened.append(site.open_ledger(open_engine(database_url)))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: Callable[[], Ledger], site: Site) -> Ledger:
    """A loaded ledger with its first entry."""
    ledger = open_ledger()
    ledger.load()
    ledger.append(site.first_draft())
    return ledger
