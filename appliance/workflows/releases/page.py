"""The review page as the service computes it for the console: the value that a reviewer's client computes by itself."""

from __future__ import annotations

from collections.abc import Callable

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import versioned
from appliance.domain.core.order import Order
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.data.imports import ImportDataset
from appliance.domain.releases.emergencies import BreakGlass
from appliance.domain.releases.page.material import (
    COMPARED_FILES,
    DatasetFacts,
    PageMaterial,
    Released,
    SealedVersion,
    count_rows,
    is_page_file,
    materials_of,
)
from appliance.domain.releases.page.page import make_page
from appliance.domain.releases.page.privacy import list_trained_before
from appliance.domain.releases.page.rows import show_decision, show_finding, show_request
from appliance.domain.releases.page.tries import count_tries
from appliance.domain.releases.page.value import Asked, Found, ReviewPage, Run
from appliance.domain.releases.requests_for_release import RequestRelease
from appliance.domain.rulebook.registry import ORDERS
from appliance.errors import NotFound, Tampered
from appliance.formats.artifacts.manifest import parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope
from appliance.formats.signatures.statement import parse_statement
from appliance.workflows.core.context import Context
from appliance.workflows.data.teaching import read_teaching
from appliance.workflows.releases.counts import COUNTS
from appliance.workflows.releases.review import (
    adapter_row,
    find_adapter,
    list_answers,
    list_judged_before,
    list_released,
)


def review_page(context: Context, name: str) -> ReviewPage:
    """Of files whose digests are those of the manifest in the log."""
    state = context.ledger.state
    adapter = find_adapter(state, name)
    row = adapter_row(context, adapter)
    return make_page(
        PageMaterial(
            version=_version(context, adapter, is_page_file),
            revoked=adapter.revoked,
            quarantined=adapter.quarantined,
            answers=tuple(list_answers(state, name)),
            asked=tuple(_asked(context, one) for one in row["asked"]),
            findings=tuple(_found(context, one) for one in row["findings"]),
            decisions=tuple(map(show_decision, row["reviews"])),
            released=tuple(
                Released(units, entry, _version(context, find_adapter(state, other), COMPARED_FILES.__contains__))
                for other, entry, units in list_released(state, adapter)
            ),
            judged_before=tuple(Run.model_validate(one) for one in list_judged_before(state, adapter)),
            trained_before=list_trained_before(state, name),
            tried=count_tries(state, name),
        ),
        COUNTS,
    )


def _version(context: Context, adapter: Adapter, wanted: Callable[[str], bool]) -> SealedVersion:
    state, name = context.ledger.state, versioned(adapter.name, adapter.version)
    run, base = state.runs.get(adapter.run), state.bases.get(adapter.base)
    if run is None or base is None:
        raise NotFound(f"adapter {name}: expected its run and its base, got none")
    documents = context.ledger.documents_of(adapter.index)
    manifest = parse_manifest(documents["manifest"])
    provenance = parse_statement(parse_envelope(documents["provenance"]).payload)
    listed = {file.path: file.digest for file in manifest.files}
    files = {path: context.artifacts.read(adapter.manifest, path) for path in listed if wanted(path)}
    for path, data in files.items():
        if digest_bytes(data) != listed[path]:
            raise Tampered(f"adapter {name}, {path}: expected {listed[path]}, got {digest_bytes(data)}")
    return SealedVersion(
        name=name,
        manifest=manifest,
        digest=adapter.manifest,
        entry=adapter.index,
        sealed_at=parse_entry(context.ledger.entry_bytes(adapter.index)).time,
        run=run.id,
        run_entry=run.index,
        ordered_by=run.ordered_by,
        order=run.order,
        files=files,
        materials=materials_of(provenance),
        dataset=_dataset(context, adapter.dataset),
        base_licence=base.licence,
        base_entry=base.index,
    )


def _dataset(context: Context, name: str) -> DatasetFacts:
    state = context.ledger.state
    dataset = state.datasets.get(name)
    ordered = None if dataset is None else state.imports.get(dataset.order)
    if dataset is None or ordered is None:
        raise NotFound(f"dataset {name}: expected its import, got none")
    order, _, texts = _order(context, ordered.index)
    return DatasetFacts(
        name=name,
        digest=dataset.digest,
        entry=dataset.index,
        rows=count_rows(dataset.facts),
        teaching=read_teaching(context, dataset),
        owner=texts.get("owner") if isinstance(order, ImportDataset) else None,
        licence=dataset.licence,
        classification=dataset.classification,
        imported_by=dataset.imported_by,
    )


def _asked(context: Context, row: dict[str, object]) -> Asked:
    request = row["request"]
    assert isinstance(request, dict)
    order, digest, texts = _order(context, request["index"])
    if not isinstance(order, RequestRelease | BreakGlass):
        raise Tampered(f"entry {request['index']}: expected a release request, got {order.verb}")
    return show_request(order, digest, request["index"], texts, row)


def _found(context: Context, row: dict[str, object]) -> Found:
    index = row["index"]
    assert isinstance(index, int)
    _, _, texts = _order(context, index)
    return show_finding(row, texts)


def _order(context: Context, index: int) -> tuple[Order, str, dict[str, str]]:
    """The order that an entry holds, its digest, and its texts that still stand, by member."""
    documents = context.ledger.documents_of(index)
    envelope = parse_envelope(documents.get("endorsed", documents["order"]))
    order = ORDERS.parse(envelope.payload)
    bound = order.commitments()
    known = context.ledger.disclosures(list(bound.values()))
    return order, envelope.pae_digest, {name: known[one].text for name, one in bound.items() if one in known}
