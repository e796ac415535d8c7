"""Files with one entry and its proofs (c2sp.org/tlog-proof), which anyone can check without the service.

A response record is what a unit keeps for an answer: the entry `request.finished`, its proof, whose log checkpoint is
signed, and the salts that open the entry's commitments to prompt and answer. Without the salts the texts stay secret.

An entry proof is what an auditor keeps of any entry: its bytes, its documents, the texts that are still disclosed, and
its proofs, one under the log's own checkpoint and one under each cosigned checkpoint that includes the entry. The page
`proof.html` of the console reads both files.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal, TypeVar

from pydantic import Field

from appliance.domain.actions.apply import parse_body
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.names import Base64, Value, parse_file
from appliance.domain.serving.requests import RequestFinished
from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import (
    SALT_BYTES,
    Disclosure,
    commit,
    parse_disclosure_value,
    verify_disclosure,
)
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import as_tampered, parse_base64
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.log_policy import NONE, CosignedCheckpoint, LogPolicy, satisfies
from appliance.formats.log.proof import parse_proof, verify_proof
from appliance.formats.signatures.dsse import parse_envelope

MEMBER = "response_record"
"""Name of the field for the record in a response, beside the fields of OpenAI's API."""
MAX_RECORD_BYTES = 1_000_000
"""Largest size of a response record in bytes."""
MAX_PROOF_BYTES = 32_000_000
"""Largest size of an entry proof in bytes."""
MAX_PROOFS = 17
"""Largest number of proofs of an entry: the log's own and one of each witness."""
BESIDE_MESSAGES = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
"""Fields of a request beside its messages that influence or constrain the answer."""

Role = Literal["answer", "instruction"]
"""The text of a response record: the answer, or the system message that the service added."""
V = TypeVar("V", bound=Value)


class ResponseRecord(Value):
    """A response record as it is sent to the unit.

    `text` is present if the response does not contain the committed text itself, as for a classification.
    `instruction_salt` is present if the service added the system message.
    """

    entry: str
    proof: str
    prompt_salt: Base64 | None = Field(default=None)
    answer_salt: Base64 | None = Field(default=None)
    instruction_salt: Base64 | None = Field(default=None)
    text: str | None = None


@dataclass(frozen=True)
class VerifiedRecord:
    """A verified record, whose entry is under a checkpoint of `size` entries."""

    record: ResponseRecord
    entry: Entry
    body: RequestFinished
    size: int


class EntryProof(Value):
    """The fields of an entry proof."""

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


def derive_salt(key: bytes, request: str, role: str) -> bytes:
    """Return the salt for a text of a request (`prompt` or `answer`). Only a holder of `key` can derive it again."""
    return hmac.digest(key, f"{request}/{role}".encode(), sha256)


def commit_prompt(parameters: dict[str, object], salt: bytes) -> str:
    """Return the commitment to the prompt or to the canonical JSON of the messages.

    If the request has fields of `BESIDE_MESSAGES`, the commitment is to an object of these and the messages.
    """
    prompt = parameters.get("prompt")
    if isinstance(prompt, str):
        return commit(prompt, salt)
    other_fields = {name: parameters[name] for name in BESIDE_MESSAGES if name in parameters}
    messages = parameters["messages"]
    return commit(encode_canonical({"messages": messages, **other_fields} if other_fields else messages).decode(), salt)


def encode_entry_proof(proof: EntryProof) -> bytes:
    """Return the bytes of an entry proof."""
    return json.dumps(proof.model_dump(mode="json"), ensure_ascii=False, indent=1).encode() + b"\n"


def parse_record(data: bytes) -> ResponseRecord:
    """Parse a response record from any JSON encoding of it."""
    return _parse(ResponseRecord, data, "response record", MAX_RECORD_BYTES)


def parse_entry_proof(data: bytes) -> EntryProof:
    """Parse an entry proof from any JSON encoding of it."""
    return _parse(EntryProof, data, "proof", MAX_PROOF_BYTES)


def _parse(model: type[V], data: bytes, what: str, most: int) -> V:
    if len(data) > most:
        raise BadInput(f"{what}: expected at most {most} bytes, got {len(data)}")
    return parse_file(model, data, what)


def verify_record(record: ResponseRecord, policy: LogPolicy) -> VerifiedRecord:
    """Verify a record, and its text if it has one, against a trust policy.

    Raises:
        Tampered: the entry is not in a log of the policy at its index, does not end a request, or the record's text is
            not the answer.
        BadInput: the record has a text but no salt.
        Unavailable: fewer witnesses cosigned than the policy requires.
    """
    entry, (witnessed,) = _open_entry(record.entry, [record.proof], policy, "response record")
    with as_tampered("response record"):
        body = parse_body(entry)
    if not isinstance(body, RequestFinished):
        raise Tampered(f"response record, entry: expected {RequestFinished.type}, got {entry.type}")
    verified = VerifiedRecord(record, entry, body, witnessed.checkpoint.size)
    if record.text is not None:
        verify_text(verified, "answer", record.text)
    _check_quorum(policy, witnessed.times_s)
    return verified


def verify_text(verified: VerifiedRecord, role: Role, text: str) -> None:
    """Check that this is the text of the answer, or the system message that the service added.

    Raises:
        Tampered: it is another text.
        BadInput: the record has no salt to open the commitment.
    """
    record, body = verified.record, verified.body
    if role == "answer":
        salt, expected = record.answer_salt, body.answer
    else:
        salt, expected = record.instruction_salt, body.instruction
    got = commit(text, parse_base64(salt or "", f"response record, {role}_salt", size=SALT_BYTES))
    if got != expected:
        wanted = "none" if expected is None else f"the text of {expected}"
        raise Tampered(f"{role}: expected {wanted}, got one of {got}")


def verify_entry_proof(proof: EntryProof, policy: LogPolicy, genesis: str | None = None) -> VerifiedEntry:
    """Verify the proofs, documents and texts of an entry against a trust policy.

    `genesis`: leaf hash of the log's first entry.

    Raises:
        Tampered: a proof is not valid under a log of the policy, or a document or text is not the entry's.
        Unavailable: all of that is valid, but fewer witnesses cosigned than the policy requires.
    """
    entry, witnessed = _open_entry(proof.entry, proof.proofs, policy, "proof")
    if entry.index == 0 and genesis not in (None, entry.link):
        raise Tampered(f"proof, entry 0: expected {genesis}, got {entry.link}")
    times_s = {name: time for one in witnessed for name, time in one.times_s.items()}
    with as_tampered():
        documents, disclosures = _verify_documents(proof, entry)
    _check_quorum(policy, times_s)
    return VerifiedEntry(entry, documents, disclosures, tuple(one.checkpoint.size for one in witnessed), times_s)


def _open_entry(
    text: str, proofs: Sequence[str], policy: LogPolicy, what: str
) -> tuple[Entry, list[CosignedCheckpoint]]:
    """Return the entry after verifying that it is in a log of the policy at its index.

    A single checkpoint needs no quorum, because witnesses cosign the log at different sizes.
    """
    try:
        entry = parse_entry(text.encode())
        indexes = {parse_proof(proof.encode()).index for proof in proofs}
    except (BadInput, UnicodeEncodeError) as error:
        raise Tampered(f"{what}: {error}") from None
    if indexes != {entry.index}:
        raise Tampered(f"{what}: expected proofs of entry {entry.index}, got {sorted(indexes)}")
    without_quorum = replace(policy, groups=(), quorum=NONE)
    return entry, [verify_proof(proof.encode(), entry.leaf, without_quorum) for proof in proofs]


def _check_quorum(policy: LogPolicy, times_s: Mapping[str, int]) -> None:
    if not satisfies(policy, times_s):
        got = ", ".join(times_s) or "none"
        raise Unavailable(f"witnesses: expected the quorum {policy.quorum!r:.80} of the trust policy, got {got}")


def _verify_documents(proof: EntryProof, entry: Entry) -> tuple[dict[str, bytes], tuple[Disclosure, ...]]:
    if proof.documents.keys() != entry.documents.keys():
        expected, got = ", ".join(entry.documents) or "none", ", ".join(proof.documents) or "none"
        raise Tampered(f"proof, documents: expected {expected}, got {got}")
    documents, bound = {}, [proof.entry.encode()]
    for role, text in proof.documents.items():
        content = parse_base64(text, f"proof, document {role}")
        if (got := digest_bytes(content)) != entry.documents[role]:
            raise Tampered(f"proof, document {role}: expected {entry.documents[role]}, got {got}")
        documents[role] = content
        bound += [content, _read_payload(content)]
    disclosures = tuple(parse_disclosure_value(value) for value in proof.disclosures)
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


def describe_proven(proven: VerifiedEntry) -> list[tuple[str, str]]:
    """Return (name, text) lines for people about a verified entry."""
    entry = proven.entry
    cosigned = [f"{name} at {_format_time(time_s)}" for name, time_s in sorted(proven.times_s.items())]
    return [
        ("verdict", "verified"),
        ("entry", f"{entry.index}, {entry.type} by {entry.actor} at {entry.time}: {entry.outcome}"),
        ("about", ", ".join(entry.subjects) or "the appliance itself"),
        ("proved", f"in a log of {' and of '.join(map(str, proven.sizes))} entries"),
        ("witnesses", "; ".join(cosigned) or "none: the proof does not exclude a second history of this log"),
        ("documents", ", ".join(f"{role} {digest}" for role, digest in entry.documents.items()) or "none"),
        ("texts", "; ".join(disclosure.text for disclosure in proven.disclosures) or "none"),
    ]


def _format_time(time_s: int) -> str:
    try:
        return encode_time(datetime.fromtimestamp(time_s, UTC))
    except (ValueError, OverflowError, OSError):
        return f"{time_s} s"
