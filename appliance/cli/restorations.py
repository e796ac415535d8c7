"""Commands by which two administrators accept that the log continues from an older state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, REASON, with_session_options, with_signing_options
from appliance.cli.support.groups import restoration
from appliance.cli.support.output import print_result, say
from appliance.cli.support.signing import order_action, print_outcome, show_proposal, sign_and_submit, sign_only
from appliance.errors import BadInput, Conflict

if TYPE_CHECKING:
    from appliance.client.restorations import KnownCheckpoint, LogToRestore
    from appliance.client.support.orders import SignedOrder
    from appliance.domain.actions.proposals import Proposal
    from appliance.formats.log.restoration import StepBackFile

_MAX_NOTE_BYTES = 65_536
_SECOND = "another administrator types: appliance restoration countersign"


@restoration.command("show", example="appliance restoration show")
@with_session_options
def show(caller: Caller) -> None:
    """Show the log's size, which larger checkpoints are known, waiting orders and restorations. Needs no key."""
    found = _read(caller)
    losses = [*found.losses, *_find_own_note(caller, found)]
    waiting = ", ".join(f"{one.digest[:19]} by {one.proposal.order.signer}" for one in found.waiting) or "none"
    print_result(
        caller.json,
        {
            "waits": found.waits,
            "signer_ahead": found.signer_ahead,
            "size": found.head.size,
            "lost": [one.checkpoint.size for one in losses],
            "waiting": [pending.digest for pending in found.waiting],
            "restorations": found.restorations,
        },
        [
            ("log", f"{found.head.size:,} entries"),
            *(("larger", f"{one.checkpoint.size:,} entries, known from {one.source}") for one in losses),
            *([("signer", "has to step back before the service can record an order")] if found.signer_ahead else []),
            ("waiting", waiting),
            *(
                ("restored", f"entry {one.index} by {' and '.join(one.signers)}: {one.lost_size:,} → {one.kept_size:,}")
                for one in found.restorations
            ),
        ],
    )


@restoration.command("order", example="appliance restoration order\nappliance restoration order --checkpoint w1.state")
@click.option(
    "--checkpoint",
    "files",
    metavar="FILE",
    type=PATH,
    multiple=True,
    help="A newer checkpoint of the log: a witness's state, or what an account has seen. The largest is given up.",
)
@click.option(
    "--kept",
    metavar="SIZE",
    type=click.IntRange(1),
    help="The entries of the backup, if the service has recorded others since the restore. Default: all.",
)
@click.option(
    "--output", metavar="FILE", type=PATH, help="Write the signed order here, for a signer that has to step back."
)
@with_signing_options
def order(caller: Caller, files: tuple[Path, ...], kept: int | None, output: Path | None) -> None:
    """Order that the log continues from its present entries and gives up a newer checkpoint. Needs two administrators.

    Suspends every approved version and ends every token, since what revoked them may be among the lost entries.

    With a signer that has signed more than the log has, the order goes into a file. After the signer has stepped back,
    `restoration submit` submits it.
    """
    from appliance.client.restorations import check_signer, check_signers, choose_lost, make_step_back, open_note
    from appliance.client.support.files import read_file, write_new

    found = _read(caller, kept)
    check_signer(found, output)
    given = [open_note(read_file(path, "checkpoint", _MAX_NOTE_BYTES), caller.anchor, str(path)) for path in files]
    lost = choose_lost([*given, *found.losses, *_find_own_note(caller, found)], found.kept)
    proposal = caller.propose("restore-log", found.values(lost), documents={"lost": lost.note})
    notes = _describe_loss(lost.checkpoint.size, lost.source, found)
    if output is not None:
        signed, key = sign_only(caller, proposal, notes)
        check_signers(_read(caller, found.kept.size, key.keyid), (key.keyid,))
        write_new(output, make_step_back(signed, key, lost, found), "step-back file", 0o644)
        second = f"another administrator types: appliance restoration countersign {output} --output step-back.json"
        alone = f"appliance signer step-back {output}"
        _print_written(caller, output, f"{second}; at a site with one administrator, on the signer's host: {alone}")
        return
    receipt = sign_and_submit(caller, proposal, notes)
    print_outcome(caller, receipt, "the log is restored", _list_next_steps(), following=_SECOND)


@restoration.command(
    "countersign",
    example="appliance restoration countersign\nappliance restoration countersign anna.json --output step-back.json",
)
@click.argument("file", required=False, type=PATH)
@click.option("--output", metavar="FILE", type=PATH, help="Write both orders here. For an order in a file.")
@with_signing_options
def countersign(caller: Caller, file: Path | None, output: Path | None) -> None:
    """Countersign the other administrator's order, which then takes effect.

    An order in FILE takes effect after the signer has stepped back and `restoration submit` has submitted it.
    """
    from appliance.client.restorations import find_order

    if (file is None) != (output is None):
        raise BadInput("restoration: expected FILE and --output together, or neither, got one of them")
    if file is not None and output is not None:
        _countersign_file(caller, file, output)
        return
    first = find_order(_read(caller))
    notes = _show_first(caller, first.proposal, f", entry {first.index} of the log")
    values, done = {"order": first.digest}, "the log is restored"
    order_action(caller, "countersign", values, done, _list_next_steps(), notes=notes)


def _countersign_file(caller: Caller, file: Path, output: Path) -> None:
    from appliance.client.restorations import (
        add_countersignature,
        check_signer,
        check_signers,
        extend_countersignature,
    )
    from appliance.client.support.files import write_new

    found = _read(caller)
    check_signer(found, output)
    read, first = _read_file(caller, file)
    notes = _show_first(caller, first.proposal, f" in {file}")
    proposal = extend_countersignature(caller.propose("countersign", {"order": first.digest}), first)
    signed, key = sign_only(caller, proposal, notes)
    keyids = (first.envelope.signature.keyid, key.keyid)
    check_signers(_read(caller, _kept_size(first), *keyids), keyids)
    write_new(output, add_countersignature(read, signed, key), "step-back file", 0o644)
    _print_written(caller, output, f"on the signer's host: appliance signer step-back {output}")


def _kept_size(signed: SignedOrder) -> int:
    from appliance.domain.governance.restoration import RestoreLog

    assert isinstance(signed.proposal.order, RestoreLog)
    return signed.proposal.order.kept_size


def _show_first(caller: Caller, proposal: Proposal, place: str) -> list[str]:
    """Check the first administrator's order against the log, and show it. Return the notes about it."""
    from appliance.client.restorations import check_kept
    from appliance.domain.governance.restoration import RestoreLog

    wanted = proposal.order
    assert isinstance(wanted, RestoreLog)
    found = _read(caller, wanted.kept_size)
    check_kept(wanted, found)
    show_proposal(proposal, f"The order of {wanted.signer}{place}:")
    notes = _describe_loss(wanted.lost_size, f"the order of {wanted.signer}", found)
    larger = [one for one in (*found.losses, *_find_own_note(caller, found)) if one.checkpoint.size > wanted.lost_size]
    return notes + [
        f"  WARNING: {one.checkpoint.size:,} entries are known from {one.source}. This order does not cover them."
        for one in larger
    ]


@restoration.command("withdraw", example="appliance restoration withdraw")
@REASON
@with_signing_options
def withdraw(caller: Caller, reason: str | None) -> None:
    """Withdraw your own order that waits for the other administrator. It then ends without effect.

    The service does not have an order that is in a file. Both administrators delete that file.
    """
    from appliance.client.restorations import find_own_order

    first = find_own_order(_read(caller), caller.signer)
    show_proposal(first.proposal, f"Your order, entry {first.index} of the log:")
    order_action(caller, "withdraw-order", {"order": first.digest}, "the order was withdrawn", texts={"reason": reason})


@restoration.command("submit", example="appliance restoration submit step-back.json")
@click.argument("file", type=PATH)
@with_session_options
def submit(caller: Caller, file: Path) -> None:
    """Submit the signed orders in FILE after the signer has stepped back. Needs no key."""
    from appliance.client.restorations import list_orders
    from appliance.client.support.orders import submit as submit_order

    found, receipt = _read(caller), None
    for signed in list_orders(*_read_file(caller, file), found):
        receipt = submit_order(caller.connection, signed, caller.anchor.log_keys)
        say(f"recorded: {receipt.type} is entry {receipt.index} of the log ({receipt.outcome}).")
    if receipt is None:
        raise Conflict(
            "restoration: expected an order that the service has not recorded yet, got one that waits; another "
            "administrator signs it with: appliance restoration countersign"
        )
    print_outcome(caller, receipt, "the log is restored", _list_next_steps(), following=_SECOND)


def _read_file(caller: Caller, file: Path) -> tuple[StepBackFile, SignedOrder]:
    from appliance.client.restorations import read_step_back
    from appliance.client.support.files import read_file
    from appliance.formats.log.restoration import MAX_RESTORATION_BYTES

    return read_step_back(read_file(file, "step-back file", MAX_RESTORATION_BYTES), caller.anchor)


def _print_written(caller: Caller, output: Path, following: str) -> None:
    print_result(caller.json, {"file": str(output)}, [("signed", str(output))])
    say(f"next: {following}")


@restoration.command("export", example="appliance restoration export restoration.json")
@click.argument("file", type=PATH)
@click.option("--entry", metavar="ENTRY", type=click.IntRange(1), help="Its entry. Default: the latest restoration.")
@with_session_options
def export(caller: Caller, file: Path, entry: int | None) -> None:
    """Write a file that proves a restoration to witnesses: order, countersignature, and the proof of the entry."""
    from appliance.client.restorations import make_file
    from appliance.client.support.files import write_new

    data, verified = make_file(caller.reading(), caller.anchor, entry)
    write_new(file, data, "restoration file", 0o644)
    value = {
        "file": str(file),
        "entry": verified.index,
        "kept": verified.step.kept.size,
        "lost": verified.step.lost.size,
        "signers": ", ".join(verified.signers),
    }
    print_result(caller.json, value)
    say(f"next: on each witness's machine: appliance-witness accept-restoration {file}")


def _read(caller: Caller, kept: int | None = None, *keyids: str) -> LogToRestore:
    """Return the log's losses. This account may have seen more than the log has, so that is not compared here."""
    from appliance.client.restorations import read_restoration

    caller.restores = True
    _ = caller.about_without_session
    return read_restoration(caller.connection, caller.anchor, kept, keyids)


def _find_own_note(caller: Caller, found: LogToRestore) -> list[KnownCheckpoint]:
    """Return the checkpoint that this account has seen, if the log has fewer entries."""
    from appliance.client.restorations import open_note
    from appliance.client.support.log import find_newest

    seen = find_newest(caller.connection, caller.anchor, caller.trust)
    if seen is None or seen.checkpoint.size <= found.head.size:
        return []
    return [open_note(seen.note, caller.anchor, "this account")]


def _describe_loss(lost: int, source: str, found: LogToRestore) -> list[str]:
    kept = found.kept.size
    notes = [
        f"  The log has {found.head.size:,} entries here, and keeps {kept:,} of those from before the restore.",
        f"  Given up: the entries {kept:,} to {lost - 1:,}, {lost - kept:,} in all, known from {source}.",
        "  Approvals, revocations, leavers, stolen keys, findings and erasures among them are gone. An older export or",
        "  the records of your site say which. Revoke again what was revoked, before you resume anything.",
    ]
    if not found.waits:
        notes.append("  Entries after the kept ones stay in the log.")
    return notes


def _list_next_steps() -> list[str]:
    return [
        "All approved versions are suspended and all tokens have ended.",
        "next: revoke again what was revoked, then: appliance release resume, for each version",
        "next: appliance restoration export FILE, for the witnesses",
    ]
