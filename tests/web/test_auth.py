"""Who asks: attempts that nobody answers for are counted until they are recorded."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import NotAuthenticated, TooMany, Unavailable
from appliance.web.auth import Doorkeeper
from appliance.workflows.sessions import Refusals


def test_refusals_that_could_not_be_recorded_are_counted_on() -> None:
    context: Any = SimpleNamespace(clock=lambda: datetime(2026, 11, 26, tzinfo=UTC))
    door = Doorkeeper(context)
    for _ in range(2):
        door.count(None, NotAuthenticated("token: expected one, got none"))
    door.count("legal", TooMany("requests: expected fewer"))
    first = Refusals(2, "2026-11-26T00:00:00.000Z", {("legal", "too-many"): 1})

    def record() -> None:
        with door.counted() as counted:
            assert counted == first
            door.count("legal", TooMany("requests: expected fewer"))
            raise Unavailable("ledger: expected a database, got none")

    with pytest.raises(Unavailable):
        record()
    with door.counted() as counted:
        assert counted == Refusals(2, first.since, {("legal", "too-many"): 2})
    with door.counted() as counted:
        assert counted == Refusals()
