"""The proof of one entry as a file, which an auditor keeps and anyone can check without the service.

It contains the entry's bytes, its documents, the texts that are still disclosed, and its proofs (c2sp.org/tlog-proof):
one under the log's own checkpoint, and one under each cosigned checkpoint that includes the entry. The page
`proof.html` of the console reads the same file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.names import Value, parse_file
from appliance.domain.queries.response import check_quorum
from appliance.errors import BadInput, Tampered
from appliance.formats.core.commitment import Disclosure, parse_disclosure_value, verify_disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import parse_base64
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.log_policy import NONE, LogPolicy
from appliance.formats.log.proof import parse_proof, verify_proof
from appliance.formats.signatures.dsse import parse_envelope

MAX_BYTES = 32_000_000
"""Largest size of a proof file in bytes."""
MAX_PROOFS = 17
"""Largest number of proofs: the log's own and one of each witness."""


class EntryProof(Value):
    """The fields of a proof file."""

    entry: str
    proofs: tuple[str, ...] = Field(min_length=1, max_length=MAX_PROOFS)
    documents: dict[str, str]
    disclosures: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class VerifiedEntry:
    """A verified entry.

    `sizes`: sizes of the log by each proof. `times_s`: time in seconds since 1970 at which each witness of the policy
    cosigned a checkpoint with the entry.
    """

    entry: Entry
    documents: Mapping[str, bytes]
    disclosures: tuple[Disclosure, ...]
    sizes: tuple[int, ...]
    times_s: Mapping[str, int]


def encode_entry_proof(proof: EntryProof) -> bytes:
    """Return the bytes of a proof file."""
    return json.dumps(proof.model_dump(mode="json"), ensure_ascii=False, indent=1).encode() + b"\n"


def parse_entry_proof(data: bytes) -> EntryProof:
    """Return a proof from any JSON encoding of it.

    Raises:
        BadInput: it is malformed or too long, or a field occurs twice, which readers would interpret differently.
    """
    if len(data) > MAX_BYTES:
        raise BadInput(f"proof: expected at most {MAX_BYTES} bytes, got {len(data)}")
    return parse_file(EntryProof, data, "proof")


def verify_entry_proof(proof: EntryProof, policy: LogPolicy, genesis: str | None = None) -> VerifiedEntry:
    """Return the entry after verifying its proofs, documents and texts against a trust policy.

    `genesis`: leaf hash of the log's first entry.

    Raises:
        Tampered: a proof is not valid under a log of the policy, or a document or text is not the entry's.
        Unavailable: all of that is valid, but fewer witnesses cosigned than the policy requires.
    """
    try:
        entry = parse_entry(proof.entry.encode())
        indexes = {parse_proof(text.encode()).index for text in proof.proofs}
    except (BadInput, UnicodeEncodeError) as error:
        raise Tampered(f"proof: {error}") from None
    if indexes != {entry.index}:
        raise Tampered(f"proof: expected proofs of entry {entry.index}, got {sorted(indexes)}")
    if entry.index == 0 and genesis not in (None, entry.link):
        raise Tampered(f"proof, entry 0: expected {genesis}, got {entry.link}")
    # A single checkpoint needs no quorum, because witnesses cosign the log at different sizes.
    without_quorum = replace(policy, groups=(), quorum=NONE)
    witnessed = [verify_proof(text.encode(), entry.leaf, without_quorum) for text in proof.proofs]
    times_s = {name: time for proof_result in witnessed for name, time in proof_result.times_s.items()}
    documents, disclosures = _verify_documents(proof, entry)
    check_quorum(policy, times_s)
    return VerifiedEntry(
        entry, documents, disclosures, tuple(proof_result.checkpoint.size for proof_result in witnessed), times_s
    )


def describe_proven(proven: VerifiedEntry) -> list[tuple[str, str]]:
    """Return (name, text) lines for people about a verified entry."""
    entry = proven.entry
    cosigned = [f"{name} at {_format_time(time_s)}" for name, time_s in sorted(proven.times_s.items())]
    return [
        ("verdict", "verified"),
        ("entry", f"{entry.index}, {entry.type} by {entry.actor} at {entry.time}: {entry.outcome}"),
        ("about", ", ".join(entry.subjects) or "nothing else"),
        ("proved", f"in a log of {' and of '.join(map(str, proven.sizes))} entries"),
        ("witnesses", "; ".join(cosigned) or "none: that there is one history only is not shown"),
        ("documents", ", ".join(f"{role} {digest}" for role, digest in entry.documents.items()) or "none"),
        ("texts", "; ".join(disclosure.text for disclosure in proven.disclosures) or "none"),
    ]


def _format_time(time_s: int) -> str:
    try:
        return encode_time(datetime.fromtimestamp(time_s, UTC))
    except (ValueError, OverflowError, OSError):
        return f"{time_s} s"


def _verify_documents(proof: EntryProof, entry: Entry) -> tuple[dict[str, bytes], tuple[Disclosure, ...]]:
    if proof.documents.keys() != entry.documents.keys():
        expected, got = ", ".join(entry.documents) or "none", ", ".join(proof.documents) or "none"
        raise Tampered(f"proof, documents: expected {expected}, got {got}")
    documents, bound = {}, [proof.entry.encode()]
    for role, text in proof.documents.items():
        try:
            content = parse_base64(text, f"proof, document {role}")
        except BadInput as error:
            raise Tampered(error.message) from None
        if (got := digest_bytes(content)) != entry.documents[role]:
            raise Tampered(f"proof, document {role}: expected {entry.documents[role]}, got {got}")
        documents[role] = content
        bound += [content, _read_payload(content)]
    disclosures = tuple(_parse_disclosure(value) for value in proof.disclosures)
    for disclosure in disclosures:
        verify_disclosure(disclosure)
        if not any(disclosure.commitment.encode() in text for text in bound):
            raise Tampered(f"proof, text: expected one that the entry binds, got one of {disclosure.commitment}")
    return documents, disclosures


def _read_payload(content: bytes) -> bytes:
    """Return the signed bytes if the document is an envelope, else no bytes."""
    try:
        return parse_envelope(content).payload
    except BadInput:
        return b""


def _parse_disclosure(value: dict[str, Any]) -> Disclosure:
    try:
        return parse_disclosure_value(value)
    except BadInput as error:
        raise Tampered(f"proof: {error.message}") from None
