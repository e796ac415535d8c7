"""The command `run plan`, which computes the cost of a run before it is ordered, and the text of plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_session_options
from appliance.cli.support.groups import run
from appliance.cli.support.output import print_facts, print_json, print_line, print_table, print_text, say
from appliance.errors import BadInput
from appliance.formats.core.text import show_bytes

if TYPE_CHECKING:
    from appliance.client.gates import LocatedGates
    from appliance.client.support.connection import Connection
    from appliance.domain.actions.proposals import Proposal
    from appliance.domain.planning.pace import Duration
    from appliance.domain.planning.plan import MethodEstimate, Offer, Plan
    from appliance.domain.recipe.recipe import Recipe


def propose_run(
    caller: Caller, recipe: Recipe, what: str, gates: LocatedGates | None, values: Mapping[str, Any]
) -> Proposal:
    """Return an order to train, to sign, in which the rules have resolved every value.

    `what` names the recipe in errors. `values` are those of the order beside the recipe.
    """
    documents = {} if gates is None else {"gates": gates.data}
    try:
        return caller.propose("train", {"recipe": recipe, **values}, documents=documents)
    except BadInput as error:
        raise error.within(what) from None


_UNMEASURED = "*"
"""Mark of machines that were not measured."""
GATES = click.option(
    "--gates",
    metavar="GATES",
    help="The gates file that decides on the adapter: a file, a name or a digest. Default: policy's, or none.",
)
PHASES = (("load", "loading"), ("train", "training"), ("save", "saving"), ("evaluate", "evaluating"))
"""Phases of a run with memory figures: field and name."""


@run.command("plan", example="appliance run plan recipe.yaml\nappliance run plan recipe.yaml --calibrate")
@click.argument("path", metavar="RECIPE", type=PATH)
@click.option("--calibrate", is_flag=True, help="First measure this machine with a few short steps.")
@GATES
@with_session_options
def plan(caller: Caller, path: Path, calibrate: bool, gates: str | None) -> None:
    """Show what a run would cost: memory, time and disk, here and on other machines, and the advised method.

    With gates, also show the smallest effect that each of them can detect on its rows.

    Nothing is signed and nothing is run. A run that does not fit according to this plan is refused when it is ordered.
    """
    from appliance.client import runs
    from appliance.client.gates import choose_gates
    from appliance.client.runs import load_recipe
    from appliance.domain.recipe.sweep import list_warnings

    connection, recipe = caller.reading(), load_recipe(path)
    chosen = choose_gates(connection, gates, recipe.purpose)
    made = runs.plan_run(connection, recipe, str(path))
    if calibrate:
        say("This machine is measured now, behind the runs that wait: a minute for a small base.")
        runs.calibrate(connection, made.recipe)
        made = runs.plan_run(connection, recipe, str(path))
    detectable = list_detectable_effects(connection, chosen, recipe)
    if caller.json:
        value = {**made.model_dump(mode="json"), "warnings": list_warnings(made.recipe)}
        print_json({**value, "gates": detectable.value})
        return
    print_plan(made, detectable.lines)


class DetectableEffects(NamedTuple):
    """The smallest effects that a run's gates can detect, for people and for programs."""

    lines: list[tuple[str, str]]
    value: dict[str, Any] | None


def list_detectable_effects(connection: Connection, chosen: LocatedGates | None, recipe: Recipe) -> DetectableEffects:
    """Return the smallest effects that a recipe's gates can detect."""
    from appliance.api.runs import choose_local_sets, choose_sets, describe_effects, list_effects
    from appliance.client.runs import read_facts

    facts = read_facts(connection, recipe)
    before = facts.evaluated_before
    if chosen is None:
        return DetectableEffects([("gates", "none: no gate decides on this adapter")], None)
    effects = list_effects(chosen.gates, facts)
    sets = [one.model_dump(include={"name", "version", "evaluated_before"}) for one in choose_sets(facts, chosen.gates)]
    local = [
        one.model_dump(include={"set", "digest", "evaluated_before"}) for one in choose_local_sets(facts, chosen.gates)
    ]
    value = {"name": chosen.gates.name, "digest": chosen.digest, "evaluated_before": before, "validation_sets": sets}
    value |= {"local_sets": local}
    shown = [effect.model_dump(mode="json") for effect in effects]
    gates = chosen.gates
    rules = f"alpha {gates.alpha}, {gates.correction}, run correction {gates.run_correction}"
    facts_of_gates = ("gates", f"{gates.name} ({chosen.digest[:19]}), {rules}")
    return DetectableEffects([facts_of_gates, *describe_effects(gates, effects, facts)], {**value, "can_show": shown})


def print_plan(made: Plan, promised: Sequence[tuple[str, str]] = ()) -> None:
    """Print a plan."""
    print_facts([*summarise(made), *promised])
    print_line("")
    _print_memory(made)
    print_line("")
    _print_offers(made)
    print_line("")
    _print_advice(made)


def summarise(made: Plan) -> list[tuple[str, object]]:
    """Return the facts of a plan that a signer must know."""
    from appliance.domain.planning.plan import MARGIN
    from appliance.domain.recipe.sweep import list_warnings

    have = made.machine.memory_bytes
    memory = f"{show_bytes(made.memory.peak)} at most"
    memory += f", of {show_bytes(have)}" if have else "; how much this card has is not known"
    verdict = "yes" if not made.problems else "no: " + "; ".join(made.problems)
    return [
        ("run", f"{made.recipe.method} on {made.recipe.base} with {made.recipe.dataset}, {made.steps} steps"),
        *_privacy_facts(made),
        ("fits this machine", verdict if made.problems else f"{verdict}, with a margin of {MARGIN:.0%}"),
        ("memory", memory),
        ("time", say_duration(made.duration)),
        ("disk", f"{show_bytes(made.disk.total)}, of {show_bytes(made.machine.disk_free_bytes)} free"),
        *(("note", text) for text in made.notes),
        *(("warning", text) for text in list_warnings(made.recipe)),
    ]


def summarise_together(plans: Sequence[Plan]) -> list[tuple[str, object]]:
    """Return the facts for runs that train one after another on one base and dataset, if none is stopped early."""
    from appliance.domain.planning.pace import Duration

    steps, first = sorted(made.steps for made in plans), plans[0]
    parts = [made.duration for made in plans]
    together = Duration(
        low=sum(one.low for one in parts),
        likely=sum(one.likely for one in parts),
        high=sum(one.high for one in parts),
        measured=all(one.measured for one in parts),
    )
    disk, free = sum(made.disk.total for made in plans), first.machine.disk_free_bytes
    largest = dict(summarise(max(plans, key=lambda made: made.memory.peak)))
    rest = {(label, value): None for made in plans for label, value in summarise(made) if label in ("note", "warning")}
    problems = list(dict.fromkeys(problem for made in plans for problem in made.problems))
    span = f"{steps[0]} steps" if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]} steps"
    return [
        ("runs", f"{len(plans)} on {first.recipe.base} with {first.recipe.dataset}, of {span}"),
        ("fit this machine", f"no: {'; '.join(problems)}" if problems else largest["fits this machine"]),
        ("memory", largest["memory"]),
        ("time", f"{say_duration(together)}; less where runs are stopped"),
        ("disk", f"{show_bytes(disk)}, of {show_bytes(free)} free; less where runs are stopped"),
        *rest,
    ]


def _privacy_facts(made: Plan) -> list[tuple[str, object]]:
    privacy = made.recipe.privacy
    if privacy is None:
        return []
    guarantee = f"epsilon {privacy.epsilon} at delta {privacy.delta} for one training row"
    return [("privacy", f"{guarantee}, by noise {privacy.noise} times the clipping norm {privacy.clip}")]


def list_costs(made: Plan, promised: Sequence[tuple[str, str]] = ()) -> list[str]:
    """Return the lines of a plan that are shown before a signature."""
    facts = [*summarise(made), *promised]
    return [f"Planned for {made.recipe.name}:", *(f"  {label}: {value}" for label, value in facts), ""]


def say_duration(duration: Duration) -> str:
    """Return a duration in words."""
    from appliance.domain.planning.plan import format_seconds

    likely, low, high = map(format_seconds, (duration.likely, duration.low, duration.high))
    text = f"about {likely}, between {low} and {high}"
    return text if duration.measured else f"{text} (not measured here: appliance run plan RECIPE --calibrate)"


def _print_memory(made: Plan) -> None:

    phases = [(name, getattr(made.memory, field)) for field, name in PHASES]
    parts = [part for part in type(made.memory.load).model_fields if any(getattr(held, part) for _, held in phases)]
    rows = [[part, *(show_bytes(getattr(held, part)) for _, held in phases)] for part in parts]
    rows.append(["together", *(show_bytes(held.total) for _, held in phases)])
    rows.append(["reserve", *(show_bytes(made.reserve[field]) for field, _ in PHASES)])
    print_table(("memory", *(name for name, _ in phases)), rows)


def _print_offers(made: Plan) -> None:
    from appliance.domain.planning.plan import name_method

    methods = [name_method(choice.method) for choice in made.offers[0].choices]
    rows = [
        [_name(offer), show_bytes(offer.memory_bytes) if offer.memory_bytes else "?", *map(_cell, offer.choices)]
        for offer in made.offers
    ]
    print_table(("machine", "memory", *methods), rows, least=("memory",))
    print_text(
        f"Times are likely ones. A machine with {_UNMEASURED} was not measured: a run may take a third, or three times."
    )


def _name(offer: Offer) -> str:
    return offer.machine if offer.measured else f"{offer.machine} {_UNMEASURED}"


def _cell(choice: MethodEstimate) -> str:
    from appliance.domain.planning.plan import format_seconds

    if choice.fits is False:
        return f"{show_bytes(choice.peak_bytes)}: too much"
    likely = format_seconds(choice.duration.likely).replace(" seconds", " s").replace(" minutes", " min")
    return f"{show_bytes(choice.peak_bytes)}, {likely}"


def _print_advice(made: Plan) -> None:
    from appliance.domain.planning.plan import name_method

    print_text(f"Advised: {name_method(made.advised) if made.advised else 'none of these methods, on this machine'}")
    for reason in made.reasons:
        print_text(f"- {reason}", "  ")
