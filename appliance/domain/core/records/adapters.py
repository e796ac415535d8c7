"""Sealed adapters, and what was found of them."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.decisions import Finding, ReleaseRequest, ReviewRecord
from appliance.domain.core.names import Value
from appliance.domain.core.records.data import BoundSet, LocalSet
from appliance.domain.core.records.runs import Authorisation


class Adapter(Value):
    name: str
    version: int
    manifest: str
    run: str
    ordered_by: str
    dataset_by: str
    base: str
    base_digest: str
    dataset: str
    purpose: str
    measured: dict[str, Any]
    """Of the adapter, on the held-out rows."""
    index: int
    verdict: str | None = None
    """The digest of the verdict that was sealed with it, where its run's order bound gates."""
    sets: tuple[BoundSet, ...] = ()
    """The validation sets that it was judged on beside the held-out rows."""
    gates: str | None = None
    passed: bool | None = None
    failed_gates: tuple[str, ...] = ()
    """Of a verdict that was not passed, the gates that stand in the way."""
    authorised: Authorisation | None = None
    """Who let its run begin, where a second person did."""
    engines: tuple[str, ...] = ()
    """On which it was judged beside the appliance's own."""
    requests: tuple[ReleaseRequest, ...] = ()
    reviews: tuple[ReviewRecord, ...] = ()
    findings: tuple[Finding, ...] = ()
    revoked: int | None = None
    quarantined: int | None = None


class SetJudgement(Value):
    """What was found on a validation set: its version, and the digest of the items."""

    validation_set: str
    items: str


class LocalJudgement(LocalSet):
    """What was found on a set of no log: the digest of the items."""

    items: str


class Judgement(Value):
    """What was found of a sealed adapter: the digest of its items, and where its run's order bound a gate set, of that
    and of the verdict. `sets`: of each validation set beside the held-out rows. `index`: the entry that sealed it."""

    adapter: str
    run: str
    dataset: str
    items: str
    gates: str | None
    verdict: str | None
    task: bool | None
    rest: bool | None
    passed: bool | None
    index: int
    sets: tuple[SetJudgement, ...] = ()
    local_sets: tuple[LocalJudgement, ...] = ()
