"""Orders that wait for a second administrator, whole: everything that the second would sign for."""

from __future__ import annotations

import base64

from appliance.formats.core.canonical import encode_canonical
from appliance.web.console.auditors.entry import read_order
from appliance.web.console.core.page import PEOPLE, Page, Query, Table, Value, Viewer
from appliance.web.console.core.why import Reason, explain_reasons
from appliance.workflows.core.context import Context
from appliance.workflows.queries.people import pending_orders, waiting_for


class OrderRow(Value):
    """`mine`: the viewer can endorse it; `against`: why nobody can any more. `documents`: what it binds, by role and
    size."""

    digest: str
    verb: str
    signer: str
    entry: int
    expires_at: str
    meaning: str | None
    lines: tuple[tuple[str, str], ...]
    documents: tuple[tuple[str, int], ...]
    against: tuple[Reason, ...]
    mine: bool


class Orders(Value):
    orders: tuple[OrderRow, ...]


def orders(context: Context, viewer: Viewer, query: Query) -> Orders:
    mine = {one["order"] for one in waiting_for(context, viewer.name)}
    rows = []
    for one in pending_orders(context):
        texts = {text["commitment"]: text["text"] for text in one["disclosures"]}
        meaning, lines = read_order(encode_canonical(one["envelope"]), texts)
        rows.append(
            OrderRow(
                digest=one["digest"],
                verb=one["verb"],
                signer=one["signer"],
                entry=one["index"],
                expires_at=one["expires_at"],
                meaning=meaning,
                lines=lines,
                documents=tuple((role, len(base64.b64decode(data))) for role, data in one["documents"].items()),
                against=explain_reasons(tuple(one["against"])),
                mine=one["digest"] in mine,
            )
        )
    return Orders(orders=tuple(rows))


def _table(value: Orders) -> Table:
    headers = ("digest", "verb", "signer", "entry", "expires_at")
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.orders])


PAGE = Page("/orders", "Waiting orders", PEOPLE, Query, orders, "administrators/orders.html", _table, "Site", "order")
