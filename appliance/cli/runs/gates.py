"""Gate sets, and the verdicts that they gave: for those who order runs, for reviewers, and for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads
from appliance.cli.support.output import plain, print_facts, print_json, print_line, print_table, print_text, say
from appliance.errors import ApplianceError, Unavailable

if TYPE_CHECKING:
    from appliance.client.evaluation.gates import AtHand
    from appliance.client.evaluation.verdicts import Decided
    from appliance.domain.evaluation.verdict import GateResult

FAILED, NOT_JUDGED = 8, 9
"""Exit codes of `gate check`."""


@group("gate", example="appliance gate check clauses@1")
def gate() -> None:
    """Gates: what an adapter must show, fixed before its run; and what they decided."""


@gate.command("list", example="appliance gate list")
@reads
@click.pass_obj
def list_sets(caller: Caller) -> None:
    """The gate sets that you can use: those that came with the appliance, and those that orders bound."""
    from appliance.client.evaluation.gates import list_bound, list_shipped

    door = caller.reading()
    runs = [row["gates"] for row in door.get("/v1/runs")]
    found: dict[str, AtHand] = {}
    for one in (*list_shipped(), *list_bound(door)):
        found.setdefault(one.digest, one)
    rows = [(one, runs.count(one.digest)) for one in found.values()]
    if caller.json:
        print_json([_set_row(one, count) for one, count in rows])
        return
    print_table(
        ("gate set", "gates", "alpha", "luck", "runs", "found in", "digest"),
        [
            (one.gates.name, len(one.gates.gates), one.gates.alpha, one.gates.luck, count, one.source, one.digest)
            for one, count in rows
        ],
        least=("found in",),
    )


def _set_row(one: AtHand, count: int) -> dict[str, Any]:
    about = {"name": one.gates.name, "digest": one.digest, "gates": len(one.gates.gates), "alpha": one.gates.alpha}
    return {**about, "luck": one.gates.luck, "runs": count, "source": one.source}


@gate.command("show", example="appliance gate show classification\nappliance gate show gates.json --json")
@click.argument("given", metavar="SET")
@reads
@click.pass_obj
def show_set(caller: Caller, given: str) -> None:
    """A gate set by its file, name or digest, and the digest that an order would bind. With --json every member."""
    from appliance.client.evaluation.gates import find_gates

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
@reads
@click.pass_obj
def check(caller: Caller, name: str) -> None:
    """Whether an adapter passed the gates of its run. Exit codes: 0 passed, 8 failed, 9 could not be judged.

    The verdict is proved to be in the log, and computed again here from the sealed items. The exit code
    is 6 if the two differ.
    """
    from appliance.client.evaluation.verdicts import NOT_JUDGED as CODE
    from appliance.client.evaluation.verdicts import read_verdict, recompute

    door = caller.reading()
    try:
        decided = read_verdict(door, caller.anchor, name)
    except Unavailable as error:
        if error.code != CODE:
            raise
        _tell_unjudged(caller, name, error)
        raise click.exceptions.Exit(NOT_JUDGED) from None
    recompute(door, decided)
    code = 0 if decided.verdict.passed else FAILED if decided.could_judge else NOT_JUDGED
    word = {0: "passed", FAILED: "failed", NOT_JUDGED: "could not be judged"}[code]
    if caller.json:
        print_json({"adapter": decided.adapter, "run": decided.run, "result": word, **_legs(decided)})
    else:
        print_facts([("gates", word), *verdict_facts(decided)])
    if code:
        raise click.exceptions.Exit(code)


def _tell_unjudged(caller: Caller, name: str, error: ApplianceError) -> None:
    if caller.json:
        print_json({"name": name, "result": "could not be judged", "why": error.message})
    else:
        print_facts([("gates", "could not be judged"), ("why", error.message)])


def _legs(decided: Decided) -> dict[str, Any]:
    verdict = decided.verdict
    return {name: getattr(verdict, name) for name in ("passed", "task", "rest", "why", "gates")}


def verdict_facts(decided: Decided) -> list[tuple[str, object]]:
    """A verdict in lines, as `run show` and `adapter show` print it too."""
    from appliance.client.evaluation.verdicts import tell_luck, tell_overlaps

    verdict = decided.verdict
    return [
        ("verdict", verdict.why),
        ("the task is better", "yes" if verdict.task else "no"),
        ("nothing else is worse", "yes" if verdict.rest else "no"),
        ("luck", tell_luck(decided)),
        *tell_overlaps(decided),
        ("gate set", f"{decided.gates.name} ({verdict.gates}), fixed by the order of {decided.run}"),
        ("recorded", f"entry {decided.entry.entry.index}"),
    ]


@gate.command("explain", example="appliance gate explain clauses@1")
@click.argument("name", metavar="ADAPTER|RUN")
@reads
@click.pass_obj
def explain(caller: Caller, name: str) -> None:
    """A verdict gate by gate: one sentence, the numbers behind it, and the parts that are worse."""
    from appliance.client.evaluation.verdicts import read_verdict, tell_luck

    decided = read_verdict(caller.reading(), caller.anchor, name)
    verdict = decided.verdict
    if caller.json:
        told = {"adapter": decided.adapter, "run": decided.run, "luck": tell_luck(decided), "p_counts": decided.times}
        print_json({**told, "verdict": verdict.model_dump(mode="json"), "set": decided.gates.model_dump(mode="json")})
        return
    print_facts(verdict_facts(decided))
    for result in verdict.results:
        print_line("")
        print_text(f"{result.gate}: {result.outcome}. {result.reason[:1].upper()}{result.reason[1:]}.", "  ")
        print_facts([(f"  {label}", value) for label, value in _numbers(decided, result)])
    say("", f"next: appliance gate check {name} computes this again from the items")


def _numbers(decided: Decided, result: GateResult) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [("items", f"{result.items} in {result.units} independent units")]
    if result.gain is not None:
        facts.append(("gain", f"{result.gain} ({result.metric} {result.ours} against {result.theirs})"))
    if result.p is not None:
        level = f"{float(result.confidence or 0):.2%} interval"
        facts.append((level, f"{result.lower or 'no end'} to {result.upper or 'no end'}"))
        facts.append(("p", f"{result.p}; {result.adjusted} after luck and {decided.gates.correction}"))
        facts.append(("alpha", decided.gates.alpha))
    judged = [part for part in result.slices if part.p is not None]
    if result.slices:
        few = (
            f", the others have less than {decided.gates.least_slice} items" if len(judged) < len(result.slices) else ""
        )
        facts.append(("parts", f"{len(judged)} judged of {len(result.slices)}{few}"))
    for part in result.slices:
        if part.worse:
            told = f"{part.items} items, {part.ours} against {part.theirs}, p {part.adjusted} after correction"
            facts.append((f"worse where {part.by} is {plain(part.value)}", told))
    return facts


def judged_facts(caller: Caller, name: str) -> list[tuple[str, object]]:
    """The verdict of an adapter or run in lines; that there is none, and why."""
    if (decided := _find(caller, name)) is not None:
        return verdict_facts(decided)
    sealed = "@" in name or caller.reading().get(f"/v1/runs/{name}")["status"] == "sealed"
    return [("verdict", "none: its order bound no gates" if sealed else "none: it is not sealed")]


def judged_value(caller: Caller, name: str) -> dict[str, Any] | None:
    """The same for programs."""
    decided = _find(caller, name)
    return None if decided is None else _legs(decided)


def _find(caller: Caller, name: str) -> Decided | None:
    from appliance.client.evaluation.verdicts import NOT_JUDGED as CODE
    from appliance.client.evaluation.verdicts import read_verdict

    try:
        return read_verdict(caller.reading(), caller.anchor, name)
    except Unavailable as error:
        if error.code != CODE:
            raise
        return None
