"""Clusters and slices: columns that an import names beside its task's parts, which no model sees."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from appliance.domain.data.tasks import TASKS, Task, map_columns
from appliance.domain.data.teaching import About
from appliance.errors import BadInput, TooLarge
from appliance.formats.artifacts.rows import cluster_digest, slice_digest
from appliance.ml.data import rows as data
from appliance.ml.data.sources import Source, parse_source
from appliance.ml.model.chat import load_chat
from tests.ml.evaluation.test_tasks import RECORDS

GROUPS = {"cluster": "client", "slice": "region"}
KEY = bytes(range(32))


def _read(content: bytes, kind: str = "csv", task: Task = "classification") -> list[Source]:
    return parse_source(content, kind, task, map_columns(task, GROUPS))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_both_where_they_are_named_and_neither_otherwise(task: Task) -> None:
    records = [{**record, "client": "c1", "region": "north"} for record in RECORDS[task][:2]]
    lines = "\n".join(json.dumps(record) for record in records).encode()
    found = _read(lines, "jsonl", task)
    assert [(one.parts["cluster"], one.parts["slice"]) for one in found] == [("c1", "north")] * len(records)
    plain = parse_source(lines, "jsonl", task, map_columns(task, {}))
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
    sides = data.judge_sources(sources)
    rows = data.render_rows(sides, load_chat(base_folder), "classification", instruction="", judges=True)
    assert all("Miller" not in text and "north" not in text for row in rows for part in row.parts for text in part)
    data.write_rows(rows, About("classification", ("a", "b")), tmp_path, KEY, blind=blind)
    first, second = data.load_rows(tmp_path, data.HELD_OUT)
    assert first.cluster == cluster_digest(KEY, "Miller").hex() and len(first.cluster) == 64
    assert first.slice == (slice_digest(KEY, "north").hex() if blind else "north")
    assert (second.cluster, second.slice) == (None, None)
    written = (tmp_path / "rows.jsonl").read_bytes()
    assert b"Miller" not in written and (b"north" in written) is not blind
    assert b"cluster" not in written.splitlines()[1], "a row without one has no such member"
    assert data.count_groups(rows) == {"clusters": 1, "slices": 1}
