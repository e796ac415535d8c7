"""Commands of the signer, a process of its own that has the service's signing keys."""

from __future__ import annotations

import pwd
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_passphrase_options
from appliance.cli.support.groups import signer
from appliance.cli.support.output import print_facts, print_json, print_result, say
from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.signer.operations import Operations

_FOLDER = click.option(
    "--folder",
    required=True,
    type=PATH,
    metavar="FOLDER",
    envvar="APPLIANCE_SIGNER_FOLDER",
    help="The signer's own folder (APPLIANCE_SIGNER_FOLDER).",
)
_DATABASE = click.option(
    "--database",
    metavar="URL",
    envvar="APPLIANCE_SIGNER_DATABASE",
    help="The record that signers of several hosts share, on PostgreSQL (APPLIANCE_SIGNER_DATABASE).",
)
_TOKEN = click.option(
    "--pkcs11",
    "token_uri",
    metavar="URI",
    envvar="APPLIANCE_SIGNER_PKCS11",
    help="The PKCS#11 token that has the keys; the passphrase is its PIN (APPLIANCE_SIGNER_PKCS11).",
)
_EXAMPLE = "appliance signer {} --folder /var/lib/appliance-signer --passphrase-file passphrase"


@signer.command("init", example=_EXAMPLE.format("init"))
@_FOLDER
@_DATABASE
@_TOKEN
@with_passphrase_options
def init(caller: Caller, folder: Path, database: str | None, token_uri: str | None) -> None:
    """Make a signer: the log's first key, the adapters' key and the record.

    The keys are files that the passphrase encrypts, or objects of a token, whose PIN it is.

    Then start it, set `signer_socket` in the service's settings, and type `appliance init`. An interrupted command
    continues if it is repeated.
    """
    from appliance.signer.opening import make_signer

    passphrase = caller.ask_passphrase("New passphrase of the signer", confirm=True)
    operations = make_signer(folder, passphrase, database, token_uri)
    _print(caller, operations, folder)


@signer.command("show", example=_EXAMPLE.format("show"))
@_FOLDER
@_DATABASE
@_TOKEN
@with_passphrase_options
def show(caller: Caller, folder: Path, database: str | None, token_uri: str | None) -> None:
    """Show the signer's log, the last checkpoint that it has signed, and its public keys."""
    _print(caller, _open(caller, folder, database, token_uri), folder)


@signer.command(
    "serve", example=_EXAMPLE.format("serve") + " \\\n  --socket /run/appliance-signer/socket --user appliance"
)
@_FOLDER
@_DATABASE
@_TOKEN
@click.option("--socket", required=True, type=PATH, metavar="PATH", help="The socket to listen at.")
@click.option("--user", required=True, metavar="USER", help="The service's account, which alone may use the socket.")
@with_passphrase_options
def serve(caller: Caller, folder: Path, database: str | None, token_uri: str | None, socket: Path, user: str) -> None:
    """Sign for the service until a signal. It signs each size of its log once, and stores that before it answers."""
    from appliance.client.support.agent_process import forbid_dumps
    from appliance.signer.opening import lock_signer
    from appliance.signer.server import Server
    from appliance.systemd import notify

    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        raise BadInput(f"signer, user: expected an account of this machine, got {user}") from None
    forbid_dumps()
    operations = _open(caller, folder, database, token_uri)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    with lock_signer(folder), closing(Server(operations, socket, frozenset({uid}))) as server:
        notify("READY=1", "STATUS=signs")
        say(f"signs for {user} at {socket}")
        server.serve()


@signer.command("adopt", example=_EXAMPLE.format("adopt") + " --home /var/lib/appliance")
@_FOLDER
@_DATABASE
@_TOKEN
@with_passphrase_options
def adopt(caller: Caller, folder: Path, database: str | None, token_uri: str | None) -> None:
    """Move the signing keys of the appliance's home into the signer, and continue at the log's checkpoint.

    Stop the service first, and set `signer_socket` before it starts again. Root can type this: it acts as the owners of
    both folders. The passphrase is a new one, that of the signer's keys, or the PIN of the token. Earlier backups still
    have the keys. An interrupted command continues if it is repeated.
    """
    from appliance.config.settings import load_settings
    from appliance.signer import moving

    settings = load_settings(caller.home)
    passphrase = caller.ask_passphrase("Passphrase of the signer", confirm=token_uri is None)
    url = settings.database_url.get_secret_value()
    found = moving.adopt(settings.home, settings.keys, url, settings.lock, folder, passphrase, database, token_uri)
    _print_signed(caller, found.origin, found.after.size)


@signer.command(
    "move-keys",
    example=_EXAMPLE.format("move-keys")
    + " \\\n  --pkcs11 'pkcs11:token=appliance?module-path=/usr/lib/libhsm.so' \\\n  --pin-file pin",
)
@_FOLDER
@click.option("--pkcs11", "token_uri", required=True, metavar="URI", help="The PKCS#11 token to move the keys into.")
@click.option("--pin-file", type=PATH, metavar="FILE", help="The token's PIN, in a 0600 file. Default: the passphrase.")
@with_passphrase_options
def move_keys(caller: Caller, folder: Path, token_uri: str, pin_file: Path | None) -> None:
    """Move the signer's keys from its files into a PKCS#11 token.

    Stop the signer first. The token imports each key and signs with it, and only then are the files removed. An
    interrupted command continues if it is repeated. The passphrase is that of the files. Copies of the files, such as
    backups, still have the keys.
    """
    from appliance.client.support.profile import passphrase_of_file
    from appliance.signer import moving

    passphrase = caller.ask_passphrase("Passphrase of the signer's files")
    pin = passphrase if pin_file is None else passphrase_of_file(pin_file)
    moved = moving.move_to_token(folder, passphrase, token_uri, pin)
    names = ", ".join(name.removeprefix("file:") for name in moved) or "none left in files"
    print_result(caller.json, {"moved": moved}, [("moved keys", names)])


@signer.command(
    "step-back",
    example=_EXAMPLE.format("step-back step-back.json") + " \\\n  --administrators trust.json",
)
@click.argument("file", type=PATH)
@_FOLDER
@_DATABASE
@_TOKEN
@click.option(
    "--administrator-key",
    "keyids",
    metavar="KEYID",
    multiple=True,
    help="The key id of an administrator whom you trust. Repeat it. Default: those of the trust file.",
)
@click.option(
    "--administrators", "trust", metavar="TRUST", default="", help="A trust file, which names the first administrators."
)
@click.option("--single-administrator", is_flag=True, help="One signature is enough: the site has one administrator.")
@with_passphrase_options
def step_back(
    caller: Caller,
    file: Path,
    folder: Path,
    database: str | None,
    token_uri: str | None,
    keyids: tuple[str, ...],
    trust: str,
    single_administrator: bool,
) -> None:
    """Continue a log that was restored to fewer entries, as two administrators ordered in FILE.

    Stop the signers of all hosts first. Take the administrators' key ids from a place that the service's account cannot
    change. The signer must have signed the checkpoint that the log keeps. The one that it gives up stays in its record.
    """
    from appliance.client.support.files import read_file
    from appliance.formats.log.restoration import MAX_RESTORATION_BYTES
    from appliance.signer.opening import lock_signer
    from appliance.witness import list_administrators

    data = read_file(file, "step-back file", MAX_RESTORATION_BYTES)
    administrators = list_administrators(trust, keyids, "--administrators")
    operations = _open(caller, folder, database, token_uri)
    with lock_signer(folder):
        found = operations.step_back(data, administrators, signatures=1 if single_administrator else 2)
    step = found.step
    if caller.json:
        print_json({"origin": step.kept.origin, "size": step.kept.size, "lost": step.lost.size})
    else:
        say(f"{' and '.join(found.signers)} ordered it at {step.ordered_at}.")
        given_up = f"the entries {step.kept.size:,} to {step.lost.size - 1:,}"
        print_facts([("log", step.kept.origin), ("entries signed", f"{step.kept.size:,}"), ("given up", given_up)])
    say("next: start the signer, then on the service's host: appliance restoration submit FILE")


def _print_signed(caller: Caller, origin: str, size: int) -> None:
    facts = [("log", origin), ("entries signed", f"{size:,}")]
    print_result(caller.json, {"origin": origin, "size": size}, facts)


def _open(caller: Caller, folder: Path, database: str | None, token: str | None) -> Operations:
    from appliance.signer.opening import open_signer

    return open_signer(folder, caller.ask_passphrase("Passphrase of the signer"), database, token)


def _print(caller: Caller, operations: Operations, folder: Path) -> None:
    found = operations.describe()
    facts = [
        ("folder", str(folder)),
        ("log", found.origin or "none yet"),
        ("entries signed", f"{found.size:,}"),
        ("root", found.root or "none yet"),
        *(("log key", key) for key in found.log_keys),
        ("adapter key", found.adapter_key),
        *(("stepped back", f"{lost:,} → {kept:,} entries") for lost, kept in found.steps_back),
    ]
    print_result(caller.json, found._asdict(), facts)
