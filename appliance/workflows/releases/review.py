"""What a reviewer's client fetches, to hash and judge by itself before it signs; and what each review counts for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from appliance.domain.core.decisions import ReviewRecord
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.state import State
from appliance.domain.core.words import unknown_word
from appliance.domain.data.teaching import ABOUT_FILE
from appliance.domain.evaluation.basis import list_judged
from appliance.domain.releases.approval import could_decide, counted, inadmissible, review_standing
from appliance.domain.releases.blocking import is_open
from appliance.domain.releases.page.privacy import list_trained_before
from appliance.domain.releases.page.tries import count_tries
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.domain.releases.tiers import current_request, needed, reattested_by, reviewed_until, tier_of
from appliance.errors import NotFound
from appliance.formats.core.fields import encode_base64
from appliance.workflows.core.context import Context
from appliance.workflows.data.teaching import read_about


def find_adapter(state: State, name: str) -> Adapter:
    adapter = state.adapters.get(name)
    if adapter is None:
        known = [key for key, _ in state.adapters.items()]
        raise NotFound(unknown_word("adapter", name, known, "a sealed one"))
    return adapter


def review_packet(context: Context, name: str) -> dict[str, Any]:
    """The adapter's row and every document that its approval would bind, as bytes."""
    state = context.ledger.state
    adapter = find_adapter(state, name)
    run = state.runs.get(adapter.run)
    if run is None:
        raise NotFound(f"run: expected {adapter.run}, got none")
    documents = context.ledger.documents_of(adapter.index)
    base, dataset = state.bases.get(run.base), state.datasets.get(run.dataset)
    imported = None if dataset is None else state.imports.get(dataset.order)
    base_import = None if base is None else state.imports.get(base.order)
    return {
        "adapter": adapter_row(context, adapter),
        "answers": list_answers(state, name),
        "released": [
            {"adapter": other, "entry": entry, "units": units} for other, entry, units in list_released(state, adapter)
        ],
        "judged_before": list_judged_before(state, adapter),
        "trained_before": list_trained_before(state, name).model_dump(mode="json"),
        "tried": count_tries(state, name).model_dump(mode="json"),
        "run": run.model_dump(mode="json"),
        "base": None if base is None else base.model_dump(mode="json"),
        "base_import": None if base_import is None else base_import.model_dump(mode="json"),
        "dataset": None if dataset is None else dataset.model_dump(mode="json"),
        "import": None if imported is None else imported.model_dump(mode="json"),
        ABOUT_FILE: None if dataset is None else encode_base64(read_about(context, dataset)),
        "entry": encode_base64(context.ledger.entry_bytes(adapter.index)),
        "order": encode_base64(context.ledger.documents_of(run.index)["order"]),
        **{role: encode_base64(documents[role]) for role in ("manifest", "signature", "provenance")},
    }


def list_answers(state: State, name: str) -> list[str]:
    """UNIT/TASK of each release that has this version answer now."""
    return sorted(key for key, release in state.releases.items() if release.current.adapter == name)


def list_released(state: State, adapter: Adapter) -> list[tuple[str, int, tuple[str, ...]]]:
    """Other versions of the adapter that answer units now: name, entry of the last release, and the units.

    A unit to which several are released has the one that was released last.
    """
    last: dict[str, tuple[int, str]] = {}
    for release in state.releases.values():
        found = state.adapters.get(release.current.adapter)
        if found is not None and found.name == adapter.name and found.index != adapter.index:
            last[release.unit] = max(last.get(release.unit, (0, "")), (release.current.index, release.current.adapter))
    versions = sorted({name for _, name in last.values()})
    return [
        (
            name,
            max(entry for entry, other in last.values() if other == name),
            tuple(sorted(unit for unit, (_, other) in last.items() if other == name)),
        )
        for name in versions
    ]


def list_judged_before(state: State, adapter: Adapter) -> list[dict[str, Any]]:
    """The runs that were judged on its rows before it, the last one first."""
    earlier = [one for one in list_judged(state, adapter.dataset) if one.index < adapter.index]
    return [
        {"run": one.run, "adapter": one.adapter, "entry": one.index, "passed": one.passed}
        for one in sorted(earlier, key=lambda one: one.index, reverse=True)
    ]


def adapter_file(context: Context, name: str, path: str) -> bytes:
    """One file of the sealed folder, whatever its bytes are now: the client compares."""
    adapter = find_adapter(context.ledger.state, name)
    return context.artifacts.read(adapter.manifest, path)


def adapter_row(context: Context, adapter: Adapter) -> dict[str, Any]:
    """The adapter's row; each of its reviews with its state, each finding with whether it is open, and what is asked
    of whom for each unit."""
    state = context.ledger.state
    return {
        **adapter.model_dump(mode="json"),
        "reviews": _reviews(context, adapter),
        "findings": [{**one.model_dump(mode="json"), "open": is_open(state, one)} for one in adapter.findings],
        "asked": [
            _asked(state, adapter, unit, context.now(state))
            for unit in sorted({request.unit for request in adapter.requests})
            if current_request(state, adapter, unit) is not None
        ],
    }


def _asked(state: State, adapter: Adapter, unit: str, now: Time) -> dict[str, Any]:
    """The request in force for the unit, its tier by the policy in force, and what keeps the adapter from it."""
    request = current_request(state, adapter, unit)
    if request is None:
        raise NotFound(f"request: expected a standing one for {unit}, got none")
    tier = tier_of(state.parameters, request)
    return {
        "request": request.model_dump(mode="json"),
        "tier": None if tier is None else tier.name,
        "needed": asdict(needed(state.parameters, tier)),
        "approvals": [review.index for review in counted(state, adapter, unit, now)],
        "missing": inadmissible(state, adapter, unit, now),
        "could_decide": [list(pair) for pair in could_decide(state, adapter, unit, now)],
        "until": reviewed_until(state.parameters, request),
    }


def _reviews(context: Context, adapter: Adapter) -> list[dict[str, Any]]:
    state = context.ledger.state
    now = context.now(state)
    return [_review(state, adapter, review, now) for review in adapter.reviews]


def _review(state: State, adapter: Adapter, review: ReviewRecord, now: Time) -> dict[str, Any]:
    return {
        **asdict(review),
        "conditions": None if review.conditions is None else review.conditions.model_dump(mode="json"),
        "again_by": reattested_by(state, adapter, review),
        **asdict(review_standing(state, adapter, review, now)),
    }


def reviews_among(context: Context, entries: Iterable[tuple[int, bytes]]) -> dict[int, dict[str, Any]]:
    """By entry, the reviews among these entries; no other entry is parsed."""
    state, marked = context.ledger.state, f'"type":"{ReviewRecorded.type}"'.encode()
    now = context.now(state)
    adapters = ((index, _adapter_of(state, data)) for index, data in entries if marked in data)
    return {
        index: _review(state, adapter, review, now)
        for index, adapter in adapters
        if adapter is not None
        for review in adapter.reviews
        if review.index == index
    }


def _adapter_of(state: State, data: bytes) -> Adapter | None:
    names = (subject.removeprefix("adapter:") for subject in parse_entry(data).subjects if subject[:8] == "adapter:")
    return next((adapter for name in names if (adapter := state.adapters.get(name)) is not None), None)
