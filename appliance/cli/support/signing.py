"""Signing of orders: show all that is bound, ask for a yes and the passphrase, submit, and print the receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from appliance.cli.support.caller import Caller
from appliance.cli.support.output import print_facts, print_result, say

if TYPE_CHECKING:
    from appliance.api.releases import Review
    from appliance.client.support.orders import Receipt, SignedOrder
    from appliance.domain.actions.proposals import Proposal
    from appliance.formats.signatures.keys import Ed25519Signer


Facts = Sequence[tuple[str, object]]
"""Labels and values, one a line."""


def sign_and_submit(
    caller: Caller,
    proposal: Proposal,
    notes: Iterable[str] = (),
    *,
    successor: str | None = None,
    show_subject: Callable[[], None] | None = None,
) -> Receipt:
    """Sign one order and submit it. Return its receipt. The options are those of `sign_all`."""
    return sign_all(caller, [proposal], notes, successor=successor, show_subject=show_subject)[0]


def sign_all(
    caller: Caller,
    proposals: Sequence[Proposal],
    notes: Iterable[str] = (),
    *,
    successor: str | None = None,
    show: Callable[[Sequence[Proposal]], None] | None = None,
    show_subject: Callable[[], None] | None = None,
) -> list[Receipt]:
    """Show all orders, ask for one yes and one passphrase, then sign and submit each. Return the receipts.

    If the command has a session, the service checks the orders before they are shown. `successor` is the next log key,
    if these orders make it valid. `show` replaces showing one order after another. `show_subject` shows what the orders
    are about, such as an adapter's evidence, before them.

    Raises: Denied, before anything is shown, if the service would refuse an order.
    """
    from appliance.client.support import orders

    check_all(caller, proposals)
    if caller.has_session:
        notes = [*notes, *_warn_of_equal_orders(caller, proposals)]
    if show_subject is not None:
        show_subject()
    (show or show_each)(proposals)
    say(*notes)
    count = len(proposals)
    caller.confirm("Sign this?" if count == 1 else f"Sign these {count} orders?")
    key = caller.unlock("to sign this" if count == 1 else f"to sign these {count} orders")
    receipts = []
    for proposal in proposals:
        signed = orders.sign(proposal, key)
        caller.sending = signed.digest
        receipt = orders.submit(caller.connection, signed, caller.anchor.log_keys, successor=successor)
        caller.sending = None
        caller.signed.append(f"{receipt.type}, entry {receipt.index}")
        say(f"signed: {receipt.type} is entry {receipt.index} of the log ({receipt.outcome}).")
        receipts.append(receipt)
    if successor is None:
        caller.save_newest_checkpoint()
    return receipts


def check_all(caller: Caller, proposals: Sequence[Proposal]) -> None:
    """Let the service check the orders, if the command has a session.

    Raises: Denied with all refusal reasons if the service would refuse an order.
    """
    from appliance.client.support import orders

    if caller.has_session:
        for proposal in proposals:
            orders.check(caller.reading(), proposal)


def sign_only(caller: Caller, proposal: Proposal, notes: Iterable[str] = ()) -> tuple[SignedOrder, Ed25519Signer]:
    """Show one order, ask for a yes and the passphrase, and sign it. Return it with the key; it is not submitted."""
    from appliance.client.support import orders

    show_proposal(proposal)
    say(*notes)
    caller.confirm("Sign this?")
    key = caller.unlock("to sign this")
    return orders.sign(proposal, key), key


def _warn_of_equal_orders(caller: Caller, proposals: Sequence[Proposal]) -> list[str]:
    """Return a warning for each order whose content equals a pending order of another administrator."""
    from appliance.client.support import orders

    return [
        f"warning: the same order by {twin.proposal.order.signer} already waits (entry {twin.index}); another "
        f"administrator countersigns it with: appliance order countersign {twin.digest[:19]}"
        for proposal in proposals
        for twin in orders.find_equal_pending_orders(caller.reading(), proposal)
    ]


def show_each(proposals: Sequence[Proposal]) -> None:
    """Show one order after another."""
    for proposal in proposals:
        show_proposal(proposal)


def show_proposal(proposal: Proposal, title: str = "You are about to sign:") -> None:
    """Show an order on stderr as it is signed, with all values."""
    from appliance.domain.actions.registry import ACTIONS
    from appliance.domain.actions.showing import describe

    say("", title, "")
    print_facts([(f"  {label}", value) for label, value in describe(proposal)], err=True)
    say("", f"  What it means: {ACTIONS[proposal.order.action].explain(proposal.order)}", "")


def order_action(
    caller: Caller,
    action: str,
    values: Mapping[str, Any],
    done: str | Facts,
    then: Iterable[str] = (),
    *,
    texts: Mapping[str, str | None] | None = None,
    documents: Mapping[str, bytes] | None = None,
    notes: Iterable[str] = (),
    successor: str | None = None,
    show_subject: Callable[[], None] | None = None,
    opens_session: bool = False,
    following: str | None = None,
) -> Receipt:
    """Complete the order of an action, show it, sign it, submit it and print its result. Return its receipt.

    With `opens_session` the service checks the order before it is shown, even if completing it needed no session. The
    other options are those of `Caller.propose`, `sign_all` and `print_outcome`.
    """
    proposal = caller.propose(action, values, texts=texts, documents=documents)
    if opens_session:
        caller.reading()
    receipt = sign_and_submit(caller, proposal, notes, successor=successor, show_subject=show_subject)
    print_outcome(caller, receipt, done, then, following=following)
    return receipt


def print_outcome(
    caller: Caller, receipt: Receipt, done: str | Facts, then: Iterable[str] = (), *, following: str | None = None
) -> None:
    """Print the result of an order: `done` and then `then`, or the next step if a second administrator has to sign.

    `following` is that next step, if it is not the usual one.
    """
    if receipt.outcome == "pending":
        print_receipt(caller, receipt)
        usual = f"another administrator types: appliance order countersign {receipt.order[:19]}"
        say(f"next: {following or usual}")
        return
    facts = [("done", done)] if isinstance(done, str) else done
    print_result(caller.json, receipt, [*facts, ("entry", receipt.index)])
    say(*then)


def print_receipt(caller: Caller, receipt: Receipt) -> None:
    """Print an order's digest, its entry, and the entry's outcome."""
    print_result(
        caller.json, receipt, [("order", receipt.order), ("entry", receipt.index), ("outcome", receipt.outcome)]
    )


GONE = "its text was erased, or the service withholds it"


def state_of(review: Review) -> str:
    """Return the state of a review in words."""
    from appliance.domain.releases.approval import describe_state

    return describe_state(review.state, review.superseded_by, review.valid_until)


def until_of(valid_until: str | None) -> str:
    """Return the end of a review in words, or "" without one."""
    return "" if valid_until is None else f" until {valid_until}"


def decision_of(review: Review) -> str:
    """Return a review as one cell of a table."""
    return f"{review.decision} for {review.unit}, {review.review_function}: {state_of(review)}"
