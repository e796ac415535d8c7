"""The evaluation of a trained run by a second worker, and the sealing of the adapter.

The worker evaluates the base, the adapter, and the released version if no record has its answers to the same rows. It
uses the held-out rows and the validation sets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.names import encode_value, parse_value, versioned
from appliance.domain.core.records.runs import Adapter, Run
from appliance.domain.core.state import next_version
from appliance.domain.data.kinds import SHIPPED, is_local
from appliance.domain.evaluation.baselines import compare
from appliance.domain.evaluation.basis import VerdictBasis, find_basis, find_released, items_path, sets_by_name
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.evaluation.items import MOST_BYTES
from appliance.domain.evaluation.quality import summarize_training
from appliance.domain.evaluation.rules import CALIBRATION_FILE, GATES_FILE, VERDICT_FILE
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.releases.adapters import SIGNATURE_FILES, SIGNATURE_ROLES, AdapterSealed, guarantee_of
from appliance.domain.runs.steps import STEPS_FILE, parse_steps
from appliance.domain.runs.training import Train
from appliance.errors import Denied, NotFound, Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH, encode_manifest
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.bundle import sign_model
from appliance.formats.signatures.dsse import Statement, encode_envelope, encode_statement, sign_envelope
from appliance.formats.signatures.keys import Signer
from appliance.sandbox.output import read_output
from appliance.store.files import disk
from appliance.workflows.core.context import LedgerContext, RunContext
from appliance.workflows.core.retry import append_with_retry, check_run_valid
from appliance.workflows.core.workers import carry_out, check_sandbox, worker
from appliance.workflows.data.folders import list_files, recording
from appliance.workflows.evaluation.local_sets import evaluate_local_sets, needs_answers
from appliance.workflows.evaluation.verdicts import AdapterFindings, evaluate_by_gates, evaluate_on_vllm

RECIPE = "recipe.json"
"""File of an adapter with its recipe."""


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation.

    `result`: the worker's frame (metrics, logit fingerprint). `sandbox_probes`: the results of its escape attempts.
    `items`: the bytes of its files by path, unchecked. `released`: the manifest of the released version that it
    evaluated, or None.
    """

    result: dict[str, Any]
    sandbox_probes: dict[str, str]
    items: Mapping[str, bytes]
    released: str | None


def evaluate(
    context: RunContext, run: Run, order: Train, base: Path, dataset: Path, adapter: Path, scratch: Path
) -> EvaluationResult:
    """Evaluate a trained adapter in a worker.

    Raises:
        Denied: A validation set was revoked, or the released version changed.
        Tampered: The bytes of a validation set or of the released version have changed.
    """
    sets, basis = _open_sets(context, run), basis_of(context, run)
    released = _open_released(context, run) if basis.unrecorded else None
    read = [base, dataset, adapter, *sets.values()]
    with worker(
        context,
        f"{run.id}:evaluate",
        "appliance.worker.evaluate",
        read=tuple(read if released is None else [*read, released.folder]),
        write=(scratch,),
        gpu=order.recipe.device == "cuda",
    ) as started:
        probes = check_sandbox(started)
        check_run_valid(context, run)
        task = {
            "recipe": order.recipe.model_dump(mode="json"),
            "base": str(base),
            "dataset": str(dataset),
            "adapter": str(adapter),
            "output": str(scratch),
            "sets": [
                {"name": name, "folder": str(folder), "blind": _is_blind(context, run, name)}
                for name, folder in sets.items()
            ],
            "shipped": [bound.set for bound in run.local_sets if bound.set in SHIPPED],
            "answers": needs_answers(run),
            "released": None if released is None else {**released.task, "sets": list(basis.unrecorded)},
        }
        publish = partial(context.progress.publish, run.id)
        result = carry_out(started, task, on_frame=lambda frame: publish({**frame, "stage": "evaluate"}))
    paths = [items_path(name) for name in basis.sets if not is_local(name) or name in SHIPPED]
    paths += [items_path(name, released=True) for name in basis.unrecorded]
    items = {path: read_output(scratch, path, MOST_BYTES) for path in paths}
    local_items, local_results = evaluate_local_sets(context, run, order, base, adapter, scratch, publish)
    items, result = items | local_items, {**result, "sets": {**result["sets"], **local_results}}
    if engines := evaluate_on_vllm(context, run, order, base, dataset, adapter, result["logit_fingerprint"]):
        result["engines"] = engines
    return EvaluationResult(result, probes, items, None if released is None else released.adapter.manifest)


def is_comparison_current(context: LedgerContext, run: Run, evaluation: EvaluationResult) -> bool:
    """Return True if the version that was evaluated for comparison, where one is needed, is the released one now."""
    basis = basis_of(context, run)
    if not {items_path(name, released=True) for name in basis.unrecorded} <= evaluation.items.keys():
        return False
    with context.ledger.lock:
        now = find_released(context.ledger.state, run.name, run.dataset, run.base_digest)
    return not basis.unrecorded or (now is not None and now.manifest == evaluation.released)


def basis_of(context: LedgerContext, run: Run) -> VerdictBasis:
    """Return the records on which the run's verdict rests, by the log as it is now."""
    gates = None if run.gates is None else parse_gates(context.ledger.documents_of(run.index)["gates"])
    with context.ledger.lock:
        return find_basis(context.ledger.state, run, gates)


def _open_sets(context: LedgerContext, run: Run) -> dict[str, Path]:
    """Return the folders of the run's validation sets by name, after hashing them again."""
    digests = {bound.validation_set: bound.digest for bound in run.sets}
    found = {}
    for name, version in sets_by_name(run).items():
        context.artifacts.check(digests[version])
        found[name] = context.artifacts.path(digests[version])
    return found


def _is_blind(context: LedgerContext, run: Run, name: str) -> bool:
    return context.ledger.state.validation_sets.require(sets_by_name(run)[name]).blind


@dataclass(frozen=True)
class _Released:
    adapter: Adapter
    folder: Path
    task: dict[str, Any]


def _open_released(context: LedgerContext, run: Run) -> _Released:
    """Return the released version of the run's adapter name, after hashing it again."""
    with context.ledger.lock:
        adapter = find_released(context.ledger.state, run.name, run.dataset, run.base_digest)
    if adapter is None:
        raise Denied(f"run {run.id}: expected a released version to compare with, got one that is released no more")
    context.artifacts.check(adapter.manifest)
    recipe = parse_value(ResolvedRecipe, context.artifacts.read(adapter.manifest, RECIPE), "recipe")
    if recipe.base != run.base:
        raise Tampered(
            f"adapter {adapter.name}@{adapter.version}, recipe: expected the base {run.base}, got {recipe.base}"
        )
    folder = context.artifacts.path(adapter.manifest)
    return _Released(adapter, folder, {"folder": str(folder), "recipe": recipe.model_dump(mode="json")})


METRICS, FINGERPRINT, ORIGIN = "metrics.json", "logit_fingerprint.json", "base.json"
MEASURED = ("base", "adapter", "majority", "noise", "sets", "engines")
"""Fields of an evaluation's result that are sealed as its metrics."""
BUILD_TYPE = "urn:appliance:build:train:v1"
"""SLSA build type of the provenance."""


def seal(
    context: RunContext, run: Run, order: Train, output: Path, trained: dict[str, Any], evaluation: EvaluationResult
) -> str:
    """Seal the adapter, record it, and return its name and version.

    If the entry is refused, for example because of a revocation in the meantime, the folder is removed. After a power
    cut before the entry, the next start removes the folder.
    """
    check_run_valid(context, run)
    version = next_version(context.ledger.state.adapters, run.name)
    metrics: dict[str, Any] = {name: evaluation.result[name] for name in MEASURED if name in evaluation.result}
    metrics |= _summarise_training(output, run.id)
    # The run as it is in the state after `run.finished`.
    trained_run = context.ledger.state.runs.get(run.id)
    compared = None if trained_run is None else compare(context.ledger.state, trained_run, metrics["adapter"])
    metrics |= {} if compared is None else {"baseline": compared}
    findings = evaluate_by_gates(context, run, evaluation.items, metrics["sets"])
    _write_documents(context, run, order, output, metrics, evaluation.result["logit_fingerprint"])
    _write_findings(output, findings)
    listed = replace(list_files(output, run.name, version), privacy=guarantee_of(run))
    manifest = encode_manifest(listed)
    with disk.disk_errors(f"{MANIFEST_PATH} of the run"):
        disk.write_file(output / MANIFEST_PATH, manifest)
    digest = digest_bytes(manifest)
    files = {file.path: file.digest for file in listed.files} | {MANIFEST_PATH: digest}
    signers = [context.adapter_signer, *_list_post_quantum_signers(context)]
    signatures = [sign_model(files, digest.removeprefix("sha256:"), signer) for signer in signers]
    provenance = encode_envelope(
        sign_envelope(_encode_provenance(context, run, order, digest, trained), context.adapter_signer)
    )
    beside = dict(zip(SIGNATURE_FILES, signatures, strict=False))
    context.artifacts.seal(output, digest, beside={**beside, "provenance.json": provenance})
    name = versioned(run.name, version)
    body = AdapterSealed(run=run.id, adapter=name, metrics=metrics, sandbox_probes=evaluation.sandbox_probes)
    with recording(context, digest):
        _append_sealed(
            context, body, {"manifest": manifest, "provenance": provenance, **findings.documents}, signatures
        )
    return name


def _list_post_quantum_signers(context: RunContext) -> list[Signer]:
    """Return the second signer of adapters if its key has been made, since the log may require it from any entry on."""
    try:
        return [context.keys.adapter_signer(post_quantum=True)]
    except NotFound:
        if context.ledger.state.site.post_quantum_adapter_key is not None:
            raise
        return []


def _append_sealed(
    context: RunContext, body: AdapterSealed, documents: dict[str, bytes], signatures: Sequence[bytes]
) -> None:
    """Record the adapter with as many of its signatures as the log requires at that entry.

    If post-quantum keys are added in between, the entry is made again.
    """
    while True:
        needed = _count_signatures(context)
        roles = dict(zip(SIGNATURE_ROLES[:needed], signatures, strict=False))
        try:
            append_with_retry(context, body, documents={**documents, **roles})
            return
        except Tampered:
            if _count_signatures(context) == needed:
                raise


def _count_signatures(context: LedgerContext) -> int:
    with context.ledger.lock:
        state = context.ledger.state
        return len(state.site.adapter_keys(state.size))


def _summarise_training(output: Path, run: str) -> dict[str, Any]:
    """Return the summary of the training loss, from the recorded steps that are sealed beside it."""
    record = parse_steps((output / STEPS_FILE).read_bytes(), f"{STEPS_FILE} of {run}")
    return {"training": summarize_training([step.loss for step in record if step.loss is not None])}


def _write_documents(
    context: LedgerContext, run: Run, order: Train, output: Path, metrics: dict[str, Any], fingerprint: dict[str, Any]
) -> None:
    """Write the files that serving needs to reproduce the evaluated adapter.

    They are the recipe, the metrics, the logit fingerprint, and the identity of the base.
    """
    base = context.ledger.state.bases.require(run.base)
    origin = {
        "base": run.base,
        "digest": run.base_digest,
        "tokenizer": base.facts["tokenizer_digest"],
        "chat_template": base.facts["chat_template_digest"],
        "quantisation": order.recipe.quantisation,
        "compute_dtype": order.recipe.compute_dtype,
        "warnings": base.facts.get("warnings", []),
    }
    documents = {
        RECIPE: encode_value(order.recipe),
        METRICS: encode_canonical(metrics),
        FINGERPRINT: encode_canonical(fingerprint),
        ORIGIN: encode_canonical(origin),
    }
    for name, data in documents.items():
        # The training worker may have written a link of this name, which is replaced and not followed.
        with disk.disk_errors(f"{name} of the run"):
            disk.write_file(output / name, data)


def _write_findings(output: Path, findings: AdapterFindings) -> None:
    """Write the findings about the adapter, after a check that the training worker wrote no file of that kind.

    Raises:
        Tampered: The training worker wrote such a file.
    """
    own = (GATES_FILE, VERDICT_FILE, CALIBRATION_FILE)
    for name in sorted(os.listdir(output)):
        if (name in own or name.startswith("items")) and name not in findings.files:
            raise Tampered(f"output, {name}: expected none from the training worker, got one")
    for name, data in findings.files.items():
        with disk.disk_errors(f"{name} of the run"):
            disk.write_file(output / name, data)


def _encode_provenance(context: LedgerContext, run: Run, order: Train, digest: str, trained: dict[str, Any]) -> bytes:
    """Return an in-toto statement with SLSA provenance v1: base, dataset, recipe, code and packages, each by digest."""
    recipe = encode_value(order.recipe)
    dependencies = [
        _resource(f"base:{run.base}", run.base_digest),
        _resource(f"dataset:{run.dataset}", run.dataset_digest),
        *(_resource(f"validation-set:{bound.validation_set}", bound.digest) for bound in run.sets),
        *(_resource(f"local-set:{bound.set}", bound.digest) for bound in run.local_sets),
        _resource("recipe", digest_bytes(recipe)),
        _resource("order", run.order),
        _resource(f"appliance@{context.code.version}", context.code.digest),
        *(_resource(f"pkg:pypi/{name}", record) for name, record in sorted(context.code.packages.items())),
    ]
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"recipe": order.recipe.model_dump(mode="json")},
            "internalParameters": {"device": str(trained.get("device")), "threads": int(trained.get("threads", 0))},
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {"id": f"urn:appliance:{context.ledger.state.site.origin}"},
            "metadata": {"invocationId": f"{context.ledger.state.site.origin}/{run.id}"},
            "byproducts": [_resource(STEPS_FILE, str(trained["record"]))],
        },
    }
    statement = Statement(((run.name, digest),), "https://slsa.dev/provenance/v1", predicate)
    return encode_statement(statement)


def _resource(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
