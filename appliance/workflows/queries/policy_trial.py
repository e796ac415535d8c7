"""Trials of a policy set before its adoption: the recent decisions and today's releases that it would decide
otherwise.

Each decision is made twice over the state before its entry: by the set that was valid then, and by the new one. Only a
difference between the two counts, so data without rows here (which orders came before, texts) cannot cause one. Nothing
is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from appliance.access.cedar import CedarPolicies
from appliance.domain.actions.registry import EVENTS, ORDERS, list_refusal_reasons
from appliance.domain.core.entry import Entry, Ordered, parse_entry
from appliance.domain.core.names import Value
from appliance.domain.core.order import Order
from appliance.domain.core.policy import PolicySet, parse_policy
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import OrderRefused
from appliance.domain.queries.effective_access import effective_access
from appliance.domain.queries.rows import MODELS
from appliance.errors import ApplianceError, Refusal
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.signatures.dsse import parse_envelope
from appliance.store.ledger.past import ValueChange, changes_between, state_at
from appliance.workflows.core.context import LedgerContext

MOST, DAYS, SECONDS = 1_000, 90, 5.0
"""Limits of a trial: the number of decisions, their age in days, and its duration in seconds."""
_KINDS = tuple(MODELS)
_DECIDED = (OrderRefused.type, *(name for name, event in EVENTS.items() if issubclass(event, Ordered)))

Decide = Callable[[Order, State, str], tuple[Refusal, ...]]


class ChangedDecision(Value):
    """A decision that the new set would make otherwise. `was`: the decision; `reasons`: of its past or new refusal."""

    entry: int
    time: str
    action: str
    signer: str
    was: str
    reasons: tuple[Refusal, ...]


class ChangedRelease(Value):
    """A release that is active under one set only. `reasons`: of the set under which it is not."""

    unit: str
    served_model: str
    adapter: str
    answers_now: bool
    reasons: tuple[Refusal, ...]


class Trial(Value):
    """The result of a trial.

    `found`: the decisions of the period. `decided`: those that both sets decided. `unclear`: those that could not be
    decided. `since`: the time of the first one. `ended`: where the trial ended.
    """

    found: int
    decided: int
    unclear: int
    since: str | None
    ended: str
    changed_decisions: tuple[ChangedDecision, ...]
    releases: tuple[ChangedRelease, ...]


def try_policy(context: LedgerContext, document: bytes, digest: str) -> Trial:
    """Decide recent orders and today's releases by another policy set.

    Raises:
        BadInput: The set cannot be adopted.
    """
    new = parse_policy(document)
    with CedarPolicies.for_adoption(new) as site:
        return _try(context, new, digest, _make_decide(site))


def _try(context: LedgerContext, new: PolicySet, digest: str, decide: Decide) -> Trial:
    now = context.now(context.ledger.state)
    since = encode_time(parse_time(now) - timedelta(days=DAYS))
    rows = context.ledger.find(types=_DECIDED, since=since, newest=True, limit=MOST)
    entries = sorted((parse_entry(data) for _, data in rows), key=lambda entry: entry.index)
    first = entries[0].index if entries else context.ledger.state.size
    last = context.ledger.state.size - 1
    state = context.ledger.ask(lambda connection: state_at(connection, first - 1, _KINDS))
    changes = context.ledger.ask(lambda connection: changes_between(connection, first - 1, last, _KINDS))
    walk = _Replay(context, state, changes, new, digest, decide)
    changed_decisions, decided, unclear, ended = walk.replay_decisions(entries)
    walk.go_to(last)
    return Trial(
        found=len(entries),
        decided=decided,
        unclear=unclear,
        since=entries[0].time if entries else None,
        ended=ended,
        changed_decisions=tuple(changed_decisions),
        releases=tuple(walk.releases(now)),
    )


def _make_decide(site: CedarPolicies) -> Decide:
    def decide(order: Order, state: State, now: str) -> tuple[Refusal, ...]:
        signer = state.principals.get(order.signer)
        return () if signer is None else site.decide(signer, order, state, now)

    return decide


class _Replay:
    """A state that advances through the entries of the period."""

    def __init__(
        self,
        context: LedgerContext,
        state: State,
        changes: list[ValueChange],
        new: PolicySet,
        digest: str,
        decide: Decide,
    ) -> None:
        self._context, self._state, self._changes = context, state, changes
        self._new, self._digest, self._decide = new, digest, decide
        self._tables = {table.kind: table for table in state.tables}
        self._next = 0
        self._known: dict[str, Decide] = {}

    def go_to(self, index: int) -> None:
        """Advance to the state after this entry."""
        while self._next < len(self._changes) and self._changes[self._next].since <= index:
            one = self._changes[self._next]
            value = None if one.value is None else MODELS[one.kind].model_validate_json(one.value)
            self._tables[one.kind].set(one.id, value)
            self._next += 1
        self._state.size = index + 1

    def replay_decisions(self, entries: list[Entry]) -> tuple[list[ChangedDecision], int, int, str]:
        """Return the differing decisions, the numbers of decided and unclear ones, and a text on where the trial
        ended.
        """
        found: list[ChangedDecision] = []
        decided = unclear = 0
        until = time.monotonic() + SECONDS
        for entry in entries:
            if time.monotonic() > until:
                return found, decided, unclear, f"after {SECONDS:.0f} s, before entry {entry.index}"
            self.go_to(entry.index - 1)
            self._state.last_time = entry.time
            try:
                differences = self._compare(entry)
            except ApplianceError:
                differences = None
            if differences is None:
                unclear += 1
                continue
            decided += 1
            found += differences
        return found, decided, unclear, "at the log's end"

    def _compare(self, entry: Entry) -> list[ChangedDecision] | None:
        """Return the differing decision, if any. Return None if the old set decides otherwise here than it did then."""
        data = self._context.ledger.documents_of(entry.index)["order"]
        order = ORDERS.parse(parse_envelope(data).payload)
        was_refused = entry.type == OrderRefused.type
        before = self._reasons(order, entry.time, self._decide_as_then())
        if bool(before) != was_refused:
            return None
        with self._under_new():
            after = self._reasons(order, entry.time, self._decide)
        if bool(after) == was_refused:
            return []
        was, reasons = ("refused", before) if was_refused else ("accepted", after)
        return [
            ChangedDecision(
                entry=entry.index, time=entry.time, action=order.action, signer=order.signer, was=was, reasons=reasons
            )
        ]

    def _reasons(self, order: Order, now: str, decide: Decide) -> tuple[Refusal, ...]:
        return (*list_refusal_reasons(self._state, order, now), *decide(order, self._state, now))

    def _decide_as_then(self) -> Decide:
        digest = self._state.site.policy
        if digest not in self._known:
            self._known[digest] = _make_decide(CedarPolicies(parse_policy(self._context.ledger.document(digest))))
        return self._known[digest]

    @contextmanager
    def _under_new(self) -> Iterator[None]:
        site = self._state.site
        self._state.sites.set(
            "site", site.model_copy(update={"policy": self._digest, "parameters": self._new.parameters})
        )
        try:
            yield
        finally:
            self._state.sites.set("site", site)

    def releases(self, now: str) -> Iterator[ChangedRelease]:
        """Yield the differing releases of every unit, at the log's end."""
        for unit in sorted({release.unit for release in self._state.releases.values()}):
            ours = {model.served_model: model for model in effective_access(self._state, unit, now).served_models}
            with self._under_new():
                theirs = {model.served_model: model for model in effective_access(self._state, unit, now).served_models}
            for name, model in ours.items():
                if model.effective_access != theirs[name].effective_access:
                    refused = theirs[name] if model.effective_access else model
                    yield ChangedRelease(
                        unit=unit,
                        served_model=name,
                        adapter=model.candidate.adapter,
                        answers_now=model.effective_access,
                        reasons=tuple(refused.candidate.reasons),
                    )
