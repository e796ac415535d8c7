"""By what a search of the log can be narrowed, and how many entries each of it would leave."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import get_args

from appliance.domain.core.entry import Outcome
from appliance.domain.core.names import SERVICE
from appliance.domain.rulebook.registry import EVENTS
from appliance.store.ledger.counts import Count, count_by
from appliance.store.ledger.search import Filters
from appliance.workflows.core.context import Context
from appliance.workflows.queries.log import LogFilters

MOST_ACTORS = 200
"""People and units that are counted, the first by name: a site has more units than fit a page."""
MOST_SHOWN = 12
_OF_ONE = ("order:", "request:")
"""Subjects that a few entries have at most: they narrow nothing."""


def count_facets(
    context: Context, filters: LogFilters, subjects: Sequence[str]
) -> tuple[Count, dict[str, list[Count]]]:
    """How many entries fit; and of what is not chosen yet, the values with their counts, the most first. `subjects`:
    those that are worth counting, since a log has more of them than can be."""
    principals = sorted(one.name for one in context.ledger.state.principals.values())[:MOST_ACTORS]
    units = [name for name in principals if _is_unit(context, name)]
    every: dict[str, Sequence[str]] = {
        "type": () if filters.type else sorted(EVENTS),
        "outcome": get_args(Outcome),
        "unit": () if filters.unit else units,
        "actor": () if filters.actor else (SERVICE, *principals),
        "subject": [one for one in dict.fromkeys(subjects) if one not in filters.subject and _narrows(one)],
    }
    facets = {name: values for name, values in every.items() if values}
    given = filters.model_dump(exclude={"type", "subject"})
    searched = Filters(types=filters.type, subjects=filters.subject, **given)  # type: ignore[typeddict-item]
    ledger = context.ledger
    found = ledger.ask(partial(count_by, unfiled=ledger.unfiled, totals=ledger.totals, filters=searched, facets=facets))
    # Every entry has one outcome.
    outcomes = found["outcome"]
    total = Count("", sum(one.count for one in outcomes), any(one.is_least for one in outcomes))
    chosen = {"outcome"} if filters.outcome else set()
    return total, {name: counts[:MOST_SHOWN] for name, counts in found.items() if counts and name not in chosen}


def _is_unit(context: Context, name: str) -> bool:
    principal = context.ledger.state.principals.get(name)
    return principal is not None and "unit" in principal.roles


def _narrows(subject: str) -> bool:
    return not subject.startswith((*_OF_ONE, "unit:"))
