"""The report of a verification: the verdict, the counts, the findings, and the omitted checks."""

from __future__ import annotations

from typing import Literal

from appliance.domain.core.names import Time, Value
from appliance.formats.log.trust import Trust

MAX_FINDINGS = 1_000
"""Largest number of findings in a report; the others are counted. A broken log may have one at every entry."""

Verdict = Literal["verified", "verified, without Cedar policies", "failed", "unverifiable"]
"""The result of a verification.

The second value occurs only if the caller accepted it beforehand (`require_cedar_policies`).
"""


CEDAR_POLICIES = "Cedar policies: not replayed"
"""Prefix of the line that says that the Cedar policies were not replayed."""
UNBOUND = "expected an entry or order that binds it, got none"
"""The finding of a text beside the log that no entry binds."""


class AuditFinding(Value):
    """A defect of the log; `index` is the entry's, if there is one."""

    index: int | None
    rule: str
    message: str


class AuditCounts(Value):
    """Numbers of the objects that were checked and are valid, by kind.

    `entries` were replayed and are valid. `documents` are bindings, each hashed again. `decisions` are entries whose
    orders, including countersigned ones, the site's own policies allow in the replay.
    """

    entries: int
    orders: int
    signatures: int
    documents: int
    adapters: int
    disclosures: int
    decisions: int


class TrustUsed(Value):
    """The values of the trust file that the verification used."""

    origin: str
    log_key: str
    post_quantum_log_key: str | None
    genesis: str
    administrators: tuple[str, ...]


class Report(Value):
    """The result of a verification.

    `essential` are omitted checks that the verdict "verified" needs; `unchecked` are the other omitted checks. `size`,
    `head` (leaf hash of the last entry) and `root` are those of the bytes read, as opposed to the checkpoint's.
    """

    verdict: Verdict
    counts: AuditCounts
    findings: tuple[AuditFinding, ...]
    omitted: int
    essential: tuple[str, ...]
    unchecked: tuple[str, ...]
    remarks: tuple[str, ...]
    trust: TrustUsed | None
    origin: str | None
    single_administrator: bool | None
    cedar_policies: Literal["replayed", "not replayed"]
    size: int
    head: str
    root: str
    checkpoint_size: int | None
    checkpoint_root: str | None
    checked_at: Time


class Findings:
    """The findings so far, in order, up to a limit."""

    def __init__(self) -> None:
        self.kept: list[AuditFinding] = []
        self.omitted = 0

    def add(self, index: int | None, rule: str, message: str) -> None:
        """Add a finding, or count it if there are too many."""
        if len(self.kept) < MAX_FINDINGS:
            self.kept.append(AuditFinding(index=index, rule=rule, message=message))
        else:
            self.omitted += 1


def with_findings(report: Report, findings: tuple[AuditFinding, ...]) -> Report:
    """Return the report with further findings; its verdict is then "failed"."""
    if not findings:
        return report
    return report.model_copy(update={"verdict": "failed", "findings": (*report.findings, *findings)})


def require_cedar_policies(report: Report, *, accepted: bool) -> Report:
    """Return the report for a log whose Cedar policies must be replayed, too.

    If they were not, "verified" becomes "unverifiable", or, if the caller accepted that, a verdict that says so.
    """
    if report.cedar_policies == "replayed" or report.origin is None:
        return report
    other_lines = tuple(text for text in report.unchecked if not text.startswith(CEDAR_POLICIES))
    policy_lines = tuple(text for text in report.unchecked if text not in other_lines)
    changes: dict[str, object] = {}
    if not accepted:
        changes = {"unchecked": other_lines, "essential": (*report.essential, *policy_lines)}
    if report.verdict == "verified":
        changes["verdict"] = "verified, without Cedar policies" if accepted else "unverifiable"
    return report.model_copy(update=changes)


def trust_used(trust: Trust) -> TrustUsed:
    """Return the values of a trust file that a report shows."""
    names = tuple(name for name, _ in trust.administrators)
    return TrustUsed(
        origin=trust.origin,
        log_key=trust.log_key,
        post_quantum_log_key=trust.post_quantum_log_key,
        genesis=trust.genesis,
        administrators=names,
    )
