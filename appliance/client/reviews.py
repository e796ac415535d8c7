"""What a reviewer's signature would bind, from bytes that were downloaded and hashed on the reviewer's side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.client.decisions import AskedRelease, FoundTexts, read_finding, read_request, with_reason
from appliance.client.support.door import About, Door
from appliance.client.support.log import Anchor, Proven, adapter_key, read_entry
from appliance.client.support.orders import propose
from appliance.domain.core.decisions import Conditions
from appliance.domain.core.names import split_version, versioned
from appliance.domain.data.bases import RevokeBase
from appliance.domain.data.datasets import RevokeDataset
from appliance.domain.data.imports import ImportDataset
from appliance.domain.data.teaching import ABOUT_FILE, Teaching, parse_about
from appliance.domain.data.validation_sets import RevokeValidationSet
from appliance.domain.releases.activations import Activate, RollBack
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.releases.reviews import Review
from appliance.domain.rulebook.proposals import Proposal
from appliance.domain.rulebook.registry import ORDERS
from appliance.errors import BadInput, NotFound, Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH, Manifest, ManifestFile, parse_manifest
from appliance.formats.core.digest import Hasher, digest_bytes
from appliance.formats.core.fields import parse_base64
from appliance.formats.signatures.bundle import verify_model
from appliance.formats.signatures.dsse import parse_envelope, verify_envelope
from appliance.formats.signatures.statement import parse_statement

_SHOWN_BYTES = 262_144
_SHOWN = ("recipe.json", "metrics.json", "base.json")


@dataclass(frozen=True)
class ReviewMaterial:
    """An adapter, checked: every file hashed, the manifest signed, the sealing entry proved to be in the log.

    `contents`: the folder's own small JSON files by name, from the bytes that were hashed. `teaching`: what the dataset
    says of its rows; its instruction is None where its text was erased, or is withheld; so is `owner`. `told`: rows of
    the service that no signature of the reviewer binds.
    """

    name: str
    manifest: Manifest
    digest: str
    sealed: int
    sealed_at: str
    log_size: int
    run: str
    ordered_by: str
    order: str
    contents: Mapping[str, Any]
    materials: tuple[tuple[str, str], ...]
    teaching: Teaching
    asked: tuple[AskedRelease, ...]
    found: tuple[FoundTexts, ...]
    owner: str | None
    said_by: str
    told: Mapping[str, Any]

    def request_for(self, unit: str) -> str | None:
        """The request that a decision for the unit is made on, by its order."""
        return next((one.order for one in self.asked if one.unit == unit), None)


def gather(door: Door, anchor: Anchor, name: str, progress: Callable[[int], None]) -> ReviewMaterial:
    """In this order, each step by bytes hashed here; Tampered names the first that does not hold.

    1. the sealing entry stands in the log, under the log's key, and binds manifest, signature and provenance
    2. the manifest is this adapter's, at this version
    3. each file of the folder has the size and digest that the manifest lists
    4. the adapter key of the log's first entry signed manifest and files, and the provenance over the manifest
    5. the run's order in the log is the one that the provenance names
    6. the dataset's labels and instruction are those of the dataset that the provenance names
    7. the release requests and the findings are those of entries in the log
    """
    told = door.get(f"/v1/adapters/{name}/review")
    row = told["adapter"]
    proven = read_entry(door, anchor, int(row["index"]))
    entry = proven.entry
    if (entry.type, entry.body.get("adapter")) != ("adapter.sealed", name):
        raise Tampered(f"adapter {name}: expected its sealing as entry {entry.index}, got {entry.type}")
    data = proven.document("manifest")
    manifest = parse_manifest(data)
    if versioned(manifest.name, manifest.version) != name:
        raise Tampered(f"adapter {name}, manifest: expected its own, got {manifest.name}@{manifest.version}")
    contents = _download(door, name, manifest, progress)
    key = adapter_key(door, anchor)
    files = {file.path: file.digest for file in manifest.files} | {MANIFEST_PATH: digest_bytes(data)}
    verify_model(proven.document("signature"), key, files)
    materials = _check_provenance(proven.document("provenance"), key, digest_bytes(data))
    run = read_entry(door, anchor, int(told["run"]["index"]))
    ordered_by, order = _check_order(run, str(entry.body["run"]), materials)
    teaching, owner = _check_teaching(door, anchor, told, materials)
    return ReviewMaterial(
        name=name,
        manifest=manifest,
        digest=digest_bytes(data),
        sealed=entry.index,
        sealed_at=entry.time,
        log_size=proven.size,
        run=str(entry.body["run"]),
        ordered_by=ordered_by,
        order=order,
        contents=contents,
        materials=materials,
        teaching=teaching,
        asked=tuple(read_request(door, anchor, name, one) for one in row["asked"]),
        found=tuple(read_finding(door, anchor, name, one) for one in row["findings"]),
        owner=owner,
        said_by=anchor.said_by,
        told=told,
    )


def _download(door: Door, name: str, manifest: Manifest, progress: Callable[[int], None]) -> dict[str, Any]:
    """Hashes every file as it comes, and keeps those that people read."""
    contents = {}
    for file in manifest.files:
        kept = _check_file(door, name, file, progress)
        if file.path in _SHOWN:
            contents[file.path] = _parse_content(kept, f"adapter {name}, {file.path}")
    return contents


def _check_file(door: Door, name: str, file: ManifestFile, progress: Callable[[int], None]) -> bytes:
    hasher, kept = Hasher(), bytearray()
    for chunk in door.stream(f"/v1/adapters/{name}/files/{file.path}"):
        hasher.update(chunk)
        if hasher.size > file.size:
            raise Tampered(f"adapter {name}, {file.path}: expected {file.size} bytes, got at least {hasher.size}")
        if hasher.size <= _SHOWN_BYTES:
            kept += chunk
        progress(len(chunk))
    if hasher.digest() != file.digest:
        raise Tampered(f"adapter {name}, {file.path}: expected {file.digest}, got {hasher.digest()}")
    return bytes(kept)


def _parse_content(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what}: expected JSON, got: {str(error)[:200]}") from None


def _check_provenance(data: bytes, key: bytes, digest: str) -> tuple[tuple[str, str], ...]:
    """The adapter key's statement on how these bytes were made: (what, digest) of all that went in."""
    envelope = parse_envelope(data)
    verify_envelope(envelope, key)
    statement = parse_statement(envelope.payload)
    if [subject for _, subject in statement.subjects] != [digest]:
        raise Tampered(f"provenance, subject: expected the manifest {digest}, got {statement.subjects}")
    try:
        found = statement.predicate["buildDefinition"]["resolvedDependencies"]
        return tuple((str(item["name"]), f"sha256:{item['digest']['sha256']}") for item in found)
    except (KeyError, TypeError):
        raise Tampered("provenance: expected its resolved dependencies, got none") from None


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


def _check_teaching(
    door: Door, anchor: Anchor, told: Mapping[str, Any], materials: tuple[tuple[str, str], ...]
) -> tuple[Teaching, str | None]:
    """What it teaches and who owns it, by the entry that imported the dataset, whose manifest the provenance names, and
    by the order behind it."""
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
    order, texts = _read_import(door, anchor, name, int(request["index"]), str(imported.entry.body["order"]))
    return Teaching(parse_about(about), texts.get(order.instruction)), texts.get(order.owner)


def _read_import(
    door: Door, anchor: Anchor, name: str, index: int, digest: str
) -> tuple[ImportDataset, dict[str, str]]:
    """The order that this entry holds, which must be the one of this digest, and its texts that are disclosed."""
    requested = read_entry(door, anchor, index)
    envelope = parse_envelope(requested.document("order"))
    order = ORDERS.parse(envelope.payload)
    if not isinstance(order, ImportDataset) or envelope.pae_digest != digest:
        raise Tampered(f"dataset {name}, order: expected {digest}, got that of entry {index}")
    return order, {disclosure.commitment: disclosure.text for disclosure in requested.disclosures}


def dataset_owner(door: Door, anchor: Anchor, row: Mapping[str, Any]) -> str | None:
    """Who owns a dataset, by the proved order of its import; None where the text was erased, or is withheld."""
    index = next(int(one["index"]) for one in door.get("/v1/imports") if one["order"] == row["order"])
    order, texts = _read_import(door, anchor, versioned(row["name"], row["version"]), index, str(row["order"]))
    return texts.get(order.owner)


def propose_review(
    about: About,
    signer: str,
    evidence: ReviewMaterial,
    decision: str,
    unit: str,
    field: str,
    meaning: str,
    valid_until: str | None,
    *,
    reason: str | None = None,
    conditions: Conditions | None = None,
    on_behalf_of: str | None = None,
) -> Proposal:
    """On the request that stands for the unit, by what was read of the log."""
    values = {
        **_adapter(evidence),
        "decision": decision,
        "unit": unit,
        "field": field,
        "valid_until": valid_until,
        "request": evidence.request_for(unit),
        "conditions": conditions,
        "on_behalf_of": on_behalf_of,
    }
    return propose(about, signer, Review, values, texts=with_reason({"meaning": meaning}, reason))


def propose_release(
    about: About,
    signer: str,
    model: type[Activate] | type[RollBack],
    evidence: ReviewMaterial,
    unit: str,
    task: str,
    *,
    adds_instruction: bool,
) -> Proposal:
    """BadInput where the dataset has no instruction that could be put in."""
    if adds_instruction and not evidence.teaching.instruction:
        got = "one that was erased" if evidence.teaching.instruction is None else "none"
        raise BadInput(f"release of {evidence.name}, instruction: expected its dataset to have one, got {got}")
    values = {**_adapter(evidence), "unit": unit, "task": task, "adds_instruction": adds_instruction}
    return propose(about, signer, model, values)


def propose_revocation(door: Door, anchor: Anchor, signer: str, name: str, reason: str | None) -> Proposal:
    """Needs no download: taking away must work where the bytes do not; the log says which manifest it is."""
    row = door.get(f"/v1/adapters/{name}")
    entry = read_entry(door, anchor, int(row["index"])).entry
    if (entry.type, entry.body.get("adapter")) != ("adapter.sealed", name):
        raise Tampered(f"adapter {name}: expected its sealing as entry {entry.index}, got {entry.type}")
    adapter, version = split_version(name)
    values = {"adapter": adapter, "version": version, "manifest": entry.documents["manifest"]}
    return propose(door.about, signer, RevokeAdapter, values, texts={} if reason is None else {"reason": reason})


def propose_base_revocation(door: Door, anchor: Anchor, signer: str, name: str, reason: str | None) -> Proposal:
    row = door.get(f"/v1/bases/{name}")
    values = {"base": name, "digest": _logged_manifest(door, anchor, int(row["index"]), "base", name)}
    return propose(door.about, signer, RevokeBase, values, texts={} if reason is None else {"reason": reason})


def propose_dataset_revocation(door: Door, anchor: Anchor, signer: str, name: str, reason: str | None) -> Proposal:
    row = door.get(f"/v1/datasets/{name}")
    digest = _logged_manifest(door, anchor, int(row["index"]), "dataset", name)
    dataset, version = split_version(name)
    values = {"dataset": dataset, "version": version, "digest": digest}
    return propose(door.about, signer, RevokeDataset, values, texts={} if reason is None else {"reason": reason})


def propose_set_revocation(door: Door, anchor: Anchor, signer: str, name: str, reason: str | None) -> Proposal:
    row = door.get(f"/v1/validation-sets/{name}")
    digest = _logged_manifest(door, anchor, int(row["index"]), "validation-set", name)
    found, version = split_version(name)
    values = {"validation_set": found, "version": version, "digest": digest}
    return propose(door.about, signer, RevokeValidationSet, values, texts={} if reason is None else {"reason": reason})


def _logged_manifest(door: Door, anchor: Anchor, index: int, kind: str, name: str) -> str:
    """By the proved entry that imported it."""
    entry = read_entry(door, anchor, index).entry
    if (entry.type, entry.body.get(kind.replace("-", "_"))) != (f"{kind}.imported", name):
        raise Tampered(f"{kind} {name}: expected its import as entry {entry.index}, got {entry.type}")
    return entry.documents["manifest"]


def earlier_adapter(door: Door, unit: str, task: str, wanted: str | None) -> tuple[str, bool]:
    """The adapter to go back to, the one named or the one that answered before today's; and whether the service put in
    the instruction when it last answered."""
    release = find_release(door, unit, task)
    current = release["history"][-1]["adapter"]
    earlier = [step["adapter"] for step in release["history"] if step["adapter"] != current]
    if not earlier:
        raise NotFound(f"release {unit}/{task}: expected an earlier adapter than {current}, got none")
    if wanted is not None and wanted not in earlier:
        raise NotFound(f"release {unit}/{task}: expected one of {', '.join(dict.fromkeys(earlier))}, got {wanted}")
    chosen = wanted or str(earlier[-1])
    last = [step for step in release["history"] if step["adapter"] == chosen][-1]
    return chosen, bool(last["adds_instruction"])


def find_release(door: Door, unit: str, task: str) -> dict[str, Any]:
    releases = door.get("/v1/releases")
    for release in releases:
        if (release["unit"], release["task"]) == (unit, task):
            return dict(release)
    known = ", ".join(f"{release['unit']}/{release['task']}" for release in releases) or "none"
    raise NotFound(f"release: expected one of {known}, got {unit}/{task}; list them with: appliance release history")


def _adapter(evidence: ReviewMaterial) -> dict[str, Any]:
    name, version = split_version(evidence.name)
    return {"adapter": name, "version": version, "manifest": evidence.digest}
