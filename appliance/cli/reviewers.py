"""Reviewers: they see what their signature would bind, from bytes hashed on their side, and sign for a unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from appliance.cli.reviews.conditions import CONDITIONS, parse_conditions
from appliance.cli.reviews.evidence import evidence_value, gather, print_evidence
from appliance.cli.reviews.looks import samples, try_adapter
from appliance.cli.reviews.page import conditions_text
from appliance.cli.support.caller import Caller, is_interactive
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.output import plain, print_facts, print_json, print_table, say
from appliance.cli.support.reviews import state_of, until_of
from appliance.cli.support.signing import receipt_value, sign_and_submit
from appliance.cli.support.times import END_HELP, parse_end
from appliance.domain.evaluation.quality import list_measures, list_warnings
from appliance.errors import BadInput, Denied
from appliance.formats.core.timestamp import encode_time

if TYPE_CHECKING:
    from appliance.client.releases.evidence import ReviewMaterial
    from appliance.domain.core.decisions import Conditions

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_VALID_DAYS = 90
_MEANINGS = {
    "approve": "I reviewed what this signature binds and approve it for {unit}, for the field {field}.",
    "approve-with-conditions": "I reviewed what this signature binds and approve it for {unit}, for the field {field}, "
    "while the conditions hold.",
    "request-changes": "I reviewed what this signature binds and ask for changes before {unit} uses it, for the field "
    "{field}.",
    "reject": "I reviewed what this signature binds and reject it for {unit}, for the field {field}.",
    "withdraw": "I take back my last decision on it for {unit}, for the field {field}.",
}
_NAMES = {
    "approve": "approval",
    "approve-with-conditions": "approval with conditions",
    "request-changes": "request for changes",
    "reject": "rejection",
}


@group("review", example="appliance review list")
def review() -> None:
    """Adapters to judge: show what a signature binds, approve, reject."""


@review.command("list", example="appliance review list --unit legal")
@click.option("--unit", metavar="NAME", help="Count only the decisions for this unit.")
@reads
@click.pass_obj
def list_reviews(caller: Caller, unit: str | None) -> None:
    """Every sealed adapter that is not revoked, and the decisions it has."""
    from appliance.client.people import check_unit
    from appliance.client.runs import sealed_metrics

    door = caller.reading()
    check_unit(door, unit)
    measured = sealed_metrics(door)
    rows = [_judged(r, measured) for r in door.get("/v1/adapters") if r["revoked"] is None]
    if caller.json:
        print_json(rows)
        return
    print_table(
        ("adapter", "run", "ordered by", "entry", "approved", "rejected", "no longer counts", "quarantined"),
        [
            (
                f"{r['name']}@{r['version']}",
                r["run"],
                r["ordered_by"],
                r["index"],
                _decisions(r, ("approve", "approve-with-conditions"), unit),
                _decisions(r, ("reject", "request-changes"), unit),
                _obsolete(r, unit),
                r["quarantined"],
            )
            for r in rows
        ],
        least=("quarantined", "no longer counts", "run", "ordered by", "entry"),
    )
    warned = [row for row in rows if row["warnings"]]
    say(*([""] if warned else []), *(line for row in warned for line in _warn(row)))


def _judged(row: dict[str, Any], measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    metrics = measured.get(f"{row['name']}@{row['version']}", {})
    return {**row, "metrics": metrics, "warnings": list_warnings(metrics)}


def _warn(row: dict[str, Any]) -> list[str]:
    """Each warning of an adapter, and its measures beside its base's and the majority class's."""
    name = f"{row['name']}@{row['version']}"
    measures = "; ".join(f"{measure} {text}" for measure, text in list_measures(row["metrics"]))
    return [*(f"warning: {name}: {plain(text)}" for text in row["warnings"]), f"  measured: {plain(measures)}"]


def _decisions(row: dict[str, Any], decisions: tuple[str, ...], unit: str | None) -> str:
    """Those that count: a shortened cell must not show a decision without the words that it was superseded."""
    found = [r for r in _standing(row, unit, True) if r["decision"] in decisions]
    return ", ".join(f"{r['reviewer']} ({r['field']}, {r['unit']})" for r in found) or "-"


def _obsolete(row: dict[str, Any], unit: str | None) -> str:
    found = _standing(row, unit, False)
    return (
        "; ".join(f"{r['decision']} by {r['reviewer']} ({r['field']}, {r['unit']}): {state_of(r)}" for r in found)
        or "-"
    )


def _standing(row: dict[str, Any], unit: str | None, standing: bool) -> list[dict[str, Any]]:
    return [r for r in row["reviews"] if (r["state"] == "standing") is standing and unit in (None, r["unit"])]


@review.command("show", example="appliance review show clauses@1")
@click.argument("adapter", metavar="NAME@VERSION")
@reads
@click.pass_obj
def show(caller: Caller, adapter: str) -> None:
    """Print exactly what a signature would bind, from bytes that were downloaded and hashed here.

    Fails when a file, the manifest's signature, the provenance or the proof in the log does not hold.
    """
    evidence = gather(caller, adapter)
    if caller.json:
        print_json(evidence_value(evidence))
        return
    print_evidence(evidence)
    say("", f"next: appliance review approve {adapter} --unit UNIT, or: appliance review reject {adapter} --unit UNIT")


@review.command("report", example="appliance review report clauses@1 --folder clauses-1-review")
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--folder", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="A new folder.")
@reads
@click.pass_obj
def report(caller: Caller, adapter: str, folder: Path) -> None:
    """Write the same page as HTML with plots, to print or to keep. No row of the dataset is in it.

    review.html opens without a server. In the same folder are page.json with all values, and each plot as SVG and PNG.
    """
    from appliance.client.releases.report import write_review_report

    evidence = gather(caller, adapter)
    write_review_report(evidence, folder)
    files = sorted(path.name for path in folder.iterdir())
    if caller.json:
        print_json({"folder": str(folder), "files": files})
        return
    print_facts([("folder", folder), ("files", ", ".join(files))])
    say(f"next: open {folder / 'review.html'}")


review.add_command(samples)
review.add_command(try_adapter)


def _decide(
    caller: Caller,
    decision: str,
    adapter: str,
    unit: str,
    field: str | None,
    meaning: str | None,
    reason: str | None,
    on_behalf_of: str | None,
    valid_until: str | None = None,
    conditions: Conditions | None = None,
) -> None:
    """What all decisions have in common: evidence, field, meaning, reason, signature."""
    from appliance.client.people import check_unit
    from appliance.client.releases.reviews import propose_review

    _check_meaning(caller, decision, meaning)
    check_unit(caller.reading(), unit)
    own = on_behalf_of is None
    chosen = _own_field(caller, field) if own else field or _delegated_field(caller, str(on_behalf_of))
    evidence = gather(caller, adapter)
    print_evidence(evidence, err=True)
    text = _meaning(decision, unit, chosen, meaning)
    why = _reason(caller, decision, reason, asked=evidence.request_for(unit) is not None)
    terms: dict[str, Any] = {"reason": why, "conditions": conditions, "on_behalf_of": on_behalf_of}
    proposal = propose_review(caller.about, caller.signer, evidence, decision, unit, chosen, text, valid_until, **terms)
    receipt = sign_and_submit(caller, proposal, _replaced(caller.signer, evidence, unit, on_behalf_of))
    if caller.json:
        print_json(receipt_value(receipt))
        return
    facts: list[tuple[str, object]] = [("decision", f"{decision} {adapter} for {unit}"), ("field", chosen)]
    if conditions is not None:
        facts.append(("conditions", conditions_text(conditions.model_dump(mode="json"))))
    until = [] if decision == "withdraw" else [("valid until", valid_until or "you replace it")]
    print_facts([*facts, ("meaning", text), *until, ("entry", receipt.index)])


def _replaced(signer: str, evidence: ReviewMaterial, unit: str, on_behalf_of: str | None) -> list[str]:
    """What of the signer's own this decision replaces."""
    reviews = evidence.told["adapter"]["reviews"]
    own = [
        r
        for r in reviews
        if (r["reviewer"], r["unit"], r["state"]) == (signer, unit, "standing")
        and r["decision"] in _NAMES
        and (r["on_behalf_of"] or {}).get("principal") == on_behalf_of
    ]
    return [
        f"Your {_NAMES[r['decision']]} of {evidence.name} for {unit} already counts{until_of(r)} "
        f"(entry {r['index']}, field {r['field']}). What you sign now takes its place."
        for r in own
    ]


def _own_field(caller: Caller, field: str | None) -> str:
    """The field that was named, if the signer reviews it, or else the only one of the signer; the session says which
    roles the signer has."""
    roles = caller.session.opened().roles
    fields = [role.partition(":")[2] for role in roles if role.startswith("reviewer:")]
    held = f"the roles of {caller.signer} are {', '.join(roles)}"
    if not fields:
        raise Denied(f"field: expected you to be a reviewer of a field, such as reviewer:privacy, got none; {held}")
    if field is not None and field not in fields:
        raise Denied(f"field: expected one that you review, {' or '.join(fields)}, got {field}; {held}")
    if field is not None:
        return field
    if len(fields) != 1:
        raise BadInput(f"field: expected --field with one of {', '.join(fields)}, got none; {held}")
    return fields[0]


def _delegated_field(caller: Caller, delegator: str) -> str:
    """The one field that this person delegated to the signer."""
    rows = caller.reading().get("/v1/delegations")
    fields = [r["field"] for r in rows if (r["delegator"], r["delegate"]) == (delegator, caller.signer)]
    if len(fields) != 1:
        told = f"expected --field with one that {delegator} delegated to {caller.signer}"
        raise BadInput(f"field: {told}, got none; delegated: {', '.join(fields) or 'none'}")
    return str(fields[0])


def _reason(caller: Caller, decision: str, given: str | None, *, asked: bool) -> str | None:
    """Needed for every decision on a request, and for those on which somebody must act."""
    if given is not None and given.strip():
        return given.strip()
    if given is None and not asked and decision in ("approve", "reject"):
        return None
    if given is None and not caller.yes and is_interactive():
        return str(click.prompt("Your reason", err=True)).strip()
    raise BadInput(f"review {decision}, reason: expected --reason TEXT with why you decide so, got none")


def _check_meaning(caller: Caller, decision: str, given: str | None) -> None:
    """Checks before any download that a meaning was given, or that there is a terminal to ask at."""
    if given is None and (caller.yes or not is_interactive()):
        why = "--yes answers no question about it" if caller.yes else "there is no terminal to ask at"
        raise BadInput(
            f"review {decision}, meaning: expected --meaning TEXT with what your signature means, since {why}, got none"
        )
    if given is not None and not given.strip():
        raise BadInput(f"review {decision}, meaning: expected what your signature means, got an empty text")


def _meaning(decision: str, unit: str, field: str, given: str | None) -> str:
    """What the signature means, in the signer's words (21 CFR 11.50); the prompt offers the usual words."""
    if given is not None:
        return given.strip()
    usual = _MEANINGS[decision].format(unit=unit, field=field)
    return str(click.prompt("What your signature means", default=usual, err=True)).strip() or usual


def _valid_until(until: str | None) -> str:
    now = datetime.now(UTC)
    end = parse_end(until or f"{DEFAULT_VALID_DAYS}d", "valid until", now)
    if end <= encode_time(now):
        raise BadInput(f"valid until: expected a time after {encode_time(now)}, got {until}, which is {end}")
    return end


def _options(*others: Any) -> Callable[[F], F]:
    """The options of every decision; `others` follow them."""
    options = (
        click.option("--unit", required=True, metavar="NAME", help="The business unit that the decision is for."),
        click.option("--field", metavar="FIELD", help="The field you review; needed when you have more than one."),
        click.option("--meaning", metavar="TEXT", help="What your signature means. Default: you are asked."),
        click.option("--reason", metavar="TEXT", help="Why. Needed where a release was requested."),
        click.option("--on-behalf-of", metavar="NAME", help="Decide for a reviewer who delegated the field to you."),
        *others,
    )

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@review.command(
    "approve",
    example=(
        "appliance review approve clauses@1 --unit legal --valid-until 90d\n"
        "appliance review approve clauses@1 --unit legal --field privacy --meaning 'No personal data found.'"
    ),
)
@click.argument("adapter", metavar="NAME@VERSION")
@_options(
    click.option(
        "--valid-until",
        "until",
        metavar="TIME",
        help=f"Until when it is valid: {END_HELP} Default: {DEFAULT_VALID_DAYS}d.",
    ),
    *CONDITIONS,
)
@signs
@click.pass_obj
def approve(
    caller: Caller,
    /,
    adapter: str,
    until: str | None,
    not_before: str | None,
    not_after: str | None,
    tasks: tuple[str, ...],
    answers_a_day: int | None,
    **terms: Any,
) -> None:
    """Sign that an adapter may answer for one unit, until a date. Shows what the signature binds first.

    With a condition it is an approval with conditions. The service enforces them.
    """
    conditions = parse_conditions(not_before, not_after, tasks, answers_a_day)
    decision = "approve" if conditions is None else "approve-with-conditions"
    _decide(caller, decision, adapter, valid_until=_valid_until(until), conditions=conditions, **terms)


@review.command("reject", example="appliance review reject clauses@1 --unit legal --meaning 'Accuracy is too low.'")
@click.argument("adapter", metavar="NAME@VERSION")
@_options()
@signs
@click.pass_obj
def reject(caller: Caller, /, adapter: str, **terms: Any) -> None:
    """Sign that an adapter may not answer for one unit. A rejection outweighs approvals and has no end date.

    It counts until you replace it with an approval of your own.
    """
    _decide(caller, "reject", adapter, **terms)


@review.command(
    "request-changes",
    example="appliance review request-changes clauses@1 --unit legal --reason 'Show the recall of rare clauses.'",
)
@click.argument("adapter", metavar="NAME@VERSION")
@_options()
@signs
@click.pass_obj
def request_changes(caller: Caller, /, adapter: str, **terms: Any) -> None:
    """Sign that you do not approve a request. It counts until a release is requested again, or you decide again."""
    _decide(caller, "request-changes", adapter, **terms)


@review.command("withdraw", example="appliance review withdraw clauses@1 --unit legal --reason 'I was mistaken.'")
@click.argument("adapter", metavar="NAME@VERSION")
@_options()
@signs
@click.pass_obj
def withdraw(caller: Caller, /, adapter: str, **terms: Any) -> None:
    """Sign that your last decision on an adapter for one unit no longer counts."""
    _decide(caller, "withdraw", adapter, **terms)
