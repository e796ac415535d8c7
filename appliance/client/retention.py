"""Log keys, texts and their erasure, legal holds, archives of records, and witnesses."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from appliance.api.log import (
    About,
    Cosignature,
    CosignatureRequest,
    LogKeyRequest,
    LogPage,
    NewLogKey,
    NewPostQuantumKeys,
)
from appliance.api.people import EmptyBody
from appliance.client.support.connection import Connection
from appliance.client.support.files import read_file, replace_file
from appliance.client.support.log import Anchor, ProvenEntry, find_listed_entries, read_entry, write_chunks
from appliance.domain.actions.registry import ORDERS
from appliance.domain.actions.showing import label_of
from appliance.domain.audit.archives import (
    ArchivePlan,
    LogBytes,
    find_cosigned_note,
    find_last_archivable,
    prepare_archive,
    write_archive,
)
from appliance.domain.audit.verify import Audit
from appliance.domain.core.names import RecordClass, Time
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.site import Archive, WitnessRecord
from appliance.domain.governance.people import PrincipalsEnrolled
from appliance.domain.retention import ArchiveLog, LogArchived, find_retention_time, find_witnessed_size, make_archive
from appliance.errors import BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.checkpoint import open_checkpoint, parse_witness_vkey
from appliance.formats.log.export import ParsedExport
from appliance.formats.log.proof import parse_request
from appliance.formats.log.trust import Trust
from appliance.formats.signatures.dsse import parse_envelope

_MAX_NOTE_BYTES = 65_536


def next_log_key(connection: Connection, *, post_quantum: bool) -> str:
    """Return the vkey of a new key that the service has created for a rotation."""
    return connection.post("/v1/log-keys", NewLogKey, LogKeyRequest(post_quantum=post_quantum)).vkey


def make_post_quantum_keys(connection: Connection) -> NewPostQuantumKeys:
    """Return the public keys of ML-DSA-65 that the service has created for checkpoints and adapters."""
    return connection.post("/v1/post-quantum-keys", NewPostQuantumKeys, EmptyBody())


# Archives.


@dataclass(frozen=True)
class PreparedArchive:
    """An archive in a file, which this client wrote and verified, and what the order removes."""

    digest: str
    size: int
    """Size of the file in bytes."""
    prepared: ArchivePlan

    @property
    def values(self) -> dict[str, Any]:
        """Return the derived fields of the order."""
        return {**self.prepared.fields.model_dump(), "archive": self.digest}


def prepare(
    connection: Connection,
    trust: Trust | None,
    path: Path,
    up_to: int | None,
    records: Sequence[RecordClass],
    *,
    size: int | None = None,
) -> PreparedArchive:
    """Write the archive of the log's cosigned entries to a new file, verify it, and choose what can be removed.

    Without `up_to`, all entries are taken whose retention is over by the log's clock and those of the witnesses;
    without `records`, all classes that the policy names. Without `size`, the archive has all entries that as many
    witnesses as policy requires, at least one, have cosigned.

    Raises:
        BadInput: nothing can be removed.
        Conflict: too few witnesses have cosigned the log, or not since its last archive.
        Tampered: the log is not valid under the trust file.
    """
    if trust is None:
        raise BadInput("archive: expected the trust file that init printed, since the archive is verified with it")
    rules, rows = connection.about.parameters, connection.get("/v1/witnesses", list[WitnessRecord])
    size = find_witnessed_size(rows, rules) if size is None else size
    if size == 0:
        raise Conflict(
            f"archive: expected a log that {max(rules.witness_quorum, 1)} of the policy's witnesses have cosigned, got "
            "fewer cosignatures; have the witnesses cosign the log: appliance witness request"
        )
    reached = find_retention_time(rows, rules, size, encode_time(datetime.now(UTC)))
    with tempfile.TemporaryFile() as stream:
        for chunk in connection.stream("/v1/ledger/export"):
            stream.write(chunk)
        stream.seek(0)
        with ParsedExport(stream) as export:
            whole = LogBytes(export.entries, export.document, export.size)
            note = find_cosigned_note(whole, size)
            texts = {one.commitment: one for one in export.disclosures()}
            chunks = write_archive(
                export.origin, whole._replace(size=size), note, lambda wanted: _select(texts, wanted)
            )
            digest, length = write_chunks(path, "archive", chunks)
    try:
        with path.open("rb") as file, ParsedExport(file) as archive:
            prepared = _choose(archive, trust, up_to, records, reached)
    except BaseException:
        path.unlink()
        raise
    return PreparedArchive(digest, length, prepared)


def _select(texts: Mapping[str, Disclosure], wanted: Iterable[str]) -> dict[str, Disclosure]:
    return {commitment: texts[commitment] for commitment in wanted if commitment in texts}


def _choose(
    archive: ParsedExport, trust: Trust, up_to: int | None, records: Sequence[RecordClass], reached: Time
) -> ArchivePlan:
    """Verify the archive and choose what can be removed; `reached` is the time until which retention is counted."""
    audit = Audit(archive.document, archive.disclosures(), archive.checkpoint, trust, again=archive.entries)
    for data in archive.entries():
        audit.take(data)
    report = audit.report(encode_time(datetime.now(UTC)))
    if report.verdict != "verified" or archive.disorder is not None:
        found = report.findings[0].message if report.findings else archive.disorder or report.verdict
        raise Tampered(f"archive: expected a verified log, got {found}")
    days = {row.records: row.days for row in audit.state.parameters.retention}
    chosen = tuple(records or days)
    if unkept := [name for name in chosen if name not in days]:
        raise BadInput(
            f"archive: expected records that the policy's retention gives days, got {', '.join(unkept)}, which the log "
            "keeps for ever; name others, or adopt a policy with days for them"
        )
    if not chosen:
        raise BadInput(
            "archive: expected a policy whose retention gives days for some records, got one that keeps all for ever; "
            "adopt one with days for them"
        )
    if up_to is None:
        longest = max(days[name] for name in chosen)
        up_to = find_last_archivable(archive.entries(), longest, reached)
        if up_to == 0:
            raise BadInput(
                f"archive: expected entries that were {longest} days old when the witnesses cosigned the log, got none"
            )
    return prepare_archive(LogBytes(archive.entries, archive.document, archive.size), up_to, chosen)


def list_archives(connection: Connection, anchor: Anchor) -> list[Archive]:
    """Return the archives, each from its entry, which is proved to be in the log."""
    found = find_listed_entries(connection, type=(LogArchived.type,))
    return [_read_archive(read_entry(connection, anchor, entry.index)) for entry, _ in found]


def _read_archive(proven: ProvenEntry) -> Archive:
    orders = [
        ORDERS.parse(parse_envelope(proven.document(role)).payload)
        for role in ("countersigned", "order")
        if role in proven.documents
    ]
    order = orders[0]
    if not isinstance(order, ArchiveLog):
        raise Tampered(f"entry {proven.entry.index}: expected an order archive-log, got {order.action}")
    return make_archive(proven.entry, order, orders[-1].signer)


# Texts.


@dataclass(frozen=True)
class FoundText:
    """A text that an entry's order, or a failure's message, binds.

    `disclosure` is None if it was erased or never disclosed.
    """

    entry: int
    field: str
    commitment: str
    disclosure: Disclosure | None


def texts_of(proven: ProvenEntry) -> list[FoundText]:
    """Return all texts that the entry binds."""
    texts = {disclosure.commitment: disclosure for disclosure in proven.disclosures}
    return [
        FoundText(proven.entry.index, field, commitment, texts.get(commitment))
        for field, commitment in _commitments(proven)
    ]


def _commitments(proven: ProvenEntry) -> Iterator[tuple[str, str]]:
    for role in ("countersigned", "order"):
        if role in proven.documents:
            order = ORDERS.parse(parse_envelope(proven.documents[role]).payload)
            yield from order.commitments().items()
    message = proven.entry.body.get("message")
    if isinstance(message, str) and message.startswith("hmac-sha256:"):
        yield "message", message


def find_text(connection: Connection, anchor: Anchor, index: int, field: str | None) -> FoundText:
    """Return the only text of a proved entry, or that of a field.

    Raises: BadInput unless exactly one text matches; NotFound if it is not disclosed.
    """
    texts = texts_of(read_entry(connection, anchor, index))
    found = [text for text in texts if field is None or label_of(text.field) == label_of(field)]
    if len(found) != 1:
        known = ", ".join(text.field for text in texts) or "none"
        raise BadInput(f"text of entry {index}: expected --field with one of its texts, got {field}; texts: {known}")
    if found[0].disclosure is None:
        raise NotFound(f"{found[0].field} of entry {index}: expected a text that is disclosed, got one that is not")
    return found[0]


def find_printed_name(connection: Connection, anchor: Anchor, name: str) -> FoundText:
    """Return the printed name of a principal, from the entry that enrolled them.

    Raises: NotFound if there is none.
    """
    people = {row.name: row for row in connection.get("/v1/principals", list[Principal])}
    if name not in people:
        raise NotFound(f"printed name: expected that of an enrolled name, got {name!r}")
    enrolled = people[name].enrolled
    if enrolled == 0:
        raise NotFound(f"printed name of {name}: expected one, got an administrator of the first entry, who has none")
    several = read_entry(connection, anchor, enrolled).entry.type == PrincipalsEnrolled.type
    return find_text(connection, anchor, enrolled, f"printed_name.{name}" if several else "printed_name")


# Witnesses.


@dataclass(frozen=True)
class WrittenWitnessRequest:
    """A witness request: from the size that the witness saw last to the present size."""

    witness: str
    old: int
    size: int


def only_witness(about: About) -> str:
    """Return the name of the policy's only witness.

    Raises: BadInput if the policy has none or several.
    """
    names = [parse_witness_vkey(vkey).name for vkey in about.parameters.witnesses]
    if len(names) != 1:
        known = ", ".join(names) or "none; adopt a policy set that names one by its vkey"
        raise BadInput(f"witness: expected --witness with one of the policy's, got none; witnesses: {known}")
    return names[0]


def write_request(
    connection: Connection, anchor: Anchor, witness: str, old: int | None, path: Path
) -> WrittenWitnessRequest:
    """Write the witness request over the previous one, after verifying that its checkpoint is this log's."""
    query = urlencode({"witness": witness} | ({} if old is None else {"old": old}))
    data = b"".join(connection.stream(f"/v1/witness-request?{query}"))
    request = parse_request(data)
    checkpoint = open_checkpoint(request.checkpoint, *anchor.log_keys)
    replace_file(path, data, "witness request")
    return WrittenWitnessRequest(witness, request.old, checkpoint.size)


def submit_cosignature(connection: Connection, path: Path) -> Cosignature:
    """Submit a witness's cosigned checkpoint."""
    data = read_file(path, "cosigned checkpoint", _MAX_NOTE_BYTES)
    try:
        note = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"cosigned checkpoint, {path}: expected a signed note in UTF-8, got other bytes") from None
    return connection.post("/v1/cosignatures", Cosignature, CosignatureRequest(note=note))


@dataclass(frozen=True)
class WitnessStatus:
    """A witness of the valid policy, or of an earlier one, and its last cosignature.

    `behind` is the number of entries that came after the cosignature.
    """

    name: str
    vkey: str
    counts: bool
    behind: int
    size: int | None = None
    time: str | None = None
    index: int | None = None


def witnesses(connection: Connection, about: About) -> tuple[int, list[WitnessStatus]]:
    """Return the log's size and the witnesses, those of earlier policies last."""
    seen = {row.vkey: row for row in connection.get("/v1/witnesses", list[WitnessRecord])}
    size = connection.get("/v1/ledger", LogPage, limit=1).size
    rows = []
    for vkey in dict.fromkeys((*about.parameters.witnesses, *seen)):
        row, counts = seen.get(vkey), vkey in about.parameters.witnesses
        if row is None:
            rows.append(WitnessStatus(parse_witness_vkey(vkey).name, vkey, counts, size))
        else:
            rows.append(WitnessStatus(row.name, vkey, counts, size - row.size, row.size, row.time, row.index))
    return size, rows
