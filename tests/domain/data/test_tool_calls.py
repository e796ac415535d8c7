"""Errors in tools, calls and results name their place."""

from __future__ import annotations

import re
from typing import Any

import pytest

from appliance.domain.data.tool_calls import (
    canonical_call,
    match_results,
    read_arguments,
    read_calls,
    read_tools,
)
from appliance.errors import BadInput
from tests.kit.toolful import CALL, FIND, TOOLS


def tool(**members: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "find", **members}}


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("x", "tools: expected a list of 1 to 128 tools, got str"),
        ([], "tools: expected a list of 1 to 128 tools, got 0"),
        ([tool()] * 10_000, "tools: expected a list of 1 to 128 tools, got 10000"),
        ([{"name": "find"}], "tools, number 0: expected {"),
        ([tool(more=1)], "tools, number 0, function: expected the fields description, name"),
        ([{"type": "function", "function": {}}], "tools, number 0, function: expected a name, got none"),
        ([tool(name="{{ x }}")], "expected a name of 1 to 64 letters, digits and signs of _.-, got '{{ x }}'"),
        ([tool(name="a" * 65)], "expected a name of 1 to 64 letters"),
        ([tool(parameters="x")], "function, parameters: expected an object, a JSON schema, got str"),
        ([tool(description=1)], "function, description: expected text, got int"),
        ([tool(strict="yes")], "function, strict: expected true or false, got str"),
        ([tool(), tool()], "tools, number 1: expected tools of different names, got 'find' again"),
        ([tool(description="x" * 70_000)], "tools: expected at most 65536 characters as JSON, got 70"),
        ([tool(parameters={"a": float("nan")})], "tools: expected JSON, got a number that JSON does not have"),
        ([tool(description="\ud800")], "tools: expected JSON, got half of a surrogate pair"),
    ],
)
def test_tools_that_are_none_are_refused_by_number(tools: Any, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        read_tools(tools, "tools")


def test_a_schema_of_any_depth_is_refused_without_a_recursion() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"items": deep}
    with pytest.raises(BadInput, match="tools: expected at most 32 levels, got more"):
        read_tools([tool(parameters=deep)], "tools")


def test_a_template_is_not_given_strict() -> None:
    assert read_tools([tool(strict=True, description=None)], "tools") == (tool(),)
    assert read_tools(TOOLS, "tools")[0] == FIND


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([], "row, tool_calls: expected a list of 1 to 32 calls, got 0"),
        ([{"function": {"arguments": "{}"}}], "row, call 0: expected a name, got none"),
        ([{"function": {"name": "find"}}], "call 0, find, arguments: expected a JSON object, as text or as it is, got"),
        ([{"function": {"name": "find", "arguments": "{"}}], "expected a JSON object as text, got '{'"),
        ([{"function": {"name": "find", "arguments": '{"a":1,"a":2}'}}], "expected a JSON object as text, got"),
        ([{"function": {"name": "find", "arguments": "[1]"}}], "arguments: expected a JSON object, got list"),
        ([{"function": {"name": "find", "arguments": '{"a": NaN}'}}], "expected a JSON object as text, got"),
        (
            [{"id": "a b", "function": {"name": "find", "arguments": "{}"}}],
            "call 0: expected an id of 1 to 64 printable",
        ),
        ([{"type": "code", "function": {"name": "find", "arguments": "{}"}}], "expected the type function, got 'code'"),
        (
            [{"name": "find", "arguments": "{}"}],
            "call 0: expected an id, the type function and a function, got the fi",
        ),
        (["find"], "call 0: expected an id, the type function and a function, got str"),
    ],
)
def test_calls_that_are_none_are_refused_by_number(calls: Any, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        read_calls(calls, "row")


def test_arguments_are_an_object_however_they_are_written() -> None:
    (text,) = read_calls([{"id": "call00000", "function": {"name": "find", "arguments": '{"kind": "payment"}'}}], "row")
    (value,) = read_calls([{**CALL, "function": {"name": "find", "arguments": {"kind": "payment"}}}], "row")
    assert text == value
    with pytest.raises(BadInput, match="at most 32 levels"):
        read_arguments('{"a":' * 60 + "1" + "}" * 60, "row")


def test_calls_are_equal_as_canonical_json() -> None:
    assert canonical_call("f", {"a": 1.0, "b": [{"d": 1, "c": 2}]}) == canonical_call(
        "f", {"b": [{"c": 2, "d": 1e0}], "a": 1}
    )
    assert canonical_call("f", {"a": [1, 2]}) != canonical_call("f", {"a": [2, 1]})
    assert canonical_call("f", {"a": True}) != canonical_call("f", {"a": 1})


def turns(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    """`assistant` with the ids of its calls, `tool` with the id that it names."""
    made: list[dict[str, Any]] = []
    for role, what in messages:
        message: dict[str, Any] = {"role": role, "content": "x"}
        if role == "assistant" and what:
            message["tool_calls"] = [
                {**({} if one is None else {"id": one}), "function": {"name": "find", "arguments": {}}} for one in what
            ]
        if role == "tool":
            message |= {} if what is None else {"tool_call_id": what}
        made.append(message)
    return made


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([("user", 0), ("tool", "a")], "message 1: expected a result of a call before it, got one without a call"),
        (
            [("assistant", ["a"]), ("user", 0)],
            "message 1: expected a result of the call find (a), got a message of the user",
        ),
        ([("assistant", ["a", "a"])], "message 0, call 1: expected an id of its own, got 'a' again"),
        (
            [("assistant", ["a"]), ("tool", "a"), ("assistant", ["a"])],
            "message 2, call 0: expected an id of its own, got 'a' again",
        ),
        ([("assistant", ["a"]), ("tool", "b")], "message 1, tool_call_id: expected that of the call find (a), got 'b'"),
        (
            [("assistant", ["a"]), ("tool", "a"), ("tool", "a")],
            "message 2: expected a result of a call before it, got a second one of that call",
        ),
        (
            [("assistant", ["a", "b"]), ("tool", "b"), ("assistant", 0)],
            "message 2: expected a result of the call find (a)",
        ),
    ],
)
def test_a_result_has_its_call_and_a_call_its_result(messages: Any, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        match_results(turns(*messages), None, "row")


def test_a_call_of_an_unknown_tool_is_refused_by_what_there_is() -> None:
    with pytest.raises(BadInput, match=re.escape("message 0, call 0: expected one of the tools other, got 'find'")):
        match_results(turns(("assistant", ["a"])), ["other"], "row")


def test_calls_without_ids_get_some_and_results_are_theirs_in_order() -> None:
    made = turns(("assistant", [None, None]), ("tool", None), ("tool", None), ("assistant", [None]))
    match_results(made, ["find"], "row")
    assert [call["id"] for call in made[0]["tool_calls"]] == ["call00000", "call00001"]
    assert [message["tool_call_id"] for message in made[1:3]] == ["call00000", "call00001"]
    assert made[3]["tool_calls"][0]["id"] == "call00002" and made[1]["name"] == "find"
