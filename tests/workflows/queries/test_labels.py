"""The labels of a dataset are counted in its sealed rows, which somebody may have changed on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import Tampered
from appliance.workflows.queries.questions import dataset_labels
from tests.kit.founded import context_of, template


@pytest.mark.parametrize("line", [b"{}", b"[]", b"1", b"no row", b'{"answer":"A"}', b"\xff"])
def test_changed_rows_are_named_and_are_no_defect(home: Path, line: bytes) -> None:
    template("imported").copy(home)
    with context_of(home) as context:
        dataset = context.ledger.state.datasets.get("clauses@1")
        assert dataset is not None and dataset_labels(context, "clauses@1")["A"].train == 0
        rows = context.artifacts.path(dataset.digest) / "rows.jsonl"
        rows.chmod(0o600)
        rows.write_bytes((line + b"\n").ljust(rows.stat().st_size, b"\n"))
        with pytest.raises(Tampered, match=r"rows\.jsonl: expected rows as they were sealed"):
            dataset_labels(context, "clauses@1")
