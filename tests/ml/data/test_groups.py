"""Clusters and slices: columns that an import names for evaluation, and which no model receives."""

from __future__ import annotations

import io
import json
import random
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from appliance.domain.data.kinds import DATASET_KINDS, DatasetDescription, DatasetKind, map_columns
from appliance.errors import BadInput, TooLarge
from appliance.formats.artifacts.rows import cluster_digest, slice_digest
from appliance.ml.data import rows as data
from appliance.ml.data.sources import SourceRecord, parse_source
from appliance.ml.model.chat import load_chat
from tests.ml.evaluation.test_dataset_kinds import RECORDS

GROUPS = {"cluster": "client", "slice": "region"}
KEY = bytes(range(32))


def _read(content: bytes, kind: str = "csv", dataset_kind: DatasetKind = "classification") -> list[SourceRecord]:
    return parse_source(content, kind, dataset_kind, map_columns(dataset_kind, GROUPS))


@pytest.mark.parametrize("dataset_kind", DATASET_KINDS)
def test_every_task_takes_both_where_they_are_named_and_neither_otherwise(dataset_kind: DatasetKind) -> None:
    records = [{**record, "client": "c1", "region": "north"} for record in RECORDS[dataset_kind][:2]]
    lines = "\n".join(json.dumps(record) for record in records).encode()
    found = _read(lines, "jsonl", dataset_kind)
    assert [(one.parts["cluster"], one.parts["slice"]) for one in found] == [("c1", "north")] * len(records)
    plain = parse_source(lines, "jsonl", dataset_kind, map_columns(dataset_kind, {}))
    assert [one.messages for one in plain] == [one.messages for one in found]
    assert all("cluster" not in one.parts and "slice" not in one.parts for one in plain)


def test_a_named_column_must_be_there_and_a_row_may_leave_it_empty() -> None:
    found = _read(b"text,label,client,region\none,a,,\ntwo,b,7,south\n")
    assert [one.parts for one in found] == [
        {"text": "one", "label": "a"},
        {"text": "two", "label": "b", "cluster": "7", "slice": "south"},
    ]
    with pytest.raises(BadInput, match="expected one column 'client' and one column 'region'"):
        _read(b"text,label\none,a\n")


def test_integers_are_their_digits_and_other_values_are_refused() -> None:
    (found,) = _read(b'{"text":"one","label":"a","client":17,"region":null}\n', "jsonl")
    assert found.parts["cluster"] == "17" and "slice" not in found.parts
    out = io.BytesIO()
    parquet.write_table(pa.table({"text": ["one"], "label": ["a"], "client": [17], "region": ["north"]}), out)
    assert _read(out.getvalue(), "parquet")[0].parts == {
        "text": "one", "label": "a", "cluster": "17", "slice": "north",
    }  # fmt: skip
    for value in ("true", "1.5", "[1]"):
        line = f'{{"text":"one","label":"a","client":{value},"region":"x"}}\n'
        with pytest.raises(BadInput, match="line 1, cluster: expected text"):
            _read(line.encode(), "jsonl")
    with pytest.raises(TooLarge, match="line 2, cluster: expected at most 256 characters, got 257"):
        _read(b"text,label,client,region\none,a," + b"x" * 257 + b",y\n")
    out = io.BytesIO()
    parquet.write_table(pa.table({"text": ["one"], "label": ["a"], "client": [1.5], "region": ["north"]}), out)
    with pytest.raises(BadInput, match="column 'client': expected text or integers, got double"):
        _read(out.getvalue(), "parquet")


@pytest.mark.parametrize("blind", [False, True])
def test_a_cluster_is_kept_as_a_keyed_digest_and_of_a_blind_set_the_slice_too(
    base_folder: Path, tmp_path: Path, blind: bool
) -> None:
    sources = _read(b"text,label,client,region\none,a,Miller,north\ntwo,b,,\n")
    sides = data.hold_out_sources(sources)
    rows = data.render_rows(sides, load_chat(base_folder), "classification", instruction="", is_validation_set=True)
    assert all("Miller" not in text and "north" not in text for row in rows for part in row.parts for text in part)
    data.write_rows(rows, DatasetDescription("classification", ("a", "b")), tmp_path, KEY, blind=blind)
    first, second = data.load_rows(tmp_path, data.HELD_OUT)
    assert first.cluster == cluster_digest(KEY, "Miller").hex() and len(first.cluster) == 64
    assert first.slice == (slice_digest(KEY, "north").hex() if blind else "north")
    assert (second.cluster, second.slice) == (None, None)
    written = (tmp_path / "rows.jsonl").read_bytes()
    assert b"Miller" not in written and (b"north" in written) is not blind
    assert b"cluster" not in written.splitlines()[1], "a row without one has no such member"
    assert data.count_groups(rows) == {"clusters": 1, "slices": 1}


def _clustered(*rows: tuple[str, str]) -> list[SourceRecord]:
    return _read(b"text,label,client,region\n" + b"".join(f"{text},a,{client},\n".encode() for text, client in rows))


def test_a_cluster_is_on_one_side_and_so_is_what_belongs_with_it() -> None:
    rows = [(f"text {n}", f"c{n % 60}" if n % 3 else "") for n in range(400)]
    rows += [(f"Text  {n}", f"d{n % 40}") for n in range(0, 400, 5)]  # the same texts in other clusters
    draw = random.Random(1)
    for seed in range(4):
        draw.shuffle(rows)
        sides = data.split_sources("classification", _clustered(*rows), seed, Fraction(1, 2))
        assert {side for _, side in sides} == {data.TRAIN, data.HELD_OUT}
        for known in (lambda one: one.parts.get("cluster"), lambda one: data.same_key(one.parts["text"])):
            train, held_out = ({known(one) for one, at in sides if at == side} for side in (data.TRAIN, data.HELD_OUT))
            assert not (train & held_out) - {None}
        again = data.split_sources("classification", _clustered(*sorted(rows)), seed, Fraction(1, 2))
        told, retold = (
            {(one.parts["text"], one.parts.get("cluster"), side) for one, side in x} for x in (sides, again)
        )
        assert told == retold, "order means nothing"


def test_rows_that_belong_together_go_where_the_least_of_their_keys_goes() -> None:
    keys, clusters = ["d", "b", "c", "b", "a"], ["1", None, "1", "2", None]
    assert data.join_rows(keys, clusters) == ["c", "b", "c", "b", "a"]
    assert data.join_rows(keys, clusters, [None, "x", None, None, "x"]) == ["c", "a", "c", "a", "a"]
    assert data.join_rows(keys) == keys


def test_where_all_rows_belong_together_no_seed_is_advised(base_folder: Path) -> None:
    rows = [("one", "m"), ("two", "m"), ("two", "n"), ("three", "n")]
    sides = data.split_sources("classification", _clustered(*rows), 1, Fraction(1, 2))
    with pytest.raises(BadInput, match="all 4 rows belong together, by their cluster or their prompt; hold out a file"):
        data.render_rows(sides, load_chat(base_folder), "classification", instruction="")
    assert len(list(data.find_empty_splits("classification", sides))) == 1
    apart = [(one, data.TRAIN) for one in _clustered(*rows, ("four", ""))]
    (error,) = data.find_empty_splits("classification", apart)
    assert error.message.endswith("at least one held-out row, got none; try another seed or another share")


def test_a_cluster_of_the_held_out_file_that_is_trained_on_is_refused_by_line() -> None:
    train, held_out = _clustered(("one", "m"), ("two", "")), _clustered(("three", "n"), ("four", "m"), ("five", ""))
    with pytest.raises(BadInput) as caught:
        data.join_sources("classification", train, held_out)
    assert caught.value.message == (
        "dataset, line 3, cluster: expected one that is not trained on, got that of dataset, line 2; put all rows of a "
        "cluster into one of the two files"
    )
    assert len(data.join_sources("classification", train, [held_out[0], held_out[2]])) == 4
