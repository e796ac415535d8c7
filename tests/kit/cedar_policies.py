"""Policy sets with Cedar policies, as a site adopts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.access import process
from appliance.domain.core.policy import Parameters, PolicySet

_FOLDER = Path(__file__).resolve().parents[2] / "policies" / "default"
_PERMIT = '@id("all") permit (principal, action, resource);\n'


def permitting(more: str = "") -> PolicySet:
    """One that allows everything but what `more` forbids."""
    schema = (_FOLDER / "schema.cedarschema").read_text(encoding="utf-8")
    return PolicySet(name="site", parameters=Parameters(), cedar=_PERMIT + more, cedar_schema=schema)


def read_without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Cedar, in a process of its own, also the text that exceeds the bounds."""
    paths, call = process._PROGRAM.splitlines()
    unbounded = "import appliance.access.engine as engine; engine.check_bounds = lambda *_: None; "
    monkeypatch.setattr(process, "_PROGRAM", f"{paths}\n{unbounded}{call}")
