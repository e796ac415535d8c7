"""Commands for reviewers: list and show adapters, view samples, try prompts, and decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.releases.decisions import (
    NO_ADAPTER,
    evidence_value,
    gather,
    parse_conditions,
    print_evidence,
    with_conditions,
)
from appliance.cli.support.caller import Caller, is_interactive
from appliance.cli.support.command import PATH, combine, with_session_options, with_signing_options
from appliance.cli.support.groups import review
from appliance.cli.support.output import (
    END_HELP,
    parse_end,
    plain,
    print_facts,
    print_json,
    print_line,
    print_table,
    say,
)
from appliance.cli.support.signing import check_all, print_outcome, sign_and_submit, state_of, until_of
from appliance.domain.evaluation.quality import list_measures, list_warnings
from appliance.domain.releases.usual import VALID_DAYS, usual_meaning
from appliance.errors import BadInput, Denied
from appliance.formats.core.timestamp import encode_time

if TYPE_CHECKING:
    from appliance.api.releases import Adapter, PreviewAnswer, Review
    from appliance.client.evidence import ReviewEvidence
    from appliance.domain.core.decisions import Conditions


@review.command("samples", example="appliance review samples clauses@1 --count 8")
@click.argument("adapter", metavar="NAME@VERSION")
@click.option(
    "--count", type=click.IntRange(1, 20), default=5, show_default=True, metavar="N", help="How many rows, at most 20."
)
@with_signing_options
def samples(caller: Caller, adapter: str, count: int) -> None:
    """Show held-out rows with the answers of the adapter, of the version that is active now, and of the base.

    The log determines the rows, so nobody chooses them. The site's policies say who may see them. An entry records that
    you viewed them.
    """
    from appliance.client.releases import wait_for_preview

    receipt = sign_and_submit(caller, caller.propose("view-samples", {"adapter": adapter, "count": count}))
    found = wait_for_preview(caller.reading(), receipt.order, lambda: say("waits for the answers"))
    if caller.json:
        print_json({**found.model_dump(exclude_unset=True), "entry": receipt.index})
        return
    names = {"adapter": adapter, "released": found.released, "base": "base"}
    for number, row in enumerate(found.rows, 1):
        print_line(f"Row {number} of {len(found.rows)}, {row.row[:16]}")
        facts: list[tuple[str, object]] = [("  text", row.text), ("  expected", row.expected)]
        facts += [(f"  {names[one.model]}", _answer(one)) for one in row.answers]
        print_facts(facts)
        print_line("")
    if found.released_missing:
        say(f"{found.released_missing}: it is not asked")
    say(f"Shown to {caller.signer} alone; entry {receipt.index} is your order. Copy no row into a report.")


@review.command(
    "try",
    example=(
        "appliance review try clauses@1 --prompt 'The tenant may sublet.'\n"
        "appliance review try clauses@1 --prompt 'One.' --prompt 'Two.' --max-tokens 64"
    ),
)
@click.argument("adapter", metavar="NAME@VERSION")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="A prompt. Can be repeated, up to 8 times.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 1_024),
    default=256,
    show_default=True,
    metavar="N",
    help="Tokens of each answer at most.",
)
@click.option("--no-instruction", is_flag=True, help="Leave out the dataset's instruction.")
@with_signing_options
def try_adapter(caller: Caller, adapter: str, prompts: tuple[str, ...], max_tokens: int, no_instruction: bool) -> None:
    """Send prompts of your own to a sealed adapter that is not released.

    It runs in a sandboxed worker that ends afterwards, and no unit is affected. An entry records your trial with keyed
    digests of prompts and answers, without their text. An order has at most 8 prompts, and policy limits your prompts
    per day (tries_a_day).
    """
    from appliance.client.releases import check_prompts, send_prompts, wait_for_preview
    from appliance.domain.actions.proposals import split_texts
    from appliance.domain.core.lookup import OrderInput

    texts = prompts or _ask_for_prompts(caller)
    check_prompts(texts)
    values = {"adapter": adapter, "max_tokens": max_tokens, "adds_instruction": not no_instruction}
    proposal = caller.propose_input("try-adapter", OrderInput(values, several={"prompts": list(texts)}))
    _, sent = split_texts(proposal)
    send_prompts(caller.reading(), sent)
    receipt = sign_and_submit(caller, proposal)
    found = wait_for_preview(caller.reading(), receipt.order, lambda: say("waits for the answers"))
    if caller.json:
        answers = [
            {**answer.model_dump(), "prompt_salt": prompt.salt.hex()}
            for answer, prompt in zip(found.answers, sent, strict=True)
        ]
        print_json({"adapter": found.adapter, "answers": answers, "entry": receipt.index})
        return
    for text, answer in zip(texts, found.answers, strict=True):
        print_facts([("prompt", text), ("answer", _answer(answer))])
        print_line("")
    say(f"Answered to {caller.signer} alone; entry {receipt.index} is your order. No entry has a text of it.")


def _ask_for_prompts(caller: Caller) -> tuple[str, ...]:
    """Ask at the terminal for one prompt per line, until an empty line."""
    from appliance.domain.releases.previews import MOST_PROMPTS

    if caller.yes or not is_interactive():
        raise BadInput("review try, prompt: expected --prompt TEXT, got none")
    found: list[str] = []
    while len(found) < MOST_PROMPTS:
        text = str(click.prompt("Prompt (empty to end)", default="", show_default=False, err=True)).strip()
        if not text:
            break
        found.append(text)
    if not found:
        raise BadInput("review try, prompt: expected one at least, got none")
    return tuple(found)


def _answer(answer: PreviewAnswer) -> str:
    """Return an answer's text, with its probability for a classification, or the code if there is none."""
    if answer.code is not None:
        return f"none: {answer.code}"
    sure = "" if answer.probability is None else f"  ({float(answer.probability):.3f})"
    return f"{answer.text or '(nothing)'}{sure}"


_NAMES = {
    "approve": "approval",
    "approve-with-conditions": "approval with conditions",
    "request-changes": "request for changes",
    "reject": "rejection",
}


@review.command("list", example="appliance review list --unit legal")
@click.option("--unit", metavar="NAME", help="Count only the decisions for this unit.")
@with_session_options
def list_reviews(caller: Caller, unit: str | None) -> None:
    """List every sealed adapter that is not revoked, and its decisions."""
    from appliance.api.releases import Adapter
    from appliance.api.wire import json_value
    from appliance.client.people import check_unit
    from appliance.client.runs import sealed_metrics

    connection = caller.reading()
    check_unit(connection, unit)
    measured = sealed_metrics(connection)
    adapters = connection.get("/v1/adapters", list[Adapter])
    rows = [row for row in adapters if row.revoked is None]
    metrics = {row.manifest: measured.get(f"{row.name}@{row.version}", {}) for row in rows}
    warnings = {row.manifest: list_warnings(metrics[row.manifest]) for row in rows}
    if caller.json:
        more = [{"metrics": metrics[row.manifest], "warnings": warnings[row.manifest]} for row in rows]
        print_json([{**json_value(row), **found} for row, found in zip(rows, more, strict=True)])
        return
    print_table(
        ("adapter", "run", "ordered by", "entry", "approved", "rejected", "no longer valid", "quarantined"),
        [
            (
                f"{r.name}@{r.version}",
                r.run,
                r.ordered_by,
                r.index,
                _decisions_text(r, ("approve", "approve-with-conditions"), unit),
                _decisions_text(r, ("reject", "request-changes"), unit),
                _invalid_text(r, unit),
                r.quarantined,
            )
            for r in rows
        ],
        least=("quarantined", "no longer valid", "run", "ordered by", "entry"),
        empty=NO_ADAPTER if not adapters else "Every sealed adapter is revoked.",
    )
    warned = [row for row in rows if warnings[row.manifest]]
    lines = [_warning_lines(row, metrics[row.manifest], warnings[row.manifest]) for row in warned]
    say(*([""] if warned else []), *chain.from_iterable(lines))


def _warning_lines(row: Adapter, metrics: Mapping[str, Any], warnings: Iterable[str]) -> list[str]:
    """Return the warnings of an adapter, and its measures beside those of its base and of the majority class."""
    measures = "; ".join(f"{measure} {text}" for measure, text in list_measures(metrics))
    name = f"{row.name}@{row.version}"
    return [*(f"warning: {name}: {plain(text)}" for text in warnings), f"  measured: {plain(measures)}"]


def _decisions_text(row: Adapter, decisions: tuple[str, ...], unit: str | None) -> str:
    """Return the valid decisions. Others have their own column, because a shortened cell must not hide their state."""
    found = [r for r in _filter_reviews(row, unit, True) if r.decision in decisions]
    return ", ".join(f"{r.reviewer} ({r.review_function}, {r.unit})" for r in found) or "-"


def _invalid_text(row: Adapter, unit: str | None) -> str:
    found = _filter_reviews(row, unit, False)
    return (
        "; ".join(f"{r.decision} by {r.reviewer} ({r.review_function}, {r.unit}): {state_of(r)}" for r in found) or "-"
    )


def _filter_reviews(row: Adapter, unit: str | None, valid: bool) -> list[Review]:
    return [r for r in row.reviews if (r.state == "valid") is valid and unit in (None, r.unit)]


@review.command("show", example="appliance review show clauses@1")
@click.argument("adapter", metavar="NAME@VERSION")
@with_session_options
def show(caller: Caller, adapter: str) -> None:
    """Show exactly what a signature would bind, from bytes that were downloaded and hashed on this machine.

    Fails if a file, the manifest's signature, the provenance or the proof in the log is not valid.
    """
    evidence = gather(caller, adapter)
    if caller.json:
        print_json(evidence_value(evidence))
        return
    print_evidence(evidence)
    say("", f"next: appliance review samples {adapter}")
    say(f"next: appliance review approve {adapter} --unit UNIT, or: appliance review reject {adapter} --unit UNIT")


@review.command("report", example="appliance review report clauses@1 --folder clauses-1-review")
@click.argument("adapter", metavar="NAME@VERSION")
@click.option("--folder", required=True, type=PATH, metavar="FOLDER", help="A new folder.")
@with_session_options
def report(caller: Caller, adapter: str, folder: Path) -> None:
    """Write the review page as HTML with plots, to print or to keep. It contains no row of the dataset.

    review.html opens without a server. In the same folder are page.json with all values, and each plot as SVG.
    """
    from appliance.client.support.files import check_new_folder, create_folder
    from appliance.reports.templates import write_report

    check_new_folder(folder, "report")
    evidence = gather(caller, adapter)
    with create_folder(folder, "report") as part:
        write_report(evidence.page, evidence.log, part)
    files = sorted(path.name for path in folder.iterdir())
    if caller.json:
        print_json({"folder": str(folder), "files": files})
        return
    print_facts([("folder", folder), ("files", ", ".join(files))])
    say(f"next: open {folder / 'review.html'}")


def _decide(
    caller: Caller,
    decision: str,
    adapter: str,
    unit: str,
    review_function: str | None,
    meaning: str | None,
    reason: str | None,
    on_behalf_of: str | None,
    valid_until: str | None = None,
    conditions: Conditions | None = None,
) -> None:
    """Make a decision: collect the evidence, review function, meaning and reason, then sign."""
    from appliance.client.people import check_unit
    from appliance.domain.core.lookup import UnprovenValue
    from appliance.domain.queries.review.values import open_parts

    _check_meaning(caller, decision, meaning)
    check_unit(caller.reading(), unit)
    own = on_behalf_of is None
    chosen = (
        _own_function(caller, review_function)
        if own
        else review_function or _delegated_function(caller, str(on_behalf_of))
    )
    evidence = gather(caller, adapter)
    needs_reason = evidence.request_for(unit) is not None or decision not in ("approve", "reject")
    _check_reason(caller, decision, reason, is_needed=needs_reason)
    values = {
        "adapter": adapter,
        "manifest": evidence.digest,
        "decision": decision,
        "unit": unit,
        "review_function": chosen if review_function else UnprovenValue(chosen),
        "valid_until": valid_until,
        "request": evidence.request_for(unit),
        "conditions": conditions,
        "on_behalf_of": on_behalf_of,
        "opened": open_parts(evidence.page),
    }
    # The order binds texts as commitments, so it is checked with others before the person is asked for them.
    usual = usual_meaning(decision, unit, chosen)
    check_all(caller, [caller.propose("review", values, texts={"meaning": usual, "reason": usual})])
    print_evidence(evidence, err=True)
    text = _meaning(decision, unit, chosen, meaning)
    why = _reason(reason, is_needed=needs_reason)
    proposal = caller.propose("review", values, texts={"meaning": text, "reason": why})
    receipt = sign_and_submit(caller, proposal, _replacement_notes(caller.signer, evidence, unit, on_behalf_of))
    facts: list[tuple[str, object]] = [("decision", f"{decision} {adapter} for {unit}"), ("review function", chosen)]
    if conditions is not None:
        from appliance.reports.review.words import describe_conditions

        facts.append(("conditions", describe_conditions(conditions)))
    until = [] if decision == "withdraw" else [("valid until", valid_until or "you replace it")]
    print_outcome(caller, receipt, [*facts, ("meaning", text), *until])


def _replacement_notes(signer: str, evidence: ReviewEvidence, unit: str, on_behalf_of: str | None) -> list[str]:
    """Return a note for each decision of the signer that this one replaces."""
    own = [
        (one.entry, one.order)
        for one in evidence.page.decisions
        if (one.order.signer, one.order.unit, one.status.state) == (signer, unit, "valid")
        and one.order.decision in _NAMES
        and one.order.on_behalf_of == on_behalf_of
    ]
    return [
        f"Your {_NAMES[order.decision]} of {order.name} for {unit} is already valid{until_of(order.valid_until)} "
        f"(entry {entry}, review function {order.review_function}). What you sign now takes its place."
        for entry, order in own
    ]


def _own_function(caller: Caller, review_function: str | None) -> str:
    """Return the given review function if the signer reviews it, or else the signer's only one.

    Raises: Denied if the signer does not review it; BadInput if there are several.
    """
    roles = caller.session.opened().roles
    functions = [role.partition(":")[2] for role in roles if role.startswith("reviewer:")]
    held = f"the roles of {caller.signer} are {', '.join(roles)}"
    if not functions:
        raise Denied(f"You have no review function. A decision needs a role such as reviewer:privacy; {held}.")
    if review_function is not None and review_function not in functions:
        raise Denied(f"{review_function} is not your review function. Choose {' or '.join(functions)}; {held}.")
    if review_function is not None:
        return review_function
    if len(functions) != 1:
        raise BadInput(
            f"review function: expected --review-function with one of {', '.join(functions)}, got none; {held}"
        )
    return functions[0]


def _delegated_function(caller: Caller, delegator: str) -> str:
    """Return the one review function that this person delegated to the signer.

    Raises: BadInput if there is none or several.
    """
    from appliance.domain.core.decisions import Delegation

    rows = caller.reading().get("/v1/delegations", list[Delegation])
    functions = [r.review_function for r in rows if (r.delegator, r.delegate) == (delegator, caller.signer)]
    if len(functions) != 1:
        expected = f"expected --review-function with one that {delegator} delegated to {caller.signer}"
        raise BadInput(f"review function: {expected}, got none; delegated: {', '.join(functions) or 'none'}")
    return str(functions[0])


def _check_reason(caller: Caller, decision: str, given: str | None, *, is_needed: bool) -> None:
    """Raise BadInput unless a reason is given, or none is needed, or there is a terminal to ask at."""
    can_ask = not caller.yes and is_interactive()
    if (given is None and is_needed and not can_ask) or (given is not None and not given.strip()):
        raise BadInput(f"review {decision}, reason: expected --reason TEXT with why you decide so, got none")


def _reason(given: str | None, *, is_needed: bool) -> str | None:
    """Return the reason in the signer's words, which is asked for if it is needed."""
    if given is not None:
        return given.strip()
    return str(click.prompt("Your reason", err=True)).strip() if is_needed else None


def _check_meaning(caller: Caller, decision: str, given: str | None) -> None:
    """Raise BadInput, before any download, unless a meaning is given or there is a terminal to ask at."""
    if given is None and (caller.yes or not is_interactive()):
        why = "--yes answers no question about it" if caller.yes else "there is no terminal to ask at"
        raise BadInput(
            f"review {decision}, meaning: expected --meaning TEXT with what your signature means, since {why}, got none"
        )
    if given is not None and not given.strip():
        raise BadInput(f"review {decision}, meaning: expected what your signature means, got an empty text")


def _meaning(decision: str, unit: str, function: str, given: str | None) -> str:
    """Return the signature's meaning in the signer's words (21 CFR 11.50). The prompt offers the usual words."""
    if given is not None:
        return given.strip()
    usual = usual_meaning(decision, unit, function)
    return str(click.prompt("What your signature means", default=usual, err=True)).strip() or usual


def _valid_until(until: str | None) -> str:
    now = datetime.now(UTC)
    end = parse_end(until or f"{VALID_DAYS}d", "valid until", now)
    if end <= encode_time(now):
        raise BadInput(f"valid until: expected a time after {encode_time(now)}, got {until}, which is {end}")
    return end


_with_decision_options = combine(
    click.option("--unit", required=True, metavar="NAME", help="The business unit that the decision is for."),
    click.option(
        "--review-function", metavar="FUNCTION", help="Your review function; needed when you have more than one."
    ),
    click.option("--meaning", metavar="TEXT", help="What your signature means. Default: you are asked."),
    click.option("--reason", metavar="TEXT", help="Why. Required if a release was requested."),
    click.option(
        "--on-behalf-of", metavar="NAME", help="Decide for a reviewer who delegated the review function to you."
    ),
)


@review.command(
    "approve",
    example=(
        "appliance review approve clauses@1 --unit legal --valid-until 90d\n"
        "appliance review approve clauses@1 --unit legal --review-function privacy --meaning 'No personal data found.'"
    ),
)
@click.argument("adapter", metavar="NAME@VERSION")
@_with_decision_options
@click.option(
    "--valid-until",
    "until",
    metavar="TIME",
    help=f"Until when it is valid: {END_HELP} Default: {VALID_DAYS}d.",
)
@with_conditions
@with_signing_options
def approve(
    caller: Caller,
    /,
    adapter: str,
    until: str | None,
    not_before: str | None,
    not_after: str | None,
    served_models: tuple[str, ...],
    answers_a_day: int | None,
    **terms: Any,
) -> None:
    """Approve an adapter for one unit, until a date. Shows what the signature binds first.

    With a condition it is an approval with conditions, which the service enforces.
    """
    conditions = parse_conditions(not_before, not_after, served_models, answers_a_day)
    decision = "approve" if conditions is None else "approve-with-conditions"
    _decide(caller, decision, adapter, valid_until=_valid_until(until), conditions=conditions, **terms)


@review.command("reject", example="appliance review reject clauses@1 --unit legal --meaning 'Accuracy is too low.'")
@click.argument("adapter", metavar="NAME@VERSION")
@_with_decision_options
@with_signing_options
def reject(caller: Caller, /, adapter: str, **terms: Any) -> None:
    """Reject an adapter for one unit. A rejection outweighs approvals and has no end date.

    It is valid until you replace it with an approval of your own.
    """
    _decide(caller, "reject", adapter, **terms)


@review.command(
    "request-changes",
    example="appliance review request-changes clauses@1 --unit legal --reason 'Show the recall of rare clauses.'",
)
@click.argument("adapter", metavar="NAME@VERSION")
@_with_decision_options
@with_signing_options
def request_changes(caller: Caller, /, adapter: str, **terms: Any) -> None:
    """Decline a request until changes are made. Valid until a release is requested again, or you decide again."""
    _decide(caller, "request-changes", adapter, **terms)


@review.command("withdraw", example="appliance review withdraw clauses@1 --unit legal --reason 'I was mistaken.'")
@click.argument("adapter", metavar="NAME@VERSION")
@_with_decision_options
@with_signing_options
def withdraw(caller: Caller, /, adapter: str, **terms: Any) -> None:
    """Withdraw your last decision on an adapter for one unit."""
    _decide(caller, "withdraw", adapter, **terms)
