"""The preparing worker: describes the machine, converts a base, or parses, renders and splits a dataset."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, Unavailable
from appliance.worker.session import Header, Session, run_worker, take, take_path


def work(session: Session, task: Header, blob: bytes) -> Header:
    tasks = {"machine": _describe_machine, "base": _prepare_base, "dataset": _prepare_dataset}
    kind = take(task, "task", str)
    if kind not in tasks:
        raise BadInput(f"task: expected one of {', '.join(tasks)}, got {kind!r}")
    return tasks[kind](task, blob)


def _describe_machine(task: Header, blob: bytes) -> Header:
    from appliance.ml.machine import describe_machine, list_packages

    return {**describe_machine(), "packages": list_packages()}


def _prepare_base(task: Header, blob: bytes) -> Header:
    source, output = Path(take_path(task, "source")), Path(take_path(task, "output"))
    from appliance.ml.convert import convert_base

    try:
        return convert_base(source, output)
    except RuntimeError as error:
        raise Unavailable(f"base: expected to convert it, got {error}") from None


def _prepare_dataset(task: Header, blob: bytes) -> Header:
    # torch is not needed here, and not loaded: a dataset is imported in a second.
    from appliance.ml import data
    from appliance.ml.chat import load_chat

    columns = take(task, "columns", dict)
    if columns.keys() != {"text", "label"} or not all(isinstance(name, str) for name in columns.values()):
        raise BadInput(f"task, columns: expected names for text and label, got {columns!r:.80}")
    share = data.parse_fraction(take(task, "held_out", str))
    chat = load_chat(Path(take_path(task, "base")))
    sources = data.parse_source(Path(take_path(task, "source")).read_bytes(), take(task, "format", str), columns)
    rows = data.render_rows(
        sources, chat, instruction=take(task, "instruction", str), seed=take(task, "seed", int), share=share
    )
    lengths = [len(chat.encode(row.prompt)) + len(chat.encode(row.answer)) for row in rows]
    root = data.write_rows(rows, Path(take_path(task, "output")), blob)
    return _describe_dataset(rows, lengths, root)


def _describe_dataset(rows: list[Any], lengths: list[int], root: str) -> Header:
    from appliance.ml.data import HELD_OUT, TRAIN, count_labels

    counts = {split: count_labels(rows, split) for split in (TRAIN, HELD_OUT)}
    return {
        "rows": len(rows),
        "train_rows": sum(counts[TRAIN].values()),
        "held_out_rows": sum(counts[HELD_OUT].values()),
        "labels": sorted({row.label for row in rows}),
        "label_rows": counts[TRAIN],
        "root": root,
        "max_tokens": max(lengths),
        "mean_tokens": round(sum(lengths) / len(lengths)),
        "sample": rows[0].prompt + rows[0].answer,
    }


if __name__ == "__main__":
    sys.exit(run_worker(work))
