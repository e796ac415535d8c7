"""A serving worker reports progress while it reads long prompts, so that it is not taken for dead."""

from __future__ import annotations

import queue
from typing import Any, cast

import pytest

from appliance.worker import serving


class Reading:
    """An engine that reads a long prompt without events before the end."""

    def __init__(self, steps: int) -> None:
        self.steps, self.computed = steps, 0

    @property
    def busy(self) -> bool:
        return self.steps > 0

    def step(self) -> list[Any]:
        self.steps, self.computed = self.steps - 1, self.computed + 1
        return []


class Frames:
    """No frame comes in; the stream has ended where the engine waits for one."""

    def get(self) -> None:
        return None

    def get_nowait(self) -> None:
        raise queue.Empty


class Session:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, header: Any, blob: bytes = b"") -> None:
        self.sent.append(header)

    def listen(self) -> Frames:
        return Frames()


@pytest.mark.parametrize(("every_s", "signs"), [(0.0, 4), (60.0, 0)])
def test_a_server_says_that_it_works_while_a_long_prompt_is_read(
    monkeypatch: pytest.MonkeyPatch, every_s: float, signs: int
) -> None:
    monkeypatch.setattr(serving, "ACTIVITY_REPORT_S", every_s)
    engine = Reading(5)
    session = Session()
    serving.Service(cast(Any, session), cast(Any, engine), ()).run()
    assert session.sent == [{"frame": "working", "computed": number} for number in range(1, 1 + signs)]
