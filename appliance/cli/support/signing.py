"""A signature is asked for: everything it binds is shown first, then a yes, then the passphrase, then the receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from appliance.cli.support.caller import Caller
from appliance.cli.support.output import print_facts, print_json, say

if TYPE_CHECKING:
    from appliance.client.support.orders import Receipt
    from appliance.domain.rulebook.proposals import Proposal


def sign_and_submit(
    caller: Caller, proposal: Proposal, notes: Iterable[str] = (), *, successor: str | None = None
) -> Receipt:
    return sign_all(caller, [proposal], notes, successor=successor)[0]


def sign_all(
    caller: Caller,
    proposals: Sequence[Proposal],
    notes: Iterable[str] = (),
    *,
    successor: str | None = None,
    show: Callable[[Sequence[Proposal]], None] | None = None,
) -> list[Receipt]:
    """Shows every order before the first is signed; one yes and one passphrase for all of them.

    What the service would refuse is refused before it is shown, where the command has a session to ask in.
    `successor`: the log's next key, where these orders put it in force. `show`: instead of one order after another.
    """
    from appliance.client.support import orders

    if caller.has_session:
        for proposal in proposals:
            orders.check(caller.reading(), proposal)
        notes = [*notes, *_twins(caller, proposals)]
    (show or show_each)(proposals)
    say(*notes)
    count = len(proposals)
    caller.confirm("Sign this?" if count == 1 else f"Sign these {count} orders?")
    key = caller.unlock("to sign this" if count == 1 else f"to sign these {count} orders")
    receipts = []
    for proposal in proposals:
        signed = orders.sign(proposal, key)
        caller.sending = signed.digest
        receipt = orders.submit(caller.door, signed, caller.anchor.log_key, successor=successor)
        caller.sending = None
        caller.signed.append(f"{receipt.type}, entry {receipt.index}")
        say(f"signed: {receipt.type} is entry {receipt.index} of the log ({receipt.outcome}).")
        receipts.append(receipt)
    return receipts


def _twins(caller: Caller, proposals: Sequence[Proposal]) -> list[str]:
    """A warning for each order that says what another says, which waits for a second administrator."""
    from appliance.client.support import orders

    return [
        f"warning: the same order by {twin.proposal.order.signer} already waits (entry {twin.index}); another "
        f"administrator endorses it with: appliance order endorse {twin.digest[:19]}"
        for proposal in proposals
        for twin in orders.waiting_twins(caller.reading(), proposal)
    ]


def show_each(proposals: Sequence[Proposal]) -> None:
    for proposal in proposals:
        show_proposal(proposal)


def show_proposal(proposal: Proposal, title: str = "You are about to sign:") -> None:
    """On stderr, the way it is signed: no value is left out."""
    from appliance.domain.rulebook.registry import VERBS
    from appliance.domain.rulebook.showing import describe

    say("", title, "")
    print_facts([(f"  {label}", value) for label, value in describe(proposal)], err=True)
    say("", f"  What it means: {VERBS[proposal.order.verb].means(proposal.order)}", "")


def tell(caller: Caller, receipt: Receipt, done: str, then: Iterable[str] = (), *, second: str | None = None) -> None:
    """What came of an order: done, and what follows from it; or what the second administrator types, `second` where
    that is not the usual."""
    if caller.json:
        print_json(receipt_value(receipt))
    elif receipt.outcome == "pending":
        print_facts([("order", receipt.order), ("entry", receipt.index), ("outcome", receipt.outcome)])
    else:
        print_facts([("done", done), ("entry", receipt.index)])
    if receipt.outcome == "pending":
        say(f"next: another administrator types: appliance {second or f'order endorse {receipt.order[:19]}'}")
    else:
        say(*then)


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


def tell_receipt(caller: Caller, receipt: Receipt, facts: list[tuple[str, object]]) -> None:
    """What came of an order, with its entry."""
    if caller.json:
        print_json(receipt_value(receipt))
        return
    print_facts([*facts, ("entry", receipt.index)])
