"""A log in memory with old records of every class, cosigned by a witness, and the archives that it can have."""

from __future__ import annotations

from functools import cache
from typing import Any

from appliance.domain.audit.archives import ArchivePlan, LogBytes, find_cosigned_note, prepare_archive, write_archive
from appliance.domain.core.entry import Entry
from appliance.domain.core.names import add_seconds
from appliance.domain.core.policy import Retention
from appliance.domain.governance.countersignature import OrderRefused
from appliance.domain.governance.service import Heartbeat
from appliance.domain.retention import ArchiveLog, LogArchived, find_witnessed_size, list_bits
from appliance.domain.runs.replays import ReplayFailed
from appliance.domain.serving.requests import RequestRefused
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import hash_leaf
from appliance.formats.log.checkpoint import witness_vkey_of
from appliance.formats.log.export import encode_removed
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN, LogBuilder, order_of, policy_set, stage

NAME = "witness.example/w1"
WITNESS = generate_ed25519()
VKEY = witness_vkey_of(NAME, WITNESS)
CLASSES = ("previews", "refusals", "replays", "requests")
DAY_S = 86_400


def old_site(days: int = 200) -> LogBuilder:
    """Return a site whose records are so many days old, and whose policy lets them be archived after 183."""
    site = _recorded().fork()
    site.now = add_seconds(site.now, days * DAY_S)
    cosign(site)
    site.add(Heartbeat())
    return site


@cache
def _recorded() -> LogBuilder:
    site = stage("serving")
    retention = tuple(Retention(records=records, days=183) for records in CLASSES)
    site.adopt(policy_set(witnesses=(VKEY,), retention=retention))
    add_records(site)
    return site


def add_records(site: LogBuilder) -> None:
    """Append records of every class to a site at the stage `serving`, and a request that stays open."""
    site.add(site.answered(2))
    site.add(site.samples_shown(order_of(site.view_samples())))
    site.add(site.try_finished(order_of(site.try_adapter())))
    site.add(site.request(3))
    site.add(site.answered(3))
    site.add(RequestRefused(unit="legal", application=None, served_model="labels", code="rate-limited", count=3))
    refuse(site)
    (step,) = (made.step for made in site.state.training_checkpoints.values())
    order = order_of(site.replay("r-000001", to_step=step))
    site.add(ReplayFailed(order=order, run="r-000001", code="tampered", message=site.text("Other bytes.")))
    site.add(site.request(4))


def refuse(site: LogBuilder, signer: str = "rita") -> Entry:
    """Append the refusal of an order with a reason."""
    order = site.try_order(signer).model_copy(update={"reason": site.text("I try it.")})
    envelope = site.sign(order)
    body = OrderRefused(order=envelope.pae_digest, action="try-adapter", code="policy", refusals=())
    return site.add(body, documents={"order": encode_envelope(envelope)}, actor=signer)


def cosign(site: LogBuilder) -> None:
    """Have the witness cosign the log."""
    body, documents = site.cosigned(WITNESS, NAME)
    site.add(body, documents=documents)


def log_bytes(site: LogBuilder, size: int | None = None) -> LogBytes:
    """Return the bytes of the first entries: without a size, of those that enough witnesses have cosigned."""
    witnessed = find_witnessed_size(site.state.witnesses.values(), site.state.parameters)
    whole = LogBytes(lambda: site.entries, site.documents.get, len(site.entries))
    return whole._replace(size=witnessed if size is None else size)


def archive_of(site: LogBuilder, size: int | None = None) -> bytes:
    """Return the archive's bytes."""
    log = log_bytes(site, size)
    texts = {one.commitment: one for one in site.disclosures}
    note = find_cosigned_note(log._replace(size=len(site.entries)), log.size)
    return b"".join(
        write_archive(ORIGIN, log, note, lambda wanted: {name: texts[name] for name in wanted if name in texts})
    )


def prepare(
    site: LogBuilder, up_to: int | None = None, records: tuple[str, ...] = CLASSES
) -> tuple[ArchiveLog, ArchivePlan]:
    """Return the order that removes these records, as a client prepares it."""
    log = log_bytes(site)
    prepared = prepare_archive(log, len(_recorded().entries) if up_to is None else up_to, records)  # type: ignore[arg-type]
    return archive_order(site, prepared), prepared


def archive_order(site: LogBuilder, prepared: ArchivePlan, **changes: Any) -> ArchiveLog:
    values = {**prepared.fields.model_dump(), "archive": digest_bytes(archive_of(site)), **changes}
    return site.order(ArchiveLog, "anna", **values)


def archived(site: LogBuilder, order: ArchiveLog, removed: bytes) -> Entry:
    """Append the order's entries, and remove what it names from the log's bytes as the service does."""
    entry = site.two(LogArchived(policy=site.in_force), order, {"removed": removed})
    remove(site, removed)
    return entry


def remove(site: LogBuilder, removed: bytes) -> None:
    """Remove these entries' bytes, and the documents and texts that no other entry binds."""
    for index in list_bits(removed):
        site.entries[index] = encode_removed(hash_leaf(site.entries[index]))
    rest = b"".join(site.entries)
    site.documents = {digest: data for digest, data in site.documents.items() if digest.encode() in rest}
    site.disclosures = [one for one in site.disclosures if one.commitment in site.state.texts]
