"""Functions for tests of reviews, findings and conditions."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.decisions import Conditions
from appliance.domain.core.records.runs import Adapter
from appliance.domain.releases.approval import find_release_blockers
from scripts.kit.log_builder import LogBuilder


def adapter_of(site: LogBuilder, version: int = 1) -> Adapter:
    adapter = site.state.adapters.get(f"clauses@{version}")
    assert adapter is not None
    return adapter


def reasons(site: LogBuilder, now: str | None = None) -> list[str]:
    """Return the refusals of today's release of labels to legal, as text."""
    release = site.state.releases.get("legal/labels")
    assert release is not None
    adapter = site.state.adapters.get(release.current.adapter)
    assert adapter is not None
    return [str(one) for one in find_release_blockers(site.state, release, adapter, now or site.now)]


def approve(site: LogBuilder, **fields: Any) -> None:
    """Two people of two fields."""
    site.review("rita", "privacy", **fields)
    site.review("raul", "model-risk", **fields)


def conditions(**fields: Any) -> Conditions:
    defaults: dict[str, Any] = {"not_before": None, "not_after": None, "served_models": (), "answers_a_day": None}
    return Conditions(**defaults | fields)
