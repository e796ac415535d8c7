"""A worker that draws adapters from random numbers instead of training them, and records what each one answers.

An adapter's answers identify it: the draws differ in nearly every token, so a text shows which adapter gave it. The
answers are recorded one at a time, with no other request running. An adapter that answers a question as an earlier one
does is drawn again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from appliance.errors import Unavailable
from appliance.ml.inference.reading import encode_fingerprint, read_fingerprint
from appliance.ml.inference.request import parse_request
from appliance.ml.model import machine
from appliance.ml.model.base import load_base
from appliance.ml.serving.engine import Done, ServingEngine
from appliance.worker.link import Header, WorkerLink, take, take_path

if TYPE_CHECKING:
    from appliance.ml.vllm.engine import VllmEngine

STRENGTH, DRAWS = 0.6, 20
BARE = "the bare base"


def work(session: WorkerLink) -> Header:
    """Send a frame for each adapter, the base first: its fingerprint and its answers in question order."""
    task, _ = session.expect("go")
    machine.use_determinism(0)
    base = load_base(
        Path(take_path(task, "base")),
        quantisation=take(task, "quantisation", str),
        compute_dtype=take(task, "compute_dtype", str),
        device="cpu",
        own_layers=True,
    )
    engine, questions = ServingEngine(base), take(task, "questions", list)
    bare = list(answer_all(engine, None, questions))
    session.send({"frame": "adapter", "name": BARE, "answers": bare})
    drawn = [question["kind"] == "generate" for question in questions]
    marks = [{told} if is_drawn else set() for told, is_drawn in zip(bare, drawn, strict=True)]
    for name in take(task, "names", list):
        folder = Path(take_path(task, "output")) / name
        folder.mkdir()
        fingerprint, answers = _draw_unlike(engine, folder, name, task, marks)
        for told, answer, is_drawn in zip(marks, answers, drawn, strict=True):
            told.update([answer] if is_drawn else [])
        session.send({"frame": "adapter", "name": name, "logit_fingerprint": fingerprint, "answers": answers})
    return {"machine": machine.describe_kind("cpu")}


def _draw_unlike(
    engine: ServingEngine, folder: Path, name: str, task: Header, marks: list[set[str]]
) -> tuple[dict[str, Any], list[str]]:
    """Draw an adapter whose answers differ from those before, `marks`. Return its fingerprint and answers."""
    for draw in range(DRAWS):
        fingerprint = _draw(engine, folder, name, draw, task)
        answers = list(answer_all(engine, name, task["questions"]))
        engine.unload(name)
        if not any(answer in told for told, answer in zip(marks, answers, strict=True)):
            return fingerprint, answers
    raise Unavailable(f"{name}: expected answers of its own within {DRAWS} draws, got others'")


def _draw(engine: ServingEngine, folder: Path, name: str, draw: int, task: Header) -> dict[str, Any]:
    """Load the adapter's two files into the slot of its name, and return its fingerprint."""
    rank, modules = take(task, "rank", int), take(task, "target_modules", list)
    chance = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{name} {draw}".encode()).digest()[:6]))
    tensors = {}
    for layer, module in engine.slots._layers.items():
        if layer.rsplit(".", 1)[-1] in modules:
            shapes = {"lora_A": (rank, module.base.in_features), "lora_B": (module.base.out_features, rank)}
            for part, shape in shapes.items():
                drawn = torch.randn(shape, generator=chance) * STRENGTH / rank**0.5
                tensors[f"base_model.model.{layer}.{part}.weight"] = drawn
    weights = safetensors.torch.save(tensors)
    alpha = take(task, "alpha", int)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": modules, "task_type": "CAUSAL_LM"}
    encoded = json.dumps(config).encode()
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_bytes(encoded)
    engine.slots.load(name, encoded, weights)
    with engine.slots.using(name):
        adapted = read_fingerprint(engine.base)
    return encode_fingerprint(engine.base, read_fingerprint(engine.base), adapted)


def answer_all(engine: ServingEngine | VllmEngine, slot: str | None, questions: list[Any]) -> Iterator[str]:
    """One after the other, with no other request at work."""
    for question in questions:
        classifies = question["kind"] == "classify"
        if classifies and slot is None:
            yield ""  # not asked of the bare base, which no slot holds
            continue
        engine.take("one", slot, engine.read(parse_request(question["parameters"]), classifies=classifies))
        text, done = "", False
        while not done:
            for event in engine.step():
                done = done or isinstance(event.content, Done)
                text += event.content if isinstance(event.content, str) else ""
        yield text
