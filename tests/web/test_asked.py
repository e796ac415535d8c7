"""Each field of a unit's request has a bound; a request over one is refused by its field, in time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from appliance.errors import (
    ApplianceError,
    BadInput,
    Denied,
    NotAuthenticated,
    NotFound,
    QuotaExceeded,
    RateLimited,
    TooLarge,
    Unavailable,
)
from appliance.ml.inference import request as worker
from appliance.web.core.errors import MalformedRequest
from appliance.web.units import request_bodies
from appliance.web.units.middleware import openai_body
from appliance.web.units.request_bodies import NEUTRAL, ChatRequest, ClassifyRequest, CompletionRequest, parse_request

HELLO = [{"role": "user", "content": "Hello"}]
LONG = [{"role": "user", "content": "x" * 100_001}]


def parse(kind: Any, body: bytes) -> Any:
    return parse_request(kind, body)


def chat(**changes: Any) -> bytes:
    return json.dumps({"model": "labels", "messages": HELLO, **changes}).encode()


def send(call: Callable[[Any], object]) -> bytes:
    """Return the bytes that the official client sends for this call."""
    sent = list[bytes]()

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        return httpx.Response(200, json={})

    with httpx.Client(transport=httpx.MockTransport(answer)) as transport:
        call(openai.OpenAI(api_key="token", base_url="http://appliance/v1", http_client=transport))
    return sent[0]


def chat_number(member: str, text: str) -> bytes:
    """With a number as it is written."""
    return f'{{"model": "labels", "messages": {json.dumps(HELLO)}, "{member}": {text}}}'.encode()


def test_parts_of_type_text_are_joined_in_their_order_and_other_members_are_no_part() -> None:
    parts = [{"type": "text", "text": "The par"}, {"type": "text", "text": "ties "}, {"type": "text", "text": "agree"}]
    whole, parted = (
        parse(ChatRequest, chat(messages=[{"role": "user", "content": content}])).parameters()
        for content in ("The parties agree", parts)
    )
    assert parted == whole


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "of type 'image_url', which is not supported"),
        ({"type": "input_audio"}, "of type 'input_audio'"),
        ({"type": "text"}, "the fields type and text"),
        ({"type": "text", "text": 1}, "the fields type and text"),
        ({"type": "text", "text": "x", "more": "y"}, "the fields type and text"),
        ({"text": "x"}, "without a type"),
        ({"type": 1, "text": "x"}, "without a type"),
        ("x", "without a type"),
    ],
)
def test_a_part_that_is_no_text_is_refused_by_its_type(part: object, words: str) -> None:
    with pytest.raises(MalformedRequest, match=re.escape(words)) as refused:
        parse(ChatRequest, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]))
    error = openai_body(refused.value)[1]["error"]
    assert (error["param"], error["code"]) == ("messages[0].content", "invalid_value")


OPTIONAL = (
    *("max_tokens", "temperature", "top_p", "seed", "stop", "n", "stream", "stream_options", "user", "metadata"),
    *("max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
    *("logit_bias", "logprobs", "frequency_penalty", "store", "reasoning_effort"),
)


def test_a_field_whose_value_changes_nothing_counts_as_left_out() -> None:
    plain = parse(ChatRequest, chat())
    neutral = {name: values[0] for name, values in NEUTRAL.items()}
    assert parse(ChatRequest, chat(**neutral | {"presence_penalty": 0.0})) == plain
    for changed in ({"presence_penalty": 0.5}, {"store": True}, {"logit_bias": {"7": 1}}, {"presence_penalty": False}):
        with pytest.raises(MalformedRequest, match="not supported"):
            parse(ChatRequest, chat(**changed))


def test_a_member_that_is_null_counts_as_left_out() -> None:
    plain = parse(ChatRequest, chat())
    assert parse(ChatRequest, chat(**dict.fromkeys(OPTIONAL))) == plain
    with pytest.raises(MalformedRequest) as refused:
        parse(ChatRequest, chat(messages=None))
    error = openai_body(refused.value)[1]["error"]
    assert (error["param"], error["code"]) == ("messages", "missing_required_parameter")


def test_none_given_to_the_official_client_counts_as_left_out() -> None:
    none: Any = dict.fromkeys(OPTIONAL)
    sent = send(lambda client: client.chat.completions.create(model="labels", messages=HELLO, **none))
    assert parse(ChatRequest, sent) == parse(ChatRequest, chat())
    assert json.loads(sent)["temperature"] is None
    none = dict.fromkeys(("max_tokens", "temperature", "top_p", "seed", "stop", "best_of", "suffix"))
    sent = send(lambda client: client.completions.create(model="labels", prompt="Hello", **none))
    assert parse(CompletionRequest, sent).parameters()["max_tokens"] == 16


def test_parts_are_bounded_as_the_text_that_they_make() -> None:
    half = {"type": "text", "text": "x" * 100_001}
    with pytest.raises(BadInput, match="at most 200000 characters"):
        parse(ChatRequest, chat(messages=[{"role": "user", "content": [half, half]}]))


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (chat(logprobs=True), "logprobs", "unknown_parameter"),
        (chat(tools=[]), "tools", "invalid_value"),
        (b'{"model": "labels"}', "messages", "missing_required_parameter"),
        (chat(messages=[{"role": "robot", "content": "x"}]), "messages[0].role", "invalid_value"),
        (chat(messages=[{"role": "user", "content": 1}]), "messages[0].content", "invalid_type"),
        (chat(temperature="warm"), "temperature", "invalid_type"),
        (chat(max_tokens=0), "max_tokens", "invalid_value"),
        (b"[]", None, "invalid_value"),
        (b"{", None, "invalid_value"),
    ],
)
def test_a_malformed_request_is_told_in_openais_words_with_ours_behind(
    body: bytes, param: str | None, code: str
) -> None:
    with pytest.raises(MalformedRequest) as refused:
        parse(ChatRequest, body)
    status, told = openai_body(refused.value)
    assert status == 400
    assert told["error"] == {
        "message": refused.value.message,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
        "appliance_code": "bad-input",
    }


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (NotAuthenticated("x"), 401, "invalid_request_error", "invalid_api_key"),
        (NotAuthenticated("x", code="expired"), 401, "invalid_request_error", "invalid_api_key"),
        (NotFound("x", code="model-not-found"), 404, "invalid_request_error", "model_not_found"),
        (TooLarge("x", code="context-length"), 400, "invalid_request_error", "context_length_exceeded"),
        (RateLimited("x", code="rate-limit"), 429, "requests", "rate_limit_exceeded"),
        (RateLimited("x", code="token-limit"), 429, "tokens", "rate_limit_exceeded"),
        (QuotaExceeded("x", code="answers-a-day"), 429, "requests", "rate_limit_exceeded"),
        (Denied("x", code="not-admitted"), 403, "invalid_request_error", "not-admitted"),
        (TooLarge("x"), 413, "invalid_request_error", "too-large"),
        (Unavailable("x", code="engine-ended"), 503, "server_error", "engine-ended"),
    ],
)
def test_each_refusal_has_openais_type_and_code_where_there_is_one(
    error: ApplianceError, status: int, kind: str, code: str
) -> None:
    got, told = openai_body(error)
    assert (got, told["error"]["type"], told["error"]["code"]) == (status, kind, code)
    assert told["error"]["appliance_code"] == error.code


def test_the_api_and_the_worker_have_the_same_bounds() -> None:
    for name in ("MAX_LABELS", "MAX_LABEL_TEXT", "MAX_STOPS", "MAX_STOP", "MAX_TEXT"):
        assert getattr(request_bodies, name) == getattr(worker, name), name


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (ChatRequest, {"messages": LONG * 2}, "200000 characters in all, got 200002"),
        (ChatRequest, {"messages": HELLO * 257}, "at most 256 of them, got 257"),
        (ChatRequest, {"stop": ["x"] * 5}, "at most 4 of them, got 5"),
        (ChatRequest, {"stop": "x" * 257}, "at most 256 characters"),
        (ChatRequest, {"stop": ""}, "a text of 1 or more characters"),
        (ChatRequest, {"guided_choice": ["x" * 40_000, "y" * 40_000]}, "65536 characters in all, got 80000"),
        (ChatRequest, {"guided_choice": ["x"] * 1001}, "at most 1000 of them, got 1001"),
        (ClassifyRequest, {"labels": ["x" * 40_000, "y" * 40_000]}, "65536 characters in all, got 80000"),
        (ClassifyRequest, {"labels": [""]}, "a text of 1 or more characters"),
        (CompletionRequest, {"prompt": "x" * 200_001}, "at most 200000 characters"),
    ],
)
def test_what_is_over_a_bound_is_refused_by_what_it_has(kind: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words) as refused:
        parse(kind, chat(**changes))
    assert refused.value.status == 400
    assert next(iter(changes)) in refused.value.message


@pytest.mark.parametrize(
    ("member", "text"),
    [
        ("temperature", "NaN"),
        ("temperature", "-Infinity"),
        ("temperature", "-5e-324"),
        ("temperature", "9" * 400),
        ("temperature", "9" * 5000),
        ("temperature", '"warm"'),
        ("top_p", "Infinity"),
        ("top_p", "1e400"),
        ("top_p", "1e-400"),
        ("top_p", "-0.0"),
        ("seed", "9" * 400),
        ("seed", "-1"),
        ("seed", "0.5"),
        ("max_tokens", "1e400"),
        ("max_tokens", "-0.0"),
        ("max_completion_tokens", "9" * 400),
        ("n", "2"),
        ("n", "1e400"),
    ],
)
def test_a_number_that_is_none_of_the_allowed_is_a_bad_request(member: str, text: str) -> None:
    with pytest.raises(BadInput):
        parse(ChatRequest, chat_number(member, text))


@pytest.mark.parametrize(
    ("member", "text"),
    [
        ("temperature", "-0.0"),
        ("temperature", "5e-324"),
        ("temperature", "1e-400"),
        ("temperature", "2"),
        ("top_p", "5e-324"),
        ("seed", "-0.0"),
        ("seed", "2147483647"),
    ],
)
def test_a_number_at_the_edge_of_the_allowed_is_taken_by_api_and_worker(member: str, text: str) -> None:
    parameters = parse(ChatRequest, chat_number(member, text)).parameters()
    assert getattr(worker.parse_request(parameters), member) == pytest.approx(float(text), abs=1e-300)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "changes",
    [
        {f"member {number}": 1 for number in range(200_000)},
        {"stop": [1] * 250_000},
        {"stop": [1] * 1_000_000},
        {"guided_choice": [1] * 250_000},
        {"messages": [{}] * 120_000},
        {"metadata": {"a": [[]] * 500_000}},
    ],
    ids=["unknown members", "stop", "more stop", "guided_choice", "messages", "metadata"],
)
def test_a_body_full_of_faults_is_refused_in_time_and_in_a_short_text(changes: dict[str, Any]) -> None:
    """Each was an error of its own: seconds of the event loop, and an answer longer than the body."""
    body = chat(**changes)
    began = time.process_time()
    with pytest.raises(BadInput) as refused:
        parse(ChatRequest, body)
    assert time.process_time() - began < 1
    assert len(refused.value.message) < 100_000
