"""Commands for delegations, findings and suspensions, and parts that reviews and releases share, such as the page."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import REQUIRED_REASON, combine, with_session_options, with_signing_options
from appliance.cli.support.groups import delegation, finding, release
from appliance.cli.support.output import (
    END_HELP,
    parse_end,
    plain,
    print_facts,
    print_json,
    print_line,
    print_rows,
    print_table,
    print_text,
    say,
)
from appliance.cli.support.progress import ProgressMeter
from appliance.cli.support.signing import order_action, print_outcome, sign_and_submit
from appliance.errors import BadInput
from appliance.reports.review.blocks import (
    Block,
    Cell,
    Column,
    Columns,
    Fact,
    FactList,
    Folded,
    Paragraph,
    Points,
    Section,
    TableBlock,
    Tile,
    Tiles,
)

if TYPE_CHECKING:
    from appliance.api.releases import Adapter, Finding, Suspension
    from appliance.client.evidence import ReviewEvidence
    from appliance.domain.core.decisions import Conditions

SHOWN = 8
"""Maximum rows of a table, beside those that are marked. `--json` and `review report` have the rest."""

NO_ADAPTER = "No adapter is sealed. A run that ends well seals one: appliance run list"
"""The line of lists without adapters."""


def print_sections(sections: Iterable[Section], *, err: bool = False) -> None:
    """Print sections to stdout or, with `err`, to stderr before a signature. Plots and folded tables are left out."""
    for number, section in enumerate(section for section in sections if section.part != "entries"):
        _print_line(err, *([""] if number else []), _title(section))
        for block in section.blocks:
            _print_block(block, err)


def _title(section: Section) -> str:
    chips = ", ".join(chip.text for chip in section.chips if chip.kind != "mark")
    mark = _join(chip for chip in section.chips if chip.kind == "mark")
    return f"{_mark(section.title, section)}{f': {chips}{mark}' if chips else ''}"


def _print_block(block: Block, err: bool, indent: str = "  ") -> None:
    match block:
        case FactList():
            print_facts([(f"{indent}{_mark(one.label, one)}", _join(one.value)) for one in block.rows], err=err)
        case Columns():
            for group in (group for groups in block.columns for group in groups):
                _print_points(group, err)
        case Tiles():
            rows = [(f"  {_mark(one.label, one)}", f"{one.figure}\n{_join(one.detail)}") for one in block.rows]
            print_facts(rows, err=err)
        case TableBlock():
            _print_table(block, err)
        case Paragraph():
            text = " ".join(_join(block.content).split()) if block.tone == "code" else _join(block.content)
            print_text(f"{indent}{plain(text)}", indent, err=err)
        case Folded() if not isinstance(block.block, TableBlock):
            _print_line(err, f"  {block.summary}")
            _print_block(block.block, err, "    ")


def _print_points(points: Points, err: bool) -> None:
    """Print each statement after a hyphen, and what explains it below."""
    _print_line(err, f"  {_mark(points.title, points)}")
    for one in points.rows:
        print_text(f"  - {plain(_join(one.head))}", "    ", err=err)
        for line in _join(one.body).splitlines():
            print_text(f"    {plain(line)}", "    ", err=err)


def _print_table(table: TableBlock, err: bool) -> None:
    shown = table.rows[: max(sum(row.is_marked for row in table.rows), SHOWN)]
    if lines := [row.line for row in table.rows if row.line]:
        print_facts([(f"  {label}", text) for label, text in lines], err=err)
        return
    headers = [_mark(one.label, one) for one in table.columns]
    rows = [list(map(_join, row.cells)) for row in shown]
    print_table([f"  {headers[0]}", *headers[1:]], [[f"  {row[0]}", *row[1:]] for row in rows], err=err)
    if len(shown) < len(table.rows):
        _print_line(err, f"  and {len(table.rows) - len(shown)} more: review report has all of them")


def _mark(label: str, one: Section | Fact | Column | Points | Tile) -> str:
    return f"{label} (reported)" if one.is_reported else label


def _join(content: Iterable[Cell]) -> str:
    return "".join(" (reported)" if cell.kind == "mark" else cell.text for cell in content)


def _print_line(err: bool, *lines: str) -> None:
    for line in lines:
        say(plain(line)) if err else print_line(plain(line))


with_conditions = combine(
    click.option("--not-before", metavar="TIME", help=f"Condition: not served before this time. {END_HELP}"),
    click.option("--not-after", metavar="TIME", help=f"Condition: not served from this time on. {END_HELP}"),
    click.option(
        "--only-served-model",
        "served_models",
        multiple=True,
        metavar="NAME",
        help="Condition: only under this name. Can be repeated.",
    ),
    click.option(
        "--answers-a-day",
        type=click.IntRange(1),
        metavar="N",
        help="Condition: at most this many requests a day (UTC), of all served models and programs of the unit.",
    ),
)
"""Decorator that adds the options for conditions, of a release request and of an approval."""


def parse_conditions(
    not_before: str | None, not_after: str | None, served_models: tuple[str, ...], answers_a_day: int | None
) -> Conditions | None:
    """Return the conditions of the options, or None without any."""
    from appliance.client.releases import make_conditions

    now = datetime.now(UTC)
    values = {
        "not_before": None if not_before is None else parse_end(not_before, "not before", now),
        "not_after": None if not_after is None else parse_end(not_after, "not after", now),
        "served_models": served_models,
        "answers_a_day": answers_a_day,
    }
    return make_conditions(values)


@delegation.command("add", example="appliance delegation add dana --review-function privacy --until 7d")
@click.argument("principal", metavar="NAME")
@click.option("--review-function", required=True, metavar="FUNCTION", help="Yours.")
@click.option("--until", required=True, metavar="TIME", help=f"{END_HELP} Policy limits it.")
@with_signing_options
def add(caller: Caller, principal: str, review_function: str, until: str) -> None:
    """Let another person decide in your place, until a time. Operators cannot be delegates."""
    _delegate(caller, principal, review_function, parse_end(until, "until", datetime.now(UTC)))


@delegation.command("end", example="appliance delegation end dana --review-function privacy")
@click.argument("principal", metavar="NAME")
@click.option("--review-function", required=True, metavar="FUNCTION", help="Yours.")
@with_signing_options
def end(caller: Caller, principal: str, review_function: str) -> None:
    """End a delegation before its time. The delegate's earlier decisions stay valid."""
    _delegate(caller, principal, review_function, None)


def _delegate(caller: Caller, principal: str, review_function: str, until: str | None) -> None:
    values = {"principal": principal, "review_function": review_function, "until": until}
    facts = [("delegate", principal), ("review function", review_function), ("until", until or "ended")]
    order_action(caller, "delegate", values, facts)


@delegation.command("list", example="appliance delegation list")
@with_session_options
def list_delegations(caller: Caller) -> None:
    """List every delegation that was not ended, including expired ones."""
    from appliance.domain.core.decisions import Delegation

    print_rows(
        caller.json,
        caller.reading().get("/v1/delegations", list[Delegation]),
        ("delegator", "delegate", "review_function", "until", "entry"),
        lambda row: (row.delegator, row.delegate, row.review_function, row.until, row.index),
        empty="There is no delegation. A reviewer makes one with: appliance delegation add",
    )


def gather(caller: Caller, name: str) -> ReviewEvidence:
    """Download, hash and check an adapter, with a meter."""
    from appliance.client.evidence import gather as gather_evidence

    connection, meter = caller.reading(), ProgressMeter(f"hashes {name}", 0, "bytes")

    def advance(count: int) -> None:
        meter.total += count
        meter.advance(count)

    evidence = gather_evidence(connection, caller.anchor, name, advance)
    meter.close()
    return evidence


def print_evidence(evidence: ReviewEvidence, *, err: bool = False) -> None:
    """Print the review page as text."""
    from appliance.reports.review.sections import make_sections, make_verification

    print_sections([*make_sections(evidence.page), make_verification(evidence.log)], err=err)


def evidence_value(evidence: ReviewEvidence) -> dict[str, Any]:
    """Return the review page as JSON, with the log that it was checked against."""
    page = evidence.page.model_dump(mode="json")
    return {**page, "log_size": evidence.log_size, "log_vouched_for_by": evidence.log_source}


def finding_facts(row: Adapter) -> list[tuple[str, object]]:
    """Return a line for each finding of an adapter: its state, kind, finder and owner."""
    return [(f"finding {one.index}", _finding_text(one)) for one in row.findings]


def _finding_text(one: Finding) -> str:
    state = "open" if one.open else f"closed by {one.closed_by}, entry {one.closed}"
    blocks = ", blocks" if one.blocks else ", accepts the verdict" if one.accepts_verdict else ""
    about = f"{one.severity} {one.kind}{blocks}; found by {one.finder} ({one.review_function})"
    return f"{state}: {about}; owner {one.owner}, due {one.due}"


@finding.command(
    "add",
    example=(
        "appliance finding add clauses@1 --review-function privacy --kind issue --severity high --blocks \\\n"
        "    --owner olga --due 14d --text 'It answers names.' --remedy 'Train without them.' --retest 'Ask for them.'"
    ),
)
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--review-function", required=True, metavar="FUNCTION", help="Yours.")
@click.option("--kind", required=True, type=click.Choice(["issue", "exception", "limitation"]))
@click.option("--severity", required=True, type=click.Choice(["low", "medium", "high", "critical"]))
@click.option("--blocks", is_flag=True, help="Block every release of the adapter while the finding is open.")
@click.option(
    "--accepts-verdict",
    is_flag=True,
    help="For an exception: the adapter may be released until the due date although it did not pass its gates.",
)
@click.option("--owner", required=True, metavar="NAME", help="The person who has to correct it.")
@click.option("--due", required=True, metavar="TIME", help=f"When it has to be corrected: {END_HELP}")
@click.option("--text", required=True, metavar="TEXT", help="What was found.")
@click.option("--remedy", required=True, metavar="TEXT", help="How to correct it.")
@click.option("--retest", required=True, metavar="TEXT", help="How to show that it is corrected.")
@with_signing_options
def add_finding(
    caller: Caller,
    adapter: str,
    review_function: str,
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
    """Record a finding about an adapter. An exception to a policy blocks releases from its due date on."""
    until = parse_end(due, "due", datetime.now(UTC))
    values = {
        "adapter": adapter,
        "review_function": review_function,
        "kind": kind,
        "severity": severity,
        "blocks": blocks,
    }
    values |= {"accepts_verdict": accepts_verdict, "owner": owner, "due": until}
    texts = {"finding": text, "remedy": remedy, "retest": retest}
    receipt = sign_and_submit(caller, caller.propose("add-finding", values, texts=texts))
    print_outcome(caller, receipt, [("finding", f"{adapter} {receipt.index}"), ("owner", owner), ("due", until)])


@finding.command("list", example="appliance finding list --open")
@click.option("--adapter", metavar="NAME@VERSION", help="Only this adapter's.")
@click.option("--open", "only_open", is_flag=True, help="Only open ones.")
@with_session_options
def list_findings(caller: Caller, adapter: str | None, only_open: bool) -> None:
    """List every finding, and whether it is open. `review show` has their texts."""
    from appliance.api.releases import Adapter
    from appliance.domain.core.words import unknown_word

    rows = caller.reading().get("/v1/adapters", list[Adapter])
    names = {f"{row.name}@{row.version}": row for row in rows}
    if adapter is not None and adapter not in names:
        raise BadInput(unknown_word("adapter", adapter, names, "a sealed one"))
    found = [
        (name, one)
        for name, row in names.items()
        for one in row.findings
        if adapter in (None, name) and (one.open or not only_open)
    ]
    if caller.json:
        print_json([{"adapter": name, **one.model_dump()} for name, one in found])
        return
    print_table(
        ("adapter", "entry", "status", "finding", "owner", "due", "found by"),
        [
            (
                name,
                one.index,
                "open" if one.open else f"closed by {one.closed_by}, entry {one.closed}",
                f"{one.severity} {one.kind}{', blocks' if one.blocks else ''}",
                one.owner,
                one.due,
                f"{one.finder} ({one.review_function})",
            )
            for name, one in found
        ],
        least=("found by",),
        empty="No such finding is recorded. A reviewer records one with: appliance finding add",
    )


@finding.command("close", example="appliance finding close clauses@1 45 --evidence 'No name in 200 answers.'")
@click.argument("adapter", metavar="NAME@VERSION")
@click.argument("entry", type=click.IntRange(1), metavar="ENTRY")
@click.option("--evidence", required=True, metavar="TEXT", help="What the retest showed.")
@with_signing_options
def close(caller: Caller, adapter: str, entry: int, evidence: str) -> None:
    """Close a finding. Signed by its finder, or by another reviewer of its function who did not make the adapter."""
    values, facts = {"adapter": adapter, "entry": entry}, [("closed", f"{adapter} {entry}")]
    order_action(caller, "close-finding", values, facts, texts={"evidence": evidence})


def suspension_facts(row: Adapter) -> list[tuple[str, object]]:
    """Return a line for each suspension of an adapter: its unit, who suspended it, and whether it is valid."""
    return [(f"suspension {one.index}", _suspension_text(one)) for one in row.suspensions]


def _suspension_text(one: Suspension) -> str:
    state = "valid" if one.valid else f"lifted by {one.lifted_by}, entry {one.lifted}"
    where = one.unit if one.served_model is None else f"{one.unit}/{one.served_model}"
    return f"{state}: for {where} by {one.by} ({one.role})"


@release.command(
    "suspend",
    example="appliance release suspend clauses@1 --unit legal --reason 'A response names a client.'",
)
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--unit", required=True, metavar="NAME", help="The business unit.")
@click.option(
    "--served-model", metavar="NAME", help="Only this served model of the unit. Default: all of its served models."
)
@click.option(
    "--role",
    metavar="ROLE",
    help="The role under which you suspend, such as reviewer:privacy. Default: the only one of yours that can.",
)
@REQUIRED_REASON
@with_signing_options
def suspend(caller: Caller, adapter: str, unit: str, served_model: str | None, role: str | None, reason: str) -> None:
    """Stop a version for one unit at once, until it is resumed. Other units keep it.

    One release owner of the unit, reviewer or administrator is enough. Running responses are cut off. Activations,
    rollbacks and emergency releases of the version are refused meanwhile; its approvals expire as before. To resume it,
    somebody with the same role signs, or two administrators. A suspension does not reach exported copies, such as one
    that vLLM serves on another host.
    """
    from appliance.client.people import check_unit
    from appliance.client.releases import choose_role

    check_unit(caller.reading(), unit)
    chosen = choose_role(caller.reading(), caller.signer, unit, role)
    values = {"adapter": adapter, "unit": unit, "served_model": served_model, "role": chosen}
    where = unit if served_model is None else f"{unit}/{served_model}"
    facts = [("suspended", f"{adapter} for {where}"), ("role", chosen)]
    order_action(caller, "suspend-release", values, facts, texts={"reason": reason})


@release.command(
    "resume", example="appliance release resume clauses@1 --unit legal --reason 'The response was a test of ours.'"
)
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--unit", required=True, metavar="NAME", help="The business unit.")
@click.option(
    "--entry", type=click.IntRange(1), metavar="ENTRY", help="Entry of the suspension. Default: the only valid one."
)
@REQUIRED_REASON
@with_signing_options
def resume(caller: Caller, adapter: str, unit: str, entry: int | None, reason: str) -> None:
    """Lift one suspension of a version for a unit.

    Signed by somebody with the role under which it was suspended, or by two administrators. The version serves again if
    no other suspension is valid and its approvals are.
    """
    from appliance.client.releases import choose_suspension
    from appliance.domain.core.lookup import UnprovenValue

    found = UnprovenValue(choose_suspension(caller.reading(), adapter, unit)) if entry is None else entry
    values = {"adapter": adapter, "unit": unit, "entry": found}
    proposal = caller.propose("resume-release", values, texts={"reason": reason})
    lifted = f"the suspension of entry {proposal.order.model_dump()['entry']} of {adapter} for {unit} is lifted"
    print_outcome(caller, sign_and_submit(caller, proposal), lifted)
