"""One service a log: the second on one PostgreSQL does not begin, and whoever dies leaves nothing behind."""

from __future__ import annotations

from contextlib import suppress

import pytest
from sqlalchemy.exc import SQLAlchemyError

from appliance.errors import Conflict, Unavailable
from appliance.store.database.claim import Claim
from appliance.store.database.engine import open_engine
from scripts.kit.postgres import APPLICATION, SUPERUSER
from tests.store.conftest import Databases


@pytest.fixture
def url(databases: Databases) -> str:
    name = databases.server().create_database(databases.migrated("postgresql"))
    return databases.server().url(name, APPLICATION)


def test_the_second_service_is_refused_until_the_first_has_ended(url: str) -> None:
    with Claim(open_engine(url)) as first:
        first.hold()
        with (
            pytest.raises(Conflict, match="expected no other service on its log, got one") as info,
            Claim(open_engine(url)),
        ):
            pass
        assert info.value.code == "locked"
    with Claim(open_engine(url)):
        pass


def test_a_claim_whose_session_the_server_ended_is_taken_again_or_lost(url: str, databases: Databases) -> None:
    superuser = open_engine(databases.server().url(url.rpartition("/")[2], SUPERUSER))

    def end_sessions() -> None:
        with superuser.connect() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    with Claim(open_engine(url)) as first:
        end_sessions()
        first.hold()
        with pytest.raises(Conflict), Claim(open_engine(url)):
            pass
        end_sessions()
        assert not first.is_lost
        with Claim(open_engine(url)), pytest.raises(Conflict):
            first.hold()
        assert first.is_lost
    superuser.dispose()


def test_a_session_that_is_lost_at_our_end_alone_does_not_shut_us_out(url: str) -> None:
    """The server holds it for as long as it has not heard of that."""
    with Claim(open_engine(url)) as first:
        ghost, first._connection = first._connection, None
        first.hold()
        with pytest.raises(Conflict), Claim(open_engine(url)):
            pass
        assert ghost is not None
        with suppress(SQLAlchemyError):
            ghost.invalidate()
        ghost.close()


def test_a_database_that_does_not_answer_is_unavailable(url: str) -> None:
    gone = url.rpartition("/")[0] + "/nowhere"
    with pytest.raises(Unavailable), Claim(open_engine(gone)):
        pass


def test_on_sqlite_the_folders_lock_is_enough(tmp_path: object) -> None:
    with Claim(open_engine(f"sqlite:///{tmp_path}/ledger.db")), Claim(open_engine(f"sqlite:///{tmp_path}/ledger.db")):
        pass
