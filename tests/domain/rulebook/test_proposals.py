"""An order in a file: whatever bytes it has, it is read as exactly what it says, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from appliance.domain.core.names import encode_value
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.rulebook.proposals import Proposal, encode_proposal, parse_proposal
from appliance.errors import ApplianceError, BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.signatures.dsse import encode_envelope
from scripts.kit.log_builder import policy_digest, policy_set, stage
from tests.kit.mutations import mutated, reshaped

SITE = stage("sealed")
REVIEW = SITE.review_order("rita", "privacy")
TEXTS = tuple(one for one in SITE.disclosures if one.commitment in REVIEW.commitments().values())
PROPOSAL = Proposal(REVIEW, TEXTS, {}, frozenset({"rank"}))
SIGNED = SITE.sign(REVIEW)
FILE = encode_proposal(PROPOSAL, SIGNED)
ADOPTION = Proposal(
    SITE.order(AdoptPolicy, "anna", policy=policy_digest(policy_set(reviewers=3))),
    (),
    {"policy": encode_value(policy_set(reviewers=3))},
)
EXAMPLES = settings(deadline=None, max_examples=100)


def test_a_file_is_read_as_it_was_written() -> None:
    assert parse_proposal(FILE) == (PROPOSAL, SIGNED)
    assert parse_proposal(encode_proposal(ADOPTION)) == (ADOPTION, None)


def test_a_statement_alone_is_an_order_without_its_texts() -> None:
    assert parse_proposal(SIGNED.payload) == (Proposal(REVIEW), None)


def holds(data: bytes) -> None:
    try:
        proposal, envelope = parse_proposal(data)
    except (BadInput, Tampered):
        return
    assert encode_proposal(proposal, envelope) == data


@EXAMPLES
@given(mutated(FILE))
def test_nearly_good_bytes(data: bytes) -> None:
    holds(data)


@EXAMPLES
@given(reshaped(json.loads(FILE)))
def test_good_json_with_one_member_exchanged(value: Any) -> None:
    holds(encode_canonical(value))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 1 in its one spelling"),
        ({"resolved": ["rank", "alpha"]}, "in its one spelling"),
        ({"documents": []}, "documents: expected an object, got list"),
        ({"documents": {"policy": "AAAA"}}, "document policy: expected None"),
        ({"disclosures": [{}]}, "disclosure"),
        ({"envelope": {}}, "envelope"),
        ({"statement": "AAAA"}, "canonical JSON"),
        ({"later": 1}, "order file, members"),
    ],
)
def test_what_is_off_in_a_file_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ApplianceError) as caught:
        parse_proposal(encode_canonical(json.loads(FILE) | change))
    assert words in caught.value.message


def test_a_document_that_the_order_does_not_bind_is_tampered() -> None:
    other = encode_proposal(Proposal(ADOPTION.order, (), {"policy": encode_value(policy_set(reviewers=4))}))
    with pytest.raises(Tampered, match="document policy"):
        parse_proposal(other)


def test_an_envelope_over_another_statement_is_tampered() -> None:
    other = SITE.sign(SITE.review_order("rita", "privacy", decision="reject", valid_until=None))
    changed = json.loads(FILE) | {"envelope": json.loads(encode_envelope(other))}
    with pytest.raises(Tampered, match="expected one over the statement beside it"):
        parse_proposal(encode_canonical(changed))
