"""Under which subjects an entry is found. The service writes what is derived here, the rules compare it whole."""

from __future__ import annotations

from appliance.domain.core.event import Event
from appliance.domain.core.order import Order

Signed = tuple[str, Order]
"""An order's PAE digest and the order."""


def subjects_of(body: Event, orders: tuple[Signed, ...] = ()) -> tuple[str, ...]:
    """Orders first, each with what it is about, then what the body names; each subject once."""
    if not orders:
        return body.named()
    found: dict[str, None] = {}
    for digest, order in orders:
        found[f"order:{digest}"] = None
        found.update(dict.fromkeys(order.about()))
    found.update(dict.fromkeys(body.named()))
    return tuple(found)
