"""Policy sets on disk, in force, and what lies between the two."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.client.support.door import About, Door
from appliance.client.support.files import check_place, read_file, write_new
from appliance.client.support.log import fetch_document
from appliance.client.support.orders import Pending, propose
from appliance.domain.core.names import encode_value
from appliance.domain.core.policy import PolicySet, parse_policy
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.governance.policy_changes import differences
from appliance.domain.governance.policy_files import ADOPTED, PARAMETERS, POLICIES, SCHEMA, TESTS, assemble_policy
from appliance.domain.rulebook.proposals import Proposal
from appliance.errors import BadInput, Conflict, NotFound, Tampered, Unavailable
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


def write_policy(folder: Path, document: PolicyDocument) -> str:
    """A new folder with the set's files, whole or not at all; the digest that this folder has when it is adopted.

    That is the document's own where the folder has the set's name and the set has every parameter of this build.
    """
    check_place(folder, "policy set")
    if folder.exists():
        raise Conflict(f"policy set, {folder}: expected a new folder, got an existing one; name another")
    # As the document has them: a parameter that it lacks is not written as if somebody had chosen its default.
    parameters = json.loads(document.data)["parameters"]
    files = {
        PARAMETERS: json.dumps(parameters, indent=2, ensure_ascii=False) + "\n",
        POLICIES: document.policy.cedar,
        SCHEMA: document.policy.cedar_schema,
    }
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, text in files.items():
                write_new(made / name, text.encode("utf-8"), "policy set", mode=0o644)
            made.chmod(0o755)
            os.rename(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise Unavailable(f"policy set, {folder}: expected to write there, got {error.strerror}") from None
    return load_policy(folder).digest


def list_changes(door: Door, new: PolicySet) -> list[str]:
    """What the set would change of the one in force, as lines of a unified diff."""
    return _list_changes(current_policy(door).policy, new)


def list_ordered_changes(door: Door, proved: Pending) -> tuple[list[str], str | None]:
    """What a proved order to adopt a set would change of the set that its entry names as the one in force; and the
    digest of the set that the service serves, where that is another."""
    assert proved.policy is not None
    old = parse_policy(fetch_document(door, proved.policy, "policy set"))
    served = current_policy(door).digest
    changes = _list_changes(old, parse_policy(proved.proposal.documents["policy"]))
    return changes, None if served == proved.policy else served


def _list_changes(old: PolicySet, new: PolicySet) -> list[str]:
    return differences(old, new) or ["No text differs from the set in force."]


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
