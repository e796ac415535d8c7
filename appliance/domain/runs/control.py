"""Control of a run: a second person authorises or refuses it, and people cancel or resume it."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Ordered
from appliance.domain.core.example import example_commitment
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.names import Digest, RunId, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Authorisation, Run
from appliance.domain.core.roles import Reasons, refuse_without_role
from appliance.domain.core.state import State
from appliance.domain.data.validity import refuse_invalid_inputs, refuse_invalid_sets
from appliance.domain.runs.conditions import (
    UNDER_WAY,
    RunEntity,
    WorkerStarted,
    begin,
    check_inputs,
    check_worker_sandbox,
    find_run,
    last_checkpoint,
    move,
    take_run,
)
from appliance.errors import RefusalCode

RUN_ORDER_DIFFERS = RefusalCode(
    "run-order-differs",
    "order",
    "The order names another order of run {id} than {digest}.",
    "Prepare the order again from the run's page.",
)
RUN_NOT_WAITING = RefusalCode(
    "run-not-waiting",
    "state",
    "Run {id} is {status} and does not wait for authorisation.",
    "Nothing is to be authorised.",
)
RUN_REFUSAL_REASON = RefusalCode(
    "run-refusal-reason-missing", "order", "The refusal of a run needs a reason.", "Write why the run is refused."
)
AUTHORISER_ORDERED_THE_RUN = RefusalCode(
    "authoriser-ordered-the-run",
    "rule",
    "{id} ordered the run. A second person must authorise it.",
    "Ask another administrator or reviewer.",
)
AUTHORISER_IMPORTED_THE_DATASET = RefusalCode(
    "authoriser-imported-the-dataset",
    "rule",
    "{id} imported the dataset of the run. A second person must authorise it.",
    "Ask another administrator or reviewer.",
)
RUN_ENDED = RefusalCode("run-ended", "state", "Run {id} is {status}.", "A run that has ended cannot be cancelled.")
RUN_NOT_FAILED = RefusalCode(
    "run-not-failed", "state", "Run {id} is {status}. Only a failed run can be resumed.", "Order another run."
)
NO_TRAINING_CHECKPOINT = RefusalCode(
    "run-without-checkpoint",
    "state",
    "Run {id} has no training checkpoint from which it can be resumed.",
    "Order another run.",
)


class _WaitingRunOrder(Order):
    """Base class of the orders about a run that waits for authorisation.

    `order`: digest of the order to train, so that the signature covers recipe, base, dataset and gates.
    """

    run: RunId
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"run:{self.run}", self.order),)


class AuthoriseRun(_WaitingRunOrder):
    """A signed order of a second person that lets a run begin."""

    action = "authorise-run"


class RefuseRun(_WaitingRunOrder):
    """A signed order of a second person that ends a run before it begins."""

    action = "refuse-run"


class RunAuthorised(Ordered):
    """The entry that a run was authorised."""

    type = "run.authorised"


class RunRefused(Ordered):
    """The entry that a run was refused."""

    type = "run.refused"


def authorise_run_decision(state: State, order: AuthoriseRun | RefuseRun, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against authorising or refusing a run."""
    run = find_run(state, order.run)
    if isinstance(run, list):
        return run
    reasons = _check_duties(state, run, signer.name)
    if run.status != "waiting":
        reasons.append(RUN_NOT_WAITING(f"run:{run.id}", status=run.status))
    if order.order != run.order:
        reasons.append(RUN_ORDER_DIFFERS(f"run:{run.id}", digest=run.order))
    if isinstance(order, AuthoriseRun):
        return reasons + refuse_invalid_inputs(state, run) + refuse_invalid_sets(state, run.sets)
    return reasons if order.reason is not None else [*reasons, RUN_REFUSAL_REASON()]


def _has_authorising_role(person: Principal) -> bool:
    return person.revoked is None and any(role == "administrator" or role[:9] == "reviewer:" for role in person.roles)


def _check_duties(state: State, run: Run, name: str) -> Reasons:
    """Return the refusal reasons if the person ordered the run or imported its dataset."""
    dataset, reasons = state.datasets.get(run.dataset), []
    if name == run.ordered_by:
        reasons.append(AUTHORISER_ORDERED_THE_RUN(f"principal:{name}"))
    if dataset is not None and name == dataset.imported_by:
        reasons.append(AUTHORISER_IMPORTED_THE_DATASET(f"principal:{name}"))
    return reasons


def can_authorise(state: State, run: Run, person: Principal) -> bool:
    """Return True if the person may authorise the run."""
    return _has_authorising_role(person) and not _check_duties(state, run, person.name)


def list_authorisers(state: State, run: Run) -> tuple[str, ...]:
    """Return the names of all people who may authorise the run."""
    return tuple(sorted(person.name for person in state.principals.values() if can_authorise(state, run, person)))


def apply_run_authorisation(case: Case) -> Changes:
    """Record that a run was authorised, and queue it."""
    order = case.order(AuthoriseRun)
    run = take_run(case, order.run, "waiting")
    check_inputs(case, run)
    index = case.entry.index
    authorised = Authorisation(by=order.signer, keyid=case.accepted.keyid, order=case.accepted.digest, index=index)
    return move(case.state, run.model_copy(update={"authorised": authorised, "queued": index}), "queued")


def apply_run_refusal(case: Case) -> Changes:
    """Record that a run was refused."""
    return move(case.state, take_run(case, case.order(RefuseRun).run, "waiting"), "refused")


AUTHORISATION_ACTIONS = (
    Action(
        AuthoriseRun,
        title="Authorise a run",
        authorise=authorise_run_decision,
        meaning="You are the second person: the run may begin, with exactly the values and bytes of its order.",
        signers=("administrator", "any reviewer"),
        event=RunAuthorised,
        apply=apply_run_authorisation,
        facts=ActionFacts(RunEntity, "run"),
        example_values={"signer": "rita", "run": "r-000002"},
    ),
    Action(
        RefuseRun,
        title="Refuse a run",
        authorise=authorise_run_decision,
        meaning="The run that was ordered does not begin. This cannot be undone; it can be ordered again.",
        signers=("administrator", "any reviewer"),
        event=RunRefused,
        apply=apply_run_refusal,
        facts=ActionFacts(RunEntity, "run"),
        example_values={"signer": "rita", "run": "r-000002", "reason": example_commitment("reason")},
    ),
)


class Cancel(Order):
    """A signed order to stop a run."""

    action = "cancel"
    run: RunId

    def subjects(self) -> Subjects:
        return self._self(f"run:{self.run}")


class RunCancelled(Ordered):
    """The entry that a run was cancelled."""

    type = "run.cancelled"


def authorise_cancel(state: State, order: Cancel, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against cancelling a run."""
    run = find_run(state, order.run)
    return run if isinstance(run, list) else list_cancel_reasons(run, signer)


def list_cancel_reasons(run: Run, signer: Principal) -> Reasons:
    """Return the refusal reasons against a person's cancellation of a run."""
    reasons = [] if signer.name == run.ordered_by else refuse_without_role(signer, "administrator")
    if run.status not in UNDER_WAY:
        reasons.append(RUN_ENDED(f"run:{run.id}", status=run.status))
    return reasons


def apply_run_cancellation(case: Case) -> Changes:
    """Record that a run was cancelled."""
    order = case.order(Cancel)
    return move(case.state, take_run(case, order.run, *UNDER_WAY), "cancelled")


CANCELLATION_ACTIONS = (
    Action(
        Cancel,
        title="Cancel a run",
        authorise=authorise_cancel,
        signers=("who ordered it", "administrator"),
        meaning="The run stops, and its record says that you stopped it.",
        event=RunCancelled,
        apply=apply_run_cancellation,
        facts=ActionFacts(RunEntity, "run"),
        example_values={"signer": "olga", "run": "r-000003"},
    ),
)


class Resume(Order):
    """A signed order to resume a failed run from its last training checkpoint."""

    action = "resume"
    run: RunId

    def subjects(self) -> Subjects:
        return self._self(f"run:{self.run}")


class ResumeRequested(Ordered):
    """The entry that a failed run was queued again, to resume from its last training checkpoint."""

    type = "resume.requested"


class RunResumed(WorkerStarted):
    """The entry that another worker resumed the run from its last training checkpoint."""

    type = "run.resumed"
    step: int = Field(ge=1)
    checkpoint: Digest


def authorise_resume(state: State, order: Resume, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against resuming a run."""
    run = find_run(state, order.run)
    return run if isinstance(run, list) else list_resume_reasons(state, run, signer)


def list_resume_reasons(state: State, run: Run, signer: Principal) -> Reasons:
    """Return the refusal reasons against a person's resumption of a run.

    The person who ordered the run needs to be an operator still. Everyone else needs to be an administrator.
    """
    reasons = refuse_without_role(signer, "operator" if signer.name == run.ordered_by else "administrator")
    if run.status != "failed":
        reasons.append(RUN_NOT_FAILED(f"run:{run.id}", status=run.status))
    if not run.step:
        reasons.append(NO_TRAINING_CHECKPOINT(f"run:{run.id}"))
    return reasons + refuse_invalid_inputs(state, run) + refuse_invalid_sets(state, run.sets)


def apply_resume_request(case: Case) -> Changes:
    """Record that a failed run is queued again."""
    run = take_run(case, case.order(Resume).run, "failed")
    return move(case.state, run.model_copy(update={"resumes": 0, "queued": case.entry.index}), "queued")


def apply_run_resumption(case: Case) -> Changes:
    """Record that a run was resumed, from its last training checkpoint only."""
    body = case.of(RunResumed)
    run = take_run(case, body.run, "queued", "running", "trained")
    check_inputs(case, run)
    check_worker_sandbox(case, body)
    last = last_checkpoint(case.state, run)
    expected = None if last is None else (last.step, last.digest)
    case.require((body.step, body.checkpoint) == expected, "checkpoint", expected, (body.step, body.checkpoint))
    return begin(case, run, body)


RESUMPTION_ACTIONS = (
    Action(
        Resume,
        title="Resume a run",
        authorise=authorise_resume,
        signers=("who ordered it", "administrator"),
        meaning="The run continues from its last training checkpoint, in the name of the person who ordered it.",
        event=ResumeRequested,
        apply=apply_resume_request,
        facts=ActionFacts(RunEntity, "run"),
        example_values={"signer": "olga", "run": "r-000004"},
    ),
)
EVENTS = (EventRule(RunResumed, apply_run_resumption),)
