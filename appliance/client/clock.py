"""The log's time and the host's, and the order that sets the first back to the second.

It is asked for without a session: under a clock that is behind none can be opened, since its opening is an entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.client.support.door import About, Door
from appliance.client.support.orders import Pending, check_origin, parse_pending, propose
from appliance.domain.governance.clock import ResetClock
from appliance.domain.rulebook.proposals import Proposal
from appliance.errors import NotFound, Tampered


@dataclass(frozen=True)
class ClockAnswer:
    """`last`: the time of the log's last entry; `now`: the host's; `is_behind`: nothing is recorded until it is set
    right or reset; `waiting`: orders to reset it that wait for a second administrator."""

    last: str
    now: str
    is_behind: bool
    waiting: tuple[Pending, ...]


def read_clock(door: Door) -> ClockAnswer:
    answer: dict[str, Any] = door.call("GET", "/v1/clock", reading=False)
    waiting = tuple(parse_pending(row) for row in answer["waiting"])
    for pending in waiting:
        check_origin(pending.proposal.order, door.about.origin)
        if not isinstance(pending.proposal.order, ResetClock):
            raise Tampered(f"clock, order {pending.digest}: expected reset-clock, got {pending.proposal.order.verb}")
    return ClockAnswer(str(answer["last"]), str(answer["now"]), bool(answer["behind"]), waiting)


def propose_reset(about: About, signer: str, clock: ClockAnswer) -> Proposal:
    return propose(about, signer, ResetClock, {"last": clock.last})


def find_reset(clock: ClockAnswer) -> Pending:
    """The newest order that waits and names the log's last entry."""
    for pending in reversed(clock.waiting):
        order = pending.proposal.order
        if isinstance(order, ResetClock) and order.last == clock.last:
            return pending
    raise NotFound("clock: expected an order to reset it, got none; an administrator types: appliance clock reset")
