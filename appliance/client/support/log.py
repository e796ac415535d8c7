"""The log as this side checks it: what an entry says counts once it is proved under the log's key."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.client.support.door import LONG_TIMEOUT_S, About, Door, Parameter
from appliance.client.support.files import check_place, read_file
from appliance.domain.core.entry import Entry, parse_entry
from appliance.errors import BadInput, Conflict, NotFound, Tampered, Unavailable
from appliance.formats.core.commitment import Disclosure, parse_disclosure_value, verify_disclosure
from appliance.formats.core.digest import Hasher, digest_bytes
from appliance.formats.core.fields import parse_base64, show
from appliance.formats.core.merkle import verify_inclusion
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.log.proof import Proof, encode_proof
from appliance.formats.log.trust import Trust, parse_trust

PAGE = 500
_MAX_TRUST_BYTES = 65_536


@dataclass(frozen=True)
class Anchor:
    """Which log this is, and who says so."""

    origin: str
    log_key: str
    genesis: str
    said_by: str


@dataclass(frozen=True)
class Proven:
    """An entry with its documents, proved to stand under a log checkpoint of `size` entries; `proof` proves it without
    the service (c2sp.org/tlog-proof)."""

    entry: Entry
    documents: Mapping[str, bytes]
    disclosures: tuple[Disclosure, ...]
    size: int
    proof: bytes

    def document(self, role: str) -> bytes:
        data = self.documents.get(role)
        if data is None:
            raise NotFound(
                f"entry {self.entry.index}, document {role}: expected one of "
                f"{', '.join(self.documents) or 'none'}, got no such role"
            )
        return data


def load_trust(path: Path) -> Trust:
    data = read_file(path, "trust file", _MAX_TRUST_BYTES)
    try:
        return parse_trust(data)
    except BadInput as error:
        raise BadInput(f"trust file, {path}: {error.message}") from None


def anchor_of(about: About, trust: Trust | None) -> Anchor:
    """The trust file's log, which the service must be; without a trust file the service's own word."""
    if trust is None:
        return Anchor(about.origin, about.log_key, about.genesis, "the service's own word; no trust file was given")
    check_log(about, trust)
    _expect("log key", trust.log_key, about.log_key)
    return Anchor(trust.origin, trust.log_key, trust.genesis, "the trust file")


def check_log(about: About, trust: Trust) -> None:
    """Tampered unless the service says that it is the trust file's log, whatever its key is now."""
    _expect("origin", trust.origin, about.origin)
    _expect("first entry", trust.genesis, about.genesis)


def _expect(what: str, kept: str, told: str) -> None:
    if kept != told:
        raise Tampered(
            f"trust file, {what}: expected {kept}, got a service that says {told}; is it another appliance's?",
            code="trust",
        )


def read_entry(door: Door, anchor: Anchor, index: int) -> Proven:
    """Entry, documents and texts, each checked: inclusion under the log's key, digests, commitments."""
    answer = door.get(f"/v1/ledger/{index}")
    try:
        entry = parse_entry(parse_base64(answer["bytes"], f"entry {index}"))
        documents = {role: parse_base64(data, f"document {role}") for role, data in answer["documents"].items()}
        disclosures = tuple(parse_disclosure_value(value) for value in answer["disclosures"])
        proof = [bytes.fromhex(step) for step in answer["proof"]]
        note = answer["checkpoint"].encode("utf-8")
    except (KeyError, TypeError, AttributeError, ValueError):
        raise Unavailable(f"service, entry {index}: expected an entry with its proof, got {show(answer)}") from None
    if entry.index != index:
        raise Tampered(f"entry {index}: expected this index, got {entry.index}")
    checkpoint = open_checkpoint(note, anchor.log_key)
    verify_inclusion(entry.leaf, index, checkpoint.size, proof, checkpoint.root)
    if index == 0 and f"sha256:{entry.leaf.hex()}" != anchor.genesis:
        raise Tampered(f"entry 0: expected the log's first entry {anchor.genesis}, got sha256:{entry.leaf.hex()}")
    for role, digest in entry.documents.items():
        if digest_bytes(documents.get(role, b"")) != digest:
            raise Tampered(f"entry {index}, document {role}: expected {digest}, got other bytes")
    for disclosure in disclosures:
        verify_disclosure(disclosure)
    bound = {role: documents[role] for role in entry.documents}  # nothing that the entry does not bind
    return Proven(entry, bound, disclosures, checkpoint.size, encode_proof(Proof(index, tuple(proof), note)))


def fetch_document(door: Door, digest: str, what: str) -> bytes:
    """A document of the log by its digest, hashed here."""
    data = b"".join(door.stream(f"/v1/documents/{digest}"))
    if digest_bytes(data) != digest:
        raise Tampered(f"{what} {digest}: expected these bytes, got {digest_bytes(data)}")
    return data


def adapter_key(door: Door, anchor: Anchor) -> bytes:
    """The SPKI of the key that signs adapters, from the log's first entry."""
    from appliance.domain.governance.service import Initialized
    from appliance.domain.rulebook.apply import parse_body

    body = parse_body(read_entry(door, anchor, 0).entry)
    if not isinstance(body, Initialized):
        raise Tampered(f"entry 0: expected {Initialized.type}, got {body.type}")
    if body.origin != anchor.origin:
        raise Tampered(f"entry 0, log: expected {anchor.origin}, got {body.origin}")
    return parse_base64(body.adapter_key, "entry 0, adapter key")


def find_entries(door: Door, **wanted: Any) -> Iterator[Entry]:
    """Every entry that fits, in the log's order or with `newest` backwards from its end, page by page."""
    return (entry for entry, _ in find_told(door, **wanted))


def find_told(
    door: Door,
    *,
    after: int | None = None,
    before: int | None = None,
    newest: bool = False,
    page: int = PAGE,
    strict: bool = False,
    **filters: Parameter | None,
) -> Iterator[tuple[Entry, dict[str, Any] | None]]:
    """The same, each with what the service says of it where it is a review: its decision, and what that counts for.

    `strict`: BadInput where a filter's word is not known, before anything is returned.
    """
    while True:
        bounds: dict[str, int | None] = {"after": after, "before": before, "limit": min(page, PAGE)}
        answer = door.get("/v1/ledger", newest="true" if newest else None, **bounds, **filters)
        if strict and answer["unknown"]:
            raise BadInput(f"log, {'; '.join(answer['unknown'])}")
        for row in answer["entries"]:
            entry = parse_entry(parse_base64(row["bytes"], "entry"))
            yield entry, answer["reviews"].get(str(entry.index))
        if answer["next"] is None:
            return
        after, before = (after, answer["next"]) if newest else (answer["next"], before)


def export(door: Door, path: Path) -> tuple[str, int]:
    """Writes the whole log to a new file, under its name only once it is complete. Digest and bytes."""
    check_place(path, "export")
    if path.exists():
        raise Conflict(f"export, {path}: expected a name that is free, got an existing file")
    part = path.with_name(f".{path.name}.part")
    hasher = Hasher()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            for chunk in door.stream("/v1/ledger/export"):
                file.write(chunk)
                hasher.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        raise Unavailable(f"export, {path}: expected it to be writable, got {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return hasher.digest(), hasher.size


def verify(door: Door, trust: Trust | None) -> dict[str, Any]:
    """The service's own report on its log, its projections and its artifacts."""
    value = None
    if trust is not None:
        value = {
            "version": 1,
            "origin": trust.origin,
            "logKey": trust.log_key,
            "genesis": trust.genesis,
            "administrators": [{"name": name, "keyid": keyid} for name, keyid in trust.administrators],
        }
    report = door.post("/v1/ledger/verify", {"trust": value}, timeout_s=LONG_TIMEOUT_S)
    if not isinstance(report, dict) or "verdict" not in report:
        raise Unavailable(f"service, verify: expected a report with a verdict, got {show(report)}")
    return report
