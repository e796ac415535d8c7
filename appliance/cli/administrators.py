"""Commands for administrators: init, people and units, and people's identities at the site's identity provider."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.build import find_folder
from appliance.cli.support.caller import Caller, is_interactive
from appliance.cli.support.command import (
    PATH,
    REASON,
    command,
    with_common_options,
    with_session_options,
    with_signing_options,
)
from appliance.cli.support.groups import identity, principal
from appliance.cli.support.output import (
    END_HELP,
    parse_end,
    print_facts,
    print_json,
    print_line,
    print_rows,
    say,
)
from appliance.cli.support.signing import order_action, print_outcome, sign_and_submit
from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.domain.actions.proposals import Proposal

_VALID_PROOF = "The proof is valid. Let the person read out the key id."


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
@click.option("--policy", type=PATH, metavar="FOLDER", help="The first policy set. Default: policies/default.")
@click.option(
    "--output", type=PATH, metavar="FILE", help="Also write the trust file here, on another machine or medium."
)
@click.option("--post-quantum", is_flag=True, help="Have ML-DSA-65 sign checkpoints and adapters, too.")
@with_common_options
def init(
    caller: Caller,
    administrators: tuple[str, ...],
    single_admin: bool,
    origin: str | None,
    policy: Path | None,
    output: Path | None,
    post_quantum: bool,
) -> None:
    """Make an appliance in its data folder: the service's keys, the database, the first policy set.

    Takes the public keys of two administrators and prints the trust file. Keep the trust file on another machine, since
    every later verification starts from it.
    """
    from appliance import wiring
    from appliance.client.policies import load_policy
    from appliance.client.support.files import check_free, write_new
    from appliance.formats.log.trust import encode_trust

    people = [_parse_administrator(text) for text in administrators]
    if single_admin != (len(people) == 1):
        raise BadInput(
            f"administrators: expected two or more, or one with --single-admin, got {len(people)}"
            f"{' with --single-admin' if single_admin else ''}"
        )
    if output is not None:
        check_free(output, "trust file")
    trust = wiring.init(
        caller.settings,
        [wiring.Person(name, spki) for name, spki in people],
        origin=origin,
        single_administrator=single_admin,
        policy=load_policy(policy or _default_policy()).data,
        post_quantum=post_quantum,
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
    from appliance.client.support.profile import read_public_key
    from appliance.formats.core.fields import parse_identifier

    name, separator, file = text.partition("=")
    if not separator or not file:
        raise BadInput(f"administrator: expected NAME=FILE with a public key (appliance key new FILE), got {text!r}")
    return parse_identifier(name, "administrator"), read_public_key(Path(file), accepts_key_file=False)


def _default_policy() -> Path:
    return find_folder("policies") / "default"


@principal.command(
    "enrol",
    example=(
        "appliance principal enrol ada --proof ada.proof --printed-name 'Ada Byron' --role reviewer:privacy\n"
        "appliance principal enrol nina --invited --printed-name 'Nina Simon' --role operator\n"
        "appliance principal enrol --folder newcomers"
    ),
)
@click.argument("name", required=False)
@click.option("--proof", type=PATH, metavar="FILE", help="The person's proof, made with: appliance key prove")
@click.option("--printed-name", metavar="TEXT", help="The name as signatures show it; can be erased later.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    metavar="ROLE",
    help="administrator, operator, validator, auditor, unit, recovery, reviewer:FUNCTION or release-owner:UNIT.",
)
@click.option("--folder", type=PATH, metavar="FOLDER", help="Several by one order: people.csv and a NAME.proof each.")
@click.option("--invited", is_flag=True, help="Use the passkey that the person made after: appliance principal invite")
@click.option(
    "--short-code", metavar="CODE", help="With --invited: the passkey's short code, as the person reads it out."
)
@with_signing_options
def enrol(
    caller: Caller,
    name: str | None,
    proof: Path | None,
    printed_name: str | None,
    roles: tuple[str, ...],
    folder: Path | None,
    invited: bool,
    short_code: str | None,
) -> None:
    """Enrol a person or a unit with the key that they proved, or everybody in a folder. Needs two administrators.

    The folder's people.csv has the header name,printed_name,roles and a line for each. Several roles are separated by
    spaces. If one cannot be enrolled, none is.
    """
    from appliance.client.people import read_enrolments, read_possession

    if folder is not None:
        _expect_folder_alone(name, proof, printed_name, roles, invited, short_code)
        proposal = caller.propose_input("enrol-several", read_enrolments(folder, caller.about.origin))
    elif name is None or (proof is None) != invited or printed_name is None or not roles:
        raise BadInput(
            "principal enrol: expected NAME with --proof or --invited, --printed-name and --role, or --folder"
        )
    elif proof is None:
        proposal = _propose_invited(caller, name, printed_name, roles, short_code)
    else:
        data, _ = read_possession(proof, caller.about.origin, name)
        texts, documents = {"printed_name": printed_name}, {"possession": data}
        proposal = caller.propose("enrol", {"roles": roles}, texts=texts, documents=documents)
    caller.reading()
    notes = [] if invited else ["Each proof is valid. Let each person read out the key id."]
    receipt = sign_and_submit(caller, proposal, notes)
    print_outcome(caller, receipt, f"{name} is enrolled" if folder is None else f"everybody in {folder} is enrolled")


def _propose_invited(
    caller: Caller, name: str, printed_name: str, roles: tuple[str, ...], code: str | None
) -> Proposal:
    """Return the order that enrols an invited person, once their short code was compared."""
    from appliance.client.people import read_invited_proof

    data, keyid = read_invited_proof(caller.reading(), caller.anchor, name)
    check_short_code(name, keyid, code)
    texts, documents = {"printed_name": printed_name}, {"possession": data}
    return caller.propose("enrol-with-passkey", {"roles": roles}, texts=texts, documents=documents)


def check_short_code(name: str, keyid: str, code: str | None) -> None:
    """Compare the short code that the person reads out with that of their passkey. Ask for it if `code` is None.

    Raises: BadInput for another one, or without a terminal to ask at.
    """
    from appliance.formats.core.digest import is_short_code

    if code is None:
        if not is_interactive():
            raise BadInput("short code: expected --short-code, since there is no terminal to ask at, got none")
        code = str(click.prompt(f"Short code, as {name} reads it out to you", err=True))
    if not is_short_code(code, keyid):
        raise BadInput(f"short code: expected that of the passkey of {name}, got another; do not enrol the passkey")


def _expect_folder_alone(*single: object) -> None:
    if any(single):
        raise BadInput(
            "principal enrol: expected --folder alone, whose people.csv has names and roles, got another beside it"
        )


@principal.command(
    "invite",
    example="appliance principal invite nina --printed-name 'Nina Simon' --role operator",
)
@click.argument("name")
@click.option(
    "--printed-name", metavar="TEXT", required=True, help="The name as signatures show it; can be erased later."
)
@click.option("--role", "roles", multiple=True, required=True, metavar="ROLE", help="A role, as for: principal enrol")
@click.option("--until", default="1h", metavar="TIME", help=f"Until when the address works. {END_HELP} Default: 1h.")
@click.option("--console", metavar="URL", help="The console's address. Default: as the service reports it.")
@with_signing_options
def invite(
    caller: Caller, name: str, printed_name: str, roles: tuple[str, ...], until: str, console: str | None
) -> None:
    """Invite a person who has no key, and print the address at which they make a passkey. It works once.

    The address has a secret that this command makes. The service gets its digest. Give the address to the person
    yourself. Then two administrators enrol the passkey: appliance principal enrol NAME --invited
    """
    from appliance.client.people import find_dropped_passkey
    from appliance.client.support.browsers import find_console
    from appliance.domain.governance.invitations import describe_dropped_passkey
    from appliance.formats.core.digest import digest_bytes
    from appliance.formats.core.fields import encode_base64url

    secret = secrets.token_bytes(32)
    end = parse_end(until, "until", datetime.now(UTC))
    values = {"principal": name, "roles": roles, "secret": digest_bytes(secret), "until": end}
    proposal = caller.propose("invite", values, texts={"printed_name": printed_name})
    reading = caller.reading()
    site = console or find_console(reading)
    keyid = find_dropped_passkey(reading, caller.anchor, name)
    receipt = sign_and_submit(
        caller, proposal, [] if keyid is None else [f"warning: {describe_dropped_passkey(name, keyid)}"]
    )
    address = f"{site.rstrip('/')}/invitation#{encode_base64url(secret)}"
    if caller.json:
        print_json({**asdict(receipt), "address": address, "until": end})
        return
    print_facts([("address", address), ("until", end), ("entry", receipt.index)])
    say(f"next: {name} opens the address and makes a passkey; then: appliance principal enrol {name} --invited")


@principal.command(
    "withdraw-invitation", example="appliance principal withdraw-invitation nina --reason 'The address was seen.'"
)
@click.argument("name")
@REASON
@with_signing_options
def withdraw_invitation(caller: Caller, name: str, reason: str | None) -> None:
    """End the invitation of a person who is not enrolled yet. One administrator is enough.

    Its address stops working at once. A passkey that the person has made by it is dropped.
    """
    done = f"the invitation of {name} was withdrawn"
    order_action(caller, "withdraw-invitation", {"principal": name}, done, texts={"reason": reason}, opens_session=True)


@principal.command("list", example="appliance principal list --json")
@with_session_options
def list_principals(caller: Caller) -> None:
    """List all people and units that were ever enrolled, with roles and key ids."""
    from appliance.domain.core.records.people import Principal

    print_rows(
        caller.json,
        caller.reading().get("/v1/principals", list[Principal]),
        ("name", "printed name", "roles", "key id", "enrolled", "revoked"),
        lambda row: (row.name, row.printed_name, ", ".join(row.roles), row.keyid[:19], row.enrolled, row.revoked),
    )


@principal.command("grant", example="appliance principal grant ada reviewer:privacy")
@click.argument("name")
@click.argument("role")
@with_signing_options
def grant(caller: Caller, name: str, role: str) -> None:
    """Give a person one more role. Needs two administrators."""
    order_action(caller, "grant", {"principal": name, "role": role}, f"{name} is {role}", opens_session=True)


@principal.command("remove-role", example="appliance principal remove-role ada operator")
@click.argument("name")
@click.argument("role")
@REASON
@with_signing_options
def remove_role(caller: Caller, name: str, role: str, reason: str | None) -> None:
    """Remove one role of a person, who keeps the others. Needs two administrators."""
    values, done = {"principal": name, "role": role}, f"{name} is no longer {role}"
    order_action(caller, "remove-role", values, done, texts={"reason": reason}, opens_session=True)


@principal.command("revoke", example="appliance principal revoke mallory --reason 'left the firm'")
@click.argument("name")
@REASON
@with_signing_options
def revoke(caller: Caller, name: str, reason: str | None) -> None:
    """Take all rights from a person or a unit at once. One administrator is enough. It cannot be undone."""
    order_action(caller, "revoke-principal", {"principal": name}, f"{name} is revoked", texts={"reason": reason})


@principal.command(
    "replace-key", example="appliance principal replace-key ada --proof ada2.proof --reason 'the old one was lost'"
)
@click.argument("name")
@click.option(
    "--proof", type=PATH, metavar="FILE", required=True, help="The person's proof, made with: appliance key prove"
)
@REASON
@with_signing_options
def replace_key(caller: Caller, name: str, proof: Path, reason: str | None) -> None:
    """Give a person a new key, because theirs is lost. The old ones end at once. Needs two administrators.

    People who still have their key replace it alone: appliance key rotate. If another person may have used a key,
    revoke it too: appliance key revoke.
    """
    from appliance.client.people import read_possession

    data, _ = read_possession(proof, caller.about.origin, name)
    order_action(
        caller,
        "replace-key",
        {},
        f"{name} has another key",
        texts={"reason": reason},
        documents={"possession": data},
        notes=[_VALID_PROOF],
    )


@principal.command(
    "recover", example="appliance principal recover carl --proof carl.proof --printed-name 'Carl Orff' --as vault"
)
@click.argument("name")
@click.option(
    "--proof", type=PATH, metavar="FILE", required=True, help="The person's proof, made with: appliance key prove"
)
@click.option(
    "--printed-name", metavar="TEXT", required=True, help="The name as signatures show it; can be erased later."
)
@with_signing_options
def recover(caller: Caller, name: str, proof: Path, printed_name: str) -> None:
    """Enrol a new administrator with a recovery key, because too few administrators have theirs.

    An administrator or another recovery key countersigns: appliance order countersign. That is possible after half of
    the policy's order_lifetime_s, so that administrators can stop a recovery that they did not expect.
    """
    from appliance.client.people import read_possession
    from appliance.formats.core.timestamp import encode_time

    data, _ = read_possession(proof, caller.about.origin, name)
    texts, documents = {"printed_name": printed_name}, {"possession": data}
    proposal = caller.propose("recover-administrator", {}, texts=texts, documents=documents)
    receipt = sign_and_submit(caller, proposal, [_VALID_PROOF])
    half = timedelta(seconds=caller.about.parameters.order_lifetime_s // 2)
    print_outcome(
        caller,
        receipt,
        f"{name} is an administrator",
        following=f"tell all administrators. One who did not expect it stops it with: appliance principal revoke "
        f"{caller.signer}\nFrom about {encode_time(datetime.now(UTC) + half)} on, an administrator or another recovery "
        f"key can countersign: appliance order countersign {receipt.order[:19]}",
    )


@principal.command("enrol-passkey", example="appliance principal enrol-passkey rita --proof rita-blue.proof")
@click.argument("name")
@click.option(
    "--proof", type=PATH, metavar="FILE", required=True, help="The proof that the person downloaded in the console."
)
@with_signing_options
def enrol_passkey(caller: Caller, name: str, proof: Path) -> None:
    """Let a person also sign with a passkey, at the addresses that its proof names. Needs two administrators.

    The person makes the passkey and its proof in the console. Their other keys stay valid.
    """
    from appliance.client.people import read_passkey_proof

    data, _ = read_passkey_proof(proof, caller.about.origin, name)
    order_action(
        caller,
        "enrol-passkey",
        {},
        f"{name} has another passkey",
        documents={"possession": data},
        notes=[_VALID_PROOF],
        opens_session=True,
    )


@identity.command(
    "bind",
    example=(
        "appliance identity bind olga 248289761001\n"
        "appliance identity bind olga 248289761001 --issuer https://login.bank.example"
    ),
)
@click.argument("name")
@click.argument("subject")
@click.option("--issuer", metavar="URL", help="The provider's address. Default: that of the policy set.")
@REASON
@with_signing_options
def bind(caller: Caller, name: str, subject: str, issuer: str | None, reason: str | None) -> None:
    """Bind a person to a subject, the claim `sub` of their ID tokens. Needs two administrators.

    It replaces an earlier subject of the person. Bind everybody before a policy set requires identities.
    """
    provider = caller.about.parameters.identity_provider
    if issuer is None and provider is None:
        raise BadInput("identity, issuer: expected --issuer URL, since the policy set names no identity provider")
    values = {"principal": name, "subject": subject, "issuer": issuer or (provider and provider.issuer)}
    done = f"{name} is bound to {subject}"
    order_action(caller, "bind-identity", values, done, texts={"reason": reason}, opens_session=True)


@identity.command("unbind", example="appliance identity unbind olga --reason 'left the firm'")
@click.argument("name")
@REASON
@with_signing_options
def unbind(caller: Caller, name: str, reason: str | None) -> None:
    """Remove a person's identity and end the sessions that rest on it. One administrator is enough."""
    done = f"{name} is bound to no subject"
    order_action(caller, "unbind-identity", {"principal": name}, done, texts={"reason": reason})


@identity.command("list", example="appliance identity list --json")
@with_session_options
def list_identities(caller: Caller) -> None:
    """List the subject of each person who is bound, and the entry that bound them."""
    from appliance.client.questions import state_as_of
    from appliance.domain.core.records.people import Identity

    found = state_as_of(caller.reading(), None, ("identity",)).rows
    print_rows(
        caller.json,
        [Identity.model_validate(row.value) for row in found],
        ("name", "issuer", "subject", "since entry"),
        lambda row: (row.principal, row.issuer, row.subject, row.index),
        empty="No identity is bound. Bind one with: appliance identity bind",
    )
