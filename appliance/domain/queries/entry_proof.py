"""The proof of one entry as a file: what an auditor keeps of an entry, and what a stranger can check of it without a
service.

It is the entry's bytes, its documents, the texts that are still disclosed, and its proofs (c2sp.org/tlog-proof): one
under the log's own checkpoint, and one under each checkpoint that a witness cosigned and that has the entry. The page
`proof.html` of the console reads the same file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, ValidationError

from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.names import Value, explain
from appliance.domain.queries.response import check_quorum, once
from appliance.errors import BadInput, Tampered
from appliance.formats.core.commitment import Disclosure, parse_disclosure_value, verify_disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import parse_base64
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.log_policy import NONE, LogPolicy
from appliance.formats.log.proof import parse_proof, verify_proof
from appliance.formats.signatures.dsse import parse_envelope

MAX_BYTES = 32_000_000
MAX_PROOFS = 17
"""The log's own and one of each witness."""


class EntryProof(Value):
    entry: str
    proofs: tuple[str, ...] = Field(min_length=1, max_length=MAX_PROOFS)
    documents: dict[str, str]
    disclosures: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class ProvenEntry:
    """`sizes`: of the logs that have it, by each proof; `times_s`: when each witness of the policy cosigned one, in
    seconds since 1970."""

    entry: Entry
    documents: Mapping[str, bytes]
    disclosures: tuple[Disclosure, ...]
    sizes: tuple[int, ...]
    times_s: Mapping[str, int]


def encode_entry_proof(proof: EntryProof) -> bytes:
    return json.dumps(proof.model_dump(mode="json"), ensure_ascii=False, indent=1).encode() + b"\n"


def parse_entry_proof(data: bytes) -> EntryProof:
    """In any spelling of its JSON but one member twice, of which another reader may take the other one."""
    if len(data) > MAX_BYTES:
        raise BadInput(f"proof: expected at most {MAX_BYTES} bytes, got {len(data)}")
    try:
        json.loads(data.decode("utf-8"), object_pairs_hook=once)
        return EntryProof.model_validate_json(data)
    except ValidationError as error:
        raise BadInput(f"proof: {explain(error)}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"proof: expected JSON in UTF-8, got {error}") from None


def verify_entry_proof(proof: EntryProof, policy: LogPolicy, genesis: str | None = None) -> ProvenEntry:
    """Tampered unless every proof holds under a log of the policy, and the documents and texts are those that the entry
    binds. Unavailable where all of that holds, and fewer witnesses cosigned it than the policy asks for. `genesis`: the
    first entry of the log, by its leaf hash."""
    try:
        entry = parse_entry(proof.entry.encode())
        indexes = {parse_proof(text.encode()).index for text in proof.proofs}
    except (BadInput, UnicodeEncodeError) as error:
        raise Tampered(f"proof: {error}") from None
    if indexes != {entry.index}:
        raise Tampered(f"proof: expected proofs of entry {entry.index}, got {sorted(indexes)}")
    if entry.index == 0 and genesis not in (None, entry.link):
        raise Tampered(f"proof, entry 0: expected {genesis}, got {entry.link}")
    # Each checkpoint on its own needs no quorum: witnesses see the log at different sizes.
    alone = replace(policy, groups=(), quorum=NONE)
    witnessed = [verify_proof(text.encode(), entry.leaf, alone) for text in proof.proofs]
    times_s = {name: time for one in witnessed for name, time in one.times_s.items()}
    documents, disclosures = _verify_documents(proof, entry)
    check_quorum(policy, times_s)
    return ProvenEntry(entry, documents, disclosures, tuple(one.checkpoint.size for one in witnessed), times_s)


def tell_proven(proven: ProvenEntry) -> list[tuple[str, str]]:
    """In lines for people."""
    entry = proven.entry
    cosigned = [f"{name} at {_time(time_s)}" for name, time_s in sorted(proven.times_s.items())]
    return [
        ("verdict", "verified"),
        ("entry", f"{entry.index}, {entry.type} by {entry.actor} at {entry.time}: {entry.outcome}"),
        ("about", ", ".join(entry.subjects) or "nothing else"),
        ("proved", f"in a log of {' and of '.join(map(str, proven.sizes))} entries"),
        ("witnesses", "; ".join(cosigned) or "none: that there is one history only is not shown"),
        ("documents", ", ".join(f"{role} {digest}" for role, digest in entry.documents.items()) or "none"),
        ("texts", "; ".join(one.text for one in proven.disclosures) or "none"),
    ]


def _time(time_s: int) -> str:
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
        bound += [content, _payload(content)]
    disclosures = tuple(_parse_disclosure(value) for value in proof.disclosures)
    for one in disclosures:
        verify_disclosure(one)
        if not any(one.commitment.encode() in text for text in bound):
            raise Tampered(f"proof, text: expected one that the entry binds, got one of {one.commitment}")
    return documents, disclosures


def _payload(content: bytes) -> bytes:
    """What was signed, where the document is an envelope."""
    try:
        return parse_envelope(content).payload
    except BadInput:
        return b""


def _parse_disclosure(value: dict[str, Any]) -> Disclosure:
    try:
        return parse_disclosure_value(value)
    except BadInput as error:
        raise Tampered(f"proof: {error.message}") from None
