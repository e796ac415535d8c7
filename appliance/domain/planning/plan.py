"""What a run will cost before it starts: memory, disk and time, here and on cards; what fits, and what is advised.

Pure: the client computes it on request, and the service again before a run starts. Nothing here is a promise; how near
the predictions came to what was measured is in docs/planning.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from appliance.domain.core.names import Value
from appliance.domain.planning.cards import CARDS, Card, Machine
from appliance.domain.planning.footprint import (
    Footprint,
    Subject,
    checkpoint_bytes,
    count_trainable,
    plan_memory,
    stored_bytes,
)
from appliance.domain.planning.pace import Duration, count_planned_steps, pace_of_card, pace_of_machine, plan_duration
from appliance.domain.planning.shape import read_lengths, read_packed, read_shape
from appliance.domain.recipe.methods import METHODS, is_servable
from appliance.domain.recipe.privacy import PRIVATE
from appliance.domain.recipe.recipe import Facts, Recipe, ResolvedRecipe, resolve_recipe
from appliance.errors import Conflict

MARGIN = 0.1
"""So much more than planned must be there: the worst error of the published table."""
COMPARED = ("qlora", "lora", "full")
"""The methods that a plan puts side by side, beside the recipe's own."""
LIBRARY_NOTE = "this base goes through the library's modules, without packing: each row is computed by itself"
MOST_CHECKPOINT_BYTES = 2 << 30
"""A larger training checkpoint is not kept (`store/files/checkpoints.py`)."""
ROW_RECORD_BYTES, STEP_RECORD_BYTES = 24, 320
"""Of a run's record: a row's loss, and the rest of a step's line (docs/formats/steps.md)."""


class Disk(Value):
    """Bytes that a run writes: `adapter` is what is sealed, or the whole base where that is trained."""

    checkpoints: int = Field(ge=0)
    largest_checkpoint: int = Field(ge=0)
    adapter: int = Field(ge=0)
    record: int = Field(ge=0)
    staging: int = Field(ge=0, description="on top, until the run is sealed")

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        return self.model_dump(exclude={"largest_checkpoint"})


class Choice(Value):
    """One method on one machine. `fits` is None where the machine's memory is not known."""

    method: str
    quantisation: str
    servable: bool
    peak_bytes: int
    duration: Duration
    fits: bool | None


class Offer(Value):
    """A machine with every compared method; `measured`: somebody has trained on it."""

    machine: str
    memory_bytes: int | None
    measured: bool
    choices: tuple[Choice, ...]


class Plan(Value):
    """The recipe's own figures on this machine, then the comparison, then the advice in words."""

    recipe: ResolvedRecipe
    steps: int
    memory: Footprint
    reserve: dict[str, int] = Field(description="by phase, what is kept free beside what is planned")
    disk: Disk
    duration: Duration
    machine: Machine
    problems: tuple[str, ...]
    notes: tuple[str, ...] = Field((), description="what of this base costs more than usual")
    offers: tuple[Offer, ...]
    advised: str | None
    reasons: tuple[str, ...]


def read_subject(base: str, dataset: str, base_facts: Mapping[str, Any], dataset_facts: Mapping[str, Any]) -> Subject:
    """BadInput where the entries are older than planning."""
    shape, lengths = read_shape(base, base_facts), read_lengths(dataset, dataset_facts)
    rows, held_out = int(dataset_facts["train_rows"]), int(dataset_facts["held_out_rows"])
    return Subject(shape, stored_bytes(base_facts), lengths, rows, held_out, read_packed(base_facts))


def make_plan(recipe: Recipe, facts: Facts, subject: Subject, machine: Machine) -> Plan:
    resolved = resolve_recipe(recipe, facts)
    memory, disk = plan_memory(subject, resolved), plan_disk(subject, resolved)
    compared = [resolved] + [other for other in _others(recipe, facts) if other.method != resolved.method]
    own = Offer(
        machine="this machine",
        memory_bytes=machine.memory_bytes,
        measured=any(one.host == machine.host for one in machine.calibrations),
        choices=tuple(_choose(one, subject, machine) for one in compared),
    )
    advised, reasons = advise(own.choices)
    return Plan(
        recipe=resolved,
        steps=count_planned_steps(resolved, subject.rows),
        memory=memory,
        reserve={phase: with_margin(parts.total) - parts.total for phase, parts in memory.phases.items()},
        disk=disk,
        duration=own.choices[0].duration,
        machine=machine,
        problems=tuple(find_problems(memory, disk, machine)),
        notes=(LIBRARY_NOTE,) if subject.shape.library else (),
        offers=(own, *(_offer(card, compared, subject) for card in CARDS)),
        advised=advised,
        reasons=reasons,
    )


def _others(recipe: Recipe, facts: Facts) -> list[ResolvedRecipe]:
    """The same recipe by each compared method; what only the written method has is left to the appliance."""
    found = []
    for method in COMPARED:
        if facts.stored == "gptq" and facts.stored not in METHODS[method].quantisations:
            continue
        if recipe.privacy and method not in PRIVATE:
            continue
        changes: dict[str, Any] = dict.fromkeys(("quantisation", "rate_ratio", "learning_rate"), "auto")
        changes |= {"method": method, "purpose": "baseline"}
        if not METHODS[method].low_rank:
            changes |= {"rank": "auto", "alpha": "auto", "dropout": "auto", "target_modules": "auto"}
        found.append(resolve_recipe(recipe.model_copy(update=changes), facts))
    return found


def _choose(recipe: ResolvedRecipe, subject: Subject, machine: Machine) -> Choice:
    memory, pace = plan_memory(subject, recipe), pace_of_machine(machine, recipe, subject.shape)
    rows = (subject.rows, subject.held_out)
    return Choice(
        method=recipe.method,
        quantisation=recipe.quantisation,
        servable=is_servable(recipe.method, recipe.quantisation),
        peak_bytes=memory.peak,
        duration=plan_duration(subject.shape, subject.lengths, recipe, rows, pace),
        fits=None if machine.memory_bytes is None else with_margin(memory.peak) <= machine.memory_bytes,
    )


def _offer(card: Card, compared: list[ResolvedRecipe], subject: Subject) -> Offer:
    choices = []
    for one in compared:
        moved = one.model_copy(update={"device": "cuda", "compute_dtype": "bfloat16"})
        memory, pace = plan_memory(subject, moved), pace_of_card(card, moved, subject.shape)
        choices.append(
            Choice(
                method=one.method,
                quantisation=one.quantisation,
                servable=is_servable(one.method, one.quantisation),
                peak_bytes=memory.peak,
                duration=plan_duration(subject.shape, subject.lengths, moved, (subject.rows, subject.held_out), pace),
                fits=with_margin(memory.peak) <= card.memory_bytes,
            )
        )
    return Offer(machine=card.name, memory_bytes=card.memory_bytes, measured=card.measured, choices=tuple(choices))


def plan_disk(subject: Subject, recipe: ResolvedRecipe) -> Disk:
    trainable, steps = count_trainable(subject.shape, recipe), count_planned_steps(recipe, subject.rows)
    checkpoint = checkpoint_bytes(subject.shape, recipe) + (1 << 20)
    size = 2 if recipe.compute_dtype == "bfloat16" else 4
    adapter = size * subject.shape.parameters if recipe.method == "full" else 4 * trainable
    rows_a_step = recipe.batch_size * recipe.accumulation
    return Disk(
        checkpoints=-(-steps // recipe.checkpoint_every) * checkpoint,
        largest_checkpoint=checkpoint,
        adapter=adapter,
        record=steps * (STEP_RECORD_BYTES + ROW_RECORD_BYTES * rows_a_step),
        staging=checkpoint + adapter,
    )


def with_margin(planned: int) -> int:
    return round(planned * (1 + MARGIN))


def find_problems(memory: Footprint, disk: Disk, machine: Machine) -> list[str]:
    """Why the run does not fit, each as one sentence that names the part and the figure."""
    problems = []
    if disk.largest_checkpoint > MOST_CHECKPOINT_BYTES:
        problems.append(
            f"plan, training checkpoint: expected at most {show_bytes(MOST_CHECKPOINT_BYTES)}, got "
            f"{show_bytes(disk.largest_checkpoint)}: train fewer weights, by an adapter or a smaller rank"
        )
    if machine.memory_bytes is not None and with_margin(memory.peak) > machine.memory_bytes:
        phase, parts = memory.largest
        part, size = max(parts.model_dump().items(), key=lambda item: item[1])
        problems.append(
            f"plan, memory: expected at most {show_bytes(machine.memory_bytes)}, which this machine has, got "
            f"{show_bytes(memory.peak)} to {phase}, {show_bytes(with_margin(memory.peak))} with a margin of "
            f"{MARGIN:.0%}; the largest part is {part}, {show_bytes(size)}"
        )
    if with_margin(disk.total) > machine.disk_free_bytes:
        part, size = max(disk.parts.items(), key=lambda item: item[1])
        problems.append(
            f"plan, disk: expected at most {show_bytes(machine.disk_free_bytes)}, which are free, got "
            f"{show_bytes(disk.total)}, {show_bytes(with_margin(disk.total))} with a margin of {MARGIN:.0%}; the "
            f"largest part is {part}, {show_bytes(size)}"
        )
    return problems


def check_fits(subject: Subject, recipe: ResolvedRecipe, machine: Machine) -> None:
    """Conflict where the run does not fit this machine."""
    problems = find_problems(plan_memory(subject, recipe), plan_disk(subject, recipe), machine)
    if problems:
        raise Conflict("; ".join(problems), code="does-not-fit")


def show_bytes(size: int) -> str:
    """With three figures, in powers of ten."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}" if size < 1000 * scale else f"{size / scale:,.0f} {unit}"
    return f"{size} bytes"


def advise(choices: tuple[Choice, ...]) -> tuple[str | None, tuple[str, ...]]:
    """The method that is advised on this machine, and why, for those who pay for it."""
    by_name = {choice.method: choice for choice in choices}
    if any(choice.quantisation == "gptq" for choice in choices):
        return _advise_packed(by_name["lora"])
    qlora, lora, full = by_name["qlora"], by_name["lora"], by_name.get("full")
    if qlora.fits is False and lora.fits is False:
        return None, ("No method fits this machine: take a smaller base, shorter rows or a smaller batch.",)
    quicker = lora.duration.likely < 0.8 * qlora.duration.likely
    advised = "lora" if lora.fits and quicker else "qlora"
    if full is None:
        return advised, (_PRIVATELY, f"Cost: {say_seconds(by_name[advised].duration.likely)} on this machine.")
    chosen, other = by_name[advised], lora if advised == "qlora" else qlora
    return advised, (
        _quality(chosen),
        _cost(chosen, other, full),
        _memory(chosen, full),
        _serving(advised),
    )


_PRIVATELY = (
    "Quality: what the noise costs depends on epsilon, on the rows and on the rows of a step; methods that cannot be "
    "private are left out."
)


def _advise_packed(lora: Choice) -> tuple[str | None, tuple[str, ...]]:
    """On a base that was imported in GPTQ there is no other base to train on."""
    if lora.fits is False:
        return None, ("It does not fit this machine: take a smaller base, shorter rows or a smaller batch.",)
    return "lora", (
        "Base: it was imported in GPTQ and stays so; what trains every weight, or on NF4, needs the original weights.",
        f"Cost: {say_seconds(lora.duration.likely)} on this machine.",
        f"Memory: {show_bytes(lora.peak_bytes)}; the packed weights are dequantised layer by layer.",
    )


MEASURED_KEPT = {"qlora": ("74.5%", "84.1%", "89%"), "lora": ("80.3%", "84.1%", "95%")}
"""Accuracy, that of full fine-tuning, and the share of it, by docs/training.md: 208 rows of banking77, one seed."""


def _quality(chosen: Choice) -> str:
    name = name_method(chosen.method)
    known = f"for {name} there is no measurement yet"
    if chosen.method in MEASURED_KEPT:
        own, full, share = MEASURED_KEPT[chosen.method]
        known = (
            f"where it was measured (SmolLM2-135M on banking77, docs/training.md), {name} got {own} of the answers "
            f"right and full fine-tuning {full}, so it kept {share}"
        )
    return (
        f"Quality: {known}. For your own data it is unknown: train one run with `method: full` and `purpose: "
        "baseline`, and name it as `baseline:` in this recipe; the report then says what share the adapter keeps."
    )


def _cost(chosen: Choice, other: Choice, full: Choice) -> str:
    times = full.duration.likely / chosen.duration.likely
    against = other.duration.likely / chosen.duration.likely
    return (
        f"Cost: {say_seconds(chosen.duration.likely)} on this machine; {name_method(other.method)} would take "
        f"{against:.1f} times as long, full fine-tuning {times:.1f} times."
    )


def _memory(chosen: Choice, full: Choice) -> str:
    return (
        f"Memory: {show_bytes(chosen.peak_bytes)}; full fine-tuning would need {show_bytes(full.peak_bytes)}, and what "
        "it leaves can be compared with but not released: it is another model, not an adapter on the approved one."
    )


def _serving(method: str) -> str:
    if method == "qlora":
        return (
            "Latency: the 4-bit base answers from a quarter of the memory, and on this appliance's CPU engine it wrote "
            "more words a second than the unquantised one; many adapters share one base."
        )
    return (
        "Latency: the base is served unquantised, as the adapter was trained, and many adapters share it. Where memory "
        "at serving is short, QLoRA needs a quarter for the base."
    )


def name_method(method: str) -> str:
    return {"qlora": "QLoRA", "lora": "LoRA", "full": "full fine-tuning"}.get(method, method)


def say_seconds(seconds: float) -> str:
    """About how long, with as many figures as it deserves."""
    for unit, scale in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * scale:
            return f"{seconds / scale:.2g} {unit}" if seconds < 9.95 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"
