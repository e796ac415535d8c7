"""The preparing worker: describes the machine, converts a base, or parses, renders and splits rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, Unavailable
from appliance.worker.link import Header, Link, run_worker, take, take_path

LEAST_BLIND_ROWS = 20


def work(session: Link, task: Header, blob: bytes) -> Header:
    tasks = {
        "machine": _describe_machine,
        "base": _prepare_base,
        "dataset": _prepare_rows,
        "validation-set": _prepare_rows,
        "check": _check_dataset,
    }
    kind = take(task, "task", str)
    if kind not in tasks:
        raise BadInput(f"task: expected one of {', '.join(tasks)}, got {kind!r}")
    return tasks[kind](task, blob)


def _describe_machine(task: Header, blob: bytes) -> Header:
    from appliance.ml.model.machine import describe_machine, list_packages

    return {**describe_machine(), "packages": list_packages()}


def _prepare_base(task: Header, blob: bytes) -> Header:
    source, output = Path(take_path(task, "source")), Path(take_path(task, "output"))
    from appliance.ml.model.convert import convert_base

    try:
        return convert_base(source, output)
    except RuntimeError as error:
        raise Unavailable(f"base: expected to convert it, got {error}") from None


def _prepare_rows(task: Header, blob: bytes) -> Header:
    # torch is not needed here, and not loaded: a dataset is imported in a second.
    from appliance.domain.data.teaching import About
    from appliance.ml.data import rows as data
    from appliance.ml.data.samples import tokenize_row
    from appliance.ml.model.chat import load_chat, read_context_length

    (kind, columns), base, labels = _read_teaching(task), Path(take_path(task, "base")), take(task, "labels", list)
    judges = task["task"] == "validation-set"
    chat = load_chat(base)
    sides = _read_judging(task, kind, columns) if judges else _read_sides(task, kind, columns)
    about = About(kind, data.check_labels(sides, labels, judges=judges) if kind == "classification" else ())
    rows = data.render_rows(sides, chat, kind, instruction=take(task, "instruction", str), judges=judges)
    limit, context = read_context_length(base), "the base's context"
    samples = [
        tokenize_row(row, chat, limit, source.place, context) for row, (source, _) in zip(rows, sides, strict=True)
    ]
    blind = judges and take(task, "blind", bool)
    root = data.write_rows(rows, about, Path(take_path(task, "output")), blob, blind=blind)
    described = _describe_rows(rows, samples, about, root)
    return described if judges else described | _describe_sides(rows, samples, about)


def _check_dataset(task: Header, blob: bytes) -> Header:
    """What an import of these rows would find, all of it; nothing is written. Without a base nothing is rendered."""
    from appliance.ml.data import findings
    from appliance.ml.data import rows as data
    from appliance.ml.data.sources import read_records
    from appliance.ml.model.chat import load_chat, read_context_length

    (kind, columns), form = _read_teaching(task), take(task, "format", str)
    errors = findings.Errors()
    source = Path(take_path(task, "source")).read_bytes()
    sources = errors.keep_rows(read_records(source, form, kind, columns, "dataset"))
    judges = task.get("judges") is True
    if judges:
        sides = data.judge_sources(sources)
    elif "held_out_source" in task:
        held_out = Path(take_path(task, "held_out_source")).read_bytes()
        others = errors.keep_rows(read_records(held_out, form, kind, columns, "held-out file"))
        errors.add(data.find_shared(kind, sources, others))
        sides = [(one, data.TRAIN) for one in sources] + [(one, data.HELD_OUT) for one in others]
    else:
        share = data.parse_fraction(take(task, "held_out", str))
        sides = data.split_sources(kind, sources, take(task, "seed", int), share)
    rendering = None
    if "base" in task:
        base = Path(take_path(task, "base"))
        instruction = take(task, "instruction", str)
        rendering = findings.Rendering(load_chat(base), read_context_length(base), instruction)
    found = findings.examine(kind, sides, errors, take(task, "labels", list), rendering, judges=judges)
    return found | {"overlaps": _count_overlaps(task, kind, sides)}


def _count_overlaps(task: Header, kind: Any, sides: Any) -> dict[str, dict[str, int]]:
    """Of each validation set that was named, how many of its rows are among those to train on."""
    from appliance.ml.data import overlap
    from appliance.ml.data import rows as data

    trained, found = [data.known_by(kind, source) for source, side in sides if side == data.TRAIN], {}
    for one in task.get("sets", []):
        texts = [row.text for row in data.load_rows(Path(take_path(one, "folder")), data.HELD_OUT)]
        found[take(one, "name", str)] = {"rows": len(texts), **overlap.count_overlap(trained, texts)._asdict()}
    return found


def _read_teaching(task: Header) -> tuple[Any, dict[str, str]]:
    """The task that the rows teach, and the file's column for each of its parts."""
    from appliance.domain.data.tasks import TASKS, map_columns

    kind = take(task, "teaches", str)
    take(task, "columns", dict)
    if kind not in TASKS or not all(isinstance(name, str) for name in task["columns"].values()):
        raise BadInput(f"task, teaches: expected one of {', '.join(TASKS)} and names of columns, got {kind!r:.40}")
    return kind, map_columns(kind, task["columns"])


def _read_judging(task: Header, kind: Any, columns: dict[str, str]) -> Any:
    """The uploaded file's records, all held out, and no more than can be judged."""
    from appliance.domain.evaluation.items import MOST_ITEMS
    from appliance.domain.evaluation.judging import WRITTEN
    from appliance.ml.data import rows as data
    from appliance.ml.data.sources import parse_source

    source, form = Path(take_path(task, "source")).read_bytes(), take(task, "format", str)
    sources = parse_source(source, form, kind, columns, "validation set")
    least = LEAST_BLIND_ROWS if take(task, "blind", bool) else 1
    if len(sources) < least:
        raise BadInput(
            f"validation set: expected {least} rows at least, so that no number tells of one, got {len(sources)}"
        )
    if kind not in WRITTEN and len(sources) > MOST_ITEMS:
        raise BadInput(f"validation set: expected at most {MOST_ITEMS} rows, which can be judged, got {len(sources)}")
    return data.judge_sources(sources)


def _read_sides(task: Header, kind: Any, columns: dict[str, str]) -> Any:
    """The uploaded file's records, each with its side; a second file, where there is one, is held out whole."""
    from appliance.ml.data import rows as data
    from appliance.ml.data.sources import parse_source

    form = take(task, "format", str)
    sources = parse_source(Path(take_path(task, "source")).read_bytes(), form, kind, columns)
    if "held_out_source" in task:
        held_out = Path(take_path(task, "held_out_source")).read_bytes()
        return data.join_sources(kind, sources, parse_source(held_out, form, kind, columns, "held-out file"))
    share = data.parse_fraction(take(task, "held_out", str))
    return data.split_sources(kind, sources, take(task, "seed", int), share)


def _describe_rows(rows: list[Any], samples: list[Any], about: Any, root: str) -> Header:
    from appliance.ml.data.rows import count_groups

    lengths = [sample.longest for sample in samples]
    return {
        "rows": len(rows),
        "labels": list(about.labels),
        "root": root,
        "max_tokens": max(lengths),
        "mean_tokens": round(sum(lengths) / len(lengths)),
        "mean_trained_tokens": _mean_trained(samples),
        **count_groups(rows),
    }


def _describe_sides(rows: list[Any], samples: list[Any], about: Any) -> Header:
    """What is told of a dataset alone: how it is divided, what training it takes, and its first row."""
    from appliance.ml.data.rows import HELD_OUT, TRAIN, count_labels

    return {
        "train_rows": sum(row.split == TRAIN for row in rows),
        "held_out_rows": sum(row.split == HELD_OUT for row in rows),
        "label_rows": count_labels(rows, TRAIN) if about.labels else {},
        "lengths": _profile_training(rows, samples, _mean_trained(samples)).model_dump(mode="json"),
        "sample": "".join(before + answer for before, answer in rows[0].parts),
    }


def _mean_trained(samples: list[Any]) -> int:
    total: int = sum(sample.trained_tokens for sample in samples)
    return round(total / len(samples))


def _profile_training(rows: list[Any], samples: list[Any], trained: int) -> Any:
    from appliance.domain.planning.shape import profile_lengths
    from appliance.ml.data.rows import TRAIN

    train = [sample for row, sample in zip(rows, samples, strict=True) if row.split == TRAIN]
    # Preferences share their own prompt, each row with itself, and nothing with another.
    shared = 0 if train[0].rejected else _count_shared([sample.ids for sample in train])
    return profile_lengths([sample.tokens for sample in train], shared=shared, trained=trained)


def _count_shared(rows: list[tuple[int, ...]]) -> int:
    """How many first tokens all rows have in common: as many as the first and the last in order have."""
    first, last = min(rows), max(rows)
    return next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


if __name__ == "__main__":
    sys.exit(run_worker(work))
