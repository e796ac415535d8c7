"""The decision that a page asks for: the request, what speaks for and against it, who decided, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.domain.core.decisions import APPROVALS
from appliance.domain.queries.review.values import (
    Change,
    EligibleReviewer,
    PageDecision,
    PageFinding,
    PageRequest,
    RequestStatus,
    ReviewPage,
    VersionChanges,
)
from appliance.domain.releases.approval import FUNCTION_MISSING, TOO_FEW_APPROVALS, TOO_FEW_FUNCTIONS
from appliance.reports.review.blocks import (
    ERASED,
    MARK,
    Cell,
    Columns,
    Fact,
    FactList,
    Paragraph,
    Part,
    Point,
    Points,
    Section,
    make_chip,
    make_content,
    make_entry,
    make_fact,
    make_note,
    make_time,
    make_written,
)
from appliance.reports.review.evidence import show_evidence
from appliance.reports.review.words import (
    count_of,
    describe_change,
    describe_conditions,
    describe_use,
    name_decision,
    tone_of_tier,
)

_NEEDED = tuple(code.name for code in (TOO_FEW_APPROVALS, TOO_FEW_FUNCTIONS, FUNCTION_MISSING))
"""Codes of the blockers that one sentence about the missing approvals replaces."""
_NOBODY = "Nobody who can give one is enrolled. An administrator gives a person the role of a reviewer."
"""Text about the missing approvals if nobody can give one."""
_MOST_NAMED = 6
"""Most differences of a topic that are named."""
_TOPICS = {"evaluation": "gates"}
"""Names of topics, where they differ."""


def show_decision(page: ReviewPage, one: PageRequest) -> Section:
    """Return the section of a release request, or of the emergency release that opened one."""
    unit, status = one.order.unit, one.status
    decisions = list_decisions(page, unit)
    refusals = [each for each in decisions if each.order.decision not in APPROVALS]
    did = "Release" if one.request else "Emergency release of"
    columns = (
        (Points("For and against", (*_show_conditions(page, one), *_weigh(page, unit))),),
        (_show_decided(decisions), _show_missing(page, one)),
    )
    facts = FactList(tuple(_list_request(one)), is_beside=True)
    return Section(
        f"{did} {page.adapter} {'to' if one.request else 'for'} {unit}",
        "summary",
        (_show_tier(page, one), facts, show_evidence(page), Columns(columns)),
        (_show_status(status, refusals), MARK),
        unit=unit,
        is_open=bool(status.blockers),
        is_evidence=True,
    )


def show_assessment(page: ReviewPage) -> Section:
    """Return the section of an adapter whose release nobody has requested."""
    weighs, decided = Points("For and against", tuple(_weigh(page, None))), _show_decided(list_decisions(page))
    columns = ((weighs,), (decided,))
    blocks = (show_evidence(page), Columns(columns))
    return Section("No release is requested", "summary", blocks, is_evidence=True)


def _weigh(page: ReviewPage, unit: str | None) -> Iterator[Point]:
    yield _show_verdict(page)
    for line in page.warnings:
        yield Point(make_content(f"{line[:1].upper()}{line[1:]}."), tone="wait")
    yield from _show_changes(page, unit)
    yield from _show_findings(page)


def list_decisions(page: ReviewPage, unit: str | None = None) -> list[PageDecision]:
    """Return the valid decisions for a unit, or for every unit, refusals first. A withdrawal decides nothing."""
    valid = [one for one in page.decisions if one.status.state == "valid" and one.order.decision != "withdraw"]
    found = [one for one in valid if unit in (None, one.order.unit)]
    return sorted(found, key=lambda one: (one.order.decision in APPROVALS, one.entry))


def _show_status(status: RequestStatus, refusals: Sequence[PageDecision]) -> Cell:
    if refusals:
        rejected = any(one.order.decision == "reject" for one in refusals)
        return make_chip("rejected" if rejected else "changes requested", "bad")
    approvals = f"{len(status.approvals)} of {count_of(status.reviewers, 'approval')}"
    if not status.blockers:
        return make_chip(f"{approvals}: ready for release", "good")
    return make_chip(
        approvals if any(one.code in _NEEDED for one in status.blockers) else f"{approvals}, blocked", "wait"
    )


def _show_tier(page: ReviewPage, one: PageRequest) -> Paragraph:
    """Return the tier in words and colour: the highest of several is bad, the lowest is good."""
    status, request = one.status, one.request
    use = "An emergency opened this request." if request is None else describe_use(request.exposure, request.purpose)
    of = f", {status.tiers.index(status.tier) + 1} of {len(status.tiers)}" if status.tier in status.tiers else ""
    name = f"Tier {status.tier}{of}." if status.tier else "No tier of the valid policy."
    rest = f" {use} Trained on {page.training_data.classification} data."
    return make_note(Cell(name, "strong"), rest, MARK, tone=tone_of_tier(status.tier, status.tiers))


def _list_request(one: PageRequest) -> Iterator[Fact]:
    request = one.request
    if request is None:
        yield make_fact("Reason of the emergency", make_written(one.open_text(one.order.reason)))
    else:
        yield make_fact("Intended use", make_written(one.open_text(request.intended_use)))
        yield make_fact("Not to be used for", make_written(one.open_text(request.limits)))
    yield make_fact("Requested by", f"{one.order.signer}, entry ", make_entry(one.entry))
    until = (", until ", make_time(one.status.until), " UTC") if one.status.until else ()
    yield make_fact("To be decided by", _describe_needed(one.status), *until, reported=True)


def _describe_needed(status: RequestStatus) -> str:
    functions = f" of at least {status.distinct_functions} review functions" if status.distinct_functions > 1 else ""
    among = f", {', '.join(status.required_functions)} among them" if status.required_functions else ""
    return f"{count_of(status.reviewers, 'reviewer')}{functions}{among}"


def _list_conditions(page: ReviewPage, one: PageRequest) -> list[tuple[str, str]]:
    """Return the conditions that bind the release, each with its source."""
    found = [] if one.request is None else [(one.request.conditions, f"release request of {one.order.signer}")]
    found += [
        (each.order.conditions, f"approval of {each.order.signer}, entry {each.entry}")
        for each in page.decisions
        if each.entry in one.status.approvals
    ]
    return [(describe_conditions(terms), source) for terms, source in found if terms is not None]


def _show_conditions(page: ReviewPage, one: PageRequest) -> Iterator[Point]:
    lines = [f"{terms[:1].upper()}{terms[1:]}, by the {source}." for terms, source in _list_conditions(page, one)]
    if lines:
        yield Point(make_content("Conditions limit its use."), make_content("\n".join(lines)), "wait")


def _show_verdict(page: ReviewPage) -> Point:
    """Return the summary of the verdict, and the reason of each gate that failed."""
    if page.evaluation is None:
        return Point(make_content("No gate evaluated this adapter."), tone="wait")
    verdict = page.evaluation.verdict
    reasons = "\n".join(f"{one.gate}: {one.reason}" for one in verdict.results if one.outcome == "failed")
    return Point(
        make_content(verdict.why), make_content(reasons) if reasons else (), "good" if verdict.passed else "bad"
    )


def _show_changes(page: ReviewPage, unit: str | None) -> Iterator[Point]:
    """Yield the differences from the version that is active for the unit, or from every active one."""
    found = [one for one in page.changes if unit in one.units] or list(page.changes)
    yield from map(_compare, found)
    if not found:
        yield Point(make_content("No other version of it is active, so there is nothing to compare it with.", MARK))


def _compare(changes: VersionChanges) -> Point:
    differs = [(topic, found) for topic, found in changes.topics if found]
    same = ", ".join(_TOPICS.get(topic, topic) for topic, found in changes.topics if not found)
    active = f", which is active for {', '.join(changes.units)}"
    since = Cell(changes.since, "part", target="changes")
    if not differs:
        return Point(make_content("The same as ", since, f"{active}: {same}.", MARK))
    topics = ", ".join(_TOPICS.get(topic, topic) for topic, _ in differs)
    lines = [_describe_topic(topic, found) for topic, found in differs if topic != "evaluation"]
    lines += [*_describe_gates(changes), *([f"The same: {same}."] if same else [])]
    tone = "wait" if any(one.before is not None for one in changes.evaluation if _is_gate(one)) else ""
    return Point(
        make_content("Differs from ", since, f"{active}, in {topics}.", MARK), make_content("\n".join(lines)), tone
    )


def _is_gate(one: Change) -> bool:
    return one.what.startswith("gate ")


def _describe_gates(changes: VersionChanges) -> Iterator[str]:
    """Yield the gates that were dropped, changed and added, and the other differences of the gates file."""
    found = [one for one in changes.evaluation if "digest" not in one.what]
    gates = [(one.what.removeprefix("gate "), one) for one in found if _is_gate(one)]
    dropped = [name for name, one in gates if one.now is None]
    changed = [name for name, one in gates if one.now is not None and one.before is not None]
    added = [name for name, one in gates if one.before is None]
    for word, names in (("dropped", dropped), ("changed", changed), ("added", added)):
        if names:
            yield f"Gates {word}: {', '.join(names)}."
    others = [
        describe_change(one) for one in found if not _is_gate(one) and one.before is not None and one.now is not None
    ]
    if others:
        yield f"Gates file: {'; '.join(others)}."


def _describe_topic(topic: str, found: Sequence[Change]) -> str:
    """Return the differences of a topic: with their values for measures and recipe, else the names of the fields."""
    names = [describe_change(one) if topic in ("measures", "recipe") else one.what for one in found]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{_TOPICS.get(topic, topic).capitalize()}: {'; '.join(names[:_MOST_NAMED])}{more}."


def _show_findings(page: ReviewPage) -> Iterator[Point]:
    """Yield the open findings that block a release or accept the verdict, and the number of the others."""
    found = [one for one in page.findings if one.status.open]
    weighty = [one for one in found if one.order.blocks or one.order.accepts_verdict]
    yield from map(_show_finding, weighty)
    others = len(found) - len(weighty)
    if others or not found:
        more = "other open finding" if weighty else "open finding"
        text = f"{count_of(others, more)}." if found else "No finding is open."
        yield Point(make_content(Cell(text, "part", target="findings"), MARK), tone="wait" if others else "good")


def _show_finding(one: PageFinding) -> Point:
    order = one.order
    kind = f"{order.severity} {order.kind}, {order.review_function}"
    effect = f" ({kind}) {'blocks the release' if order.blocks else 'accepts the verdict'}."
    head = make_content(Cell(f"Finding {one.entry}", "part", target="findings"), effect, MARK)
    owner = f" Owner: {order.owner}, due "
    body = make_content(make_written(one.open_text(order.finding)), owner, make_time(order.due), " UTC")
    return Point(head, body, "bad" if order.blocks else "wait")


def _show_decided(decisions: Sequence[PageDecision]) -> Points:
    rows = tuple(map(_show_review, decisions)) or (Point(make_content("Nobody has decided yet.")),)
    return Points("Decisions", rows, is_reported=True)


def _show_review(one: PageDecision) -> Point:
    """Return a decision with its reason, its meaning and its conditions."""
    order = one.order
    approves = order.decision in APPROVALS
    place = "" if order.on_behalf_of is None else f" in the place of {order.on_behalf_of}"
    head: list[Part] = [make_chip(name_decision(order.decision), "good" if approves else "bad")]
    head += [f" {order.signer} ({order.review_function}){place}, entry ", make_entry(one.entry)]
    head += [", until ", make_time(order.valid_until), " UTC"] if order.valid_until else []
    return Point(make_content(*head), make_content("\n".join(read_reasons(one))), "good" if approves else "bad")


def read_reasons(one: PageDecision) -> tuple[str, ...]:
    """Return the reason, the meaning and the conditions of a decision, each as a line."""
    texts = {"Reason": one.order.reason, "Meaning": one.order.meaning}
    opened = {name: one.open_text(text) for name, text in texts.items() if text is not None}
    lines = [f"{name}: {ERASED if text is None else text}" for name, text in opened.items()]
    terms = one.order.conditions
    return tuple(lines if terms is None else [*lines, f"Conditions: {describe_conditions(terms)}"])


def _show_missing(page: ReviewPage, one: PageRequest) -> Points:
    """Return what has to happen before the release, and who can do it."""
    status, rows = one.status, list[Point]()
    functions = {each.order.review_function for each in page.decisions if each.entry in status.approvals}
    if any(each.code in _NEEDED for each in status.blockers):
        helpful = list_helpful(status, functions)
        lack = _describe_lack(status, functions, helpful)
        if helpful:
            lack = [f"These people can give one: {', '.join(map(_name_reviewer, helpful))}.", *lack]
        needs = describe_missing(status, functions)
        rows.append(Point(make_content(needs), make_content(" ".join(lack or [_NOBODY])), "wait"))
    others = (each for each in status.blockers if each.code not in _NEEDED)
    rows += [Point(make_content(each.sentence), make_content(each.remedy), "bad") for each in others]
    if not rows:
        rows.append(Point(make_content(f"Nothing. A release owner of {one.order.unit} can activate it."), tone="good"))
    return Points("What is missing", tuple(rows), is_reported=True)


def _describe_lack(status: RequestStatus, functions: set[str], helpful: Sequence[EligibleReviewer]) -> list[str]:
    """Return sentences about the reviewers whom the site lacks beside the helpful ones."""
    eligible = {one.review_function for one in status.eligible_reviewers}
    lacking = [one for one in status.required_functions if one not in functions | eligible]
    found = [
        f"Nobody who can approve it is a reviewer for {one}: an administrator gives a person that role."
        for one in lacking
    ]
    known = functions | {one.review_function for one in helpful} | set(lacking)
    people = status.reviewers - len(status.approvals) - len({one.name for one in helpful}) - len(lacking)
    more = max(people, status.distinct_functions - len(known))
    if more > 0 and (helpful or lacking):
        whom = "one more person" if more == 1 else f"{more} more people"
        kind = " with another review function" if status.distinct_functions > len(known) else ""
        found.append(f"That is not enough: an administrator gives {whom} the role of a reviewer{kind}.")
    return found


def _name_reviewer(one: EligibleReviewer) -> str:
    delegates = f", or {' or '.join(one.delegates)} in their place" if one.delegates else ""
    return f"{one.name} ({one.review_function}{delegates})"


def describe_missing(status: RequestStatus, functions: set[str]) -> str:
    """Return the approvals that are missing, where those given are of these review functions."""
    count = max(status.reviewers - len(status.approvals), 0)
    more, other = max(status.distinct_functions - len(functions), 0), ", ".join(sorted(functions))
    required = [one for one in status.required_functions if one not in functions]
    count = max(count, more, len(required))
    text = f"Needs {count_of(count, 'more approval' if functions else 'approval')}"
    if more and functions:
        among = "from" if more == count else f"at least {more} of them from"
        text += f", {among} {'a review function' if more == 1 else f'{more} review functions'} other than {other}"
    elif more > 1:
        text += ", from different review functions" if more == count else f", from at least {more} review functions"
    return f"{text}, {', '.join(required)} among them." if required else f"{text}."


def list_helpful(status: RequestStatus, functions: set[str]) -> list[EligibleReviewer]:
    """Return the reviewers whose approval brings the release nearer."""
    count = status.reviewers - len(status.approvals)
    more = status.distinct_functions - len(functions)
    required = set(status.required_functions) - functions
    found = list(status.eligible_reviewers)
    if len(required) >= max(count, more, 1):
        return [one for one in found if one.review_function in required]
    return [one for one in found if one.review_function not in functions] if more >= max(count, 1) else found
