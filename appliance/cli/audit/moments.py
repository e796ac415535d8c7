"""What was true at a moment: what a unit could have loaded then, and the state of the whole appliance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, reads
from appliance.cli.support.output import print_facts, print_json, print_line, say
from appliance.cli.support.times import PAST_HELP, parse_point
from appliance.errors import BadInput

_AT = click.option(
    "--at",
    metavar="TIME",
    help=f"An entry's number, or a time: {PAST_HELP} A date includes its whole day. Default: now.",
)


def _moment(at: str | None) -> str | None:
    return parse_point(at, "at", datetime.now(UTC))


@command(
    "could-load",
    example=(
        "appliance ledger could-load legal\n"
        "appliance ledger could-load legal --at 2026-11-24T15:00:00.000Z\n"
        "appliance ledger could-load legal --since 1h"
    ),
)
@click.argument("unit")
@_AT
@click.option(
    "--since", metavar="TIME", help="Instead of --at: every answer from this point on. Also an entry's number."
)
@click.option("--until", metavar="TIME", help="With --since: up to this point. Default: now.")
@reads
@click.pass_obj
def could_load(caller: Caller, unit: str, at: str | None, since: str | None, until: str | None) -> None:
    """What a unit could have loaded at a moment or in a span of time, by whose sign-offs, and why not the rest.

    Decided by the rules that admit adapters, over the state as of the last entry at that moment or before it. A folder
    that was exported for the unit's own host is named until its date, even if something was revoked since. Every entry
    that is named is proved to be in the log before it is printed. That none was left out shows when the log is
    verified: `ledger verify`, or `appliance-verify` on an export.
    """
    from appliance.client.people import check_unit
    from appliance.client.questions import could_load as ask

    check_unit(caller.reading(), unit)
    if since is not None or until is not None:
        _tell_span(caller, unit, at, since, until)
        return
    proved = ask(caller.reading(), caller.anchor, unit, _moment(at))
    if caller.json:
        print_json(proved.answer)
    elif "log_begins" in proved.answer:
        print_facts([("unit", proved.answer["unit"]), ("at", proved.answer["at"])])
        print_line("")
        print_line(f"nothing: the log begins on {proved.answer['log_begins']}")
    else:
        _print_answer(proved.answer)
    _say_proved(caller, proved.entries, proved.log_size)


def _say_proved(caller: Caller, entries: int, log_size: int) -> None:
    say(
        f"Proved here: {_counted(entries)} in the log of {log_size} entries; "
        f"its key: {caller.anchor.said_by}. One of them whole: appliance ledger show ENTRY"
    )


def _tell_span(caller: Caller, unit: str, at: str | None, since: str | None, until: str | None) -> None:
    from appliance.client.questions import could_load_between

    now = datetime.now(UTC)
    begin, end = parse_point(since, "since", now), parse_point(until, "until", now)
    if begin is None or at is not None:
        raise BadInput("could-load: expected --at, or --since with or without --until, got others")
    told = could_load_between(caller.reading(), caller.anchor, unit, begin, end)
    periods = told.pop("periods")
    if caller.json:
        print_json({**told, "periods": [proved.answer for proved in periods]})
    else:
        print_facts([("unit", unit), ("from", told["since"]), ("until", told["until"])])
        for proved in periods:
            print_line("")
            _print_period(proved.answer)
    named = {entry["entry"] for proved in periods for entry in proved.answer["rests_on"]}
    _say_proved(caller, len(named), max(proved.log_size for proved in periods))
    say(f"An answer with all its reasons: appliance ledger could-load {unit} --at TIME")


def _print_period(answer: dict[str, Any]) -> None:
    """Since when it was so, what could be loaded and whose approvals that rested on; in a line what could not."""
    print_line(f"from {answer['at']}, as of entry {answer['as_of']}:")
    for task in answer["tasks"]:
        candidate, release = task["candidate"], task["release"]
        if not task["could_load"]:
            print_facts([(f"  {task['task']}", f"could not load {candidate['adapter']}: {candidate['reasons'][0]}")])
            continue
        approved = [
            f"{review['reviewer']} ({review['field']}), entry {review['entry']}"
            for review in candidate["reviews"]
            if review["decision"].startswith("approve") and review["against"] is None
        ]
        released = f"released by {release['by']}, entry {release['entry']}"
        text = f"could load {candidate['adapter']}; {released}; approved by {', '.join(approved) or 'nobody'}"
        print_facts([(f"  {task['task']}", text)])
    for one in answer["exported"]:
        text = f"could load {one['adapter']} from an exported folder, entry {one['entry']}, until {one['valid_until']}"
        print_facts([(f"  {one['task']}", text)])
    if not answer["tasks"] and not answer["exported"]:
        print_line("  nothing: no adapter was released to it")


def _counted(entries: int) -> str:
    return "the 1 entry that this rests on is" if entries == 1 else f"the {entries} entries that this rests on are"


def _print_answer(answer: dict[str, Any]) -> None:
    times = {named["entry"]: named["time"] for named in answer["rests_on"]}
    print_facts(
        [
            (
                "unit",
                answer["unit"]
                if answer["enrolled"] is not None
                else f"{answer['unit']}, which was no enrolled unit then",
            ),
            ("at", f"{answer['at']}, as of entry {answer['as_of']}"),
            ("policy", f"{answer['policy']}, entry {answer['policy_entry']}"),
            ("asked for", _pending(answer)),
        ]
    )
    for task in answer["tasks"]:
        candidate, release, slot = task["candidate"], task["release"], task["slot"]
        print_line("")
        print_line(f"{task['task']}: {'could load' if task['could_load'] else 'could not load'} {candidate['adapter']}")
        when = times[release["entry"]]
        told = [("  released", f"entry {release['entry']}, {when}, {release['kind']} by {release['by']}")]
        told += [(f"  {label}", value) for label, value in _candidate(candidate, answer["names"], times)]
        print_facts([*told, ("  was loaded", _slot(slot))])
    for one in answer["exported"]:
        print_line("")
        print_line(
            f"{one['task']}: could load {one['adapter']} until {one['valid_until']} from an exported folder, "
            f"entry {one['entry']}; no revocation reaches it"
        )
        print_facts([("  manifest", one["manifest"]), ("  exported", f"entry {one['entry']}, {times[one['entry']]}")])
    for candidate in answer["others"]:
        print_line("")
        print_line(f"not released: could not load {candidate['adapter']}")
        print_facts((f"  {label}", value) for label, value in _candidate(candidate, answer["names"], times))
    if not answer["tasks"] and not answer["others"]:
        print_line("")
        print_line("nothing: no adapter was released to it or approved for it")
    print_line("")
    print_facts([("rests on entries", ", ".join(str(named["entry"]) for named in answer["rests_on"]))])


def _pending(answer: dict[str, Any]) -> str:
    fields = ", ".join(answer["required_fields"])
    wanted = f"{answer['reviewers']} standing approvals of {answer['distinct_fields']} different fields"
    return f"{wanted}, among them {fields}" if fields else wanted


def _candidate(candidate: dict[str, Any], names: dict[str, str], times: dict[int, str]) -> Iterator[tuple[str, str]]:
    yield "manifest", f"{candidate['manifest']}, sealed by entry {candidate['sealed']}"
    for review in candidate["reviews"]:
        printed = names.get(review["printed_name"] or "")
        when = f", {times[review['entry']]}" if review["entry"] in times else ""
        who = review["reviewer"] if printed is None else f"{review['reviewer']} ({printed})"
        until = "" if review["valid_until"] is None else f", until {review['valid_until']}"
        counted = "" if review["against"] is None else f"\nno longer counts: {review['against']}"
        yield (
            {"approve": "approved", "reject": "rejected"}[review["decision"]],
            f"entry {review['entry']}{when}, by {who}, for {review['field']}{until}{counted}",
        )
    for reason in candidate["reasons"]:
        yield "against it", reason


def _slot(slot: dict[str, Any] | None) -> str:
    if slot is None:
        return "nothing"
    if slot["entry"] is None:
        return f"not yet: {slot['adapter']} was admitted by entry {slot['admitted']}"
    return f"{slot['adapter']}, entry {slot['entry']}, admitted by entry {slot['admitted']}"


def _members(value: Any) -> Iterator[tuple[str, object]]:
    """The members of a row that say something; one of several parts as JSON."""
    for name, member in value.items() if isinstance(value, dict) else (("value", value),):
        if member not in (None, [], {}, ""):
            text = isinstance(member, str | int)
            yield name, member if text else json.dumps(member, ensure_ascii=False, sort_keys=True)


@command("state", example="appliance ledger state --at 41\nappliance ledger state --at 7d --kind adapter --json")
@_AT
@click.option(
    "--kind", "kinds", multiple=True, metavar="KIND", help="Such as principal, adapter or release. Can be repeated."
)
@reads
@click.pass_obj
def state(caller: Caller, at: str | None, kinds: tuple[str, ...]) -> None:
    """Everything in force after an entry or at a time, and since which entry."""
    from appliance.client.questions import state_as_of

    answer = state_as_of(caller.reading(), _moment(at), kinds)
    if caller.json:
        print_json(answer)
        return
    for thing in answer["things"]:
        print_facts([(thing["kind"], thing["id"])])
        members = [("since entry", thing["since"]), *_members(thing["value"])]
        print_facts((f"  {name.replace('_', ' ')}", told) for name, told in members)
        print_line("")
    say(f"As of entry {answer['as_of']}, {answer['time']}. What made a thing so: appliance ledger show ENTRY")
