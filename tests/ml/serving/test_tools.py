"""The engine restricts a response to its request's schema and separates calls from text, independent of the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, BadInput
from appliance.ml.inference.request import InferenceRequest, parse_request
from appliance.ml.model import machine
from appliance.ml.model.base import load_base
from appliance.ml.model.calls import CallOutput
from appliance.ml.serving.engine import Done, ServingEngine
from scripts.kit.tiny_model import build_base
from scripts.kit.tool_templates import HERMES
from tests.kit.toolful import FIND, TOOLS

ASKED = [{"role": "user", "content": "due"}]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["payment", "secrecy"]}, "sure": {"type": "boolean"}},
    "required": ["kind", "sure"],
    "additionalProperties": False,
}
STRICT = [{**FIND, "function": {**FIND["function"], "strict": True}}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ServingEngine:
    """Return an engine whose bare base answers, since constraints on answers do not depend on an adapter."""
    machine.use_determinism(7)
    folder = build_base(tmp_path_factory.mktemp("tools") / "base", template=HERMES, max_position_embeddings=1024)
    return ServingEngine(load_base(folder, quantisation="none", compute_dtype="float32", device="cpu", own_layers=True))


def wanted(**members: Any) -> InferenceRequest:
    texts = {name: json.dumps(members.pop(name)) for name in ("tools", "response_format") if name in members}
    return parse_request({"messages": ASKED, "temperature": 1.0, "max_tokens": 200, **texts, **members})


def answers(
    engine: ServingEngine, **requests: InferenceRequest
) -> dict[str, tuple[list[str | CallOutput], Done | ApplianceError]]:
    for name, request in requests.items():
        engine.start(name, None, request)
    pieces: dict[str, list[str | CallOutput]] = {name: [] for name in requests}
    ends: dict[str, Done | ApplianceError] = {}
    while engine.busy:
        for event in engine.step():
            if isinstance(event.content, str | CallOutput):
                pieces[event.name].append(event.content)
            else:
                ends[event.name] = event.content
    return {name: (pieces[name], ends[name]) for name in requests}


HELD: dict[str, dict[str, Any]] = {
    "schema": {"response_format": SCHEMA, "seed": 1},
    "greedy": {"response_format": SCHEMA, "temperature": 0.0},
    "named": {"tools": TOOLS, "tool_choice": {"name": "find"}, "seed": 2},
    "strict": {"tools": STRICT, "seed": 3, "max_tokens": 24},
    "free": {"seed": 4, "max_tokens": 24},
}


@pytest.mark.thorough
def test_answers_are_held_to_what_they_must_be_alone_and_in_any_batch(engine: ServingEngine) -> None:
    """With temperatures and seeds, a draw that is free beside them too."""
    alone = {name: answers(engine, **{name: wanted(**members)})[name] for name, members in HELD.items()}
    assert answers(engine, **{name: wanted(**members) for name, members in HELD.items()}) == alone
    for name in ("schema", "greedy"):
        pieces, end = alone[name]
        value = json.loads("".join(map(str, pieces)))
        assert value.keys() == {"kind", "sure"} and value["kind"] in ("payment", "secrecy"), name
        assert isinstance(end, Done) and end.finish_reason == "stop"
    (called,), end = alone["named"]
    assert isinstance(called, CallOutput) and isinstance(end, Done) and end.finish_reason == "tool_calls"
    (call,) = called.calls
    assert call.name == "find" and call.arguments["kind"] in ("payment", "secrecy")
    assert called.text == f'<tool_call>\n{{"name": "find", "arguments": {call.text}}}\n</tool_call>'


@pytest.mark.thorough
def test_a_call_that_the_model_writes_is_told_as_one(engine: ServingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same text without tools, or of a tool that was not offered, is text."""
    text = 'So: <tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call><|im_end|>'
    tokens = engine.base.chat.encode(text)
    said = text.removesuffix("<|im_end|>")
    for members, calls in (({"tools": TOOLS}, 1), ({}, 0), ({"tools": [FIND]}, 0)):
        left = iter(tokens)
        monkeypatch.setattr("appliance.ml.serving.engine.RunningRequest.draw", lambda row, ahead, left=left: next(left))
        pieces, end = answers(engine, one=wanted(**members))["one"]
        assert isinstance(end, Done) and end.finish_reason == ("tool_calls" if calls else "stop")
        assert "".join(one.text if isinstance(one, CallOutput) else one for one in pieces) == said
        assert sum(len(one.calls) for one in pieces if isinstance(one, CallOutput)) == calls


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"response_format": {"type": "nothing"}}, "response_format: expected a JSON schema that an answer can be"),
        ({"tools": [{**FIND, "function": {"name": "f", "parameters": {"not": {}}}}], "tool_choice": "required"},
         "tools: expected a JSON schema"),
        ({"response_format": {"allOf": [{"pattern": f"a{n}"} for n in range(60)]}}, "at most 8 of pattern and format"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_to_is_refused_before_the_answer(
    engine: ServingEngine, members: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words) as refused:
        engine.start("1", None, wanted(**members))
    assert refused.value.status == 400 and not engine.busy


def test_a_base_without_tools_refuses_them_and_holds_to_schemas(base_folder: Path) -> None:
    engine = ServingEngine(
        load_base(base_folder, quantisation="none", compute_dtype="float32", device="cpu", own_layers=True)
    )
    with pytest.raises(BadInput, match="expected a template that takes tools, got one that does not write them"):
        engine.start("1", None, wanted(tools=TOOLS))
    pieces, _ = answers(engine, one=wanted(response_format=SCHEMA))["one"]
    assert json.loads("".join(map(str, pieces))).keys() == {"kind", "sure"}


def test_an_answer_whose_schema_turns_out_too_dear_ends_and_no_other(
    engine: ServingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.ml.model import grammars

    monkeypatch.setattr(grammars, "LIMITS", {**grammars.LIMITS, "max_lexer_states": 60})
    dear = wanted(response_format={"type": "string", "pattern": "^(.*a.{12}b.*)(c.{12}d)*$"}, seed=5)
    found = answers(engine, dear=dear, other=wanted(seed=4, max_tokens=24))
    assert isinstance(found["dear"][1], BadInput)
    assert found["dear"][1].message.startswith("response_format: expected a schema within what a token may cost, got: ")
    monkeypatch.undo()
    assert found["other"] == answers(engine, other=wanted(seed=4, max_tokens=24))["other"]
