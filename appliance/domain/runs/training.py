"""Training runs: orders to train, and the entries of their start, end and failure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import Field

from appliance.domain.core.action import Action, Attachment, EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Event, Failed, Ordered
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.lookup import Completed, Lookup, OrderInput, ProvenValue, TrainingFacts, UnprovenValue
from appliance.domain.core.names import Code, Decimal, Digest, Identifier, RunId, Time, Value
from appliance.domain.core.order import Order, Subjects, derived, entered
from appliance.domain.core.records.data import BoundSet, LocalSet
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Guarantee, Run
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.data.kinds import PREFERENCE, SHIPPED
from appliance.domain.data.validity import DATASET_UNKNOWN, DIGEST_DIFFERS, refuse_invalid_base, refuse_invalid_dataset
from appliance.domain.evaluation.baselines import list_baseline_problems
from appliance.domain.evaluation.gates import HELD_OUT, GatesFile, parse_gates
from appliance.domain.evaluation.rules import (
    check_draws,
    check_sets,
    find_gate_problems,
    refuse_local_sets,
    refuse_sets,
)
from appliance.domain.evaluation.shipped.sets import digest_set
from appliance.domain.planning.shape import read_roles
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Recipe, ResolutionFacts, ResolvedRecipe, list_recipe_problems, resolve_recipe
from appliance.domain.runs.conditions import (
    UNDER_WAY,
    RunEntity,
    WorkerStarted,
    begin,
    check_inputs,
    check_worker_sandbox,
    move,
    refuse_nodes,
    refuse_place,
    take_run,
)
from appliance.domain.runs.replays import refuse_sweep_run
from appliance.domain.runs.steps import best_step, read_steps, should_stop_early
from appliance.errors import NotFound, RefusalCode, Rejected, Tampered
from appliance.formats.core.digest import digest_bytes

DATASET_OF_ANOTHER_BASE = RefusalCode(
    "dataset-of-another-base",
    "state",
    "Dataset {id} was rendered for the base model {rendered}. The recipe names another one.",
    "Import the dataset for this base model.",
)
TIER_UNKNOWN = RefusalCode(
    "tier-unknown", "policy", "Policy has no tier with the name {tier}.", "Name one of these: {listed}."
)
SWEEP_WITHOUT_VALIDATION = RefusalCode(
    "sweep-without-validation",
    "order",
    "A sweep chooses a run by its validation losses. The recipe reads none.",
    "Let the recipe validate.",
)
RECIPE_UNTRAINABLE = RefusalCode(
    "recipe-untrainable",
    "machine",
    "The recipe cannot be trained: {problem}.",
    "Change the recipe: appliance run plan advises.",
)


class Train(Order):
    """A signed order to train an adapter."""

    action = "train"
    recipe: ResolvedRecipe
    base_digest: Digest = derived()
    dataset_digest: Digest = derived()
    gates: Digest | None = entered(
        "the file whose gates decide on the adapter; none: no gate decides. Of the shipped ones, classification is for "
        "labels, answers for texts, preferences for pairs, and thorough also measures what was forgotten",
        kind="document",
        default=None,
    )
    """Digest of the gates file that decides on the adapter, null for none."""
    sets: tuple[BoundSet, ...] = derived(default=(), max_length=16)
    """Validation sets that the gates file names, each in one version."""
    local_sets: tuple[LocalSet, ...] = derived(default=(), max_length=16)
    """Sets of rows that the gates file names and that are in no log."""
    tier: Identifier | None = entered("tier of the intended use; empty: none", default=None)
    """Materiality tier that the adapter is meant for. Tiers can require a second person before the run begins."""
    sweep: Identifier | None = entered(
        "the sweep that the run belongs to; empty: none", part="In a sweep", default=None
    )
    """Name that is common to the runs of a sweep, of which one is chosen."""
    on: Literal["local", "slurm"] = entered(
        "local: on the service's machine; slurm: on the site's cluster",
        label="trains on",
        part="Where it trains",
        default="local",
    )
    """Place of the training: the service's machine, or a job of the site's Slurm."""
    nodes: int = entered("Slurm nodes", part="Where it trains", default=1, ge=1, le=64)
    """Number of Slurm nodes. The recipe's processes are divided equally among them."""

    def subjects(self) -> Subjects:
        return (
            (f"base:{self.recipe.base}", self.base_digest),
            (f"dataset:{self.recipe.dataset}", self.dataset_digest),
            *((f"validation-set:{bound.validation_set}", bound.digest) for bound in self.sets),
        )


def complete_training(given: OrderInput, lookup: Lookup) -> Completed:
    """Return the resolved recipe, the digests of all inputs, and the place of the training.

    `recipe` is a recipe, or the values of its keys. Each value `auto` is resolved from reported facts. Without a place
    the run trains where the service says.

    Raises: BadInput for a recipe that cannot be trained; NotFound for a set of the gates file that is unknown.
    """
    written = given.values["recipe"]
    recipe = written if isinstance(written, Recipe) else parse_recipe(written)
    base, dataset = (lookup.find_artifact(*one).value for one in (("base", recipe.base), ("dataset", recipe.dataset)))
    found = lookup.read_training_facts(recipe.base, recipe.dataset).value
    automatic = frozenset(name for name, value in recipe.model_dump().items() if value == "auto")
    resolved = resolve_recipe(recipe, ResolutionFacts.model_validate(dict(found.facts)))
    gates, place = given.documents.get("gates"), given.values.get("on")
    return {
        "recipe": UnprovenValue(resolved, automatic) if automatic else ProvenValue(resolved),
        "base_digest": ProvenValue(base.manifest),
        "dataset_digest": ProvenValue(dataset.manifest),
        "gates": ProvenValue(None if gates is None else digest_bytes(gates)),
        "on": ProvenValue(place) if place else UnprovenValue(found.runs_on),
        **({} if gates is None else _complete_sets(parse_gates(gates), found, lookup)),
    }


def check_validation_sets(gates: GatesFile, known: Collection[str]) -> None:
    """Raise NotFound if the gates name a validation set of which no version is valid for the recipe's base."""
    for name in gates.validation_sets:
        if name not in known:
            raise NotFound(
                f"gates, set {name}: this base model has no valid validation set of this name. Name one of these: "
                f"{', '.join((HELD_OUT, *known))}. A validator imports a set with: appliance validation-set import."
            )


def check_local_sets(gates: GatesFile, digests: Mapping[str, str]) -> None:
    """Check the sets that the gates name and that are in no log. `digests` are the service's.

    Raises: NotFound for an unknown name; Tampered if the service has other texts of a set that comes with the
    appliance.
    """
    for name in gates.local_sets:
        if name not in digests:
            raise NotFound(
                f"gates, set {name}: expected one of {', '.join(digests)}, got none of that name; tasks of lm-eval are "
                "in the home's folder harness/NAME, metrics of evaluate in metrics/NAME"
            )
        expected, got = digest_set(name) if name in SHIPPED else digests[name], digests[name]
        if got != expected:
            raise Tampered(f"set {name}: expected {expected}, as it came with this program, got {got}")


def _complete_sets(
    gates: GatesFile, found: TrainingFacts, lookup: Lookup
) -> dict[str, ProvenValue[Any] | UnprovenValue[Any]]:
    """Return the newest version of each validation set that the gates name, and the local sets that they name.

    The service says which version is the newest. Sets that come with this program have its own digests.
    """
    check_validation_sets(gates, found.validation_sets)
    check_local_sets(gates, found.local_sets)
    newest = [found.validation_sets[name] for name in gates.validation_sets]
    digests = [lookup.find_artifact("validation-set", name).value.manifest for name in newest]
    bound = [BoundSet(validation_set=name, digest=digest) for name, digest in zip(newest, digests, strict=True)]
    local = tuple(LocalSet(set=name, digest=found.local_sets[name]) for name in gates.local_sets)
    return {
        "sets": UnprovenValue(tuple(bound)) if bound else ProvenValue(()),
        "local_sets": ProvenValue(local) if set(SHIPPED).issuperset(gates.local_sets) else UnprovenValue(local),
    }


class RunRequested(Ordered):
    """The entry that a run was ordered."""

    type = "run.requested"
    optional = ("gates",)
    run: RunId

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


class RunStarted(WorkerStarted):
    """The entry that the run's first worker started.

    `secret`: for a private run, a digest of the secret that determines the drawn rows and the noise, else null.
    """

    type = "run.started"
    secret: Digest | None


class RunFinished(Event):
    """The entry that the training of a run has ended.

    `record`: digest of steps.jsonl. `validation`: (step, loss). `weights`: digest of the weights after `weights_step`.
    A run has fewer steps than planned if its validation losses stopped it by the recipe's patience. For a private run
    `final_loss` is null and `trained_tokens` is the expected number.
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
    """The entry that a run failed."""

    type = "run.failed"
    run: RunId
    code: Code

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


def authorise_train(state: State, order: Train, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against a training run."""
    recipe = order.recipe
    reasons = refuse_invalid_base(state, recipe.base, order.base_digest)
    dataset = state.datasets.get(recipe.dataset)
    if dataset is None:
        return [*reasons, DATASET_UNKNOWN(name=Rejected(recipe.dataset))]
    reasons += refuse_invalid_dataset(state, recipe.dataset)
    subject = f"dataset:{recipe.dataset}"
    if dataset.digest != order.dataset_digest:
        reasons.append(DIGEST_DIFFERS(subject, digest=dataset.digest, named=Rejected(order.dataset_digest)))
    if dataset.base_digest != order.base_digest:
        reasons.append(DATASET_OF_ANOTHER_BASE(subject, rendered=dataset.base))
    base = state.bases.get(recipe.base)
    if base is None:
        return reasons
    # Repeats the checks of resolving the recipe, because the signer's client may have left them out.
    facts = dataset.facts
    context, longest, rows = base.facts.get("context_length"), facts.get("max_tokens"), facts.get("train_rows")
    reasons += list_baseline_problems(state, recipe, order.base_digest, order.dataset_digest)
    reasons += find_gate_problems(state, recipe.purpose, dataset, order.gates)
    reasons += refuse_sets(state, dataset, order.sets, order.gates)
    reasons += refuse_local_sets(dataset, order.local_sets, order.gates)
    reasons += _check_tier(state, order)
    reasons += _check_sweep(state, order)
    reasons += refuse_place(state, order.on, signer.name, private=recipe.privacy is not None)
    reasons += refuse_nodes(order.on, order.nodes, recipe.processes)
    stored, of_base = base.facts.get("quantisation"), read_roles(base.facts)
    preferences = facts.get("dataset_kind") == PREFERENCE
    problems = list_recipe_problems(recipe, context, longest, rows, stored, *of_base, preferences=preferences)
    return reasons + [RECIPE_UNTRAINABLE(problem=Rejected(problem)) for problem in problems]


def _check_tier(state: State, order: Train) -> Reasons:
    names = tuple(tier.name for tier in state.parameters.tiers)
    return [] if order.tier is None or order.tier in names else [TIER_UNKNOWN(tier=Rejected(order.tier), listed=names)]


def _check_sweep(state: State, order: Train) -> Reasons:
    if order.sweep is None:
        return []
    reasons = refuse_sweep_run(state, order.sweep, order.signer, order.dataset_digest)
    if not order.recipe.eval_steps:
        reasons.append(SWEEP_WITHOUT_VALIDATION())
    return reasons


def name_run(state: State) -> dict[str, str]:
    """Return the id of the next run. Runs are counted from 1."""
    return {"run": f"r-{len(state.runs) + 1:06d}"}


def apply_run_request(case: Case) -> Changes:
    """Record a run, which waits for authorisation or for its turn."""
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
        eval_steps=order.recipe.eval_steps,
        gates=order.gates,
        sets=order.sets,
        local_sets=order.local_sets,
        tier=order.tier,
        sweep=order.sweep,
        privacy=_build_guarantee(order.recipe),
        on=order.on,
        nodes=order.nodes,
    )
    return [(case.state.runs, run.id, run)]


def _count_planned_steps(state: State, recipe: ResolvedRecipe) -> int | None:
    dataset = state.datasets.get(recipe.dataset)
    rows = None if dataset is None else dataset.facts.get("train_rows")
    return recipe.count_steps(rows) if isinstance(rows, int) else None


def _build_guarantee(recipe: ResolvedRecipe) -> Guarantee | None:
    """Return the privacy guarantee of the recipe, None without privacy.

    `authorise_train` checks that epsilon follows from noise, rows and steps.
    """
    privacy = recipe.privacy
    return None if privacy is None else Guarantee(epsilon=privacy.epsilon, delta=privacy.delta)


def _needs_authorisation(state: State, order: Train) -> bool:
    return any(tier.authorise_runs for tier in state.parameters.tiers if tier.name == order.tier)


def check_gates(case: Case, order: Train, document: bytes) -> None:
    """Check the gates file against the order's digest and the sets of rows that the order names."""
    case.require(digest_bytes(document) == order.gates, "gates", order.gates, digest_bytes(document))
    gates = parse_gates(document)
    check_sets(gates, order.sets, order.local_sets)
    if (dataset := case.state.datasets.get(order.recipe.dataset)) is not None:
        check_draws(case.state, gates, dataset, order.sets)


def apply_run_start(case: Case) -> Changes:
    """Record that a run has started.

    The entry is refused if an escape attempt of the sandbox succeeded, or if a layer is missing that policy requires.
    """
    body = case.of(RunStarted)
    # A run whose worker ended before its first training checkpoint starts again.
    run = take_run(case, body.run, "queued", "running")
    check_inputs(case, run)
    case.require(run.step == 0, "run", "run.resumed, for one that has a training checkpoint", "run.started")
    check_worker_sandbox(case, body)
    private = run.privacy is not None
    case.require((body.secret is not None) == private, "secret", "a digest" if private else "none", body.secret)
    case.require(run.secret in (None, body.secret), "secret", f"{run.secret}, of its first worker", body.secret)
    return begin(case, run.model_copy(update={"secret": body.secret}), body)


def apply_run_end(case: Case) -> Changes:
    """Record that the training of a run has ended.

    The run must have a training checkpoint of its last step, so that a replay can reach the end.
    """
    body = case.of(RunFinished)
    run = take_run(case, body.run, "running")
    check_inputs(case, run)
    case.require(body.steps == run.step, "steps", f"{run.step}, of its last training checkpoint", body.steps)
    check_end(case, run, body)
    private = run.privacy is not None
    case.require((body.final_loss is None) == private, "final_loss", "none" if private else "a loss", body.final_loss)
    results = {name: getattr(body, name) for name in ("weights", "record", "seconds", "peak_bytes")}
    return move(case.state, run.model_copy(update=results), "trained")


def check_end(case: Case, run: Run, body: RunFinished) -> None:
    """Check that recipe or validation losses end the run at this step, and which step's weights are sealed."""
    readings, patience, steps, planned = body.validation, run.early_stopping, body.steps, run.planned_steps
    if planned is not None and run.eval_steps:
        # The number of rows set aside for validation depends on their texts, which the log does not have.
        case.require(body.planned_steps <= planned, "planned_steps", f"at most {planned}", body.planned_steps)
    elif planned is not None:
        case.require(body.planned_steps == planned, "planned_steps", planned, body.planned_steps)
    expected = read_steps(steps, body.planned_steps, run.eval_steps)
    got = tuple(step for step, _ in readings)
    case.require(got == expected, "validation", f"losses after the steps {expected}", f"after {got}")
    ended_late = any(should_stop_early(readings[:count], patience) for count in range(1, len(readings)))
    case.require(not ended_late, "steps", "an earlier end, by its validation losses", steps)
    is_end = steps == body.planned_steps or (steps < body.planned_steps and should_stop_early(readings, patience))
    case.require(is_end, "steps", f"{body.planned_steps}, or validation losses that stop it", steps)
    best = best_step(readings) if patience else steps
    case.require(body.weights_step == best, "weights_step", best, body.weights_step)


def apply_run_failure(case: Case) -> Changes:
    """Record that a run failed."""
    return move(case.state, take_run(case, case.of(RunFailed).run, *UNDER_WAY), "failed")


def _describe_run(state: State, order: Train, signer: Principal) -> RunEntity:
    new = {"status": "requested", "ordered_by": signer.name}
    return RunEntity.make(state, order.recipe, name_run(state)["run"], **new)


class _TrainContext(Value):
    method: str
    purpose: str
    device: str
    rank: int
    epochs: int
    tier: Identifier | None


def _read_context(state: State, order: Train) -> _TrainContext:
    values = {name: getattr(order.recipe, name) for name in ("method", "purpose", "device", "rank", "epochs")}
    return _TrainContext(tier=order.tier, **values)


_RECIPE = resolve_recipe(
    Recipe(name="clauses", base="smollm2", dataset="clauses@1"),
    ResolutionFacts(train_rows=1_000, max_tokens=512, context_length=2_048, device="cpu", bfloat16=True),
)


ACTIONS = (
    Action(
        Train,
        title="Start training",
        complete=complete_training,
        authorise=authorise_train,
        signers=("operator",),
        meaning="The appliance trains with exactly these values, on exactly these bytes, in your name. Where the tier "
        "asks for it, a second person must authorise the run before it begins.",
        event=RunRequested,
        apply=apply_run_request,
        attachment=Attachment("gates", check_gates, optional=True),
        body=name_run,
        facts=ActionFacts(RunEntity, _describe_run, _read_context),
        example_values={"signer": "olga", "recipe": _RECIPE},
    ),
)
EVENTS = (
    EventRule(RunStarted, apply_run_start),
    EventRule(RunFinished, apply_run_end),
    EventRule(RunFailed, apply_run_failure),
)
