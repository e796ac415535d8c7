"""Resuming a failed run, for the person who ordered it, and replaying a window of steps, for an auditor."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, reads, signs
from appliance.cli.support.output import print_facts, print_json, print_table, say
from appliance.cli.support.progress import Meter
from appliance.cli.support.signing import receipt_value, sign_and_submit
from appliance.errors import BadInput, Tampered


def parse_run(name: str) -> str:
    if not name.startswith("r-"):
        raise BadInput(f"run: expected a name such as r-000001, got {name}; list them with: appliance run list")
    return name


@command("resume", example="appliance run resume r-000002")
@click.argument("name", metavar="RUN")
@signs
@click.pass_obj
def resume(caller: Caller, name: str) -> None:
    """Continue a failed run from its last training checkpoint. The person who ordered it or an administrator may do so.

    The adapter is the same, bit for bit, as if the run had not stopped.
    """
    from appliance.client.replays import propose_resume

    receipt = sign_and_submit(caller, propose_resume(caller.about, caller.signer, parse_run(name)))
    if caller.json:
        print_json(receipt_value(receipt))
    else:
        print_facts([("order", receipt.order), ("entry", receipt.index), ("outcome", receipt.outcome)])
    say(f"next: appliance run show {name} --follow")


@command("checkpoints", example="appliance run checkpoints r-000001")
@click.argument("name", metavar="RUN")
@reads
@click.pass_obj
def checkpoints(caller: Caller, name: str) -> None:
    """A run's recorded training checkpoints: where a window of it can begin and end."""
    rows = caller.reading().get(f"/v1/runs/{parse_run(name)}/checkpoints")
    if caller.json:
        print_json(rows)
        return
    print_table(
        ("step", "entry", "seconds", "digest"), [(r["step"], r["index"], r["seconds"], r["digest"]) for r in rows]
    )


@command("replay", example="appliance run replay r-000001 --from 0 --to 40")
@click.argument("name", metavar="RUN")
@click.option(
    "--from",
    "first",
    metavar="STEP",
    type=click.IntRange(0),
    required=True,
    help="A recorded step; 0 is the beginning.",
)
@click.option("--to", "last", metavar="STEP", type=click.IntRange(1), required=True, help="A later recorded step.")
@click.option("--wait/--no-wait", default=True, help="Wait until there is a verdict.")
@signs
@click.pass_obj
def replay(caller: Caller, name: str, first: int, last: int, wait: bool) -> None:
    """Train a window of a run's steps again and compare it with the log. Auditors may do so.

    The verdict is identical, within-tolerance (only on another kind of hardware) or different; it becomes an entry.
    """
    from appliance.client.replays import propose_replay, wait_for_replay

    proposal = propose_replay(caller.about, caller.signer, parse_run(name), first, last)
    receipt = sign_and_submit(caller, proposal)
    if not wait:
        print_json(receipt_value(receipt)) if caller.json else print_facts([("order", receipt.order)])
        return
    caller.go_on = (
        f"the replay goes on; look for its verdict with: appliance ledger log --subject order:{receipt.order}"
    )
    meter = Meter("trains", last - first, "steps")

    def told(state: dict[str, Any]) -> None:
        for frame in state["progress"]:
            if frame.get("frame") == "step":
                meter.set(int(frame["step"]) - first)

    proven = wait_for_replay(caller.reading(), caller.anchor, receipt.order, told)
    _print_verdict(caller, proven.entry.index, proven.entry.body)


def _print_verdict(caller: Caller, index: int, body: dict[str, Any]) -> None:
    shown = ("verdict", "run", "from_step", "to_step", "expected", "got", "largest_difference")
    if caller.json:
        print_json({"entry": index, **body})
    else:
        print_facts([("entry", index), *((name.replace("_", " "), body[name]) for name in shown)])
    if body["verdict"] == "different":
        raise Tampered(
            f"{body['run']}, step {body['to_step']}: expected {body['expected']}, got {body['got']}", code="different"
        )
