"""The first start of a new build on a log computes its stored values for every entry."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.wiring import building
from appliance.workflows.core.context import Context
from appliance.workflows.lifecycle.recovery import recover
from tests.kit.founded import template


@contextmanager
def started(home: Path) -> Iterator[Context]:
    with wiring.service(load_settings(home, {})) as context:
        recover(context)
        yield context


def drop_projections(home: Path) -> None:
    """As if the build of before had not kept them."""
    with closing(sqlite3.connect(home / "ledger.db")) as database, database:
        database.execute("DELETE FROM projections")


def test_another_build_makes_the_projections_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template("staffed").copy(home)
    with started(home):
        pass
    drop_projections(home)
    with started(home) as context:
        assert context.ledger.check_projections() != [], "the same build as before"
    later = replace(building.describe_code(), digest="sha256:" + "7" * 64)
    monkeypatch.setattr(building, "describe_code", lambda: later)
    with started(home) as context:
        assert context.ledger.check_projections() == []
