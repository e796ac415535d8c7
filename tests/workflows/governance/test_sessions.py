"""What a kept session opens, by the log as it stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import NotAuthenticated
from appliance.store.database.sessions import SessionRow
from appliance.workflows.governance.sessions import find_session
from scripts.kit.log_builder import stage
from tests.kit.ahead import DAY_S, reset_clock, run_ahead


def test_a_session_of_before_a_reset_of_the_clock_reads_nothing_after_it() -> None:
    site = stage("staffed")
    keyid = site.keys["rita"].keyid
    rows = {
        f"program:{token}": SessionRow("rita", keyid, "9999-01-01T00:00:00.000Z", entry)
        for token, entry in (("before", site.state.size - 1), ("after", site.state.size + 3))
    }
    context: Any = SimpleNamespace(
        sessions=SimpleNamespace(find=rows.get),
        ledger=SimpleNamespace(state=site.state),
        now=lambda state: state.last_time,
    )
    assert find_session(context, "before")[0] == "rita"
    reset_clock(site, run_ahead(site, DAY_S))
    context.ledger.state = site.state
    with pytest.raises(NotAuthenticated, match="opened since the clock was reset"):
        find_session(context, "before")
    assert find_session(context, "after")[0] == "rita"
