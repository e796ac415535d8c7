"""Everything that a service needs, looked at once, from the machine to the certificates."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime

from appliance.domain.core.policy import Parameters
from appliance.workflows.operations.findings import Finding
from appliance.workflows.operations.installation import (
    Installation,
    check_certificates,
    check_database,
    check_home,
    check_keys_together,
    check_listeners,
)
from appliance.workflows.operations.machine import check_machine


def diagnose(place: Installation, environment: Mapping[str, str], now: datetime) -> Iterator[Finding]:
    """Each finding once it is made: a sandbox and a database take a moment."""
    runs = "none runs" if place.pid is None else f"runs, process {place.pid}"
    yield Finding("service", "ok", runs, "one, or none")
    parameters: Parameters | None = None
    yield from check_home(place)
    if (place.home / "trust.json").exists() and place.home.stat().st_uid == os.geteuid():
        yield from check_keys_together(place.keys)
        findings, parameters = check_database(place, now)
        yield from findings
    elif place.home.is_dir():
        yield Finding("ledger", "warn", "none yet", "an appliance", "make one with: appliance init")
    accepted = () if parameters is None else parameters.accepted_missing_layers
    yield from check_machine(place.home, accepted, environment)
    yield from check_listeners(place)
    yield from check_certificates(place.certificates, now, place.unfit)
