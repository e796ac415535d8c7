"""The check of a refusal: an error of one kind with its reason, and an unchanged state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.domain.core.state import State
from appliance.errors import ApplianceError
from scripts.kit.log_builder import LogBuilder


def snapshot(state: State) -> Any:
    return state.size, state.last_time, state.last_leaf, list(state.projections())


@contextmanager
def refuses(site: LogBuilder, error: type[ApplianceError], *words: str, code: str | None = None) -> Iterator[None]:
    """Check that the rules refuse the one entry that the block appends."""
    before, entries = snapshot(site.state), len(site.entries)
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error
    for word in words:
        assert word in caught.value.message, caught.value.message
    if code is not None:
        assert caught.value.code == code
    assert snapshot(site.state) == before, "a refused entry changed the state"
    assert len(site.entries) == entries
