"""Policy sets on disk, in force, and what lies between the two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.client.support.door import About, Door
from appliance.client.support.files import read_file
from appliance.client.support.orders import propose
from appliance.domain.core.names import encode_value
from appliance.domain.core.policy import PolicySet, parse_policy
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.governance.policy_files import ADOPTED, TESTS, assemble_policy
from appliance.domain.rulebook.proposals import Proposal
from appliance.errors import BadInput, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64, parse_base64

_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """A policy set and the bytes that are adopted: an earlier build's may lack parameters, and keep their digest."""

    data: bytes
    policy: PolicySet

    @property
    def digest(self) -> str:
        return digest_bytes(self.data)


def load_policy(path: Path) -> PolicyDocument:
    """A folder, named as the set, or a file with the whole set in canonical JSON."""
    if path.is_file():
        data = read_file(path, "policy set", 2 * _MAX_BYTES).removesuffix(b"\n")
        return PolicyDocument(data, parse_policy(data))
    if not path.is_dir():
        raise NotFound(f"policy set, {path}: expected a folder with {', '.join(ADOPTED)}, got nothing")
    files = {found.name: read_file(found, "policy set", _MAX_BYTES) for found in sorted(path.iterdir())}
    policy = assemble_policy(path.resolve().name, files)
    return PolicyDocument(encode_value(policy), policy)


def current_policy(door: Door) -> PolicyDocument:
    """The set in force, from its document's bytes; Tampered when they are not what the log's state names."""
    answer = door.get("/v1/policy")
    data = parse_base64(answer["document"], "policy set")
    if digest_bytes(data) != answer["digest"]:
        raise Tampered(f"policy set: expected {answer['digest']}, got {digest_bytes(data)}")
    return PolicyDocument(data, parse_policy(data))


def propose_adoption(about: About, signer: str, document: PolicyDocument) -> Proposal:
    return propose(about, signer, AdoptPolicy, {"policy": document.digest}, documents={"policy": document.data})


def run_cases(door: Door, path: Path) -> list[dict[str, Any]]:
    """What the service's own engine decides on the set's test cases: name, passed, expected, got."""
    cases = read_file(path / TESTS, "policy test cases", _MAX_BYTES)
    body = {"policy": encode_base64(load_policy(path).data), "cases": encode_base64(cases)}
    results = door.post("/v1/policy/test", body)["results"]
    if not results:
        raise BadInput(f"policy test cases, {path / TESTS}: expected at least one, got none")
    return list(results)
