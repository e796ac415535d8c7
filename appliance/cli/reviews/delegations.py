"""Delegations: a reviewer's field, given to another person for a time."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.output import print_json, print_table
from appliance.cli.support.signing import sign_and_submit, tell_receipt
from appliance.cli.support.times import END_HELP, parse_end


@group("delegation", example="appliance delegation list")
def delegation() -> None:
    """Who decides in a reviewer's place: add, list, end."""


@delegation.command("add", example="appliance delegation add dana --field privacy --until 7d")
@click.argument("principal", metavar="NAME")
@click.option("--field", required=True, metavar="FIELD", help="Yours.")
@click.option("--until", required=True, metavar="TIME", help=f"{END_HELP} Policy limits it.")
@signs
@click.pass_obj
def add(caller: Caller, principal: str, field: str, until: str) -> None:
    """Let another person decide in your place, until a time. Never an operator."""
    _delegate(caller, principal, field, parse_end(until, "until", datetime.now(UTC)))


@delegation.command("end", example="appliance delegation end dana --field privacy")
@click.argument("principal", metavar="NAME")
@click.option("--field", required=True, metavar="FIELD", help="Yours.")
@signs
@click.pass_obj
def end(caller: Caller, principal: str, field: str) -> None:
    """End a delegation before its time. What the person decided so far still counts."""
    _delegate(caller, principal, field, None)


def _delegate(caller: Caller, principal: str, field: str, until: str | None) -> None:
    from appliance.client.releases.decisions import propose_delegation

    receipt = sign_and_submit(caller, propose_delegation(caller.about, caller.signer, principal, field, until))
    tell_receipt(caller, receipt, [("delegate", principal), ("field", field), ("until", until or "ended")])


@delegation.command("list", example="appliance delegation list")
@reads
@click.pass_obj
def list_delegations(caller: Caller) -> None:
    """Every delegation that was not ended, including those that have expired."""
    rows = caller.reading().get("/v1/delegations")
    if caller.json:
        print_json(rows)
        return
    columns = ("delegator", "delegate", "field", "until", "entry")
    print_table(columns, [tuple(r[{"entry": "index"}.get(name, name)] for name in columns) for r in rows])
