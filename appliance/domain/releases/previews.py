"""Sample views and trials: reviewers look at a sealed adapter's answers before they decide.

A sample view shows answers to held-out rows. A trial sends the reviewer's own prompts. The entries record who viewed
which adapter and how many rows or prompts, never a text. A view or trial opens with the entry of its order, which
precedes every answer, and ends with another entry. It ends with success after the person was sent all answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import DailyTries, Preview
from appliance.domain.core.entry import Event, Ordered
from appliance.domain.core.example import example_commitment
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.names import (
    Canonical,
    Code,
    Commitment,
    Digest,
    Identifier,
    Time,
    Token,
    Value,
    VersionedName,
)
from appliance.domain.core.order import entered
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State, Table
from appliance.domain.data.validity import refuse_invalid_inputs
from appliance.domain.evaluation.statistics.resampling import draw_indices
from appliance.domain.releases.adapters import (
    AdapterEntity,
    AdapterOrder,
    complete_adapter,
    find_adapter,
    refuse_baseline,
    refuse_quarantined,
    refuse_revoked,
)
from appliance.errors import Denied, RefusalCode

MOST_SAMPLES = 20
"""Largest number of rows of one sample view."""
MOST_PROMPTS = 8
"""Largest number of prompts of one trial."""
MOST_TOKENS = 1_024
"""Largest number of tokens of each answer in a trial."""
_SEED_PREFIX = b"appliance/samples/v1\x00"
"""Prefix of the seed by which rows are drawn."""

PROMPT_REPEATED = RefusalCode(
    "prompt-repeated",
    "order",
    "Two prompts of the order have the same commitment.",
    "Send the prompts again: each needs a key of its own.",
)
TRIES_USED = RefusalCode(
    "tries-used",
    "policy",
    "Policy lets a reviewer try {limit} prompts a day. {id} has tried {tried} today, and the order has {count} more.",
    "Try them tomorrow. The day begins at 00:00 UTC.",
)
PREVIEW_OPEN = RefusalCode(
    "trial-open",
    "state",
    "{id} has a sample view or a trial that has not ended, by entry {entry}.",
    "Fetch its responses first: Home leads to them. They are available for ten minutes.",
)

T = TypeVar("T")

Count = Annotated[int, Field(ge=0)]
"""A number of tokens, 0 or more."""


class ViewSamples(AdapterOrder):
    """A signed order to view the answers to some held-out rows.

    Answers are shown of the adapter, of the version that is active for a unit now, and of the base.
    """

    action = "view-samples"
    count: int = entered(
        f"{MOST_SAMPLES} at most; the log draws them", label="number of rows", first="5", ge=1, le=MOST_SAMPLES
    )


class TryAdapter(AdapterOrder):
    """A signed order for the adapter's answers to prompts, whose texts stay with the signer's client.

    `adds_instruction`: the dataset's instruction is added as the system message.
    """

    action = "try-adapter"
    prompts: tuple[Commitment, ...] = entered(
        "the adapter answers it to you alone; no entry has its text",
        min_length=1,
        max_length=MOST_PROMPTS,
        description="commitment to each prompt, under a key of its own; entries contain no text",
    )
    max_tokens: int = entered(
        "a token is a word or a part of one", label="most tokens of an answer", first="256", ge=1, le=MOST_TOKENS
    )
    adds_instruction: bool = entered(first="yes")


class SamplesRequested(Ordered):
    """The entry that a sample view was ordered."""

    type = "samples.requested"
    records = "previews"
    part = "opening"


class TryRequested(Ordered):
    """The entry that a trial was ordered."""

    type = "try.requested"
    records = "previews"
    part = "opening"


class _PreviewEnded(Event):
    """Base class of the entries that end the view or trial `order` of the person `by`.

    `code`: the reason if the person was not sent all answers.
    """

    outcomes = ("success", "failure", "interrupted")
    order: Digest
    adapter: VersionedName
    by: Identifier
    code: Code | None

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"adapter:{self.adapter}")


class SamplesShown(_PreviewEnded):
    """The end of a sample view.

    `rows`: the number of rows shown. `released`: the active version that was shown beside it.
    """

    type = "samples.shown"
    records = "previews"
    part = "end"
    rows: int = Field(ge=0, le=MOST_SAMPLES)
    released: VersionedName | None


class TrialAnswer(Canonical):
    """One answer of a trial. `answer`: a commitment under a key of its own, which the signer's client was given."""

    answer: Commitment
    completion_tokens: Count
    finish_reason: Token
    prompt_tokens: Count


class TryFinished(_PreviewEnded):
    """The end of a trial. `answers`: one for each prompt of the order, none if the trial failed."""

    type = "try.finished"
    records = "previews"
    part = "end"
    answers: tuple[TrialAnswer, ...] = Field(max_length=MOST_PROMPTS)


def authorise_view_samples(state: State, order: ViewSamples, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against a sample view."""
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    return refuse_unusable(state, adapter) + _check_no_open_preview(state, signer)


def authorise_try_adapter(state: State, order: TryAdapter, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against a trial."""
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = refuse_unusable(state, adapter) + _check_no_open_preview(state, signer)
    if len(set(order.prompts)) != len(order.prompts):
        reasons.append(PROMPT_REPEATED())
    most, tried = state.parameters.tries_a_day, _count_tried(state, signer.name, now)
    if tried + len(order.prompts) > most:
        reasons.append(TRIES_USED(f"principal:{signer.name}", limit=most, tried=tried, count=len(order.prompts)))
    return reasons


def _check_no_open_preview(state: State, signer: Principal) -> Reasons:
    """Return the refusal reasons if the signer has an open view or trial.

    Each starts a worker, so one person has one.
    """
    return [
        PREVIEW_OPEN(f"principal:{signer.name}", entry=preview.index)
        for preview in state.previews.values()
        if preview.by == signer.name
    ]


def refuse_unusable(state: State, adapter: Adapter) -> Reasons:
    """Return the refusal reasons against viewing or trying the adapter. No release and no approval is needed."""
    reasons = refuse_baseline(adapter) + refuse_revoked(adapter) + refuse_quarantined(adapter)
    return reasons + refuse_invalid_inputs(state, adapter)


def _count_tried(state: State, name: str, now: Time) -> int:
    """Return the number of prompts that this person has tried on the current UTC day."""
    row = state.tries.get(name)
    return 0 if row is None or row.day != now[:10] else row.count


def draw_samples(manifest: str, root: bytes, rows: Sequence[T], count: int) -> list[T]:
    """Return the `count` rows to show, drawn without replacement, in the order in which they are drawn.

    `root`: the root of the log up to the entry that sealed the adapter. Its leaf contains the adapter's signature, so
    neither the person who trains nor the reviewer chooses the rows. A smaller count gives the first rows of a larger
    one.
    """
    seed = _SEED_PREFIX + bytes.fromhex(manifest.removeprefix("sha256:")) + root
    key, remaining, drawn = hashlib.sha256(seed).digest(), list(rows), []
    for number in range(min(count, len(remaining))):
        (position,) = draw_indices(key, number, 1, len(remaining))
        drawn.append(remaining.pop(position))
    return drawn


def apply_sample_request(case: Case) -> Changes:
    """Record that a sample view is open."""
    order = case.order(ViewSamples)
    return [_open_preview(case, "samples", order.name, order.count)]


def apply_trial_request(case: Case) -> Changes:
    """Record that a trial is open, and count its prompts for the signer's day."""
    order = case.order(TryAdapter)
    count, day = len(order.prompts), case.entry.time[:10]
    tries = DailyTries(by=order.signer, day=day, count=_count_tried(case.state, order.signer, case.entry.time) + count)
    return [_open_preview(case, "try", order.name, count), (case.state.tries, order.signer, tries)]


def _open_preview(case: Case, kind: Literal["samples", "try"], adapter: str, count: int) -> tuple[Table[Any], str, Any]:
    digest, by = case.accepted.digest, case.accepted.order.signer
    preview = Preview(order=digest, kind=kind, adapter=adapter, by=by, count=count, index=case.entry.index)
    return case.state.previews, digest, preview


def apply_sample_view(case: Case) -> Changes:
    """Record that a sample view has ended."""
    body = case.of(SamplesShown)
    changes = _end_preview(case, body, "samples", body.rows)
    case.require(body.rows > 0 or body.released is None, "released", "none, since no row was shown", body.released)
    return changes


def apply_trial_result(case: Case) -> Changes:
    """Record that a trial has ended."""
    body = case.of(TryFinished)
    changes = _end_preview(case, body, "try", len(body.answers))
    preview = case.state.previews.get(body.order)
    assert preview is not None
    expected = preview.count if case.entry.outcome == "success" else 0
    case.require(len(body.answers) == expected, "answers", expected, len(body.answers))
    return changes


def _end_preview(case: Case, body: _PreviewEnded, kind: str, shown: int) -> Changes:
    """Close the view or trial that an order opened, after checking the entry against the order.

    Raises:
        Denied: no such view or trial is open, or its person, adapter or number does not match.
    """
    preview = case.state.previews.get(body.order)
    if preview is None or preview.kind != kind:
        raise Denied(f"{case.place}: order: expected an open preview ({kind}), got {body.order}")
    expected, got = (preview.adapter, preview.by), (body.adapter, body.by)
    case.require(got == expected, "adapter and by", expected, got)
    succeeded = case.entry.outcome == "success"
    case.require(succeeded == (body.code is None), "code", "one exactly where it did not succeed", body.code)
    case.require(shown > 0 if succeeded else shown == 0, "shown", "some exactly where it succeeded", shown)
    case.require(shown <= preview.count, "shown", f"{preview.count} at most, as ordered", shown)
    adapter = case.state.adapters.get(preview.adapter)
    reasons = [] if adapter is None or not succeeded else refuse_unusable(case.state, adapter)
    case.require(not reasons, "adapter", "one that can be looked at", " ".join(map(str, reasons)))
    return [(case.state.previews, body.order, None)]


class _TryContext(Value):
    prompts: int = Field(description="number of prompts")


def _count_prompts(state: State, order: TryAdapter) -> _TryContext:
    return _TryContext(prompts=len(order.prompts))


ACTIONS = (
    Action(
        ViewSamples,
        complete=complete_adapter,
        authorise=authorise_view_samples,
        meaning="You see held-out rows, and what the adapter, the released version and the base answer to them. The "
        "log records that you saw them. Copy no row into a report.",
        title="View example rows",
        signers=("any reviewer", "auditor"),
        event=SamplesRequested,
        apply=apply_sample_request,
        facts=ActionFacts(AdapterEntity, "name", ("count",)),
        example_values={"signer": "rita", "count": 5},
    ),
    Action(
        TryAdapter,
        complete=complete_adapter,
        authorise=authorise_try_adapter,
        meaning="The adapter answers these prompts to you alone. The log records that you tried it, and no text. The "
        "prompts are counted: policy limits them for each day.",
        title="Try your own text",
        signers=("any reviewer",),
        event=TryRequested,
        apply=apply_trial_request,
        facts=ActionFacts(AdapterEntity, "name", _count_prompts),
        example_values={"signer": "rita", "prompts": (example_commitment("prompt"),)},
    ),
)
EVENTS = (EventRule(SamplesShown, apply_sample_view), EventRule(TryFinished, apply_trial_result))
