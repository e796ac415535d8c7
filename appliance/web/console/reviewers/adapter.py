"""An adapter under review, in tabs that can be linked: each is a part of one value."""

from __future__ import annotations

import base64
import json
from typing import Any, Literal

from pydantic import Field

from appliance.domain.core.entry import parse_entry
from appliance.domain.data.teaching import ABOUT_FILE
from appliance.domain.evaluation.quality import list_measures, list_warnings
from appliance.errors import ApplianceError
from appliance.web.console.auditors.entry import read_order
from appliance.web.console.core.page import PEOPLE, VERSIONED, Page, Query, Table, Value, Viewer
from appliance.web.console.core.why import Reason, explain_reasons
from appliance.web.console.operators.records import read_metrics
from appliance.web.console.reviewers.adapters import state_of
from appliance.workflows.core.context import Context
from appliance.workflows.queries.log import disclosed
from appliance.workflows.queries.questions import adapter_story
from appliance.workflows.releases.review import adapter_file, find_adapter, review_packet

Tab = Literal["summary", "quality", "data", "reviews", "findings", "history"]
TABS: tuple[Tab, ...] = ("summary", "quality", "data", "reviews", "findings", "history")


class AdapterQuery(Query):
    name: str = Field(pattern=VERSIONED)
    tab: Tab = "summary"


class Asked(Value):
    """What is asked for a unit, and what keeps the adapter from it."""

    unit: str
    requested_by: str
    exposure: str | None
    purpose: str | None
    tier: str | None
    until: str | None
    approvals: int
    needed: int
    conditions: dict[str, Any] | None
    missing: tuple[Reason, ...]
    could_decide: tuple[tuple[str, str], ...]


class ReviewRow(Value):
    entry: int
    time: str
    reviewer: str
    field: str
    unit: str
    decision: str
    state: str
    against: str | None
    valid_until: str | None
    again_by: str | None
    conditions: dict[str, Any] | None
    meaning: str | None
    on_behalf_of: str | None


class FindingRow(Value):
    entry: int
    kind: str
    severity: str
    blocks: bool
    field: str
    finder: str
    owner: str
    due: str
    open: bool
    closed: int | None
    text: str | None
    remedy: str | None


class GateRow(Value):
    gate: str
    metric: str
    outcome: str
    ours: str | None
    theirs: str | None
    gain: str | None
    lower: str | None
    upper: str | None
    p: str | None
    reason: str


class Happened(Value):
    entry: int
    time: str
    type: str
    actor: str
    outcome: str


class AdapterPage(Value):
    """`tabs`: all of them; what the chosen one shows is filled, and the rest of the value is small."""

    name: str
    tab: str
    tabs: tuple[str, ...]
    state: str
    manifest: str
    entry: int
    run: str
    ordered_by: str
    dataset_by: str
    base: str
    dataset: str
    purpose: str
    passed: bool | None
    verdict_why: str | None
    asked: tuple[Asked, ...]
    measures: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    gates: tuple[GateRow, ...]
    data: tuple[tuple[str, str], ...]
    reviews: tuple[ReviewRow, ...]
    findings: tuple[FindingRow, ...]
    history: tuple[Happened, ...]


def adapter(context: Context, viewer: Viewer, query: AdapterQuery) -> AdapterPage:
    found = find_adapter(context.ledger.state, query.name)
    packet = review_packet(context, query.name)
    row, judgement = packet["adapter"], context.ledger.state.judgements.get(query.name)
    metrics, verdict = read_metrics(context, query.name), _read_json(context, query.name, "verdict.json")
    return AdapterPage(
        name=query.name,
        tab=query.tab,
        tabs=TABS,
        state=state_of(found),
        manifest=found.manifest,
        entry=found.index,
        run=found.run,
        ordered_by=found.ordered_by,
        dataset_by=found.dataset_by,
        base=found.base,
        dataset=found.dataset,
        purpose=found.purpose,
        passed=None if judgement is None else judgement.passed,
        verdict_why=verdict.get("why"),
        asked=tuple(_asked(one) for one in row["asked"]),
        measures=tuple(list_measures(metrics)),
        warnings=tuple(list_warnings(metrics)),
        gates=_gates(verdict) if query.tab == "quality" else (),
        data=_data(packet) if query.tab == "data" else (),
        reviews=tuple(_review(context, one) for one in row["reviews"]),
        findings=tuple(_finding(context, one) for one in row["findings"]),
        history=_history(context, query.name) if query.tab == "history" else (),
    )


def _read_json(context: Context, name: str, path: str) -> dict[str, Any]:
    """A file of the sealed folder; nothing where the adapter has none of this name."""
    try:
        value = json.loads(adapter_file(context, name, path))
    except (ApplianceError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _asked(one: dict[str, Any]) -> Asked:
    request = one["request"]
    return Asked(
        unit=request["unit"],
        requested_by=request["requested_by"],
        exposure=request["exposure"],
        purpose=request["purpose"],
        tier=one["tier"],
        until=one["until"],
        approvals=len(one["approvals"]),
        needed=one["needed"]["reviewers"],
        conditions=request["conditions"],
        missing=explain_reasons(tuple(one["missing"])),
        could_decide=tuple((field, name) for field, name in one["could_decide"]),
    )


def _review(context: Context, one: dict[str, Any]) -> ReviewRow:
    behalf = one["on_behalf_of"]
    return ReviewRow(
        entry=one["index"],
        time=one["time"],
        reviewer=one["reviewer"],
        field=one["field"],
        unit=one["unit"],
        decision=one["decision"],
        state=one["state"],
        against=one["against"],
        valid_until=one["valid_until"],
        again_by=one["again_by"],
        conditions=one["conditions"],
        meaning=_texts_of(context, one["index"]).get("meaning"),
        on_behalf_of=None if behalf is None else behalf["principal"],
    )


def _finding(context: Context, one: dict[str, Any]) -> FindingRow:
    kept = {name: one[name] for name in FindingRow.model_fields if name in one}
    texts = _texts_of(context, one["index"])
    return FindingRow(entry=one["index"], text=texts.get("finding"), remedy=texts.get("remedy"), **kept)


def _texts_of(context: Context, index: int) -> dict[str, str]:
    """The members of the entry's order by their labels; one whose text was erased says so."""
    content = context.ledger.documents_of(index).get("order")
    if content is None:
        return {}
    texts = {one["commitment"]: one["text"] for one in disclosed(context, [content])}
    return dict(read_order(content, texts)[1])


def _gates(verdict: dict[str, Any]) -> tuple[GateRow, ...]:
    rows = ({name: one.get(name) for name in GateRow.model_fields} for one in verdict.get("results", ()))
    return tuple(GateRow.model_validate(row) for row in rows)


def _data(packet: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    dataset = packet["dataset"] or {}
    facts = {name: value for name, value in dict(dataset.pop("facts", {})).items() if not isinstance(value, dict)}
    about = json.loads(base64.b64decode(packet[ABOUT_FILE])) if packet[ABOUT_FILE] else {}
    shown = {**{name: dataset[name] for name in ("name", "version", "licence", "classification", "root")}, **facts}
    lines = [(name.replace("_", " "), str(value)) for name, value in shown.items() if value is not None]
    return (*lines, *((f"what it teaches: {name}", json.dumps(value)) for name, value in about.items()))


def _history(context: Context, name: str) -> tuple[Happened, ...]:
    story = adapter_story(context, name)
    entries = [parse_entry(base64.b64decode(one["entry"])) for one in story["entries"]]
    return tuple(
        Happened(entry=one.index, time=one.time, type=one.type, actor=one.actor, outcome=one.outcome) for one in entries
    )


def _table(value: AdapterPage) -> Table:
    headers = tuple(name for name in ReviewRow.model_fields if name != "conditions")
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.reviews])


PAGE = Page("/adapters/{name}", "Adapter", PEOPLE, AdapterQuery, adapter, "reviewers/adapter.html", _table)
