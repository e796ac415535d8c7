"""A statement is in-toto Statement v1 in canonical JSON, with at least one subject."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.signatures.dsse import Statement, encode_statement, parse_statement

DIGEST = f"sha256:{'ab' * 32}"
GOOD = Statement((("adapter:clauses@1", DIGEST),), "urn:appliance:order:review:v1", {"unit": "legal"})


def test_the_recorded_statement_comes_out_byte_for_byte(vectors: Callable[[str], Any]) -> None:
    vector = vectors("in_toto")
    statement = Statement(
        tuple((subject["name"], subject["digest"]) for subject in vector["subjects"]),
        vector["predicateType"],
        vector["predicate"],
    )
    assert encode_statement(statement) == vector["statement"].encode()
    assert parse_statement(vector["statement"].encode()) == statement


def test_a_statement_has_the_members_of_in_toto_v1() -> None:
    assert json.loads(encode_statement(GOOD)) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "adapter:clauses@1", "digest": {"sha256": "ab" * 32}}],
        "predicateType": "urn:appliance:order:review:v1",
        "predicate": {"unit": "legal"},
    }
    assert parse_statement(encode_statement(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("subjects", "predicate_type"),
    [
        ((), "urn:x:y"),
        ((("", DIGEST),), "urn:x:y"),
        ((("a", DIGEST), ("a", DIGEST)), "urn:x:y"),
        ((("a", "ab" * 32),), "urn:x:y"),
        ((("a", DIGEST),), ""),
        ((("a", DIGEST),), "no-scheme"),
        ((("a", DIGEST),), "urn:x y"),
        ((("a", DIGEST),), "urn:x\n"),
    ],
)
def test_a_statement_about_nothing_or_twice_the_same_cannot_be_built(
    subjects: tuple[tuple[str, str], ...], predicate_type: str
) -> None:
    with pytest.raises(BadInput):
        Statement(subjects, predicate_type, {})


def test_other_members_and_other_digests_are_refused() -> None:
    good = json.loads(encode_statement(GOOD))
    subject = good["subject"][0]
    variants: list[Any] = [
        [],
        good | {"_type": "https://in-toto.io/Statement/v0.1"},
        good | {"extra": 1},
        {name: value for name, value in good.items() if name != "predicate"},
        good | {"predicate": []},
        good | {"predicate": None},
        good | {"predicateType": 1},
        good | {"subject": {}},
        good | {"subject": []},
        good | {"subject": [subject | {"uri": "x"}]},
        good | {"subject": [subject | {"name": 1}]},
        good | {"subject": [subject | {"digest": {}}]},
        good | {"subject": [subject | {"digest": {"sha512": "ab" * 64}}]},
        good | {"subject": [subject | {"digest": {"sha256": "AB" * 32}}]},
        good | {"subject": [subject | {"digest": {"sha256": "ab" * 32, "md5": "00"}}]},
        good | {"subject": [subject | {"digest": {"sha256": None}}]},
    ]
    for variant in variants:
        with pytest.raises(BadInput):
            parse_statement(encode_canonical(variant))
