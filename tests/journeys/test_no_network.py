"""No test needs a network: `scripts/test --all` runs them all where there is none."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest


@pytest.mark.outside
def test_all_cases_run_where_there_is_nothing_but_their_own_loopback() -> None:
    assert [name for _, name in socket.if_nameindex()] == ["lo"], "run this with: scripts/test --all"
    assert Path("/proc/net/route").read_text().splitlines()[1:] == [], "a route leads out of this namespace"
