"""A file of rows is imported whole or not at all, and every refusal names the line."""

from __future__ import annotations

import json
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.domain.data.kinds import DatasetDescription, map_columns
from appliance.errors import BadInput, TooLarge
from appliance.formats.artifacts.rows import row_digest, rows_root
from appliance.formats.core.canonical import parse_canonical
from appliance.ml.data import rows as data
from appliance.ml.data.sources import MAX_TEXT_CHARACTERS, SourceRecord, parse_source
from appliance.ml.model.chat import Chat, load_chat
from tests.kit.mutations import mutated

COLUMNS = {"text": "text", "label": "label"}
GOOD = b"text,label\none,a\ntwo,b\n"
KEY = bytes(range(32))
HALF = Fraction(1, 2)


def _csv(content: bytes) -> list[SourceRecord]:
    return parse_source(content, "csv", "classification", COLUMNS)


def _sided(sources: list[SourceRecord]) -> data.Sides:
    return list(zip(sources, (data.TRAIN, data.HELD_OUT), strict=True))


def _rows(
    sources: list[SourceRecord], chat: Chat, instruction: str = "", share: Fraction = HALF
) -> list[data.RenderedRow]:
    sides = data.split_sources("classification", sources, 1, share)
    data.check_labels(sides, ())
    return data.render_rows(sides, chat, "classification", instruction=instruction)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\none,a\ntwo\n", "line 3: expected 2 fields, got 1"),
        (b"text,label\none,a,x\n", "line 2: expected 2 fields, got 3"),
        (b'text,label\none,a\n"two"x,b\n', "line 3: expected CSV"),
        (b'text,label\none,a\n"two,b\n', "line 3: expected CSV"),
        (b'text,label\n"line\nbreak",a\ntwo\n', "line 4: expected 2 fields, got 1"),
        (b"text,label\n\none,a\n", "line 2: expected 2 fields, got 0"),
        (b"text,label\none,a\n  ,b\n", "line 3, text: expected a text, got only white space"),
        (b"text,label\none,a\ntwo,\n", "line 3, label: expected a text, got nothing"),
        (b"text,label\none,a\ntwo, b\n", "line 3: expected a label on one line without outer spaces, got ' b'"),
        (b"text,label\none,a\ntwo\xff,b\n", "line 3: expected UTF-8, got the byte 0xff"),
        (
            "text,label\ncafé,a\n".encode("latin-1"),
            "got the byte 0xe9, as Latin-1 and Windows-1252 have it; save it as",
        ),
        (
            "text,label\none,a\n".encode("utf-16"),
            "expected text in UTF-8, got text in UTF-16; save it as UTF-8, or run",
        ),
        ("text,label\none,a\n".encode("utf-16-le"), "expected text in UTF-8, got text in UTF-16"),
        (b"PK\x03\x04\x14\x00rows", "got an Excel workbook or another ZIP archive; export its rows as CSV in UTF-8"),
        (
            b"one,a\ntwo,b\n",
            "if line 1 is a row, put a line with the names of its columns, such as text,label, before it; if yours has",
        ),
        (b"text,label\none,a\ntw\x00o,b\n", "line 3, text: expected text, got a NUL"),
        (
            b"text,label\none,a\ntwo,b\none,b\n",
            "line 4: expected the label 'a', which the same text has in dataset, line 2, got 'b'",
        ),
        (b"text,label\none,a\ntwo,a\n", "labels: expected 2 to 1000 different ones, got 1"),
        (b"text,label\n", "dataset: expected rows, got none"),
        (b"text,kind\none,a\n", "line 1: expected one column 'label', got the columns 'text, kind'"),
        (b"text,label,label\none,a,b\n", "line 1: expected one column 'label'"),
        (b"", "line 1: expected one column"),
    ],
)
def test_a_broken_csv_is_refused_naming_the_line(content: bytes, message: str) -> None:
    with pytest.raises(BadInput, match="dataset") as caught:
        data.check_labels(data.split_sources("classification", _csv(content), 1, HALF), ())
    assert message in caught.value.message


def test_a_first_line_that_is_a_sentence_is_not_taken_for_names() -> None:
    with pytest.raises(BadInput, match="if line 1 is a row, put a line with the names") as caught:
        _csv(b"The fee is due in the month of May,payment\nAnother clause of the contract,other\n")
    assert "--column" not in caught.value.message


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n", "\n \n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_and_empty_lines_at_the_end_are_accepted(mark: str, end: str) -> None:
    rows = '{"text":"one","label":"a"}\n{"text":"two","label":"b"}'
    told = {}
    for kind, text in (("jsonl", rows), ("csv", "text,label\none,a\ntwo,b"), ("tsv", "text\tlabel\none\ta\ntwo\tb")):
        if kind == "jsonl" or " " not in end:
            told[kind] = parse_source(f"{mark}{text}{end}".encode(), kind, "classification", COLUMNS)
    assert all([one.parts["text"] for one in found] == ["one", "two"] for found in told.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text":"one","label":"a"}\n{"text":"two"\n', "line 2: expected a JSON object"),
        (b'{"text":"one","label":"a"}\n["two","b"]\n', "line 2: expected a JSON object, got list"),
        (b'{"text":"one","label":"a"}\n{"text":"two","label":3}\n', "line 2, label: expected text, got int"),
        (b'{"text":"one","label":"a"}\n{"text":"two"}\n', "line 2: expected a value in 'label', got the fields text"),
        (b'{"text":"one","label":"a"}\n\n{"text":"two","label":"b"}\n', "line 2: expected a JSON object, got ''"),
        (b'{"text":"one","label":"a","label":"b"}\n', "line 1: expected each field once, got 'label' twice; remove"),
        (b'{"text":"\\ud800","label":"a"}\n{"text":"two","label":"b"}\n', "line 1, text: expected Unicode"),
    ],
)
def test_broken_jsonl_is_refused_naming_the_line(content: bytes, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_source(content, "jsonl", "classification", COLUMNS)
    assert message in caught.value.message


FILES = {
    ("csv", "classification"): b'text,label\n"one, or\ntwo",a\nthree,b\n',
    ("tsv", "classification"): b"text\tlabel\none\ta\ntwo\tb\n",
    ("jsonl", "chat"): b'{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}\n',
    (
        "csv",
        "chat",
    ): b'messages\n"[{""role"":""user"",""content"":""x""},{""role"":""assistant"",""content"":""y""}]"\n',
}


@pytest.mark.parametrize(("kind", "dataset_kind"), FILES)
def test_whatever_a_file_holds_it_is_rows_or_an_error_of_ours(kind: str, dataset_kind: Any) -> None:
    @settings(deadline=None, max_examples=200)
    @given(mutated(FILES[kind, dataset_kind]) | st.binary(max_size=60))
    def run(content: bytes) -> None:
        with suppress(BadInput, TooLarge):
            parse_source(content, kind, dataset_kind, map_columns(dataset_kind, {}))

    run()


def test_columns_are_mapped_and_other_columns_are_left_out() -> None:
    content = b'\xef\xbb\xbfid,kind,body\n1,a,"one, or\ntwo"\n2,b,"she said ""no"""\n'
    columns = {"text": "body", "label": "kind"}
    assert parse_source(content, "csv", "classification", columns) == [
        SourceRecord("dataset, line 2", {"text": "one, or\ntwo", "label": "a"}),
        SourceRecord("dataset, line 4", {"text": 'she said "no"', "label": "b"}),
    ]
    lines = b'{"body":"one","kind":"a"}\n{"body":"two","kind":"b"}'
    assert len(parse_source(lines, "jsonl", "classification", columns)) == 2
    tabs = b'kind\tbody\na\tsaid "no, not\nb\tthat"\n'
    assert [s.parts["text"] for s in parse_source(tabs, "tsv", "classification", columns)] == ['said "no, not', 'that"']


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(BadInput, match="expected one of csv, tsv, jsonl, parquet, got 'xlsx'"):
        parse_source(GOOD, "xlsx", "classification", COLUMNS)


@pytest.mark.parametrize("text", ["a <|im_end|> b", "<|im_start|>system"])
def test_a_control_token_in_a_row_is_refused(base_folder: Path, text: str) -> None:
    """It would end the customer's turn and let the row speak as the system."""
    chat = load_chat(base_folder)
    with pytest.raises(BadInput, match=r"line 3: expected text without control tokens"):
        data.render_rows(
            _sided(_csv(f"text,label\none,a\n{text},b\n".encode())), chat, "classification", instruction=""
        )
    with pytest.raises(BadInput, match="instruction: expected text without control tokens"):
        data.render_rows(_sided(_csv(GOOD)), chat, "classification", instruction=text)


def test_the_split_follows_the_text_not_its_place() -> None:
    share = Fraction(1, 5)
    sides = {text: data.assign_split(text, 3, share) for text in (f"text {number}" for number in range(2000))}
    held_out = sum(side == data.HELD_OUT for side in sides.values())
    assert 330 < held_out < 470
    assert data.assign_split("  Text 1\n", 3, share) == sides["text 1"], "case and spacing move no row"
    assert any(data.assign_split(text, 4, share) != side for text, side in sides.items()), "the seed does"


@pytest.mark.parametrize("text", ["0", "0.95", "-0.1", "x", "nan", "inf", "1e9999999"])
def test_a_held_out_share_outside_its_range_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="held_out"):
        data.parse_fraction(text)


def test_a_label_without_a_training_row_is_refused(base_folder: Path) -> None:
    share = Fraction(1, 2)
    held_out = next(
        text for text in (f"t{number}" for number in range(99)) if data.assign_split(text, 1, share) == data.HELD_OUT
    )
    trained = next(
        text for text in (f"t{number}" for number in range(99)) if data.assign_split(text, 1, share) == data.TRAIN
    )
    rows = [SourceRecord("dataset, line 2", {"text": held_out, "label": "rare"})]
    rows.append(SourceRecord("dataset, line 3", {"text": trained, "label": "common"}))
    with pytest.raises(BadInput, match="label 'rare': expected a row in the training split"):
        _rows(rows, load_chat(base_folder), share=share)
    for alone, missing in ((rows[1:], "held-out"), (rows[:1], "train")):
        sides = data.split_sources("classification", alone, 1, share)
        with pytest.raises(BadInput, match=f"expected at least one {missing} row, got none"):
            data.render_rows(sides, load_chat(base_folder), "classification", instruction="")


def test_rows_are_canonical_lines_and_the_root_is_over_their_keyed_digests(base_folder: Path, tmp_path: Path) -> None:
    sources = _csv(b"text,label\n" + b"".join(f"text {n},{'ab'[n % 2]}\n".encode() for n in range(20)))
    rows = _rows(sources, load_chat(base_folder), "Say.", Fraction(1, 4))
    root = data.write_rows(rows, DatasetDescription("classification", ("a", "b")), tmp_path, KEY)
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines()
    first = parse_canonical(lines[0])
    before = "<|im_start|>system\nSay.<|im_end|>\n<|im_start|>user\ntext 0<|im_end|>\n<|im_start|>assistant\n"
    assert first == {
        "index": 0,
        "split": rows[0].split,
        "text": "text 0",
        "answer": "a",
        "parts": [[before, "a<|im_end|>"]],
    }
    digests = [row_digest(KEY, index, line) for index, line in enumerate(lines)]
    assert (tmp_path / "row_digests.bin").read_bytes() == b"".join(digests)
    assert root == f"sha256:{rows_root(digests).hex()}"
    sides = data.load_rows(tmp_path, data.TRAIN) + data.load_rows(tmp_path, data.HELD_OUT)
    assert sorted(sides, key=lambda row: row.index) == rows
    assert data.load_about(tmp_path) == DatasetDescription("classification", ("a", "b"))
    assert json.loads(lines[1])["index"] == 1


@pytest.mark.parametrize(("kind", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_field_may_be_as_long_as_a_text_may_be(kind: str, separator: str) -> None:
    """Python's own limit of a field is 131,072 characters."""

    def parse(length: int) -> str:
        lines = f"text{separator}label\n{'x' * length}{separator}a\n"
        (source,) = parse_source(lines.encode(), kind, "classification", {"text": "text", "label": "label"})
        return source.parts["text"]

    assert len(parse(MAX_TEXT_CHARACTERS)) == MAX_TEXT_CHARACTERS
    with pytest.raises(TooLarge, match=f"line 2, text: expected at most {MAX_TEXT_CHARACTERS} characters"):
        parse(MAX_TEXT_CHARACTERS + 1)


def test_a_field_of_csv_may_be_the_json_of_several_long_messages() -> None:
    messages = [{"role": role, "content": "x" * MAX_TEXT_CHARACTERS} for role in ("user", "assistant")]
    cell = json.dumps(messages).replace('"', '""')
    (source,) = parse_source(f'messages\n"{cell}"\n'.encode(), "csv", "chat", map_columns("chat", {}))
    assert [message["content"] for message in source.messages] == [one["content"] for one in messages]
