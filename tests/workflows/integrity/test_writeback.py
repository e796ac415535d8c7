"""What was written ahead is written back every second, whether entries come or not."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.workflows.integrity import writeback


def test_it_is_written_back_also_while_no_entry_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owed scrub waits for a reader to go, not for the next entry."""
    closing, often = threading.Event(), threading.Event()
    calls = []

    def write_back() -> None:
        calls.append(1)
        if len(calls) == 3:
            often.set()

    monkeypatch.setattr(writeback, "EVERY_S", 0.001)
    context: Any = SimpleNamespace(
        closing=closing, ledger=SimpleNamespace(state=SimpleNamespace(size=5), write_back=write_back)
    )
    writeback.start(context)
    assert often.wait(10)
    closing.set()
