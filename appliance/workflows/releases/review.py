"""What a reviewer's client fetches, to hash and judge by itself before it signs."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.records import Adapter
from appliance.domain.core.state import State
from appliance.errors import NotFound
from appliance.formats.core.fields import encode_base64
from appliance.workflows.core.context import Context


def find_adapter(state: State, name: str) -> Adapter:
    adapter = state.adapters.get(name)
    if adapter is None:
        raise NotFound(f"adapter: expected a sealed one, got {name!r}")
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
    return {
        "adapter": adapter.model_dump(mode="json"),
        "run": run.model_dump(mode="json"),
        "base": None if base is None else base.model_dump(mode="json"),
        "dataset": None if dataset is None else dataset.model_dump(mode="json"),
        "entry": encode_base64(context.ledger.entry_bytes(adapter.index)),
        "order": encode_base64(context.ledger.documents_of(run.index)["order"]),
        **{role: encode_base64(documents[role]) for role in ("manifest", "signature", "provenance")},
    }


def adapter_file(context: Context, name: str, path: str) -> bytes:
    """One file of the sealed folder, whatever its bytes are now: the client compares."""
    adapter = find_adapter(context.ledger.state, name)
    return context.artifacts.read(adapter.manifest, path)
