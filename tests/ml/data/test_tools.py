"""Rows with tools: the assistant's turns and calls are trained, token by token, and nothing else."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.data.kinds import map_columns
from appliance.domain.evaluation.rules import choose_evaluated, count_items, list_evaluated_rows
from appliance.errors import BadInput
from appliance.ml.data import findings
from appliance.ml.data import rows as data
from appliance.ml.data.rows import tokenize_row
from appliance.ml.data.sources import SourceRecord, parse_source, read_records
from appliance.ml.model.chat import Chat
from tests.kit.toolful import ASKED, CALL, CALLED, OTHER, RESULT, SAID, TOOLS, TURNS, toolful_chat

BODY = '{"name": "find", "arguments": {"kind": "payment", "most": 2}}'


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return toolful_chat(tmp_path_factory.mktemp("chat") / "base", "hermes")


def openai_form(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As OpenAI writes them: arguments as text, and no content beside calls."""
    written = json.loads(json.dumps(turns))
    for message in written:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
            message["content"] = None
    return list(written)


def read(*records: Any) -> list[SourceRecord]:
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    return parse_source(lines, "jsonl", "chat", map_columns("chat", {}))


def render(source: SourceRecord, chat: Chat) -> data.RenderedRow:
    return data.render_row(0, source, data.TRAIN, chat, "chat", "")


def test_the_assistants_calls_and_words_are_trained_and_no_other_token(chat: Chat) -> None:
    (source,) = read({"messages": openai_form(TURNS), "tools": TOOLS})
    sample = tokenize_row(render(source, chat), chat, 1000, "row")
    texts = [chat.tokenizer.decode(list(sample.ids[a:b]), skip_special_tokens=False) for a, b in sample.spans]
    assert texts == [f"<tool_call>\n{BODY}\n</tool_call><|im_end|>", "The fee is due.<|im_end|>"]
    rest = chat.tokenizer.decode(
        [token for place, token in enumerate(sample.ids) if not any(a <= place < b for a, b in sample.spans)],
        skip_special_tokens=False,
    )
    assert rest == (
        "<|im_start|>system\nYou answer.\n\n# Tools\n\n<tools>"
        + "".join("\n" + json.dumps(tool) for tool in TOOLS)
        + "\n</tools><|im_end|>\n<|im_start|>user\nWhat is due?<|im_end|>\n<|im_start|>assistant\n"
        "\n<|im_start|>user\n<tool_response>\nthe fee\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_every_file_gives_the_same_rows(chat: Chat) -> None:
    import pyarrow
    from pyarrow import parquet

    expected = read({"messages": TURNS, "tools": TOOLS}, {"messages": [ASKED, SAID]})
    messages = [json.dumps(openai_form(TURNS)), json.dumps([ASKED, SAID])]
    tools = [json.dumps(TOOLS), ""]
    csv.writer(out := io.StringIO()).writerows([("messages", "tools"), *zip(messages, tools, strict=True)])
    table = pyarrow.table({"messages": [openai_form(TURNS), [ASKED, SAID]], "tools": [tools[0], None]})
    parquet.write_table(table, whole := io.BytesIO())
    for form, content in (("csv", out.getvalue().encode()), ("parquet", whole.getvalue())):
        found = parse_source(content, form, "chat", map_columns("chat", {}))
        assert [(one.messages, one.tools) for one in found] == [(one.messages, one.tools) for one in expected], form
    assert render(expected[1], chat).calls is None


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([ASKED, {"role": "assistant", "tool_calls": [{"function": {}}]}], TOOLS, "message 1, call 0: expected a name"),
        (
            [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": "{"}}]}],
            TOOLS,
            "line 1, message 1, call 0, find, arguments: expected a JSON object as text, got '{'",
        ),
        ([ASKED, RESULT, SAID], TOOLS, "line 1, message 1: expected a result of a call before it, got one without"),
        ([ASKED, CALLED, SAID], TOOLS, "line 1, message 2: expected the role tool, got assistant"),
        (
            [ASKED, {**CALLED, "tool_calls": [CALL, OTHER]}, RESULT, SAID],
            TOOLS,
            "line 1, message 3: expected a result of the call stop (call00001), got a message of the assistant",
        ),
        ([*TURNS, ASKED, CALLED], TOOLS, "line 1, message 5, call 0: expected an id of its own, got 'call00000' again"),
        (TURNS, TOOLS[1:], "line 1, message 1, call 0: expected one of the tools stop, got 'find'"),
        (TURNS, None, "line 1, message 1, call 0: expected one of the tools none, got 'find'"),
        (TURNS, "[", "line 1, tools: expected a JSON object, got '['"),
        (TURNS, [{"name": "x"}], "line 1, tools, number 0: expected {"),
        ([ASKED, CALLED, RESULT], TOOLS, "line 1: expected the assistant's turn at the end, got the tool's"),
        ([{**ASKED, "tool_calls": [CALL]}, SAID], TOOLS, "line 1, message 0: expected role and content, got the"),
        ([ASKED, {**SAID, "content": ""}], TOOLS, "line 1, message 1: expected a text, got nothing"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_by_line(messages: Any, tools: Any, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        read({"messages": messages, "tools": tools})


def test_a_check_says_once_of_all_lines_that_their_template_has_no_tools(base_folder: Path) -> None:
    from appliance.ml.model.chat import load_chat

    plain, using = ({"messages": [ASKED, SAID]}, {"messages": TURNS, "tools": TOOLS})
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in (plain, using, using))
    errors = findings.Errors()
    sources = errors.keep_rows(read_records(lines, "jsonl", "chat", map_columns("chat", {}), "dataset"))
    sides = [(one, data.TRAIN) for one in sources]
    toolless = load_chat(base_folder)
    found = findings.examine("chat", sides, errors, (), findings.Rendering(toolless, 512, ""))
    message = (
        "dataset, line 2: chat_template.jinja: expected a template that takes tools, got one that does not write them "
        "into the prompt; 2 rows use tools: choose a base that has them"
    )
    assert [one for one in found["errors"] if "tools" in one] == [message]
    assert found["max_tokens"] is not None, "the row without tools is measured"
    with pytest.raises(BadInput, match=re.escape(message)):
        data.render_rows(sides, toolless, "chat", instruction="")


def test_rows_are_known_by_their_calls_and_evaluated_by_the_first(chat: Chat) -> None:
    other = [ASKED, {**CALLED, "tool_calls": [OTHER]}, {**RESULT, "tool_call_id": "call00001", "name": "stop"}, SAID]
    first, second, third = read(
        {"messages": TURNS, "tools": TOOLS}, {"messages": other, "tools": TOOLS}, {"messages": [ASKED, SAID]}
    )
    assert data.known_by("chat", first) != data.known_by("chat", second)
    row = render(first, chat)
    assert (row.calls, row.answer) == (0, f"<tool_call>\n{BODY}\n</tool_call>")
    assert data.RenderedRow(**{**json.loads(row.encode()), "parts": row.parts}) == row
    rows = [render(one, chat) for one in (third, first, second, third)]
    assert choose_evaluated("chat", rows, lambda row: row.calls is not None) == rows[1:3]
    lines = b"\n".join(data.RenderedRow(**{**row.__dict__, "split": data.HELD_OUT}).encode() for row in rows)
    digests = [bytes([number] * 32) for number in range(4)]
    assert list_evaluated_rows(lines, digests, "chat") == [digests[1].hex(), digests[2].hex()]
    assert count_items({"dataset_kind": "chat", "held_out_rows": 4, "called_rows": 2}) == 2
    assert data.count_groups([data.RenderedRow(**{**row.__dict__, "split": data.HELD_OUT}) for row in rows]) == {
        "called_rows": 2
    }
