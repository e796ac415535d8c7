"""What stands around every page: whom it is for, where else to go, and how the log is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from appliance.domain.witnesses.cosignatures import unwitnessed
from appliance.web.console.core.page import Page, Value, Viewer
from appliance.web.console.core.render import seconds_since
from appliance.workflows.core.context import Context


class LogState(Value):
    """`against`: why nobody should rest on the log now; empty while it is as it should be. `is_behind`: that, or a
    witness that the policy names has not cosigned within its lifetime. `oldest_age_s`: of the last cosignatures of
    these witnesses; None where one never cosigned."""

    origin: str
    size: int
    last_age_s: float
    cosigned: int
    witnesses: int
    oldest_age_s: float | None
    against: tuple[str, ...]
    is_behind: bool


class Shell(Value):
    viewer: str
    roles: tuple[str, ...]
    until: str
    left_s: float
    csrf: str
    groups: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    """By group: path, title and symbol of each page that the viewer may see."""
    log: LogState


def log_state(context: Context) -> LogState:
    """From the fold and the policy in force: the database is not asked."""
    state = context.ledger.state
    now, rules = context.now(state), state.parameters
    seen = [one for one in state.witnesses.values() if one.vkey in rules.witnesses]
    ages = sorted(seconds_since(one.time, now) for one in seen)
    against = [*unwitnessed(state, now), *(error.message for error in context.missing_from_log)]
    against += ["heartbeat: expected one each minute, got one that hangs"] if context.stalled else []
    cosigned = sum(age <= rules.witness_lifetime_s for age in ages)
    return LogState(
        origin=state.site.origin,
        size=state.size,
        last_age_s=seconds_since(state.last_time, now),
        cosigned=cosigned,
        witnesses=len(rules.witnesses),
        oldest_age_s=ages[-1] if ages and len(ages) == len(rules.witnesses) else None,
        against=tuple(against),
        is_behind=bool(against) or cosigned < len(rules.witnesses),
    )


def make_shell(context: Context, viewer: Viewer, pages: Sequence[Page]) -> Shell:
    listed = [page for page in pages if page.group and viewer.has(*page.seen_by)]
    groups = tuple(
        (group, tuple((page.path, page.title, page.symbol) for page in found))
        for group, found in groupby(listed, key=lambda page: page.group)
    )
    return Shell(
        viewer=viewer.name,
        roles=viewer.roles,
        until=viewer.until,
        left_s=seconds_since(context.now(context.ledger.state), viewer.until),
        csrf=viewer.csrf,
        groups=groups,
        log=log_state(context),
    )
