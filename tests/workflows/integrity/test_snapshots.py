"""State snapshots are sealed when the log has grown enough, without delaying other work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from appliance.errors import Unavailable
from appliance.workflows import integrity
from appliance.workflows.core.context import Context
from tests.kit.one_process import one_process


def _context(size: int, wanted: list[int]) -> Context:
    ledger = SimpleNamespace(state=SimpleNamespace(size=size), seal_snapshot=wanted.append)
    return cast(Context, SimpleNamespace(**one_process(), ledger=ledger))


@pytest.mark.parametrize(
    ("size", "share", "grown"), [(500, 16, 10_000), (1_600_000, 16, 100_000), (1_600_000, None, 1), (5, None, 1)]
)
def test_a_long_log_is_sealed_less_often_and_any_at_the_end(size: int, share: int | None, grown: int) -> None:
    wanted: list[int] = []
    integrity.seal(_context(size, wanted), share)
    assert wanted == [grown]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unavailable("snapshot: expected the disk to work"), "snapshot: expected the disk to work"),
        (RecursionError("maximum depth"), "snapshot: expected no defect of the appliance, got RecursionError"),
    ],
)
def test_a_fold_that_cannot_be_kept_is_said_and_ends_nothing(
    caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    """Neither the rounds nor the service's orderly end."""

    def fail(_grown: int) -> None:
        raise error

    context = _context(1, [])
    context.ledger.seal_snapshot = fail  # type: ignore[method-assign]
    integrity.seal(context)
    assert f"the state could not be saved: {said}" in caplog.text
