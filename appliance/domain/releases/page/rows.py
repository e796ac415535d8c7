"""Rows of the state, as JSON objects, and the orders behind them, as the review page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.domain.core.decisions import Conditions
from appliance.domain.releases.emergencies import BreakGlass
from appliance.domain.releases.page.value import Asked, Decided, Found, Person
from appliance.domain.releases.requests_for_release import RequestRelease


def show_request(
    order: RequestRelease | BreakGlass, digest: str, entry: int, texts: Mapping[str, str], row: Mapping[str, Any]
) -> Asked:
    """`texts`: what the order's commitments open to, by member. `row`: what the service says of the request now."""
    asked = order if isinstance(order, RequestRelease) else None
    needed = row["needed"]
    return Asked(
        unit=order.unit,
        by=order.signer,
        entry=entry,
        order=digest,
        emergency=asked is None,
        intended_use=texts.get("reason" if asked is None else "intended_use"),
        limits=texts.get("limits"),
        exposure=None if asked is None else asked.exposure,
        purpose=None if asked is None else asked.purpose,
        conditions=None if asked is None else asked.conditions,
        verdict=None if asked is None else asked.verdict,
        tier=row["tier"],
        reviewers=needed["reviewers"],
        distinct_fields=needed["distinct_fields"],
        required_fields=tuple(needed["required_fields"]),
        approvals=tuple(row["approvals"]),
        missing=tuple(row["missing"]),
        could_decide=tuple(Person(field=field, name=name) for field, name in row["could_decide"]),
        until=row["until"],
    )


def show_finding(row: Mapping[str, Any], texts: Mapping[str, str]) -> Found:
    names = (
        "kind",
        "severity",
        "blocks",
        "accepts_verdict",
        "field",
        "finder",
        "owner",
        "due",
        "open",
        "closed",
        "closed_by",
    )
    return Found(
        entry=row["index"],
        finding=texts.get("finding"),
        remedy=texts.get("remedy"),
        retest=texts.get("retest"),
        **{name: row[name] for name in names},
    )


def show_decision(row: Mapping[str, Any]) -> Decided:
    names = ("decision", "unit", "field", "reviewer", "valid_until", "again_by", "state", "superseded_by")
    conditions, place = row["conditions"], row["on_behalf_of"]
    return Decided(
        entry=row["index"],
        on_behalf_of=None if place is None else place["principal"],
        conditions=None
        if conditions is None
        else Conditions.model_validate({**conditions, "tasks": tuple(conditions["tasks"])}),
        **{name: row[name] for name in names},
    )
