"""Auditors: they read the log, take it away, and have it verified."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.audit.moments import could_load, state
from appliance.cli.audit.requests import request
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads
from appliance.cli.support.output import (
    encode_json,
    plain,
    print_bytes,
    print_facts,
    print_json,
    print_line,
    print_table,
    say,
)
from appliance.cli.support.progress import show_bytes
from appliance.cli.support.reviews import decision_of
from appliance.cli.support.times import PAST_HELP, parse_moment
from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.core.spreadsheet import safe_cell

if TYPE_CHECKING:
    from appliance.client.support.log import Proven
    from appliance.domain.core.entry import Entry

    Told = tuple[Entry, dict[str, Any] | None]
    """An entry, and for a review what the service says of it."""

OUTCOMES = ("success", "failure", "denied", "pending", "interrupted")
TABLE = 200
"""How many entries a table shows by default."""

_COLUMNS = ("index", "time", "type", "actor", "source", "outcome", "subjects", "prev", "leaf")
_REVIEW_COLUMNS = ("decision", "unit", "field", "state", "superseded_by", "valid_until")


@group("ledger", example="appliance ledger log --since 7d --outcome denied")
def ledger() -> None:
    """The log: read it, export it, verify it."""


@ledger.command(
    "log",
    example=(
        "appliance ledger log --type review.recorded --type adapter.revoked --since 2026-11-01\n"
        "appliance ledger log --unit legal --outcome denied --csv > denied.csv\n"
        "appliance ledger log --last 20"
    ),
)
@click.option(
    "--type", "types", metavar="TYPE", multiple=True, help="Such as run.started. Repeat it to match any of several."
)
@click.option("--actor", metavar="NAME", help="Who did it; `service` for the appliance itself.")
@click.option(
    "--subject",
    "subjects",
    metavar="SUBJECT",
    multiple=True,
    help="Such as adapter:clauses@1. Repeat it to match all of several.",
)
@click.option("--unit", metavar="NAME", help="The business unit that it is about.")
@click.option("--outcome", type=click.Choice(OUTCOMES), help="The outcome of the entry.")
@click.option("--since", metavar="TIME", help=f"From this time: {PAST_HELP}")
@click.option("--until", metavar="TIME", help="Up to this time, in the same form; a date includes its whole day.")
@click.option("--after", type=click.IntRange(0), metavar="ENTRY", help="Only entries after this one.")
@click.option("--before", type=click.IntRange(0), metavar="ENTRY", help="Only entries before this one.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help=f"At most N, from the first match. Default in a table: {TABLE}.",
)
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the last N matches.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values with a header line.")
@reads
@click.pass_obj
def log(caller: Caller, /, as_csv: bool, limit: int | None, last: int | None, **filters: Any) -> None:
    """List entries. An entry must match every filter. With --json one entry a line.

    A review's decision and what it counts for now are shown with it, as the service reports them; `ledger show` proves
    the decision. If a limit leaves entries out, stderr says which option shows more.
    """
    if as_csv and caller.json:
        raise BadInput("log: expected --csv or --json, got both")
    if limit is not None and last is not None:
        raise BadInput("log: expected --limit or --last, got both")
    if limit is None and last is None and not as_csv and not caller.json:
        limit = TABLE
    entries: Iterable[Told] = _pages(_begin(_find(caller, limit=limit, last=last, **filters)), limit, last)
    if as_csv:
        _print_csv(entries)
    elif caller.json:
        for entry, review in entries:
            value = _value(entry) if review is None else {**_value(entry), "review": review}
            print_line(encode_json(value))
    else:
        _print_log(list(entries))


def _print_log(entries: list[Told]) -> None:
    headers = ["entry", "time", "type", "actor", "outcome", "about"]
    rows = [[e.index, e.time, e.type, e.actor, e.outcome, _about(e, review)] for e, review in entries]
    print_table(headers, rows, least=("outcome",), wraps=True)


def _find(
    caller: Caller,
    limit: int | None,
    last: int | None,
    since: str | None,
    until: str | None,
    after: int | None,
    before: int | None,
    types: tuple[str, ...],
    subjects: tuple[str, ...],
    **filters: str | None,
) -> Iterator[Told]:
    """Forwards, or with `last` backwards from the end; one entry more than asked for shows whether there are more."""
    from appliance.client.support.log import PAGE, find_told

    now, wanted = datetime.now(UTC), limit or last
    first = None if since is None else parse_moment(since, "since", now)
    end = None if until is None else parse_moment(until, "until", now, end_of_day=True)
    if first is not None and end is not None and first > end:
        raise BadInput(f"log, since: expected a time before --until, got {first}, which is after {end}")
    if after is not None and before is not None and after >= before:
        raise BadInput(f"log, after: expected an entry before --before, got {after}, which is not before {before}")
    return find_told(
        caller.reading(),
        after=after,
        before=before,
        newest=last is not None,
        page=PAGE if wanted is None else wanted + 1,
        type=types,
        subject=subjects,
        strict=True,
        since=first,
        until=end,
        **filters,
    )


def _begin(entries: Iterator[Told]) -> Iterator[Told]:
    """The same, once the first was found: what is refused is refused before anything is printed."""
    first = next(entries, None)
    if first is None:
        say("no entries")
        return entries
    return chain((first,), entries)


def _pages(entries: Iterator[Told], limit: int | None, last: int | None) -> Iterator[Told]:
    """The entries in the log's order, up to the limit; then how to go on where it cut them off."""
    if last is not None:
        found = list(islice(entries, last))
        yield from reversed(found)
        if next(entries, None) is not None:
            say(f"There are more before them. Go on with: --before {found[-1][0].index} --last {last}")
        return
    told = None
    for told in islice(entries, limit):
        yield told
    if limit is not None and told is not None and next(entries, None) is not None:
        say(f"There are more. Go on with: --after {told[0].index}, or with --json or --csv for all of them.")


def _about(entry: Entry, review: dict[str, Any] | None) -> str:
    """The subjects, without the orders' whole digests; of a review what it decided first."""
    subjects = ", ".join(s[:25] if s.startswith("order:") else s for s in entry.subjects)
    return subjects if review is None else f"{decision_of(review)}: {subjects}"


def _value(entry: Entry) -> dict[str, Any]:
    return {**entry.model_dump(mode="json"), "leaf": f"sha256:{entry.leaf.hex()}"}


def _print_csv(entries: Iterable[Told]) -> None:
    """The columns of reviews are empty for every other entry. A name or text that a spreadsheet would calculate begins
    with an apostrophe."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((*_COLUMNS, *_REVIEW_COLUMNS))
    for entry, review in entries:
        value = {**_value(entry), "subjects": " ".join(entry.subjects)}
        told = review or {}
        cells = [*(value[column] for column in _COLUMNS), *(told.get(column) for column in _REVIEW_COLUMNS)]
        writer.writerow([safe_cell(cell) for cell in cells])


@ledger.command("show", example="appliance ledger show 12\nappliance ledger show 12 --document order > order.json")
@click.argument("index", type=click.IntRange(0), metavar="ENTRY")
@click.option("--document", "role", metavar="ROLE", help="Print only the bytes of this document.")
@reads
@click.pass_obj
def show(caller: Caller, index: int, role: str | None) -> None:
    """One entry whole, with its documents and disclosed texts, proved to be in the log before it is printed."""
    from appliance.client.support.log import read_entry

    proven = read_entry(caller.reading(), caller.anchor, index)
    if role is not None:
        print_bytes(proven.document(role))
    elif caller.json:
        print_json(_proven_value(proven))
    else:
        _print_proven(proven)
    say(f"Proved here: entry {index} is in the log of {proven.size} entries; its key: {caller.anchor.said_by}.")


def _proven_value(proven: Proven) -> dict[str, Any]:
    return {
        **_value(proven.entry),
        "contents": {role: data.decode("utf-8", "backslashreplace") for role, data in proven.documents.items()},
        "disclosures": {found.commitment: found.text for found in proven.disclosures},
        "log_size": proven.size,
    }


def _print_proven(proven: Proven) -> None:
    entry = proven.entry
    facts: list[tuple[str, object]] = [
        ("entry", entry.index),
        ("time", entry.time),
        ("type", entry.type),
        ("actor", entry.actor),
        ("source", entry.source),
        ("outcome", entry.outcome),
        ("subjects", "\n".join(entry.subjects)),
        ("leaf", f"sha256:{entry.leaf.hex()}"),
        ("before it", entry.prev),
        ("body", json.dumps(entry.body, indent=2, ensure_ascii=False)),
    ]
    facts += [(f"text of {found.commitment[:24]}", found.text) for found in proven.disclosures]
    for role, data in proven.documents.items():
        facts.append(
            (f"document {role}", f"{entry.documents[role]}, {len(data)} bytes\n{_order_text(proven, data)}".rstrip())
        )
    print_facts(facts)


def _order_text(proven: Proven, data: bytes) -> str:
    """An order in words, where the document is one; committed texts are shown while they are disclosed."""
    from appliance.domain.rulebook.proposals import Proposal
    from appliance.domain.rulebook.registry import ORDERS
    from appliance.domain.rulebook.showing import describe, describe_signature
    from appliance.formats.signatures.dsse import parse_envelope

    try:
        envelope = parse_envelope(data)
        order = ORDERS.parse(envelope.payload)
    except BadInput:
        return ""
    lines = [*describe(Proposal(order, proven.disclosures)), ("signed", describe_signature(envelope))]
    return "\n".join(f"{label}: {plain(value)}" for label, value in lines)


@ledger.command("export", example="appliance ledger export ledger.tar\nappliance-verify ledger.tar --trust trust.json")
@click.argument("file", type=click.Path(path_type=Path))
@reads
@click.pass_obj
def export(caller: Caller, file: Path) -> None:
    """Write the whole log to a new file, to be verified on any other machine."""
    from appliance.client.support.log import export as export_log

    digest, size = export_log(caller.reading(), file)
    if caller.json:
        print_json({"file": str(file), "digest": digest, "bytes": size})
    else:
        print_facts([("export", file), ("digest", digest), ("size", show_bytes(size))])
    say(f"next: on a machine that you trust: appliance-verify {file} --trust TRUST")


@ledger.command("verify", example="appliance ledger verify --trust trust.json")
@click.option("--all", "whole", is_flag=True, help="Print every finding; otherwise findings of one kind are one line.")
@reads
@click.pass_obj
def verify(caller: Caller, whole: bool) -> None:
    """Have the service check everything it holds, against the trust file that `init` printed and you kept.

    Chain, tree, checkpoint, signatures, rules, site policies, projections, sealed folders. The service checks itself
    here. An auditor exports the log and verifies it on another machine. Without a trust file the verdict is never
    better than unverifiable.
    """
    from appliance.client.support.log import verify as verify_log

    report = verify_log(caller.reading(), caller.trust)
    if caller.json:
        print_json(report)
    else:
        _print_report(report, whole=whole)
    _end(report)


def _print_report(report: dict[str, Any], *, whole: bool) -> None:
    from appliance.domain.audit.report import Finding
    from appliance.domain.audit.summary import MAX_LINES, tell_findings, tell_verdict

    findings = [Finding.model_validate(found) for found in report.get("findings") or ()]
    local = report.get("local_findings") or []
    rest = [
        *(("not checked", text) for text in (*(report.get("essential") or ()), *(report.get("unchecked") or ()))),
        *(("remark", text) for text in report.get("remarks") or ()),
        *_checked(report),
    ]
    room = max(MAX_LINES - 1 - len(rest), 4)
    kept = local if whole else local[: room // 2]
    more = [("finding", f"{len(local) - len(kept)} more of this machine's own: --all prints them")]
    print_facts(
        [
            ("verdict", tell_verdict(report["verdict"], findings)),
            *tell_findings(findings, report.get("omitted") or 0, None if whole else room - len(kept)),
            *(("finding", text) for text in kept),
            *(more if len(kept) < len(local) else ()),
            *rest,
        ]
    )


def _checked(report: dict[str, Any]) -> Iterator[tuple[str, object]]:
    counts = dict(report.get("counts") or {})
    counts.update({name: report[name] for name in ("artifacts", "projections") if name in report})
    trust = report.get("trust")
    yield "checked", ", ".join(f"{count} {name}" for name, count in counts.items()) or None
    yield "site policies", report.get("site_policies")
    yield "single administrator", _yes(report.get("single_administrator"))
    yield "log", report.get("origin")
    yield "trust", "none was given" if trust is None else f"{trust['origin']}, {', '.join(trust['administrators'])}"
    yield "head", f"entry {report['size'] - 1}, {report.get('head')}" if report.get("size") else "no entry"
    yield "root", report.get("root")


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _end(report: dict[str, Any]) -> None:
    """Only a verified log succeeds."""
    if report["verdict"] == "failed":
        count = len(report.get("findings") or ()) + len(report.get("local_findings") or ())
        raise Tampered(f"ledger: expected no findings, got {count}", code="failed")
    if report["verdict"] != "verified":
        raise Unavailable(
            "ledger: expected everything to be checked, got the verdict unverifiable; "
            "give the trust file that init printed: --trust FILE",
            code="unverifiable",
        )


ledger.add_command(could_load)
ledger.add_command(request)
ledger.add_command(state)
