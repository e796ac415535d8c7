"""Preferences in each of TRL's forms are one prompt and two answers, or an error that names the line."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from appliance.domain.data.kinds import map_columns
from appliance.errors import BadInput
from appliance.ml.data.sources import SourceRecord, parse_source

ASK = [{"role": "user", "content": "Is the fee due?"}]
YES, NO = [{"role": "assistant", "content": "Yes."}], [{"role": "assistant", "content": "No."}]
TALK = [{"role": "system", "content": "Be brief."}, *ASK, {"role": "assistant", "content": "Which?"}, *ASK]


def read(*records: Any) -> list[SourceRecord]:
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    return parse_source(lines, "jsonl", "preference", map_columns("preference", {}))


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Is the fee due?", "chosen": "Yes.", "rejected": "No."},
        {"chosen": "Is the fee due? Yes.", "rejected": "Is the fee due? No."},
        {"prompt": ASK, "chosen": YES, "rejected": NO},
        {"chosen": ASK + YES, "rejected": ASK + NO},
    ],
)
def test_all_four_forms_of_a_preference_are_the_same_row(record: dict[str, Any]) -> None:
    (source,) = read(record)
    assert (list(source.messages), source.parts) == (ASK, {"chosen": "Yes.", "rejected": "No."})


def test_a_common_beginning_of_texts_ends_at_white_space_and_not_within_a_word() -> None:
    (source,) = read({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert (source.messages[0]["content"], *source.parts.values()) == ("The sky is", "blue.", "black.")


def test_a_conversation_is_a_prompt_with_or_without_being_named() -> None:
    named, common = read({"prompt": TALK, "chosen": YES, "rejected": NO}, {"chosen": TALK + YES, "rejected": TALK + NO})
    assert list(named.messages) == list(common.messages) == TALK and named.parts == common.parts


def test_files_of_text_and_columns_of_messages_are_read() -> None:
    table = b'question,chosen,rejected\n"Is the fee due?",Yes.,"[""No.""]"\n'
    (source,) = parse_source(table, "csv", "preference", map_columns("preference", {"prompt": "question"}))
    assert (source.messages[0]["content"], source.parts["rejected"]) == ("Is the fee due?", '["No."]')
    out = io.BytesIO()
    parquet.write_table(pa.table({"prompt": [ASK], "chosen": [YES], "rejected": [NO]}), out)
    (source,) = parse_source(out.getvalue(), "parquet", "preference", map_columns("preference", {}))
    assert (list(source.messages), source.parts) == (ASK, {"chosen": "Yes.", "rejected": "No."})


GOOD = {"prompt": "Due?", "chosen": "Yes.", "rejected": "No."}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (GOOD | {"rejected": "Yes."}, ": expected two different answers, got one text as chosen and as rejected"),
        (GOOD | {"rejected": "Yes. "}, ": expected two different answers, got the same but for"),
        ({"chosen": "Due? ", "rejected": "Due? Yes."}, "chosen: expected an answer behind the common beginning"),
        ({"chosen": "Due? Yes", "rejected": "Due?  Yes"}, ": expected two different answers, got the same but for"),
        (GOOD | {"prompt": ""}, ", prompt: expected a text, got nothing"),
        (GOOD | {"prompt": " "}, ", prompt: expected a text, got only white space"),
        (GOOD | {"chosen": ""}, ", chosen: expected a text, got nothing"),
        ({"prompt": "Due?", "chosen": "Yes."}, ": expected a value in 'rejected', got the fields chosen, prompt"),
        (GOOD | {"rejected": None}, ", rejected: expected text, got NoneType"),
        ({"chosen": "Yes.", "rejected": "No."}, ": expected a prompt, or a common beginning"),
        (
            GOOD | {"chosen": YES},
            ": expected all parts as text or all as lists of messages, got prompt as text, chosen",
        ),
        ({"chosen": ASK + YES, "rejected": TALK + NO}, ": expected chosen and rejected to begin with the same prompt"),
        ({"chosen": ASK + YES, "rejected": ASK + NO + ASK}, ", rejected: expected one turn of the assistant behind"),
        ({"prompt": YES, "chosen": YES, "rejected": NO}, ", prompt: expected the user's turn at the end, got the"),
        ({"prompt": ASK + ASK, "chosen": YES, "rejected": NO}, ", message 1: expected the role assistant, got user"),
        ({"prompt": [], "chosen": YES, "rejected": NO}, ", prompt: expected 1 to 1000 messages, got 0"),
        ({"prompt": ASK, "chosen": [{"role": "assistant"}], "rejected": NO}, ", chosen, message 0: expected role and"),
    ],
)
def test_what_is_no_preference_is_refused_by_line(record: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(GOOD, record)
    assert caught.value.message.startswith("dataset, line 2") and message in caught.value.message
