"""Commands for the log: list, show, export and verify entries, and find one request."""

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

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_session_options
from appliance.cli.support.groups import ledger
from appliance.cli.support.output import (
    PAST_HELP,
    encode_json,
    parse_moment,
    plain,
    print_bytes,
    print_facts,
    print_json,
    print_line,
    print_result,
    print_table,
    say,
    say_narrowed,
)
from appliance.cli.support.signing import decision_of
from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.core.text import safe_cell, show_bytes

if TYPE_CHECKING:
    from appliance.api.log import ServiceReport
    from appliance.api.releases import Review
    from appliance.client.questions import RequestHistory
    from appliance.client.support.log import ProvenEntry
    from appliance.domain.core.entry import Entry

    ListedEntry = tuple[Entry, Review | None]
    """An entry, and for a review what the service says of it."""


@ledger.command(
    "request",
    example=(
        "appliance ledger request chatcmpl-0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e\n"
        "appliance ledger request 0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e --output answer.tlog-proof"
    ),
)
@click.argument("identifier", metavar="ID")
@click.option("--output", "file", type=PATH, metavar="FILE", help="Write the proof of its last entry here.")
@with_session_options
def request(caller: Caller, identifier: str, file: Path | None) -> None:
    """Find a unit's request by its response id: both entries, the adapter, and who released it.

    Each entry is proved to be in the log before it is printed. The proof itself is printed last, and written to a file
    with --output.
    """
    from appliance.client.questions import find_request, parse_request_id
    from appliance.client.support.files import write_new

    found = find_request(caller.reading(), caller.anchor, parse_request_id(identifier))
    if file is not None:
        write_new(file, found.last.proof, "proof", 0o644)
    if caller.json:
        print_json(_request_value(found))
    else:
        _print(found)
    say(f"Proved here, each entry, in the log of {found.last.size} entries; its key: {caller.anchor.source}.")
    if found.finished is None:
        say("The request has no end yet.")


def _request_value(found: RequestHistory) -> dict[str, Any]:
    return {
        "request": found.name,
        "admitted": _entry_value(found.admitted.entry),
        "finished": None if found.finished is None else _entry_value(found.finished.entry),
        "rests_on": [_entry_value(proven.entry) for proven in found.rests_on],
        "proof": found.last.proof.decode(),
        "log_size": found.last.size,
    }


def _print(found: RequestHistory) -> None:
    from appliance.domain.actions.apply import parse_body
    from appliance.domain.serving.requests import RequestFinished

    last = found.last.entry
    body = parse_body(last)
    shown = ("unit", "served_model", "adapter", "manifest")
    facts: list[tuple[str, object]] = [("request", found.name), *((name, getattr(body, name)) for name in shown)]
    if isinstance(body, RequestFinished):
        facts += [
            ("outcome", f"{last.outcome}, {body.finish_reason}"),
            ("tokens", f"{body.prompt_tokens} read, {body.completion_tokens} written"),
        ]
    print_facts(facts)
    print_line("")
    print_table(
        ("entry", "time", "what", "who", "outcome"),
        [
            (e.index, e.time, e.type, e.actor, e.outcome)
            for e in (p.entry for p in (*found.rests_on, found.admitted, found.finished) if p is not None)
        ],
    )
    print_line("")
    print_line(found.last.proof.decode().rstrip("\n"))


OUTCOMES = ("success", "failure", "denied", "pending", "interrupted")
"""Outcomes of an entry."""
TABLE = 200
"""Number of entries in a table by default."""

_COLUMNS = ("index", "time", "type", "actor", "source", "outcome", "subjects", "prev", "leaf")
_REVIEW_COLUMNS = ("decision", "unit", "review_function", "state", "superseded_by", "valid_until")


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
@with_session_options
def log(caller: Caller, /, as_csv: bool, limit: int | None, last: int | None, **filters: Any) -> None:
    """List entries. An entry must match every filter. With --json, each line is one entry.

    A review is shown with its decision and its state now, as the service reports them; `ledger show` proves the
    decision. If a limit leaves entries out, stderr says which option shows more.
    """
    if as_csv and caller.json:
        raise BadInput("log: expected --csv or --json, got both")
    if limit is not None and last is not None:
        raise BadInput("log: expected --limit or --last, got both")
    if limit is None and last is None and not as_csv and not caller.json:
        limit = TABLE
    entries: Iterable[ListedEntry] = _pages(_begin(_find(caller, limit=limit, last=last, **filters)), limit, last)
    if as_csv:
        _print_csv(entries)
    elif caller.json:
        for entry, review in entries:
            value = _entry_value(entry) if review is None else {**_entry_value(entry), "review": review}
            print_line(encode_json(value))
    else:
        _print_log(list(entries))


def _print_log(entries: list[ListedEntry]) -> None:
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
) -> Iterator[ListedEntry]:
    """Yield entries forwards, or with `last` backwards from the end.

    One entry more than requested is read, to know whether there are more.
    """
    from appliance.client.support.log import PAGE, find_listed_entries

    now, wanted = datetime.now(UTC), limit or last
    first = None if since is None else parse_moment(since, "since", now)
    end = None if until is None else parse_moment(until, "until", now, end_of_day=True)
    if first is not None and end is not None and first > end:
        raise BadInput(f"log, since: expected a time before --until, got {first}, which is after {end}")
    if after is not None and before is not None and after >= before:
        raise BadInput(f"log, after: expected an entry before --before, got {after}, which is not before {before}")
    return find_listed_entries(
        caller.reading(),
        after=after,
        before=before,
        newest=last is not None,
        page=PAGE if wanted is None else wanted + 1,
        type=types,
        subject=subjects,
        strict=True,
        on_narrowed=say_narrowed,
        since=first,
        until=end,
        **filters,
    )


def _begin(entries: Iterator[ListedEntry]) -> Iterator[ListedEntry]:
    """Return the same entries after reading the first, so that a refusal comes before any output."""
    first = next(entries, None)
    if first is None:
        say("no entries")
        return entries
    return chain((first,), entries)


def _pages(entries: Iterator[ListedEntry], limit: int | None, last: int | None) -> Iterator[ListedEntry]:
    """Yield the entries in the log's order up to the limit, then say how to continue."""
    if last is not None:
        found = list(islice(entries, last))
        yield from reversed(found)
        if next(entries, None) is not None:
            say(f"There are more before them. Continue with: --before {found[-1][0].index} --last {last}")
        return
    latest = None
    for latest in islice(entries, limit):
        yield latest
    if limit is not None and latest is not None and next(entries, None) is not None:
        say(f"There are more. Continue with: --after {latest[0].index}, or with --json or --csv for all of them.")


def _about(entry: Entry, review: Review | None) -> str:
    """Return the subjects with shortened order digests; for a review, its decision first."""
    subjects = ", ".join(s[:25] if s.startswith("order:") else s for s in entry.subjects)
    return subjects if review is None else f"{decision_of(review)}: {subjects}"


def _entry_value(entry: Entry) -> dict[str, Any]:
    return {**entry.model_dump(mode="json"), "leaf": f"sha256:{entry.leaf.hex()}"}


def _print_csv(entries: Iterable[ListedEntry]) -> None:
    """Print entries as CSV. The review columns are empty for other entries.

    A cell that a spreadsheet would calculate begins with an apostrophe.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((*_COLUMNS, *_REVIEW_COLUMNS))
    for entry, review in entries:
        value = {**_entry_value(entry), "subjects": " ".join(entry.subjects)}
        cells = [value[column] for column in _COLUMNS]
        cells += [None if review is None else getattr(review, column) for column in _REVIEW_COLUMNS]
        writer.writerow([safe_cell(cell) for cell in cells])


@ledger.command("show", example="appliance ledger show 12\nappliance ledger show 12 --document order > order.json")
@click.argument("index", type=click.IntRange(0), metavar="ENTRY")
@click.option("--document", "role", metavar="ROLE", help="Print only the bytes of this document.")
@with_session_options
def show(caller: Caller, index: int, role: str | None) -> None:
    """Show one entry with its documents and disclosed texts, proved to be in the log before it is printed."""
    from appliance.client.support.log import read_entry

    proven = read_entry(caller.reading(), caller.anchor, index)
    if role is not None:
        print_bytes(proven.document(role))
    elif caller.json:
        print_json(_proven_value(proven))
    else:
        _print_proven(proven)
    say(f"Proved here: entry {index} is in the log of {proven.size} entries; its key: {caller.anchor.source}.")


def _proven_value(proven: ProvenEntry) -> dict[str, Any]:
    return {
        **_entry_value(proven.entry),
        "contents": {role: data.decode("utf-8", "backslashreplace") for role, data in proven.documents.items()},
        "disclosures": {found.commitment: found.text for found in proven.disclosures},
        "log_size": proven.size,
    }


def _print_proven(proven: ProvenEntry) -> None:
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


def _order_text(proven: ProvenEntry, data: bytes) -> str:
    """Return an order in words, or "" for another document. Committed texts are shown while they are disclosed."""
    from appliance.domain.actions.proposals import Proposal
    from appliance.domain.actions.registry import ORDERS
    from appliance.domain.actions.showing import describe, describe_signature
    from appliance.formats.signatures.dsse import parse_envelope

    try:
        envelope = parse_envelope(data)
        order = ORDERS.parse(envelope.payload)
    except BadInput:
        return ""
    lines = [*describe(Proposal(order, proven.disclosures)), ("signed", describe_signature(envelope))]
    return "\n".join(f"{label}: {plain(value)}" for label, value in lines)


@ledger.command("export", example="appliance ledger export ledger.tar\nappliance-verify ledger.tar --trust trust.json")
@click.argument("file", type=PATH)
@with_session_options
def export(caller: Caller, file: Path) -> None:
    """Write the whole log to a new file, to be verified on another machine."""
    from appliance.client.support.log import export as export_log

    digest, size = export_log(caller.reading(), file)
    value = {"file": str(file), "digest": digest, "bytes": size}
    print_result(caller.json, value, [("export", file), ("digest", digest), ("size", show_bytes(size))])
    say(f"next: on a machine that you trust: appliance-verify {file} --trust TRUST")


@ledger.command(
    "verify",
    example="appliance ledger verify --trust trust.json",
    without_argument=(
        "This command has the service verify its own data. To verify an exported file, use "
        "appliance-verify FILE --trust TRUST"
    ),
)
@click.option("--all", "whole", is_flag=True, help="Print every finding; otherwise findings of one kind are one line.")
@with_session_options
def verify(caller: Caller, whole: bool) -> None:
    """Have the service check all its data against the trust file that `init` printed and you kept.

    Checks the chain, tree, checkpoint, signatures, rules, Cedar policies, projections and sealed folders. Here the
    service checks itself. An auditor exports the log and verifies it on another machine, with the archives of removed
    records: appliance-verify EXPORT --trust FILE --archive ARCHIVE. Without a trust file the verdict is at best
    unverifiable.
    """
    from appliance.client.support.log import verify as verify_log

    report = verify_log(caller.reading(), caller.trust)
    if caller.json:
        print_json(report)
    else:
        _print_report(report, whole=whole)
    _end(report)


def _print_report(report: ServiceReport, *, whole: bool) -> None:
    from appliance.domain.audit.summary import MAX_LINES, describe_findings, describe_verdict

    local = report.local_findings
    rest = [
        *(("not checked", text) for text in (*report.essential, *report.unchecked)),
        *(("remark", text) for text in report.remarks),
        *_checked(report),
    ]
    max_lines = max(MAX_LINES - 1 - len(rest), 4)
    shown_findings = local if whole else local[: max_lines // 2]
    more = [("finding", f"{len(local) - len(shown_findings)} more of this machine's own: --all prints them")]
    print_facts(
        [
            ("verdict", describe_verdict(report.verdict, report.findings)),
            *describe_findings(report.findings, report.omitted, None if whole else max_lines - len(shown_findings)),
            *(("finding", text) for text in shown_findings),
            *(more if len(shown_findings) < len(local) else ()),
            *rest,
        ]
    )


def _checked(report: ServiceReport) -> Iterator[tuple[str, object]]:
    counts = {**dict(report.counts), "artifacts": report.artifacts, "projections": report.projections}
    trust = report.trust
    yield "checked", ", ".join(f"{count} {name}" for name, count in counts.items())
    yield "Cedar policies", report.cedar_policies
    yield "single administrator", _yes(report.single_administrator)
    yield "log", report.origin
    yield "trust", "none was given" if trust is None else f"{trust.origin}, {', '.join(trust.administrators)}"
    yield "head", f"entry {report.size - 1}, {report.head}" if report.size else "no entry"
    yield "root", report.root


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _end(report: ServiceReport) -> None:
    """Raise an error unless the verdict is `verified`."""
    if report.verdict == "failed":
        count = len(report.findings) + len(report.local_findings)
        raise Tampered(f"ledger: expected no findings, got {count}", code="failed")
    if report.verdict != "verified":
        raise Unavailable(
            "ledger: expected everything to be checked, got the verdict unverifiable; "
            "give the trust file that init printed: --trust FILE",
            code="unverifiable",
        )
