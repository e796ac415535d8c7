"""The state's part of a review page: the entries to read, and the present status of the adapter and its decisions."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.domain.core.names import Identifier, Time, VersionedName, versioned
from appliance.domain.core.records.runs import Adapter, Run
from appliance.domain.core.state import State
from appliance.domain.evaluation.basis import list_evaluations, rows_of_dataset
from appliance.domain.queries.review.values import (
    AdapterStatus,
    DecisionStatus,
    EligibleReviewer,
    EvaluatedRun,
    FindingStatus,
    PreviousRuns,
    PrivateRun,
    ReportedValue,
    RequestStatus,
    TrainedBefore,
)
from appliance.domain.releases.approval import (
    find_blockers,
    find_review_status,
    list_counted_approvals,
    list_eligible_reviewers,
    refuse_makers,
)
from appliance.domain.releases.requests import (
    compute_requirement,
    find_current_request,
    find_reattestation_deadline,
    find_review_deadline,
    find_tier,
)
from appliance.domain.releases.reviews import delegation_reasons
from appliance.domain.releases.verdicts import is_open
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.errors import NotFound


class ActiveVersion(ReportedValue):
    """Another version of the adapter that is active for these units. `entry`: the last of their release entries."""

    adapter: VersionedName
    entry: int
    units: tuple[Identifier, ...]


class ReportedState(ReportedValue):
    """The present state of an adapter, with the entries of the log that its review page is made of.

    `about`: dataset.json of its dataset, in base64. `release_requests`, `findings` and `decisions`: each by its entry.
    """

    entry: int
    run_entry: int
    base_entry: int
    base_order_entry: int
    dataset_entry: int
    dataset_order_entry: int
    about: str
    status: AdapterStatus
    release_requests: tuple[tuple[int, RequestStatus], ...]
    findings: tuple[tuple[int, FindingStatus], ...]
    decisions: tuple[tuple[int, DecisionStatus], ...]
    active_versions: tuple[ActiveVersion, ...]
    evaluated_before: tuple[EvaluatedRun, ...]
    trained_before: TrainedBefore
    previous_runs: PreviousRuns


def report_state(state: State, adapter: Adapter, about: str, now: Time) -> ReportedState:
    """Return the present state of an adapter.

    Raises: NotFound if its run, base, dataset or one of their imports is missing.
    """
    name = versioned(adapter.name, adapter.version)
    run, base, dataset = state.runs.get(adapter.run), state.bases.get(adapter.base), state.datasets.get(adapter.dataset)
    base_order = None if base is None else state.imports.get(base.order)
    dataset_order = None if dataset is None else state.imports.get(dataset.order)
    if run is None or base is None or dataset is None or base_order is None or dataset_order is None:
        raise NotFound(f"adapter {name}: expected its run and the imports of its base and dataset, got less")
    requests = [find_current_request(state, adapter, unit) for unit in sorted({one.unit for one in adapter.requests})]
    return ReportedState(
        entry=adapter.index,
        run_entry=run.index,
        base_entry=base.index,
        base_order_entry=base_order.index,
        dataset_entry=dataset.index,
        dataset_order_entry=dataset_order.index,
        about=about,
        status=AdapterStatus(
            revoked=adapter.revoked,
            quarantined=adapter.quarantined,
            active_for=tuple(sorted(key for key, one in state.releases.items() if one.current.adapter == name)),
        ),
        release_requests=tuple(
            (one.index, describe_request(state, adapter, one.unit, now)) for one in requests if one is not None
        ),
        findings=tuple(
            (one.index, FindingStatus(open=is_open(state, one), closed=one.closed, closed_by=one.closed_by))
            for one in adapter.findings
        ),
        decisions=tuple(_describe_decisions(state, adapter, now)),
        active_versions=tuple(_list_active_versions(state, adapter)),
        evaluated_before=tuple(_list_evaluated_before(state, adapter)),
        trained_before=list_trained_before(state, adapter),
        previous_runs=count_previous_runs(state, adapter),
    )


def describe_request(state: State, adapter: Adapter, unit: str, now: Time) -> RequestStatus:
    """Return the requirements of the unit's valid request, its tier by the valid policy, and the blockers of a release.

    Raises: NotFound if the unit has no valid request.
    """
    request = find_current_request(state, adapter, unit)
    if request is None:
        raise NotFound(f"request: expected a valid one for {unit}, got none")
    tier = find_tier(state.parameters, request)
    rules = compute_requirement(state.parameters, tier)
    return RequestStatus(
        tier=None if tier is None else tier.name,
        tiers=tuple(one.name for one in state.parameters.tiers),
        reviewers=rules.reviewers,
        distinct_functions=rules.distinct_functions,
        required_functions=tuple(rules.required_functions),
        approvals=tuple(review.index for review in list_counted_approvals(state, adapter, unit, now)),
        blockers=tuple(find_blockers(state, adapter, unit, now)),
        eligible_reviewers=tuple(
            EligibleReviewer(
                name=name,
                review_function=function,
                delegates=tuple(_list_delegates(state, adapter, name, function, now)),
            )
            for function, name in list_eligible_reviewers(state, adapter, unit, now)
        ),
        until=find_review_deadline(state.parameters, request),
    )


def _list_delegates(state: State, adapter: Adapter, reviewer: str, function: str, now: Time) -> Iterator[str]:
    """Yield the people to whom the reviewer delegated the function, and who did not make the adapter."""
    for one in state.delegations.values():
        own = (one.delegator, one.review_function) == (reviewer, function)
        if own and not refuse_makers(adapter, one.delegate) and not delegation_reasons(state, one, now):
            yield one.delegate


def _describe_decisions(state: State, adapter: Adapter, now: Time) -> Iterator[tuple[int, DecisionStatus]]:
    for review in adapter.reviews:
        found = find_review_status(state, adapter, review, now)
        again_by = find_reattestation_deadline(state, adapter, review)
        yield (
            review.index,
            DecisionStatus(again_by=again_by, state=found.state, superseded_by=found.superseded_by),
        )


def _list_active_versions(state: State, adapter: Adapter) -> Iterator[ActiveVersion]:
    """Yield the other active versions of the adapter. For a unit with several, the last release counts."""
    last: dict[str, tuple[int, str]] = {}
    for release in state.releases.values():
        found = state.adapters.get(release.current.adapter)
        if found is not None and found.name == adapter.name and found.index != adapter.index:
            last[release.unit] = max(last.get(release.unit, (0, "")), (release.current.index, release.current.adapter))
    for name in sorted({name for _, name in last.values()}):
        units = tuple(sorted(unit for unit, (_, other) in last.items() if other == name))
        yield ActiveVersion(adapter=name, entry=max(last[unit][0] for unit in units), units=units)


def _list_evaluated_before(state: State, adapter: Adapter) -> Iterator[EvaluatedRun]:
    """Yield the runs that were evaluated on the adapter's rows before it, the last one first."""
    earlier = [
        one for one in list_evaluations(state, rows_of_dataset(state, adapter.dataset)) if one.index < adapter.index
    ]
    for one in sorted(earlier, key=lambda one: one.index, reverse=True):
        yield EvaluatedRun(run=one.run, adapter=one.adapter, entry=one.index, passed=one.passed)


def _list_other_runs(state: State, adapter: Adapter) -> list[Run]:
    """Return the other runs on the adapter's dataset."""
    own = state.runs.require(adapter.run)
    return [run for run in state.runs.values() if run.dataset_digest == own.dataset_digest and run.id != own.id]


def list_trained_before(state: State, adapter: Adapter) -> TrainedBefore:
    """Return the runs on the adapter's dataset before it was sealed.

    Private runs count if they began, others if they were sealed.
    """
    others = _list_other_runs(state, adapter)
    before = {earlier.run for earlier in state.adapters.values() if earlier.index < adapter.index}
    return TrainedBefore(
        private=tuple(
            PrivateRun(run=run.id, epsilon=run.privacy.epsilon, delta=run.privacy.delta)
            for run in others
            if run.privacy is not None and run.secret is not None and run.index < adapter.index
        ),
        plain=sum(run.privacy is None and run.id in before for run in others),
    )


def count_previous_runs(state: State, adapter: Adapter) -> PreviousRuns:
    """Return the counts of other runs on the adapter's dataset that were trained and ended before it was sealed.

    Runs count whatever their name, sweep or author. Runs on another version of the dataset do not count. Neither do
    runs without a result: those that wait, still train, or were cancelled before they began.
    """
    others = [
        run
        for run in _list_other_runs(state, adapter)
        if run.index < adapter.index and run.started and run.status not in UNDER_WAY
    ]
    sweeps = [run.sweep for run in others if run.sweep is not None]
    ended = [run.status for run in others]
    return PreviousRuns(
        runs=len(others),
        people=len({run.ordered_by for run in others}),
        swept=len(sweeps),
        sweeps=len(set(sweeps)),
        sealed=ended.count("sealed"),
        cancelled=ended.count("cancelled"),
        failed=ended.count("failed"),
    )
