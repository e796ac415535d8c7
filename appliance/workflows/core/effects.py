"""What the service does for an order beside recording it: one row a verb, declared where the work is done.

`workflows/orders.py` collects the rows. What every verb has in common, such as two administrators or a document beside
the order, stands in the rulebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from appliance.domain.core.order import Order
from appliance.domain.core.signatures import Accepted
from appliance.workflows.core.context import Context


@dataclass(frozen=True)
class Effect:
    order: type[Order]
    ready: Callable[[Context, Any], None] | None = None
    """(context, order): raises, before anything is recorded, where the service lacks what the order needs."""
    attached: Callable[[Context, bytes], None] | None = None
    """(context, document): raises where the document beside the order could not take effect here."""
    start: Callable[[Context, Accepted], None] | None = None
    """(context, order) after the append: begins what was ordered."""
    local: bool = False
    """Whether the process that took the order does the work, since only it has what was sent for it."""


def lease_of(order: str) -> str:
    """What the process owns that does the work of this order."""
    return f"order:{order}"
