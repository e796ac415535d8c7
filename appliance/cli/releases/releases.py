"""Commands for releases and adapters, and `serve`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.releases.decisions import (
    NO_ADAPTER,
    finding_facts,
    gather,
    parse_conditions,
    print_evidence,
    suspension_facts,
    with_conditions,
)
from appliance.cli.runs.gates import list_verdict_facts, verdict_value
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import (
    PATH,
    REASON,
    command,
    with_common_options,
    with_session_options,
    with_signing_options,
)
from appliance.cli.support.groups import adapter, release
from appliance.cli.support.output import (
    END_HELP,
    parse_end,
    plain,
    print_facts,
    print_json,
    print_line,
    print_rows,
    print_table,
    say,
)
from appliance.cli.support.signing import order_action, print_outcome, sign_and_submit
from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.api.releases import Adapter, CurrentRequest
    from appliance.client.questions import HistoryEntry
    from appliance.domain.core.decisions import ReleaseRequest


def request_facts(row: Adapter) -> list[tuple[str, object]]:
    """Return a line for each release request of an adapter. Current ones have what is still missing."""
    current = {one.request.index: one for one in row.release_requests}
    return [(f"release request {one.index}", _request_text(one, current.get(one.index))) for one in row.requests]


def _request_text(request: ReleaseRequest, current: CurrentRequest | None) -> str:
    how = "in an emergency" if request.exposure is None else f"{request.exposure}, {request.purpose}"
    asked = f"for {request.unit} by {request.requested_by} ({how})"
    if request.withdrawn is not None:
        return f"{asked}; withdrawn by entry {request.withdrawn}"
    if current is None:
        return f"{asked}; replaced by a later one"
    approvals = ", ".join(str(entry) for entry in current.approvals) or "none"
    missing = " ".join(map(str, current.blockers)) or "nothing"
    until = "" if current.until is None else f"; until {current.until}"
    return f"{asked}; tier {current.tier}; approvals by entry: {approvals}; missing: {missing}{until}"


@release.command(
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
    help="Who sees its responses. Values of the default policy: internal, customers, public.",
)
@click.option(
    "--purpose",
    required=True,
    metavar="WORD",
    help="What its responses are for. Values of the default policy: draft, assist, decide.",
)
@click.option("--intended-use", required=True, metavar="TEXT", help="What it is to be used for.")
@click.option("--limits", required=True, metavar="TEXT", help="What it is not to be used for.")
@with_conditions
@with_signing_options
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
    served_models: tuple[str, ...],
    answers_a_day: int | None,
) -> None:
    """Request the release of an adapter to a unit. Signed by the person who ordered its run.

    Policy derives a tier from exposure and purpose. The tier says how many reviewers must approve, in which review
    functions, and for how long. A later request replaces this one and its approvals.
    """
    values = {
        "adapter": adapter,
        "unit": unit,
        "exposure": exposure,
        "purpose": purpose,
        "conditions": parse_conditions(not_before, not_after, served_models, answers_a_day),
    }
    texts = {"intended_use": intended_use, "limits": limits}
    proposal = caller.propose("request-release", values, texts=texts)
    receipt = sign_and_submit(caller, proposal)
    tier = proposal.order.model_dump()["tier"]
    print_outcome(caller, receipt, [("requested", f"{adapter} for {unit}"), ("tier", tier)])
    say(f"next: reviewers read appliance review show {adapter}")


@release.command("withdraw-request", example="appliance release withdraw-request clauses@1 --unit legal")
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--unit", required=True, metavar="NAME", help="The business unit that it was requested for.")
@click.option("--reason", metavar="TEXT", help="Why.")
@with_signing_options
def withdraw_request(caller: Caller, adapter: str, unit: str, reason: str | None) -> None:
    """Withdraw a release request and its approvals. Signed by the person who requested it, or by an administrator."""
    values, facts = {"adapter": adapter, "unit": unit}, [("withdrawn", f"{adapter} for {unit}")]
    order_action(caller, "withdraw-request", values, facts, texts={"reason": reason})


@release.command(
    "break-glass",
    example=(
        "appliance release break-glass clauses@1 --unit legal --served-model labels --until 4h \\\n"
        "    --reason 'clauses@2 answers nothing.'"
    ),
)
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--unit", required=True, metavar="NAME", help="The business unit.")
@click.option("--served-model", required=True, metavar="NAME", help="The name under which it served before.")
@click.option("--until", required=True, metavar="TIME", help=f"{END_HELP} Policy limits it.")
@click.option("--reason", required=True, metavar="TEXT", help="What the emergency is.")
@click.option(
    "--add-instruction", is_flag=True, help="Put the dataset's instruction into requests without a system message."
)
@with_signing_options
def break_glass(
    caller: Caller, adapter: str, unit: str, served_model: str, until: str, reason: str, add_instruction: bool
) -> None:
    """In an emergency, serve a version that the unit had before under this name, without the approvals.

    Signed by the unit's release owner and countersigned by an administrator. It lasts some hours, and opens a release
    request. Revocations, rejections, blocking findings and conditions still apply.
    """
    values = {
        "adapter": adapter,
        "unit": unit,
        "served_model": served_model,
        "until": parse_end(until, "until", datetime.now(UTC)),
        "adds_instruction": add_instruction,
    }
    order_action(caller, "break-glass", values, f"{adapter} serves {unit}/{served_model}", texts={"reason": reason})


_OUTCOME_WORDS = {"failure": "failed"}
"""Word for an outcome of requests, if the outcome is not an adjective."""
_SHOWN_ELSEWHERE = ("reviews", "requests", "release_requests", "findings", "suspensions", "verdict")
"""Fields of an adapter that other lines show: the history has the reviews."""


@release.command("activate", example="appliance release activate clauses@1 --unit legal --served-model labels")
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--unit", required=True, metavar="NAME", help="The business unit.")
@click.option("--served-model", required=True, metavar="NAME", help="The name that the unit's clients send as `model`.")
@click.option(
    "--add-instruction", is_flag=True, help="Put the dataset's instruction into requests without a system message."
)
@with_signing_options
def activate(caller: Caller, adapter: str, unit: str, served_model: str, add_instruction: bool) -> None:
    """Serve an approved adapter to a unit. Signed by the unit's release owner, who did not order the run.

    The adapter is downloaded, hashed and checked first, as for a review. The order says whether the service adds the
    dataset's instruction. Each response record says whether it did.
    """
    from appliance.client.people import check_unit
    from appliance.client.releases import check_instruction
    from appliance.domain.core.names import check_name

    check_unit(caller.reading(), unit)
    check_name("served model", served_model)
    evidence = gather(caller, adapter)
    check_instruction(evidence, add_instruction)
    values = {"adapter": adapter, "manifest": evidence.digest, "unit": unit, "served_model": served_model}
    proposal = caller.propose("activate", {**values, "adds_instruction": add_instruction})
    notes = _describe_activation(caller, adapter, unit, served_model)
    receipt = sign_and_submit(caller, proposal, notes, show_subject=lambda: print_evidence(evidence, err=True))
    print_outcome(caller, receipt, [("served model", f"{unit}/{served_model}"), ("served by", adapter)])
    say(f"next: the unit asks for {served_model}, with the token of: appliance token issue --as {unit} --key FILE")


def _describe_activation(caller: Caller, name: str, unit: str, served_model: str) -> list[str]:
    """Return lines that say what a release would replace, when it ends first, and which conditions limit it."""
    from appliance.api.releases import Adapter
    from appliance.domain.core.records.serving import Release
    from appliance.reports.impact import describe_activation, list_terms

    connection = caller.reading()
    row, releases = connection.get(f"/v1/adapters/{name}", Adapter), connection.get("/v1/releases", list[Release])
    current = next((one for one in releases if (one.unit, one.served_model) == (unit, served_model)), None)
    facts = describe_activation(current, list_terms(*row.read_terms(unit)))
    return ["What it would change, as the service reports:", *(f"  {label}: {text}" for label, text in facts), ""]


@release.command("rollback", example="appliance release rollback --unit legal --served-model labels")
@click.option("--unit", required=True, metavar="NAME", help="The business unit.")
@click.option("--served-model", required=True, metavar="NAME", help="The name that the unit's clients send as `model`.")
@click.option("--to", "wanted", metavar="NAME@VERSION", help="The earlier adapter. Default: the one before today's.")
@click.option(
    "--add-instruction/--no-add-instruction",
    default=None,
    help="Whether to add the dataset's instruction. Default: as when this adapter was last active.",
)
@with_signing_options
def rollback(caller: Caller, unit: str, served_model: str, wanted: str | None, add_instruction: bool | None) -> None:
    """Serve an adapter again that served the unit before under this name. Its approvals must still be valid."""
    from appliance.client.releases import check_instruction, earlier_adapter
    from appliance.domain.core.lookup import UnprovenValue

    adapter, added = earlier_adapter(caller.reading(), unit, served_model, wanted)
    evidence = gather(caller, adapter)
    check_instruction(evidence, added if add_instruction is None else add_instruction)
    values = {
        "adapter": adapter if wanted else UnprovenValue(adapter),
        "manifest": evidence.digest,
        "unit": unit,
        "served_model": served_model,
        "adds_instruction": UnprovenValue(added) if add_instruction is None else add_instruction,
    }
    proposal = caller.propose("rollback", values)
    receipt = sign_and_submit(caller, proposal, _describe_activation(caller, adapter, unit, served_model))
    print_outcome(caller, receipt, [("served model", f"{unit}/{served_model}"), ("served by", adapter)])


@release.command("export", example="appliance release export legal labels --folder FOLDER")
@click.argument("unit")
@click.argument("served_model")
@click.option("--folder", required=True, metavar="FOLDER", type=PATH, help="A new folder.")
@click.option("--until", metavar="TIME", help=f"{END_HELP} Default: as long as policy and approvals allow.")
@with_signing_options
def export(caller: Caller, unit: str, served_model: str, folder: Path, until: str | None) -> None:
    """Write the adapter that serves a unit's served model to a folder, for the unit's own host and until a date.

    On that host, appliance.loader.load_approved checks it as the appliance does, for that unit and served model only. A
    revocation does not reach the exported folder. It ends on its date.
    """
    from appliance.client.releases import choose_export, fetch_export, write_export
    from appliance.client.support.files import check_new_folder

    check_new_folder(folder, "export")
    end = None if until is None else parse_end(until, "until", datetime.now(UTC))
    values = choose_export(caller.reading(), unit, served_model, end)
    receipt = sign_and_submit(caller, caller.propose("export-adapter", values))
    packet, received = fetch_export(caller.reading(), receipt.order, lambda size: None)
    write_export(folder, received, caller.trust, unit=unit, served_model=served_model)
    print_outcome(caller, receipt, [("adapter", packet.adapter), ("until", packet.valid_until), ("folder", folder)])
    say(f"next, on the unit's host: load_approved(FOLDER, BASE, TRUST, unit={unit!r}, served_model={served_model!r})")


@release.command("history", example="appliance release history --unit legal --served-model labels")
@click.option("--unit", metavar="NAME", help="Only this unit.")
@click.option("--served-model", metavar="NAME", help="Only this one.")
@with_session_options
def history(caller: Caller, unit: str | None, served_model: str | None) -> None:
    """List every activation and rollback, oldest first. The last one of each served model is active."""
    from appliance.client.people import check_unit
    from appliance.domain.core.records.serving import Release
    from appliance.domain.core.words import unknown_word

    check_unit(caller.reading(), unit)
    releases = caller.reading().get("/v1/releases", list[Release])
    served_models = {r.served_model for r in releases}
    if served_model is not None and served_model not in served_models:
        raise BadInput(unknown_word("served model", served_model, served_models, "one that was released"))
    rows = [r for r in releases if unit in (None, r.unit) and served_model in (None, r.served_model)]
    if caller.json:
        print_json(rows)
        return
    print_table(
        ("entry", "unit", "served_model", "adapter", "by", "what", "today"),
        [
            (
                s.index,
                r.unit,
                r.served_model,
                s.adapter,
                s.signer,
                s.kind,
                "yes" if s == r.current else "-",
            )
            for r in rows
            for s in r.history
        ],
        empty="Nothing was released. Release an adapter with: appliance release activate" if not releases else "",
    )


@adapter.command("list", example="appliance adapter list")
@with_session_options
def list_adapters(caller: Caller) -> None:
    """List every adapter that was ever sealed."""
    from appliance.api.releases import Adapter

    print_rows(
        caller.json,
        caller.reading().get("/v1/adapters", list[Adapter]),
        ("adapter", "run", "base", "entry", "reviews", "revoked", "quarantined", "manifest"),
        lambda row: (
            f"{row.name}@{row.version}",
            row.run,
            row.base,
            row.index,
            len(row.reviews),
            row.revoked,
            row.quarantined,
            row.manifest,
        ),
        empty=NO_ADAPTER,
    )


@adapter.command("show", example="appliance adapter show clauses@1")
@click.argument("name", metavar="NAME@VERSION")
@with_session_options
def show_adapter(caller: Caller, name: str) -> None:
    """Show one adapter's whole history: its content, its run, every review with its meaning, releases and loads.

    Requests are counted, not listed. Read them with `appliance ledger log --subject adapter:NAME@VERSION`.
    """
    from appliance.client.questions import read_adapter_history

    row, steps, requests = read_adapter_history(caller.reading(), name)
    if caller.json:
        value = {"adapter": row, "history": [_step_value(step) for step in steps], "requests": requests}
        print_json({**value, "verdict": verdict_value(caller, name)})
        return
    facts = [(key.replace("_", " "), value) for key, value in row.model_dump().items() if key not in _SHOWN_ELSEWHERE]
    counted = [(f"requests {_OUTCOME_WORDS.get(how, how)}", count) for how, count in requests.items()]
    print_facts(
        [
            *facts,
            *request_facts(row),
            *finding_facts(row),
            *suspension_facts(row),
            *counted,
            *list_verdict_facts(caller, name),
        ]
    )
    print_line("")
    print_table(
        ("entry", "time", "what", "who", "outcome", "about"),
        [(s.entry.index, s.entry.time, s.entry.type, s.entry.actor, s.entry.outcome, _about(s, name)) for s in steps],
    )
    say(f"{len(steps)} entries. One of them whole: appliance ledger show ENTRY")


def _step_value(step: HistoryEntry) -> dict[str, Any]:
    order = None if step.order is None else {"action": step.order.action, **step.order.model_dump(mode="json")}
    return {**step.entry.model_dump(mode="json"), "order": order, "texts": dict(step.texts)}


def _about(step: HistoryEntry, name: str) -> str:
    """Return the subjects of an entry, a review's decision and all disclosed texts.

    The adapter itself and order digests are left out.
    """
    entry, order_fields = step.entry, {} if step.order is None else step.order.model_dump(mode="json")
    found = [s for s in entry.subjects if s != f"adapter:{name}" and not s.startswith("order:")]
    found += [
        f"{name.replace('_', ' ')} {order_fields[name]}"
        for name in ("decision", "review_function", "valid_until")
        if name in order_fields
    ]
    parts = [", ".join(found), *(f"{label}: {text}" for label, text in step.texts.items())]
    return plain("; ".join(part for part in parts if part))


@adapter.command("revoke", example="appliance adapter revoke clauses@1 --reason 'Leaks client names.'")
@click.argument("name", metavar="NAME@VERSION")
@REASON
@with_signing_options
def revoke(caller: Caller, name: str, reason: str | None) -> None:
    """Revoke an adapter at once and permanently, for every unit.

    One administrator, reviewer or release owner is enough. A stop that can be lifted: appliance release suspend.
    """
    order_action(caller, "revoke-adapter", {"adapter": name}, [("revoked", name)], texts={"reason": reason})


@command("serve", example="appliance serve")
@click.option("--embedded", is_flag=True, help="End after ten idle minutes (used by the command line).")
@click.option(
    "--after-pause", is_flag=True, help="Start although the last entry is over 31 days old, since the clock is right."
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="First rebuild the tables derived from the log.",
)
@click.option(
    "--restoration",
    is_flag=True,
    help="The log lacks entries that others have seen: wait until two administrators restore it.",
)
@with_common_options
def serve(caller: Caller, embedded: bool, after_pause: bool, rebuild: bool, restoration: bool) -> None:
    """Run the service until SIGTERM or SIGINT: people connect to its Unix socket, units to its TCP port."""
    from appliance import wiring

    settings = caller.settings
    scheme = "http" if settings.certificate is None else "https"
    listen = "off" if settings.listen is None else f"{scheme}://{settings.listen[0]}:{settings.listen[1]}/v1"
    people = [f"people: {settings.socket}"]
    if settings.people is not None:
        people.append(f"people: {scheme}://{settings.people[0]}:{settings.people[1]}")
    wiring.serve(
        settings,
        embedded=embedded,
        after_pause=after_pause,
        rebuild=rebuild,
        restoration=restoration,
        ready=lambda: say(*people, f"units: {listen}"),
    )
