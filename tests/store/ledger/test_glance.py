"""Summary of a database whose log was not replayed: it agrees with the log, on either database."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from appliance.errors import Tampered
from appliance.store.ledger.checks import summarise_database
from appliance.store.ledger.ledger import Ledger


def test_a_look_sees_size_time_policy_and_a_role_of_no_power(
    open_ledger: Callable[[], Ledger], ledger: Ledger, engine: Engine
) -> None:
    seen = summarise_database(engine)
    assert seen.state is not None
    assert (seen.size, seen.state.last_time, seen.state.site) == (1, ledger.state.last_time, ledger.state.site)
    assert seen.state.witnesses.values() == () and ledger.stored_bytes() > 0
    assert seen.powers == () and seen.role in ("the file's owner", "appliance_app")


def test_the_owner_of_the_tables_is_told_from_the_application(ledger: Ledger, owner_engine: Engine) -> None:
    assert ("owner of the tables" in summarise_database(owner_engine).powers) == (
        owner_engine.dialect.name == "postgresql"
    )


def test_an_empty_log_has_neither_time_nor_policy(engine: Engine) -> None:
    seen = summarise_database(engine)
    assert (seen.size, seen.state) == (0, None)


def test_a_planted_table_is_found(ledger: Ledger, owner_engine: Engine) -> None:
    with owner_engine.begin() as connection:
        connection.execute(text("CREATE TABLE planted (x integer)"))
    with pytest.raises(Tampered, match="planted"):
        summarise_database(owner_engine)
