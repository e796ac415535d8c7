"""Two processes of a test run that start services beside each other draw different ports."""

from __future__ import annotations

import pytest

from scripts.kit.ports import _take_share


def test_the_processes_of_a_run_share_all_ports_and_have_none_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = range(11_000, 11_010)
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    shares = []
    for number in range(3):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{number}")
        shares.append(_take_share(ports))
    assert sorted(port for share in shares for port in share) == list(ports)


def test_a_process_that_runs_alone_has_all_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert _take_share(range(5)) == range(5)
