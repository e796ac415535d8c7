"""What adapters were made of is taken out of service, and every adapter made of it falls with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, signs
from appliance.cli.support.output import print_facts, print_json
from appliance.cli.support.signing import receipt_value, sign_and_submit

if TYPE_CHECKING:
    from appliance.domain.rulebook.proposals import Proposal

_REASON = click.option("--reason", metavar="TEXT", help="Why, in your words; can be erased later.")


@command("revoke", example="appliance base revoke smollm2 --reason 'Its licence does not allow this use.'")
@click.argument("name", metavar="NAME")
@_REASON
@signs
@click.pass_obj
def revoke_base(caller: Caller, name: str, reason: str | None) -> None:
    """Take a base out of service at once, with every adapter and every run on it, for every unit, for ever.

    One administrator or reviewer is enough: taking away is always easier than giving.
    """
    from appliance.client.releases.reviews import propose_base_revocation

    _sign(caller, name, propose_base_revocation(caller.reading(), caller.anchor, caller.signer, name, reason))


@command("revoke", example="appliance dataset revoke clauses@1 --reason 'Its owner has withdrawn it.'")
@click.argument("name", metavar="NAME@VERSION")
@_REASON
@signs
@click.pass_obj
def revoke_dataset(caller: Caller, name: str, reason: str | None) -> None:
    """Take a dataset out of service at once, with every adapter and every run on it, for every unit, for ever.

    One administrator or reviewer is enough: taking away is always easier than giving.
    """
    from appliance.client.releases.reviews import propose_dataset_revocation

    _sign(caller, name, propose_dataset_revocation(caller.reading(), caller.anchor, caller.signer, name, reason))


@command("revoke", example="appliance validation-set revoke exam@1 --reason 'Two of its labels are wrong.'")
@click.argument("name", metavar="NAME@VERSION")
@_REASON
@signs
@click.pass_obj
def revoke_set(caller: Caller, name: str, reason: str | None) -> None:
    """Take a validation set out of use at once. Runs that wait for it fail, and approvals that rest on it go stale.

    One validator, administrator or reviewer is enough: taking away is always easier than giving.
    """
    from appliance.client.releases.reviews import propose_set_revocation

    _sign(caller, name, propose_set_revocation(caller.reading(), caller.anchor, caller.signer, name, reason))


def _sign(caller: Caller, name: str, proposal: Proposal) -> None:
    receipt = sign_and_submit(caller, proposal)
    if caller.json:
        print_json(receipt_value(receipt))
        return
    print_facts([("revoked", name), ("entry", receipt.index)])
