"""One request from the log: which unit, which adapter, and a proof that can be checked without the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, reads
from appliance.cli.support.output import print_facts, print_json, print_line, print_table, say

if TYPE_CHECKING:
    from appliance.client.requests import Request
    from appliance.client.support.log import Proven


@command(
    "request",
    example=(
        "appliance ledger request chatcmpl-0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e\n"
        "appliance ledger request 0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e --output answer.tlog-proof"
    ),
)
@click.argument("identifier", metavar="ID")
@click.option(
    "--output", "file", type=click.Path(path_type=Path), metavar="FILE", help="Write the proof of its last entry here."
)
@reads
@click.pass_obj
def request(caller: Caller, identifier: str, file: Path | None) -> None:
    """Find a unit's request by its answer's id: both entries, the adapter, and who released it.

    Each entry is proved to be in the log before it is printed; the proof itself is printed last, and written to a file
    with --output.
    """
    from appliance.client.requests import find_request, parse_request_id
    from appliance.client.support.files import write_new

    found = find_request(caller.reading(), caller.anchor, parse_request_id(identifier))
    if file is not None:
        write_new(file, found.last.proof, "proof", 0o644)
    if caller.json:
        print_json(_value(found))
    else:
        _print(found)
    say(f"Proved here, each entry, in the log of {found.last.size} entries; its key: {caller.anchor.said_by}.")
    if found.finished is None:
        say("The request has no end yet.")


def _value(found: Request) -> dict[str, Any]:
    return {
        "request": found.name,
        "admitted": _entry(found.admitted),
        "finished": None if found.finished is None else _entry(found.finished),
        "rests_on": [_entry(proven) for proven in found.rests_on],
        "proof": found.last.proof.decode(),
        "log_size": found.last.size,
    }


def _entry(proven: Proven) -> dict[str, Any]:
    return {**proven.entry.model_dump(mode="json"), "leaf": f"sha256:{proven.entry.leaf.hex()}"}


def _print(found: Request) -> None:
    body = found.last.entry.body
    ended = None if found.finished is None else found.finished.entry
    facts: list[tuple[str, object]] = [
        ("request", found.name),
        ("unit", body["unit"]),
        ("task", body["task"]),
        ("adapter", body["adapter"]),
        ("manifest", body["manifest"]),
    ]
    if ended is not None:
        facts += [
            ("outcome", f"{ended.outcome}, {body['finish_reason']}"),
            ("tokens", f"{body['prompt_tokens']} read, {body['completion_tokens']} written"),
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
