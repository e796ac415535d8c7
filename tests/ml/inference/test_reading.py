"""The grammar of a response by its request: calls of strict tools follow their schemas, others are any object."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.ml.inference.reading import read_answerable
from appliance.ml.inference.request import parse_request
from appliance.ml.inference.score import Grammar
from appliance.ml.model.chat import Chat
from appliance.ml.model.grammars import Vocabulary
from scripts.kit.tool_templates import TEMPLATES
from tests.kit.toolful import ASKED, FIND, toolful_chat

STRICT = {**FIND, "function": {**FIND["function"], "strict": True}}
LOOSE = {"type": "function", "function": {"name": "stop", "parameters": {"not": {}}}}
ANSWER = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "additionalProperties": False}


@pytest.fixture(scope="module", params=TEMPLATES)
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return toolful_chat(tmp_path_factory.mktemp("chats") / request.param, request.param)


def may_answer(chat: Chat, text: str, **members: Any) -> bool:
    """Whether the answer to a request with these members may be this text."""
    texts = {name: json.dumps(members.pop(name)) for name in ("tools", "response_format") if name in members}
    request = parse_request({"messages": [ASKED], **texts, **members})
    vocabulary = Vocabulary(chat, chat.tokenizer.get_vocab_size())
    held = read_answerable(chat, 4096, request, vocabulary).choices
    assert isinstance(held, Grammar)
    for token in chat.encode(text):
        if not held.allows(token):
            return False
        held.take(token)
    return any(map(held.allows, chat.stop_ids()))


def write_call(chat: Chat, name: str, arguments: dict[str, Any]) -> str:
    call = {"id": "call00000", "type": "function", "function": {"name": name, "arguments": arguments}}
    answered = {"role": "assistant", "content": "", "tool_calls": [call]}
    ((_, answer),) = chat.render_answered([ASKED, answered], [STRICT, LOOSE])
    return answer.removesuffix(chat.end_of_turn)


@pytest.mark.parametrize("more", [{}, {"response_format": ANSWER}], ids=["text", "schema"])
def test_one_strict_tool_does_not_bind_the_others(chat: Chat, more: dict[str, Any]) -> None:
    tools = {"tools": [STRICT, LOOSE], **more}
    assert may_answer(chat, write_call(chat, "stop", {"why": [1]}), **tools)
    assert may_answer(chat, write_call(chat, "find", {"kind": "payment"}), **tools)
    assert not may_answer(chat, write_call(chat, "find", {"kind": "ending"}), **tools)
    with pytest.raises(BadInput, match="expected a JSON schema that an answer can be held to"):
        may_answer(chat, "", tool_choice="required", **tools)


def test_a_call_that_must_come_is_of_its_schema_though_its_tool_is_not_strict(chat: Chat) -> None:
    bad, good = (write_call(chat, "find", {"kind": kind}) for kind in ("ending", "payment"))
    for choice in ("required", {"name": "find"}):
        assert may_answer(chat, good, tools=[FIND], tool_choice=choice)
        assert not may_answer(chat, bad, tools=[FIND], tool_choice=choice)
    assert may_answer(chat, bad, tools=[FIND], response_format=ANSWER)
