"""What a reviewer's signature would bind, from bytes that were downloaded and hashed on the reviewer's side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.client.releases.decisions import ordered, read_decision, read_finding, read_request
from appliance.client.support.door import Door
from appliance.client.support.log import Anchor, Proven, adapter_key, read_entry
from appliance.domain.core.names import versioned
from appliance.domain.data.imports import ImportBase, ImportDataset
from appliance.domain.data.teaching import ABOUT_FILE, Teaching, parse_about
from appliance.domain.evaluation.items import MOST_BYTES
from appliance.domain.releases.activations import Activate, RollBack
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
from appliance.domain.releases.page.value import ReviewPage, Run, TrainedBefore, Tried
from appliance.domain.rulebook.registry import ORDERS
from appliance.errors import NotFound, Tampered, TooLarge
from appliance.formats.artifacts.manifest import MANIFEST_PATH, Manifest, ManifestFile, parse_manifest
from appliance.formats.core.digest import Hasher, digest_bytes
from appliance.formats.core.fields import parse_base64
from appliance.formats.signatures.bundle import verify_model
from appliance.formats.signatures.dsse import parse_envelope, verify_envelope
from appliance.formats.signatures.statement import parse_statement

Progress = Callable[[int], None]


@dataclass(frozen=True)
class ReviewMaterial:
    """An adapter, checked: every file hashed, the manifest signed, the sealing entry proved to be in the log.

    `page`: what is shown before a signature. `log_size` and `said_by`: the log that the proofs are of, and who vouches
    for its key. `told`: rows of the service that no signature of the reviewer binds.
    """

    version: SealedVersion
    page: ReviewPage
    log_size: int
    said_by: str
    told: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.version.name

    @property
    def manifest(self) -> Manifest:
        return self.version.manifest

    @property
    def digest(self) -> str:
        return self.version.digest

    @property
    def teaching(self) -> Teaching:
        return self.version.dataset.teaching

    def request_for(self, unit: str) -> str | None:
        """The request that a decision for the unit is made on, by its order."""
        return next((one.order for one in self.page.asked if one.unit == unit), None)


def gather(door: Door, anchor: Anchor, name: str, progress: Progress) -> ReviewMaterial:
    """In this order, each step by bytes hashed here; Tampered names the first that does not hold.

    1. the sealing entry stands in the log, under the log's key, and binds manifest, signature and provenance
    2. the manifest is this adapter's, at this version
    3. each file of the folder has the size and digest that the manifest lists
    4. the adapter key of the log's first entry signed manifest and files, and the provenance over the manifest
    5. the run's order in the log is the one that the provenance names
    6. base and dataset are those that the provenance names; licences, labels and instruction are by their imports
    7. the release requests, the findings and the decisions are orders that took effect by entries of the log
    8. another version that answers a unit was released by an entry of the log, and what is compared of it is checked
       in the same way
    9. the verdict does not contradict the gate set
    """
    told = door.get(f"/v1/adapters/{name}/review")
    row = told["adapter"]
    version, size = _read_version(door, anchor, name, told, progress)
    material = PageMaterial(
        version=version,
        revoked=row["revoked"],
        quarantined=row["quarantined"],
        answers=tuple(told["answers"]),
        asked=tuple(read_request(door, anchor, name, one) for one in row["asked"]),
        findings=tuple(read_finding(door, anchor, name, one) for one in row["findings"]),
        decisions=tuple(read_decision(door, anchor, name, one) for one in row["reviews"]),
        released=tuple(_read_released(door, anchor, one) for one in told["released"]),
        judged_before=tuple(Run.model_validate(one) for one in told["judged_before"]),
        trained_before=TrainedBefore.model_validate_json(json.dumps(told["trained_before"])),
        tried=Tried.model_validate(told["tried"]),
    )
    return ReviewMaterial(version, make_page(material), size, anchor.said_by, told)


def _read_version(
    door: Door,
    anchor: Anchor,
    name: str,
    told: Mapping[str, Any],
    progress: Progress,
    wanted: Iterable[str] | None = None,
) -> tuple[SealedVersion, int]:
    """The version, and the size of the log that its sealing was proved in. `wanted`: the files to download; all of them
    where it is None."""
    proven = read_entry(door, anchor, int(told["adapter"]["index"]))
    entry = proven.entry
    if (entry.type, entry.body.get("adapter")) != ("adapter.sealed", name):
        raise Tampered(f"adapter {name}: expected its sealing as entry {entry.index}, got {entry.type}")
    data = proven.document("manifest")
    manifest = parse_manifest(data)
    if versioned(manifest.name, manifest.version) != name:
        raise Tampered(f"adapter {name}, manifest: expected its own, got {manifest.name}@{manifest.version}")
    contents = _download(door, name, manifest, progress, wanted)
    key = adapter_key(door, anchor)
    files = {file.path: file.digest for file in manifest.files} | {MANIFEST_PATH: digest_bytes(data)}
    verify_model(proven.document("signature"), key, files)
    materials = _check_provenance(proven.document("provenance"), key, digest_bytes(data))
    run = read_entry(door, anchor, int(told["run"]["index"]))
    ordered_by, order = _check_order(run, str(entry.body["run"]), materials)
    base_entry, base_licence = _check_base(door, anchor, told, materials)
    version = SealedVersion(
        name=name,
        manifest=manifest,
        digest=digest_bytes(data),
        entry=entry.index,
        sealed_at=entry.time,
        run=str(entry.body["run"]),
        run_entry=run.entry.index,
        ordered_by=ordered_by,
        order=order,
        files=contents,
        materials=materials,
        dataset=_check_dataset(door, anchor, told, materials),
        base_licence=base_licence,
        base_entry=base_entry,
    )
    return version, proven.size


def _read_released(door: Door, anchor: Anchor, told: Mapping[str, Any]) -> Released:
    """That it is the last release of these units the service says; that it was one the log does."""
    name, entry = str(told["adapter"]), int(told["entry"])
    order, _ = ordered(read_entry(door, anchor, entry))
    if not isinstance(order, Activate | RollBack | BreakGlass) or order.name != name:
        raise Tampered(f"release of {name}: expected it as entry {entry}, got {order.verb} of {order.about()}")
    packet = door.get(f"/v1/adapters/{name}/review")
    version, _ = _read_version(door, anchor, name, packet, lambda count: None, COMPARED_FILES)
    return Released(tuple(map(str, told["units"])), entry, version)


def _download(
    door: Door, name: str, manifest: Manifest, progress: Progress, wanted: Iterable[str] | None
) -> dict[str, bytes]:
    """Hashes each file as it comes, and keeps those that the page is made of."""
    contents = {}
    for file in manifest.files:
        if wanted is None or file.path in wanted:
            kept = _check_file(door, name, file, progress, keep=is_page_file(file.path))
            if is_page_file(file.path):
                contents[file.path] = kept
    return contents


def _check_file(door: Door, name: str, file: ManifestFile, progress: Progress, *, keep: bool) -> bytes:
    """No more than the size that the manifest lists is kept of it."""
    if keep and file.size > MOST_BYTES:
        raise TooLarge(f"adapter {name}, {file.path}: expected at most {MOST_BYTES} bytes, got {file.size}")
    hasher, kept = Hasher(), bytearray()
    for chunk in door.stream(f"/v1/adapters/{name}/files/{file.path}"):
        hasher.update(chunk)
        if hasher.size > file.size:
            raise Tampered(f"adapter {name}, {file.path}: expected {file.size} bytes, got at least {hasher.size}")
        if keep:
            kept += chunk
        progress(len(chunk))
    if hasher.digest() != file.digest:
        raise Tampered(f"adapter {name}, {file.path}: expected {file.digest}, got {hasher.digest()}")
    return bytes(kept)


def _check_provenance(data: bytes, key: bytes, digest: str) -> tuple[tuple[str, str], ...]:
    """The adapter key's statement on how these bytes were made: (what, digest) of all that went in."""
    envelope = parse_envelope(data)
    verify_envelope(envelope, key)
    statement = parse_statement(envelope.payload)
    if [subject for _, subject in statement.subjects] != [digest]:
        raise Tampered(f"provenance, subject: expected the manifest {digest}, got {statement.subjects}")
    return materials_of(statement)


def _check_order(requested: Proven, run: str, materials: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """Who ordered the run, and the order's digest."""
    entry = requested.entry
    if (entry.type, entry.body.get("run")) != ("run.requested", run):
        raise Tampered(f"run {run}: expected its request as entry {entry.index}, got {entry.type}")
    envelope = parse_envelope(requested.document("order"))
    order = ORDERS.parse(envelope.payload)
    named = dict(materials).get("order")
    if named != envelope.pae_digest:
        raise Tampered(f"provenance, order: expected {envelope.pae_digest}, got {named}")
    return order.signer, envelope.pae_digest


def _check_base(
    door: Door, anchor: Anchor, told: Mapping[str, Any], materials: tuple[tuple[str, str], ...]
) -> tuple[int, str]:
    """The entry that imported the base that the provenance names, and its licence by the order behind it."""
    row, request = told["base"], told["base_import"]
    if row is None or request is None:
        raise NotFound("base: expected the import of the adapter's base, got none")
    imported = read_entry(door, anchor, int(row["index"]))
    digest, named = digest_bytes(imported.document("manifest")), dict(materials).get(f"base:{row['name']}")
    if (imported.entry.type, digest) != ("base.imported", named):
        raise Tampered(f"base {row['name']}: expected the import of {named}, got another as entry {row['index']}")
    order, _ = _read_import(door, anchor, f"base {row['name']}", int(request["index"]), imported)
    return imported.entry.index, order.licence


def _check_dataset(
    door: Door, anchor: Anchor, told: Mapping[str, Any], materials: tuple[tuple[str, str], ...]
) -> DatasetFacts:
    """What it teaches, who owns it and under which terms, by the entry that imported the dataset, whose manifest the
    provenance names, and by the order behind it."""
    row, request = told["dataset"], told["import"]
    name = versioned(row["name"], row["version"])
    imported = read_entry(door, anchor, int(row["index"]))
    manifest, named = imported.document("manifest"), dict(materials).get(f"dataset:{name}")
    if (imported.entry.type, digest_bytes(manifest)) != ("dataset.imported", named):
        raise Tampered(f"dataset {name}: expected the import of {named}, got another as entry {imported.entry.index}")
    about = parse_base64(told[ABOUT_FILE], f"dataset {name}, {ABOUT_FILE}")
    listed = {file.path: file.digest for file in parse_manifest(manifest).files}
    if listed.get(ABOUT_FILE) != digest_bytes(about):
        raise Tampered(f"dataset {name}, {ABOUT_FILE}: expected {listed.get(ABOUT_FILE)}, got other bytes")
    order, texts = _read_import(door, anchor, f"dataset {name}", int(request["index"]), imported)
    if not isinstance(order, ImportDataset):
        raise Tampered(f"dataset {name}, order: expected an import of a dataset, got {order.verb}")
    return DatasetFacts(
        name=name,
        digest=digest_bytes(manifest),
        entry=imported.entry.index,
        rows=count_rows(imported.entry.body["facts"]),
        teaching=Teaching(parse_about(about), texts.get(order.instruction)),
        owner=texts.get(order.owner),
        licence=order.licence,
        classification=order.classification,
        imported_by=order.signer,
    )


def _read_import(
    door: Door, anchor: Anchor, what: str, index: int, imported: Proven
) -> tuple[ImportBase | ImportDataset, dict[str, str]]:
    """The order that this entry holds, which must be the one that the import names, and its disclosed texts."""
    requested, digest = read_entry(door, anchor, index), str(imported.entry.body["order"])
    envelope = parse_envelope(requested.document("order"))
    order = ORDERS.parse(envelope.payload)
    if not isinstance(order, ImportBase | ImportDataset) or envelope.pae_digest != digest:
        raise Tampered(f"{what}, order: expected {digest}, got that of entry {index}")
    return order, {disclosure.commitment: disclosure.text for disclosure in requested.disclosures}


def dataset_owner(door: Door, anchor: Anchor, row: Mapping[str, Any]) -> str | None:
    """Who owns a dataset, by the proved order of its import; None where the text was erased, or is withheld."""
    index = next(int(one["index"]) for one in door.get("/v1/imports") if one["order"] == row["order"])
    imported = read_entry(door, anchor, int(row["index"]))
    name = versioned(row["name"], row["version"])
    order, texts = _read_import(door, anchor, f"dataset {name}", index, imported)
    if not isinstance(order, ImportDataset):
        raise Tampered(f"dataset {name}, order: expected an import of a dataset, got {order.verb}")
    return texts.get(order.owner)
