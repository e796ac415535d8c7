"""A look at a log that nobody has folded: as true as the log itself, on either database."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from appliance.errors import Tampered
from appliance.store.ledger.glance import glance
from appliance.store.ledger.ledger import Ledger


def test_a_look_sees_size_time_policy_and_a_role_of_no_power(
    open_ledger: Callable[[], Ledger], ledger: Ledger, engine: Engine
) -> None:
    seen = glance(engine)
    assert (seen.size, seen.last_time, seen.site) == (1, ledger.state.last_time, ledger.state.site)
    assert seen.witnesses == () and ledger.stored_bytes() > 0
    assert seen.powers == () and seen.role in ("the file's owner", "appliance_app")


def test_the_owner_of_the_tables_is_told_from_the_application(ledger: Ledger, owner_engine: Engine) -> None:
    assert ("owner of the tables" in glance(owner_engine).powers) == (owner_engine.dialect.name == "postgresql")


def test_an_empty_log_has_neither_time_nor_policy(engine: Engine) -> None:
    seen = glance(engine)
    assert (seen.size, seen.last_time, seen.site) == (0, None, None)


def test_a_planted_table_is_found(ledger: Ledger, owner_engine: Engine) -> None:
    with owner_engine.begin() as connection:
        connection.execute(text("CREATE TABLE planted (x integer)"))
    with pytest.raises(Tampered, match="planted"):
        glance(owner_engine)
