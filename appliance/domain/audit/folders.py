"""Sealed folders beside a log: what the log says of an adapter's evaluation is computed again from its folder.

An adapter's folder holds its items; the folder of a dataset or validation set, where it is given too, says which rows
they must be of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from appliance.domain.audit.report import Finding, Report, with_findings
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.names import split_version
from appliance.domain.core.records.data import LocalSet
from appliance.domain.data.local_sets import SHIPPED
from appliance.domain.evaluation.basis import items_path
from appliance.domain.evaluation.evidence import Conclusion, conclude, read_evidence
from appliance.domain.evaluation.gates import HELD_OUT, parse_gates
from appliance.domain.evaluation.items import check_rows, parse_items
from appliance.domain.evaluation.judging import CALIBRATION_FILE, list_judged_rows
from appliance.domain.evaluation.shipped.sets import find_shipped_rows
from appliance.domain.evaluation.verdict import Evidence, Judged, parse_verdict
from appliance.errors import ApplianceError, NotFound, Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH, Manifest, parse_manifest
from appliance.formats.artifacts.rows import rows_root, split_digests
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope
from appliance.formats.signatures.statement import parse_statement

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


@dataclass(frozen=True)
class Folder:
    """`name` for people; `read`: a file's bytes by its path."""

    name: str
    read: Callable[[str], bytes]


@dataclass
class _Sealed:
    """A folder and the entry that binds its manifest."""

    folder: Folder
    manifest: Manifest
    entry: Entry
    read: dict[str, bytes] = field(default_factory=dict)

    def file(self, path: str) -> bytes:
        """The bytes that the manifest lists under this path."""
        if path not in self.read:
            listed = {one.path: one.digest for one in self.manifest.files}
            data = self.folder.read(path)
            if (got := digest_bytes(data)) != listed.get(path):
                raise Tampered(f"folder {self.folder.name}, {path}: expected {listed.get(path)}, got {got}")
            self.read[path] = data
        return self.read[path]

    @property
    def subject(self) -> str:
        return str(self.entry.body[_SEALING[self.entry.type]])


def verify_folders(report: Report, entries: Iterable[bytes], document: Documents, folders: Iterable[Folder]) -> Report:
    """The report on a log with what its sealed folders say: a finding for each that is not what an entry binds, or does
    not give the verdict that the log has."""
    found, findings = _match(entries, list(folders))
    told, unchecked, essential = list[str](), list[str](), list[str]()
    adapters = [one for one in found if one.entry.type == "adapter.sealed"]
    for one in adapters:
        try:
            told.append(_verify(one, found, document))
            unchecked += _check_rows(one, found, document)
        except NotFound as error:
            essential.append(error.message)
        except ApplianceError as error:
            findings.append(Finding(index=one.entry.index, rule=RULE, message=error.message))
    changes: dict[str, object] = {"remarks": (*report.remarks, *told), "unchecked": (*report.unchecked, *unchecked)}
    if essential:
        changes |= {"essential": (*report.essential, *essential)}
        changes |= {} if report.verdict == "failed" else {"verdict": "unverifiable"}
    return with_findings(report.model_copy(update=changes), tuple(findings))


def _match(entries: Iterable[bytes], folders: list[Folder]) -> tuple[list[_Sealed], list[Finding]]:
    """Each folder with its entry, by the digest of its manifest."""
    wanted, findings = dict[str, tuple[Folder, Manifest]](), list[Finding]()
    for folder in folders:
        try:
            data = folder.read(MANIFEST_PATH)
            wanted[digest_bytes(data)] = (folder, parse_manifest(data))
        except ApplianceError as error:
            findings.append(Finding(index=None, rule=RULE, message=f"folder {folder.name}: {error.message}"))
    found = []
    for line in entries:
        if not any(f'"type":"{kind}"'.encode() in line for kind in _SEALING):
            continue
        entry = parse_entry(line)
        if entry.type in _SEALING and (digest := entry.documents.get("manifest", "")) in wanted:
            found.append(_Sealed(*wanted.pop(digest), entry))
    for digest, (folder, _) in wanted.items():
        kinds = "an adapter, a dataset or a validation set"
        said = f"folder {folder.name}: expected a manifest that {kinds} of this log has, got {digest}"
        findings.append(Finding(index=None, rule=RULE, message=said))
    return found, findings


def _verify(one: _Sealed, found: list[_Sealed], document: Documents) -> str:
    """What was computed again, for people. NotFound where the folder of another adapter is needed."""
    items, bound = parse_items(one.file(items_path(HELD_OUT))), one.entry.documents
    gates, evidence = None, Evidence({HELD_OUT: items}, {}, {})
    if "verdict" in bound:
        gates = parse_gates(_document(document, bound["gates"]))
        evidence = read_evidence(
            parse_verdict(_document(document, bound["verdict"])), gates, lambda judged: _find_items(one, found, judged)
        )
    computed = conclude(gates, items, evidence)
    stored = Conclusion(
        verdict=_document(document, bound["verdict"]) if "verdict" in bound else None,
        calibration=one.file(CALIBRATION_FILE) if computed.calibration is not None else None,
    )
    for name, data, again in zip(Conclusion._fields, stored, computed, strict=True):
        if data != again:
            raise Tampered(f"{one.subject}, {name}: expected what its items give, got another one, {one.folder.name}")
    what = "verdict and items" if gates is not None else "items, without gates"
    return f"{one.subject}: {what} hold, computed again from {one.folder.name}"


def _document(document: Documents, digest: str) -> bytes:
    data = document(digest)
    if data is None or digest_bytes(data) != digest:
        raise Tampered(f"document {digest}: expected it beside the log, got none")
    return data


def _find_items(one: _Sealed, found: list[_Sealed], judged: Judged) -> bytes:
    path = items_path(judged.set)
    own = path if judged.model == "run" else items_path(judged.set, released=judged.model == "released")
    if judged.model == "run" or judged.digest in {file.digest for file in one.manifest.files if file.path == own}:
        return one.file(own)
    for other in found:
        if judged.digest in {file.digest for file in other.manifest.files if file.path == path}:
            return other.file(path)
    raise NotFound(
        f"verdict of {one.subject}: give the folder of the adapter that it is compared with ({judged.model}), too, "
        f"whose {path} is {judged.digest}"
    )


def _check_rows(one: _Sealed, found: list[_Sealed], document: Documents) -> list[str]:
    """What was not checked, since its folder is not there; Tampered where items are not of exactly the rows of their
    set."""
    missing, listed = [], {(other.entry.type, other.subject): other for other in found}
    for kind, name, digest in _sets_of(one, document):
        if kind == _LOCAL:
            missing += _check_local_rows(one, LocalSet(set=name, digest=digest))
            continue
        rows = listed.get((_ROWS[kind], name))
        if rows is None:
            missing.append(f"rows of {one.subject}: give the folder of its {kind} {name}, too")
            continue
        own = HELD_OUT if kind == "dataset" else split_version(name)[0]
        expected = _read_rows(rows)
        for each in (items_path(own), items_path(own, released=True)):
            if each in {file.path for file in one.manifest.files}:
                check_rows(parse_items(one.file(each)), expected, f"{one.subject}, {each}")
    return missing


def _check_local_rows(one: _Sealed, bound: LocalSet) -> list[str]:
    """A set that comes with the appliance is here, too, unless it had other texts then."""
    expected = find_shipped_rows(bound) if bound.set in SHIPPED else None
    if expected is None:
        return [f"rows of {one.subject} on {bound.set}: this program does not have the set of digest {bound.digest}"]
    for path in (items_path(bound.set), items_path(bound.set, released=True)):
        if path in {file.path for file in one.manifest.files}:
            check_rows(parse_items(one.file(path)), expected, f"{one.subject}, {path}")
    return []


def _read_rows(rows: _Sealed) -> list[str]:
    """The keyed digests of the rows that are judged on, proved against the root that the import's entry binds."""
    digests = split_digests(rows.file(DIGESTS_FILE))
    root = f"sha256:{rows_root(digests).hex()}"
    if root != rows.entry.body["root"]:
        raise Tampered(f"{rows.subject}, rows: expected the root {rows.entry.body['root']}, got {root}")
    return list_judged_rows(rows.file(ROWS_FILE), digests, str(rows.entry.body["facts"].get("task")))


def _sets_of(one: _Sealed, document: Documents) -> list[tuple[str, str, str]]:
    """The kind, name and digest of everything whose rows it is judged on, by its provenance, whose signature the rules
    have checked."""
    statement = parse_statement(parse_envelope(_document(document, one.entry.documents["provenance"])).payload)
    listed = statement.predicate["buildDefinition"]["resolvedDependencies"]
    parts = [(*str(item["name"]).partition(":"), f"sha256:{item['digest']['sha256']}") for item in listed]
    return [(kind, name, digest) for kind, _, name, digest in parts if kind in (*_ROWS, _LOCAL)]
