"""Commands for gates files and verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import with_session_options
from appliance.cli.support.groups import gate
from appliance.cli.support.output import (
    plain,
    print_facts,
    print_json,
    print_line,
    print_result,
    print_table,
    print_text,
    say,
)
from appliance.errors import ApplianceError, Unavailable

if TYPE_CHECKING:
    from appliance.client.gates import LocatedGates, RecordedVerdict
    from appliance.domain.evaluation.verdict import GateResult

FAILED, NOT_EVALUATED = 8, 9
"""Exit codes of `gate check`."""


@gate.command("list", example="appliance gate list")
@with_session_options
def list_sets(caller: Caller) -> None:
    """List the gates files that you can use: those that came with the appliance, and those that orders bound."""
    from appliance.client.gates import list_gates_of_orders, list_shipped
    from appliance.domain.core.records.runs import Run

    connection = caller.reading()
    runs = [row.gates for row in connection.get("/v1/runs", list[Run])]
    found: dict[str, LocatedGates] = {}
    for one in (*list_shipped(), *list_gates_of_orders(connection)):
        found.setdefault(one.digest, one)
    rows = [(one, runs.count(one.digest)) for one in found.values()]
    if caller.json:
        print_json([_set_row(one, count) for one, count in rows])
        return
    print_table(
        ("gates file", "gates", "alpha", "run_correction", "runs", "found in", "digest"),
        [
            (
                one.gates.name,
                len(one.gates.gates),
                one.gates.alpha,
                one.gates.run_correction,
                count,
                one.source,
                one.digest,
            )
            for one, count in rows
        ],
        least=("found in",),
    )


def _set_row(one: LocatedGates, count: int) -> dict[str, Any]:
    about = {"name": one.gates.name, "digest": one.digest, "gates": len(one.gates.gates), "alpha": one.gates.alpha}
    return {**about, "run_correction": one.gates.run_correction, "runs": count, "source": one.source}


@gate.command("show", example="appliance gate show classification\nappliance gate show gates.json --json")
@click.argument("given", metavar="GATES")
@with_session_options
def show_set(caller: Caller, given: str) -> None:
    """Show a gates file by path, name or digest, with the digest that an order would bind. --json has all fields."""
    from appliance.client.gates import find_gates

    one = find_gates(caller.reading(), given)
    gates = one.gates
    if caller.json:
        print_json({"digest": one.digest, "source": one.source, "gates": gates.model_dump(mode="json")})
        return
    facts = [(name.replace("_", " "), value) for name, value in gates.model_dump(exclude={"gates"}).items()]
    print_facts([("digest", one.digest), ("found in", one.source), *facts])
    print_line("")
    for each in gates.gates:
        print_text(f"- {each.name}: {each.describe()}", "  ")


@gate.command("check", example="appliance gate check clauses@1 && echo passed")
@click.argument("name", metavar="ADAPTER|RUN")
@with_session_options
def check(caller: Caller, name: str) -> None:
    """Check whether an adapter passed the gates of its run. Exit codes: 0 passed, 8 failed, 9 could not be evaluated.

    The verdict is proved to be in the log, and computed again on this machine from the sealed items. The exit code is 6
    if the two differ.
    """
    from appliance.client.gates import NOT_EVALUATED as CODE
    from appliance.client.gates import read_verdict, recompute

    connection = caller.reading()
    try:
        decided = read_verdict(connection, caller.anchor, name)
    except Unavailable as error:
        if error.code != CODE:
            raise
        _print_missing_verdict(caller, name, error)
        raise click.exceptions.Exit(NOT_EVALUATED) from None
    recompute(connection, decided)
    code = 0 if decided.verdict.passed else FAILED if decided.has_evaluated_gates else NOT_EVALUATED
    word = {0: "passed", FAILED: "failed", NOT_EVALUATED: "could not be evaluated"}[code]
    value = {"adapter": decided.adapter, "run": decided.run, "result": word, **_verdict_fields(decided)}
    print_result(caller.json, value, [("gates", word), *verdict_facts(decided)])
    if code:
        raise click.exceptions.Exit(code)


def _print_missing_verdict(caller: Caller, name: str, error: ApplianceError) -> None:
    result = "could not be evaluated"
    value = {"name": name, "result": result, "why": error.message}
    print_result(caller.json, value, [("gates", result), ("why", error.message)])


def _verdict_fields(decided: RecordedVerdict) -> dict[str, Any]:
    verdict = decided.verdict
    return {name: getattr(verdict, name) for name in ("passed", "target_passed", "regression_passed", "why", "gates")}


def verdict_facts(decided: RecordedVerdict) -> list[tuple[str, object]]:
    """Return a verdict in lines, which `run show` and `adapter show` print, too."""
    from appliance.client.gates import describe_correction, describe_overlaps

    verdict = decided.verdict
    return [
        ("verdict", verdict.why),
        *((f"gate {one.gate}", one.reason) for one in verdict.results if one.outcome == "failed"),
        ("target metrics better", "yes" if verdict.target_passed else "no"),
        ("no regression elsewhere", "yes" if verdict.regression_passed else "no"),
        ("earlier evaluations", describe_correction(decided)),
        *describe_overlaps(decided),
        ("gates file", f"{decided.gates.name} ({verdict.gates}), fixed by the order of {decided.run}"),
        ("recorded", f"entry {decided.entry.entry.index}"),
    ]


@gate.command("explain", example="appliance gate explain clauses@1")
@click.argument("name", metavar="ADAPTER|RUN")
@with_session_options
def explain(caller: Caller, name: str) -> None:
    """Explain a verdict gate by gate: one sentence, the numbers behind it, and the subgroups that are worse."""
    from appliance.client.gates import describe_correction, read_verdict

    decided = read_verdict(caller.reading(), caller.anchor, name)
    verdict = decided.verdict
    if caller.json:
        summary = {
            "adapter": decided.adapter,
            "run": decided.run,
            "run_correction": describe_correction(decided),
            "p_counts": decided.times,
        }
        print_json(
            {**summary, "verdict": verdict.model_dump(mode="json"), "set": decided.gates.model_dump(mode="json")}
        )
        return
    print_facts(verdict_facts(decided))
    for result in verdict.results:
        print_line("")
        print_text(f"{result.gate}: {result.outcome}. {result.reason[:1].upper()}{result.reason[1:]}.", "  ")
        print_facts([(f"  {label}", value) for label, value in _numbers(decided, result)])
    say("", f"next: appliance gate check {name} computes this again from the items")


def _numbers(decided: RecordedVerdict, result: GateResult) -> list[tuple[str, object]]:
    from appliance.reports.review.words import show_number, show_p

    def show_end(value: str | None) -> str:
        return "no end" if value is None else show_number(value)

    facts: list[tuple[str, object]] = [("items", f"{result.items} in {result.units} independent units")]
    if result.gain is not None:
        compared = f"{result.metric} {show_number(result.ours)} against {show_number(result.theirs)}"
        facts.append(("gain", f"{show_number(result.gain)} ({compared})"))
    if result.p is not None:
        level = f"{float(result.confidence or 0):.2%} interval"
        facts.append((level, f"{show_end(result.lower)} to {show_end(result.upper)}"))
        facts.append(("p", f"{show_p(result.p)}; {show_p(result.adjusted)} after the corrections"))
        facts.append(("alpha", decided.gates.alpha))
    tested_parts = [part for part in result.slices if part.p is not None]
    if result.slices:
        few = (
            f", the others have fewer than {decided.gates.least_slice} items"
            if len(tested_parts) < len(result.slices)
            else ""
        )
        facts.append(("subgroups", f"{len(tested_parts)} of {len(result.slices)} evaluated{few}"))
    for part in result.slices:
        if part.worse:
            compared = f"{show_number(part.ours)} against {show_number(part.theirs)}"
            text = f"{part.items} items, {compared}, p {show_p(part.adjusted)} after the corrections"
            facts.append((f"worse where {part.by} is {plain(part.value)}", text))
    return facts


def list_verdict_facts(caller: Caller, name: str) -> list[tuple[str, object]]:
    """Return the verdict of an adapter or run in lines, or the reason for which there is none."""
    if (decided := _find(caller, name)) is not None:
        return verdict_facts(decided)
    from appliance.domain.core.records.runs import Run

    sealed = "@" in name or caller.reading().get(f"/v1/runs/{name}", Run).status == "sealed"
    return [("verdict", "none: its order bound no gates" if sealed else "none: it is not sealed")]


def verdict_value(caller: Caller, name: str) -> dict[str, Any] | None:
    """Return the verdict of an adapter or run as JSON, or None."""
    decided = _find(caller, name)
    return None if decided is None else _verdict_fields(decided)


def _find(caller: Caller, name: str) -> RecordedVerdict | None:
    from appliance.client.gates import NOT_EVALUATED as CODE
    from appliance.client.gates import read_verdict

    try:
        return read_verdict(caller.reading(), caller.anchor, name)
    except Unavailable as error:
        if error.code != CODE:
            raise
        return None
