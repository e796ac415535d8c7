"""Imports of rows of every dataset kind and format through the sandbox: complete or refused."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from scripts.kit.appliance import Appliance, Refused
from scripts.kit.tiny_model import clauses


def _file(columns: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()


def _conversation(text: str, label: str) -> list[dict[str, str]]:
    said = (("user", text), ("assistant", label), ("user", "Sure?"), ("assistant", "Yes."))
    return [{"role": role, "content": content} for role, content in said]


@pytest.mark.thorough
def test_a_chat_in_parquet_with_a_held_out_file_is_trained_and_measured(shared: Appliance) -> None:
    talks = [_conversation(text, label) for text, label in clauses(16)]
    terms = {"dataset_kind": "chat", "format": "parquet"}
    found = shared.import_dataset(
        _file({"messages": talks[:12]}), "talks", held_out=_file({"messages": talks[12:]}), **terms
    )
    assert found["status"] == "finished", found
    facts = shared.get("/v1/datasets/talks@1")["facts"]
    assert (facts["dataset_kind"], facts["train_rows"], facts["held_out_rows"], facts["labels"]) == ("chat", 12, 4, 0)
    run = shared.train("talks", dataset="talks@1")
    assert run["status"] == "sealed", run
    metrics = shared.entries(type="adapter.sealed")[-1]["body"]["metrics"]
    assert metrics["base"].keys() == {"rows", "loss", "perplexity", "trained_tokens"}
    assert metrics["adapter"]["rows"] == 4
    assert float(metrics["adapter"]["loss"]) < float(metrics["base"]["loss"])


def test_a_row_that_is_trained_on_and_held_out_is_named_and_nothing_is_imported(shared: Appliance) -> None:
    lines = [json.dumps({"text": text, "summary": label}) for text, label in clauses(6)]
    before = shared.get("/v1/datasets")
    train, held_out = ("\n".join(rows).encode() for rows in (lines[:5], lines[3:]))
    found = shared.import_dataset(train, "leaky", held_out=held_out, dataset_kind="summarisation", format="jsonl")
    assert found["status"] == "failed", found
    assert found["error"]["message"] == (
        "held-out file, line 1: expected a prompt that is not trained on, got that of dataset, line 4"
    )
    assert shared.get("/v1/datasets") == before


def _check(shared: Appliance, rows: bytes, who: str = "olga", **changes: Any) -> dict[str, Any]:
    body = {
        "dataset_kind": "classification", "format": "csv", "file": shared.upload(rows), "columns": {}, "labels": [],
        "instruction": "", "base": "tiny", "seed": 1, "held_out": "0.25", "held_out_file": None,
        "is_validation_set": False, "blind": False, "keep": False, **changes,
    }  # fmt: skip
    key = shared.ask("POST", "/v1/dataset-checks", who, json=body)["key"]
    while not (found := shared.get(f"/v1/dataset-checks/{key}", wait_s=5))["ended"]:
        continue
    return dict(found)


@pytest.mark.thorough
def test_rows_are_checked_in_the_sandbox_and_nothing_is_recorded_or_kept(shared: Appliance) -> None:
    shared.get("/v1/datasets")  # the session's entry
    before, uploads = len(shared.entries()), shared.home / "uploads"
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in clauses(16))
    found = _check(shared, rows.encode())["result"]
    assert found["error_count"] == 0 and found["rows"] == 16 and found["max_tokens"] <= found["context_length"]
    assert not any(path.is_file() for path in uploads.rglob("*"))
    found = _check(shared, rows.encode() + b"no label\n,a\n", base=None)["result"]
    assert found["error_count"] == 2 and found["max_tokens"] is None
    _check(shared, rows.encode(), keep=True)
    assert any(path.is_file() for path in uploads.rglob("*"))
    assert len(shared.entries()) == before


@pytest.mark.thorough
def test_copies_of_held_out_rows_are_counted_by_the_check_and_the_import(shared: Appliance) -> None:
    texts = [(f"the parties of clause {text} agree on {label}", label) for text, label in clauses(40)]
    train = "text,label\n" + "".join(f"{text},{label}\n" for text, label in texts)
    copies = "text,label\n" + "".join(f"{text} please,{label}\n" for text, label in texts[:12])
    note = "12 of 12 held-out rows are nearly the same as a training row"
    found = _check(shared, train.encode(), held_out_file=shared.upload(copies.encode()))["result"]
    assert any(note in one for one in found["notes"])
    assert shared.import_dataset(train.encode(), "copied", held_out=copies.encode())["status"] == "finished"
    assert shared.get("/v1/datasets/copied@1")["facts"]["near_held_out_rows"] == 12


def test_only_an_operator_has_rows_checked_and_nobody_else_reads_what_was_found(shared: Appliance) -> None:
    with pytest.raises(Refused, match="expected an operator or a validator, got rita"):
        _check(shared, b"text,label\na,b\n", who="rita")
    with pytest.raises(Refused, match=r"that .* started"):
        shared.get("/v1/dataset-checks/check:olga:00", who="rita")
