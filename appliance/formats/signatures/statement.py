"""in-toto Statement v1, as canonical JSON: what an order, a sign-off or a provenance states about which digests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.digest import parse_digest
from appliance.formats.core.fields import parse_constant, parse_list, parse_object, parse_text, show

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_MEMBERS = frozenset({"_type", "subject", "predicateType", "predicate"})
_TYPE_URI = re.compile(r"[a-z][a-z0-9+.-]*:[!-~]+")


@dataclass(frozen=True, slots=True)
class Statement:
    """`subjects` are (name, digest) pairs, in the signer's order, at least one and no name twice."""

    subjects: tuple[tuple[str, str], ...]
    predicate_type: str
    predicate: dict[str, Any]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.subjects]
        if not names:
            raise BadInput("statement, subject: expected at least one, got none")
        if not all(names):
            raise BadInput("statement, subject name: expected text, got an empty string")
        if len(set(names)) != len(names):
            raise BadInput(f"statement, subject names: expected each once, got {show(names)}")
        for _, digest in self.subjects:
            parse_digest(digest, "statement, subject digest")
        if _TYPE_URI.fullmatch(self.predicate_type) is None:
            raise BadInput(f"statement, predicateType: expected a URI, got {show(self.predicate_type)}")


def encode_statement(statement: Statement) -> bytes:
    return encode_canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"digest": {"sha256": digest.removeprefix("sha256:")}, "name": name}
                for name, digest in statement.subjects
            ],
            "predicateType": statement.predicate_type,
            "predicate": statement.predicate,
        }
    )


def parse_statement(data: bytes) -> Statement:
    value = parse_object(parse_canonical(data), "statement", _MEMBERS)
    parse_constant(value["_type"], "statement, _type", STATEMENT_TYPE)
    predicate = value["predicate"]
    if not isinstance(predicate, dict):
        raise BadInput(f"statement, predicate: expected an object, got {type(predicate).__name__}")
    return Statement(
        subjects=tuple(_parse_subject(item) for item in parse_list(value["subject"], "statement, subject")),
        predicate_type=parse_text(value["predicateType"], "statement, predicateType"),
        predicate=predicate,
    )


def _parse_subject(value: object) -> tuple[str, str]:
    subject = parse_object(value, "statement, subject", frozenset({"digest", "name"}))
    digest = parse_object(subject["digest"], "statement, subject digest", frozenset({"sha256"}))
    name = parse_text(subject["name"], "statement, subject name")
    return name, parse_digest(f"sha256:{parse_text(digest['sha256'], 'statement, sha256')}", "statement, sha256")
