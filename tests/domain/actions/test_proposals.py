"""Orders in files: any bytes are parsed exactly or refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings

from appliance.domain.actions.proposals import Proposal, encode_proposal, parse_proposal
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.actions.showing import REPORTED, describe, label_of
from appliance.domain.core.names import encode_value
from appliance.domain.core.order import Order
from appliance.domain.governance.policies import AdoptPolicy
from appliance.errors import ApplianceError, BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import encode_envelope
from appliance.web.console.core.render import STATIC
from scripts.kit.log_builder import policy_digest, policy_set, stage
from tests.kit.mutations import mutated, reshaped

SITE = stage("sealed")
REVIEW = SITE.review_order("rita", "privacy")
TEXTS = tuple(one for one in SITE.disclosures if one.commitment in REVIEW.commitments().values())
PROPOSAL = Proposal(REVIEW, TEXTS, {}, frozenset({"recipe.rank"}))
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


def test_gates_that_the_file_leaves_out_are_not_said_to_be_none() -> None:
    """A service that was taken over makes the file: who checks it must not believe that nothing decides."""
    site = stage("imported")
    order = site.train_order("olga", None, gates=digest_bytes(b"gates"), sets=(), local_sets=())
    found, _ = parse_proposal(encode_proposal(Proposal(order)))
    assert dict(describe(found))["gates"] == f"not disclosed: what {order.gates} decides cannot be shown"
    without = Proposal(site.train_order("olga", None, gates=None, sets=(), local_sets=()))
    assert dict(describe(without))["gates"] == "none: no gate decides on this adapter"
    for proposal in (found, without) if shutil.which("node") else ():
        assert _shown_in_the_page(proposal) == dict(describe(proposal))["gates"]


def _shown_in_the_page(proposal: Proposal) -> str:
    script = (STATIC / "signing.js").as_uri()
    program = f"""import {{ webcrypto }} from "node:crypto"; globalThis.crypto ??= webcrypto;
    const {{ open, describe }} = await import({json.dumps(script)});
    const opened = await open({json.dumps(encode_proposal(proposal).decode())});
    console.log(Object.fromEntries(await describe(opened, {{ members: {{}}, labels: {{}} }})).gates);"""
    command = ["node", "--input-type=module", "-e", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def holds(data: bytes) -> None:
    try:
        proposal, envelope = parse_proposal(data)
    except (BadInput, Tampered):
        return
    assert encode_proposal(proposal, envelope) == data


@pytest.mark.thorough
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
        ({"reported": ["recipe.rank", "recipe.alpha"]}, "in its one spelling"),
        ({"documents": []}, "documents: expected an object, got list"),
        ({"documents": {"policy": "AAAA"}}, "document policy: expected None"),
        ({"disclosures": [{}]}, "disclosure"),
        ({"envelope": {}}, "envelope"),
        ({"statement": "AAAA"}, "canonical JSON"),
        ({"later": 1}, "order file, fields"),
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


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_each_reported_value_is_marked(action: str) -> None:
    """Gates, people and recipes are described value by value; a commitment is a person's own text."""
    order = ACTIONS[action].example
    shown = order.model_dump(
        exclude={*Order.model_fields, "gates", "people", "recipe", "commitment"}, exclude_none=True
    )
    for name in shown:
        lines = describe(Proposal(order, reported=frozenset({name})))
        assert [label for label, text in lines if text.endswith(REPORTED)] == [label_of(name)]
    assert REPORTED in (STATIC / "signing.js").read_text()
