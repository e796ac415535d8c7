"""What the service says of itself on one screen: what runs, what waits, and for whom."""

from __future__ import annotations

import os
from typing import Any

from appliance.domain.core.names import Time
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.roles import is_unit
from appliance.domain.core.state import State
from appliance.domain.governance.endorsement import waiting_orders
from appliance.domain.releases.approval import counted, inadmissible, latest_reviews
from appliance.domain.releases.tiers import current_request, needed, tier_of
from appliance.domain.runs.authorisation import could_authorise
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import claimed_size
from appliance.workflows.core.context import Context
from appliance.workflows.lifecycle import watch
from appliance.workflows.queries.people import shown_orders


def status(context: Context) -> dict[str, Any]:
    """As of the log's last entry. Nothing in it is a secret or a text of a person or a request."""
    with context.ledger.lock:
        state = context.ledger.state
        now = context.now(state)
        return {
            **work(context),
            "log": {
                "origin": state.site.origin,
                "size": state.size,
                "last_entry": state.last_time,
                "checkpoint": claimed_size(context.ledger.checkpoint()),
            },
            "witnesses": _witnesses(state, now),
            "authorisations": _unauthorised(state),
            "orders": shown_orders(waiting_orders(state, now)),
            "reviews": [_review(state, adapter, now) for adapter in _unreviewed(state, now)],
            "releases": _unreleased(state, now),
        }


def work(context: Context) -> dict[str, Any]:
    """What the service does now, without what waits for people."""
    with context.ledger.lock:
        state = context.ledger.state
        return {
            "service": _service(context),
            "database": context.ledger.dialect,
            "processes": _processes(context),
            "jobs": [*_imports(state), *_runs(context, state), *_replays(state)],
            "engine": _engine(context, state),
        }


def _service(context: Context) -> dict[str, Any]:
    """`warnings`: what is near its end, such as the disk; `ready`: whether the ledger holds all that it should."""
    return {
        "version": context.code.version,
        "pid": os.getpid(),
        "since": context.began,
        "ready": not (context.missing_from_log or context.stalled or context.closing.is_set()),
        "warnings": watch.warnings(context, context.logs),
    }


def _processes(context: Context) -> list[dict[str, Any]]:
    """Those that serve this log, where they have names; `contact_s`: how old the last sign of life is."""
    processes = context.processes
    return [
        {
            "name": member.name,
            "roles": list(member.about.roles),
            "host": member.about.host,
            "pid": member.about.pid,
            "since": member.about.since,
            "epoch": member.epoch,
            "contact_s": max(0, processes.server_ms - member.seen) // 1000,
            "this": member.name == processes.name,
        }
        for member in processes.members
        if member.name
    ]


def _witnesses(state: State, now: Time) -> list[dict[str, Any]]:
    """Those of the policy in force, also the ones that have not cosigned anything yet."""
    seen = {witness.vkey: witness for witness in state.witnesses.values()}
    found = []
    for vkey in state.parameters.witnesses:
        witness = seen.get(vkey)
        age = None if witness is None else seconds_between(witness.time, now)
        found.append(
            {
                "name": vkey.partition("+")[0],
                "size": None if witness is None else witness.size,
                "time": None if witness is None else witness.time,
                "age_s": age,
                "counts": age is not None and age <= state.parameters.witness_lifetime_s,
            }
        )
    return found


def seconds_between(earlier: Time, later: Time) -> int:
    return round((parse_time(later) - parse_time(earlier)).total_seconds())


def _imports(state: State) -> list[dict[str, Any]]:
    """Two at once at most: the first of the bases and the first of the datasets are under way."""
    going: set[str] = set()
    found = []
    for record in state.imports.values():
        if record.status == "requested":
            first = record.verb not in going
            going.add(record.verb)
            found.append(_job(record.verb, record.subject, "running" if first else "queued"))
    return found


def _runs(context: Context, state: State) -> list[dict[str, Any]]:
    waiting = sorted(
        (run for run in state.runs.values() if run.status in UNDER_WAY and run.status != "waiting"),
        key=lambda run: (run.status == "queued", run.queued),
    )
    return [
        _job("run", run.id, "queued" if run.status == "queued" else "running", _step_of(context, run.id))
        for run in waiting
    ]


def _unauthorised(state: State) -> list[dict[str, Any]]:
    """Runs that wait for a second person, and for whom."""
    return [
        {
            "run": run.id,
            "tier": run.tier,
            "ordered_by": run.ordered_by,
            "could_authorise": list(could_authorise(state, run)),
        }
        for run in state.runs.values()
        if run.status == "waiting"
    ]


def _step_of(context: Context, run: str) -> str | None:
    """`step 12 of 80`, while the run trains."""
    for frame in reversed(list(context.progress.read(run).frames)):
        if frame.get("frame") == "step":
            return f"step {frame['step']} of {frame['steps']}"
    return None


def _replays(state: State) -> list[dict[str, Any]]:
    return [
        _job("replay", replay.run, "queued", f"steps {replay.from_step} to {replay.to_step}")
        for replay in state.replays.values()
        if replay.status == "requested"
    ]


def _job(kind: str, name: str, status: str, far: str | None = None) -> dict[str, Any]:
    return {"kind": kind, "name": name, "status": status, "progress": far}


def _engine(context: Context, state: State) -> dict[str, Any]:
    slots = list(state.slots.values())
    return {
        "device": context.host,
        "workers": len(context.workers),
        "slots": len(slots),
        "loaded": sum(slot.loaded is not None for slot in slots),
        "requests": len(list(state.requests.values())),
    }


def _unreviewed(state: State, now: Time) -> list[Adapter]:
    """Sealed adapters that have enough approvals for no unit, and no rejection."""
    return [
        adapter
        for adapter in state.adapters.values()
        if adapter.revoked is None
        and adapter.quarantined is None
        and (found := _most_approvals(state, adapter, now))[1] < _needed(state, adapter, found[0])
        and not any(
            review.decision == "reject" for unit in _units(adapter) for review in latest_reviews(state, adapter, unit)
        )
    ]


def _unreleased(state: State, now: Time) -> list[dict[str, Any]]:
    """Approved adapters that no release of the unit ever named, and who could release them."""
    named = {(release.unit, past.adapter) for release in state.releases.values() for past in release.history}
    waiting = [
        (f"{adapter.name}@{adapter.version}", unit)
        for adapter in state.adapters.values()
        for unit in _units(adapter)
        if (unit, f"{adapter.name}@{adapter.version}") not in named
        and not inadmissible(state, adapter, unit, now)
        and is_unit(state, unit)
    ]
    owners = {
        unit: sorted(p.name for p in state.principals.values() if p.has(f"release-owner:{unit}"))
        for unit in {unit for _, unit in waiting}
    }
    return [{"adapter": adapter, "unit": unit, "owners": owners[unit]} for adapter, unit in waiting]


def _units(adapter: Adapter) -> list[str]:
    return sorted({review.unit for review in adapter.reviews} | {request.unit for request in adapter.requests})


def _most_approvals(state: State, adapter: Adapter, now: Time) -> tuple[str | None, int]:
    """The unit that has most of the approvals, and how many stand."""
    found = [(len(counted(state, adapter, unit, now)), unit) for unit in _units(adapter)]
    approvals, unit = max(found, default=(0, None))
    return unit, approvals


def _needed(state: State, adapter: Adapter, unit: str | None) -> int:
    """How many approvals, by policy and the tier of the unit's request."""
    request = None if unit is None else current_request(state, adapter, unit)
    return needed(state.parameters, None if request is None else tier_of(state.parameters, request)).reviewers


def _review(state: State, adapter: Adapter, now: Time) -> dict[str, Any]:
    unit, approvals = _most_approvals(state, adapter, now)
    return {
        "adapter": f"{adapter.name}@{adapter.version}",
        "unit": unit,
        "approvals": approvals,
        "needed": _needed(state, adapter, unit),
    }
