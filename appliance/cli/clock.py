"""A clock that ran ahead and was set right: two administrators set the log's time back to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, shares, signs
from appliance.cli.support.output import print_facts, print_json
from appliance.cli.support.signing import show_proposal, sign_and_submit, tell
from appliance.errors import Conflict

if TYPE_CHECKING:
    from appliance.client.clock import ClockAnswer
    from appliance.client.support.door import Door


@group("clock", example="appliance clock show")
def clock() -> None:
    """The log's time and the host's: show both, and reset the log's time after the host's clock ran ahead."""


@clock.command("show", example="appliance clock show")
@shares
@click.pass_obj
def show(caller: Caller) -> None:
    """The last entry's time and the host's, and whether anything can be recorded. Needs no key."""
    from appliance.client.clock import read_clock

    found = read_clock(_door(caller))
    if caller.json:
        waiting = [pending.digest for pending in found.waiting]
        print_json({"last": found.last, "now": found.now, "behind": found.is_behind, "waiting": waiting})
        return
    print_facts(_facts(found))


@clock.command("reset", example="appliance clock reset")
@signs
@click.pass_obj
def reset(caller: Caller) -> None:
    """Set the log's time back to the host's clock, once that is right. Needs two administrators.

    What had lapsed by the last entry's time stays lapsed. Earlier orders, sessions and tokens become invalid.
    """
    from appliance.client.clock import propose_reset

    found = _behind(caller)
    proposal = propose_reset(caller.about, caller.signer, found)
    receipt = sign_and_submit(caller, proposal, _notes(found))
    tell(caller, receipt, "the log's time is the host's", second="clock endorse")


@clock.command("endorse", example="appliance clock endorse")
@signs
@click.pass_obj
def endorse(caller: Caller) -> None:
    """Sign the other administrator's order to reset the clock, which then takes effect."""
    from appliance.client.clock import find_reset
    from appliance.client.support.orders import propose_endorsement

    found = _behind(caller)
    first = find_reset(found)
    show_proposal(first.proposal, f"The order of {first.proposal.order.signer}, entry {first.index} of the log:")
    receipt = sign_and_submit(caller, propose_endorsement(caller.about, caller.signer, first), _notes(found))
    tell(caller, receipt, "the log's time is the host's")


def _door(caller: Caller) -> Door:
    """Without a session: where nothing can be recorded none can be opened. An embedded service is started."""
    _ = caller.claimed
    return caller.door


def _behind(caller: Caller) -> ClockAnswer:
    from appliance.client.clock import read_clock

    found = read_clock(_door(caller))
    if not found.is_behind:
        raise Conflict(f"clock: expected one that is behind the last entry, {found.last}, got {found.now}")
    return found


def _facts(found: ClockAnswer) -> list[tuple[str, object]]:
    waiting = ", ".join(f"{p.digest[:19]} by {p.proposal.order.signer}" for p in found.waiting) or "none"
    recorded = "nothing, until the clock is set or reset" if found.is_behind else "yes"
    return [("last entry", found.last), ("host's clock", found.now), ("recorded", recorded), ("waiting", waiting)]


def _notes(found: ClockAnswer) -> list[str]:
    return [
        f"  The log's last entry is dated {found.last}.",
        f"  The host's clock says          {found.now}. Compare it with a clock that you trust before you sign.",
    ]
