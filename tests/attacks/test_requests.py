"""Invalid requests of a unit are refused in the form of OpenAI's API, with the field that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.kit.appliance import Appliance

CHAT, CLASSIFY = "/v1/chat/completions", "/v1/classify"
HELLO = [{"role": "user", "content": "Hello"}]


def _head(site: Appliance) -> dict[str, str]:
    return {"Authorization": f"Bearer {site.token('legal')}"}


@pytest.mark.parametrize(
    ("path", "sent", "words"),
    [
        (CHAT, {"content": b""}, "body: expected JSON"),
        (CHAT, {"content": b'{"model": "labels", "messages": ['}, "body: expected JSON"),
        (CHAT, {"content": b'{"model": "labels\\ud800", "messages": []}'}, "body: expected JSON"),
        (CHAT, {"data": {"model": "labels"}}, "body: expected JSON"),
        (CHAT, {"json": [1]}, "body: expected an object"),
        (CHAT, {"json": {"model": "labels"}}, "request: messages: expected a value, got none"),
        (
            CHAT,
            {"json": {"model": "labels", "messages": [{"role": "user"}]}},
            "request: messages.0.content: expected a value, got none",
        ),
        (CHAT, {"json": {"model": "labels", "messages": HELLO, "temperature": 3}}, "temperature: expected at most 2.0"),
        (CHAT, {"content": b'{"model": "labels", "messages": [], "temperature": NaN}'}, "temperature: expected"),
        (
            CHAT,
            {"json": {"model": "labels", "messages": HELLO, "tools": []}},
            "request: tools: expected a list of 1 to 128",
        ),
        (
            "/v1/completions",
            {"json": {"model": "labels", "prompt": ""}},
            "prompt: expected a text of 1 or more characters",
        ),
        (CLASSIFY, {"json": {"model": "labels", "labels": ["a"], "input": "x", "messages": HELLO}}, "expected one of"),
    ],
)
def test_a_malformed_body_is_refused_by_the_place_of_its_fault(
    shared: Appliance, path: str, sent: dict[str, Any], words: str
) -> None:
    answer = shared.units().post(path, headers=_head(shared), **sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["appliance_code"]) == (400, "invalid_request_error", "bad-input")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", CHAT, 405, "POST"),
        ("DELETE", "/v1/models/labels", 405, "GET"),
        ("POST", "/v1/embeddings", 404, None),
        ("GET", "/", 404, None),
        ("GET", "/docs", 404, None),
        ("GET", "/openapi.json", 404, None),
    ],
)
def test_what_the_api_does_not_have_is_said_to_be_missing(
    shared: Appliance, method: str, path: str, status: int, allowed: str | None
) -> None:
    answer = shared.units().request(method, path, headers=_head(shared))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, "http")
    assert (allowed in answer.headers["allow"]) if allowed else "allow" not in answer.headers
