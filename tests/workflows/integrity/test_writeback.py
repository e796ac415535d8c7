"""The write-ahead log is written back every second, with or without new entries."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.workflows import integrity


@pytest.mark.thorough
def test_it_is_written_back_also_while_no_entry_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owed scrub waits for a reader to go, not for the next entry."""
    closing, often = threading.Event(), threading.Event()
    calls = []

    def write_back() -> None:
        calls.append(1)
        if len(calls) == 3:
            often.set()

    monkeypatch.setattr(integrity, "EVERY_S", 0.001)
    context: Any = SimpleNamespace(
        closing=closing, ledger=SimpleNamespace(state=SimpleNamespace(size=5), write_back=write_back)
    )
    integrity.start_writeback(context)
    assert often.wait(60)
    closing.set()
