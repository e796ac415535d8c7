"""The review page of an adapter, computed from entries of the log, sealed files and the present state.

The reviewer's client and the service use the same function with a `PageSource` of their own, so both get the same page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal as Number
from fractions import Fraction
from typing import Any, Protocol

from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.core.case import RecordedEntry
from appliance.domain.core.entry import Entry
from appliance.domain.core.names import parse_value, versioned
from appliance.domain.core.order import Order
from appliance.domain.data.imports import RELEASED_ENDING, ImportBase, ImportDataset
from appliance.domain.data.kinds import ABOUT_FILE, InstructedDataset, example_request, parse_about
from appliance.domain.evaluation.confusion import Confusion, count_confusions
from appliance.domain.evaluation.gates import HELD_OUT, parse_gates
from appliance.domain.evaluation.items import ITEMS_FILE, parse_items
from appliance.domain.evaluation.quality import list_measures, list_warnings
from appliance.domain.evaluation.rules import CALIBRATION_FILE, GATES_FILE, VERDICT_FILE
from appliance.domain.evaluation.verdict import CalibrationFile, check_conclusion, correction_factor, parse_verdict
from appliance.domain.queries.review.changes import (
    METRICS_FILE,
    ORIGIN_FILE,
    RECIPE_FILE,
    SealedVersion,
    compare_versions,
    read_object,
)
from appliance.domain.queries.review.reported_state import ActiveVersion, ReportedState
from appliance.domain.queries.review.values import (
    Measure,
    Named,
    PageBase,
    PageDecision,
    PageFinding,
    PageRequest,
    PrivacySummary,
    ReviewPage,
    SignedContent,
    Subgroup,
    TrainedBefore,
    TrainingData,
    VerdictSummary,
    VersionChanges,
)
from appliance.domain.releases.activations import Activate, BreakGlass, Rollback
from appliance.domain.releases.adapters import SIGNATURE_ROLES, AdapterOrder, verify_models
from appliance.domain.releases.findings import AddFinding
from appliance.domain.releases.requests import RequestRelease
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.domain.runs.training import Train
from appliance.errors import Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH, ManifestFile, parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import parse_base64
from appliance.formats.signatures.dsse import parse_envelope, parse_statement, verify_envelope

COMPARED_FILES = (RECIPE_FILE, ORIGIN_FILE, GATES_FILE, METRICS_FILE)
"""Files by which two versions are compared."""
PAGE_FILES = (*COMPARED_FILES, VERDICT_FILE, CALIBRATION_FILE, ITEMS_FILE)
"""Files of a sealed folder that the page is made from. The manifest lists those that are present."""


def is_page_file(path: str) -> bool:
    """Return True if the page is made from this file: one of `PAGE_FILES`, or the items of a set of the evaluation."""
    items = path.startswith("items-") and path.endswith(".jsonl") and not path.endswith(f"{RELEASED_ENDING}.jsonl")
    return path in PAGE_FILES or items


class PageSource(Protocol):
    """Access to entries, sealed files and the present state.

    The client's lookup verifies the proof of each entry, and takes the state from the service. The service's lookup
    reads its own ledger and state.
    """

    def adapter_keys(self, index: int) -> tuple[bytes, ...]:
        """Return the SPKIs whose signatures an adapter needs that was sealed by the entry of this index."""
        ...

    def entry(self, index: int) -> RecordedEntry:
        """Return an entry of the log."""
        ...

    def file(self, adapter: str, manifest: str, file: ManifestFile) -> bytes:
        """Return a file of the adapter's sealed folder.

        Raises: Tampered if its digest is not the manifest's.
        """
        ...

    def reported_state(self, adapter: str) -> ReportedState:
        """Return the present state of an adapter."""
        ...


Count = Callable[[SealedVersion, str], Confusion | None]
"""A function that counts the confusions of the set whose items are in this file of the version."""


def count_items(version: SealedVersion, path: str) -> Confusion | None:
    """Return the confusions of the items in this file, None if the answers are not labels."""
    name = HELD_OUT if path == ITEMS_FILE else path.removeprefix("items-").removesuffix(".jsonl")
    return count_confusions(parse_items(version.files[path], f"adapter {version.name}, {path}"), name)


def make_page(lookup: PageSource, name: str, count: Count = count_items) -> ReviewPage:
    """Return the review page of an adapter. It is checked in this order:

    1. The sealing entry binds the manifest, which is this adapter's, and the files of the page have its digests.
    2. The adapter key of the log's first entry signed the manifest's files, and the provenance over the manifest.
    3. The run's order in the log is the one that the provenance names.
    4. Base and dataset are those that the provenance names; licences, labels and instruction are from their imports.
    5. The release requests, the findings and the decisions are orders that took effect by entries of the log.
    6. Another version that is active for a unit was released by an entry of the log, and is checked in the same way.
    7. The verdict does not contradict the gates file. `appliance gate check` computes it again from the items.

    Raises:
        Tampered: the error names the first check that fails.
        BadInput: a sealed file, which the error names, cannot be read.
    """
    version, reported_state = read_version(lookup, name, is_page_file), lookup.reported_state(name)
    requests = tuple(
        PageRequest(status=status, **_read_signed(lookup, name, index, "request", RequestRelease, BreakGlass))
        for index, status in reported_state.release_requests
    )
    findings = tuple(
        PageFinding(status=status, **_read_signed(lookup, name, index, "finding", AddFinding))
        for index, status in reported_state.findings
    )
    decisions = tuple(
        PageDecision(status=status, **_read_signed(lookup, name, index, "decision", ReviewAdapter))
        for index, status in reported_state.decisions
    )
    compared = [_compare_active(lookup, version, active) for active in reported_state.active_versions]
    metrics = read_object(name, version.files, METRICS_FILE)
    return ReviewPage(
        version=1,
        adapter=name,
        status=reported_state.status,
        release_requests=requests,
        findings=findings,
        decisions=decisions,
        changes=tuple(changes for changes, _ in compared),
        warnings=(*list_warnings(metrics), *_list_base_warnings(version)),
        measures=tuple(Measure(name=measure, summary=text) for measure, text in list_measures(metrics)),
        metrics=metrics,
        evaluation=_build_evaluation(version),
        confusion=tuple(_list_confusions(version, count)),
        calibration=_parse_calibration(version),
        training_data=version.training_data,
        base=version.base,
        privacy=_build_privacy(version, reported_state.trained_before),
        evaluated_before=reported_state.evaluated_before,
        previous_runs=reported_state.previous_runs,
        signed_content=version.signed_content,
        entries=tuple(_list_entries(version, requests, [other for _, other in compared])),
    )


def read_version(lookup: PageSource, name: str, is_wanted: Callable[[str], bool]) -> SealedVersion:
    """Return a sealed version after checking it. `is_wanted` selects the files to read.

    Raises: Tampered, which names the first check that fails.
    """
    reported_state = lookup.reported_state(name)
    sealing = lookup.entry(reported_state.entry)
    entry = sealing.entry
    _expect_type(entry, "adapter.sealed", "adapter", name, f"adapter {name}: expected its sealing")
    data = sealing.document("manifest")
    manifest, digest = parse_manifest(data), digest_bytes(data)
    if versioned(manifest.name, manifest.version) != name:
        raise Tampered(f"adapter {name}, manifest: expected its own, got {manifest.name}@{manifest.version}")
    files = {file.path: lookup.file(name, digest, file) for file in manifest.files if is_wanted(file.path)}
    listed = {file.path: file.digest for file in manifest.files}
    keys = lookup.adapter_keys(entry.index)
    signatures = [sealing.document(role) for role in SIGNATURE_ROLES if role in sealing.documents]
    verify_models(signatures, keys, {**listed, MANIFEST_PATH: digest})
    materials = _check_provenance(sealing.document("provenance"), keys[0], digest)
    run = str(entry.body["run"])
    train, order = _check_train(lookup.entry(reported_state.run_entry), run, materials)
    training_data = _check_dataset(lookup, reported_state, materials)
    base_name, base_licence = _check_base(lookup, reported_state, materials)
    return SealedVersion(
        name=name,
        files=files,
        train=train,
        run_entry=reported_state.run_entry,
        base_entry=reported_state.base_entry,
        privacy=manifest.privacy,
        training_data=training_data,
        base=PageBase(
            name=base_name,
            digest=materials[f"base:{base_name}"],
            licence=base_licence,
            facts=read_object(name, files, ORIGIN_FILE),
        ),
        signed_content=SignedContent(
            manifest=digest,
            files=manifest.files,
            materials=materials,
            sealed=entry.index,
            sealed_at=entry.time,
            run=run,
            ordered_by=train.signer,
            order=order,
            recipe=read_object(name, files, RECIPE_FILE),
        ),
    )


def _expect_type(entry: Entry, kind: str, field: str, name: str, what: str) -> None:
    if (entry.type, entry.body.get(field)) != (kind, name):
        raise Tampered(f"{what} as entry {entry.index}, got {entry.type}")


def _check_provenance(data: bytes, key: bytes, digest: str) -> dict[str, str]:
    """Return the digests of all inputs by name, from the adapter key's statement on how these bytes were made."""
    envelope = parse_envelope(data)
    verify_envelope(envelope, key)
    statement = parse_statement(envelope.payload)
    if [subject for _, subject in statement.subjects] != [digest]:
        raise Tampered(f"provenance, subject: expected the manifest {digest}, got {statement.subjects}")
    try:
        found = statement.predicate["buildDefinition"]["resolvedDependencies"]
        return {str(item["name"]): f"sha256:{item['digest']['sha256']}" for item in found}
    except (KeyError, TypeError):
        raise Tampered("provenance: expected its resolved dependencies, got none") from None


def _check_train(requested: RecordedEntry, run: str, materials: Mapping[str, str]) -> tuple[Train, str]:
    """Return the order to train that the provenance names, and its digest."""
    _expect_type(requested.entry, "run.requested", "run", run, f"run {run}: expected its request")
    envelope = parse_envelope(requested.document("order"))
    order, named = ORDERS.parse(envelope.payload), materials.get("order")
    if named != envelope.pae_digest:
        raise Tampered(f"provenance, order: expected {envelope.pae_digest}, got {named}")
    if not isinstance(order, Train):
        raise Tampered(f"run {run}, order: expected one to train, got {order.action}")
    return order, envelope.pae_digest


def _check_base(lookup: PageSource, reported_state: ReportedState, materials: Mapping[str, str]) -> tuple[str, str]:
    """Return the name of the base that the provenance names, and the licence from its import's order."""
    imported = lookup.entry(reported_state.base_entry)
    name = str(imported.entry.body.get("base"))
    _check_import(imported, "base", name, materials)
    order, _ = read_import(lookup, f"base {name}", reported_state.base_order_entry, imported)
    return name, order.licence


def _check_import(imported: RecordedEntry, kind: str, name: str, materials: Mapping[str, str]) -> bytes:
    """Return the manifest of an import that the provenance names."""
    manifest, named = imported.document("manifest"), materials.get(f"{kind}:{name}")
    if (imported.entry.type, digest_bytes(manifest)) != (f"{kind}.imported", named):
        raise Tampered(f"{kind} {name}: expected the import of {named}, got another as entry {imported.entry.index}")
    return manifest


def _check_dataset(lookup: PageSource, reported_state: ReportedState, materials: Mapping[str, str]) -> TrainingData:
    """Return the dataset that the provenance names, from the entry that imported it and from its import's order."""
    imported = lookup.entry(reported_state.dataset_entry)
    name = str(imported.entry.body.get("dataset"))
    manifest = _check_import(imported, "dataset", name, materials)
    data = parse_base64(reported_state.about, f"dataset {name}, {ABOUT_FILE}")
    listed = {file.path: file.digest for file in parse_manifest(manifest).files}
    if listed.get(ABOUT_FILE) != digest_bytes(data):
        raise Tampered(f"dataset {name}, {ABOUT_FILE}: expected {listed.get(ABOUT_FILE)}, got other bytes")
    order, texts = read_import(lookup, f"dataset {name}", reported_state.dataset_order_entry, imported)
    if not isinstance(order, ImportDataset):
        raise Tampered(f"dataset {name}, order: expected an import of a dataset, got {order.action}")
    about = parse_about(data)
    return TrainingData(
        dataset=name,
        dataset_digest=digest_bytes(manifest),
        dataset_entry=imported.entry.index,
        rows=_count_rows(imported.entry.body["facts"]),
        dataset_kind=about.dataset_kind,
        instruction=texts.get("instruction"),
        labels=about.labels,
        label_rows=about.label_rows,
        owner=texts.get("owner"),
        licence=order.licence,
        classification=order.classification,
        imported_by=order.signer,
        example=example_request("SERVED_MODEL", InstructedDataset(about, texts.get("instruction")), added=False),
    )


def _count_rows(facts: Mapping[str, Any]) -> dict[str, int]:
    """Return the counts of rows among the facts that an import determined."""
    names = ("train_rows", "held_out_rows", "near_held_out_rows")
    return {name: facts[name] for name in names if type(facts.get(name)) is int}


def read_import(
    lookup: PageSource, what: str, index: int, imported: RecordedEntry
) -> tuple[ImportBase | ImportDataset, dict[str, str]]:
    """Return the import's order and its texts by field, from the entry with this index.

    Raises: Tampered if it is not the order that the import names.
    """
    requested, digest = lookup.entry(index), str(imported.entry.body["order"])
    envelope = parse_envelope(requested.document("order"))
    order = ORDERS.parse(envelope.payload)
    if not isinstance(order, ImportBase | ImportDataset) or envelope.pae_digest != digest:
        raise Tampered(f"{what}, order: expected {digest}, got that of entry {index}")
    return order, requested.texts_of(order)


def read_order(recorded: RecordedEntry) -> tuple[Order, str]:
    """Return the order that took effect with this entry, and its digest; of two signed orders, the countersigned one.

    Raises: Tampered if it did not take effect, but was refused or is pending.
    """
    envelope = parse_envelope(recorded.document("countersigned" if "countersigned" in recorded.documents else "order"))
    order, entry = ORDERS.parse(envelope.payload), recorded.entry
    event = ACTIONS[order.action].event
    if event is None or entry.type != event.type:
        raise Tampered(f"entry {entry.index}: expected what an order {order.action} becomes, got {entry.type}")
    return order, envelope.pae_digest


def _read_signed(lookup: PageSource, name: str, index: int, what: str, *kinds: type[AdapterOrder]) -> dict[str, Any]:
    """Return the fields of a `PageOrder` that follow from the entry, whose order must be of these kinds."""
    recorded = lookup.entry(index)
    order, digest = read_order(recorded)
    if not isinstance(order, kinds) or order.name != name:
        raise Tampered(f"{what} of entry {index}: expected one on {name}, got {order.action} of {order.about()}")
    bound = order.commitments().values()
    texts = {one.commitment: one.text for one in recorded.disclosures if one.commitment in bound}
    return {"entry": index, "digest": digest, "order": order, "texts": texts}


def _compare_active(
    lookup: PageSource, version: SealedVersion, active: ActiveVersion
) -> tuple[VersionChanges, SealedVersion]:
    """Return the differences from another version, and that version.

    The log proves its release. The state alone determines that it is the current one.
    """
    order, _ = read_order(lookup.entry(active.entry))
    if not isinstance(order, Activate | Rollback | BreakGlass) or order.name != active.adapter:
        what = f"release of {active.adapter}: expected it as entry {active.entry}"
        raise Tampered(f"{what}, got {order.action} of {order.about()}")
    other = read_version(lookup, active.adapter, COMPARED_FILES.__contains__)
    return compare_versions(version, other, active.units, active.entry), other


def _build_evaluation(version: SealedVersion) -> VerdictSummary | None:
    if VERDICT_FILE not in version.files or GATES_FILE not in version.files:
        return None
    gates = parse_gates(version.files[GATES_FILE], f"adapter {version.name}, {GATES_FILE}")
    verdict = parse_verdict(version.files[VERDICT_FILE], f"adapter {version.name}, {VERDICT_FILE}")
    check_conclusion(gates, verdict)
    before = max((record.evaluated_before for record in verdict.evaluated), default=0)
    found = [Subgroup(gate=result.gate, result=one) for result in verdict.results for one in result.slices]
    return VerdictSummary(
        gates=gates,
        verdict=verdict,
        verdict_digest=digest_bytes(version.files[VERDICT_FILE]),
        runs_before=before,
        correction_factor=correction_factor(gates, before),
        subgroups=tuple(sorted(found, key=lambda one: (not one.result.worse, Fraction(one.result.gain)))),
    )


def _list_confusions(version: SealedVersion, count: Count) -> Iterator[Confusion]:
    """Yield the confusions of each evaluated set whose answers are labels, the held-out rows first."""
    for path in sorted(version.files, key=lambda path: (path != ITEMS_FILE, path)):
        if path == ITEMS_FILE or path.startswith("items-"):
            confusion = count(version, path)
            if confusion is not None:
                yield confusion


def _parse_calibration(version: SealedVersion) -> CalibrationFile | None:
    data = version.files.get(CALIBRATION_FILE)
    return None if data is None else parse_value(CalibrationFile, data, f"adapter {version.name}, {CALIBRATION_FILE}")


def _list_base_warnings(version: SealedVersion) -> Iterator[str]:
    """Yield the warnings of the base's import, as they were when the adapter was sealed."""
    warnings = version.base.facts.get("warnings", [])
    if isinstance(warnings, list):
        yield from (f"base {version.base.name}: {text}" for text in warnings if isinstance(text, str))


def _build_privacy(version: SealedVersion, before: TrainedBefore) -> PrivacySummary | None:
    """Return the privacy guarantee, None if the adapter's manifest states none.

    By basic composition, several releases together reveal at most the sum of their guarantees.
    """
    guarantee, recipe = version.privacy, version.signed_content.recipe.get("privacy") or {}
    if guarantee is None:
        return None
    return PrivacySummary(
        epsilon=guarantee.epsilon,
        delta=guarantee.delta,
        noise=str(recipe.get("noise")),
        clip=str(recipe.get("clip")),
        epsilon_all=_sum([guarantee.epsilon, *(one.epsilon for one in before.private)]),
        delta_all=_sum([guarantee.delta, *(one.delta for one in before.private)]),
        before=before,
    )


def _sum(values: list[str]) -> str:
    return f"{sum(map(Number, values), Number(0)):f}"


def _list_entries(
    version: SealedVersion, requests: tuple[PageRequest, ...], compared: list[SealedVersion]
) -> Iterator[Named]:
    """Yield for each digest on the page the first entry that names it, in the order of the log."""
    first_entries: dict[str, Named] = {}
    bindings = _list_bindings(version, requests, compared)
    for digest, entry, binds in sorted(bindings, key=lambda binding: binding[1]):
        first_entries.setdefault(digest, Named(digest=digest, entry=entry, binds=binds))
    yield from first_entries.values()


def _list_bindings(
    version: SealedVersion, requests: tuple[PageRequest, ...], compared: list[SealedVersion]
) -> Iterator[tuple[str, int, str]]:
    signed, data = version.signed_content, version.training_data
    yield version.base.digest, version.base_entry, f"base {version.base.name}"
    yield data.dataset_digest, data.dataset_entry, f"dataset {data.dataset}"
    yield signed.order, version.run_entry, f"order of {signed.run}"
    yield signed.manifest, signed.sealed, "manifest"
    for file in signed.files:
        yield file.digest, signed.sealed, file.path
    for material, digest in signed.materials.items():
        yield digest, signed.sealed, f"provenance, {material}"
    for request in requests:
        yield request.digest, request.entry, f"release request for {request.order.unit}"
    for other in compared:
        yield other.signed_content.manifest, other.signed_content.sealed, f"manifest of {other.name}"
