"""The access that a stored session gives, by the state of the log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import NotAuthenticated
from appliance.store.database.sessions import SessionRow
from appliance.workflows.governance import find_session
from scripts.kit.log_builder import stage
from tests.kit.ahead import DAY_S, reset_clock, run_ahead
from tests.kit.restored import lose, restore


@pytest.mark.parametrize("event", ["the clock was reset", "the restoration"])
def test_a_session_of_before_an_event_that_leads_time_back_reads_nothing_after_it(event: str) -> None:
    site = stage("staffed")
    keyid = site.keys["rita"].keyid
    rows = {
        token: SessionRow("rita", keyid, "9999-01-01T00:00:00.000Z", entry)
        for token, entry in (("before", site.state.size - 1), ("after", site.state.size + 3))
    }
    context: Any = SimpleNamespace(
        sessions=SimpleNamespace(find=lambda _kind, token: rows[token]),
        ledger=SimpleNamespace(state=site.state),
        now=lambda state: state.last_time,
    )
    assert find_session(context, "before")[0] == "rita"
    if event == "the restoration":
        restore(site, lose(site).checkpoint())
    else:
        reset_clock(site, run_ahead(site, DAY_S))
    context.ledger.state = site.state
    with pytest.raises(NotAuthenticated, match=f"opened since {event}"):
        find_session(context, "before")
    assert find_session(context, "after")[0] == "rita"
