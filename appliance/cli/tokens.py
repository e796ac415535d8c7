"""Commands for a unit's API tokens and applications."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import (
    PATH,
    REASON,
    pair_certificate,
    with_key_options,
    with_session_options,
    with_signing_options,
    with_tls_options,
)
from appliance.cli.support.groups import token
from appliance.cli.support.output import PAST_HELP, parse_moment, plain, print_json, print_line, print_rows, say
from appliance.cli.support.signing import order_action, print_outcome, sign_and_submit
from appliance.errors import BadInput, Denied

MAX_TOKEN_MINUTES = 60
"""Maximum minutes for which a token is valid."""


@token.command(
    "issue", example='OPENAI_API_KEY="$(appliance token issue --as legal --key legal.key --passphrase-file legal.pass)"'
)
@click.option(
    "--minutes",
    metavar="N",
    type=click.IntRange(1, MAX_TOKEN_MINUTES),
    default=MAX_TOKEN_MINUTES,
    show_default=True,
    help="How long it is valid; policy may allow less.",
)
@click.option("--origin", metavar="LOG", help="The log's origin. Default: the service is asked.")
@with_key_options
def issue(caller: Caller, minutes: int, origin: str | None) -> None:
    """Print a token, signed by the unit's key, for any OpenAI client to use as its API key.

    The service is asked whether --as is a unit, in a session. With --origin the token is made without the service.
    """
    from appliance.client.people import issue_token, token_digest

    unit, ttl_s = caller.signer, minutes * 60
    if origin is None:
        about = caller.about
        if "unit" not in (roles := caller.session.opened().roles):
            got = f"with {', '.join(roles)}" if roles else "without a role"
            raise Denied(
                f"token: expected the name of a unit, got {unit}, {got}; name a unit with --as and its key with --key"
            )
        origin, ttl_s = about.origin, min(ttl_s, about.parameters.token_lifetime_s)
    text, expires = issue_token(origin, unit, caller.unlock("to sign the token"), ttl_s)
    if caller.json:
        print_json({"token": text, "id": token_digest(text), "unit": unit, "expires_at": expires})
    else:
        print_line(text)
    say(f"A token of {unit}, until {expires}. It acts for the unit: keep it secret. Its id: {token_digest(text)}")


@token.command(
    "revoke",
    example=(
        "appliance token revoke legal --token leaked.txt --reason 'it stood in a log'\n"
        "appliance token revoke legal --issued-before now"
    ),
)
@click.argument("unit", metavar="UNIT")
@click.option(
    "--token",
    "file",
    type=click.File("r"),
    metavar="FILE",
    help="Only this token: a file with it, or its id; - reads stdin.",
)
@click.option("--issued-before", metavar="TIME", help=f"Every token that was issued before {PAST_HELP}")
@click.option("--application", metavar="NAME", help="End this application permanently, with all its tokens.")
@REASON
@with_signing_options
def revoke_tokens(
    caller: Caller,
    unit: str,
    file: TextIO | None,
    issued_before: str | None,
    application: str | None,
    reason: str | None,
) -> None:
    """Revoke one token of a unit, all tokens issued before a time, or an application.

    Running responses to them are cut off.

    The unit itself, its release owner or an administrator signs this. The unit's key can still sign new tokens, and an
    application can still renew its own. To end those, use `appliance key revoke` for the key and --application for the
    application.
    """
    from appliance.client.people import token_digest

    given = [option for option in (file, issued_before, application) if option is not None]
    if len(given) != 1:
        wanted = "--token FILE, --issued-before TIME or --application NAME"
        raise BadInput(f"token revoke: expected {wanted}, got {len(given)}")
    digest = None if file is None else token_digest(file.read(65_536).strip())
    now = datetime.now(UTC)
    moment = None if issued_before is None else parse_moment(issued_before, "issued before", now)
    values = {"unit": unit, "token": digest, "issued_before": moment, "application": application}
    subject = ("token", digest) if digest else ("issued before", moment) if moment else ("application", application)
    order_action(caller, "revoke-tokens", values, [("unit", unit), subject], texts={"reason": reason})


@token.command(
    "enrol",
    example=(
        "appliance key prove --as legal --key indexer.key --origin LOG > indexer.proof\n"
        "appliance token enrol indexer --served-model labels --proof indexer.proof --as legal --key legal.key"
    ),
)
@click.argument("application", metavar="NAME")
@click.option(
    "--served-model",
    "served_models",
    required=True,
    multiple=True,
    metavar="NAME",
    help="A served model that it may use. Can be repeated.",
)
@click.option(
    "--proof",
    required=True,
    type=PATH,
    metavar="FILE",
    help="The file that `key prove` wrote with the application's key.",
)
@with_signing_options
def enrol(caller: Caller, application: str, served_models: tuple[str, ...], proof: Path) -> None:
    """Let an application of your unit renew its tokens with a key of its own. The unit signs this.

    The application's key gets tokens for these served models and can do nothing else. End it with `token revoke UNIT
    --application NAME`. Before you sign, you are warned of served models that are not released to the unit, because an
    enrolment cannot be changed.
    """
    from appliance.client.people import read_possession, unreleased_served_models

    unit = caller.signer
    data, statement = read_possession(proof, caller.about.origin, unit)
    values = {"application": application, "served_models": served_models}
    proposal = caller.propose("enrol-application", values, documents={"possession": data})
    warnings = [f"warning: {plain(t)}" for t in unreleased_served_models(caller.reading(), unit, served_models)]
    facts = [
        ("application", application),
        ("served_models", ", ".join(served_models)),
        ("key id", statement.keyid),
    ]
    print_outcome(caller, sign_and_submit(caller, proposal, warnings), facts)
    say(f"next, beside the application: appliance token agent {application} --as {unit} --key FILE --socket PATH")


@token.command("applications", example="appliance token applications")
@with_session_options
def list_applications(caller: Caller) -> None:
    """List every application that a unit enrolled, with its served models and its end."""
    from appliance.client.support.log import list_rows
    from appliance.domain.core.records.people import Application

    print_rows(
        caller.json,
        list_rows(caller.reading(), "application", Application),
        ("unit", "application", "served_models", "entry", "ended by", "key id"),
        lambda row: (row.unit, row.name, ", ".join(row.served_models), row.enrolled, row.revoked, row.keyid),
        empty="No unit enrolled an application. A unit enrols one with: appliance token enrol",
    )


@token.command(
    "agent",
    example=(
        "appliance token agent indexer --as legal --key indexer.key --passphrase-file indexer.pass \\\n"
        "    --origin LOG --address 127.0.0.1:8331 --socket /run/indexer/token.sock"
    ),
)
@click.argument("application", metavar="NAME")
@click.option(
    "--socket", "path", required=True, type=PATH, metavar="PATH", help="Socket that gives out the token; mode 0600."
)
@click.option("--origin", required=True, metavar="LOG", help="The log's origin: `appliance status` has it.")
@click.option(
    "--address",
    default="127.0.0.1:8331",
    show_default=True,
    metavar="HOST:PORT",
    help="The units' API.",
)
@with_tls_options("The site's CA in PEM, if the units' API uses TLS.")
@click.option(
    "--minutes",
    metavar="N",
    type=click.IntRange(1, MAX_TOKEN_MINUTES),
    default=MAX_TOKEN_MINUTES,
    show_default=True,
    help="How long each token is valid; policy may allow less.",
)
@with_key_options
def agent(
    caller: Caller,
    application: str,
    path: Path,
    origin: str,
    address: str,
    ca: Path | None,
    certificate: Path | None,
    certificate_key: Path | None,
    minutes: int,
) -> None:
    """Run beside an application: hold its key, renew its token, and give the token out at a socket.

    --as is the unit, --key the application's key. A program that opens the socket gets one line of JSON with `token`,
    `id` and `expires_at`, or `error`. SIGHUP renews the token at once; SIGTERM and SIGINT end the agent. Every minute
    the agent checks its token and renews a revoked one. It ends with exit code 3 if the application was ended.
    """
    from appliance.client.support.connection import parse_address
    from appliance.client.token_agent import Renewal, TokenAgent

    where = parse_address(address, ca, pair_certificate("token agent", certificate, certificate_key))
    renewal = Renewal(where, origin, caller.signer, application, caller.unlock("to renew tokens"), minutes * 60)
    token_agent = TokenAgent(renewal, minutes * 60, say, renewal.is_valid)
    signal.signal(signal.SIGHUP, lambda *_: token_agent.renew_now())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: token_agent.stop())
    say(f"token agent of {application} of {caller.signer}: {path}")
    token_agent.run(path)
