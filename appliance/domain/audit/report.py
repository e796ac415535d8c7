"""What a verification says: the verdict, what it counted, what it found, and what it did not check."""

from __future__ import annotations

from typing import Literal

from appliance.domain.core.names import Time, Value
from appliance.formats.log.trust import Trust

MAX_FINDINGS = 1_000
"""Findings kept; those beyond are counted. A broken log may break at every entry."""

Verdict = Literal["verified", "verified, without site policies", "failed", "unverifiable"]
"""The second one only where the caller accepted it beforehand (`judge_site_policies`)."""


SITE_POLICIES = "site policies: not replayed"
"""How the line begins that says so."""
UNBOUND = "expected an entry or order that binds it, got none"
"""Of a text that travels beside the log."""


class Finding(Value):
    """What is wrong with the log; `index` is the entry's, if there is one."""

    index: int | None
    rule: str
    message: str


class Counts(Value):
    """What was checked and held, never what was only seen.

    `entries` were replayed and stand; `documents` are bindings, each hashed again; `decisions` are entries whose
    orders, an endorsed one among them, the site's own policies, asked again, allow.
    """

    entries: int
    orders: int
    signatures: int
    documents: int
    adapters: int
    disclosures: int
    decisions: int


class TrustUsed(Value):
    origin: str
    log_key: str
    genesis: str
    administrators: tuple[str, ...]


class Report(Value):
    """`essential`: what was not checked and is needed for the verdict "verified"; `unchecked`: what is not.

    `size`, `head` (leaf hash of the last entry) and `root` are those of the bytes read; the checkpoint's stand beside.
    """

    verdict: Verdict
    counts: Counts
    findings: tuple[Finding, ...]
    omitted: int
    essential: tuple[str, ...]
    unchecked: tuple[str, ...]
    remarks: tuple[str, ...]
    trust: TrustUsed | None
    origin: str | None
    single_administrator: bool | None
    site_policies: Literal["replayed", "not replayed"]
    size: int
    head: str
    root: str
    checkpoint_size: int | None
    checkpoint_root: str | None
    checked_at: Time


class Findings:
    """Collected in order, up to a limit."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.omitted = 0

    def add(self, index: int | None, rule: str, message: str) -> None:
        if len(self.kept) < MAX_FINDINGS:
            self.kept.append(Finding(index=index, rule=rule, message=message))
        else:
            self.omitted += 1


def with_findings(report: Report, findings: tuple[Finding, ...]) -> Report:
    """The report with what was found beside the log itself: no finding leaves a verdict better than failed."""
    if not findings:
        return report
    return report.model_copy(update={"verdict": "failed", "findings": (*report.findings, *findings)})


def judge_site_policies(report: Report, *, accepted: bool) -> Report:
    """The report of a log whose site policies must be replayed too. Where they were not, the verdict is no better than
    unverifiable, unless that was accepted beforehand: then the verdict says so."""
    if report.site_policies == "replayed" or report.origin is None:
        return report
    kept = tuple(text for text in report.unchecked if not text.startswith(SITE_POLICIES))
    said = tuple(text for text in report.unchecked if text not in kept)
    changes: dict[str, object] = {}
    if not accepted:
        changes = {"unchecked": kept, "essential": (*report.essential, *said)}
    if report.verdict == "verified":
        changes["verdict"] = "verified, without site policies" if accepted else "unverifiable"
    return report.model_copy(update=changes)


def trust_used(trust: Trust) -> TrustUsed:
    names = tuple(name for name, _ in trust.administrators)
    return TrustUsed(origin=trust.origin, log_key=trust.log_key, genesis=trust.genesis, administrators=names)
