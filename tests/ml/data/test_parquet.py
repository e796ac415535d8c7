"""Parquet is read as text and as lists of messages, like every other file; what is neither is refused by its column."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from appliance.domain.data.kinds import DatasetKind, map_columns
from appliance.errors import BadInput, TooLarge
from appliance.ml.data import sources as reader
from appliance.ml.data.sources import SourceRecord, parse_source
from tests.ml.evaluation.test_dataset_kinds import RECORDS, TURNS, _read


def _file(columns: dict[str, Any], **options: Any) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out, **options)
    return out.getvalue()


def _parse(data: bytes, dataset_kind: DatasetKind = "classification") -> list[SourceRecord]:
    return parse_source(data, "parquet", dataset_kind, map_columns(dataset_kind, {}))


@pytest.mark.parametrize("dataset_kind", RECORDS)
def test_every_task_is_read_as_from_lines_of_json(dataset_kind: DatasetKind) -> None:
    records = RECORDS[dataset_kind][:1]
    found = _parse(
        _file({name: [record[name] for record in records] for name in records[0]}, row_group_size=1), dataset_kind
    )
    expected = _read(dataset_kind, *records)
    assert [(s.parts, s.messages) for s in found] == [(s.parts, s.messages) for s in expected]
    assert found[0].place == "dataset, row 1"


def test_words_of_a_dictionary_are_text_and_other_columns_are_not_read() -> None:
    labels = pa.array(["a", "b", "a"]).dictionary_encode()
    data = _file({"text": ["x", "y", "z"], "label": labels, "scores": [[1.5], [], None]}, row_group_size=2)
    assert [source.parts["label"] for source in _parse(data)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("columns", "dataset_kind", "message"),
    [
        ({"text": ["x"], "label": [3]}, "classification", "column 'label': expected text, got int64"),
        ({"text": [["x"]], "label": ["a"]}, "classification", "column 'text': expected text, got list"),
        ({"text": [b"x"], "label": ["a"]}, "classification", "column 'text': expected text, got binary"),
        ({"text": ["x"]}, "classification", "expected one column 'label', got the columns 'text'"),
        (
            {"text": ["x", None], "label": ["a", "b"]},
            "classification",
            "dataset, row 2, text: expected text, got NoneType",
        ),
        (
            {"messages": [[{"role": "user", "body": "x"}]]},
            "chat",
            "column 'messages': expected text or a list of {role",
        ),
        (
            {"messages": [[*TURNS, {"role": "user", "content": None}]]},
            "chat",
            "row 1, message 4: expected text, got None",
        ),
        ({"messages": [TURNS[1:]]}, "chat", "dataset, row 1, message 0: expected the role user, got assistant"),
    ],
)
def test_what_is_no_text_is_refused_by_column_or_row(columns: Any, dataset_kind: DatasetKind, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        _parse(_file(columns), dataset_kind)
    assert message in caught.value.message


@pytest.mark.parametrize("cut", [0, 3, 40, 200])
def test_bytes_that_are_no_parquet_are_refused(cut: int) -> None:
    data = _file({"text": ["x" * 50, "y"], "label": ["a", "b"]})
    with pytest.raises(BadInput, match=r"^dataset: expected Parquet, got: "):
        _parse(data[: len(data) - cut] if cut else b"text,label\n")


def test_a_flipped_byte_is_an_error_or_another_text_and_never_a_crash() -> None:
    data = _file({"text": [f"text {n}" for n in range(40)], "label": ["a", "b"] * 20}, write_page_checksum=True)
    for place in range(4, len(data), 7):
        changed = bytes([*data[:place], data[place] ^ 0x55, *data[place + 1 :]])
        try:
            _parse(changed)
        except (BadInput, TooLarge) as error:
            assert error.message.startswith("dataset")


def test_a_file_that_says_it_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_BYTES", 100)
    with pytest.raises(TooLarge, match="expected at most 100 bytes of text, got"):
        _parse(_file({"text": ["x" * 500, "y"], "label": ["a", "b"]}, compression="NONE"))
