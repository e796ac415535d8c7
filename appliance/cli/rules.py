"""The rules version that entries are judged by: show it, raise it at an upgrade."""

from __future__ import annotations

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.output import print_facts, print_json
from appliance.cli.support.signing import sign_and_submit, tell


@group("rules", example="appliance rules show")
def rules() -> None:
    """The rules version that entries are judged by: show, raise."""


@rules.command("show", example="appliance rules show")
@reads
@click.pass_obj
def show(caller: Caller) -> None:
    """The version in force, the entry that put it there, and the newest that this appliance knows."""
    from appliance.client.rules import rules_in_force

    found = rules_in_force(caller.reading())
    if caller.json:
        print_json({"version": found.version, "newest": found.newest, "entry": found.entry})
        return
    print_facts([("in force", found.version), ("since entry", found.entry), ("newest known", found.newest)])


@rules.command("raise", example="appliance rules raise 2")
@click.argument("version", type=int)
@signs
@click.pass_obj
def raise_(caller: Caller, version: int) -> None:
    """Put a later version in force, after an upgrade. Needs two administrators; it cannot be undone.

    An older build refuses the log from then on. Earlier entries keep their verdict.
    """
    from appliance.client.rules import propose_rules

    proposal = propose_rules(caller.about, caller.signer, version)
    tell(caller, sign_and_submit(caller, proposal), f"rules version {version} is in force")
