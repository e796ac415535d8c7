"""Administrators: they make the appliance, enrol people, and need each other's signature."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, group, reads, shares, signs
from appliance.cli.support.output import plain, print_facts, print_json, print_line, print_table, say
from appliance.cli.support.signing import show_proposal, sign_and_submit, tell
from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.client.support.orders import Pending
    from appliance.domain.core.order import Order

_FILE = click.Path(path_type=Path)


@command(
    "init",
    example=(
        "appliance init --administrator alice=alice.pub --administrator bob=bob.pub --output /media/usb/trust.json"
    ),
)
@click.option(
    "--administrator", "administrators", multiple=True, required=True, metavar="NAME=FILE", help="Name and public key."
)
@click.option(
    "--single-admin",
    is_flag=True,
    help="For trials: one administrator decides alone. The log records this permanently.",
)
@click.option("--origin", metavar="LOG", help="The log's permanent name, such as appliance.example.org/1.")
@click.option("--policy", type=_FILE, metavar="FOLDER", help="The first policy set. Default: policies/default.")
@click.option(
    "--output", type=_FILE, metavar="FILE", help="Also write the trust file here, on another machine or medium."
)
@shares
@click.pass_obj
def init(
    caller: Caller,
    administrators: tuple[str, ...],
    single_admin: bool,
    origin: str | None,
    policy: Path | None,
    output: Path | None,
) -> None:
    """Make an appliance in its data folder: the service's keys, the database, the first policy set.

    Takes the public keys of two administrators and prints the trust file: keep it elsewhere, since every later
    verification starts from it.
    """
    from appliance import wiring
    from appliance.client.policies import load_policy
    from appliance.client.support.files import check_place, write_new
    from appliance.formats.log.trust import encode_trust

    people = [_parse_administrator(text) for text in administrators]
    if single_admin != (len(people) == 1):
        raise BadInput(
            f"administrators: expected two or more, or one with --single-admin, got {len(people)}"
            f"{' with --single-admin' if single_admin else ''}"
        )
    if output is not None:
        check_place(output, "trust file")
    trust = wiring.init(
        caller.settings,
        [wiring.Person(name, spki) for name, spki in people],
        origin=origin,
        single_administrator=single_admin,
        policy=load_policy(policy or _default_policy()).data,
    )
    data = encode_trust(trust)
    print_line(data.decode("utf-8").rstrip("\n"))
    if output is not None:
        write_new(output, data, "trust file", 0o644)
        say(f"wrote the trust file to {output}")
    say(
        f"made the appliance {trust.origin} in {caller.settings.home}",
        "Keep the trust file (the line on stdout) on another machine: every verification starts from it.",
        "next: each person makes a key and proves it: appliance key new FILE, then: appliance key prove --as NAME",
    )


def _parse_administrator(text: str) -> tuple[str, bytes]:
    from appliance.client.support.keys import read_public_key
    from appliance.formats.core.fields import parse_identifier

    name, separator, file = text.partition("=")
    if not separator or not file:
        raise BadInput(f"administrator: expected NAME=FILE with a public key (appliance key new FILE), got {text!r}")
    return parse_identifier(name, "administrator"), read_public_key(Path(file))


def _default_policy() -> Path:
    return Path(__file__).resolve().parents[2] / "policies" / "default"


@group("principal", example="appliance principal list")
def principal() -> None:
    """People and units: enrol, list, grant a role, revoke."""


@principal.command(
    "enroll",
    example=(
        "appliance principal enroll ada --proof ada.proof --printed-name 'Ada Byron' --role reviewer:privacy\n"
        "appliance principal enroll --folder newcomers"
    ),
)
@click.argument("name", required=False)
@click.option("--proof", type=_FILE, metavar="FILE", help="The person's proof, made with: appliance key prove")
@click.option("--printed-name", metavar="TEXT", help="The name as signatures show it; can be erased later.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    metavar="ROLE",
    help="administrator, operator, validator, auditor, unit, reviewer:FIELD or release-owner:UNIT.",
)
@click.option("--folder", type=_FILE, metavar="FOLDER", help="Several by one order: people.csv and a NAME.proof each.")
@signs
@click.pass_obj
def enroll(
    caller: Caller,
    name: str | None,
    proof: Path | None,
    printed_name: str | None,
    roles: tuple[str, ...],
    folder: Path | None,
) -> None:
    """Enrol a person or a unit with the key that they proved, or everybody in a folder. Needs two administrators.

    The folder's people.csv has the header name,printed_name,roles and a line for each. Several roles are separated by
    spaces. All of them are enrolled, or none.
    """
    from appliance.client.people import propose_enrolment, propose_enrolments

    if folder is not None:
        _expect_folder_alone(name, proof, printed_name, roles)
        proposal = propose_enrolments(caller.about, caller.signer, folder)
    elif name is None or proof is None or printed_name is None or not roles:
        raise BadInput("principal enroll: expected NAME with --proof, --printed-name and --role, or --folder")
    else:
        proposal = propose_enrolment(caller.about, caller.signer, name, printed_name, roles, proof)
    caller.reading()
    receipt = sign_and_submit(
        caller, proposal, ["Each key's own signature holds. Let each person read out the key id."]
    )
    tell(caller, receipt, f"{name} is enrolled" if folder is None else f"everybody in {folder} is enrolled")


def _expect_folder_alone(*single: object) -> None:
    if any(single):
        raise BadInput(
            "principal enroll: expected --folder alone, whose people.csv has names and roles, got another beside it"
        )


@principal.command("list", example="appliance principal list --json")
@reads
@click.pass_obj
def list_principals(caller: Caller) -> None:
    """All people and units that were ever enrolled, with roles and key ids."""
    rows = caller.reading().get("/v1/principals")
    if caller.json:
        print_json(rows)
        return
    print_table(
        ("name", "printed name", "roles", "key id", "enrolled", "revoked"),
        [
            (r["name"], r["printed_name"], ", ".join(r["roles"]), r["keyid"][:19], r["enrolled"], r["revoked"])
            for r in rows
        ],
    )


@principal.command("grant", example="appliance principal grant ada reviewer:privacy")
@click.argument("name")
@click.argument("role")
@signs
@click.pass_obj
def grant(caller: Caller, name: str, role: str) -> None:
    """Give a person one more role. Needs two administrators."""
    from appliance.client.support.orders import propose
    from appliance.domain.governance.people import Grant

    proposal = propose(caller.about, caller.signer, Grant, {"principal": name, "role": role})
    caller.reading()
    tell(caller, sign_and_submit(caller, proposal), f"{name} is {role}")


@principal.command("revoke", example="appliance principal revoke mallory --reason 'left the firm'")
@click.argument("name")
@click.option("--reason", metavar="TEXT", help="Why, in your words; can be erased later.")
@signs
@click.pass_obj
def revoke(caller: Caller, name: str, reason: str | None) -> None:
    """Take all rights from a person or a unit at once. One administrator is enough; it cannot be undone."""
    from appliance.client.support.orders import propose
    from appliance.domain.governance.people import RevokePrincipal

    texts = {} if reason is None else {"reason": reason}
    proposal = propose(caller.about, caller.signer, RevokePrincipal, {"principal": name}, texts=texts)
    tell(caller, sign_and_submit(caller, proposal), f"{name} is revoked")


@principal.command(
    "replace-key", example="appliance principal replace-key ada --proof ada2.proof --reason 'the old one was lost'"
)
@click.argument("name")
@click.option(
    "--proof", type=_FILE, metavar="FILE", required=True, help="The person's proof, made with: appliance key prove"
)
@click.option("--reason", metavar="TEXT", help="Why, in your words; can be erased later.")
@signs
@click.pass_obj
def replace_key(caller: Caller, name: str, proof: Path, reason: str | None) -> None:
    """Give a person a new key, because theirs is lost; the old ones end at once. Needs two administrators.

    People who still have their key replace it alone: appliance key rotate. If another person may have used a key,
    revoke it too: appliance key revoke.
    """
    from appliance.client.people import propose_replacement

    proposal = propose_replacement(caller.about, caller.signer, name, proof, reason)
    receipt = sign_and_submit(caller, proposal, ["The key's own signature holds. Let the person read out the key id."])
    tell(caller, receipt, f"{name} has another key")


@principal.command("enroll-passkey", example="appliance principal enroll-passkey rita --proof rita-blue.proof")
@click.argument("name")
@click.option(
    "--proof", type=_FILE, metavar="FILE", required=True, help="The proof that the person downloaded in the console."
)
@signs
@click.pass_obj
def enroll_passkey(caller: Caller, name: str, proof: Path) -> None:
    """Let a person also sign with a passkey, at the addresses that its proof names. Needs two administrators.

    The person makes the passkey and its proof in the console. Their other keys stay.
    """
    from appliance.client.people import propose_passkey

    proposal = propose_passkey(caller.about, caller.signer, name, proof)
    caller.reading()
    notes = ["The passkey's own assertion holds. Let the person read out the key id."]
    tell(caller, sign_and_submit(caller, proposal, notes), f"{name} has another passkey")


@group("order", example="appliance order list")
def order() -> None:
    """Orders: those that wait for a second administrator, and those in a file."""


@order.command(
    "check",
    example="appliance order check review.order.json\nappliance order check review.order.json --proof rita.proof",
)
@click.argument("file", type=_FILE)
@click.option(
    "--proof", type=_FILE, metavar="FILE", help="The proof of the key that signed it: then no service is asked."
)
@reads
@click.pass_obj
def check_order(caller: Caller, file: Path, proof: Path | None) -> None:
    """Show what a file from the console binds, as before signing. Run it on a machine that you trust.

    FILE is what the signing page saves, or the text of a statement. Compare `order` with the page before you sign. Of a
    signed order the signature is checked, too, under the key that --proof proves or, without it, that the service
    names. With --as, what a recipe left to the appliance is resolved again.
    """
    from appliance.client.support import order_files
    from appliance.errors import Tampered

    if caller.trust_file is not None:
        _ = caller.about
    proposal, envelope = order_files.read_order_file(file)
    order, facts = proposal.order, order_files.identity_of(proposal.order)
    if not caller.json:
        show_proposal(proposal, "This file asks for a signature:" if envelope is None else "This file was signed:")
    if envelope is not None:
        holder = (
            order_files.enrolled_key(caller.reading(), envelope, order)
            if proof is None
            else order_files.proved_key(proof, order)
        )
        facts |= order_files.check_signature(envelope, holder)
    if proposal.resolved and caller.name is not None:
        problems = order_files.resolve_again(caller.reading(), proposal)
        if problems:
            raise Tampered(f"recipe, resolved again: {'; '.join(problems)}")
        facts |= {"resolved again": "every (auto) value is what this machine makes of it"}
    if caller.json:
        print_json({"verb": order.verb, "statement": order.model_dump(mode="json"), **facts})
    else:
        print_facts(list(facts.items()))


@order.command("list", example="appliance order list")
@reads
@click.pass_obj
def list_orders(caller: Caller) -> None:
    """What waits, who ordered it, and when it expires; and what can no longer be carried out, with the reason."""
    from appliance.client.support.orders import pending_orders

    waiting = pending_orders(caller.reading())
    if caller.json:
        print_json(
            [
                {
                    "digest": p.digest,
                    "index": p.index,
                    "against": list(p.against),
                    **p.proposal.order.model_dump(mode="json"),
                }
                for p in waiting
            ]
        )
        return
    print_table(
        ("order", "verb", "signer", "about", "expires"),
        [
            (p.digest[:19], o.verb, o.signer, ", ".join(o.about()), o.expires_at)
            for p in waiting
            for o in (p.proposal.order,)
        ],
    )
    for one in waiting:
        say(*(f"{one.digest[:19]} cannot be endorsed any more: {plain(reason)}" for reason in one.against))


@order.command("show", example="appliance order show sha256:1f2e3d4c")
@click.argument("digest", required=False)
@reads
@click.pass_obj
def show_order(caller: Caller, digest: str | None) -> None:
    """Everything that one waiting order binds, from the bytes that its signer signed.

    DIGEST may be cut after 6 digits. It can be left out if exactly one order waits that can still be carried out. Of a
    policy set it also shows what would change.
    """
    from appliance.domain.rulebook.showing import describe

    found = _find_pending(caller, digest)
    if caller.json:
        print_json(
            {"digest": found.digest, "index": found.index, "order": found.proposal.order.model_dump(mode="json")}
        )
        return
    print_facts([*describe(found.proposal), ("digest", found.digest), ("entry", found.index)])
    _show_changes(caller, found)


@order.command("endorse", example="appliance order endorse sha256:1f2e3d4c")
@click.argument("digest", required=False)
@signs
@click.pass_obj
def endorse(caller: Caller, digest: str | None) -> None:
    """Sign another administrator's order, which then takes effect.

    DIGEST may be cut after 6 digits. It can be left out if exactly one order waits that can still be carried out. What
    it binds is shown before you sign.
    """
    from appliance.client.support.orders import propose_endorsement

    found = _find_pending(caller, digest)
    show_proposal(found.proposal, f"The order of {found.proposal.order.signer}, entry {found.index} of the log:")
    _show_changes(caller, found)
    order = found.proposal.order
    endorsement = propose_endorsement(caller.about, caller.signer, found)
    receipt = sign_and_submit(caller, endorsement, successor=getattr(order, "log_key", None))
    tell(caller, receipt, f"the order {order.verb} of {order.signer} took effect", _follows(order))


def _find_pending(caller: Caller, digest: str | None) -> Pending:
    """The waiting order, proved to be in the log."""
    from appliance.client.support.orders import find_pending, pending_orders, prove_pending

    door = caller.reading()
    return prove_pending(door, caller.anchor, find_pending(pending_orders(door), digest))


def _show_changes(caller: Caller, found: Pending) -> None:
    """Of the order to adopt a policy set: what would change, from the bytes that the log binds."""
    if found.proposal.order.verb != "adopt-policy":
        return
    from appliance.client.policies import list_ordered_changes

    changes, served = list_ordered_changes(caller.reading(), found)
    if served is not None:
        say(
            f"warning: the order's entry {found.index} names {found.policy} as the policy set in force, and the "
            f"service serves {served}. What follows is compared with the first."
        )
    say("What it changes of the set in force:", *map(plain, changes))


def _follows(order: Order) -> list[str]:
    """What people have to do now that the order has taken effect."""
    from appliance.cli.retention import after_rotation
    from appliance.domain.governance.keys import ReplaceKey
    from appliance.domain.governance.log_keys import RotateLogKey

    if isinstance(order, RotateLogKey):
        return after_rotation(order.log_key, order.old_until)
    if isinstance(order, ReplaceKey):
        return [f"From now on {order.principal} signs with the key {order.keyid}; the older ones sign nothing more."]
    return []
