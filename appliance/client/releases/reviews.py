"""Decisions, releases and revocations of adapters, proposed to be signed."""

from __future__ import annotations

from typing import Any

from appliance.client.releases.decisions import with_reason
from appliance.client.releases.evidence import ReviewMaterial
from appliance.client.support.door import About, Door
from appliance.client.support.log import Anchor, read_entry
from appliance.client.support.orders import propose
from appliance.domain.core.decisions import Conditions
from appliance.domain.core.names import split_version
from appliance.domain.data.bases import RevokeBase
from appliance.domain.data.datasets import RevokeDataset
from appliance.domain.data.validation_sets import RevokeValidationSet
from appliance.domain.releases.activations import Activate, RollBack
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.releases.page.parts import open_parts
from appliance.domain.releases.reviews import Review
from appliance.domain.rulebook.proposals import Proposal
from appliance.errors import BadInput, NotFound, Tampered


def propose_review(
    about: About,
    signer: str,
    evidence: ReviewMaterial,
    decision: str,
    unit: str,
    field: str,
    meaning: str,
    valid_until: str | None,
    *,
    reason: str | None = None,
    conditions: Conditions | None = None,
    on_behalf_of: str | None = None,
) -> Proposal:
    """On the request that stands for the unit, by what was read of the log. The caller has shown the whole page."""
    values = {
        **_adapter(evidence),
        "decision": decision,
        "unit": unit,
        "field": field,
        "valid_until": valid_until,
        "request": evidence.request_for(unit),
        "conditions": conditions,
        "on_behalf_of": on_behalf_of,
        "opened": open_parts(evidence.page),
    }
    return propose(about, signer, Review, values, texts=with_reason({"meaning": meaning}, reason))


def propose_release(
    about: About,
    signer: str,
    model: type[Activate] | type[RollBack],
    evidence: ReviewMaterial,
    unit: str,
    task: str,
    *,
    adds_instruction: bool,
) -> Proposal:
    """BadInput where the dataset has no instruction that could be put in."""
    if adds_instruction and not evidence.teaching.instruction:
        got = "one that was erased" if evidence.teaching.instruction is None else "none"
        raise BadInput(f"release of {evidence.name}, instruction: expected its dataset to have one, got {got}")
    values = {**_adapter(evidence), "unit": unit, "task": task, "adds_instruction": adds_instruction}
    return propose(about, signer, model, values)


def propose_revocation(door: Door, anchor: Anchor, signer: str, name: str, reason: str | None) -> Proposal:
    """Needs no download: taking away must work where the bytes do not; the log says which manifest it is."""
    row = door.get(f"/v1/adapters/{name}")
    entry = read_entry(door, anchor, int(row["index"])).entry
    if (entry.type, entry.body.get("adapter")) != ("adapter.sealed", name):
        raise Tampered(f"adapter {name}: expected its sealing as entry {entry.index}, got {entry.type}")
    adapter, version = split_version(name)
    values = {"adapter": adapter, "version": version, "manifest": entry.documents["manifest"]}
    return propose(door.about, signer, RevokeAdapter, values, texts={} if reason is None else {"reason": reason})


def propose_base_revocation(door: Door, anchor: Anchor, signer: str, name: str, reason: str | None) -> Proposal:
    row = door.get(f"/v1/bases/{name}")
    values = {"base": name, "digest": _logged_manifest(door, anchor, int(row["index"]), "base", name)}
    return propose(door.about, signer, RevokeBase, values, texts={} if reason is None else {"reason": reason})


def propose_dataset_revocation(door: Door, anchor: Anchor, signer: str, name: str, reason: str | None) -> Proposal:
    row = door.get(f"/v1/datasets/{name}")
    digest = _logged_manifest(door, anchor, int(row["index"]), "dataset", name)
    dataset, version = split_version(name)
    values = {"dataset": dataset, "version": version, "digest": digest}
    return propose(door.about, signer, RevokeDataset, values, texts={} if reason is None else {"reason": reason})


def propose_set_revocation(door: Door, anchor: Anchor, signer: str, name: str, reason: str | None) -> Proposal:
    row = door.get(f"/v1/validation-sets/{name}")
    digest = _logged_manifest(door, anchor, int(row["index"]), "validation-set", name)
    found, version = split_version(name)
    values = {"validation_set": found, "version": version, "digest": digest}
    return propose(door.about, signer, RevokeValidationSet, values, texts={} if reason is None else {"reason": reason})


def _logged_manifest(door: Door, anchor: Anchor, index: int, kind: str, name: str) -> str:
    """By the proved entry that imported it."""
    entry = read_entry(door, anchor, index).entry
    if (entry.type, entry.body.get(kind.replace("-", "_"))) != (f"{kind}.imported", name):
        raise Tampered(f"{kind} {name}: expected its import as entry {entry.index}, got {entry.type}")
    return entry.documents["manifest"]


def earlier_adapter(door: Door, unit: str, task: str, wanted: str | None) -> tuple[str, bool]:
    """The adapter to go back to, the one named or the one that answered before today's; and whether the service put in
    the instruction when it last answered."""
    release = find_release(door, unit, task)
    current = release["history"][-1]["adapter"]
    earlier = [step["adapter"] for step in release["history"] if step["adapter"] != current]
    if not earlier:
        raise NotFound(f"release {unit}/{task}: expected an earlier adapter than {current}, got none")
    if wanted is not None and wanted not in earlier:
        raise NotFound(f"release {unit}/{task}: expected one of {', '.join(dict.fromkeys(earlier))}, got {wanted}")
    chosen = wanted or str(earlier[-1])
    last = [step for step in release["history"] if step["adapter"] == chosen][-1]
    return chosen, bool(last["adds_instruction"])


def find_release(door: Door, unit: str, task: str) -> dict[str, Any]:
    releases = door.get("/v1/releases")
    for release in releases:
        if (release["unit"], release["task"]) == (unit, task):
            return dict(release)
    known = ", ".join(f"{release['unit']}/{release['task']}" for release in releases) or "none"
    raise NotFound(f"release: expected one of {known}, got {unit}/{task}; list them with: appliance release history")


def _adapter(evidence: ReviewMaterial) -> dict[str, Any]:
    name, version = split_version(evidence.name)
    return {"adapter": name, "version": version, "manifest": evidence.digest}
