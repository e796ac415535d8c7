"""Response records: a unit keeps one for an answer, and anyone can check it without the service.

A record consists of the entry `request.finished`, its proof (c2sp.org/tlog-proof), whose log checkpoint is signed, and
the salts that open the entry's commitments to prompt and answer. Without the salts the texts stay secret.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from pydantic import Field

from appliance.domain.actions.apply import parse_body
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.names import Base64, Value, parse_file
from appliance.domain.serving.requests import RequestFinished
from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import SALT_BYTES, commit
from appliance.formats.core.fields import parse_base64
from appliance.formats.log.log_policy import NONE, LogPolicy, satisfies
from appliance.formats.log.proof import parse_proof, verify_proof

MEMBER = "response_record"
"""Name of the field for the record in a response, beside the fields of OpenAI's API."""
MAX_BYTES = 1_000_000
"""Largest size of a record in bytes."""


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


def derive_salt(key: bytes, request: str, role: str) -> bytes:
    """Return the salt for a text of a request (`prompt` or `answer`). Only a holder of `key` can derive it again."""
    return hmac.digest(key, f"{request}/{role}".encode(), sha256)


BESIDE_MESSAGES = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
"""Fields of a request beside its messages that influence or constrain the answer."""


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


def parse_record(data: bytes) -> ResponseRecord:
    """Return a record from any JSON encoding of it.

    Raises:
        BadInput: it is malformed or too long, or a field occurs twice, which readers would interpret differently.
    """
    if len(data) > MAX_BYTES:
        raise BadInput(f"response record: expected at most {MAX_BYTES} bytes, got {len(data)}")
    return parse_file(ResponseRecord, data, "response record")


def verify_record(record: ResponseRecord, policy: LogPolicy) -> VerifiedRecord:
    """Return the record after verifying it against a trust policy.

    Raises:
        Tampered: the entry is not in a log of the policy at its index, does not end a request, or the record's text is
            not
            the answer.
        BadInput: the record has a text but no salt.
        Unavailable: fewer witnesses cosigned than the policy requires.
    """
    try:
        entry = parse_entry(record.entry.encode())
        body = parse_body(entry)
        index = parse_proof(record.proof.encode()).index
    except (BadInput, UnicodeEncodeError) as error:
        raise Tampered(f"response record: {error}") from None
    if not isinstance(body, RequestFinished):
        raise Tampered(f"response record, entry: expected {RequestFinished.type}, got {entry.type}")
    if index != entry.index:
        raise Tampered(f"response record, proof: expected one of entry {entry.index}, got one of entry {index}")
    witnessed = verify_proof(record.proof.encode(), entry.leaf, replace(policy, groups=(), quorum=NONE))
    answered = VerifiedRecord(record, entry, body, witnessed.checkpoint.size)
    if record.text is not None:
        verify_answer(answered, record.text)
    check_quorum(policy, witnessed.times_s)
    return answered


def check_quorum(policy: LogPolicy, times_s: Mapping[str, int]) -> None:
    """Check that enough witnesses cosigned.

    Raises:
        Unavailable: fewer witnesses cosigned than the policy requires.
    """
    if not satisfies(policy, times_s):
        got = ", ".join(times_s) or "none"
        raise Unavailable(f"witnesses: expected the quorum {policy.quorum!r:.80} of the trust policy, got {got}")


def verify_answer(answered: VerifiedRecord, text: str) -> None:
    """Check that this is the text of the answer.

    Raises:
        Tampered: it is another text.
        BadInput: the record has no salt to open the commitment.
    """
    salt = parse_base64(answered.record.answer_salt or "", "response record, answer_salt", size=SALT_BYTES)
    got = commit(text, salt)
    if got != answered.body.answer:
        raise Tampered(f"answer: expected the text of {answered.body.answer}, got one of {got}")


def verify_instruction(answered: VerifiedRecord, text: str) -> None:
    """Check that this is the system message that the service added.

    Raises:
        Tampered: it is another text.
        BadInput: the record has no salt to open the commitment.
    """
    salt = parse_base64(answered.record.instruction_salt or "", "response record, instruction_salt", size=SALT_BYTES)
    got = commit(text, salt)
    if got != answered.body.instruction:
        expected = answered.body.instruction or "none put in"
        raise Tampered(f"instruction: expected the text of {expected}, got one of {got}")
