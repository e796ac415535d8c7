"""The service's own verification of all its data.

A separate process replays the log (`verification_program.py`), so that serving continues meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from appliance.api.log import ServiceReport
from appliance.domain.audit.report import Report
from appliance.domain.audit.summary import group_findings
from appliance.domain.core.state import UNPROJECTED
from appliance.errors import ApplianceError, NotFound, RateLimited, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import Trust, parse_trust
from appliance.sandbox.program import CANCELLED
from appliance.workflows.core.context import LedgerContext, RunContext
from appliance.workflows.core.workers import ask_program
from appliance.workflows.evaluation.verdicts import verify_evaluation
from appliance.workflows.integrity import list_sealed_folders
from appliance.workflows.queries.verification_program import Moment, encode_moment
from appliance.workflows.runs import checkpoints

PROGRAM = "appliance.workflows.queries.verification_program"
MOST_BYTES = 64 << 20
"""Most bytes of a report. Its number of findings is limited, and so are the quotations in each."""
_LIBPQ = "PG"
"""Prefix of the environment variables that PostgreSQL's library reads."""


def verify(
    context: RunContext, trust: dict[str, Any] | None, left: Callable[[], bool] = lambda: False
) -> ServiceReport:
    """Verify all data of the service and return the report. Auditors verify an export elsewhere instead.

    Raises:
        RateLimited: Another verification is running.
        Unavailable: With the code `cancelled`, if the client has `left` or the service ends.
    """
    trusted: Trust | None = None if trust is None else parse_trust(encode_canonical(trust) + b"\n")
    if not context.verifying.acquire(blocking=False):
        raise RateLimited("verification: expected one at a time, got a second one during the first", retry_after_s=10)
    try:
        return _verify(context, trusted, lambda: left() or context.closing.is_set())
    finally:
        context.verifying.release()


def _verify(context: RunContext, trust: Trust | None, cancelled: Callable[[], bool]) -> ServiceReport:
    ledger = context.ledger
    # Checkpoint and texts are of one moment. The text of a later order would belong to none of the entries.
    checkpoint, texts = ledger.signed_texts()
    moment = Moment(
        database=ledger.database_url,
        variables={name: value for name, value in os.environ.items() if name.startswith(_LIBPQ)},
        seen=ledger.seen,
        checkpoint=checkpoint,
        trust=trust,
        now=encode_time(context.clock()),
    )
    log = context.logs / "verification.log"
    lines = encode_moment(moment, texts)
    report, local = ask_program(
        PROGRAM, "verification", lines, _parse, log=log, most_bytes=MOST_BYTES, cancelled=cancelled
    )
    local += _check_artifacts(context, cancelled)
    local += _check_evaluations(context, cancelled)
    found = dict(report) | ({"verdict": "failed"} if local else {})
    return ServiceReport(
        **found,
        groups=tuple(group_findings(report.findings)),
        local_findings=tuple(local),
        artifacts=len(list_sealed_folders(context.ledger.state)),
        verdicts=sum(one.verdict is not None for one in context.ledger.state.evaluations.values()),
        projections=len(list(_list_rows(context))),
    )


def _parse(reply: dict[str, Any]) -> tuple[Report, list[str]]:
    """Return the report and the local findings."""
    return Report.model_validate_json(json.dumps(reply["report"])), [str(one) for one in reply["local"]]


def _list_rows(context: LedgerContext) -> Iterator[tuple[str, str]]:
    for kind, key, _ in context.ledger.state.projections():
        if kind not in UNPROJECTED:
            yield kind, key


def _check_artifacts(context: RunContext, cancelled: Callable[[], bool]) -> list[str]:
    """Return the findings on every folder that an entry names and every kept training checkpoint, after hashing them
    again.
    """
    findings = []
    for subject, digest, _ in list_sealed_folders(context.ledger.state):
        if cancelled():
            raise Unavailable("verification: expected a caller that waits for it, got none", code=CANCELLED)
        try:
            context.artifacts.check(digest)
        except ApplianceError as error:
            findings.append(f"{subject.replace(':', ' ', 1)}: {error.message}")
    for digest in sorted(checkpoints.kept_digests(context)):
        try:
            context.checkpoints.read(digest)
        except ApplianceError as error:
            # It may have been removed before a legal hold was placed or a policy was adopted. Then it may be missing.
            may_be_gone = isinstance(error, NotFound) and digest not in checkpoints.list_needed_checkpoints(
                context.ledger.state
            )
            if not may_be_gone and digest in checkpoints.kept_digests(context):
                findings.append(error.message)
    return findings


def _check_evaluations(context: LedgerContext, cancelled: Callable[[], bool]) -> list[str]:
    """Return the findings on every verdict, computed again from the sealed items. Quarantined adapters are left out."""
    findings, state = [], context.ledger.state
    for evaluation in state.evaluations.values():
        adapter = state.adapters.get(evaluation.adapter)
        if adapter is None or adapter.quarantined is not None:
            continue
        try:
            verify_evaluation(context, evaluation, cancelled)
        except ApplianceError as error:
            if cancelled():
                raise
            # A missing folder is a finding of _check_artifacts already.
            if not isinstance(error, NotFound):
                findings.append(error.message)
    return findings
