"""A unit's API keys: issued, revoked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TextIO

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, keyed, signs
from appliance.cli.support.output import print_json, print_line, say
from appliance.cli.support.signing import sign_and_submit, tell_receipt
from appliance.cli.support.times import PAST_HELP, parse_moment
from appliance.errors import BadInput

MAX_TOKEN_MINUTES = 60


@group("token", example="appliance token issue --as legal --key legal.key")
def token() -> None:
    """A unit's API keys, at most an hour long: issued by the unit, or renewed by its applications; revoke."""


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
@keyed
@click.pass_obj
def issue(caller: Caller, minutes: int, origin: str | None) -> None:
    """Print a token, signed by the unit's key, for any OpenAI client to use as its API key."""
    from appliance.client.people import issue_token, token_digest

    unit, ttl_s = caller.signer, minutes * 60
    if origin is None:
        ttl_s = min(ttl_s, int(caller.claimed.parameters["token_lifetime_s"]))
    text, expires = issue_token(origin or caller.claimed.origin, unit, caller.unlock("to sign the token"), ttl_s)
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
@click.option("--reason", metavar="TEXT", help="Why, in your words; can be erased later.")
@signs
@click.pass_obj
def revoke_tokens(
    caller: Caller,
    unit: str,
    file: TextIO | None,
    issued_before: str | None,
    application: str | None,
    reason: str | None,
) -> None:
    """End one token of a unit, all that were issued before a time, or an application. Their answers are cut off.

    Signed by the unit itself, by its release owner, or by an administrator. The unit's key can sign another token,
    and an enrolled application renews its own: a stolen key is ended by `appliance key revoke`, an
    application by --application.
    """
    from appliance.client.people import propose_token_revocation, token_digest

    given = [option for option in (file, issued_before, application) if option is not None]
    if len(given) != 1:
        wanted = "--token FILE, --issued-before TIME or --application NAME"
        raise BadInput(f"token revoke: expected {wanted}, got {len(given)}")
    digest = None if file is None else token_digest(file.read(65_536).strip())
    now = datetime.now(UTC)
    moment = None if issued_before is None else parse_moment(issued_before, "issued before", now)
    proposal = propose_token_revocation(
        caller.about, caller.signer, unit, reason, token=digest, issued_before=moment, application=application
    )
    what = ("token", digest) if digest else ("issued before", moment) if moment else ("application", application)
    tell_receipt(caller, sign_and_submit(caller, proposal), [("unit", unit), what])
