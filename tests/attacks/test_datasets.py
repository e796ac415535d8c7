"""Rows of any task and format go through the sandbox, whole or not at all, and are measured by what is their own."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from scripts.kit.appliance import Appliance
from scripts.kit.tiny_model import clauses


def _file(columns: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()


def _conversation(text: str, label: str) -> list[dict[str, str]]:
    said = (("user", text), ("assistant", label), ("user", "Sure?"), ("assistant", "Yes."))
    return [{"role": role, "content": content} for role, content in said]


def test_a_chat_in_parquet_with_a_held_out_file_is_trained_and_measured(shared: Appliance) -> None:
    talks = [_conversation(text, label) for text, label in clauses(16)]
    terms = {"task": "chat", "format": "parquet"}
    found = shared.import_dataset(
        _file({"messages": talks[:12]}), "talks", held_out=_file({"messages": talks[12:]}), **terms
    )
    assert found["status"] == "finished", found
    facts = shared.get("/v1/datasets/talks@1")["facts"]
    assert (facts["task"], facts["train_rows"], facts["held_out_rows"], facts["labels"]) == ("chat", 12, 4, 0)
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
    found = shared.import_dataset(train, "leaky", held_out=held_out, task="summarisation", format="jsonl")
    assert found["status"] == "failed", found
    assert found["error"]["message"] == (
        "held-out file, line 1: expected a row that is not trained on, got that of dataset, line 4"
    )
    assert shared.get("/v1/datasets") == before
