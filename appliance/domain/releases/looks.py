"""Looks at a sealed adapter before a decision: samples of the held-out rows, and prompts of a reviewer's own.

The entries say who looked at which adapter and how much of it, and never a text. A look is open from its order to its
end; no answer of it leaves the service before its end is an entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import DailyTries, Look
from appliance.domain.core.event import Event, Ordered
from appliance.domain.core.names import Canonical, Commitment, Digest, Identifier, Time, Token, VersionedName
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.table import Table
from appliance.domain.core.verb import EventRule, Verb
from appliance.domain.data.standing import inputs_stand
from appliance.domain.evaluation.statistics.generator import draw_indices
from appliance.domain.releases.adapters import OnAdapter, find_adapter
from appliance.errors import Denied

MOST_SAMPLES = 20
MOST_PROMPTS = 8
MOST_TOKENS = 1_024
_DRAW = b"appliance/samples/v1\x00"

T = TypeVar("T")

Count = Annotated[int, Field(ge=0)]


class ViewSamples(OnAdapter):
    """Answers of the adapter, of the version that answers a unit now, and of the base to so many held-out rows."""

    verb = "view-samples"
    count: int = Field(ge=1, le=MOST_SAMPLES)


class TryAdapter(OnAdapter):
    """The adapter's answers to prompts that the signer's client holds. `adds_instruction`: the dataset's instruction is
    put in as the system message."""

    verb = "try-adapter"
    prompts: tuple[Commitment, ...] = Field(
        min_length=1, max_length=MOST_PROMPTS, description="of each prompt, under a key of its own; no entry has a text"
    )
    max_tokens: int = Field(ge=1, le=MOST_TOKENS, description="of each answer")
    adds_instruction: bool


class SamplesRequested(Ordered):
    type = "samples.requested"


class TryRequested(Ordered):
    type = "try.requested"


class _Ended(Event):
    """`order`: what was ordered, by `by`; `code`: of the error, where it came to none."""

    outcomes = ("success", "failure", "interrupted")
    order: Digest
    adapter: VersionedName
    by: Identifier
    code: Token | None

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"adapter:{self.adapter}")


class SamplesShown(_Ended):
    """`rows`: how many were shown, 0 where none was. `released`: the version that answered beside it."""

    type = "samples.shown"
    rows: int = Field(ge=0, le=MOST_SAMPLES)
    released: VersionedName | None


class TriedAnswer(Canonical):
    """`answer`: under a key of its own, which the signer's client was given."""

    answer: Commitment
    completion_tokens: Count
    finish_reason: Token
    prompt_tokens: Count


class TryFinished(_Ended):
    """`answers`: one for each prompt of the order, none where it failed."""

    type = "try.finished"
    answers: tuple[TriedAnswer, ...] = Field(max_length=MOST_PROMPTS)


def may_view_samples(state: State, order: ViewSamples, signer: Principal, now: Time) -> Reasons:
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    return needs(signer, *_reviewer_roles(signer), "auditor") + usable(state, adapter) + _one_at_a_time(state, signer)


def may_try_adapter(state: State, order: TryAdapter, signer: Principal, now: Time) -> Reasons:
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = needs(signer, *_reviewer_roles(signer)) + usable(state, adapter) + _one_at_a_time(state, signer)
    if len(set(order.prompts)) != len(order.prompts):
        reasons.append("prompts: expected a key of its own for each, got the same commitment twice")
    most, tried = state.parameters.tries_a_day, _tried(state, signer.name, now)
    if tried + len(order.prompts) > most:
        reasons.append(
            f"tries of {signer.name} on {now[:10]}: expected at most {most} prompts a day, by policy, "
            f"got {len(order.prompts)} more after {tried}"
        )
    return reasons


def _reviewer_roles(signer: Principal) -> tuple[str, ...]:
    """Those of the signer, of whatever field; else the word that a refusal names."""
    return tuple(role for role in signer.roles if role.startswith("reviewer:")) or ("reviewer",)


def _one_at_a_time(state: State, signer: Principal) -> Reasons:
    """Each starts a worker: nobody fills the queue."""
    return [
        f"looks of {signer.name}: expected the one of entry {look.index} to have ended, got it open"
        for look in state.looks.values()
        if look.by == signer.name
    ]


def usable(state: State, adapter: Adapter) -> Reasons:
    """What keeps an adapter from being looked at: it needs no release and no approval."""
    name = f"{adapter.name}@{adapter.version}"
    reasons = []
    if adapter.purpose != "release":
        reasons.append(f"adapter {name}: expected one made for release, got one made as a {adapter.purpose}")
    if adapter.revoked is not None:
        reasons.append(f"adapter {name}: expected a standing one, got one revoked by entry {adapter.revoked}")
    if adapter.quarantined is not None:
        reasons.append(f"adapter {name}: expected its bytes whole, got quarantine by entry {adapter.quarantined}")
    return reasons + inputs_stand(state, adapter)


def _tried(state: State, name: str, now: Time) -> int:
    """Prompts that were put on the day of UTC."""
    row = state.tries.get(name)
    return 0 if row is None or row.day != now[:10] else row.count


def draw_samples(manifest: str, root: bytes, rows: Sequence[T], count: int) -> list[T]:
    """The rows that are shown: `count` of them, each once, in the order in which they are drawn.

    `root`: of the log of the entries up to the one that sealed the adapter. Its leaf has the adapter's signature in it,
    so that neither who trains nor who reviews chooses the rows. Fewer rows are the first of more.
    """
    seed = _DRAW + bytes.fromhex(manifest.removeprefix("sha256:")) + root
    key, left, drawn = hashlib.sha256(seed).digest(), list(rows), []
    for number in range(min(count, len(left))):
        (place,) = draw_indices(key, number, 1, len(left))
        drawn.append(left.pop(place))
    return drawn


def samples_requested(case: Case) -> Changes:
    order = case.order(ViewSamples)
    return [_open(case, "samples", order.name, order.count)]


def try_requested(case: Case) -> Changes:
    order = case.order(TryAdapter)
    count, day = len(order.prompts), case.entry.time[:10]
    tries = DailyTries(by=order.signer, day=day, count=_tried(case.state, order.signer, case.entry.time) + count)
    return [_open(case, "try", order.name, count), (case.state.tries, order.signer, tries)]


def _open(case: Case, kind: Literal["samples", "try"], adapter: str, count: int) -> tuple[Table[Any], str, Any]:
    digest, by = case.accepted.digest, case.accepted.order.signer
    look = Look(order=digest, kind=kind, adapter=adapter, by=by, count=count, index=case.entry.index)
    return case.state.looks, digest, look


def samples_shown(case: Case) -> Changes:
    body = case.of(SamplesShown)
    changes = _end(case, body, "samples", body.rows)
    case.require(body.rows > 0 or body.released is None, "released", "none, since no row was shown", body.released)
    return changes


def try_finished(case: Case) -> Changes:
    body = case.of(TryFinished)
    changes = _end(case, body, "try", len(body.answers))
    look = case.state.looks.get(body.order)
    assert look is not None
    expected = look.count if case.entry.outcome == "success" else 0
    case.require(len(body.answers) == expected, "answers", expected, len(body.answers))
    return changes


def _end(case: Case, body: _Ended, kind: str, shown: int) -> Changes:
    """The look that an order opened is over: by whom it was ordered, of what, and no more than that."""
    look = case.state.looks.get(body.order)
    if look is None or look.kind != kind:
        raise Denied(f"{case.place}: order: expected an open look ({kind}), got {body.order}")
    expected, got = (look.adapter, look.by), (body.adapter, body.by)
    case.require(got == expected, "adapter and by", expected, got)
    succeeded = case.entry.outcome == "success"
    case.require(succeeded == (body.code is None), "code", "one exactly where it did not succeed", body.code)
    case.require(shown > 0 if succeeded else shown == 0, "shown", "some exactly where it succeeded", shown)
    case.require(shown <= look.count, "shown", f"{look.count} at most, as ordered", shown)
    adapter = case.state.adapters.get(look.adapter)
    reasons = [] if adapter is None or not succeeded else usable(case.state, adapter)
    case.require(not reasons, "adapter", "one that can be looked at", "; ".join(reasons))
    return [(case.state.looks, body.order, None)]


VERBS = (
    Verb(
        ViewSamples,
        may=may_view_samples,
        meaning="You are shown so many held-out rows and what adapter, released version and base answer to them. That "
        "you looked becomes an entry; keep what you see to yourself.",
        signers=("any reviewer", "auditor"),
        event=SamplesRequested,
        apply=samples_requested,
    ),
    Verb(
        TryAdapter,
        may=may_try_adapter,
        meaning="The adapter answers these prompts to you alone. That you tried it becomes an entry, and the prompts "
        "count for your day; no entry has their text.",
        signers=("any reviewer",),
        event=TryRequested,
        apply=try_requested,
    ),
)
EVENTS = (EventRule(SamplesShown, samples_shown), EventRule(TryFinished, try_finished))
