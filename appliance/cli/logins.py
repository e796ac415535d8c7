"""Commands for a person on this machine: login, the agent that holds a key, and sign-in of a browser."""

from __future__ import annotations

import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import (
    command,
    pair_certificate,
    with_common_options,
    with_key_options,
    with_session_options,
    with_tls_options,
)
from appliance.cli.support.groups import agent
from appliance.cli.support.output import print_json, print_line, print_result, say
from appliance.errors import ApplianceError, BadInput, Denied, NotFound

if TYPE_CHECKING:
    from appliance.client.support.agent import AgentStatus
    from appliance.client.support.connection import Address


DEFAULT_MINUTES = 30
"""Default minutes for which an agent holds a key."""
MOST_MINUTES = 480
"""Maximum minutes for which an agent holds a key: a working day."""


@command("login", example="appliance login olga --key olga.key --trust trust.json")
@click.argument("name", metavar="NAME")
@click.option("--address", metavar="HOST:PORT", help="An appliance on another machine, instead of --home.")
@with_tls_options("The CA file (PEM) that its certificate is signed under.")
@with_session_options
def login(
    caller: Caller,
    name: str,
    address: str | None,
    ca: Path | None,
    certificate: Path | None,
    certificate_key: Path | None,
) -> None:
    """Remember your name, --key, --home and --trust for every later command. Opens a session, which proves the key.

    Nothing is remembered if the service, the trust file or the key does not fit. A passphrase is never remembered.
    Options and environment variables override what is remembered.
    """
    from appliance.client.support.profile import Profile, save_profile

    caller.profile = None  # an earlier login does not apply to this one
    caller.name = name
    caller.address = _address(caller, address, ca, certificate, certificate_key)
    key = caller.key_file.expanduser().absolute()
    trust = None if caller.trust_file is None else caller.trust_file.expanduser().absolute()
    anchor = caller.anchor  # checked first, so that nothing is signed for a wrong log
    opened = caller.session.opened(renew=True)
    where = caller.where.resolve() if isinstance(caller.where, Path) else caller.where
    path = save_profile(Profile(name, key, where, trust))
    print_result(
        caller.json,
        {"name": name, "roles": opened.roles, "origin": anchor.origin, "profile": str(path)},
        [
            ("logged in", f"{name}, {', '.join(opened.roles) or 'without a role'}"),
            ("at", where),
            ("log", anchor.origin),
            ("according to", anchor.source),
            ("remembered in", path),
        ],
    )
    if trust is None:
        say("Without a trust file only the service says which log this is; add one with --trust FILE.")


def _address(caller: Caller, text: str | None, ca: Path | None, chain: Path | None, key: Path | None) -> Address | None:
    from appliance.client.support.connection import parse_address

    if text is None:
        if ca or chain or key:
            raise BadInput("login: expected --address beside --ca, --certificate or --certificate-key, got none")
        return None
    if caller.home is not None:
        raise BadInput(f"login: expected --address or --home (APPLIANCE_HOME), got {text} and {caller.home}")
    own = pair_certificate("login", chain and chain.absolute(), key and key.absolute())
    return parse_address(text, ca and ca.absolute(), own)


@command("logout", example="appliance logout")
@with_common_options
def logout(caller: Caller) -> None:
    """Forget your login. End the session, here and at the service, and the agent.

    A damaged profile is removed, too. If the service is not the one of the profile, it gets no token, and an error says
    so after the rest is done.
    """
    from appliance.client.support.profile import forget_profile, load_profile

    ended = name = None
    problem: ApplianceError | None = None
    with suppress(BadInput, Denied):
        if (profile := load_profile()) is not None:
            caller.profile, caller.home, name = profile, None, profile.name
            caller.name = name
            try:
                ended = caller.session.end(lambda: caller.about_without_session)
            except ApplianceError as error:
                problem = error
            _end_agent(caller)
    if not forget_profile():
        raise NotFound("login: expected one to forget, got none")
    if problem is not None:
        say("You are logged out on this machine. The service did not answer, so a session there ends by itself.")
        raise problem
    value = {"name": name, "session": ended is not None and ended.was_open}
    print_result(caller.json, value, [("logged out", name)])
    if ended is not None and ended.ends_at is not None:
        say(f"The service did not respond, so it did not record the logout. The session ends there at {ended.ends_at}.")


def _end_agent(caller: Caller) -> None:
    from appliance.client.support.agent import stop_agent

    with suppress(ApplianceError):  # usually there is none, and one that hangs ends by itself
        stop_agent(_agent_socket(caller))


@command("whoami", example="appliance whoami")
@with_session_options
def whoami(caller: Caller) -> None:
    """Show your name, printed name, roles and key, the appliance, its log, and what the trust file says."""
    from appliance.client.support.profile import read_public_key
    from appliance.domain.core.records.people import Principal
    from appliance.formats.signatures.keys import keyid_of

    connection, name = caller.reading(), caller.signer
    row = next((row for row in connection.get("/v1/principals", list[Principal]) if row.name == name), None)
    keyid = keyid_of(read_public_key(caller.key_file))
    facts = {
        "name": name,
        "printed_name": row and row.printed_name,
        "roles": () if row is None else row.roles,
        "keyid": keyid,
        "key": str(caller.key_file),
        "key_until": _end_of_key(caller, name, keyid),
        "session_until": caller.session.opened().expires_at,
        "appliance": str(caller.where),
        "origin": caller.anchor.origin,
        "log_key": caller.anchor.log_key,
        "according_to": caller.anchor.source,
    }
    shown = {**facts, "roles": ", ".join(() if row is None else row.roles)}
    labelled = [(_LABELS.get(label, label.replace("_", " ")), value) for label, value in shown.items()]
    print_result(caller.json, facts, labelled)


_LABELS = {"keyid": "key id", "origin": "log"}


def _end_of_key(caller: Caller, name: str, keyid: str) -> str:
    """Return the end of the key that this command names. Another key may have opened the session."""
    from appliance.client.people import keys_of

    row = next((key for key in keys_of(caller.connection, name) if key.keyid == keyid), None)
    if row is None:
        return f"not a key of {name}"
    if row.revoked is not None:
        return f"revoked in entry {row.revoked}"
    return str(row.until or "it is replaced or revoked")


@agent.command("start", example="appliance agent start\nappliance agent start --minutes 60")
@click.option(
    "--minutes",
    type=click.IntRange(1, MOST_MINUTES),
    default=DEFAULT_MINUTES,
    show_default=True,
    metavar="N",
    help="How long it holds the key; then it ends by itself.",
)
@with_session_options
def start(caller: Caller, minutes: int) -> None:
    """Unlock your key once, and let an agent open your reading sessions with it.

    The agent signs only the opening of sessions at this appliance. Every order still asks for the passphrase.
    """
    from appliance.client.support.agent import start_agent

    path = _agent_socket(caller)
    anchor = caller.anchor  # checked first, so that no passphrase is given for a wrong log
    key = caller.unlock("for the agent to hold")
    caller.session.opened(renew=True)  # proves that the key is enrolled under this name
    lifetime_s = caller.about.parameters.session_lifetime_s
    held = start_agent(path, key, caller.signer, anchor.origin, lifetime_s=lifetime_s, seconds=60 * minutes)
    _print_agent(caller, held, path)
    say("It opens sessions alone: an order asks for your passphrase. End it with: appliance agent stop")


@agent.command("stop", example="appliance agent stop")
@with_key_options
def stop(caller: Caller) -> None:
    """End your agent, which then drops the key.

    A session that it opened stays valid until its end, or until `logout`.
    """
    from appliance.client.support.agent import stop_agent

    stop_agent(_agent_socket(caller))
    value = {"name": caller.signer, "stopped": True}
    print_result(caller.json, value, [("ended the agent of", caller.signer)])


@agent.command("status", example="appliance agent status")
@with_key_options
def status(caller: Caller) -> None:
    """Show whether an agent holds your key, which key, for which log, and for how long."""
    from appliance.client.support.agent import find_agent

    path = _agent_socket(caller)
    held = find_agent(path)
    if held is None:
        raise NotFound(f"agent of {caller.signer}: expected one that runs, got none; start it: appliance agent start")
    _print_agent(caller, held, path)


def _agent_socket(caller: Caller) -> Path:
    from appliance.client.support.agent import socket_path

    return socket_path(caller.where, caller.signer)


def _print_agent(caller: Caller, held: AgentStatus, path: Path) -> None:
    value = {
        "name": held.name,
        "origin": held.origin,
        "keyid": held.keyid,
        "seconds_left": held.seconds_left,
        "pid": held.pid,
        "socket": str(path),
    }
    facts = [
        ("agent of", held.name),
        ("log", held.origin),
        ("key id", held.keyid),
        ("ends in", f"{held.seconds_left} s"),
        ("process", held.pid),
        ("socket", path),
    ]
    print_result(caller.json, value, facts)


@command("console", example="appliance console\nappliance console --open")
@click.option("--open", "opens", is_flag=True, help="Open it in this machine's browser.")
@with_session_options
def console(caller: Caller, opens: bool) -> None:
    """Sign a browser in: print an address that works once and within a minute.

    Your key signs a session for that browser only. Like every session it is an entry of the log. It ends when you sign
    out there, or when policy ends it.
    """
    from appliance.client.support.browsers import open_link, write_page

    _ = caller.about
    link = open_link(caller.connection, caller.session)
    if caller.json:
        print_json({"url": link.url, "seconds": link.seconds})
    else:
        print_line(link.url)
    if opens and not webbrowser.open(write_page(link).as_uri()):
        say("No browser was found here; open the address yourself.")
    say(
        f"The address works once, within {link.seconds} s. Keep it secret: opening it signs a browser in as "
        f"{caller.signer}."
    )
