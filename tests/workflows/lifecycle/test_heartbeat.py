"""The heartbeat: the conditions that stop workers, and those that do not."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Unavailable
from appliance.workflows.governance import Refusals
from appliance.workflows.lifecycle import running as heartbeat
from tests.kit.service import running


@pytest.mark.parametrize(("which", "freezes"), [("append", True), ("sweep", False)])
def test_only_an_entry_that_cannot_be_written_freezes_workers(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, which: str, freezes: bool
) -> None:
    done: list[str] = []

    def fail(*_: Any) -> None:
        raise Unavailable(f"{which}: expected a database that answers, got none")

    monkeypatch.setattr(heartbeat, "pause_workers", lambda _: done.append("paused"))
    monkeypatch.setattr(heartbeat, "resume_workers", lambda _: done.append("resumed"))
    if which == "append":
        monkeypatch.setattr(heartbeat.governance, "beat", fail)
    with running("staffed", home) as service, caplog.at_level(logging.CRITICAL, "appliance"):
        heartbeat.beat(
            service.context,
            counted=lambda: nullcontext(Refusals()),
            sweep=fail if which == "sweep" else lambda: None,
            maintain=lambda: done.append("maintained"),
        )
    assert done == (["paused"] if freezes else ["resumed", "maintained"])
    assert f"{which}: expected a database that answers" in caplog.text
