"""The worker for sample views and trials of adapters that reviewers have not decided on.

It loads a base and one or two adapters, compares their logit fingerprints, puts questions to each of them, and ends. A
question is a request, as a unit would send it, or the rendered prompt of a row. The bare base answers the questions,
too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, BadInput, TooLarge
from appliance.ml.inference.reading import PreparedPrompt
from appliance.ml.inference.request import InferenceRequest, parse_request
from appliance.ml.inference.score import find_branches
from appliance.ml.model import machine
from appliance.ml.model.base import load_for
from appliance.ml.serving.engine import ServingEngine
from appliance.worker.link import Header, WorkerLink, take, take_path

BASE = "base"
"""Name of the bare base among the models; the others are slots."""


def work(session: WorkerLink) -> Header:
    """Load the base and the adapters, and put all questions to each model."""
    task, blob = session.expect("go")
    machine.use_determinism(0)
    engine, begin = ServingEngine(load_for(Path(take_path(task, "base")), task)), 0
    for adapter in take(task, "adapters", list):
        end = begin + take(adapter, "bytes", int)
        engine.load(
            take(adapter, "slot", str),
            take(adapter, "config", str).encode(),
            blob[begin:end],
            take(adapter, "logit_fingerprint", dict),
        )
        begin = end
    for model in take(task, "models", list):
        _answer(session, engine, model, take(task, "questions", list))
    return {}


def _answer(session: WorkerLink, engine: ServingEngine, model: str, questions: list[dict[str, Any]]) -> None:
    """Send a frame for each question; a question that cannot be answered has an error code in place of its text."""
    ended, texts = set[str](), dict[str, list[str]]()
    for number, question in enumerate(questions):
        name = str(number)
        texts[name] = []
        try:
            engine.take(name, None if model == BASE else model, _read(engine, question))
        except ApplianceError as error:
            ended.add(name)
            session.send({"frame": "answer", "model": model, "question": number, "code": error.code})
    while len(ended) < len(questions):
        for event in engine.step():
            if isinstance(event.content, str):
                texts[event.name].append(event.content)
                continue
            ended.add(event.name)
            frame: Header = {"frame": "answer", "model": model, "question": int(event.name)}
            if isinstance(event.content, ApplianceError):
                session.send({**frame, "code": event.content.code})
            else:
                answer = _describe("".join(texts[event.name]), questions[int(event.name)])
                session.send({**frame, **answer, **vars(event.content)})


def _read(engine: ServingEngine, question: dict[str, Any]) -> PreparedPrompt:
    if "rendered" not in question:
        return engine.read(parse_request(question), classifies=bool(question.get("labels")))
    chat, labels = engine.base.chat, take(question, "labels", list)
    prompt = chat.encode(take(question, "rendered", str))
    if not prompt:
        raise BadInput("row: expected a prompt, got a row that is written whole", code="no-prompt")
    if len(prompt) >= engine.base.context_length:
        raise TooLarge("row: expected a prompt within the context, got a longer one", code="context-length")
    request = InferenceRequest((), take(question, "max_tokens", int), labels=tuple(labels))
    branches = find_branches([chat.encode(chat.answer(label)) for label in labels]) if labels else None
    return PreparedPrompt(request, prompt, branches=branches)


def _describe(text: str, question: dict[str, Any]) -> Header:
    """Return the generated text; for a classification, the most probable label and its probability."""
    if not question.get("labels"):
        return {"text": text, "probability": None}
    probabilities = json.loads(text)
    label = max(probabilities, key=lambda name: float(probabilities[name]))
    return {"text": label, "probability": probabilities[label]}
