"""Good inputs of parsers: vectors of the formats, and entries and documents of logs in memory."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from appliance.domain.actions.proposals import Proposal, encode_proposal
from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.core import credentials
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import encode_value
from appliance.domain.core.order import encode_order
from appliance.domain.governance.policies import assemble_policy
from appliance.domain.queries.proofs import encode_entry_proof, parse_entry_proof
from appliance.formats.core import canonical, commitment
from appliance.formats.core.fields import parse_base64, parse_base64url
from appliance.formats.core.merkle import hash_leaf, root_of
from appliance.formats.log import export, log_policy, proof, trust
from appliance.formats.log import restoration as restorations
from appliance.formats.signatures import dsse, webauthn
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.log_policies import quorum_policy

ROOT = Path(__file__).resolve().parents[2]
OWN = json.loads((ROOT / "tests/vectors/appliance.json").read_text(encoding="utf-8"))
PUBLIC = json.loads((ROOT / "tests/vectors/transparency.json").read_text(encoding="utf-8"))
WITNESSED = PUBLIC["witnessed"]
POLICY = quorum_policy([WITNESSED["log"]], WITNESSED["witnesses"], 2)
PROOF = f"{proof.HEADER}\nextra AAA=\nindex 3\n{'A' * 43}=\n\n{WITNESSED['note']}".encode()
ROW_PROOF = {"index": 1, "size": 3, "row": "e30=", "key": f"{'A' * 43}=", "path": [f"{'A' * 43}="] * 2}
SPKI = {name: parse_base64(key["spki"], "spki") for name, key in OWN["keys"].items()}
SIGNED = dsse.parse_envelope(OWN["envelope"].encode())
PASSKEY = dsse.parse_envelope(OWN["passkey_envelope"].encode())
PASSKEY_SCOPE = webauthn.PasskeyScope("appliance.example", ("https://appliance.example",), False)
CREATION = parse_base64url(OWN["passkey"]["creation"], "creation")
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HASH = bytes(32)
LEAVES = [hash_leaf(bytes([number])) for number in range(5)]


def NODES(level: int, place: int) -> bytes:
    """Return a node of the tree of these leaves."""
    return root_of(LEAVES[place << level : (place + 1) << level])


# --- good inputs ------------------------------------------------------------------------------------------------------

STAGES = ("kept", "replayed", "decided")


@cache
def sites() -> tuple[LogBuilder, ...]:
    """Return logs in memory that together have an entry of nearly every type."""
    return tuple(stage(name) for name in STAGES)


@cache
def staffed() -> LogBuilder:
    """Return a log of few entries, under the shipped policy set."""
    return stage("staffed", assemble_policy("default", policy_files("default")))


@cache
def small_export() -> bytes:
    """Return the export of a log of few entries."""
    site = staffed()
    texts = {one.commitment: one for one in site.disclosures}
    parts = export.write_export(
        origin=site.state.site.origin,
        size=len(site.entries),
        checkpoint=site.checkpoint(),
        entries=lambda: site.entries,
        document=lambda name: site.documents[name],
        disclosures=lambda names: {name: texts[name] for name in names if name in texts},
    )
    return b"".join(parts)


def trust_of_export() -> bytes:
    """Return the trust file of the small export's log."""
    return trust.encode_trust(staffed().trust)


@cache
def entries() -> tuple[bytes, ...]:
    """Return an entry of each type."""
    found: dict[str, bytes] = {}
    for site in sites():
        found |= {parse_entry(data).type: data for data in site.entries}
    return tuple(found.values())


@cache
def documents(*roles: str) -> tuple[bytes, ...]:
    """Return the documents of these roles, at most eight."""
    found: dict[bytes, None] = {}
    for site in sites():
        for data in site.entries:
            bound = parse_entry(data).documents
            found |= {site.documents[bound[role]]: None for role in roles if bound.get(role) in site.documents}
    return tuple(found)[:8]


@cache
def orders() -> tuple[bytes, ...]:
    """Return the example order of each action."""
    return tuple(encode_order(row.example) for row in ACTIONS.values())


@cache
def proposals() -> tuple[bytes, ...]:
    return tuple(encode_proposal(Proposal(ORDERS.parse(data))) for data in orders()[:12])


@cache
def entry_proofs() -> tuple[bytes, ...]:
    from tests.kit.entry_proofs import entry_proof_of

    site = stage("approved")
    return tuple(encode_entry_proof(entry_proof_of(site, index)) for index in (0, len(site.entries) - 1))


@cache
def records() -> tuple[bytes, ...]:
    from tests.verifier.test_records import SALT, TEXT, record_of

    site = stage("serving")
    site.add(site.answered(2, answer=commitment.commit(TEXT, SALT)))
    return (json.dumps(record_of(site)).encode(), json.dumps(record_of(site, text=TEXT)).encode())


def credential_statements() -> tuple[bytes, ...]:
    models = (credentials.SessionStatement, credentials.UnitToken, credentials.TokenRequest)
    from appliance.domain.core.example import make_example

    values = {"signer": "legal", "application": "indexer"}
    return tuple(
        credentials.encode_credential(
            make_example(model, **{name: value for name, value in values.items() if name in model.model_fields})
        )
        for model in models
    )


@cache
def policies() -> tuple[bytes, ...]:
    return tuple(encode_value(assemble_policy(name, policy_files(name))) for name in ("default", "strict-example"))


def policy_files(name: str) -> dict[str, bytes]:
    shipped = ROOT / "policies/default/schema.cedarschema"
    return {path.name: path.read_bytes() for path in (shipped, *(ROOT / "policies" / name).iterdir())}


def facts() -> list[dict[str, Any]]:
    """Facts of a base and of a dataset, as a worker reports them."""
    found = []
    for data in entries():
        body = parse_entry(data).body
        found += [dict(json.loads(canonical.encode_canonical(body["facts"])))] if "facts" in body else []
    return [*found, BASE_FACTS]


def trust_of_records() -> bytes:
    """Return the trust file of the log that records and proofs are of."""
    return trust.encode_trust(stage("serving").trust)


BASE_FACTS = {
    "dtype": "bfloat16",
    "parameters": 134_515_008,
    "shape": {
        **{"layers": 30, "hidden": 576, "inner": 1536, "heads": 9, "key_heads": 3, "head_size": 64, "words": 49152},
        "tied": True,
    },
    "quantisation": "gptq",
    "gptq": {"bits": 4, "group_size": 128},
    "lengths": {"quantiles": [1, 2], "shared": 0, "trained": 1},
    "train_rows": 400,
    "held_out_rows": 100,
}
ADVISORY = {
    "id": "OSV-2026-1",
    "aliases": ["CVE-2026-1"],
    "modified": "2026-11-24T15:15:35Z",
    "summary": "A defect.",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "h11"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "0.14"}]}],
            "versions": ["0.13"],
        }
    ],
}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call12345", "type": "function", "function": {"name": "look_up", "arguments": '{"a":1}'}}


def bound_gates() -> list[bytes]:
    """Return a gates file as an order binds it."""
    from tests.domain.evaluation.test_rules import GATES

    return [encode_value(GATES)]


def shipped_gates() -> list[bytes]:
    from appliance.client.gates import SHIPPED

    return [path.read_bytes() for path in sorted(SHIPPED.glob("*.json"))]


def recipe_texts() -> list[bytes]:
    """Recipes as people write them."""
    return [path.read_bytes() for path in sorted((ROOT / "examples").glob("*/*.yaml"))]


def recipes() -> list[bytes]:
    """Their values."""
    return [json.dumps(yaml.safe_load(text)).encode() for text in recipe_texts()]


@cache
def entry_proof() -> bytes:
    """Return the proof of an entry in its log."""
    return parse_entry_proof(entry_proofs()[1]).proofs[0].encode()


@cache
def entry_proof_terms() -> tuple[bytes, log_policy.LogPolicy]:
    """Return the entry's hash and the policy under which its proof is verified."""
    site = stage("approved")
    return hash_leaf(site.entries[-1]), quorum_policy([site.trust.log_key], [], 0)


@cache
def restoration() -> tuple[bytes, str, tuple[str, ...]]:
    """Return a restoration file, the log's key, and the administrators' key ids."""
    from tests.kit.restored import restoration_file, restored

    site, _, entry = restored()
    keys = tuple(site.keys[name].keyid for name in ("anna", "ben"))
    return restorations.encode_restoration(restoration_file(site, entry)), site.first.log_key, keys


@cache
def step_back() -> tuple[bytes, str, tuple[str, ...]]:
    """Return a step-back file, the log's key, and the administrators' key ids."""
    from tests.kit.restored import restored, step_back_file

    site, _, entry = restored()
    keys = tuple(site.keys[name].keyid for name in ("anna", "ben"))
    return restorations.encode_step_back(step_back_file(site, entry)), site.first.log_key, keys


SEAL = (
    f"{OWN['vkey'].partition('+')[0]}/state\n{OWN['vkey']}\n3\n{'A' * 43}=\n{OWN['pae_digest']}\n{OWN['pae_digest']}\n"
)
