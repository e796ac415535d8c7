"""A finished run as an offline run, written by the real wandb and read back record by record.

wandb brings its own libraries, so it lives in its own environment: `.venv-wandb` in the repository's folder (made by
scripts/setup --tests). The file is a log of LevelDB's kind behind seven bytes of
its own; each record is one of wandb's protobuf messages.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.reports.test_plot import record

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-wandb/bin/python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="wandb is not installed in .venv-wandb")

READ = """
import json, struct, sys
from wandb.proto import wandb_internal_pb2 as pb
data, at, whole = open(sys.argv[1], "rb").read(), 7, b""
rows, run = [], {}
while at + 7 <= len(data):
    left = 32768 - at % 32768
    if left < 7:
        at += left
        continue
    size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
    whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
    if kind in (1, 4):
        found, whole = pb.Record.FromString(whole), b""
        if found.WhichOneof("record_type") == "history":
            rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in found.history.item})
        if found.WhichOneof("record_type") == "run" and found.run.run_id:
            run = {"id": found.run.run_id, "config": {u.key: u.value_json for u in found.run.config.update}}
print(json.dumps({"rows": rows, "run": run}))
"""


@pytest.mark.thorough
def test_every_step_of_the_record_is_in_the_offline_run(tmp_path: Path) -> None:
    steps = [step.model_dump(mode="json") for step in record(40)]
    run = {"id": "r-000001", "name": "clauses", "config": {"rank": 8}, "summary": {"steps": 40}, "steps": steps}
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    words = [str(PYTHON), "-m", "appliance.reports.wandb_run", str(tmp_path)]
    subprocess.run(words, input=json.dumps(run), env=environment, cwd=ROOT, text=True, timeout=60, check=True)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-r-000001.wandb")
    told = subprocess.run([str(PYTHON), "-c", READ, str(file)], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(told.stdout)
    assert (found["run"]["id"], found["run"]["config"]["rank"]) == ("r-000001", "8")
    assert [row["_step"] for row in found["rows"]] == list(range(1, 41))
    for row, step in zip(found["rows"], steps, strict=True):
        assert row["loss"] == float(step["loss"])
        assert row["tokens_per_second"] == pytest.approx(100)
        assert row.get("spike_rows") == ("7" if step["spike"] else None)
    assert not list(tmp_path.glob("wandb/offline-run-*/files/*.py")), "no code of whoever exports"
