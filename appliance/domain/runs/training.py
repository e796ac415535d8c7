"""A training run: ordered, started, finished or failed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event, Failed, Ordered
from appliance.domain.core.names import Decimal, Digest, Identifier, RunId, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.data import BoundSet, LocalSet
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Guarantee, Run
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Attachment, EventRule, Verb
from appliance.domain.data.standing import base_is, dataset_stands
from appliance.domain.data.tasks import PREFERENCE
from appliance.domain.evaluation.baselines import incomparable
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.evaluation.judging import check_sets, unfit_local_sets, unfit_sets, unjudgeable
from appliance.domain.planning.shape import read_roles
from appliance.domain.recipe.recipe import ResolvedRecipe, count_steps, untrainable
from appliance.domain.runs.clusters import unfit_nodes, unfit_place
from appliance.domain.runs.conditions import (
    UNDER_WAY,
    WorkerStarted,
    begin,
    check_inputs,
    check_sandbox,
    move,
    take_run,
)
from appliance.domain.runs.stopping import best_step, read_steps, stops
from appliance.domain.runs.sweeps import bars_run
from appliance.formats.core.digest import digest_bytes


class Train(Order):
    verb = "train"
    recipe: ResolvedRecipe
    base_digest: Digest
    dataset_digest: Digest
    gates: Digest | None = None
    """The gate set that decides on the adapter; null where none does."""
    sets: tuple[BoundSet, ...] = Field(default=(), max_length=16)
    """The validation sets that its gates name, each in one version."""
    local_sets: tuple[LocalSet, ...] = Field(default=(), max_length=16)
    """The sets of no log that its gates name."""
    tier: Identifier | None = None
    """The tier of materiality that the adapter is meant for; it can ask for a second person before the run begins."""
    sweep: Identifier | None = None
    """Runs that are ordered to choose one of them have one name here."""
    on: Literal["here", "slurm"] = "here"
    """Where it is trained: on the service's machine, or as a job of the site's Slurm."""
    nodes: int = Field(default=1, ge=1, le=64)
    """On Slurm: on how many nodes, each with as many of the recipe's processes."""

    def subjects(self) -> Subjects:
        return (
            (f"base:{self.recipe.base}", self.base_digest),
            (f"dataset:{self.recipe.dataset}", self.dataset_digest),
            *((f"validation-set:{bound.validation_set}", bound.digest) for bound in self.sets),
        )


class RunRequested(Ordered):
    type = "run.requested"
    optional = ("gates",)
    run: RunId

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


class RunStarted(WorkerStarted):
    """The run's first worker. `secret`: of a private run, a digest that binds the secret from which its rows are drawn
    and its noise is made; null of any other."""

    type = "run.started"
    secret: Digest | None


class RunFinished(Event):
    """`record`: the digest of steps.jsonl; `validation`: (step, loss); `weights` are those after `weights_step`.

    Fewer steps than planned: the validation losses, by the recipe's patience, said that it was enough. Of a private run
    `final_loss` is null, and `trained_tokens` those that were expected.
    """

    type = "run.finished"
    run: RunId
    weights: Digest
    weights_step: int = Field(ge=1)
    record: Digest
    validation: tuple[tuple[int, Decimal], ...]
    planned_steps: int = Field(ge=1)
    steps: int = Field(ge=1)
    trained_tokens: int = Field(ge=1)
    seconds: Decimal
    peak_bytes: int = Field(ge=1)
    final_loss: Decimal | None

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


class RunFailed(Failed):
    type = "run.failed"
    run: RunId
    code: str

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


def may_train(state: State, order: Train, signer: Principal, now: Time) -> Reasons:
    recipe = order.recipe
    reasons = needs(signer, "operator") + base_is(state, recipe.base, order.base_digest)
    dataset = state.datasets.get(recipe.dataset)
    if dataset is None:
        return [*reasons, f"dataset: expected an imported one, got {recipe.dataset}"]
    reasons += dataset_stands(state, recipe.dataset)
    if dataset.digest != order.dataset_digest:
        reasons.append(f"dataset {recipe.dataset}: expected {dataset.digest}, got {order.dataset_digest}")
    if dataset.base_digest != order.base_digest:
        reasons.append(f"dataset {recipe.dataset}: expected one rendered for base {recipe.base}, got {dataset.base}")
    base = state.bases.get(recipe.base)
    if base is None:
        return reasons
    # What resolving the recipe would have refused: the signer's client may not have resolved it.
    facts = dataset.facts
    context, longest, rows = base.facts.get("context_length"), facts.get("max_tokens"), facts.get("train_rows")
    reasons += incomparable(state, recipe, order.base_digest, order.dataset_digest)
    reasons += unjudgeable(state, recipe.purpose, dataset, order.gates)
    reasons += unfit_sets(state, dataset, order.sets, order.gates)
    reasons += unfit_local_sets(dataset, order.local_sets, order.gates)
    reasons += _tiered(state, order)
    reasons += _swept(state, order)
    reasons += unfit_place(state, order.on, signer.name, private=recipe.privacy is not None)
    reasons += unfit_nodes(order.on, order.nodes, recipe.processes)
    stored, of_base = base.facts.get("quantisation"), read_roles(base.facts)
    preferences = facts.get("task") == PREFERENCE
    return reasons + untrainable(recipe, context, longest, rows, stored, *of_base, preferences=preferences)


def _tiered(state: State, order: Train) -> Reasons:
    names = [tier.name for tier in state.parameters.tiers]
    return [] if order.tier in (None, *names) else [f"tier: expected one of {', '.join(names)}, got {order.tier}"]


def _swept(state: State, order: Train) -> Reasons:
    if order.sweep is None:
        return []
    reasons = bars_run(state, order.sweep, order.signer, order.dataset_digest)
    if not order.recipe.validate_every:
        reasons.append("sweep: expected a run that validates, since a sweep chooses by validation losses, got none")
    return reasons


def name_run(state: State) -> dict[str, str]:
    """The next run's id: runs are counted from 1."""
    return {"run": f"r-{len(state.runs) + 1:06d}"}


def run_requested(case: Case) -> Changes:
    order = case.order(Train)
    body = case.of(RunRequested)
    expected = name_run(case.state)["run"]
    case.require(body.run == expected, "run", expected, body.run)
    run = Run(
        id=body.run,
        order=case.accepted.digest,
        name=order.recipe.name,
        ordered_by=order.signer,
        base=order.recipe.base,
        base_digest=order.base_digest,
        dataset=order.recipe.dataset,
        dataset_digest=order.dataset_digest,
        method=order.recipe.method,
        purpose=order.recipe.purpose,
        baseline=order.recipe.baseline,
        index=case.entry.index,
        status="waiting" if _needs_authorisation(case.state, order) else "queued",
        queued=case.entry.index,
        planned_steps=_count_planned_steps(case.state, order.recipe),
        early_stopping=order.recipe.early_stopping,
        validate_every=order.recipe.validate_every,
        gates=order.gates,
        sets=order.sets,
        local_sets=order.local_sets,
        tier=order.tier,
        sweep=order.sweep,
        privacy=_guarantee(order.recipe),
        on=order.on,
        nodes=order.nodes,
    )
    return [(case.state.runs, run.id, run)]


def _count_planned_steps(state: State, recipe: ResolvedRecipe) -> int | None:
    dataset = state.datasets.get(recipe.dataset)
    rows = None if dataset is None else dataset.facts.get("train_rows")
    return count_steps(rows, recipe.epochs, recipe.batch_size * recipe.accumulation) if isinstance(rows, int) else None


def _guarantee(recipe: ResolvedRecipe) -> Guarantee | None:
    """That its epsilon follows from noise, rows and steps is for `may_train` to say."""
    privacy = recipe.privacy
    return None if privacy is None else Guarantee(epsilon=privacy.epsilon, delta=privacy.delta)


def _needs_authorisation(state: State, order: Train) -> bool:
    return any(tier.authorise_runs for tier in state.parameters.tiers if tier.name == order.tier)


def check_gates(case: Case, order: Train, document: bytes) -> None:
    """The gate set that the order binds, with the sets of rows that it names."""
    case.require(digest_bytes(document) == order.gates, "gates", order.gates, digest_bytes(document))
    check_sets(parse_gates(document), order.sets, order.local_sets)


def run_started(case: Case) -> Changes:
    """No run starts if a probe got through a wall, or if a layer is missing that policy does not accept as missing."""
    body = case.of(RunStarted)
    # A job that is requeued before its first training checkpoint begins again.
    run = take_run(case, body.run, *(("queued",) if body.job is None else ("queued", "running")))
    check_inputs(case, run)
    case.require(run.step == 0, "run", "run.resumed, for one that has a training checkpoint", "run.started")
    check_sandbox(case, body)
    private = run.privacy is not None
    case.require((body.secret is not None) == private, "secret", "a digest" if private else "none", body.secret)
    return begin(case, run.model_copy(update={"secret": body.secret}), body)


def run_finished(case: Case) -> Changes:
    """No run ends without the training checkpoint of its last step: what is sealed can be replayed to its end."""
    body = case.of(RunFinished)
    run = take_run(case, body.run, "running")
    check_inputs(case, run)
    case.require(body.steps == run.step, "steps", f"{run.step}, of its last training checkpoint", body.steps)
    check_end(case, run, body)
    private = run.privacy is not None
    case.require((body.final_loss is None) == private, "final_loss", "none" if private else "a loss", body.final_loss)
    made = {name: getattr(body, name) for name in ("weights", "record", "seconds", "peak_bytes")}
    return move(case.state, run.model_copy(update=made), "trained")


def check_end(case: Case, run: Run, body: RunFinished) -> None:
    """It ended where recipe or validation losses end it, at no other step, and the weights are those to seal."""
    readings, patience, steps, planned = body.validation, run.early_stopping, body.steps, run.planned_steps
    if planned is not None and run.validate_every:
        # How many rows are kept back follows from the rows' texts, which the log does not have.
        case.require(body.planned_steps <= planned, "planned_steps", f"at most {planned}", body.planned_steps)
    elif planned is not None:
        case.require(body.planned_steps == planned, "planned_steps", planned, body.planned_steps)
    expected = read_steps(steps, body.planned_steps, run.validate_every)
    got = tuple(step for step, _ in readings)
    case.require(got == expected, "validation", f"losses after the steps {expected}", f"after {got}")
    early = any(stops(readings[:count], patience) for count in range(1, len(readings)))
    case.require(not early, "steps", "an earlier end, by its validation losses", steps)
    ended = steps == body.planned_steps or (steps < body.planned_steps and stops(readings, patience))
    case.require(ended, "steps", f"{body.planned_steps}, or validation losses that stop it", steps)
    best = best_step(readings) if patience else steps
    case.require(body.weights_step == best, "weights_step", best, body.weights_step)


def run_failed(case: Case) -> Changes:
    return move(case.state, take_run(case, case.of(RunFailed).run, *UNDER_WAY), "failed")


VERBS = (
    Verb(
        Train,
        may=may_train,
        signers=("operator",),
        meaning="The appliance trains with exactly these values, on exactly these bytes, in your name. Where the tier "
        "asks for it, a second person must authorise the run before it begins.",
        event=RunRequested,
        apply=run_requested,
        attachment=Attachment("gates", check_gates, optional=True),
        body=name_run,
    ),
)
EVENTS = (
    EventRule(RunStarted, run_started),
    EventRule(RunFinished, run_finished),
    EventRule(RunFailed, run_failed),
)
