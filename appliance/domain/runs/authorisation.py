"""A second person lets a training run begin, or refuses it, where the tier that it is ordered for asks for one."""

from __future__ import annotations

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Digest, RunId, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Authorisation, Run
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.data.standing import inputs_stand, sets_stand
from appliance.domain.runs.conditions import check_inputs, move, take_run


class _OnWaitingRun(Order):
    """`order`: the one to train, by which the signature binds recipe, base, dataset and gates."""

    run: RunId
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"run:{self.run}", self.order),)


class AuthoriseRun(_OnWaitingRun):
    verb = "authorise-run"


class RefuseRun(_OnWaitingRun):
    verb = "refuse-run"


class RunAuthorised(Ordered):
    type = "run.authorised"


class RunRefused(Ordered):
    type = "run.refused"


def may_authorise_run(state: State, order: AuthoriseRun | RefuseRun, signer: Principal, now: Time) -> Reasons:
    run = state.runs.get(order.run)
    if run is None:
        return [f"run: expected a known one, got {order.run}"]
    reasons = [] if _has_the_role(signer) else needs(signer, "administrator", "reviewer")
    reasons += _made(state, run, signer.name)
    if run.status != "waiting":
        reasons.append(f"run {run.id}: expected one that waits to be authorised, got one that is {run.status}")
    if order.order != run.order:
        reasons.append(f"run {run.id}, order: expected {run.order}, got {order.order}")
    if isinstance(order, AuthoriseRun):
        return reasons + inputs_stand(state, run) + sets_stand(state, run.sets)
    return reasons if order.reason is not None else [*reasons, "reason: expected why the run is refused, got none"]


def _has_the_role(person: Principal) -> bool:
    return person.revoked is None and any(role == "administrator" or role[:9] == "reviewer:" for role in person.roles)


def _made(state: State, run: Run, name: str) -> Reasons:
    """The second person neither ordered the run nor imported its dataset."""
    dataset, reasons = state.datasets.get(run.dataset), []
    if name == run.ordered_by:
        reasons.append(f"separation of duties: expected a second person, who did not order the run, got {name}")
    if dataset is not None and name == dataset.imported_by:
        reasons.append(f"separation of duties: expected a second person, who did not import the dataset, got {name}")
    return reasons


def could_authorise(state: State, run: Run) -> tuple[str, ...]:
    """Everyone who may let it begin."""
    return tuple(
        sorted(
            person.name
            for person in state.principals.values()
            if _has_the_role(person) and not _made(state, run, person.name)
        )
    )


def run_authorised(case: Case) -> Changes:
    order = case.order(AuthoriseRun)
    run = take_run(case, order.run, "waiting")
    check_inputs(case, run)
    index = case.entry.index
    authorised = Authorisation(by=order.signer, keyid=case.accepted.keyid, order=case.accepted.digest, index=index)
    return move(case.state, run.model_copy(update={"authorised": authorised, "queued": index}), "queued")


def run_refused(case: Case) -> Changes:
    return move(case.state, take_run(case, case.order(RefuseRun).run, "waiting"), "refused")


VERBS = (
    Verb(
        AuthoriseRun,
        may=may_authorise_run,
        meaning="You are the second person: the run may begin, with exactly the values and bytes of its order.",
        signers=("administrator", "any reviewer"),
        event=RunAuthorised,
        apply=run_authorised,
    ),
    Verb(
        RefuseRun,
        may=may_authorise_run,
        meaning="The run that was ordered does not begin. This cannot be undone; it can be ordered again.",
        signers=("administrator", "any reviewer"),
        event=RunRefused,
        apply=run_refused,
    ),
)
