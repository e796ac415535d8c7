"""Findings: what a reviewer found of an adapter, listed and closed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from appliance.cli.reviews.page import finding_text
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.output import print_json, print_table
from appliance.cli.support.signing import sign_and_submit, tell_receipt
from appliance.cli.support.times import END_HELP, parse_end
from appliance.errors import BadInput


@group("finding", example="appliance finding list")
def finding() -> None:
    """What reviewers found of adapters: add, list, close."""


def finding_facts(row: dict[str, Any]) -> list[tuple[str, object]]:
    """A line for each finding of an adapter."""
    return [(f"finding {one['index']}", finding_text(one)) for one in row["findings"]]


@finding.command(
    "add",
    example=(
        "appliance finding add clauses@1 --field privacy --kind issue --severity high --blocks \\\n"
        "    --owner olga --due 14d --text 'It answers names.' --remedy 'Train without them.' --retest 'Ask for them.'"
    ),
)
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--field", required=True, metavar="FIELD", help="Yours.")
@click.option("--kind", required=True, type=click.Choice(["issue", "exception", "limitation"]))
@click.option("--severity", required=True, type=click.Choice(["low", "medium", "high", "critical"]))
@click.option("--blocks", is_flag=True, help="No release of the adapter answers while the finding is open.")
@click.option(
    "--accepts-verdict",
    is_flag=True,
    help="Of an exception: until its due date the adapter may be released though its verdict was not passed.",
)
@click.option("--owner", required=True, metavar="NAME", help="Who removes it.")
@click.option("--due", required=True, metavar="TIME", help=f"Until when. {END_HELP}")
@click.option("--text", required=True, metavar="TEXT", help="What was found.")
@click.option("--remedy", required=True, metavar="TEXT", help="What removes it.")
@click.option("--retest", required=True, metavar="TEXT", help="What shows that it is removed.")
@signs
@click.pass_obj
def add(
    caller: Caller,
    adapter: str,
    field: str,
    kind: str,
    severity: str,
    blocks: bool,
    accepts_verdict: bool,
    owner: str,
    due: str,
    text: str,
    remedy: str,
    retest: str,
) -> None:
    """Record what you found of an adapter. An exception to a policy blocks from its due date on."""
    from appliance.client.releases.decisions import propose_finding

    until = parse_end(due, "due", datetime.now(UTC))
    terms = {"field": field, "kind": kind, "severity": severity, "blocks": blocks, "owner": owner, "due": until}
    terms["accepts_verdict"] = accepts_verdict
    texts = {"finding": text, "remedy": remedy, "retest": retest}
    receipt = sign_and_submit(
        caller, propose_finding(caller.reading(), caller.anchor, caller.signer, adapter, texts, **terms)
    )
    tell_receipt(caller, receipt, [("finding", f"{adapter} {receipt.index}"), ("owner", owner), ("due", until)])


@finding.command("list", example="appliance finding list --open")
@click.option("--adapter", metavar="NAME@VERSION", help="Only this adapter's.")
@click.option("--open", "only_open", is_flag=True, help="Only open ones.")
@reads
@click.pass_obj
def list_findings(caller: Caller, adapter: str | None, only_open: bool) -> None:
    """Every finding, and whether it is open. `review show` has its texts."""
    from appliance.domain.core.words import unknown_word

    rows = caller.reading().get("/v1/adapters")
    names = {f"{row['name']}@{row['version']}": row for row in rows}
    if adapter is not None and adapter not in names:
        raise BadInput(unknown_word("adapter", adapter, names, "a sealed one"))
    found = [
        {"adapter": name, **one}
        for name, row in names.items()
        for one in row["findings"]
        if adapter in (None, name) and (one["open"] or not only_open)
    ]
    if caller.json:
        print_json(found)
        return
    print_table(
        ("adapter", "entry", "status", "finding", "owner", "due", "found by"),
        [
            (
                one["adapter"],
                one["index"],
                "open" if one["open"] else f"closed by {one['closed_by']}, entry {one['closed']}",
                f"{one['severity']} {one['kind']}{', blocks' if one['blocks'] else ''}",
                one["owner"],
                one["due"],
                f"{one['finder']} ({one['field']})",
            )
            for one in found
        ],
        least=("found by",),
    )


@finding.command("close", example="appliance finding close clauses@1 45 --evidence 'No name in 200 answers.'")
@click.argument("adapter", metavar="NAME@VERSION")
@click.argument("entry", type=click.IntRange(1), metavar="ENTRY")
@click.option("--evidence", required=True, metavar="TEXT", help="What the retest showed.")
@signs
@click.pass_obj
def close(caller: Caller, adapter: str, entry: int, evidence: str) -> None:
    """Close a finding. Signed by its finder, or by another reviewer of that field who did not make the adapter."""
    from appliance.client.releases.decisions import propose_closing

    proposal = propose_closing(caller.reading(), caller.anchor, caller.signer, adapter, entry, evidence)
    tell_receipt(caller, sign_and_submit(caller, proposal), [("closed", f"{adapter} {entry}")])
