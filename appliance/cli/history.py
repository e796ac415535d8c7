"""Commands about the past: effective access of a unit, the state at a time, and the uses of a dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_session_options
from appliance.cli.support.groups import dataset, ledger
from appliance.cli.support.output import (
    PAST_HELP,
    parse_point,
    print_facts,
    print_json,
    print_line,
    print_table,
    say,
    say_narrowed,
)
from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.client.questions import ProvedAnswer, RowAnswer
    from appliance.domain.queries.effective_access import UnitAccess
    from appliance.domain.queries.rows import DatasetUses


_AT = click.option(
    "--at",
    metavar="TIME",
    help=f"An entry's number, or a time: {PAST_HELP} A date includes its whole day. Default: now.",
)


def _parse_at(at: str | None) -> str | None:
    return parse_point(at, "at", datetime.now(UTC), end_of_day=True)


@ledger.command(
    "effective-access",
    example=(
        "appliance ledger effective-access legal\n"
        "appliance ledger effective-access legal --at 2026-11-24T15:00:00.000Z\n"
        "appliance ledger effective-access legal --since 1h"
    ),
)
@click.argument("unit")
@_AT
@click.option(
    "--since", metavar="TIME", help="Instead of --at: every answer from this point on. Also an entry's number."
)
@click.option("--until", metavar="TIME", help="With --since: up to this point. Default: now.")
@with_session_options
def effective_access(caller: Caller, unit: str, at: str | None, since: str | None, until: str | None) -> None:
    """Show which adapters a unit could load at a time, who approved them, and why others were refused.

    The rules that admit adapters are applied to the state at that time. A folder that was exported for the unit's own
    host is listed until its end date, even if something was revoked since. Every entry shown is proved to be in the log
    before it is printed. To check that none was left out, verify the log with `ledger verify`, or an export with
    `appliance-verify`.
    """
    from appliance.client.people import check_unit
    from appliance.client.questions import effective_access as ask
    from appliance.domain.queries.effective_access import BeforeLog

    check_unit(caller.reading(), unit)
    if since is not None or until is not None:
        _print_span(caller, unit, at, since, until)
        return
    proved = ask(caller.reading(), caller.anchor, unit, _parse_at(at))
    answer = proved.found.answer
    if caller.json:
        print_json(_access_value(proved))
    elif isinstance(answer, BeforeLog):
        print_facts([("unit", answer.unit), ("at", answer.at)])
        print_line("")
        print_line(f"nothing: the log begins on {answer.log_begins}")
    else:
        _print_answer(answer, proved)
    _say_proved(caller, len(proved.found.rests_on), proved.log_size)


def _access_value(proved: ProvedAnswer) -> dict[str, Any]:
    """Return a proved answer as JSON: the values of the answer, and the entries on which it rests."""
    found = {name: value for name, value in proved.found.model_dump().items() if value is not None}
    del found["disclosures"]
    return {**found.pop("answer"), **found, "names": proved.names}


def _say_proved(caller: Caller, entries: int, log_size: int) -> None:
    say(
        f"Proved here: {_count_text(entries)} in the log of {log_size} entries; "
        f"its key: {caller.anchor.source}. One of them whole: appliance ledger show ENTRY"
    )


def _print_span(caller: Caller, unit: str, at: str | None, since: str | None, until: str | None) -> None:
    from appliance.client.questions import effective_access_between
    from appliance.domain.queries.effective_access import UnitAccess
    from appliance.domain.queries.periods import describe_period

    now = datetime.now(UTC)
    begin = parse_point(since, "since", now, end_of_day=False)
    end = parse_point(until, "until", now, end_of_day=True)
    if begin is None or at is not None:
        raise BadInput("effective-access: expected --at, or --since with or without --until, got others")
    during, periods = effective_access_between(caller.reading(), caller.anchor, unit, begin, end)
    if caller.json:
        print_json({**during.model_dump(), "periods": [_access_value(proved) for proved in periods]})
    else:
        print_facts([("unit", unit), ("from", during.since), ("until", during.until)])
        for proved in periods:
            answer = proved.found.answer
            assert isinstance(answer, UnitAccess)  # a span begins with the log
            print_line("")
            print_line(f"from {answer.at}, as of entry {proved.found.as_of}:")
            for label, text in describe_period(answer):
                print_facts([(f"  {label}", text)])
    named = {named.entry for proved in periods for named in proved.found.rests_on}
    _say_proved(caller, len(named), max(proved.log_size for proved in periods))
    say(f"An answer with all its reasons: appliance ledger effective-access {unit} --at TIME")


def _count_text(entries: int) -> str:
    return "the 1 entry that this rests on is" if entries == 1 else f"the {entries} entries that this rests on are"


def _print_answer(answer: UnitAccess, proved: ProvedAnswer) -> None:
    from appliance.domain.queries.periods import describe_access

    found, names = proved.found, proved.names
    times = {named.entry: named.time for named in found.rests_on}
    enrolled = "" if answer.enrolled is not None else ", which was not an enrolled unit at that time"
    print_facts(
        [
            ("unit", f"{answer.unit}{enrolled}"),
            ("at", f"{answer.at}, as of entry {found.as_of}"),
            ("policy", f"{answer.policy}, entry {found.policy_entry}"),
            ("asked for", _requirement_text(answer)),
        ]
    )
    for title, facts in describe_access(answer, names, times):
        print_line("")
        print_line(title)
        print_facts((f"  {label}", text) for label, text in facts)
    print_line("")
    print_facts([("rests on entries", ", ".join(str(named.entry) for named in found.rests_on))])


def _requirement_text(answer: UnitAccess) -> str:
    fields = ", ".join(answer.required.required_functions)
    functions = f"{answer.required.distinct_functions} different review functions"
    wanted = f"{answer.required.reviewers} valid approvals of {functions}"
    return f"{wanted}, among them {fields}" if fields else wanted


def _members(value: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the fields of a row that have a value; nested ones as JSON."""
    for name, member in value.items():
        if member not in (None, [], {}, ""):
            text = isinstance(member, str | int)
            yield name, member if text else json.dumps(member, ensure_ascii=False, sort_keys=True)


@ledger.command("state", example="appliance ledger state --at 41\nappliance ledger state --at 7d --kind adapter --json")
@_AT
@click.option(
    "--kind", "kinds", multiple=True, metavar="KIND", help="Such as principal, adapter or release. Can be repeated."
)
@with_session_options
def state(caller: Caller, at: str | None, kinds: tuple[str, ...]) -> None:
    """Show everything that was valid after an entry or at a time, and since which entry."""
    from appliance.client.questions import state_as_of

    answer = state_as_of(caller.reading(), _parse_at(at), kinds)
    if caller.json:
        print_json(answer)
        return
    if answer.narrowed:
        say_narrowed()
    for row in answer.rows:
        print_facts([(row.kind, row.id)])
        members = [("since entry", row.since), *_members(row.value)]
        print_facts((f"  {name.replace('_', ' ')}", value) for name, value in members)
        print_line("")
    say(f"As of entry {answer.as_of}, {answer.time}. What made an object so: appliance ledger show ENTRY")


_MAX_ROW_BYTES = 4_000_000
"""Maximum bytes of a row's file."""


@dataset.command(
    "used-by",
    example=(
        "appliance dataset used-by clauses\n"
        "appliance dataset used-by clauses@1 --row 'The parties agree to keep it secret.' --output proof.json"
    ),
)
@click.argument("name", metavar="NAME[@VERSION]")
@click.option("--row", metavar="TEXT", help="Was this text one of its rows?")
@click.option(
    "--row-file", type=PATH, metavar="FILE", help="As --row, with the text from a file, without its last newline."
)
@click.option("--output", type=PATH, metavar="FILE", help="Write the rows' proofs to a new file.")
@with_session_options
def used_by(caller: Caller, name: str, row: str | None, row_file: Path | None, output: Path | None) -> None:
    """Show which runs and adapters used a dataset, and where they were released. Without a version, show all versions.

    Operators and auditors can also ask whether a text was a row of the dataset. A found row is proved on this machine
    against the log. That a row is absent is only the service's statement. Your shell's history keeps the text of --row,
    so use --row-file for a confidential one.
    """
    from appliance.client.questions import dataset_uses, find_row

    if row is not None and row_file is not None:
        raise BadInput("row: expected --row or --row-file, got both")
    text = _row_text(row_file) if row_file is not None else row
    if output is not None and text is None:
        raise BadInput("output: expected --row or --row-file with it, got neither")
    uses = dataset_uses(caller.reading(), name)
    answers = [] if text is None else find_row(caller.reading(), caller.anchor, name, text)
    if output is not None:
        _write_proofs(output, caller.about.origin, answers)
    if caller.json:
        found = None if text is None else [_row_value(answer) for answer in answers]
        print_json({"datasets": uses, "row": found})
        return
    _print_uses(uses)
    for answer in answers:
        _print_row(answer)


def _row_text(path: Path) -> str:
    from appliance.client.support.files import read_file

    try:
        return read_file(path, "row", _MAX_ROW_BYTES).decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise BadInput(f"row, {path}: expected UTF-8, got other bytes") from None


def _print_uses(uses: Sequence[DatasetUses]) -> None:
    rows: list[tuple[object, ...]] = []
    for version in uses:
        if not version.uses:
            rows.append((version.dataset, version.imported, *(None,) * 7))
        for use in version.uses:
            gone = [
                f"{how} by {entry}"
                for how, entry in (("revoked", use.revoked), ("quarantined", use.quarantined))
                if entry is not None
            ]
            released = (", ".join(names) or None for names in (gone, use.released_now, use.released_to))
            made = (use.run, use.status, use.adapter, use.sealed)
            rows.append((version.dataset, version.imported, *made, *released))
    columns = (
        "dataset",
        "entry",
        "run",
        "status",
        "adapter",
        "sealed",
        "revoked or quarantined",
        "serves",
        "ever released to",
    )
    print_table(
        columns, rows, least=("sealed", "entry", "revoked or quarantined", "run", "status", "adapter", "serves")
    )


def _print_row(answer: RowAnswer) -> None:
    if not answer.found:
        say(
            f"{answer.dataset}: The service reports that the row is not in it. This cannot be proved: a proof exists "
            "only for a row that is in it."
        )
        return
    say("", f"{answer.dataset}: found {answer.found} times, {len(answer.rows)} proved here under entry {answer.entry}.")
    print_table(
        ("dataset", "row", "split", "answer", "root"),
        [(row.dataset, row.proof.index, row.split, row.answer, row.root) for row in answer.rows],
    )


def _row_value(answer: RowAnswer) -> dict[str, Any]:
    from appliance.formats.artifacts.rows import row_proof_value

    return {
        "dataset": answer.dataset,
        "entry": answer.entry,
        "found": answer.found,
        "rows": [
            {"split": row.split, "answer": row.answer, "root": row.root, "proof": row_proof_value(row.proof)}
            for row in answer.rows
        ],
    }


def _write_proofs(path: Path, origin: str, answers: list[RowAnswer]) -> None:
    """Write the proofs to a new file that only its owner can read, because they disclose the rows."""
    from appliance.client.support.files import write_new

    value = {"version": 1, "origin": origin, "datasets": [_row_value(answer) for answer in answers]}
    write_new(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n", "proof")
