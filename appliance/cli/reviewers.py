"""Reviewers: they see what their signature would bind, from bytes hashed on their side, and sign for a unit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from appliance.cli.support.caller import Caller, is_interactive
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.output import plain, print_facts, print_json, print_line, print_table, say
from appliance.cli.support.progress import Meter, show_bytes
from appliance.cli.support.reviews import state_of, until_of
from appliance.cli.support.signing import receipt_value, sign_and_submit
from appliance.cli.support.times import END_HELP, parse_end
from appliance.domain.data.teaching import example_request
from appliance.domain.evaluation.quality import list_measures, list_warnings
from appliance.errors import BadInput, Denied

if TYPE_CHECKING:
    from appliance.client.reviews import ReviewMaterial

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_VALID_DAYS = 90
_MEANINGS = {
    "approve": "I reviewed what this signature binds and approve it for {unit}, for the field {field}.",
    "reject": "I reviewed what this signature binds and reject it for {unit}, for the field {field}.",
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
        ("adapter", "run", "ordered by", "entry", "approved", "rejected", "quarantined"),
        [
            (
                f"{r['name']}@{r['version']}",
                r["run"],
                r["ordered_by"],
                r["index"],
                _decisions(r, "approve", unit),
                _decisions(r, "reject", unit),
                r["quarantined"],
            )
            for r in rows
        ],
        least=("run", "ordered by", "entry"),
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


def _decisions(row: dict[str, Any], decision: str, unit: str | None) -> str:
    found = [r for r in row["reviews"] if r["decision"] == decision and unit in (None, r["unit"])]
    return ", ".join(f"{r['reviewer']} ({r['field']}, {r['unit']}{_unless_standing(r)})" for r in found) or "-"


def _unless_standing(row: dict[str, Any]) -> str:
    return "" if row["state"] == "standing" else f"; {state_of(row)}"


def gather(caller: Caller, name: str) -> ReviewMaterial:
    """Downloads, hashes and checks an adapter, with a meter."""
    from appliance.client.reviews import gather as gather_evidence

    door, meter = caller.reading(), Meter(f"hashes {name}", 0, "bytes")

    def advance(count: int) -> None:
        meter.total += count
        meter.advance(count)

    evidence = gather_evidence(door, caller.anchor, name, advance)
    meter.close()
    return evidence


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


def print_evidence(evidence: ReviewMaterial, *, err: bool = False) -> None:
    """The signed part first: the manifest and its files. Then what they say. Then what only the service says."""

    def line(text: str) -> None:
        say(text) if err else print_line(text)

    line(f"Adapter {evidence.name}. A signature binds this manifest, and through it every byte below:")
    print_facts([("  manifest", evidence.digest)], err=err)
    for file in evidence.manifest.files:
        line(f"    {file.digest}  {show_bytes(file.size):>9}  {file.path}")
    line("")
    line("Checked here: every file by its digest, the appliance's signature over them, the provenance, the log.")
    print_facts(
        [
            ("  sealed", f"entry {evidence.sealed}, {evidence.sealed_at}, under a log of {evidence.log_size} entries"),
            ("  log vouched for by", evidence.said_by),
            ("  run", f"{evidence.run}, ordered by {evidence.ordered_by}"),
            ("  order", evidence.order),
        ],
        err=err,
    )
    for title, facts in (
        ("Made of, by the signed provenance:", [(f"  {name}", digest) for name, digest in evidence.materials]),
        ("Warnings, by metrics.json:", [("  warning", text) for text in warnings_of(evidence)]),
        ("Measured on the held-out rows, in metrics.json:", _metrics(evidence)),
        ("Trained with, in recipe.json:", _members(evidence.contents.get("recipe.json"))),
        ("Taught, by the dataset that the provenance names:", _taught(evidence)),
        ("Stands on, in base.json:", _members(evidence.contents.get("base.json"))),
        ("From the service; no review confirms it:", _told(evidence)),
    ):
        if facts:
            line("")
            line(title)
            print_facts(facts, err=err)


def _members(value: Any) -> list[tuple[str, object]]:
    from appliance.client.support.orders import label_of, show_value

    return [(f"  {label_of(str(k))}", show_value(v)) for k, v in value.items()] if isinstance(value, dict) else []


def _metrics(evidence: ReviewMaterial) -> list[tuple[str, object]]:
    metrics = evidence.contents.get("metrics.json")
    if not isinstance(metrics, dict):
        return []
    beside = [(f"  {name}", text) for name, text in list_measures(metrics)]
    found = [(f"  {who}", dict(sorted(found.items()))) for who, found in metrics.items() if isinstance(found, dict)]
    return [*beside, *found]


def _taught(evidence: ReviewMaterial) -> list[tuple[str, object]]:
    teaching = evidence.teaching
    gone = "its text was erased, or the service withholds it"
    told = gone if teaching.instruction is None else teaching.instruction or "none"
    example = example_request("TASK", teaching, added=False)
    facts: list[tuple[str, object]] = [("  task", teaching.about.task), ("  instruction", told)]
    if teaching.about.labels:
        facts.append(("  labels", ", ".join(teaching.about.labels)))
    return [*facts, ("  example", f"POST {example['path']} {json.dumps(example['body'], ensure_ascii=False)}")]


def warnings_of(evidence: ReviewMaterial) -> list[str]:
    """What the metrics that a signature binds warn of."""
    metrics = evidence.contents.get("metrics.json")
    return list_warnings(metrics) if isinstance(metrics, dict) else []


def _told(evidence: ReviewMaterial) -> list[tuple[str, object]]:
    told = evidence.told
    dataset, base = told.get("dataset") or {}, told.get("base") or {}
    reviews = told["adapter"]["reviews"]
    return [
        ("  base licence", base.get("licence")),
        ("  dataset licence", dataset.get("licence")),
        ("  dataset classification", dataset.get("classification")),
        ("  dataset imported by", dataset.get("imported_by")),
        ("  reviews", "\n".join(_review_line(r) for r in reviews) or "none yet"),
        ("  revoked", told["adapter"]["revoked"]),
        ("  quarantined", told["adapter"]["quarantined"]),
    ]


def _review_line(row: dict[str, Any]) -> str:
    decision = {"approve": "approved", "reject": "rejected"}.get(row["decision"], row["decision"])
    who = f"{decision} for {row['unit']} by {row['reviewer']} ({row['field']})"
    return f"entry {row['index']}: {who}{until_of(row)}; {state_of(row)}"


def evidence_value(evidence: ReviewMaterial) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "adapter": evidence.name,
        "manifest": evidence.digest,
        "files": [{"path": f.path, "size": f.size, "digest": f.digest} for f in evidence.manifest.files],
        "sealed": evidence.sealed,
        "sealed_at": evidence.sealed_at,
        "log_size": evidence.log_size,
        "log_vouched_for_by": evidence.said_by,
        "run": evidence.run,
        "ordered_by": evidence.ordered_by,
        "order": evidence.order,
        "materials": dict(evidence.materials),
        "contents": dict(evidence.contents),
        "warnings": warnings_of(evidence),
        "teaching": {
            "task": evidence.teaching.about.task,
            "instruction": evidence.teaching.instruction,
            "labels": list(evidence.teaching.about.labels),
            "example": example_request("TASK", evidence.teaching, added=False),
        },
        "told": dict(evidence.told),
    }


def _decide(
    caller: Caller,
    decision: str,
    adapter: str,
    unit: str,
    field: str | None,
    meaning: str | None,
    valid_until: str | None = None,
) -> None:
    """What both decisions have in common: evidence, field, meaning, signature."""
    from appliance.client.reviews import propose_review

    _check_meaning(caller, decision, meaning)
    evidence = gather(caller, adapter)
    print_evidence(evidence, err=True)
    chosen = field or _own_field(caller)
    text = _meaning(decision, unit, chosen, meaning)
    proposal = propose_review(caller.about, caller.signer, evidence, decision, unit, chosen, text, valid_until)
    receipt = sign_and_submit(caller, proposal, _replaced(caller.signer, evidence, unit))
    if caller.json:
        print_json(receipt_value(receipt))
        return
    print_facts(
        [
            ("decision", f"{decision} {adapter} for {unit}"),
            ("field", chosen),
            ("meaning", text),
            ("valid until", valid_until or "you replace it"),
            ("entry", receipt.index),
        ]
    )


def _replaced(signer: str, evidence: ReviewMaterial, unit: str) -> list[str]:
    """What of the signer's own this decision replaces."""
    reviews = evidence.told["adapter"]["reviews"]
    own = [r for r in reviews if (r["reviewer"], r["unit"], r["state"]) == (signer, unit, "standing")]
    named = {"approve": "approval", "reject": "rejection"}
    return [
        f"Your {named[r['decision']]} of {evidence.name} for {unit} already stands{until_of(r)} "
        f"(entry {r['index']}, field {r['field']}). What you sign now takes its place."
        for r in own
    ]


def _own_field(caller: Caller) -> str:
    """The field of a reviewer who has one; the session says which roles the signer has."""
    roles = caller.session.opened().roles
    fields = [role.partition(":")[2] for role in roles if role.startswith("reviewer:")]
    held = f"the roles of {caller.signer} are {', '.join(roles)}"
    if not fields:
        raise Denied(f"field: expected you to be a reviewer of a field, such as reviewer:privacy, got none; {held}")
    if len(fields) != 1:
        raise BadInput(f"field: expected --field with one of {', '.join(fields)}, got none; {held}")
    return fields[0]


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
    return parse_end(until or f"{DEFAULT_VALID_DAYS}d", "valid until", datetime.now(UTC))


def _options(*others: Any) -> Callable[[F], F]:
    """The options of both decisions; `others` follow them."""
    options = (
        click.option("--unit", required=True, metavar="NAME", help="The business unit that the decision is for."),
        click.option("--field", metavar="FIELD", help="The field you review; needed when you have more than one."),
        click.option("--meaning", metavar="TEXT", help="What your signature means. Default: you are asked."),
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
)
@signs
@click.pass_obj
def approve(caller: Caller, /, adapter: str, until: str | None, **terms: Any) -> None:
    """Sign that an adapter may answer for one unit, until a date. Shows what the signature binds first."""
    _decide(caller, "approve", adapter, valid_until=_valid_until(until), **terms)


@review.command("reject", example="appliance review reject clauses@1 --unit legal --meaning 'Accuracy is too low.'")
@click.argument("adapter", metavar="NAME@VERSION")
@_options()
@signs
@click.pass_obj
def reject(caller: Caller, /, adapter: str, **terms: Any) -> None:
    """Sign that an adapter may not answer for one unit. A rejection outweighs approvals and has no date.

    It stands until you replace it with an approval of your own.
    """
    _decide(caller, "reject", adapter, **terms)
