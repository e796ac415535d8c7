"""What a unit could load, in lines for people: each with the entry that says so."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.domain.queries.could_load import BeforeLog, CouldLoad, TaskAnswer
from appliance.domain.queries.periods import Span


def tell_answer(answer: CouldLoad | BeforeLog | Span) -> Iterator[str]:
    """Which adapter each task of the unit could load, by whose word; each with the entry that says so."""
    if isinstance(answer, BeforeLog):
        yield f"could load     {answer.unit} at {answer.at}"
        yield f"  nothing: the log begins on {answer.log_begins}"
        return
    if isinstance(answer, Span):
        yield from _tell_span(answer)
        return
    yield f"could load     {answer.unit} at {answer.at}, under policy {answer.policy}"
    if answer.enrolled is None:
        yield "  it was no enrolled unit then"
    for task in answer.tasks:
        candidate, release = task.candidate, task.release
        verb = "could load" if task.could_load else "could not load"
        yield f"  {task.task}: {verb} {candidate.adapter} ({candidate.manifest}), sealed by entry {candidate.sealed}"
        yield f"    released by {release.by}, entry {release.entry} ({release.kind})"
        for review in candidate.reviews:
            decided = {"approve": "approved", "reject": "rejected"}.get(review.decision, review.decision)
            until = "" if review.valid_until is None else f", until {review.valid_until}"
            said = f"{decided} by {review.reviewer} for {review.field}, entry {review.entry}{until}"
            yield f"    {said}{f'; {review.against}' if review.against else ''}"
        yield from (f"    against it: {reason}" for reason in candidate.reasons)
        if task.slot is not None and task.slot.entry is not None:
            yield f"    it had loaded {task.slot.adapter}, entry {task.slot.entry}"
    for one in answer.exported:
        yield f"  {one.task}: could load {one.adapter} ({one.manifest}) until {one.valid_until}"
        yield f"    from an exported folder, entry {one.entry}; no revocation reaches it"
    for other in answer.others:
        yield f"  could not load {other.adapter}: {'; '.join(other.reasons)}"
    if not answer.tasks:
        yield "  nothing: no adapter was released to it"


def _tell_span(span: Span) -> Iterator[str]:
    yield f"could load     {span.unit} from {span.since} until {span.until}"
    for period in span.periods:
        yield f"  from {period.answer.at}, as of entry {period.as_of}:"
        yield from (f"    {task.task}: {_tell_task(task)}" for task in period.answer.tasks)
        for one in period.answer.exported:
            until = f"until {one.valid_until}"
            yield f"    {one.task}: could load {one.adapter} from an exported folder, entry {one.entry}, {until}"
        if not period.answer.tasks and not period.answer.exported:
            yield "    nothing: no adapter was released to it"


def _tell_task(task: TaskAnswer) -> str:
    if not task.could_load:
        return f"could not load {task.candidate.adapter}: {task.candidate.reasons[0]}"
    counted = (review for review in task.candidate.reviews if review.against is None)
    approvals = [f"{r.reviewer} ({r.field}), entry {r.entry}" for r in counted if r.decision.startswith("approve")]
    released = f"released by {task.release.by}, entry {task.release.entry}"
    return f"could load {task.candidate.adapter}; {released}; approved by {', '.join(approvals) or 'nobody'}"
