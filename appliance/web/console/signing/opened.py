"""An approval in the browser: its session has fetched the parts of the review page first, and the order says which.

It proves no more than that: nobody knows what was read. The service compares what the order says with what it noted.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.domain.core.decisions import APPROVALS, PARTS, Opened
from appliance.domain.releases.page.parts import open_parts
from appliance.domain.releases.reviews import Review
from appliance.errors import BadInput, Denied, NotFound, Tampered
from appliance.workflows.core.context import Context
from appliance.workflows.releases.page import review_page
from appliance.workflows.releases.review import find_adapter


def opened_by(context: Context, adapter: str, decision: str, fetched: Mapping[str, str]) -> tuple[Opened, ...]:
    """What the order is to say: the parts that this session fetched as they still are. Denied where an approval lacks
    one. `fetched`: the digest of each part when it was."""
    find_adapter(context.ledger.state, adapter)
    found = _still(context, adapter, fetched)
    if decision in APPROVALS and (reasons := _missing(found, fetched)):
        raise Denied(f"approval of {adapter}", reasons=reasons, code="not-opened")
    return found


def against_opened(context: Context, order: Review, fetched: Mapping[str, str]) -> tuple[str, ...]:
    """Why what the order says is not so: of an approval now, and of another decision when it was prepared."""
    said = {one.part for one in order.opened}
    if order.decision not in APPROVALS:
        return tuple(_reason(part, {}) for part in sorted(said - fetched.keys()))
    found = _still(context, order.name, fetched)
    if reasons := _missing(found, fetched):
        return reasons
    return () if order.opened == found else ("opened: expected the parts as this session fetched them, got others",)


def _still(context: Context, adapter: str, fetched: Mapping[str, str]) -> tuple[Opened, ...]:
    try:
        now = open_parts(review_page(context, adapter))
    except (BadInput, NotFound, Tampered):
        return ()  # nothing can be opened
    return tuple(one for one in now if fetched.get(one.part) == one.digest)


def _missing(found: tuple[Opened, ...], fetched: Mapping[str, str]) -> tuple[str, ...]:
    there = {one.part for one in found}
    return tuple(_reason(part, fetched) for part in PARTS if part not in there)


def _reason(part: str, fetched: Mapping[str, str]) -> str:
    got = "one that has changed since it was" if part in fetched else "none that was"
    return f"opened, {part}: expected this tab of the adapter's page to be opened in this session, got {got}"
