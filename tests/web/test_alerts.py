"""Prometheus' own promtool checks the alert rules, and each rule fires for its condition and for no other value."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.queries.alarms import RULES
from scripts.references.alerts import ALERTS, COUNTED, name_alert

pytestmark = pytest.mark.outside
PLACE = 'instance="a:8332", job="appliance"'
UNIT = f'{PLACE}, unit="legal"'
MODEL = f'{UNIT}, served_model="labels", adapter="clauses@1"'
# For each counted rule: series in which it holds, series in which it does not, and the labels of its alert.
CASES: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str]]] = {
    "ApplianceIsDown": ({f"up{{{PLACE}}}": "0x400"}, {f"up{{{PLACE}}}": "1x400"}, {}),
    "ApplianceHasNoAlarms": (
        {f"up{{{PLACE}}}": "1x400"},
        {f"up{{{PLACE}}}": "1x400", f'appliance_alarm{{{PLACE}, code="disk-full"}}': "0x400"},
        {},
    ),
    "ApplianceAdapterWasQuarantined": (
        {f'appliance_entries_total{{{PLACE}, type="base.quarantined"}}': "0x380 1x20"},
        {f'appliance_entries_total{{{PLACE}, type="base.imported"}}': "0x380 1x20"},
        {"type": "base.quarantined"},
    ),
    "ApplianceAdmissionRefused": (
        {f'appliance_loads_total{{{MODEL}, what="refused"}}': "0x380 1x20"},
        {f'appliance_loads_total{{{MODEL}, what="loaded"}}': "0x380 1x20"},
        {"unit": "legal", "served_model": "labels", "adapter": "clauses@1", "what": "refused"},
    ),
    "ApplianceModelDoesNotRespond": (
        {f"appliance_slots{{{MODEL}}}": "0x400"},
        {f"appliance_slots{{{MODEL}}}": "1x400"},
        {"unit": "legal", "served_model": "labels", "adapter": "clauses@1"},
    ),
    "ApplianceResponsesFail": (
        {
            f'appliance_requests_total{{{UNIT}, outcome="failure"}}': "0+10x400",
            f'appliance_requests_total{{{UNIT}, outcome="success"}}': "0+90x400",
        },
        {
            f'appliance_requests_total{{{UNIT}, outcome="failure"}}': "0+4x400",
            f'appliance_requests_total{{{UNIT}, outcome="success"}}': "0+96x400",
        },
        {"unit": "legal"},
    ),
    "ApplianceFirstTokenIsSlow": (
        {
            f'appliance_first_token_seconds_bucket{{{UNIT}, le="10"}}': "0+1x400",
            f'appliance_first_token_seconds_bucket{{{UNIT}, le="30"}}': "0+9x400",
            f'appliance_first_token_seconds_bucket{{{UNIT}, le="+Inf"}}': "0+9x400",
        },
        {
            f'appliance_first_token_seconds_bucket{{{UNIT}, le="10"}}': "0+9x400",
            f'appliance_first_token_seconds_bucket{{{UNIT}, le="+Inf"}}': "0+9x400",
        },
        {"unit": "legal"},
    ),
    "ApplianceManyInvalidTokens": (
        {f'appliance_refusals_total{{{PLACE}, unit="", code="not-authenticated"}}': "0+20x400"},
        {f'appliance_refusals_total{{{PLACE}, unit="", code="not-authenticated"}}': "0+5x400"},
        {"code": "not-authenticated"},
    ),
    "ApplianceRunFailed": (
        {f'appliance_entries_total{{{PLACE}, type="run.failed"}}': "0x380 1x20"},
        {f'appliance_entries_total{{{PLACE}, type="run.finished"}}': "0x380 1x20"},
        {"type": "run.failed"},
    ),
    "ApplianceQueueGrows": (
        {f"appliance_runs_queued{{{PLACE}}}": "11x400"},
        {f"appliance_runs_queued{{{PLACE}}}": "11x300 10x100"},
        {},
    ),
}


def promtool(*words: str) -> str:
    found = shutil.which("promtool")
    assert found is not None, "install Debian's prometheus, which has promtool"
    ended = subprocess.run([found, *words], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def case(name: str, series: dict[str, str], alerts: list[dict[str, Any]], at: str) -> dict[str, Any]:
    return {
        "name": f"{name} at {at}",
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": alerts}],
    }


def fill(text: str, labels: dict[str, str]) -> str:
    for label, value in labels.items():
        text = text.replace(f"{{{{ $labels.{label} }}}}", value)
    return text


def alarm_cases() -> Iterator[dict[str, Any]]:
    for rule in RULES:
        labels = {"code": rule.code, "instance": "a:8332", "job": "appliance", "severity": rule.severity}
        alert = {"exp_labels": labels, "exp_annotations": {"summary": rule.meaning, "action": rule.action}}
        series = {f'appliance_alarm{{{PLACE}, code="{rule.code}"}}': "0 0 1 1 1 0 0"}
        others = {f'appliance_alarm{{{PLACE}, code="{one.code}"}}': "1x9" for one in RULES if one is not rule}
        for at, expected in (("1m", []), ("2m", []), ("3m", [alert]), ("5m", [])):
            yield case(name_alert(rule), series | others, expected, at)


def counted_cases() -> Iterator[dict[str, Any]]:
    assert CASES.keys() == {alert.name for alert in COUNTED}
    for alert in COUNTED:
        holds, fails, own = CASES[alert.name]
        place = {} if "sum by" in alert.expression else {"instance": "a:8332", "job": "appliance"}
        labels = place | own | {"severity": alert.severity}
        annotations = {"summary": fill(alert.summary, own), "action": alert.action}
        yield case(alert.name, holds, [{"exp_labels": labels, "exp_annotations": annotations}], "390m")
        yield case(alert.name, fails, [], "390m")


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(RULES) + len(COUNTED)} rules found" in promtool("check", "rules", str(ALERTS))


def test_each_alert_fires_for_its_condition_only(tmp_path: Path) -> None:
    tests = [*alarm_cases(), *counted_cases()]
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))
