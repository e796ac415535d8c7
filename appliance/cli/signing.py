"""A signature is asked for: everything it binds is shown first, then a yes, then the passphrase, then the receipt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from appliance.cli.caller import Caller
from appliance.cli.output import print_facts, say

if TYPE_CHECKING:
    from appliance.client.orders import Proposal, Receipt


def sign_and_submit(caller: Caller, proposal: Proposal, notes: Iterable[str] = ()) -> Receipt:
    return sign_all(caller, [proposal], notes)[0]


def sign_all(caller: Caller, proposals: Sequence[Proposal], notes: Iterable[str] = ()) -> list[Receipt]:
    """Shows every order before the first is signed; one yes and one passphrase for all of them."""
    from appliance.client import orders

    for proposal in proposals:
        show_proposal(proposal)
    say(*notes)
    count = len(proposals)
    caller.confirm("Sign this?" if count == 1 else f"Sign these {count} orders?")
    key = caller.unlocked
    receipts = []
    for proposal in proposals:
        receipt = orders.submit(caller.door, orders.sign(proposal, key), caller.anchor.log_key)
        say(f"signed: {receipt.type} is entry {receipt.index} of the log ({receipt.outcome}).")
        receipts.append(receipt)
    return receipts


def show_proposal(proposal: Proposal, title: str = "You are about to sign:") -> None:
    """On stderr, the way it is signed: no value is left out."""
    from appliance.client import orders

    say("", title, "")
    print_facts([(f"  {label}", value) for label, value in orders.describe(proposal)], err=True)
    say("", f"  What it means: {orders.MEANINGS[proposal.order.verb]}", "")


def receipt_value(receipt: Receipt) -> dict[str, Any]:
    """A receipt as JSON."""
    return {
        "index": receipt.index,
        "type": receipt.type,
        "outcome": receipt.outcome,
        "order": receipt.order,
        "result": receipt.result,
        "log_size": receipt.size,
    }
