"""Bench of an activation while no engine runs: from its order to the first answer of the adapter."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from appliance.domain.releases.activations import Activate
from scripts.benches.measure import Row, row
from scripts.benches.serving_client import UnitsClient, find_text
from scripts.benches.serving_home import OWNER, UNITS
from scripts.kit.appliance import Appliance

COLD = "cold"
"""The adapter's name and the unit's served model: each version of it is approved, and activated once."""


def measure(site: Appliance, count: int, *, at_most_s: float) -> Iterator[Row]:
    """Activate each of `count` versions, and yield the row. The service is started for each, so no engine runs."""
    found = [_activate(site, version) for version in range(1, count + 1)]
    if found:
        name = "from an activation to the first answer, no engine running, through the service"
        yield row(name, median(found), "s", at_most=at_most_s)


def _activate(site: Appliance, version: int) -> float:
    """Return the seconds from sending the order to the first text of a request that is sent right after it."""
    site.start()
    try:
        client, unit = UnitsClient(site), UNITS[0]
        terms = {"adds_instruction": False, **site.on(f"{COLD}@{version}"), **site.terms(OWNER)}
        envelope = site.sign(Activate(unit=unit, served_model=COLD, **terms))
        began = time.perf_counter()
        site.send(envelope)
        next(event for event in client.stream_events(unit, 4, served_model=COLD) if find_text(event))
        return time.perf_counter() - began
    finally:
        site.stop()
