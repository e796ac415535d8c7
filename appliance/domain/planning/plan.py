"""The plan of a run before it starts: memory, disk and time, on this machine and on cards, with problems and advice.

It is a pure computation: the client makes it on request, and the service makes it again before a run starts. All
figures are predictions; docs/guides/planning.md compares them with measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from appliance.domain.core.names import Value
from appliance.domain.planning.footprint import (
    Footprint,
    Subject,
    checkpoint_bytes,
    count_trainable,
    plan_memory,
    stored_bytes,
)
from appliance.domain.planning.pace import (
    Duration,
    MachineRate,
    count_planned_steps,
    pace_of_card,
    pace_of_machine,
    plan_duration,
)
from appliance.domain.planning.shape import CARDS, Card, Machine, read_lengths, read_packed, read_shape
from appliance.domain.recipe.methods import (
    METHODS,
    MethodCondition,
    is_servable,
    list_condition_problems,
    list_conditions,
)
from appliance.domain.recipe.recipe import Recipe, ResolutionFacts, ResolvedRecipe, resolve_recipe
from appliance.errors import BadInput, Conflict
from appliance.formats.core.text import show_bytes

MARGIN = 0.1
"""Share of the planned bytes that must be available in addition."""
COMPARED = ("qlora", "lora", "full")
"""Methods that a plan compares with the recipe's own."""
LIBRARY_NOTE = "this base goes through the library's modules, without packing: each row is computed by itself"
"""Note for a base that the handwritten layers do not support."""
MOST_CHECKPOINT_BYTES = 2 << 30
"""Largest training checkpoint, in bytes, that is kept (`store/files/run_files.py`)."""
ROW_RECORD_BYTES, STEP_RECORD_BYTES = 24, 320
"""Bytes of a run's record: for the loss of a row, and for the rest of a step's line (docs/formats/steps.md)."""


class DiskNeed(Value):
    """Bytes that a run writes. `adapter` is the sealed adapter or, for full fine-tuning, the whole model."""

    checkpoints: int = Field(ge=0)
    largest_checkpoint: int = Field(ge=0)
    adapter: int = Field(ge=0)
    record: int = Field(ge=0)
    staging: int = Field(ge=0, description="additional, until the run is sealed")

    @property
    def total(self) -> int:
        """Return the sum of all parts, in bytes."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Return the bytes of each part, by name."""
        return self.model_dump(exclude={"largest_checkpoint"})


class MethodEstimate(Value):
    """One method on one machine. `fits` is None where the machine's memory is unknown."""

    method: str
    quantisation: str
    servable: bool
    peak_bytes: int
    duration: Duration
    fits: bool | None


class Offer(Value):
    """A machine with each compared method. `measured` is true if its rate was measured."""

    machine: str
    memory_bytes: int | None
    measured: bool
    choices: tuple[MethodEstimate, ...]


class Plan(Value):
    """A plan: the recipe's figures on this machine, the comparison of methods and machines, and the advice in words."""

    recipe: ResolvedRecipe
    steps: int
    memory: Footprint
    reserve: dict[str, int] = Field(description="bytes to keep free in addition to the planned ones, by phase")
    disk: DiskNeed
    duration: Duration
    machine: Machine
    problems: tuple[str, ...]
    notes: tuple[str, ...] = Field((), description="unusual facts about the base and the dataset")
    offers: tuple[Offer, ...]
    advised: str | None
    reasons: tuple[str, ...]


_COUNTS = {"train_rows": None, "held_out_rows": None, "near_held_out_rows": 0}
"""Facts of a dataset that a plan needs, and the value of one that old imports lack."""


def read_subject(base: str, dataset: str, base_facts: Mapping[str, Any], dataset_facts: Mapping[str, Any]) -> Subject:
    """Return the base and the dataset of a plan, by the facts of their entries.

    Raises: BadInput where they lack the measures that a plan needs, as those of old imports do.
    """
    shape, lengths = read_shape(base, base_facts), read_lengths(dataset, dataset_facts)
    counts = [dataset_facts.get(name, default) for name, default in _COUNTS.items()]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise BadInput(f"dataset {dataset}: expected the numbers of rows that a plan needs, got none; import it again")
    rows, held_out, near = counts
    return Subject(shape, stored_bytes(base_facts), lengths, rows, held_out, read_packed(base_facts), near)


def note_near_rows(near: int, held_out: int) -> list[str]:
    """Return a sentence about held-out rows that are nearly the same as training rows, if there are any."""
    if not near:
        return []
    return [
        f"{near} of {held_out} held-out rows are nearly the same as a training row, so results on them look better "
        "than they are; gates on held-out rows fail above the share that their file allows (most_near_overlap, by "
        "default 0.1)"
    ]


def make_plan(recipe: Recipe, facts: ResolutionFacts, subject: Subject, machine: Machine) -> Plan:
    """Return the plan of a run on this machine.

    Raises: BadInput where the recipe cannot be resolved.
    """
    resolved = resolve_recipe(recipe, facts)
    memory, disk = plan_memory(subject, resolved), plan_disk(subject, resolved)
    conditions = list_conditions(facts.stored, preferences=facts.preferences, private=recipe.privacy is not None)
    compared = [resolved, *_resolve_others(recipe, facts, conditions)]
    own = Offer(
        machine="this machine",
        memory_bytes=machine.memory_bytes,
        measured=any(one.host == machine.host for one in machine.calibrations),
        choices=tuple(
            _estimate(one, subject, pace_of_machine(machine, one, subject.shape), machine.memory_bytes)
            for one in compared
        ),
    )
    advised, reasons = advise(own.choices, conditions)
    return Plan(
        recipe=resolved,
        steps=count_planned_steps(resolved, subject.rows),
        memory=memory,
        reserve={phase: with_margin(parts.total) - parts.total for phase, parts in memory.phases.items()},
        disk=disk,
        duration=own.choices[0].duration,
        machine=machine,
        problems=tuple(find_problems(memory, disk, machine)),
        notes=(
            *((LIBRARY_NOTE,) if subject.shape.library else ()),
            *note_near_rows(subject.near_held_out, subject.held_out),
        ),
        offers=(own, *(_make_offer(card, compared, subject) for card in CARDS)),
        advised=advised,
        reasons=reasons,
    )


def _resolve_others(
    recipe: Recipe, facts: ResolutionFacts, conditions: Sequence[MethodCondition]
) -> list[ResolvedRecipe]:
    """Return the recipe resolved for each other compared method that the conditions allow.

    Values that only the written method has become `auto`.
    """
    found = []
    for method in COMPARED:
        if method == recipe.method or list_condition_problems(method, conditions):
            continue
        changes: dict[str, Any] = dict.fromkeys(("quantisation", "loraplus_lr_ratio", "learning_rate"), "auto")
        changes |= {"method": method, "purpose": "baseline"}
        if not METHODS[method].low_rank:
            changes |= {"rank": "auto", "alpha": "auto", "dropout": "auto", "target_modules": "auto"}
        found.append(resolve_recipe(recipe.model_copy(update=changes), facts))
    return found


def _estimate(recipe: ResolvedRecipe, subject: Subject, pace: MachineRate, memory_bytes: int | None) -> MethodEstimate:
    peak = plan_memory(subject, recipe).peak
    return MethodEstimate(
        method=recipe.method,
        quantisation=recipe.quantisation,
        servable=is_servable(recipe.method, recipe.quantisation),
        peak_bytes=peak,
        duration=plan_duration(subject, recipe, pace),
        fits=None if memory_bytes is None else with_margin(peak) <= memory_bytes,
    )


def _make_offer(card: Card, compared: list[ResolvedRecipe], subject: Subject) -> Offer:
    moved = [one.model_copy(update={"device": "cuda", "compute_dtype": "bfloat16"}) for one in compared]
    choices = (_estimate(one, subject, pace_of_card(card, one, subject.shape), card.memory_bytes) for one in moved)
    return Offer(machine=card.name, memory_bytes=card.memory_bytes, measured=card.measured, choices=tuple(choices))


def plan_disk(subject: Subject, recipe: ResolvedRecipe) -> DiskNeed:
    """Return the bytes that a run writes."""
    trainable, steps = count_trainable(subject.shape, recipe), count_planned_steps(recipe, subject.rows)
    checkpoint = checkpoint_bytes(subject.shape, recipe) + (1 << 20)
    size = 2 if recipe.compute_dtype == "bfloat16" else 4
    adapter = size * subject.shape.parameters if recipe.method == "full" else 4 * trainable
    return DiskNeed(
        checkpoints=-(-steps // recipe.save_steps) * checkpoint,
        largest_checkpoint=checkpoint,
        adapter=adapter,
        record=steps * (STEP_RECORD_BYTES + ROW_RECORD_BYTES * recipe.rows_a_step),
        staging=checkpoint + adapter,
    )


def with_margin(planned: int) -> int:
    """Return the planned bytes with the margin."""
    return round(planned * (1 + MARGIN))


def find_problems(memory: Footprint, disk: DiskNeed, machine: Machine) -> list[str]:
    """Return the reasons why a run does not fit, each as one sentence with the part and its size."""
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
    """Check that the run fits this machine.

    Raises: Conflict where it does not.
    """
    problems = find_problems(plan_memory(subject, recipe), plan_disk(subject, recipe), machine)
    if problems:
        raise Conflict("; ".join(problems), code="does-not-fit")


def advise(
    choices: tuple[MethodEstimate, ...], conditions: Sequence[MethodCondition]
) -> tuple[str | None, tuple[str, ...]]:
    """Return the method that is advised on this machine, or None, and the reasons in words."""
    by_name = {choice.method: choice for choice in choices}
    if any(choice.quantisation == "gptq" for choice in choices):
        return _advise_packed(by_name["lora"])
    qlora, lora, full = by_name["qlora"], by_name["lora"], by_name.get("full")
    if qlora.fits is False and lora.fits is False:
        return None, ("No method fits this machine: take a smaller base, shorter rows or a smaller batch.",)
    quicker = lora.duration.likely < 0.8 * qlora.duration.likely
    advised = "lora" if lora.fits and quicker else "qlora"
    if full is None:
        left_out = " and ".join(one.reason for one in conditions)
        return advised, (
            f"Quality: not known before the run. Other methods are left out, {left_out}.",
            f"Cost: {format_seconds(by_name[advised].duration.likely)} on this machine.",
        )
    chosen, other = by_name[advised], lora if advised == "qlora" else qlora
    return advised, (
        _describe_quality(chosen),
        _describe_cost(chosen, other, full),
        _describe_memory(chosen, full),
        _describe_serving(advised),
    )


def _advise_packed(lora: MethodEstimate) -> tuple[str | None, tuple[str, ...]]:
    """Return the advice for a base that was imported in GPTQ, which allows no other form of the base."""
    if lora.fits is False:
        return None, ("It does not fit this machine: take a smaller base, shorter rows or a smaller batch.",)
    return "lora", (
        "Base: it was imported in GPTQ and stays so. Full fine-tuning and QLoRA need the original weights.",
        f"Cost: {format_seconds(lora.duration.likely)} on this machine.",
        f"Memory: {show_bytes(lora.peak_bytes)}; the packed weights are dequantised layer by layer.",
    )


MEASURED_KEPT = {"qlora": ("74.5%", "84.1%", "89%"), "lora": ("80.3%", "84.1%", "95%")}
"""Accuracy, that of full fine-tuning, and their ratio (docs/guides/training.md): 208 rows of banking77, one seed."""


def _describe_quality(chosen: MethodEstimate) -> str:
    name = name_method(chosen.method)
    known = f"for {name} there is no measurement yet"
    if chosen.method in MEASURED_KEPT:
        own, full, share = MEASURED_KEPT[chosen.method]
        known = (
            f"where it was measured (SmolLM2-135M on banking77, docs/guides/training.md), {name} got {own} of the "
            f"answers right and full fine-tuning {full}, so it kept {share}"
        )
    return (
        f"Quality: {known}. For your own data it is unknown: train one run with `method: full` and `purpose: "
        "baseline`, and name it as `baseline:` in this recipe; the report then says what share the adapter keeps."
    )


def _describe_cost(chosen: MethodEstimate, other: MethodEstimate, full: MethodEstimate) -> str:
    times = full.duration.likely / chosen.duration.likely
    against = other.duration.likely / chosen.duration.likely
    return (
        f"Cost: {format_seconds(chosen.duration.likely)} on this machine; {name_method(other.method)} would take "
        f"{against:.1f} times as long, full fine-tuning {times:.1f} times."
    )


def _describe_memory(chosen: MethodEstimate, full: MethodEstimate) -> str:
    return (
        f"Memory: {show_bytes(chosen.peak_bytes)}; full fine-tuning would need {show_bytes(full.peak_bytes)}. Its "
        "result can be compared, but not released: it is another model, not an adapter on the approved one."
    )


def _describe_serving(method: str) -> str:
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
    """Return the usual name of a method."""
    return {"qlora": "QLoRA", "lora": "LoRA", "full": "full fine-tuning"}.get(method, method)


def format_seconds(seconds: float) -> str:
    """Format a duration with one or two digits, in a unit that fits."""
    for unit, scale in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * scale:
            return f"{seconds / scale:.2g} {unit}" if seconds < 9.95 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"
