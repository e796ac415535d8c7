"""What a dataset teaches, read from where it is sealed: labels from its folder, the instruction from the ledger's
texts, where it is as long as nobody has erased it."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.domain.core.names import versioned
from appliance.domain.core.records.data import BoundSet, Dataset, ValidationSet
from appliance.domain.data.teaching import ABOUT_FILE, Teaching, parse_about
from appliance.errors import Denied, Tampered
from appliance.formats.artifacts.manifest import parse_manifest
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.workflows.core.context import Context

_MAX_ABOUT_BYTES = 4_000_000


def read_teaching(context: Context, dataset: Dataset) -> Teaching:
    """Tampered where the folder's file is not the one that the dataset's manifest lists."""
    found = disclosed_instruction(context, dataset.instruction)
    return Teaching(parse_about(read_about(context, dataset)), None if found is None else found.text)


def read_about(context: Context, dataset: Dataset | ValidationSet) -> bytes:
    """The bytes of the folder's dataset.json, compared with the manifest that the dataset's entry binds."""
    data = context.artifacts.read(dataset.digest, ABOUT_FILE, _MAX_ABOUT_BYTES)
    manifest = parse_manifest(context.ledger.documents_of(dataset.index)["manifest"])
    expected = next((file.digest for file in manifest.files if file.path == ABOUT_FILE), "none in its manifest")
    if (got := digest_bytes(data)) != expected:
        name = versioned(dataset.name, dataset.version)
        raise Tampered(f"{name}, {ABOUT_FILE}: expected {expected}, got {got}")
    return data


def check_labels(context: Context, name: str, sets: Iterable[BoundSet]) -> None:
    """Denied where a validation set has a label that the dataset of this name does not: no answer could be right. Only
    how many there are is said: the set may be blind."""
    state = context.ledger.state
    dataset = state.datasets.get(name)
    known = set() if dataset is None else set(parse_about(read_about(context, dataset)).labels)
    for bound in sets:
        found = state.validation_sets.get(bound.validation_set)
        if found is None:
            continue  # the rules say so
        others = set(parse_about(read_about(context, found)).labels) - known
        if others:
            said = f"expected labels of the dataset {name} alone, got {len(others)} others"
            raise Denied(f"validation set {bound.validation_set}: {said}")


def disclosed_instruction(context: Context, commitment: str) -> Disclosure | None:
    """Asked of the database each time, so that an erasure holds from its entry on; None once it is erased."""
    return context.ledger.disclosures([commitment]).get(commitment)
