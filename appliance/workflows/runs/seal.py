"""An adapter is sealed: its folder listed, signed, made read-only under its digest; then, and only then, recorded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.domain.core.names import encode_value, versioned
from appliance.domain.core.records.runs import Run
from appliance.domain.evaluation.baselines import compare
from appliance.domain.evaluation.judging import CALIBRATION_FILE, GATES_FILE, VERDICT_FILE
from appliance.domain.evaluation.quality import summarize_training
from appliance.domain.releases.adapters import AdapterSealed, guarantee_of, next_version
from appliance.domain.runs.steps import STEPS_FILE, parse_steps
from appliance.domain.runs.training import Train
from appliance.errors import NotFound, Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH, encode_manifest
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.bundle import sign_model
from appliance.formats.signatures.dsse import encode_envelope, sign_envelope
from appliance.formats.signatures.statement import Statement, encode_statement
from appliance.store.files import disk
from appliance.workflows.core.context import Context
from appliance.workflows.core.halt import check_standing
from appliance.workflows.core.retry import append_with_retry
from appliance.workflows.data.folders import list_files, recording
from appliance.workflows.evaluation.judging import Findings, judge_run
from appliance.workflows.runs.evaluate import RECIPE, Evaluation

METRICS, PROBE, ORIGIN = "metrics.json", "probe.json", "base.json"
MEASURED = ("base", "adapter", "majority", "noise", "sets", "engines")
"""What of an evaluation is sealed as its metrics."""
BUILD_TYPE = "urn:appliance:build:train:v1"


def seal(
    context: Context, run: Run, order: Train, output: Path, trained: dict[str, Any], evaluation: Evaluation
) -> str:
    """The sealed adapter's name and version.

    An entry refused because of a revocation just now leaves nothing; after a power cut before the entry the next start
    removes the folder.
    """
    check_standing(context, run)
    version = next_version(context.ledger.state, run.name)
    metrics: dict[str, Any] = {name: evaluation.result[name] for name in MEASURED if name in evaluation.result}
    metrics |= _training(output, run.id)
    # In the state after `run.finished`.
    trained_run = context.ledger.state.runs.get(run.id)
    compared = None if trained_run is None else compare(context.ledger.state, trained_run, metrics["adapter"])
    metrics |= {} if compared is None else {"baseline": compared}
    findings = judge_run(context, run, evaluation.items, metrics["sets"])
    _write_documents(context, run, order, output, metrics, evaluation.result["probe"])
    _write_findings(output, findings)
    listed = replace(list_files(output, run.name, version), privacy=guarantee_of(run))
    manifest = encode_manifest(listed)
    (output / MANIFEST_PATH).write_bytes(manifest)
    digest = digest_bytes(manifest)
    files = {file.path: file.digest for file in listed.files} | {MANIFEST_PATH: digest}
    signature = sign_model(files, digest.removeprefix("sha256:"), context.adapter_signer)
    provenance = encode_envelope(
        sign_envelope(_provenance(context, run, order, digest, trained), context.adapter_signer)
    )
    context.artifacts.seal(output, digest, beside={"signature.json": signature, "provenance.json": provenance})
    name = versioned(run.name, version)
    with recording(context, digest):
        append_with_retry(
            context,
            AdapterSealed(run=run.id, adapter=name, metrics=metrics, walls=evaluation.walls),
            documents={"manifest": manifest, "signature": signature, "provenance": provenance, **findings.documents},
        )
    return name


def _training(output: Path, run: str) -> dict[str, Any]:
    """How the training loss went, by the recorded steps that are sealed beside it."""
    record = parse_steps((output / STEPS_FILE).read_bytes(), f"{STEPS_FILE} of {run}")
    return {"training": summarize_training([step.loss for step in record if step.loss is not None])}


def _write_documents(
    context: Context, run: Run, order: Train, output: Path, metrics: dict[str, Any], probe: dict[str, Any]
) -> None:
    """What makes the adapter servable exactly as it was judged: recipe, metrics, probe, and what it was trained on."""
    base = context.ledger.state.bases.get(run.base)
    if base is None:
        raise NotFound(f"base: expected the run's own, got {run.base}")
    standing = {
        "base": run.base,
        "digest": run.base_digest,
        "tokenizer": base.facts["tokenizer_digest"],
        "chat_template": base.facts["chat_template_digest"],
        "quantisation": order.recipe.quantisation,
        "compute_dtype": order.recipe.compute_dtype,
    }
    (output / RECIPE).write_bytes(encode_value(order.recipe))
    (output / METRICS).write_bytes(encode_canonical(metrics))
    (output / PROBE).write_bytes(encode_canonical(probe))
    (output / ORIGIN).write_bytes(encode_canonical(standing))


def _write_findings(output: Path, findings: Findings) -> None:
    """What was found of the adapter, and nothing of that kind that a worker put there."""
    own = (GATES_FILE, VERDICT_FILE, CALIBRATION_FILE)
    for name in sorted(os.listdir(output)):
        if (name in own or name.startswith("items")) and name not in findings.files:
            raise Tampered(f"output, {name}: expected none from the training worker, got one")
    for name, data in findings.files.items():
        with disk.disk_errors(f"{name} of the run"):
            disk.write_file(output / name, data)


def _provenance(context: Context, run: Run, order: Train, digest: str, trained: dict[str, Any]) -> bytes:
    """in-toto statement with SLSA provenance v1: base, dataset, recipe, code and packages, each by digest."""
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
