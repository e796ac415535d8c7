"""A unit's applications: enrolled by the unit, listed, and the agent that renews their tokens."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import keyed, reads, signs
from appliance.cli.support.output import plain, print_json, print_table, say
from appliance.cli.support.signing import sign_and_submit, tell_receipt
from appliance.cli.tokens.tokens import MAX_TOKEN_MINUTES, token
from appliance.errors import BadInput

_FILE = click.Path(path_type=Path)


@token.command(
    "enroll",
    example=(
        "appliance key prove --as legal --key indexer.key --origin LOG > indexer.proof\n"
        "appliance token enroll indexer --task labels --proof indexer.proof --as legal --key legal.key"
    ),
)
@click.argument("application", metavar="NAME")
@click.option(
    "--task", "tasks", required=True, multiple=True, metavar="NAME", help="A task that it may ask. Can be repeated."
)
@click.option(
    "--proof",
    required=True,
    type=_FILE,
    metavar="FILE",
    help="The file that `key prove` wrote with the application's key.",
)
@signs
@click.pass_obj
def enroll(caller: Caller, application: str, tasks: tuple[str, ...], proof: Path) -> None:
    """Let an application of your unit renew its tokens with a key of its own. Signed by the unit.

    The key gets tokens for these tasks and can do nothing else. `token revoke UNIT --application NAME` ends it. A task
    that is not released to the unit is warned of before you sign: an enrolment cannot be changed.
    """
    from appliance.client.people import propose_application, unreleased_tasks

    unit = caller.signer
    proposal, keyid = propose_application(caller.about, unit, application, tasks, proof)
    receipt = sign_and_submit(
        caller, proposal, [f"warning: {plain(t)}" for t in unreleased_tasks(caller.reading(), unit, tasks)]
    )
    facts: list[tuple[str, object]] = [("application", application), ("tasks", ", ".join(tasks)), ("key id", keyid)]
    tell_receipt(caller, receipt, facts)
    say(f"next, beside the application: appliance token agent {application} --as {unit} --key FILE --socket PATH")


@token.command("applications", example="appliance token applications")
@reads
@click.pass_obj
def list_applications(caller: Caller) -> None:
    """Every application that a unit enrolled, with its tasks and its end."""
    things = caller.reading().get("/v1/ledger/state", kind=("application",))["things"]
    rows = [thing["value"] for thing in things]
    if caller.json:
        print_json(rows)
        return
    print_table(
        ("unit", "application", "tasks", "entry", "ended by", "key id"),
        [(r["unit"], r["name"], ", ".join(r["tasks"]), r["enrolled"], r["revoked"], r["keyid"]) for r in rows],
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
    "--socket", "path", required=True, type=_FILE, metavar="PATH", help="Where tokens are handed out; made 0600."
)
@click.option("--origin", required=True, metavar="LOG", help="The log's origin: `appliance status` has it.")
@click.option(
    "--address",
    default="127.0.0.1:8331",
    show_default=True,
    metavar="HOST:PORT",
    help="The units' API.",
)
@click.option("--ca", type=_FILE, metavar="FILE", help="The site's CA in PEM, if the units' API uses TLS.")
@click.option("--certificate", type=_FILE, metavar="FILE", help="This host's certificate, if the site asks for one.")
@click.option("--certificate-key", type=_FILE, metavar="FILE", help="Its private key in PEM.")
@click.option(
    "--minutes",
    metavar="N",
    type=click.IntRange(1, MAX_TOKEN_MINUTES),
    default=MAX_TOKEN_MINUTES,
    show_default=True,
    help="How long each token is valid; policy may allow less.",
)
@keyed
@click.pass_obj
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
    """Run beside an application: hold its key, renew its token, and hand the token out at a socket.

    --as is the unit, --key the application's key. A program that opens the socket gets one line of JSON: `token`, `id`,
    `expires_at`, or `error`. SIGHUP renews at once; SIGTERM and SIGINT end it. Every minute it asks whether its token
    still counts, and renews one that was revoked. If the application was ended, it ends itself, with exit code 3.
    """
    from appliance.client.applications.agent import Agent
    from appliance.client.applications.renewal import Renewal
    from appliance.client.support.door import parse_address

    if (certificate is None) != (certificate_key is None):
        raise BadInput("token agent: expected --certificate and --certificate-key, got one without the other")
    own = None if certificate is None or certificate_key is None else (certificate, certificate_key)
    where = parse_address(address, ca, own)
    renewal = Renewal(where, origin, caller.signer, application, caller.unlock("to renew tokens"), minutes * 60)
    made = Agent(renewal, minutes * 60, say, renewal.stands)
    signal.signal(signal.SIGHUP, lambda *_: made.renew_now())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: made.stop())
    say(f"token agent of {application} of {caller.signer}: {path}")
    made.run(path)
