"""The second person of a training run: what was ordered, shown, then authorised or refused."""

from __future__ import annotations

import click

from appliance.cli.runs.replays import parse_run
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, signs
from appliance.cli.support.output import say
from appliance.cli.support.signing import show_proposal, sign_and_submit, tell_receipt


@command("authorise", example="appliance run authorise r-000003")
@click.argument("name", metavar="RUN")
@signs
@click.pass_obj
def authorise(caller: Caller, name: str) -> None:
    """Let a run begin that waits for a second person: a reviewer or administrator.

    They must not have ordered it or imported its dataset.

    The order to train is shown before you sign, as its signer signed it.
    """
    from appliance.client.runs import propose_authorisation

    waiting = propose_authorisation(caller.reading(), caller.anchor, caller.signer, parse_run(name))
    show_proposal(waiting.ordered, f"The order of {waiting.ordered.order.signer}, entry {waiting.entry} of the log:")
    tell_receipt(caller, sign_and_submit(caller, waiting.proposal), [("authorised", name)])
    say(f"next: appliance run show {name} --follow")


@command("refuse", example="appliance run refuse r-000003 --reason 'The rows hold names.'")
@click.argument("name", metavar="RUN")
@click.option("--reason", required=True, metavar="TEXT", help="Why; can be erased later.")
@signs
@click.pass_obj
def refuse(caller: Caller, name: str, reason: str) -> None:
    """Refuse a run that waits for a second person. It never begins."""
    from appliance.client.runs import propose_authorisation

    waiting = propose_authorisation(caller.reading(), caller.anchor, caller.signer, parse_run(name), refusal=reason)
    show_proposal(waiting.ordered, f"The order of {waiting.ordered.order.signer}, entry {waiting.entry} of the log:")
    tell_receipt(caller, sign_and_submit(caller, waiting.proposal), [("refused", name)])
