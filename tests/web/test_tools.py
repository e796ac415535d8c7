"""Tools and response formats at the units' API: what is taken, what the worker makes of it, and how calls go out."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pydantic
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from appliance.domain.queries.proofs import commit_prompt
from appliance.errors import BadInput
from appliance.ml.inference.request import parse_request
from appliance.web.core.errors import MalformedRequest
from appliance.web.units.middleware import openai_body, text_of
from appliance.web.units.openai import CHAT, _number_calls, _stream
from appliance.web.units.request_bodies import ChatRequest, ClassifyRequest
from tests.kit.toolful import ASKED, FIND, TOOLS
from tests.web.test_asked import HELLO, chat, parse, send

CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"kind": "payment"}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "the fee"}
SCHEMA = {"type": "object", "properties": {"z": {"type": "number", "multipleOf": 0.5}, "a": {}}}
NAMED = {"type": "function", "function": {"name": "find"}}


SAID = {"role": "assistant", "content": '{"due": 30}'}
STRICT = {**FIND, "function": {**FIND["function"], "strict": True}}


def client_of(message: dict[str, Any]) -> openai.OpenAI:
    """Return the official client of a service that answers with this message, whole or as a stream."""
    head = {"id": "1", "created": 1, "model": "m"}
    calls = [{"index": number, **call} for number, call in enumerate(message.get("tool_calls", ()))]
    delta = {**message, **({"tool_calls": calls} if calls else {})}

    def answer(request: httpx.Request) -> httpx.Response:
        if not json.loads(request.content).get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return httpx.Response(200, json={**head, "object": "chat.completion", "choices": [choice]})
        choice = {"index": 0, "delta": delta, "finish_reason": "stop"}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        return httpx.Response(200, text=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", headers=EVENTS)

    transport = httpx.Client(transport=httpx.MockTransport(answer))
    return openai.OpenAI(api_key="token", base_url="http://appliance/v1", http_client=transport)


def _stream_whole(client: openai.OpenAI, **asked: Any) -> Any:
    with client.chat.completions.stream(**asked) as stream:
        return stream.get_final_completion()


EVENTS = {"content-type": "text/event-stream"}


def formatted(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def parameters(**changes: Any) -> dict[str, Any]:
    return dict(parse(ChatRequest, chat(**changes)).parameters())


def test_a_conversation_with_calls_is_given_to_the_template_as_objects() -> None:
    given = parameters(messages=[ASKED, CALLED, RESULT], tools=TOOLS)
    request = parse_request(given)
    assert request.messages[1]["tool_calls"][0]["function"] == {"name": "find", "arguments": {"kind": "payment"}}
    assert request.messages[2] == {**RESULT, "name": "find"}
    assert list(request.tools) == TOOLS and not request.is_held


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": "required"}, {"must_call": True}),
        ({"tool_choice": NAMED}, {"must_call": True, "must_call_one": "find", "parallel": False}),
        ({"parallel_tool_calls": False}, {"parallel": False}),
        ({"tool_choice": "none"}, {"tools": ()}),
        ({"tools": [STRICT, TOOLS[1]]}, {"strict": ("find",), "tools": tuple(TOOLS)}),
        ({"response_format": {"type": "text"}}, {"schema": None}),
        ({"response_format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
        ({"response_format": formatted(SCHEMA)}, {"schema": SCHEMA}),
    ],
)
def test_what_may_be_asked_of_an_answer_reaches_the_worker(changes: dict[str, Any], found: dict[str, Any]) -> None:
    request = parse_request(parameters(**{"tools": TOOLS, **changes}))
    assert {name: getattr(request, name) for name in found} == found
    assert request.is_held == any(found.get(name) for name in ("must_call", "strict", "schema"))


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"tools": [NAMED] * 10_000}, "tools", "at most 128 of them, got 10000"),
        ({"tools": [{"type": "function", "function": {"name": "{{ x }}"}}]}, "tools", "1 to 64 letters"),
        ({"tools": [{"type": "code"}]}, "tools", "number 0"),
        ({"tool_choice": "required"}, None, "expected tools to choose from, got none"),
        ({"tools": TOOLS, "tool_choice": {**NAMED, "function": {"name": "x"}}}, None, "expected one of the tools"),
        ({"tools": TOOLS, "guided_choice": ["a"]}, None, "guided_choice: expected no tools"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "expected json_schema with the type"),
        ({"response_format": formatted("x")}, "response_format.json_schema.schema", "an object"),
        ({"response_format": formatted({"enum": ["x" * 33_000]})}, "response_format.json_schema.schema", "32768"),
        ({"messages": [ASKED, RESULT]}, "messages", "message 1: expected a result of a call before it"),
        ({"messages": [ASKED, CALLED, ASKED]}, "messages", "expected a result of the call find"),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "messages[1].content", "expected text"),
        ({"messages": [{**CALLED, "tool_calls": [{**CALL, "id": None}]}]}, "messages[0]", "an id of 1 to 64"),
        ({"messages": [{**CALLED, "tool_calls": [{"id": "a", "function": {}}]}]}, "messages[0]", "expected a name"),
        ({"messages": [{**RESULT, "tool_call_id": None}]}, "messages[0]", "tool_call_id: expected an id"),
    ],
)
def test_what_is_wrong_is_refused_by_its_member(changes: dict[str, Any], param: str | None, words: str) -> None:
    with pytest.raises(BadInput, match=re.escape(words)) as refused:
        parse(ChatRequest, chat(**changes))
    status, told = openai_body(refused.value)
    assert (status, told["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("message", "member"),
    [
        ({**ASKED, "name": "anna"}, "name"),
        ({**ASKED, "tool_calls": [CALL]}, "tool_calls"),
        ({**ASKED, "tool_call_id": "call_1"}, "tool_call_id"),
        ({**ASKED, "parsed": {"a": 1}}, "parsed"),
        ({**ASKED, "cached": False}, "cached"),
        ({**ASKED, **{f"member {number}": 1 for number in range(10_000)}}, "member 0"),
        ({**CALLED, "content": "x", "function_call": {"name": "find", "arguments": "{}"}}, "function_call"),
        ({**CALLED, "reasoning_content": "So:"}, "reasoning_content"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_member_of_a_message_that_is_not_supported_is_refused(message: dict[str, Any], member: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        parse(ChatRequest, chat(messages=[ASKED, message]))
    assert refused.value.message == f"request: messages.1.{member}: not supported"
    error = openai_body(refused.value)[1]["error"]
    assert (error["param"], error["code"]) == (f"messages[1].{member}", "unknown_parameter")


def test_a_result_may_name_the_tool_of_its_call() -> None:
    named = {**RESULT, "name": "find"}
    assert parameters(messages=[ASKED, CALLED, named]) == parameters(messages=[ASKED, CALLED, RESULT])
    with pytest.raises(BadInput, match="name: expected find, which the call 'call_1' names, got 'stop'"):
        parameters(messages=[ASKED, CALLED, {**RESULT, "name": "stop"}])


class Due(pydantic.BaseModel):
    due: int


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of the client, about what it has parsed
@pytest.mark.parametrize("message", [{**CALLED, "refusal": None}, {**SAID, "refusal": None}], ids=["calls", "text"])
def test_an_answer_that_the_official_client_gives_back_is_taken_however_it_was_read(message: dict[str, Any]) -> None:
    """By `create`, `parse` or `stream`, which add members of their own; also whole, with members that are null."""
    messages: Any = [ASKED, message, *([RESULT] if "tool_calls" in message else [])]
    asked: dict[str, Any] = {"model": "labels", "messages": [ASKED]}
    given: dict[str, Any] = {"tools": [STRICT]} if "tool_calls" in message else {"response_format": Due}
    read: list[Callable[[openai.OpenAI], Any]] = [
        lambda client: client.chat.completions.create(**asked),
        lambda client: client.chat.completions.parse(**asked, **given),
        lambda client: _stream_whole(client, **asked, **given),
    ]
    for each in read:
        with client_of(message) as client:
            (choice,) = each(client).choices
        for told in (choice.message, choice.message.model_dump()):
            again: Any = [ASKED, told, *messages[2:]]
            sent = send(lambda client, again=again: client.chat.completions.create(model="labels", messages=again))
            assert parse(ChatRequest, sent).parameters() == parameters(messages=messages)


@pytest.mark.thorough
def test_a_schema_nested_without_end_is_refused_in_time() -> None:
    deep = '{"items":' * 20_000 + "{}" + "}" * 20_000
    body = f'{{"model": "m", "messages": {json.dumps(HELLO)}, "response_format": {{"type": "json_schema", ' + (
        f'"json_schema": {{"name": "a", "schema": {deep}}}}}}}'
    )
    began = time.process_time()
    with pytest.raises(BadInput):
        parse(ChatRequest, body.encode())
    assert time.process_time() - began < 1


def test_the_commitment_covers_all_that_an_answer_depends_on() -> None:
    """In the order of the members, which a template writes in their order; and messages alone are what they were."""
    salt, plain = bytes(32), parameters()
    requests = [
        parameters(tools=TOOLS),
        parameters(tools=TOOLS[:1]),
        parameters(tools=[{**FIND, "function": dict(reversed(FIND["function"].items()))}]),
        parameters(tools=TOOLS, tool_choice="required"),
        parameters(tools=TOOLS, tool_choice=NAMED),
        parameters(tools=TOOLS, parallel_tool_calls=False),
        parameters(response_format={"type": "json_object"}),
        parameters(response_format=formatted(SCHEMA)),
    ]
    commitments = {commit_prompt(one, salt) for one in (plain, *requests)}
    assert len(commitments) == 1 + len(requests)
    assert commit_prompt(plain, salt) == commit_prompt({"messages": plain["messages"]}, salt)
    assert commit_prompt(parameters(tools=TOOLS, tool_choice="none"), salt) == commit_prompt(plain, salt)


def test_a_classification_may_follow_calls() -> None:
    body = {"model": "m", "labels": ["a"], "messages": [ASKED, CALLED, RESULT]}
    given = parse(ClassifyRequest, json.dumps(body).encode()).parameters()
    assert given["messages"][1]["tool_calls"] == [CALL]


class Answered:
    """As much of an answer as is written out."""

    request, loaded = "r1", SimpleNamespace(row=SimpleNamespace(manifest="sha256:0"))


class Told:
    def __init__(self, frames: list[dict[str, Any]]) -> None:
        self._frames = frames

    async def each(self) -> Any:
        for frame in self._frames:
            yield frame


class Record:
    def model_dump(self, **how: Any) -> dict[str, Any]:
        return {}


PIECES: list[dict[str, Any]] = [
    {"frame": "token", "text": "I look."},
    {"frame": "token", "text": "\n<tool_call>…", "calls": [{"name": "find", "arguments": '{"kind": "payment"}'}]},
    {"frame": "token", "text": "\n<tool_call>…", "calls": [{"name": "stop", "arguments": "{}"}]},
    {"frame": "token", "text": "\n", "calls": []},
]
DONE = {"frame": "done", "finish_reason": "tool_calls", "prompt_tokens": 1, "completion_tokens": 2, "record": Record()}


def test_the_official_client_reads_the_same_calls_from_an_answer_and_from_its_stream() -> None:
    answer: Any = Answered()
    frames: Any = Told([*PIECES, DONE])

    async def collect() -> list[str]:
        return [event async for event in _stream(CHAT, answer, "m", False, frames)]

    *events, last = asyncio.run(collect())
    assert last == "data: [DONE]\n\n"
    state: Any = ChatCompletionStreamState(input_tools=openai.omit, response_format=openai.omit)
    for event in events:
        state.handle_chunk(ChatCompletionChunk.model_validate(json.loads(event.removeprefix("data: "))))
    streamed = state.get_final_completion().choices[0]
    whole = CHAT.whole(text_of(PIECES), list(_number_calls(answer, PIECES)))
    choice = {"index": 0, **whole, "finish_reason": "tool_calls"}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    plain = ChatCompletion.model_validate(body).choices[0]
    assert streamed.finish_reason == plain.finish_reason == "tool_calls"
    assert streamed.message.content == plain.message.content == "I look."
    calls = [[(one.id, one.function.name, one.function.arguments) for one in choice.message.tool_calls or ()]
             for choice in (streamed, plain)]  # fmt: skip
    assert calls[0] == calls[1] and [one[1:] for one in calls[0]] == [("find", '{"kind": "payment"}'), ("stop", "{}")]
    assert all(re.fullmatch("[a-z0-9]{9}", one[0]) for one in calls[0]) and len({one[0] for one in calls[0]}) == 2


def test_an_answer_of_calls_alone_has_no_content() -> None:
    answer: Any = Answered()
    message = CHAT.whole(text_of(PIECES[1:]), list(_number_calls(answer, PIECES[1:])))["message"]
    assert message["content"] is None and len(message["tool_calls"]) == 2
    assert "tool_calls" not in CHAT.whole("hi", [])["message"]
