"""Measures by how much a training step window differs when it is trained again on another kind of machine.

    python -m scripts.benches.replay_difference BASE ROWS.csv --text COLUMN --label COLUMN

BASE is a GGUF file or a folder of safetensors. Each column of the printed table is a process of its own on this
machine, with another number of threads or another instruction set for torch and oneDNN. The last columns change the
training itself (one answer, the learning rate, the seed), which must give a larger difference. A cell is the share
that `compare_checkpoints` returns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

RECIPE: dict[str, Any] = {
    "method": "qlora",
    "optimiser": "adamw",
    "loraplus_lr_ratio": "1.0",
    "beta": "0.0",
    "rank": 16,
    "alpha": 32,
    "dropout": "0.05",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "learning_rate": "0.001",
    "epochs": 1,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_length": 256,
    "warmup_ratio": "0.1",
    "weight_decay": "0.0",
    "max_grad_norm": "1.0",
    "gradient_checkpointing": "none",
    "privacy": None,
    "seed": 1,
    "device": "cpu",
    "quantisation": "nf4-double",
}
LABELS = 8
KINDS: dict[str, dict[str, str]] = {
    "unchanged": {},
    "one thread": {"THREADS": "1"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "no vector instructions": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "another answer": {"dataset": "relabelled"},
    "rate + 5 %": {"learning_rate": "0.00105"},
    "another seed": {"seed": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="replayed", description="Measure what another kind of machine changes.")
    parser.add_argument("base", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--count", type=int, default=240, help="number of rows, of the first eight labels")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--windows", type=int, nargs="+", default=[0, 5, 10, 20], help="recorded steps")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _train(**json.loads(given.child))
        return
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as name:
        _measure(given, Path(name))


def _measure(given: argparse.Namespace, folder: Path) -> None:
    base, dataset = _prepare(given, folder)
    recipe = {**RECIPE, "save_steps": 1000, "base": "base", "compute_dtype": given.dtype}
    task = {"base": str(base), "dataset": str(dataset), "recipe": recipe, "windows": given.windows}
    recorded = folder / "recorded"
    _child(given, KINDS["unchanged"], {**task, "output": str(recorded), "recorded": None})
    columns = [*KINDS, *OTHERS]
    print("| window | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1), flush=True)
    found = {}
    for kind, changes in OTHERS.items():
        output = folder / kind.replace(" ", "-")
        rows = str(folder / changes.get("dataset", "dataset"))
        changed = {**recipe, **{name: value for name, value in changes.items() if name != "dataset"}}
        _child(
            given, {}, {**task, "recipe": changed, "dataset": rows, "output": str(output), "recorded": str(recorded)}
        )
        found[kind] = json.loads((output / "shares.json").read_text())
    for kind, environment in KINDS.items():
        output = folder / kind.replace(" ", "-")
        _child(given, environment, {**task, "output": str(output), "recorded": str(recorded)})
        found[kind] = json.loads((output / "shares.json").read_text())
    for start, end in pairwise(given.windows):
        shares = [found[kind][f"{start}-{end}"] for kind in columns]
        print(f"| {start} to {end} | " + " | ".join(map(_shown, shares)) + " |", flush=True)


def _shown(share: float | str | None) -> str:
    if isinstance(share, float):
        return f"{share:.6f}"
    return share or "not comparable"


def _prepare(given: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    from appliance.domain.data.kinds import DatasetDescription
    from appliance.ml.data import rows as data
    from appliance.ml.data.sources import parse_source
    from appliance.ml.model.chat import load_chat
    from appliance.ml.model.convert import convert_base

    base, dataset = folder / "base", folder / "dataset"
    base.mkdir()
    dataset.mkdir()
    convert_base(given.base, base)
    columns = {"text": given.text, "label": given.label}
    sources = parse_source(given.rows.read_bytes(), "csv", "classification", columns)
    chat = load_chat(base)
    names = sorted({source.parts["label"] for source in sources})[:LABELS]
    some = [row for name in names for row in [s for s in sources if s.parts["label"] == name][: given.count // LABELS]]
    sides = data.split_sources("classification", some, 1, Fraction(1, 10))
    rows = data.render_rows(sides, chat, "classification", instruction="Name the kind.")
    about = DatasetDescription("classification", tuple(names))
    data.write_rows(rows, about, dataset, bytes(32))
    (folder / "relabelled").mkdir()
    first = next(row for row in rows if row.split == data.TRAIN)
    # The other answer has as many tokens. With another length, the counts in the states would already differ.
    size = len(chat.encode(first.answer))
    other = next(row for row in rows if row.answer != first.answer and len(chat.encode(row.answer)) == size)
    relabelled = replace(first, answer=other.answer, parts=((first.parts[0][0], other.parts[0][1]),))
    changed = [relabelled if row is first else row for row in rows]
    data.write_rows(changed, about, folder / "relabelled", bytes(32))
    return base, dataset


def _child(given: argparse.Namespace, environment: dict[str, str], task: dict[str, Any]) -> None:
    Path(task["output"]).mkdir()
    command = [sys.executable, "-m", "scripts.benches.replay_difference", str(given.base), str(given.rows)]
    subprocess.run([*command, "--child", json.dumps(task)], env={**os.environ, **environment}, check=True)


def _train(
    base: str, dataset: str, recipe: dict[str, Any], windows: list[int], output: str, recorded: str | None
) -> None:
    """Record the state at each step of `windows`. With `recorded`, train each window from the states in that folder,
    and write by how much the results differ.
    """
    from appliance.ml.training import checkpoint, loop
    from appliance.worker.training import prepare

    if threads := os.environ.get("THREADS"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    folder, shares = Path(output), {}
    for start, end in pairwise(windows):
        kept = None if recorded is None else Path(recorded)
        source = (kept or folder) / f"{start}"
        begin = source.read_bytes() if start else None
        base_model, model, samples, validation = prepare({"base": base, "dataset": dataset, "recipe": recipe})
        if not start and kept is None:
            source.write_bytes(
                checkpoint.encode_checkpoint(loop.train(base_model, model, samples, recipe, lambda step: None, stop=0))
            )
        training = loop.train(
            base_model, model, samples, recipe, lambda step: None, start=begin, stop=end, validation=validation
        )
        got = checkpoint.encode_checkpoint(training)
        (folder / f"{end}").write_bytes(got)
        if kept is not None:
            expected = (kept / f"{end}").read_bytes()
            share = checkpoint.compare_checkpoints(source.read_bytes(), expected, got)
            shares[f"{start}-{end}"] = "identical" if got == expected else share
    (folder / "shares.json").write_text(json.dumps(shares))


if __name__ == "__main__":
    main()
