"""The rules for Prometheus: one for each alarm of the registry, and those that only Prometheus can find."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from appliance.domain.queries.alarms import RULES, AlarmRule

ALERTS = Path(__file__).resolve().parents[1] / "packaging" / "monitoring" / "alerts.yml"


class Alert(NamedTuple):
    """A rule that compares counts over a time. `hold`: how long it must hold; "" for at once."""

    name: str
    expression: str
    hold: str
    severity: str
    summary: str
    action: str


COUNTED = (
    Alert(
        "ApplianceIsDown",
        'up{job="appliance"} == 0',
        "2m",
        "critical",
        "The appliance's metrics cannot be read.",
        "Look at /readyz, then type `appliance doctor` on its machine.",
    ),
    Alert(
        "ApplianceHasNoAlarms",
        'up{job="appliance"} == 1 unless on (instance) appliance_alarm',
        "5m",
        "critical",
        "The service responds without its alarms, so none of them can be seen.",
        "Compare the build with the version of these rules, then look at the service's log.",
    ),
    Alert(
        "ApplianceAdapterWasQuarantined",
        'increase(appliance_entries_total{type=~"(adapter|base)[.]quarantined"}[1h]) > 0',
        "",
        "critical",
        "A sealed folder changed on disk and was taken out of service.",
        "Type `appliance ledger log --type adapter.quarantined`, then find out who wrote there.",
    ),
    Alert(
        "ApplianceAdmissionRefused",
        'increase(appliance_loads_total{what="refused"}[1h]) > 0',
        "",
        "warning",
        "{{ $labels.unit }}/{{ $labels.served_model }}: {{ $labels.adapter }} was refused at its load.",
        "Its approval ended, or its files changed. Type `appliance ledger log --type admission.refused`.",
    ),
    Alert(
        "ApplianceModelDoesNotRespond",
        "appliance_slots == 0",
        "10m",
        "critical",
        "{{ $labels.unit }}/{{ $labels.served_model }} has been loading for 10 minutes.",
        "Look at the engine's log in HOME/logs.",
    ),
    Alert(
        "ApplianceResponsesFail",
        'sum by (unit) (rate(appliance_requests_total{outcome!="success"}[10m])) > '
        "0.05 * sum by (unit) (rate(appliance_requests_total[10m]))",
        "10m",
        "warning",
        "More than one response in twenty to {{ $labels.unit }} fails or is cut short.",
        "Look at the engine's log and at the machine's memory.",
    ),
    Alert(
        "ApplianceFirstTokenIsSlow",
        "histogram_quantile(0.95, sum by (le, unit) (rate(appliance_first_token_seconds_bucket[10m]))) > 10",
        "15m",
        "warning",
        "One request in twenty of {{ $labels.unit }} waits more than 10 s for its first token.",
        "Look at appliance_requests_running, and at the limits of the units.",
    ),
    Alert(
        "ApplianceManyInvalidTokens",
        'increase(appliance_refusals_total{code="not-authenticated"}[10m]) > 100',
        "",
        "warning",
        "More than 100 requests without a valid token in 10 minutes.",
        "A unit's token may have expired, or somebody tries tokens. The refusals are entries of the ledger.",
    ),
    Alert(
        "ApplianceRunFailed",
        'increase(appliance_entries_total{type="run.failed"}[1h]) > 0',
        "",
        "warning",
        "A training run failed.",
        "Type `appliance run list`, then `appliance run resume` once its cause is gone.",
    ),
    Alert(
        "ApplianceQueueGrows",
        "min_over_time(appliance_runs_queued[6h]) > 10",
        "",
        "warning",
        "More than ten runs have waited for six hours.",
        "Look at `appliance run list`; add a machine, or let fewer runs be ordered.",
    ),
)
"""The rules that compare counts over a time."""

_HOLD = "1m"
"""Time for which an alarm of the service must be on: two scrapes, so that a short one notifies nobody."""


def name_alert(rule: AlarmRule) -> str:
    """Return the name of an alarm's rule, such as `ApplianceDiskFull`."""
    return "Appliance" + "".join(word.capitalize() for word in rule.code.split("-"))


def list_alerts() -> tuple[Alert, ...]:
    """Return all rules: those of the alarms first."""
    alarms = (
        Alert(
            name_alert(rule),
            f'appliance_alarm{{code="{rule.code}"}} == 1',
            _HOLD,
            rule.severity,
            rule.meaning,
            rule.action,
        )
        for rule in RULES
    )
    return (*alarms, *COUNTED)


def render_alerts() -> str:
    """Return the file of rules."""
    lines = [
        "# Rules for Prometheus, written by scripts/reference. `job` is the name of the scrape job in prometheus.yml.",
        "groups:",
        "  - name: appliance",
        "    rules:",
    ]
    for alert in list_alerts():
        lines += [f"      - alert: {alert.name}", f"        expr: {_quote(alert.expression)}"]
        lines += [f"        for: {alert.hold}"] if alert.hold else []
        lines += [
            f"        labels: {{severity: {alert.severity}}}",
            "        annotations:",
            f"          summary: {_quote(alert.summary)}",
            f"          action: {_quote(alert.action)}",
        ]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
