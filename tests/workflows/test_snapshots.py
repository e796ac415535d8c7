"""When the fold is sealed: when the log has grown enough, and never in the way of anything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from appliance.errors import Unavailable
from appliance.workflows import snapshots
from appliance.workflows.context import Context


def _context(size: int, asked: list[int]) -> Context:
    ledger = SimpleNamespace(state=SimpleNamespace(size=size), seal_snapshot=asked.append)
    return cast(Context, SimpleNamespace(ledger=ledger))


@pytest.mark.parametrize(
    ("size", "share", "grown"), [(500, 16, 10_000), (1_600_000, 16, 100_000), (1_600_000, None, 10_000)]
)
def test_a_long_log_is_sealed_less_often_but_for_the_end(size: int, share: int | None, grown: int) -> None:
    asked: list[int] = []
    snapshots.seal(_context(size, asked), share)
    assert asked == [grown]


def test_a_fold_that_cannot_be_kept_is_said_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def full(_grown: int) -> None:
        raise Unavailable("snapshot: expected the disk to work, got No space left on device")

    context = _context(1, [])
    context.ledger.seal_snapshot = full  # type: ignore[method-assign]
    snapshots.seal(context)
    assert "the fold could not be kept: snapshot: expected the disk to work" in caplog.text
