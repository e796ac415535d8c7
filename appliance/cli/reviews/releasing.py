"""Release requests, and a release in an emergency."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from appliance.cli.reviews.conditions import CONDITIONS, parse_conditions
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, signs
from appliance.cli.support.output import say
from appliance.cli.support.signing import sign_and_submit, tell, tell_receipt
from appliance.cli.support.times import END_HELP, parse_end

F = TypeVar("F", bound=Callable[..., Any])


def request_facts(row: dict[str, Any]) -> list[tuple[str, object]]:
    """A line for each release request of an adapter: the current ones with what they still lack."""
    current = {one["request"]["index"]: one for one in row["asked"]}
    return [
        (f"release request {one['index']}", _request_text(one, current.get(one["index"]))) for one in row["requests"]
    ]


def _request_text(request: dict[str, Any], current: dict[str, Any] | None) -> str:
    how = "in an emergency" if request["exposure"] is None else f"{request['exposure']}, {request['purpose']}"
    asked = f"for {request['unit']} by {request['requested_by']} ({how})"
    if request["withdrawn"] is not None:
        return f"{asked}; withdrawn by entry {request['withdrawn']}"
    if current is None:
        return f"{asked}; replaced by a later one"
    approvals = ", ".join(str(entry) for entry in current["approvals"]) or "none"
    missing = "; ".join(current["missing"]) or "nothing"
    until = "" if current["until"] is None else f"; until {current['until']}"
    return f"{asked}; tier {current['tier']}; approvals by entry: {approvals}; missing: {missing}{until}"


def _conditions(function: F) -> F:
    for option in reversed(CONDITIONS):
        function = option(function)
    return function


@command(
    "request",
    example=(
        "appliance release request clauses@1 --unit legal --exposure internal --purpose assist \\\n"
        "    --intended-use 'Sort clauses for a lawyer.' --limits 'Not for advice to clients.'"
    ),
)
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--unit", required=True, metavar="NAME", help="The business unit that would use it.")
@click.option(
    "--exposure",
    required=True,
    metavar="WORD",
    help="Whom its answers reach. Words of the default policy: internal, customers, public.",
)
@click.option(
    "--purpose",
    required=True,
    metavar="WORD",
    help="What its answers are for. Words of the default policy: draft, assist, decide.",
)
@click.option("--intended-use", required=True, metavar="TEXT", help="What it is to be used for.")
@click.option("--limits", required=True, metavar="TEXT", help="What it is not to be used for.")
@_conditions
@signs
@click.pass_obj
def request(
    caller: Caller,
    adapter: str,
    unit: str,
    exposure: str,
    purpose: str,
    intended_use: str,
    limits: str,
    not_before: str | None,
    not_after: str | None,
    tasks: tuple[str, ...],
    answers_a_day: int | None,
) -> None:
    """Ask that reviewers release an adapter to a unit. Signed by the person who ordered its run.

    Policy derives a tier from exposure and purpose. The tier says how many reviewers must approve, of which fields, and
    for how long. A later request replaces this one, and the approvals of it.
    """
    from appliance.client.releases.decisions import propose_request

    terms = {
        "unit": unit,
        "exposure": exposure,
        "purpose": purpose,
        "conditions": parse_conditions(not_before, not_after, tasks, answers_a_day),
    }
    texts = {"intended_use": intended_use, "limits": limits}
    proposal = propose_request(caller.reading(), caller.anchor, caller.signer, adapter, texts=texts, **terms)
    receipt = sign_and_submit(caller, proposal)
    tier = proposal.order.model_dump()["tier"]
    tell_receipt(caller, receipt, [("requested", f"{adapter} for {unit}"), ("tier", tier)])
    say(f"next: reviewers read appliance review show {adapter}")


@command("withdraw-request", example="appliance release withdraw-request clauses@1 --unit legal")
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--unit", required=True, metavar="NAME", help="The business unit that it was requested for.")
@click.option("--reason", metavar="TEXT", help="Why.")
@signs
@click.pass_obj
def withdraw_request(caller: Caller, adapter: str, unit: str, reason: str | None) -> None:
    """Take back a release request and its approvals. Signed by the person who asked, or by an administrator."""
    from appliance.client.releases.decisions import propose_request_withdrawal

    proposal = propose_request_withdrawal(caller.reading(), caller.anchor, caller.signer, adapter, unit, reason)
    tell_receipt(caller, sign_and_submit(caller, proposal), [("withdrawn", f"{adapter} for {unit}")])


@command(
    "break-glass",
    example=(
        "appliance release break-glass clauses@1 --unit legal --task labels --until 4h \\\n"
        "    --reason 'clauses@2 answers nothing.'"
    ),
)
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--unit", required=True, metavar="NAME", help="The business unit.")
@click.option("--task", required=True, metavar="NAME", help="The task that it answered before.")
@click.option("--until", required=True, metavar="TIME", help=f"{END_HELP} Policy limits it.")
@click.option("--reason", required=True, metavar="TEXT", help="What the emergency is.")
@click.option(
    "--add-instruction", is_flag=True, help="Put the dataset's instruction into requests without a system message."
)
@signs
@click.pass_obj
def break_glass(
    caller: Caller, adapter: str, unit: str, task: str, until: str, reason: str, add_instruction: bool
) -> None:
    """In an emergency let a version answer that answered the task before, though its approvals lack something.

    Signed by the unit's release owner and endorsed by an administrator. It lasts some hours, and opens a release
    request. It lifts no revocation, rejection, blocking finding or condition.
    """
    from appliance.client.releases.decisions import propose_emergency

    terms = {
        "unit": unit,
        "task": task,
        "until": parse_end(until, "until", datetime.now(UTC)),
        "adds_instruction": add_instruction,
    }
    proposal = propose_emergency(caller.reading(), caller.anchor, caller.signer, adapter, reason, **terms)
    tell(caller, sign_and_submit(caller, proposal), f"{adapter} answers {unit}/{task}")
