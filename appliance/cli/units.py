"""Business units: which adapter answers, with what token, and the service that answers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.reviews.evidence import gather, print_evidence
from appliance.cli.reviews.findings import finding_facts
from appliance.cli.reviews.releasing import break_glass, request, request_facts, withdraw_request
from appliance.cli.runs.gates import judged_facts, judged_value
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, group, reads, shares, signs
from appliance.cli.support.output import plain, print_facts, print_json, print_line, print_table, say
from appliance.cli.support.signing import sign_and_submit, tell_receipt
from appliance.cli.support.times import END_HELP, parse_end
from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.client.questions import Step

_ENDED = {"failure": "failed"}
"""How requests ended, where the ledger's word is no adjective."""
_TOLD_OTHERWISE = ("reviews", "requests", "asked", "findings", "verdict")
"""Members of an adapter that are not one value: the history has the reviews, and other lines have the rest."""


@group("release", example="appliance release history --unit legal")
def release() -> None:
    """Which adapter answers a unit's task: request, activate, roll back, export, history."""


for _command in (request, withdraw_request, break_glass):
    release.add_command(_command)


@release.command("activate", example="appliance release activate clauses@1 --unit legal --task labels")
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--unit", required=True, metavar="NAME", help="The business unit.")
@click.option("--task", required=True, metavar="NAME", help="What the unit's clients send as `model`.")
@click.option(
    "--add-instruction", is_flag=True, help="Put the dataset's instruction into requests without a system message."
)
@signs
@click.pass_obj
def activate(caller: Caller, adapter: str, unit: str, task: str, add_instruction: bool) -> None:
    """Let an approved adapter answer a unit's task. Signed by the unit's release owner, who did not order the run.

    The adapter is downloaded, hashed and checked first, like for a review. The order says whether the service puts the
    dataset's instruction in; each answer's response record says whether it did.
    """
    from appliance.client.people import check_unit
    from appliance.client.releases.reviews import propose_release
    from appliance.domain.core.names import check_name
    from appliance.domain.releases.activations import Activate

    check_unit(caller.reading(), unit)
    check_name("task", task)
    evidence = gather(caller, adapter)
    print_evidence(evidence, err=True)
    proposal = propose_release(
        caller.about, caller.signer, Activate, evidence, unit, task, adds_instruction=add_instruction
    )
    tell_receipt(caller, sign_and_submit(caller, proposal), [("task", f"{unit}/{task}"), ("answered by", adapter)])
    say(f"next: the unit asks for {task}, with the token of: appliance token issue --as {unit} --key FILE")


@release.command("rollback", example="appliance release rollback --unit legal --task labels")
@click.option("--unit", required=True, metavar="NAME", help="The business unit.")
@click.option("--task", required=True, metavar="NAME", help="The task's name.")
@click.option("--to", "wanted", metavar="NAME@VERSION", help="The earlier adapter. Default: the one before today's.")
@click.option(
    "--add-instruction/--no-add-instruction",
    default=None,
    help="Whether the dataset's instruction is put in. Default: as when this adapter last answered.",
)
@signs
@click.pass_obj
def rollback(caller: Caller, unit: str, task: str, wanted: str | None, add_instruction: bool | None) -> None:
    """Let an adapter that answered before answer again. Its approvals must still count."""
    from appliance.client.releases.reviews import earlier_adapter, propose_release
    from appliance.domain.releases.activations import RollBack

    adapter, added = earlier_adapter(caller.reading(), unit, task, wanted)
    evidence = gather(caller, adapter)
    proposal = propose_release(
        caller.about,
        caller.signer,
        RollBack,
        evidence,
        unit,
        task,
        adds_instruction=added if add_instruction is None else add_instruction,
    )
    tell_receipt(caller, sign_and_submit(caller, proposal), [("task", f"{unit}/{task}"), ("answered by", adapter)])


@release.command("export", example="appliance release export legal labels --folder FOLDER")
@click.argument("unit")
@click.argument("task")
@click.option("--folder", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="A new folder.")
@click.option("--until", metavar="TIME", help=f"{END_HELP} Default: as long as policy and approvals allow.")
@signs
@click.pass_obj
def export(caller: Caller, unit: str, task: str, folder: Path, until: str | None) -> None:
    """Write what answers a unit's task today to a folder that the unit can load on a host of its own, until a date.

    There appliance.loader.load_approved checks it as the appliance does, for that unit and task alone. No revocation
    reaches it: it ends by its date.
    """
    from appliance.client.exports import check_free, fetch_export, propose_export, write_export

    check_free(folder)
    end = None if until is None else parse_end(until, "until", datetime.now(UTC))
    receipt = sign_and_submit(caller, propose_export(caller.reading(), caller.signer, unit, task, end))
    told, received = fetch_export(caller.reading(), receipt.order, lambda size: None)
    write_export(folder, received, caller.trust, unit=unit, task=task)
    tell_receipt(caller, receipt, [("adapter", told["adapter"]), ("until", told["valid_until"]), ("folder", folder)])
    say(f"next, on the unit's host: load_approved(FOLDER, BASE, TRUST, unit={unit!r}, task={task!r})")


@release.command("history", example="appliance release history --unit legal --task labels")
@click.option("--unit", metavar="NAME", help="Only this unit.")
@click.option("--task", metavar="NAME", help="Only this task.")
@reads
@click.pass_obj
def history(caller: Caller, unit: str | None, task: str | None) -> None:
    """Every activation and rollback, oldest first; the last of each task is what answers."""
    from appliance.client.people import check_unit
    from appliance.domain.core.words import unknown_word

    check_unit(caller.reading(), unit)
    releases = caller.reading().get("/v1/releases")
    tasks = {r["task"] for r in releases}
    if task is not None and task not in tasks:
        raise BadInput(unknown_word("task", task, tasks, "one that was released"))
    rows = [r for r in releases if unit in (None, r["unit"]) and task in (None, r["task"])]
    if not rows:
        say("no entries")
    if caller.json:
        print_json(rows)
        return
    print_table(
        ("entry", "unit", "task", "adapter", "by", "what", "today"),
        [
            (
                s["index"],
                r["unit"],
                r["task"],
                s["adapter"],
                s["signer"],
                s["kind"],
                "yes" if s == r["history"][-1] else "-",
            )
            for r in rows
            for s in r["history"]
        ],
    )


@group("adapter", example="appliance adapter list")
def adapter() -> None:
    """Sealed adapters: list, show the whole history, revoke."""


@adapter.command("list", example="appliance adapter list")
@reads
@click.pass_obj
def list_adapters(caller: Caller) -> None:
    """Every adapter that was ever sealed."""
    rows = caller.reading().get("/v1/adapters")
    if caller.json:
        print_json(rows)
        return
    print_table(
        ("adapter", "run", "base", "entry", "reviews", "revoked", "quarantined", "manifest"),
        [
            (
                f"{r['name']}@{r['version']}",
                r["run"],
                r["base"],
                r["index"],
                len(r["reviews"]),
                r["revoked"],
                r["quarantined"],
                r["manifest"],
            )
            for r in rows
        ],
    )


@adapter.command("show", example="appliance adapter show clauses@1")
@click.argument("name", metavar="NAME@VERSION")
@reads
@click.pass_obj
def show_adapter(caller: Caller, name: str) -> None:
    """One adapter's whole history: what it is made of, its run, every review with what it means, releases and loads.

    Requests are counted, not listed: read them with `appliance ledger log --subject adapter:NAME@VERSION`.
    """
    from appliance.client.questions import adapter_story

    row, steps, requests = adapter_story(caller.reading(), name)
    if caller.json:
        value = {"adapter": row, "history": [_step_value(step) for step in steps], "requests": requests}
        print_json({**value, "verdict": judged_value(caller, name)})
        return
    facts = [(key.replace("_", " "), value) for key, value in row.items() if key not in _TOLD_OTHERWISE]
    counted = [(f"requests {_ENDED.get(how, how)}", count) for how, count in requests.items()]
    print_facts([*facts, *request_facts(row), *finding_facts(row), *counted, *judged_facts(caller, name)])
    print_line("")
    print_table(
        ("entry", "time", "what", "who", "outcome", "about"),
        [(s.entry.index, s.entry.time, s.entry.type, s.entry.actor, s.entry.outcome, _about(s, name)) for s in steps],
    )
    say(f"{len(steps)} entries. One of them whole: appliance ledger show ENTRY")


def _step_value(step: Step) -> dict[str, Any]:
    order = None if step.order is None else {"verb": step.order.verb, **step.order.model_dump(mode="json")}
    return {**step.entry.model_dump(mode="json"), "order": order, "texts": dict(step.texts)}


def _about(step: Step, name: str) -> str:
    """The subjects beside the adapter itself and the orders' digests, which say nothing to a reader; what a review
    decided, and every text that is still disclosed."""
    entry, told = step.entry, {} if step.order is None else step.order.model_dump(mode="json")
    found = [s for s in entry.subjects if s != f"adapter:{name}" and not s.startswith("order:")]
    found += [f"{field} {told[field]}" for field in ("decision", "field", "valid_until") if field in told]
    parts = [", ".join(found), *(f"{label}: {text}" for label, text in step.texts.items())]
    return plain("; ".join(part for part in parts if part))


@adapter.command("revoke", example="appliance adapter revoke clauses@1 --reason 'Leaks client names.'")
@click.argument("name", metavar="NAME@VERSION")
@click.option("--reason", metavar="TEXT", help="Why, in your words; can be erased later.")
@signs
@click.pass_obj
def revoke(caller: Caller, name: str, reason: str | None) -> None:
    """Take an adapter out of service at once, for every unit, for ever.

    One administrator, reviewer or release owner is enough: taking away is always easier than giving.
    """
    from appliance.client.releases.reviews import propose_revocation

    proposal = propose_revocation(caller.reading(), caller.anchor, caller.signer, name, reason)
    tell_receipt(caller, sign_and_submit(caller, proposal), [("revoked", name)])


@command("serve", example="appliance serve")
@click.option("--embedded", is_flag=True, help="End after ten idle minutes (used by the command line).")
@click.option(
    "--after-pause", is_flag=True, help="Start although the last entry is over 31 days old; the clock is right."
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="First rebuild the tables derived from the log.",
)
@shares
@click.pass_obj
def serve(caller: Caller, embedded: bool, after_pause: bool, rebuild: bool) -> None:
    """Run the service until it gets SIGTERM or SIGINT: people on its Unix socket, units on its TCP port."""
    from appliance import wiring

    settings = caller.settings
    scheme = "http" if settings.certificate is None else "https"
    listen = "off" if settings.listen is None else f"{scheme}://{settings.listen[0]}:{settings.listen[1]}/v1"
    people = [f"people: {settings.socket}"]
    if settings.people is not None:
        people.append(f"people: {scheme}://{settings.people.listen[0]}:{settings.people.listen[1]}")
    wiring.serve(
        settings,
        embedded=embedded,
        after_pause=after_pause,
        rebuild=rebuild,
        ready=lambda: say(*people, f"units: {listen}"),
    )
