"""The service's own verification of everything that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from appliance.access.cedar import SitePolicies
from appliance.domain.audit.report import Report, judge_site_policies
from appliance.domain.audit.summary import group_findings
from appliance.domain.audit.verify import verify_log
from appliance.domain.core.state import UNPROJECTED
from appliance.errors import ApplianceError
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.checkpoint import claimed_size
from appliance.formats.log.trust import Trust, parse_trust
from appliance.workflows.core.context import Context
from appliance.workflows.runs import checkpoints


def verify(context: Context, trust: dict[str, Any] | None) -> dict[str, Any]:
    """The service's own check of everything it holds. An auditor's check is made elsewhere, from an export."""
    # Of one moment: a text that an order brings in meanwhile would belong to no entry that is read here.
    checkpoint, texts = context.ledger.signed_texts()
    size = claimed_size(checkpoint)
    trusted: Trust | None = None if trust is None else parse_trust(encode_canonical(trust) + b"\n")
    report = verify_log(
        context.ledger.entries(0, size),
        partial(_document_or_none, context),
        texts,
        checkpoint,
        trusted,
        now=encode_time(context.clock()),
        replay=lambda policy: SitePolicies(policy).decide,
    )
    report = judge_site_policies(report, accepted=False)
    ledger = context.ledger
    local = [
        *ledger.check_guards(),
        *ledger.check_projections(),
        *_check_artifacts(context),
    ]
    return {**_report(report, local), "artifacts": len(_named(context)), "projections": len(list(_rows(context)))}


def _report(report: Report, local: list[str]) -> dict[str, Any]:
    value: dict[str, Any] = report.model_dump(mode="json")
    value["groups"] = [group.model_dump(mode="json") for group in group_findings(report.findings)]
    value["local_findings"] = local
    if local:
        value["verdict"] = "failed"
    return value


def _document_or_none(context: Context, digest: str) -> bytes | None:
    try:
        return context.ledger.document(digest)
    except ApplianceError:
        return None


def _rows(context: Context) -> Iterator[tuple[str, str]]:
    for kind, key, _ in context.ledger.state.projections():
        if kind not in UNPROJECTED:
            yield kind, key


def _named(context: Context) -> list[tuple[str, str]]:
    state = context.ledger.state
    return (
        [(f"base {b.name}", b.digest) for b in state.bases.values() if b.quarantined is None]
        + [(f"dataset {key}", d.digest) for key, d in state.datasets.items()]
        + [(f"adapter {key}", a.manifest) for key, a in state.adapters.items() if a.quarantined is None]
    )


def _check_artifacts(context: Context) -> list[str]:
    """Every folder that an entry names, and every training checkpoint that is kept, hashed again."""
    findings = []
    for what, digest in _named(context):
        try:
            context.artifacts.check(digest)
        except ApplianceError as error:
            findings.append(f"{what}: {error.message}")
    for digest in sorted(checkpoints.kept(context.ledger.state)):
        try:
            context.checkpoints.read(digest)
        except ApplianceError as error:
            # Else its run has ended meanwhile, and it was swept.
            if digest in checkpoints.kept(context.ledger.state):
                findings.append(error.message)
    return findings
