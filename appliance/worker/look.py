"""The worker of a look: a base, one or two adapters whose probes are compared, and questions put to each of them.

It answers nothing else and ends after it. A question is a request, as a unit would put it, or a row's prompt, which is
rendered already; the bare base answers too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError, BadInput, TooLarge
from appliance.worker.link import Header, Link, run_worker, take, take_path

if TYPE_CHECKING:
    from appliance.ml.inference.reading import Question
    from appliance.ml.serving.engine import Engine

BASE = "base"
"""The model that is the bare base; the others are slots."""


def work(session: Link, task: Header, blob: bytes) -> Header:
    from appliance.ml.model import machine
    from appliance.ml.model.base import load_base
    from appliance.ml.serving.engine import Engine

    machine.use_determinism(0)
    base = load_base(
        Path(take_path(task, "base")),
        quantisation=take(task, "quantisation", str),
        compute_dtype=take(task, "compute_dtype", str),
        device=take(task, "device", str),
        reads=True,
    )
    engine, begin = Engine(base), 0
    for one in take(task, "adapters", list):
        end = begin + take(one, "bytes", int)
        engine.load(
            take(one, "slot", str), take(one, "config", str).encode(), blob[begin:end], take(one, "probe", dict)
        )
        begin = end
    for model in take(task, "models", list):
        _answer(session, engine, model, take(task, "questions", list))
    return {}


def _answer(session: Link, engine: Engine, model: str, questions: list[dict[str, Any]]) -> None:
    """A frame for each question; one that cannot be answered has a code in place of its text."""
    ended, texts = set[str](), dict[str, list[str]]()
    for number, asked in enumerate(questions):
        name = str(number)
        texts[name] = []
        try:
            engine.take(name, None if model == BASE else model, _read(engine, asked))
        except ApplianceError as error:
            ended.add(name)
            session.send({"frame": "answer", "model": model, "question": number, "code": error.code})
    while len(ended) < len(questions):
        for event in engine.step():
            if isinstance(event.told, str):
                texts[event.name].append(event.told)
                continue
            ended.add(event.name)
            told: Header = {"frame": "answer", "model": model, "question": int(event.name)}
            if isinstance(event.told, ApplianceError):
                session.send({**told, "code": event.told.code})
            else:
                written = _describe("".join(texts[event.name]), questions[int(event.name)])
                session.send({**told, **written, **vars(event.told)})


def _read(engine: Engine, asked: dict[str, Any]) -> Question:
    from appliance.ml.inference.reading import Question
    from appliance.ml.inference.request import Request, parse_request
    from appliance.ml.inference.score import find_branches

    if "rendered" not in asked:
        return engine.read(parse_request(asked), classifies=bool(asked.get("labels")))
    chat, labels = engine.base.chat, take(asked, "labels", list)
    prompt = chat.encode(take(asked, "rendered", str))
    if not prompt:
        raise BadInput("row: expected a prompt, got a row that is written whole", code="no-prompt")
    if len(prompt) >= engine.base.context_length:
        raise TooLarge("row: expected a prompt within the context, got a longer one", code="context-length")
    request = Request((), take(asked, "max_tokens", int), labels=tuple(labels))
    branches = find_branches([chat.encode(chat.answer(label)) for label in labels]) if labels else None
    return Question(request, prompt, branches=branches)


def _describe(text: str, asked: dict[str, Any]) -> Header:
    """What was written; of a classification the likeliest label and its probability."""
    if not asked.get("labels"):
        return {"text": text, "probability": None}
    found = json.loads(text)
    label = max(found, key=lambda name: float(found[name]))
    return {"text": label, "probability": found[label]}


if __name__ == "__main__":
    sys.exit(run_worker(work))
