"""Verification of sealed folders beside a log: an adapter's evaluation is computed again from its folder.

An adapter's folder contains its items. The folder of a dataset or validation set, if it is given, too, has the rows
that the items must belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from appliance.domain.audit.report import AuditFinding, Report, with_findings
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.names import split_version
from appliance.domain.core.records.data import LocalSet
from appliance.domain.data.kinds import SHIPPED
from appliance.domain.evaluation.basis import items_path
from appliance.domain.evaluation.gates import HELD_OUT, parse_gates
from appliance.domain.evaluation.items import check_rows, parse_items
from appliance.domain.evaluation.rules import CALIBRATION_FILE, list_evaluated_rows
from appliance.domain.evaluation.shipped.sets import find_shipped_rows
from appliance.domain.evaluation.verdict import (
    Conclusion,
    EvaluatedSet,
    VerdictInputs,
    conclude,
    parse_verdict,
    read_verdict_inputs,
)
from appliance.errors import ApplianceError, NotFound, Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH, Manifest, parse_manifest
from appliance.formats.artifacts.rows import rows_root, split_digests
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope, parse_statement

ROWS_FILE, DIGESTS_FILE = "rows.jsonl", "row_digests.bin"
RULE = "evaluation"
_SEALING = {
    "adapter.sealed": "adapter",
    "dataset.imported": "dataset",
    "validation-set.imported": "validation_set",
}
_ROWS = {"dataset": "dataset.imported", "validation-set": "validation-set.imported"}
_LOCAL = "local-set"

Documents = Callable[[str], bytes | None]
"""A function that returns the bytes stored under a digest, or None."""


@dataclass(frozen=True)
class SealedFolder:
    """A sealed folder: `name` is for people, and `read` returns a file's bytes by its path."""

    name: str
    read: Callable[[str], bytes]


@dataclass
class _Sealed:
    """A folder with the entry that binds its manifest."""

    folder: SealedFolder
    manifest: Manifest
    entry: Entry
    read: dict[str, bytes] = field(default_factory=dict)

    def file(self, path: str) -> bytes:
        """Return the bytes of a file that the manifest lists.

        Raises: Tampered if their digest differs from the listed one.
        """
        if path not in self.read:
            listed = {entry.path: entry.digest for entry in self.manifest.files}
            data = self.folder.read(path)
            if (got := digest_bytes(data)) != listed.get(path):
                raise Tampered(f"folder {self.folder.name}, {path}: expected {listed.get(path)}, got {got}")
            self.read[path] = data
        return self.read[path]

    @property
    def subject(self) -> str:
        return str(self.entry.body[_SEALING[self.entry.type]])


def verify_folders(
    report: Report, entries: Iterable[bytes], document: Documents, folders: Iterable[SealedFolder]
) -> Report:
    """Return the report on a log, extended by the verification of its sealed folders.

    There is a finding for each folder that differs from what its entry binds, or that does not give the verdict of the
    log.
    """
    sealed_folders, findings = _match_entries(entries, list(folders))
    remarks, unchecked, essential = list[str](), list[str](), list[str]()
    adapters = [adapter for adapter in sealed_folders if adapter.entry.type == "adapter.sealed"]
    for adapter in adapters:
        try:
            remarks.append(_verify_adapter(adapter, sealed_folders, document))
            unchecked += _check_rows(adapter, sealed_folders, document)
        except NotFound as error:
            essential.append(error.message)
        except ApplianceError as error:
            findings.append(AuditFinding(index=adapter.entry.index, rule=RULE, message=error.message))
    changes: dict[str, object] = {"remarks": (*report.remarks, *remarks), "unchecked": (*report.unchecked, *unchecked)}
    if essential:
        changes |= {"essential": (*report.essential, *essential)}
        changes |= {} if report.verdict == "failed" else {"verdict": "unverifiable"}
    return with_findings(report.model_copy(update=changes), tuple(findings))


def _match_entries(entries: Iterable[bytes], folders: list[SealedFolder]) -> tuple[list[_Sealed], list[AuditFinding]]:
    """Return each folder with its entry, found by the digest of the manifest, and findings for folders without one."""
    unmatched, findings = dict[str, tuple[SealedFolder, Manifest]](), list[AuditFinding]()
    for folder in folders:
        try:
            data = folder.read(MANIFEST_PATH)
            unmatched[digest_bytes(data)] = (folder, parse_manifest(data))
        except ApplianceError as error:
            findings.append(AuditFinding(index=None, rule=RULE, message=f"folder {folder.name}: {error.message}"))
    sealed_folders = []
    for line in entries:
        if not any(f'"type":"{kind}"'.encode() in line for kind in _SEALING):
            continue
        entry = parse_entry(line)
        if entry.type in _SEALING and (digest := entry.documents.get("manifest", "")) in unmatched:
            sealed_folders.append(_Sealed(*unmatched.pop(digest), entry))
    for digest, (folder, _) in unmatched.items():
        kinds = "an adapter, a dataset or a validation set"
        message = f"folder {folder.name}: expected a manifest that {kinds} of this log has, got {digest}"
        findings.append(AuditFinding(index=None, rule=RULE, message=message))
    return sealed_folders, findings


def _verify_adapter(adapter: _Sealed, sealed_folders: list[_Sealed], document: Documents) -> str:
    """Compute the evaluation again and return a line for people.

    Raises: NotFound if the folder of another adapter is needed; Tampered if the results differ.
    """
    items, bound = parse_items(adapter.file(items_path(HELD_OUT))), adapter.entry.documents
    gates, evidence = None, VerdictInputs({HELD_OUT: items}, {}, {})
    if "verdict" in bound:
        gates = parse_gates(_read_document(document, bound["gates"]))
        evidence = read_verdict_inputs(
            parse_verdict(_read_document(document, bound["verdict"])),
            gates,
            lambda record: _find_items(adapter, sealed_folders, record),
        )
    computed = conclude(gates, items, evidence)
    stored = Conclusion(
        verdict=_read_document(document, bound["verdict"]) if "verdict" in bound else None,
        calibration=adapter.file(CALIBRATION_FILE) if computed.calibration is not None else None,
    )
    for name, data, again in zip(Conclusion._fields, stored, computed, strict=True):
        if data != again:
            raise Tampered(
                f"{adapter.subject}, {name}: expected what its items give, got another one, {adapter.folder.name}"
            )
    what = "verdict and items" if gates is not None else "items, without gates"
    return f"{adapter.subject}: {what} hold, computed again from {adapter.folder.name}"


def _read_document(document: Documents, digest: str) -> bytes:
    data = document(digest)
    if data is None or digest_bytes(data) != digest:
        raise Tampered(f"document {digest}: expected it beside the log, got none")
    return data


def _find_items(adapter: _Sealed, sealed_folders: list[_Sealed], record: EvaluatedSet) -> bytes:
    path = items_path(record.set)
    own = path if record.model == "run" else items_path(record.set, released=record.model == "released")
    if record.model == "run" or record.digest in {file.digest for file in adapter.manifest.files if file.path == own}:
        return adapter.file(own)
    for other in sealed_folders:
        if record.digest in {file.digest for file in other.manifest.files if file.path == path}:
            return other.file(path)
    raise NotFound(
        f"verdict of {adapter.subject}: give the folder of the adapter that it is compared with ({record.model}), too, "
        f"whose {path} is {record.digest}"
    )


def _check_rows(adapter: _Sealed, sealed_folders: list[_Sealed], document: Documents) -> list[str]:
    """Check that the items are of exactly the rows of their sets; return lines for the sets whose folders are missing.

    Raises: Tampered if the rows differ.
    """
    missing, listed = [], {(other.entry.type, other.subject): other for other in sealed_folders}
    for kind, name, digest in _list_sets(adapter, document):
        if kind == _LOCAL:
            missing += _check_local_rows(adapter, LocalSet(set=name, digest=digest))
            continue
        rows = listed.get((_ROWS[kind], name))
        if rows is None:
            missing.append(f"rows of {adapter.subject}: give the folder of its {kind} {name}, too")
            continue
        own = HELD_OUT if kind == "dataset" else split_version(name)[0]
        expected = _read_rows(rows)
        for each in (items_path(own), items_path(own, released=True)):
            if each in {file.path for file in adapter.manifest.files}:
                check_rows(parse_items(adapter.file(each)), expected, f"{adapter.subject}, {each}")
    return missing


def _check_local_rows(adapter: _Sealed, bound: LocalSet) -> list[str]:
    """Check the items of a local set, or return a line if this program does not have the set with the same texts."""
    expected = find_shipped_rows(bound) if bound.set in SHIPPED else None
    if expected is None:
        return [
            f"rows of {adapter.subject} on {bound.set}: this program does not have the set of digest {bound.digest}"
        ]
    for path in (items_path(bound.set), items_path(bound.set, released=True)):
        if path in {file.path for file in adapter.manifest.files}:
            check_rows(parse_items(adapter.file(path)), expected, f"{adapter.subject}, {path}")
    return []


def _read_rows(rows: _Sealed) -> list[str]:
    """Return the keyed digests of the evaluated rows, verified against the root that the import's entry binds.

    Raises: Tampered if the root differs.
    """
    digests = split_digests(rows.file(DIGESTS_FILE))
    root = f"sha256:{rows_root(digests).hex()}"
    if root != rows.entry.body["root"]:
        raise Tampered(f"{rows.subject}, rows: expected the root {rows.entry.body['root']}, got {root}")
    return list_evaluated_rows(rows.file(ROWS_FILE), digests, str(rows.entry.body["facts"].get("dataset_kind")))


def _list_sets(adapter: _Sealed, document: Documents) -> list[tuple[str, str, str]]:
    """Return the kind, name and digest of each set that the adapter is evaluated on.

    They are read from its provenance, whose signature the rules have verified.
    """
    statement = parse_statement(parse_envelope(_read_document(document, adapter.entry.documents["provenance"])).payload)
    listed = statement.predicate["buildDefinition"]["resolvedDependencies"]
    parts = [(*str(item["name"]).partition(":"), f"sha256:{item['digest']['sha256']}") for item in listed]
    return [(kind, name, digest) for kind, _, name, digest in parts if kind in (*_ROWS, _LOCAL)]
