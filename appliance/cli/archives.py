"""Commands for archives of records: prepare and order one, compare one that another administrator ordered, list all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, REASON, with_session_options, with_signing_options
from appliance.cli.support.groups import ledger
from appliance.cli.support.output import print_result, print_rows, say
from appliance.cli.support.signing import print_outcome, sign_and_submit
from appliance.errors import BadInput, Tampered
from appliance.formats.core.text import show_bytes

if TYPE_CHECKING:
    from appliance.client.retention import PreparedArchive
    from appliance.domain.core.names import RecordClass

_RECORDS = click.Choice(("previews", "refusals", "replays", "requests"))
"""The classes of records, as `domain.core.names.RecordClass` has them."""


@ledger.command(
    "archive",
    example=(
        "appliance ledger archive archive-2026.tar --dry-run\n"
        "appliance ledger archive archive-2026.tar --records requests --reason 'retention plan 2026'\n"
        "appliance ledger archive copy.tar --check 5f0d2c"
    ),
)
@click.argument("file", type=PATH, metavar="FILE")
@click.option(
    "--up-to",
    type=click.IntRange(1),
    metavar="ENTRY",
    help="Remove records before this entry. Default: all that are past their retention.",
)
@click.option(
    "--records",
    type=_RECORDS,
    multiple=True,
    help="Remove records of this class. Repeat it for several. Default: all that the policy names.",
)
@click.option("--dry-run", is_flag=True, help="Write and verify the archive, say what could be removed, order nothing.")
@click.option("--check", "pending", metavar="ORDER", help="Compare the archive with this pending order; order nothing.")
@REASON
@with_signing_options
def archive(
    caller: Caller,
    file: Path,
    up_to: int | None,
    records: tuple[RecordClass, ...],
    dry_run: bool,
    pending: str | None,
    reason: str | None,
) -> None:
    """Write an archive to FILE and order the removal of records past their retention. Needs two administrators.

    The archive is an export of all entries that as many witnesses as policy requires, at least one, have cosigned. It
    is verified here with the trust file before anything is ordered. Records under a legal hold stay, and records that
    have not ended. The second administrator makes an archive of their own with --check before they countersign. Keep
    the file: the log has only hashes of what was removed.
    """
    from appliance.client.retention import prepare

    if pending is not None:
        _check(caller, file, pending)
        return
    prepared = prepare(caller.reading(), caller.trust, file, up_to, records)
    if dry_run:
        _print(caller, file, prepared)
        return
    proposal = caller.propose(
        "archive-log", prepared.values, texts={"reason": reason}, documents={"removed": prepared.prepared.removed}
    )

    def show_facts() -> None:
        if not caller.json:
            say(*(f"{label}: {text}" for label, text in _facts(file, prepared)))

    receipt = sign_and_submit(caller, proposal, show_subject=show_facts)
    print_outcome(
        caller,
        receipt,
        f"{prepared.prepared.fields.count} entries are removed",
        [f"Keep {file}: from now on only it has the removed records."],
        following="another administrator makes an archive of their own and compares it with the order: "
        + compare_command(receipt.order),
    )


def compare_command(order: str) -> str:
    """Return the command that compares an archive with a pending order, by the order's digest."""
    return f"appliance ledger archive COPY --check {order[7:19]}"


def _facts(file: Path, archive: PreparedArchive) -> list[tuple[str, object]]:
    selection, fields = archive.prepared.selection, archive.prepared.fields
    kept = ", ".join(f"{count} {_KEPT[reason]}" for reason, count in sorted(selection.kept.items()) if count)
    return [
        ("archive", f"{file}, {fields.size} entries, {show_bytes(archive.size)}, verified"),
        ("digest", archive.digest),
        ("removes", f"{fields.count} entries before entry {fields.up_to}, of {fields.last[:10]}"),
        *((f"  {name}", f"{count} entries") for name, count in sorted(selection.removed.items())),
        ("keeps", kept or "none of these classes"),
    ]


_KEPT = {
    "held": "under a legal hold",
    "open": "whose record has not ended",
    "text-shared": "with a text that was erased or that another entry has, too",
}


def _print(caller: Caller, file: Path, archive: PreparedArchive) -> None:
    selection = archive.prepared.selection
    counts = {"removed": dict(selection.removed), "kept": {name: n for name, n in selection.kept.items() if n}}
    value = {"file": str(file), "bytes": archive.size, **archive.values, **counts}
    print_result(caller.json, value, _facts(file, archive))


def _check(caller: Caller, file: Path, digest: str) -> None:
    """Compare an archive that is made here with a pending order.

    Raises:
        Tampered: something differs.
    """
    from appliance.client.retention import prepare
    from appliance.client.support.orders import find_pending, pending_orders, prove_pending
    from appliance.domain.retention import ArchiveLog

    connection = caller.reading()
    found = prove_pending(connection, caller.anchor, find_pending(pending_orders(connection), digest))
    order = found.proposal.order
    if not isinstance(order, ArchiveLog):
        raise BadInput(f"order {digest}: expected archive-log, got {order.action}")
    prepared = prepare(connection, caller.trust, file, order.up_to, order.records, size=order.size)
    differing = [
        f"{name}: expected {value}, got {getattr(order, name)}"
        for name, value in prepared.values.items()
        if getattr(order, name) != value
    ]
    if differing:
        raise Tampered(f"order {found.digest[:19]}: {'; '.join(differing)}", code="archive-differs")
    _print(caller, file, prepared)
    say(
        f"The archive that was made and verified here is that of the order by {order.signer}.",
        f"next: appliance order countersign {found.digest[:19]}",
    )


@ledger.command("archives", example="appliance ledger archives")
@with_session_options
def archives(caller: Caller) -> None:
    """List the archives: what was removed, by whose order, and the digest of the file that has it."""
    from appliance.client.retention import list_archives

    print_rows(
        caller.json,
        list_archives(caller.reading(), caller.anchor),
        ("entry", "on", "removed", "before", "records", "ordered by", "archive"),
        lambda one: (
            one.index,
            one.time[:10],
            one.count,
            one.up_to,
            ", ".join(one.records),
            " and ".join(one.signers),
            one.archive,
        ),
        wraps=True,
        empty="Nothing was archived. Two administrators archive old records with: appliance ledger archive",
    )
