"""One init per database, and none beside a process that serves."""

from __future__ import annotations

import pytest

from appliance.errors import Conflict, Unavailable
from appliance.store.database.engine import open_engine
from appliance.store.database.processes import Processes, claim_database
from scripts.kit.postgres import APPLICATION
from tests.store.conftest import Databases
from tests.store.database.test_processes import about


@pytest.fixture
def url(databases: Databases) -> str:
    name = databases.server().create_database(databases.migrated("postgresql"))
    return databases.server().url(name, APPLICATION)


def test_a_second_founder_is_refused_until_the_first_has_ended(url: str) -> None:
    with claim_database(open_engine(url)):
        with pytest.raises(Conflict, match="nothing was changed") as info, claim_database(open_engine(url)):
            pass
        assert info.value.code == "locked"
    with claim_database(open_engine(url)):
        pass


def test_no_appliance_is_founded_where_a_process_serves_and_none_serves_while_one_is(url: str) -> None:
    with Processes(open_engine(url), "one", about()), pytest.raises(Conflict), claim_database(open_engine(url)):
        pass
    with (
        claim_database(open_engine(url)),
        pytest.raises(Conflict, match="not being founded"),
        Processes(open_engine(url), "one", about()),
    ):
        pass


def test_a_database_that_does_not_answer_is_unavailable(url: str) -> None:
    gone = url.rpartition("/")[0] + "/nowhere"
    with pytest.raises(Unavailable), claim_database(open_engine(gone)):
        pass
