"""Commands for orders that wait for a second administrator, and for order files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.administrators import check_short_code
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, REASON, with_session_options, with_signing_options
from appliance.cli.support.groups import order
from appliance.cli.support.output import plain, print_facts, print_json, print_result, print_table, say
from appliance.cli.support.signing import order_action, print_outcome, show_proposal, sign_and_submit
from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.client.support.orders import Pending
    from appliance.domain.core.order import Order


@order.command(
    "check",
    example="appliance order check review.order.json\nappliance order check review.order.json --proof rita.proof",
)
@click.argument("file", type=PATH)
@click.option(
    "--proof", type=PATH, metavar="FILE", help="The proof of the key that signed it: then no service is asked."
)
@with_session_options
def check_order(caller: Caller, file: Path, proof: Path | None) -> None:
    """Show what an order file from the console binds, as before signing. Run it on a machine that you trust.

    FILE is what the signing page saves, or the text of a statement. Compare `order` with the page before you sign. If
    the order is signed, its signature is checked, too, under the key that --proof proves or, without --proof, under the
    key that the service names. With --as, the (auto) values of a recipe are resolved again.
    """
    from appliance.client.support import orders
    from appliance.errors import Tampered

    if caller.trust_file is not None:
        _ = caller.about
    proposal, envelope = orders.read_order_file(file)
    order, facts = proposal.order, orders.identity_of(proposal.order)
    if not caller.json:
        show_proposal(proposal, "This file asks for a signature:" if envelope is None else "This file was signed:")
    if envelope is not None:
        holder = (
            orders.enrolled_key(caller.reading(), envelope, order) if proof is None else orders.proved_key(proof, order)
        )
        facts |= orders.check_signature(envelope, holder)
    if proposal.reported and caller.name is not None:
        problems = orders.resolve_again(caller.reading(), proposal)
        if problems:
            raise Tampered(f"recipe, resolved again: {'; '.join(problems)}")
        facts |= {"resolved again": "every (auto) value is what this machine makes of it"}
    print_result(caller.json, {"action": order.action, "statement": order, **facts}, facts.items())


@order.command("list", example="appliance order list")
@with_session_options
def list_orders(caller: Caller) -> None:
    """List the pending orders, who signed them and when they expire, and why some cannot take effect any more."""
    from appliance.client.support.orders import pending_orders

    waiting = pending_orders(caller.reading())
    if caller.json:
        print_json(
            [
                {
                    "digest": p.digest,
                    "index": p.index,
                    "blockers": p.blockers,
                    **p.proposal.order.model_dump(mode="json"),
                }
                for p in waiting
            ]
        )
        return
    print_table(
        ("order", "action", "signer", "about", "expires"),
        [
            (p.digest[:19], o.action, o.signer, ", ".join(o.about()), o.expires_at)
            for p in waiting
            for o in (p.proposal.order,)
        ],
        empty="No order waits for a second administrator.",
    )
    for one in waiting:
        say(*(f"{one.digest[:19]} cannot be countersigned any more: {plain(str(blocker))}" for blocker in one.blockers))


@order.command("show", example="appliance order show sha256:1f2e3d4c")
@click.argument("digest", required=False)
@with_session_options
def show_order(caller: Caller, digest: str | None) -> None:
    """Show everything that one pending order binds, from the bytes that its signer signed.

    DIGEST can be its first 6 digits or more. It can be left out if exactly one order waits that can still take effect.
    For a policy set it also shows what would change. The short code of an invited person's passkey is left out, since
    you ask the person for it.
    """
    from appliance.domain.actions.showing import describe
    from appliance.domain.governance.invitations import EnrolWithPasskey

    found = _find_pending(caller, digest)
    if caller.json:
        print_json({"digest": found.digest, "index": found.index, "order": found.proposal.order})
        return
    lines = describe(found.proposal)
    if isinstance(found.proposal.order, EnrolWithPasskey):
        lines = [line for line in lines if line[0] != "short code"]
    print_facts([*lines, ("digest", found.digest), ("entry", found.index)])
    _show_changes(caller, found)
    say(*_first_steps(found))


@order.command("countersign", example="appliance order countersign sha256:1f2e3d4c")
@click.argument("digest", required=False)
@click.option(
    "--short-code",
    metavar="CODE",
    help="If the order enrols an invited person: the passkey's short code, as the person reads it out to you.",
)
@with_signing_options
def countersign(caller: Caller, digest: str | None, short_code: str | None) -> None:
    """Countersign another administrator's order, which then takes effect.

    DIGEST can be its first 6 digits or more. It can be left out if exactly one order waits that can still take effect.
    Before you sign, you see what the order binds. An order that enrols an invited person asks for the short code first.
    """
    from appliance.domain.governance.invitations import EnrolWithPasskey

    found = _find_pending(caller, digest)
    if isinstance(found.proposal.order, EnrolWithPasskey):
        check_short_code(found.proposal.order.principal, found.proposal.order.keyid, short_code)
    elif short_code is not None:
        raise BadInput("short code: expected none, since the order enrols no invited person, got one; leave it out")
    order = found.proposal.order

    def show_subject() -> None:
        _show_order(found)
        _show_changes(caller, found)

    receipt = sign_and_submit(
        caller,
        caller.propose("countersign", {"order": found.digest}),
        _first_steps(found),
        successor=getattr(order, "log_key", None),
        show_subject=show_subject,
    )
    then = _next_steps(caller, order, receipt.index)
    print_outcome(caller, receipt, f"the order {order.action} of {order.signer} took effect", then)


@order.command("withdraw", example="appliance order withdraw sha256:1f2e3d4c --reason 'The role was wrong.'")
@click.argument("digest", required=False)
@REASON
@with_signing_options
def withdraw(caller: Caller, digest: str | None, reason: str | None) -> None:
    """Withdraw your own order that waits for a second administrator. It then ends without effect.

    DIGEST can be its first 6 digits or more. It can be left out if exactly one of your orders waits.
    """
    found = _find_pending(caller, digest, signer=caller.signer)
    order_action(
        caller,
        "withdraw-order",
        {"order": found.digest},
        f"the order {found.proposal.order.action} was withdrawn",
        texts={"reason": reason},
        show_subject=lambda: _show_order(found),
    )


def _find_pending(caller: Caller, digest: str | None, *, signer: str | None = None) -> Pending:
    """Return the pending order, proved to be in the log. `signer`: look for orders of this person alone."""
    from appliance.client.support.orders import find_pending, pending_orders, prove_pending

    connection = caller.reading()
    return prove_pending(connection, caller.anchor, find_pending(pending_orders(connection), digest, signer=signer))


def _show_order(found: Pending) -> None:
    show_proposal(found.proposal, f"The order of {found.proposal.order.signer}, entry {found.index} of the log:")


def _show_changes(caller: Caller, found: Pending) -> None:
    """Show what an order to adopt a policy set would change, from the bytes that the log binds."""
    if found.proposal.order.action != "adopt-policy":
        return
    from appliance.client.policies import list_ordered_changes

    changes, served = list_ordered_changes(caller.reading(), found)
    if served is not None:
        say(
            f"warning: the order's entry {found.index} names {found.policy} as the valid policy set, and the "
            f"service serves {served}. What follows is compared with the first."
        )
    say("What it changes of the valid set:", *map(plain, changes))


def _first_steps(found: Pending) -> list[str]:
    """Return what a person has to do before they countersign the order."""
    from appliance.cli.archives import compare_command
    from appliance.domain.retention import ArchiveLog

    if not isinstance(found.proposal.order, ArchiveLog):
        return []
    return [
        "Before you countersign, make an archive of your own and compare it, unless you have done so: "
        f"{compare_command(found.digest)}",
        "It is the same file to the byte if the order removes what it says. COPY is a new file.",
    ]


def _next_steps(caller: Caller, order: Order, entry: int) -> list[str]:
    """Return what people have to do after the order has taken effect with this entry."""
    from appliance.cli.people import after_post_quantum_keys, after_rotation, name_backups
    from appliance.domain.governance.keys import ReplaceKey
    from appliance.domain.governance.log_control import RotateLogKey
    from appliance.domain.governance.post_quantum import AddPostQuantumKeys
    from appliance.domain.retention import Erase

    if isinstance(order, RotateLogKey):
        return after_rotation(order.log_key, order.old_until)
    if isinstance(order, AddPostQuantumKeys):
        return after_post_quantum_keys(order.log_key)
    if isinstance(order, Erase):
        return name_backups(caller, -1, entry)
    if isinstance(order, ReplaceKey):
        return [f"From now on {order.principal} signs with the key {order.keyid}; the older ones sign nothing more."]
    return []
