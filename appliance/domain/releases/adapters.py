"""Adapters: sealed, quarantined, revoked."""

from __future__ import annotations

import base64
from typing import Any

from pydantic import Field

from appliance.domain.core.case import Case, Changes, check_walls
from appliance.domain.core.event import Event, Failed, Ordered
from appliance.domain.core.names import (
    Digest,
    Identifier,
    RunId,
    Time,
    VersionedName,
    split_version,
    versioned,
)
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Run
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule, Verb
from appliance.domain.evaluation.baselines import compare
from appliance.domain.evaluation.engines import judged_engines
from appliance.domain.evaluation.judging import check_judgement
from appliance.domain.evaluation.verdict import parse_verdict
from appliance.domain.recipe.methods import METHODS
from appliance.domain.runs.conditions import check_inputs, move, take_run
from appliance.domain.runs.steps import STEPS_FILE
from appliance.errors import Denied
from appliance.formats.artifacts.manifest import MANIFEST_PATH, Guarantee, parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.bundle import verify_model
from appliance.formats.signatures.dsse import parse_envelope, verify_envelope
from appliance.formats.signatures.statement import parse_statement


class OnAdapter(Order):
    adapter: Identifier
    version: int = Field(ge=1)
    manifest: Digest

    @property
    def name(self) -> str:
        return versioned(self.adapter, self.version)

    def subjects(self) -> Subjects:
        return ((f"adapter:{self.name}", self.manifest),)


class RevokeAdapter(OnAdapter):
    verb = "revoke-adapter"


class AdapterSealed(Event):
    """The manifest's digest is the adapter's identity; `signature` is OpenSSF Model Signing, `provenance` SLSA. `gates`
    and `verdict` are there where the run's order bound a gate set.

    `metrics`: of `base` and `adapter` on the held-out rows, of the `majority` class there, of `training`, what
    `baseline` that the order named makes of them, and of `sets` by name: what was found on each set of rows; of
    `engines` by name: what another engine than the appliance's own made of the held-out rows.
    """

    type = "adapter.sealed"
    documents = ("manifest", "signature", "provenance")
    optional = ("gates", "verdict")
    run: RunId
    adapter: VersionedName
    metrics: dict[str, dict[str, Any]]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (
            f"run:{self.run}",
            f"adapter:{self.adapter}",
        )


class AdapterQuarantined(Failed):
    type = "adapter.quarantined"
    adapter: VersionedName

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.adapter}",)


class AdapterRevoked(Ordered):
    type = "adapter.revoked"


def find_adapter(state: State, order: OnAdapter) -> Adapter | Reasons:
    adapter = state.adapters.get(order.name)
    if adapter is None:
        return [f"adapter: expected a sealed one, got {order.name}"]
    if adapter.manifest != order.manifest:
        return [f"adapter {order.name}: expected the manifest {adapter.manifest}, got {order.manifest}"]
    return adapter


def take_adapter(case: Case, order: OnAdapter) -> Adapter:
    """The adapter that an entry's order names; Denied where there is none."""
    adapter = case.state.adapters.get(order.name)
    if adapter is None:
        raise Denied(f"entry {case.entry.index}: adapter: expected a sealed one, got {order.name}")
    return adapter


def may_revoke_adapter(state: State, order: RevokeAdapter, signer: Principal, now: Time) -> Reasons:
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    units = {review.unit for review in adapter.reviews}
    allowed = [role for role in signer.roles if role == "administrator" or role.startswith("reviewer:")]
    allowed += [role for role in signer.roles if role.partition(":")[2] in units and role.startswith("release-owner:")]
    reasons = [] if allowed else needs(signer, "administrator", "reviewer", "release-owner")
    if adapter.revoked is not None:
        reasons.append(f"adapter {order.name}: expected a standing one, got one revoked by entry {adapter.revoked}")
    return reasons


def next_version(state: State, name: str) -> int:
    """Versions count up per adapter name, over every adapter that was ever sealed."""
    versions = [split_version(key)[1] for key, _ in state.adapters.items() if split_version(key)[0] == name]
    return max(versions, default=0) + 1


SLSA_PROVENANCE = "https://slsa.dev/provenance/v1"


def adapter_sealed(case: Case) -> Changes:
    """The manifest is signed by the appliance's adapter key, and lists the weights and the steps that the run ended
    with."""
    body = case.of(AdapterSealed)
    run = take_run(case, body.run, "trained")
    check_inputs(case, run)
    check_walls(case, body.walls)
    manifest = parse_manifest(case.documents["manifest"])
    name, version = split_version(body.adapter)
    expected = (run.name, next_version(case.state, run.name))
    case.require((name, version) == expected, "adapter", versioned(*expected), body.adapter)
    case.require((manifest.name, manifest.version) == expected, "manifest", versioned(*expected), manifest.name)
    case.require(manifest.privacy == guarantee_of(run), "manifest, privacy", run.privacy, manifest.privacy)
    files = {file.path: file.digest for file in manifest.files}
    weights = files.get(METHODS[run.method].weights)
    case.require(weights == run.weights, "weights", run.weights, weights)
    record = files.get(STEPS_FILE)
    case.require(record == run.record, "steps", run.record, record)
    signed = files | {MANIFEST_PATH: digest_bytes(case.documents["manifest"])}
    verify_model(case.documents["signature"], base64.b64decode(case.state.site.adapter_key), signed)
    check_provenance(case, run)
    judgement = check_judgement(case, run, body.adapter, files, body.metrics)
    verdict = None if judgement.verdict is None else parse_verdict(case.documents["verdict"])
    measured = body.metrics.get("adapter", {})
    compared = compare(case.state, run, measured)
    case.require(body.metrics.get("baseline") == compared, "metrics, baseline", compared, body.metrics.get("baseline"))
    dataset = case.state.datasets.get(run.dataset)
    if dataset is None:
        raise Denied(f"entry {case.entry.index}: dataset: expected an imported one, got {run.dataset}")
    adapter = Adapter(
        name=name,
        version=version,
        manifest=digest_bytes(case.documents["manifest"]),
        run=run.id,
        ordered_by=run.ordered_by,
        dataset_by=dataset.imported_by,
        base=run.base,
        base_digest=run.base_digest,
        dataset=run.dataset,
        purpose=run.purpose,
        measured=measured,
        engines=judged_engines(body.metrics),
        index=case.entry.index,
        verdict=judgement.verdict,
        gates=judgement.gates,
        authorised=run.authorised,
        passed=judgement.passed,
        failed_gates=() if verdict is None else verdict.failed_gates,
        sets=run.sets,
    )
    return [
        *move(case.state, run, "sealed"),
        (case.state.adapters, body.adapter, adapter),
        (case.state.judgements, body.adapter, judgement),
    ]


def guarantee_of(run: Run) -> Guarantee | None:
    """What the manifest of its adapter says of differential privacy."""
    return None if run.privacy is None else Guarantee(epsilon=run.privacy.epsilon, delta=run.privacy.delta)


def check_provenance(case: Case, run: Run) -> None:
    """The appliance's adapter key says, in SLSA provenance v1, that this manifest came of the run's own inputs."""
    envelope = parse_envelope(case.documents["provenance"])
    verify_envelope(envelope, base64.b64decode(case.state.site.adapter_key))
    statement = parse_statement(envelope.payload)
    subjects = ((run.name, digest_bytes(case.documents["manifest"])),)
    case.require(statement.predicate_type == SLSA_PROVENANCE, "provenance", SLSA_PROVENANCE, statement.predicate_type)
    case.require(statement.subjects == subjects, "provenance, subjects", subjects, statement.subjects)
    build = statement.predicate.get("buildDefinition")
    found = build.get("resolvedDependencies") if isinstance(build, dict) else None
    for name, digest in (
        (f"base:{run.base}", run.base_digest),
        (f"dataset:{run.dataset}", run.dataset_digest),
        ("order", run.order),
        *((f"validation-set:{bound.validation_set}", bound.digest) for bound in run.sets),
        *((f"local-set:{bound.set}", bound.digest) for bound in run.local_sets),
    ):
        needed = {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
        case.require(isinstance(found, list) and needed in found, "provenance, dependencies", needed, "none such")


def adapter_quarantined(case: Case) -> Changes:
    name = case.of(AdapterQuarantined).adapter
    adapter = case.state.adapters.get(name)
    if adapter is None or adapter.quarantined is not None:
        raise Denied(f"entry {case.entry.index}: adapter: expected one not in quarantine, got {name}")
    return [(case.state.adapters, name, adapter.model_copy(update={"quarantined": case.entry.index}))]


def adapter_revoked(case: Case) -> Changes:
    order = case.order(RevokeAdapter)
    adapter = take_adapter(case, order)
    return [(case.state.adapters, order.name, adapter.model_copy(update={"revoked": case.entry.index}))]


VERBS = (
    Verb(
        RevokeAdapter,
        may=may_revoke_adapter,
        signers=("administrator", "any reviewer", "release-owner:UNIT"),
        meaning="The adapter no longer answers any request. This cannot be undone.",
        event=AdapterRevoked,
        apply=adapter_revoked,
        changes_answers=True,
    ),
)
EVENTS = (
    EventRule(AdapterSealed, adapter_sealed),
    EventRule(AdapterQuarantined, adapter_quarantined),
)
