"""Imports that were ordered: how each ended, and how one that waits or is under way is cancelled."""

from __future__ import annotations

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.output import print_facts, print_json, print_table
from appliance.cli.support.signing import receipt_value, sign_and_submit


@group("import", example="appliance import list")
def imports() -> None:
    """Imports that were ordered: list, cancel."""


@imports.command("list", example="appliance import list")
@reads
@click.pass_obj
def list_imports(caller: Caller) -> None:
    """Every import, in the order in which they were ordered."""
    rows = sorted(caller.reading().get("/v1/imports"), key=lambda row: int(row["index"]))
    if caller.json:
        print_json(rows)
        return
    columns = ("subject", "status", "signer", "index", "order")
    print_table(("import of", "status", "ordered by", "entry", "order"), [[row[c] for c in columns] for row in rows])


@imports.command("cancel", example="appliance import cancel base:smollm2")
@click.argument("what", metavar="IMPORT")
@signs
@click.pass_obj
def cancel(caller: Caller, what: str) -> None:
    """End an import that waits or is under way: the one who ordered it may, or an administrator.

    IMPORT is what it imports, such as base:smollm2 or dataset:clauses, or the digest of its order.
    """
    from appliance.client.imports import propose_cancel_import

    proposal = propose_cancel_import(caller.reading(), caller.anchor, caller.signer, what)
    receipt = sign_and_submit(caller, proposal)
    if caller.json:
        print_json(receipt_value(receipt))
        return
    print_facts([("cancelled", what), ("entry", receipt.index)])
