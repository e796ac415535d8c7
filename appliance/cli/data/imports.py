"""Imports that were ordered: how each ended, and how one that waits or is under way is cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.following import ImportDisplay
from appliance.cli.support.output import plain, print_facts, print_json, print_table, say
from appliance.cli.support.signing import receipt_value, sign_and_submit

if TYPE_CHECKING:
    from appliance.client.support.orders import Receipt


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
    """End an import that waits or runs. The person who ordered it or an administrator may do so.

    IMPORT is what it imports, such as base:smollm2 or dataset:clauses, or the digest of its order.
    """
    from appliance.client.imports import propose_cancel_import

    proposal = propose_cancel_import(caller.reading(), caller.anchor, caller.signer, what)
    receipt = sign_and_submit(caller, proposal)
    if caller.json:
        print_json(receipt_value(receipt))
        return
    print_facts([("cancelled", what), ("entry", receipt.index)])


def finish_import(caller: Caller, receipt: Receipt, wait: bool) -> None:
    """Waits for the import that was ordered, and prints what it came to."""
    if not wait:
        print_receipt(caller, receipt)
        return
    result = _wait(caller, receipt.order)
    if caller.json:
        print_json({**receipt_value(receipt), "result": result})
        return
    measured = dict(result.get("facts") or {})
    facts = [(key, value) for key, value in tell_facts(measured) if key not in result]
    listed = [(name, value) for name, value in result.items() if name not in ("facts", "sample")]
    print_facts([*((name, _joined(value)) for name, value in [*listed, *facts]), ("ordered by entry", receipt.index)])
    if "sample" in result:
        say("", "The first row as the model sees it:", *(f"  {plain(line)}" for line in result["sample"].splitlines()))


def _wait(caller: Caller, order: str) -> dict[str, Any]:
    """The import's result. Leaving does not stop it."""
    from appliance.client.imports import wait_for_import

    display = ImportDisplay()
    caller.go_on = f"the import goes on; look for its end with: appliance ledger log --subject order:{order}"
    try:
        return wait_for_import(caller.reading(), order, display.take)
    finally:
        display.close()


def tell_facts(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    """What an import measured, without what only a plan reads."""
    return [(key.replace("_", " "), value) for key, value in facts.items() if not isinstance(value, dict)]


def _joined(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def print_receipt(caller: Caller, receipt: Receipt) -> None:
    """What the service answered to an order."""
    if caller.json:
        print_json(receipt_value(receipt))
        return
    print_facts([("order", receipt.order), ("entry", receipt.index), ("outcome", receipt.outcome)])
