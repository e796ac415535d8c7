"""A policy set before it is adopted: which recent decisions, and which releases of today, it would decide otherwise.

Each decision is judged twice over the state before its entry: by the set that was in force then, and by the new one.
Only a difference between the two counts, so that what has no rows here (docs: which orders came before, texts) cannot
make one. Nothing is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from appliance.access.cedar import SitePolicies
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Value
from appliance.domain.core.order import Order
from appliance.domain.core.policy import PolicySet, parse_policy
from appliance.domain.core.state import State
from appliance.domain.governance.endorsement import OrderRefused
from appliance.domain.queries.could_load import could_load
from appliance.domain.queries.rows import MODELS
from appliance.domain.rulebook.registry import EVENTS, ORDERS, reasons_against
from appliance.errors import ApplianceError
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.signatures.dsse import parse_envelope
from appliance.store.ledger.past import Changed, changes_between, state_at
from appliance.workflows.core.context import Context

MOST, DAYS, SECONDS = 1_000, 90, 5.0
"""So many decisions, so old, and for so long at most."""
_KINDS = tuple(MODELS)
_DECIDED = (OrderRefused.type, *(name for name, event in EVENTS.items() if issubclass(event, Ordered)))

Decide = Callable[[Order, State, str], tuple[str, ...]]


class Otherwise(Value):
    """A decision that the new set would make otherwise. `was`: what was decided; `reasons`: why it would be refused,
    or why it was."""

    entry: int
    time: str
    verb: str
    signer: str
    was: str
    reasons: tuple[str, ...]


class ReleaseOtherwise(Value):
    """A release that answers under one set and not under the other. `reasons`: of the one under which it does not."""

    unit: str
    task: str
    adapter: str
    answers_now: bool
    reasons: tuple[str, ...]


class Trial(Value):
    """`found`: the decisions of the span; `judged` of them were judged by both sets, `unclear` could not be. `since`:
    the first one's time."""

    found: int
    judged: int
    unclear: int
    since: str | None
    ended: str
    otherwise: tuple[Otherwise, ...]
    releases: tuple[ReleaseOtherwise, ...]


def try_policy(context: Context, document: bytes, digest: str) -> Trial:
    """BadInput where the set cannot be adopted at all."""
    new = parse_policy(document)
    decide = _decider(SitePolicies.for_adoption(new))
    now = context.now(context.ledger.state)
    since = encode_time(parse_time(now) - timedelta(days=DAYS))
    rows = context.ledger.find(types=_DECIDED, since=since, newest=True, limit=MOST)
    entries = sorted((parse_entry(data) for _, data in rows), key=lambda entry: entry.index)
    first = entries[0].index if entries else context.ledger.state.size
    last = context.ledger.state.size - 1
    state = context.ledger.ask(lambda connection: state_at(connection, first - 1, _KINDS))
    changes = context.ledger.ask(lambda connection: changes_between(connection, first - 1, last, _KINDS))
    walk = _Walk(context, state, changes, new, digest, decide)
    otherwise, judged, unclear, ended = walk.judge(entries)
    walk.go_to(last)
    return Trial(
        found=len(entries),
        judged=judged,
        unclear=unclear,
        since=entries[0].time if entries else None,
        ended=ended,
        otherwise=tuple(otherwise),
        releases=tuple(walk.releases(now)),
    )


def _decider(site: SitePolicies) -> Decide:
    def decide(order: Order, state: State, now: str) -> tuple[str, ...]:
        signer = state.principals.get(order.signer)
        return () if signer is None else site.decide(signer, order, state, now)

    return decide


class _Walk:
    """A state that goes forward through the span, entry by entry."""

    def __init__(
        self, context: Context, state: State, changes: list[Changed], new: PolicySet, digest: str, decide: Decide
    ) -> None:
        self._context, self._state, self._changes = context, state, changes
        self._new, self._digest, self._decide = new, digest, decide
        self._tables = {table.kind: table for table in state.tables}
        self._next = 0
        self._known: dict[str, Decide] = {}

    def go_to(self, index: int) -> None:
        """To the state after this entry."""
        while self._next < len(self._changes) and self._changes[self._next].since <= index:
            one = self._changes[self._next]
            value = None if one.value is None else MODELS[one.kind].model_validate_json(one.value)
            self._tables[one.kind].set(one.id, value)
            self._next += 1
        self._state.size = index + 1

    def judge(self, entries: list[Entry]) -> tuple[list[Otherwise], int, int, str]:
        found: list[Otherwise] = []
        judged = unclear = 0
        until = time.monotonic() + SECONDS
        for entry in entries:
            if time.monotonic() > until:
                return found, judged, unclear, f"after {SECONDS:.0f} s, before entry {entry.index}"
            self.go_to(entry.index - 1)
            self._state.last_time = entry.time
            try:
                told = self._compare(entry)
            except ApplianceError:
                told = None
            if told is None:
                unclear += 1
                continue
            judged += 1
            found += told
        return found, judged, unclear, "at the log's end"

    def _compare(self, entry: Entry) -> list[Otherwise] | None:
        """None where the set that was in force does not decide here as it did."""
        data = self._context.ledger.documents_of(entry.index)["order"]
        order = ORDERS.parse(parse_envelope(data).payload)
        was_refused = entry.type == OrderRefused.type
        before = self._reasons(order, entry.time, self._in_force())
        if bool(before) != was_refused:
            return None
        with self._under_new():
            after = self._reasons(order, entry.time, self._decide)
        if bool(after) == was_refused:
            return []
        was, reasons = ("refused", before) if was_refused else ("accepted", after)
        return [
            Otherwise(
                entry=entry.index, time=entry.time, verb=order.verb, signer=order.signer, was=was, reasons=reasons
            )
        ]

    def _reasons(self, order: Order, now: str, decide: Decide) -> tuple[str, ...]:
        return (*reasons_against(self._state, order, now), *decide(order, self._state, now))

    def _in_force(self) -> Decide:
        digest = self._state.site.policy
        if digest not in self._known:
            self._known[digest] = _decider(SitePolicies(parse_policy(self._context.ledger.document(digest))))
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

    def releases(self, now: str) -> Iterator[ReleaseOtherwise]:
        """Of every unit, at the log's end."""
        for unit in sorted({release.unit for release in self._state.releases.values()}):
            ours = {task.task: task for task in could_load(self._state, unit, now).tasks}
            with self._under_new():
                theirs = {task.task: task for task in could_load(self._state, unit, now).tasks}
            for name, task in ours.items():
                if task.could_load != theirs[name].could_load:
                    refused = theirs[name] if task.could_load else task
                    yield ReleaseOtherwise(
                        unit=unit,
                        task=name,
                        adapter=task.candidate.adapter,
                        answers_now=task.could_load,
                        reasons=tuple(refused.candidate.reasons),
                    )
