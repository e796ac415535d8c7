"""The dashboard and the alert rules name metrics, labels and entries that exist, and show every metric."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from appliance.domain.actions.registry import EVENTS
from appliance.domain.queries.alarms import CODES, RULES
from appliance.domain.queries.measures import BackupAges, DiskSpace, Expiry, Growth, Measures, WitnessAge
from appliance.web.operations.metrics import Metrics
from appliance.workflows.core.context import Code, Context, DatabaseMeasures
from scripts.references.alerts import ALERTS, list_alerts, name_alert, render_alerts

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "packaging" / "monitoring"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations" / "monitoring.md"
_NAME = re.compile(r"\b(?:appliance|process)_[a-z_]+")
_SELECTOR = re.compile(r"\b((?:appliance|process)_[a-z_]+)\{([^}]*)\}")
_OF_SCRAPES = {"job", "instance"}
"""Labels that Prometheus adds."""
_MATCHER = re.compile(r'([a-z]+)(=~|!~|!=|=)"([^"]*)"')
_VALUES = {
    "outcome": {"success", "failure", "interrupted", "denied"},
    "what": {"loaded", "unloaded", "refused"},
    "kind": {"prompt", "completion"},
    "code": {*CODES, "not-authenticated"},
}


def expressions() -> Iterator[str]:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    yield from (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    yield from (rule["expr"] for group in rules["groups"] for rule in group["rules"])


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """Of every sample that /metrics can have, the labels."""
    slot = SimpleNamespace(unit="u", served_model="t", adapter="a@1", loaded=None)
    state = SimpleNamespace(slots={"s": slot}, requests={}, runs={}, size=1)
    ledger = SimpleNamespace(state=state, snapshot_age_s=1.0)
    measured = Measures(
        now="2026-11-24T12:00:00.000Z",
        disk=DiskSpace("/", 3, 2, 1),
        certificates=(Expiry("chain.pem", "2027-01-01T00:00:00.000Z"),),
        last_entry="2026-11-24T12:00:00.000Z",
        contact_age_s=1.0,
        witnesses=(WitnessAge("w", 1),),
        growth=Growth(1, 1, True),
        backups=BackupAges("/backups", 2, 90, newest="2026-11-24T12:00:00.000Z"),
    )
    patch = pytest.MonkeyPatch()
    patch.setattr("appliance.web.operations.metrics.measure", lambda context: measured)
    values = {"missing_from_log": (), "database_measures": DatabaseMeasures(bytes=1), "code": Code("1", "", {})}
    context = cast(Context, SimpleNamespace(ledger=ledger, **values))
    metrics = Metrics(context, cast(Any, SimpleNamespace(running_by_unit=lambda: {"u": 1})))
    place = ("u", "t", "a@1")
    metrics.requests.labels(*place, "success").inc()
    metrics.tokens.labels(*place, "prompt").inc()
    metrics.cached.labels(*place).inc()
    metrics.seconds.labels(*place).observe(1)
    metrics.first.labels(*place).observe(1)
    metrics.refusals.labels("u", "code").inc()
    metrics.loads.labels(*place, "loaded").inc()
    metrics.entries.labels("heartbeat", "success").inc()
    found = {}
    for family in text_string_to_metric_families(metrics.encode().decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found[sample.name] = set(sample.labels)
    patch.undo()
    return found


def test_every_metric_that_is_asked_for_exists_with_these_labels(labels: dict[str, set[str]]) -> None:
    for text in expressions():
        assert set(_NAME.findall(text)) <= set(labels), text
        for name, selector in _SELECTOR.findall(text):
            assert {label for label, _, _ in _MATCHER.findall(selector)} <= labels[name] | _OF_SCRAPES, text
        for group in re.findall(r"by \(([^)]*)\)", text):
            (name,) = set(_NAME.findall(text))
            assert set(group.split(", ")) <= labels[name], text


def test_every_value_that_is_asked_for_can_occur() -> None:
    for text in expressions():
        for _, selector in _SELECTOR.findall(text):
            for label, how, value in _MATCHER.findall(selector):
                if value == "$unit":
                    continue
                known = set(EVENTS) if label == "type" else _VALUES.get(label, {value})
                matched = {one for one in known if (re.fullmatch(value, one) if "~" in how else one == value)}
                assert matched, f"{text}: no {label} is {value}"


def test_the_dashboard_shows_every_metric_and_the_page_lists_it(labels: dict[str, set[str]]) -> None:
    shown = {re.sub("_bucket$", "", name) for text in expressions() for name in _NAME.findall(text)}
    counted = {re.sub("_(bucket|count|sum)$", "", name) for name in labels}
    assert counted <= shown, counted - shown
    listed = set(re.findall(r"^\| `((?:appliance|process)_[a-z_]+)`", PAGE.read_text(), re.MULTILINE))
    assert counted == listed


def test_every_panel_has_its_place_and_every_alert_says_what_to_do() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places)) and len({panel["id"] for panel in panels}) == len(panels)
    assert all(0 <= x < 24 for x, _ in places)
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule
        assert rule["annotations"]["summary"] and rule["annotations"]["action"], rule


def test_the_rules_are_those_of_the_alarms() -> None:
    assert ALERTS.read_text(encoding="utf-8") == render_alerts(), "expected what scripts/reference writes"
    names = [alert.name for alert in list_alerts()]
    assert {name_alert(rule) for rule in RULES} <= set(names) and len(names) == len(set(names))
