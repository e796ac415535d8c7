"""Administrators, and auditors for holds: what keeps the log's evidence, and what may go of it."""

from __future__ import annotations

import click

from appliance.cli.people import end_of_overlap
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.output import print_json, print_table
from appliance.cli.support.signing import sign_and_submit, tell
from appliance.errors import BadInput

_REASON = click.option("--reason", metavar="TEXT", help="Why, in your words; can be erased later.")


@group("log-key", example="appliance log-key rotate --old-until 30d")
def log_key() -> None:
    """The key that signs the log's checkpoints. The service holds it; two administrators replace it."""


@log_key.command("rotate", example="appliance log-key rotate\nappliance log-key rotate --old-until 30d")
@click.option(
    "--old-until", metavar="TIME", help="Until when the old key also signs. Default: as long as policy allows."
)
@signs
@click.pass_obj
def rotate(caller: Caller, old_until: str | None) -> None:
    """Have the log's checkpoints signed by a new key, which the service makes and keeps. Needs two administrators.

    Until TIME the old key signs beside it: 2026-11-24, a whole time in UTC, 90m, 2h, 7d, 4w from now, or now for at
    once. Give witnesses that time, since they know a log by its key.
    """
    from appliance.client.retention import next_log_key, propose_log_key

    until = end_of_overlap(caller, old_until)
    vkey = next_log_key(caller.reading())
    proposal = propose_log_key(caller.about, caller.signer, vkey, until)
    receipt = sign_and_submit(caller, proposal, successor=vkey)
    tell(caller, receipt, "the log has another key", after_rotation(vkey, until))


def after_rotation(vkey: str, old_until: str) -> list[str]:
    """What people are told once the log has a new key."""
    return [
        "Trust files stay valid: appliance-verify follows the log from its first key to this one.",
        f"Two of you tell each witness the new key before {old_until}, not by the stick alone. From then on they type:",
        f"appliance-witness cosign REQUEST --log '{vkey}' and the rest as before",
    ]


@group("text", example="appliance text erase --printed-name-of mallory")
def text() -> None:
    """Printed names and free texts. The log has their commitments only, so they can be erased."""


@text.command(
    "erase",
    example="appliance text erase --printed-name-of mallory\nappliance text erase --entry 41 --field reason",
)
@click.option("--printed-name-of", "name", metavar="NAME", help="The printed name of this person or unit.")
@click.option("--entry", type=click.IntRange(0), metavar="ENTRY", help="A text of this entry.")
@click.option("--field", metavar="FIELD", help="Which of its texts, such as reason, meaning, owner or message.")
@signs
@click.pass_obj
def erase(caller: Caller, name: str | None, entry: int | None, field: str | None) -> None:
    """Erase a text for ever. The log still verifies, as it holds only a commitment. Needs two administrators.

    Refused while retention or a legal hold keeps it. A printed name is kept while its owner is enrolled, and for a time
    after.
    """
    from appliance.client.retention import find_printed_name, find_text, propose_erasure

    if (name is None) == (entry is None):
        raise BadInput(f"text: expected --printed-name-of or --entry, got {'neither' if name is None else 'both'}")
    door = caller.reading()
    if name is not None:
        found = find_printed_name(door, caller.anchor, name)
    else:
        assert entry is not None
        found = find_text(door, caller.anchor, entry, field)
    what = f"the {found.field.replace('_', ' ')} of entry {found.entry}"
    proposal = propose_erasure(caller.about, caller.signer, found)
    receipt = sign_and_submit(caller, proposal, [f"This is {what}. Copies that people made are not reached."])
    tell(caller, receipt, f"{what} is erased")


@group("hold", example="appliance hold list")
def hold() -> None:
    """Legal holds: while one is in force, no text of an entry about its subject is erased."""


@hold.command("place", example="appliance hold place dataset:clauses@1 --reason 'case 12/2026'")
@click.argument("subject")
@_REASON
@signs
@click.pass_obj
def place(caller: Caller, subject: str, reason: str | None) -> None:
    """Keep every text about SUBJECT, such as principal:ada or adapter:clauses@1. An administrator or an auditor."""
    from appliance.client.retention import propose_hold

    receipt = sign_and_submit(caller, propose_hold(caller.about, caller.signer, subject, reason))
    tell(caller, receipt, f"texts about {subject} are kept")


@hold.command("lift", example="appliance hold lift dataset:clauses@1")
@click.argument("subject")
@_REASON
@signs
@click.pass_obj
def lift(caller: Caller, subject: str, reason: str | None) -> None:
    """End the hold on SUBJECT. Needs two administrators."""
    from appliance.client.retention import propose_lift

    receipt = sign_and_submit(caller, propose_lift(caller.about, caller.signer, subject, reason))
    tell(caller, receipt, f"there is no hold on {subject}")


@hold.command("list", example="appliance hold list")
@reads
@click.pass_obj
def list_holds(caller: Caller) -> None:
    """Every hold in force, and who placed it."""
    rows = caller.reading().get("/v1/holds")
    if caller.json:
        print_json(rows)
        return
    print_table(("subject", "by", "entry"), [(r["subject"], r["signer"], r["index"]) for r in rows])
