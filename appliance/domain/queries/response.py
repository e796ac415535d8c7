"""The response record: what a unit keeps of an answer, and what a stranger can check of it without a service.

It is the entry `request.finished`, its proof (c2sp.org/tlog-proof), whose log checkpoint is the signature, and the
salts that open the entry's commitments to prompt and answer. Without a salt nothing is known of the texts.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from pydantic import Field, ValidationError

from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.names import Base64, Value, explain
from appliance.domain.rulebook.apply import parse_body
from appliance.domain.serving.requests import RequestFinished
from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import SALT_BYTES, commit
from appliance.formats.core.fields import parse_base64
from appliance.formats.log.log_policy import NONE, LogPolicy, satisfies
from appliance.formats.log.proof import parse_proof, verify_proof

MEMBER = "response_record"
"""Under which an answer carries it, beside OpenAI's own members."""
MAX_BYTES = 1_000_000


class ResponseRecord(Value):
    """`text` stands where the answer does not show the committed text itself: of a classification; `instruction_salt`
    where the service put in the system message."""

    entry: str
    proof: str
    prompt_salt: Base64 | None = Field(default=None)
    answer_salt: Base64 | None = Field(default=None)
    instruction_salt: Base64 | None = Field(default=None)
    text: str | None = None


@dataclass(frozen=True)
class Answered:
    """A record that holds: its entry under a checkpoint of `size` entries."""

    record: ResponseRecord
    entry: Entry
    body: RequestFinished
    size: int


def derive_salt(key: bytes, request: str, role: str) -> bytes:
    """A salt for one text of one request (`prompt` or `answer`), which only the holder of `key` can find again."""
    return hmac.digest(key, f"{request}/{role}".encode(), sha256)


BESIDE_MESSAGES = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
"""What a request may have beside its messages that a model's answer depends on, or is held to."""


def commit_prompt(parameters: dict[str, object], salt: bytes) -> str:
    """Over the prompt, or the canonical JSON of the messages; where there is more beside these, of an object of all."""
    prompt = parameters.get("prompt")
    if isinstance(prompt, str):
        return commit(prompt, salt)
    more = {name: parameters[name] for name in BESIDE_MESSAGES if name in parameters}
    messages = parameters["messages"]
    return commit(encode_canonical({"messages": messages, **more} if more else messages).decode(), salt)


def parse_record(data: bytes) -> ResponseRecord:
    """A record in any spelling of its JSON but one member twice, of which another reader may take the other one."""
    if len(data) > MAX_BYTES:
        raise BadInput(f"response record: expected at most {MAX_BYTES} bytes, got {len(data)}")
    try:
        return ResponseRecord.model_validate(json.loads(data.decode("utf-8"), object_pairs_hook=once))
    except ValidationError as error:
        raise BadInput(f"response record: {explain(error)}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"response record: expected JSON in UTF-8, got {error}") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; BadInput where it has a member twice."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise BadInput("JSON object: expected each member once, got one twice")
    return value


def verify_record(record: ResponseRecord, policy: LogPolicy) -> Answered:
    """Tampered unless the record's entry is in a log of the policy, at its own index, and ends a request, and the
    record's own text, where it has one, is what was answered; BadInput where that has no salt. Unavailable where too
    few witnesses cosigned it."""
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
    answered = Answered(record, entry, body, witnessed.checkpoint.size)
    if record.text is not None:
        verify_answer(answered, record.text)
    check_quorum(policy, witnessed.times_s)
    return answered


def check_quorum(policy: LogPolicy, times_s: Mapping[str, int]) -> None:
    """Unavailable where fewer witnesses cosigned what holds than the policy asks for."""
    if not satisfies(policy, times_s):
        got = ", ".join(times_s) or "none"
        raise Unavailable(f"witnesses: expected the quorum {policy.quorum!r:.80} of the trust policy, got {got}")


def verify_answer(answered: Answered, text: str) -> None:
    """Tampered unless this is the text that was answered; BadInput where the record cannot open its commitment."""
    salt = parse_base64(answered.record.answer_salt or "", "response record, answer_salt", size=SALT_BYTES)
    got = commit(text, salt)
    if got != answered.body.answer:
        raise Tampered(f"answer: expected the text of {answered.body.answer}, got one of {got}")


def verify_instruction(answered: Answered, text: str) -> None:
    """Tampered unless this is the system message that the service put in; BadInput where the record cannot open its
    commitment."""
    salt = parse_base64(answered.record.instruction_salt or "", "response record, instruction_salt", size=SALT_BYTES)
    got = commit(text, salt)
    if got != answered.body.instruction:
        expected = answered.body.instruction or "none put in"
        raise Tampered(f"instruction: expected the text of {expected}, got one of {got}")
