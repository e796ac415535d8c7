"""Orders and entries about adapters: sealing, quarantine and revocation."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes, check_sandbox
from appliance.domain.core.decisions import Suspension
from appliance.domain.core.entry import Event, Failed, Ordered
from appliance.domain.core.facts import ActionFacts, Entity, PrincipalEntity
from appliance.domain.core.lookup import Completed, Lookup, OrderInput, ProvenValue
from appliance.domain.core.names import (
    Digest,
    Identifier,
    RunId,
    Time,
    VersionedName,
    split_version,
    versioned,
)
from appliance.domain.core.order import Order, Subjects, derived
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Adapter, Run
from appliance.domain.core.records.site import Site
from appliance.domain.core.roles import Reasons, refuse_without_role, require_unit
from appliance.domain.core.state import State, next_version
from appliance.domain.data.imports import BaseEntity, DatasetEntity
from appliance.domain.evaluation.baselines import compare
from appliance.domain.evaluation.quality import list_engines_evaluated
from appliance.domain.evaluation.rules import check_evaluation
from appliance.domain.evaluation.verdict import parse_verdict
from appliance.domain.recipe.methods import METHODS
from appliance.domain.runs.conditions import check_inputs, move, take_run
from appliance.domain.runs.steps import STEPS_FILE
from appliance.errors import Denied, Refusal, RefusalCode, Rejected, Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH, PrivacyGuarantee, parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.bundle import verify_model
from appliance.formats.signatures.dsse import parse_envelope, parse_statement, verify_envelope

ADAPTER_UNKNOWN = RefusalCode(
    "adapter-unknown", "order", "No adapter with the name {name} is sealed.", "Choose one of: appliance adapter list."
)
MANIFEST_DIFFERS = RefusalCode(
    "manifest-differs",
    "order",
    "The order is for an adapter {id} with the manifest {named}. The sealed adapter has the manifest {manifest}.",
    "Prepare the order again from the adapter.",
)
ADAPTER_REVOKED = RefusalCode(
    "adapter-revoked",
    "state",
    "Adapter {id} was revoked by entry {entry}. A revocation cannot be undone.",
    "Train another adapter and have it approved.",
)
ADAPTER_QUARANTINED = RefusalCode(
    "adapter-quarantined",
    "state",
    "The files of adapter {id} have changed on disk, so that entry {entry} put it in quarantine.",
    "Restore the files, or train another adapter.",
)
RELEASE_SUSPENDED = RefusalCode(
    "release-suspended",
    "state",
    "{by} ({role}) suspended adapter {adapter} for {unit} by entry {id}.",
    "A person with the role {role}, or two administrators, must resume it, on the release's page or with: "
    "appliance release resume.",
)
ADAPTER_IS_BASELINE = RefusalCode(
    "adapter-not-for-release",
    "state",
    "Adapter {id} was trained as a {purpose} and cannot be released.",
    "Train it again with the purpose release.",
)


class AdapterOrder(Order):
    """Base class of the orders about one sealed adapter. `manifest` is the digest of its manifest."""

    adapter: Identifier
    version: int = derived(ge=1)
    manifest: Digest = derived()

    @property
    def name(self) -> str:
        """Return the versioned name of the adapter, such as `triage@3`."""
        return versioned(self.adapter, self.version)

    def subjects(self) -> Subjects:
        return ((f"adapter:{self.name}", self.manifest),)


def complete_adapter(given: OrderInput, lookup: Lookup) -> Completed:
    """Return the adapter's name, version and manifest for an order about NAME@VERSION.

    A given manifest, which the caller has verified, is kept.
    """
    name = given.word("adapter")
    manifest = given.word("manifest") or lookup.find_artifact("adapter", name).value.manifest
    adapter, version = split_version(name)
    return {"adapter": ProvenValue(adapter), "version": ProvenValue(version), "manifest": ProvenValue(manifest)}


class RevokeAdapter(AdapterOrder):
    """A signed order to revoke an adapter. A revoked adapter serves no request."""

    action = "revoke-adapter"


class AdapterSealed(Event):
    """The entry that a trained adapter was sealed.

    The digest of the manifest identifies the adapter. `signature` is in the format OpenSSF Model Signing, `provenance`
    is SLSA provenance. The documents `gates` and `verdict` are present if the run's order names a gates file.

    The keys of `metrics`:

    - `base`, `adapter`, `majority`: metrics on the held-out rows of the base, of the adapter, and of always answering
      with
      the most frequent class
    - `training`: metrics of the training
    - `baseline`: comparison of the adapter with the baseline that the order names
    - `sets`: metrics by name of each set of rows
    - `engines`: metrics on the held-out rows by name of each inference engine other than the appliance's own

    `sandbox_probes`: results of the sandbox's escape attempts.
    """

    type = "adapter.sealed"
    documents = ("manifest", "signature", "provenance")
    optional = ("gates", "verdict", "post_quantum_signature")
    run: RunId
    adapter: VersionedName
    metrics: dict[str, dict[str, Any]]
    sandbox_probes: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (
            f"run:{self.run}",
            f"adapter:{self.adapter}",
        )


class AdapterQuarantined(Failed):
    """The entry that an adapter was put into quarantine because its bytes have changed."""

    type = "adapter.quarantined"
    adapter: VersionedName

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.adapter}",)


class AdapterRevoked(Ordered):
    """The entry that an adapter was revoked."""

    type = "adapter.revoked"


def find_adapter(state: State, order: AdapterOrder) -> Adapter | Reasons:
    """Return the sealed adapter that the order names, or the refusal reasons if its name or manifest does not match."""
    adapter = state.adapters.get(order.name)
    if adapter is None:
        return [ADAPTER_UNKNOWN(name=Rejected(order.name))]
    if adapter.manifest != order.manifest:
        return [MANIFEST_DIFFERS(f"adapter:{order.name}", manifest=adapter.manifest, named=Rejected(order.manifest))]
    return adapter


def take_adapter(case: Case, order: AdapterOrder) -> Adapter:
    """Return the adapter that an entry's order names.

    Raises:
        Denied: there is no such adapter.
    """
    adapter = case.state.adapters.get(order.name)
    if adapter is None:
        raise Denied(f"entry {case.entry.index}: adapter: expected a sealed one, got {order.name}")
    return adapter


def authorise_revoke_adapter(state: State, order: RevokeAdapter, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against revoking an adapter.

    Administrators, reviewers, and the release owners of the units that reviewed it may revoke it.
    """
    if not any(role == "administrator" or role.startswith("reviewer:") for role in signer.roles):
        # A release owner gets the same answer for the adapters of other units and for those that do not exist.
        known = state.adapters.get(order.name)
        units = {review.unit for review in known.reviews} if known is not None else set()
        owners = [f"release-owner:{unit}" for unit in units]
        if not any(signer.has(role) for role in owners):
            return refuse_without_role(signer, "administrator", "reviewer", "release-owner")
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    return refuse_revoked(adapter)


def refuse_revoked(adapter: Adapter) -> Reasons:
    """Return the refusal reason of an adapter that was revoked."""
    if adapter.revoked is None:
        return []
    return [ADAPTER_REVOKED(f"adapter:{versioned(adapter.name, adapter.version)}", entry=adapter.revoked)]


def refuse_candidate(state: State, adapter: Adapter, unit: str) -> Reasons:
    """Return the refusal reasons if the adapter can never be released to the unit, even with every approval."""
    return require_unit(state, unit) + refuse_baseline(adapter) + refuse_revoked(adapter)


def refuse_quarantined(adapter: Adapter) -> Reasons:
    """Return the refusal reason of an adapter that is in quarantine."""
    if adapter.quarantined is None:
        return []
    return [ADAPTER_QUARANTINED(f"adapter:{versioned(adapter.name, adapter.version)}", entry=adapter.quarantined)]


def refuse_suspended(state: State, adapter: Adapter, unit: str, served_model: str | None = None) -> Reasons:
    """Return a refusal reason for each valid suspension of the adapter for all served models of the unit, or for this
    served model.
    """
    name = versioned(adapter.name, adapter.version)
    return [
        RELEASE_SUSPENDED(f"suspension:{one.index}", by=one.by, role=one.role, adapter=name, unit=unit)
        for one in adapter.suspensions
        if one.unit == unit and one.served_model in (None, served_model) and is_suspended(state, one)
    ]


def make_admission_error(what: str, refusals: Sequence[Refusal]) -> Denied:
    """Return the error of a request to an adapter that may not serve. It has a code of its own for a suspension."""
    is_stopped = any(refusal.code == RELEASE_SUSPENDED.name for refusal in refusals)
    code = "release-suspended" if is_stopped else "not-admitted"
    return Denied(what, refusals=refusals, code=code)


def is_suspended(state: State, suspension: Suspension) -> bool:
    """Return True if the suspension was not lifted, or was lifted with a key that was not valid at that entry.

    The suspender's own key does not matter: an end of that key does not let the adapter serve again.
    """
    lifted = suspension.lifted
    keys = [state.keys.get(keyid) for keyid in suspension.lifted_keyids]
    return lifted is None or not all(key is not None and key.counts(lifted) for key in keys)


def refuse_baseline(adapter: Adapter) -> Reasons:
    """Return the refusal reason of an adapter that was not made for release."""
    if adapter.purpose == "release":
        return []
    return [ADAPTER_IS_BASELINE(f"adapter:{versioned(adapter.name, adapter.version)}", purpose=adapter.purpose)]


SLSA_PROVENANCE = "https://slsa.dev/provenance/v1"
"""Predicate type of SLSA provenance v1."""


def apply_adapter_seal(case: Case) -> Changes:
    """Record a sealed adapter after checking it against its run.

    The manifest must be signed by the appliance's adapter keys, and must list the weights and the step records with
    which the run ended.
    """
    body = case.of(AdapterSealed)
    run = take_run(case, body.run, "trained")
    check_inputs(case, run)
    check_sandbox(case, body.sandbox_probes)
    manifest = parse_manifest(case.documents["manifest"])
    name, version = split_version(body.adapter)
    expected = (run.name, next_version(case.state.adapters, run.name))
    case.require((name, version) == expected, "adapter", versioned(*expected), body.adapter)
    case.require((manifest.name, manifest.version) == expected, "manifest", versioned(*expected), manifest.name)
    case.require(manifest.privacy == guarantee_of(run), "manifest, privacy", run.privacy, manifest.privacy)
    files = {file.path: file.digest for file in manifest.files}
    weights = files.get(METHODS[run.method].weights)
    case.require(weights == run.weights, "weights", run.weights, weights)
    record = files.get(STEPS_FILE)
    case.require(record == run.record, "steps", run.record, record)
    signed = files | {MANIFEST_PATH: digest_bytes(case.documents["manifest"])}
    signatures = [case.documents[role] for role in SIGNATURE_ROLES if role in case.documents]
    verify_signatures(case.state.site, case.entry.index, signatures, signed)
    check_provenance(case, run)
    evaluation = check_evaluation(case, run, body.adapter, files, body.metrics)
    verdict = None if evaluation.verdict is None else parse_verdict(case.documents["verdict"])
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
        engines=list_engines_evaluated(body.metrics),
        index=case.entry.index,
        verdict=evaluation.verdict,
        gates=evaluation.gates,
        authorised=run.authorised,
        passed=evaluation.passed,
        failed_gates=() if verdict is None else verdict.failed_gates,
        sets=run.sets,
    )
    return [
        *move(case.state, run, "sealed"),
        (case.state.adapters, body.adapter, adapter),
        (case.state.evaluations, body.adapter, evaluation),
    ]


SIGNATURE_ROLES = ("signature", "post_quantum_signature")
"""Roles of the model signatures among the documents of the entry of a sealed adapter, in the order of the keys."""
SIGNATURE_FILES = ("signature.json", "signature-ml-dsa-65.json")
"""Names of the files of the model signatures beside a sealed or exported adapter, in the same order."""


def verify_signatures(site: Site, index: int, signatures: Sequence[bytes], files: Mapping[str, str]) -> None:
    """Check the model signatures of an adapter that was sealed by the entry of this index, over its files.

    Raises:
        Tampered: a signature is invalid, missing, or one more than the log requires.
    """
    verify_models(signatures, site.adapter_keys(index), files)


def verify_models(signatures: Sequence[bytes], keys: Sequence[bytes], files: Mapping[str, str]) -> None:
    """Check that the model signatures are those of exactly these keys, in their order, over the files.

    Raises:
        Tampered: a signature is invalid, missing, or one more than there are keys.
    """
    if len(signatures) != len(keys):
        raise Tampered(f"model signatures: expected {len(keys)}, one of each adapter key, got {len(signatures)}")
    for signature, key in zip(signatures, keys, strict=True):
        verify_model(signature, key, files)


def guarantee_of(run: Run) -> PrivacyGuarantee | None:
    """Return the privacy guarantee that the manifest of the run's adapter must state, None without privacy."""
    return None if run.privacy is None else PrivacyGuarantee(epsilon=run.privacy.epsilon, delta=run.privacy.delta)


def check_provenance(case: Case, run: Run) -> None:
    """Check that the adapter key signed SLSA provenance v1 that derives this manifest from the run's own inputs."""
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


def apply_adapter_quarantine(case: Case) -> Changes:
    """Record that an adapter is in quarantine."""
    name = case.of(AdapterQuarantined).adapter
    adapter = case.state.adapters.get(name)
    if adapter is None or adapter.quarantined is not None:
        raise Denied(f"entry {case.entry.index}: adapter: expected one not in quarantine, got {name}")
    return [(case.state.adapters, name, adapter.model_copy(update={"quarantined": case.entry.index}))]


def apply_adapter_revocation(case: Case) -> Changes:
    """Record that an adapter is revoked."""
    order = case.order(RevokeAdapter)
    adapter = take_adapter(case, order)
    return [(case.state.adapters, order.name, adapter.model_copy(update={"revoked": case.entry.index}))]


class AdapterEntity(Entity):
    """A version of an adapter, such as `clauses@1`."""

    table = "adapters"
    name: str
    version: int
    manifest: str
    ordered_by: PrincipalEntity
    base: BaseEntity
    dataset: DatasetEntity


ACTIONS = (
    Action(
        RevokeAdapter,
        title="Revoke an adapter",
        complete=complete_adapter,
        authorise=authorise_revoke_adapter,
        signers=("administrator", "any reviewer", "release-owner:UNIT"),
        meaning="The adapter no longer serves any unit. This cannot be undone.",
        event=AdapterRevoked,
        apply=apply_adapter_revocation,
        recheck_slots=True,
        facts=ActionFacts(AdapterEntity, "name"),
        example_values={"signer": "rita"},
    ),
)
EVENTS = (
    EventRule(AdapterSealed, apply_adapter_seal),
    EventRule(AdapterQuarantined, apply_adapter_quarantine),
)
