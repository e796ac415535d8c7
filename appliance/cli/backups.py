"""Commands for backups, which run on the service's host by the service's account, with a running service or without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import FOLDER, PATH, with_common_options
from appliance.cli.support.groups import backup
from appliance.cli.support.output import print_facts, print_json, print_result, print_table, say
from appliance.errors import BadInput, Conflict
from appliance.formats.core.text import show_bytes

if TYPE_CHECKING:
    from appliance.formats.log.trust import Trust

_NICENESS = 10
"""Niceness of a process that makes a backup, so that units are answered at nearly the same pace meanwhile."""
_FOLDER = click.argument("folder", metavar="FOLDER", type=PATH)
_OPTIONAL_FOLDER = click.argument("folder", metavar="[FOLDER]", type=PATH, required=False)
_NAME = click.argument("name", metavar="NAME")
_IDENTITY = click.option(
    "--identity",
    "identities",
    metavar="FILE",
    type=PATH,
    multiple=True,
    help="A private key of age, as age-keygen writes it. Repeat it for several.",
)
_TRUST = click.option("--trust", metavar="FILE", type=PATH, help="The trust file, kept elsewhere than the backup.")
_LOG_KEY = click.option("--log-key", metavar="VKEY", help="The log's key, if it was rotated after `init`.")


@backup.command("create", example="appliance backup create /media/backup")
@_OPTIONAL_FOLDER
@click.option(
    "--checkpoints/--no-checkpoints",
    default=True,
    show_default=True,
    help="Copy the training checkpoints and steps of runs that may be resumed or replayed.",
)
@with_common_options
def create(caller: Caller, folder: Path | None, checkpoints: bool) -> None:
    """Copy the log, the sealed folders, the settings and the keys into FOLDER, encrypted and verified.

    Without FOLDER it is that of the setting `backup_folder`. The settings `backup_recipients` and
    `backup_key_recipients` say who can open it. What an earlier backup in FOLDER has is not written again. The backup
    is listed once all of it was written, read again and compared.
    """
    from appliance import wiring

    os.nice(_NICENESS)
    made = wiring.create_backup(caller.settings, folder, with_checkpoints=checkpoints, say=say)
    facts = [
        ("backup", made.backup.name),
        ("log", f"{made.entries:,} entries"),
        ("size", f"{show_bytes(made.backup.size)}, of which {show_bytes(made.new_bytes)} are new"),
        ("opened by", ", ".join(made.backup.recipients)),
    ]
    facts += [("missing", f"{subject}, which is revoked") for subject in made.missing]
    if caller.json:
        print_json(
            {"backup": made.backup.name, "entries": made.entries, "bytes": made.backup.size}
            | {"new_bytes": made.new_bytes, "missing": made.missing}
        )
        return
    print_facts(facts)
    say("next: keep the folder on another machine, and try a restore once: docs/operations/backup.md")


@backup.command("list", example="appliance backup list /media/backup --json")
@_OPTIONAL_FOLDER
@_TRUST
@_LOG_KEY
@with_common_options
def list_backups(caller: Caller, folder: Path | None, trust: Path | None, log_key: str | None) -> None:
    """List the backups in FOLDER, oldest first. The signature of each is verified, and no object is read.

    On a host without this appliance's home, give the trust file.
    """
    from appliance import wiring

    found = wiring.list_backups(caller.settings, folder, None if trust is None else _load_trust(trust), log_key)
    if caller.json:
        print_json(
            [
                {"name": one.name, "problem": one.problem or None, "entries": one.entries}
                | ({} if one.backup is None else {"bytes": one.backup.size, "build": one.backup.build})
                for one in found
            ]
        )
        return
    print_table(
        ("backup", "entries", "size", "build", "manifest"),
        [
            (one.name, "", "", "", one.problem)
            if one.backup is None
            else (one.name, f"{one.entries:,}", show_bytes(one.backup.size), one.backup.build, "signed")
            for one in found
        ],
        empty="The folder has no backup. Make one with: appliance backup create",
    )


@backup.command(
    "verify", example="appliance backup verify /media/backup\nappliance backup verify /media/backup --identity data.txt"
)
@_FOLDER
@click.argument("name", metavar="[NAME]", required=False)
@_IDENTITY
@_TRUST
@_LOG_KEY
@with_common_options
def verify(
    caller: Caller,
    folder: Path,
    name: str | None,
    identities: tuple[Path, ...],
    trust: Path | None,
    log_key: str | None,
) -> None:
    """Verify one backup, or all in FOLDER: its signature, and every byte of its objects.

    With --identity everything is decrypted, too, and the log in it is verified. With the identities of two
    administrators the keyring is decrypted as well.
    """
    from appliance import wiring

    found = wiring.verify_backups(
        caller.settings, folder, name, identities, None if trust is None else _load_trust(trust), log_key, say
    )
    if caller.json:
        print_json([{"name": one.backup.name, "opened": one.opened, "keyring": one.keyring} for one in found])
        return
    words = {True: "opened and compared", False: "not opened"}
    print_table(
        ("backup", "bytes", "content", "keyring"),
        [(one.backup.name, "as signed", words[one.opened], words[one.keyring]) for one in found],
    )


@backup.command("remove", example="appliance backup remove /media/backup 20261129T013000Z")
@_FOLDER
@_NAME
@click.option("--newest", is_flag=True, help="Remove it even if it is the newest backup in FOLDER.")
@with_common_options
def remove(caller: Caller, folder: Path, name: str, newest: bool) -> None:
    """Remove a backup, with the objects that no other backup in FOLDER uses."""
    from appliance import wiring

    wiring.remove_backup(caller.settings, folder, name, newest=newest)
    print_result(caller.json, {"removed": name})


@backup.command(
    "restore",
    example=(
        "appliance backup restore /media/backup 20261129T013000Z --folder ~/appliance --trust trust.json \\\n"
        "    --identity data.txt --identity anna.txt --identity boris.txt"
    ),
)
@_FOLDER
@_NAME
@click.option(
    "--folder", "home", metavar="FOLDER", type=FOLDER, required=True, help="The new home: an empty or a new folder."
)
@_IDENTITY
@_TRUST
@_LOG_KEY
@click.option(
    "--erasures",
    metavar="FILE",
    type=PATH,
    help="A newer export of the log: erase what was erased after the backup.",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    metavar="FILE",
    type=PATH,
    multiple=True,
    help="A newer checkpoint of the log, to compare with: a witness's state, or what an account has seen. Repeatable.",
)
@with_common_options
def restore(
    caller: Caller,
    folder: Path,
    name: str,
    home: Path,
    identities: tuple[Path, ...],
    trust: Path | None,
    log_key: str | None,
    erasures: Path | None,
    checkpoints: tuple[Path, ...],
) -> None:
    """Make a home from a backup. It stays stopped until `appliance backup confirm`.

    Needs an identity that opens the data, those of two administrators, and the trust file. The log, every key and every
    sealed folder are verified before the home gets its name. A log on PostgreSQL is put into the empty database that
    the restored settings or the environment name.
    """
    from appliance import wiring

    trust = trust or caller.trust_file
    if trust is None:
        raise BadInput("restore: expected --trust FILE, a trust file that was kept elsewhere than the backup, got none")
    done = wiring.restore_backup(
        folder,
        name,
        home,
        _load_trust(trust),
        identities=identities,
        log_key=log_key,
        erasures=erasures,
        checkpoints=checkpoints,
        say=say,
    )
    print_result(
        caller.json,
        {"backup": done.backup.name, "home": str(done.home), "entries": done.entries, "files": done.files}
        | {"erased": done.erased, "lost": done.lost, "moved": done.moved},
        [
            ("restored", str(done.home)),
            ("backup", f"{done.backup.name}, build {done.backup.build}"),
            ("log", f"{done.entries:,} entries, verified"),
            ("files", f"{done.files:,}"),
            *([] if erasures is None else [("erased", f"{done.erased:,} texts, as the newer export says")]),
            *(("LOST", text) for text in done.lost),
            *(("put", text) for text in done.moved),
        ],
    )
    say(
        "The home is stopped. See that no other copy of this appliance runs, and that none can start.",
        f"next: appliance backup confirm --home {done.home}",
    )


@backup.command("confirm", example="appliance backup confirm --home ~/appliance")
@click.option("--yes", "confirmed", is_flag=True, help="Confirm without being asked.")
@with_common_options
def confirm(caller: Caller, confirmed: bool) -> None:
    """Confirm that a restored home is the only copy of its appliance, so that its service can start.

    Two services on copies of one log make two histories. Clients and witnesses then refuse both.
    """
    from appliance import wiring

    home = caller.folder.home
    mark = wiring.read_restored(home)
    say(f"{home} was restored from the backup {mark.backup} with {mark.entries:,} entries.")
    say(*(f"LOST: {text}" for text in mark.lost))
    if not (confirmed or caller.yes) and not click.confirm("Is it certain that no other copy can start?", err=True):
        raise Conflict("restored home: expected the confirmation, got none; nothing was changed")
    wiring.confirm_restored(home)
    print_result(caller.json, {"confirmed": str(home)})
    if mark.lost:
        say(
            "The lost entries may have revoked something. Nothing serves before two administrators have ordered a "
            "restoration of the log.",
            "next: appliance serve --restoration, then in another terminal: appliance restoration order",
        )
        return
    say("next: appliance doctor, then: appliance serve")


def _load_trust(path: Path) -> Trust:
    from appliance.client.support.files import read_file
    from appliance.formats.log.trust import parse_trust

    return parse_trust(read_file(path, "trust file", 65_536))
