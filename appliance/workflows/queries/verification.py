"""The service's own verification of everything that it holds.

The log is replayed in a process of its own (`verification_program.py`): the service goes on answering meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from appliance.domain.audit.report import Report
from appliance.domain.audit.summary import group_findings
from appliance.domain.core.state import UNPROJECTED
from appliance.errors import ApplianceError, NotFound, TooMany, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import Trust, parse_trust
from appliance.runners.program import CANCELLED, run_program
from appliance.workflows.core.context import Context
from appliance.workflows.core.workers import failure
from appliance.workflows.evaluation.judging import verify_judgement
from appliance.workflows.queries.verification_program import Moment, encode_moment
from appliance.workflows.runs import checkpoints

PROGRAM = "appliance.workflows.queries.verification_program"
MOST_BYTES = 64 << 20
"""Of a report: it names so many findings at most, and what each of them quotes is short."""
_LIBPQ = "PG"


def verify(context: Context, trust: dict[str, Any] | None, left: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """The service's own check of everything it holds. An auditor's check is made elsewhere, from an export.

    One at a time; Unavailable (`cancelled`) as soon as the asker has `left`, or the service ends.
    """
    trusted: Trust | None = None if trust is None else parse_trust(encode_canonical(trust) + b"\n")
    if not context.verifying.acquire(blocking=False):
        raise TooMany("verification: expected one at a time, got a second one during the first", retry_after_s=10)
    try:
        return _verify(context, trusted, lambda: left() or context.closing.is_set())
    finally:
        context.verifying.release()


def _verify(context: Context, trust: Trust | None, cancelled: Callable[[], bool]) -> dict[str, Any]:
    ledger = context.ledger
    # Of one moment: a text that an order brings in meanwhile would belong to no entry that is read there.
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
    said = run_program(PROGRAM, encode_moment(moment, texts), log=log, most_bytes=MOST_BYTES, cancelled=cancelled)
    report, local = _parse(said)
    local += _check_artifacts(context, cancelled)
    local += _check_judgements(context, cancelled)
    return {
        **_state(report, local),
        "artifacts": len(_named_folders(context)),
        "verdicts": sum(one.verdict is not None for one in context.ledger.state.judgements.values()),
        "projections": len(list(_rows(context))),
    }


def _parse(said: bytes) -> tuple[Report, list[str]]:
    """What the program said; its failure is raised as what it names."""
    try:
        value: dict[str, Any] = json.loads(said)
        if "failure" not in value:
            return Report.model_validate_json(json.dumps(value["report"])), [str(one) for one in value["local"]]
    except (ValueError, KeyError, TypeError) as error:
        got = type(error).__name__
        raise Unavailable(
            f"verification: expected a whole report, got an incomplete one ({got})", code="program-ended"
        ) from None
    raise failure(value["failure"])


def _state(report: Report, local: list[str]) -> dict[str, Any]:
    value: dict[str, Any] = report.model_dump(mode="json")
    value["groups"] = [group.model_dump(mode="json") for group in group_findings(report.findings)]
    value["local_findings"] = local
    if local:
        value["verdict"] = "failed"
    return value


def _rows(context: Context) -> Iterator[tuple[str, str]]:
    for kind, key, _ in context.ledger.state.projections():
        if kind not in UNPROJECTED:
            yield kind, key


def _named_folders(context: Context) -> list[tuple[str, str]]:
    state = context.ledger.state
    return (
        [(f"base {b.name}", b.digest) for b in state.bases.values() if b.quarantined is None]
        + [(f"dataset {key}", d.digest) for key, d in state.datasets.items()]
        + [(f"validation set {key}", found.digest) for key, found in state.validation_sets.items()]
        + [(f"adapter {key}", a.manifest) for key, a in state.adapters.items() if a.quarantined is None]
    )


def _check_artifacts(context: Context, cancelled: Callable[[], bool]) -> list[str]:
    """Every folder that an entry names, and every training checkpoint that is kept, hashed again."""
    findings = []
    for what, digest in _named_folders(context):
        if cancelled():
            raise Unavailable("verification: expected a caller that waits for it, got none", code=CANCELLED)
        try:
            context.artifacts.check(digest)
        except ApplianceError as error:
            findings.append(f"{what}: {error.message}")
    for digest in sorted(checkpoints.kept_digests(context)):
        try:
            context.checkpoints.read(digest)
        except ApplianceError as error:
            # One that may have been swept before a hold was placed or a policy adopted is hashed where it is there.
            may_be_gone = isinstance(error, NotFound) and digest not in checkpoints.needed(context.ledger.state)
            if not may_be_gone and digest in checkpoints.kept_digests(context):
                findings.append(error.message)
    return findings


def _check_judgements(context: Context, cancelled: Callable[[], bool]) -> list[str]:
    """Every verdict computed again from the items that are sealed; an adapter in quarantine has no folder."""
    findings, state = [], context.ledger.state
    for judgement in state.judgements.values():
        adapter = state.adapters.get(judgement.adapter)
        if adapter is None or adapter.quarantined is not None:
            continue
        try:
            verify_judgement(context, judgement, cancelled)
        except ApplianceError as error:
            if cancelled():
                raise
            # A folder that is missing is a finding already.
            if not isinstance(error, NotFound):
                findings.append(error.message)
    return findings
