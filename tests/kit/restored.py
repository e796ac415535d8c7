"""A log that lost its end, and its restoration by two administrators."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.entry import Entry
from appliance.domain.core.names import add_seconds
from appliance.domain.governance.restoration import LogRestored, RestoreLog
from appliance.domain.governance.service import Heartbeat
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import Frontier, consistency_proof, hash_leaf, inclusion_proof, root_of
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from appliance.formats.log.proof import Proof, encode_proof
from appliance.formats.log.restoration import RestorationFile, StepBackFile
from appliance.formats.signatures.keys import Signer
from scripts.kit.log_builder import LogBuilder, b64, stage


def node_of(site: LogBuilder) -> Any:
    leaves = [hash_leaf(data) for data in site.entries]
    return lambda level, index: root_of(leaves[index << level : (index + 1) << level])


def root_at(site: LogBuilder, size: int) -> str:
    return f"sha256:{root_of(hash_leaf(data) for data in site.entries[:size]).hex()}"


def lose(site: LogBuilder, entries: int = 5) -> LogBuilder:
    """Return the same log with more entries, which the restored one lacks."""
    other = site.fork()
    for _ in range(entries):
        other.add(Heartbeat())
    site.now = add_seconds(other.now, 60)
    return other


def restore_order(site: LogBuilder, note: bytes, /, by: str = "anna", **fields: Any) -> RestoreLog:
    """Return the order that keeps the log as it is."""
    size = fields.setdefault("kept_size", site.state.size)
    found = open_checkpoint(note, site.first.log_key)
    defaults = {
        "kept_root": root_at(site, size),
        "lost": digest_bytes(note),
        "lost_size": found.size,
        "lost_root": f"sha256:{found.root.hex()}",
    }
    return site.order(RestoreLog, by, **defaults | fields)


def event(site: LogBuilder, order: RestoreLog) -> LogRestored:
    """Return the event of the log's next entry."""
    proof = tuple(b64(step) for step in consistency_proof(order.kept_size, site.state.size, node_of(site)))
    return LogRestored(policy=site.in_force, proof=proof)


def restore(site: LogBuilder, lost: bytes, second: str = "ben", by: str = "anna", **fields: Any) -> Entry:
    """Both entries of a restoration."""
    order = restore_order(site, lost, by, **fields)
    envelope = site.pend(order, {"lost": lost})
    return site.countersign(event(site, order), order, envelope, {"lost": lost}, second)


def restored(name: str = "staffed", entries: int = 5) -> tuple[LogBuilder, LogBuilder, Entry]:
    """Return a restored log, the log as it was, and the entry of the restoration."""
    site = stage(name)
    other = lose(site, entries)
    return site, other, restore(site, other.checkpoint())


def sign_larger(head: bytes, signer: Signer, vkey: str, more: int = 50, root: bytes = b"\1" * 32) -> bytes:
    """Sign a checkpoint of a log that has more entries, as a client saw it before a restore."""
    known = open_checkpoint(head, vkey)
    return sign_checkpoint(Checkpoint(known.origin, known.size + more, root), signer)


def restoration_file(site: LogBuilder, entry: Entry, names: tuple[str, ...] = ("anna", "ben")) -> RestorationFile:
    """Return the file that proves a restoration outside the log."""
    size, node = site.state.size, node_of(site)
    kept = site.state.site.restorations[-1].kept_size
    documents = {role: site.documents[digest] for role, digest in entry.documents.items()}
    return RestorationFile(
        entry=entry.encoded,
        proof=encode_proof(Proof(entry.index, tuple(inclusion_proof(entry.index, size, node)), site.checkpoint())),
        order=documents["order"],
        countersigned=documents.get("countersigned"),
        lost=documents["lost"],
        keys=tuple(site.keys[name].spki for name in names),
        consistency=tuple(consistency_proof(kept, size, node)),
    )


def step_back_file(site: LogBuilder, entry: Entry, names: tuple[str, ...] = ("anna", "ben")) -> StepBackFile:
    """Return the same orders as the signer gets them, before their entry."""
    kept = site.state.site.restorations[-1].kept_size
    documents = {role: site.documents[digest] for role, digest in entry.documents.items()}
    return StepBackFile(
        order=documents["order"],
        countersigned=documents.get("countersigned"),
        lost=documents["lost"],
        keys=tuple(site.keys[name].spki for name in names),
        kept=site.checkpoint(kept),
        edge=edge_at(site, kept).hashes,
    )


def edge_at(site: LogBuilder, size: int) -> Frontier:
    return Frontier.EMPTY.extend([hash_leaf(data) for data in site.entries[:size]])[0]
