"""The prepare worker, which describes the machine, converts a base, or parses, renders and splits rows.

Only the first two tasks import torch, so that rows are imported within a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from appliance.domain.data.kinds import DATASET_KINDS, DatasetDescription, DatasetKind, map_columns
from appliance.domain.evaluation.items import MOST_ITEMS
from appliance.domain.evaluation.rules import GENERATED_KINDS
from appliance.domain.planning.packs import count_common
from appliance.domain.planning.plan import note_near_rows
from appliance.domain.planning.shape import Lengths, profile_lengths
from appliance.errors import BadInput, Unavailable
from appliance.ml.data import findings
from appliance.ml.data import rows as data
from appliance.ml.data.rows import RenderedRow, Sample, Sides
from appliance.ml.data.sources import parse_source, read_records
from appliance.ml.model.chat import load_chat, read_context_length
from appliance.worker.link import Header, WorkerLink, take, take_path

LEAST_BLIND_ROWS = 20


def work(session: WorkerLink) -> Header:
    """Run the requested preparation and return its result."""
    task, blob = session.expect("go")
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
    from appliance.ml.model.convert import convert_base

    source, output = Path(take_path(task, "source")), Path(take_path(task, "output"))
    try:
        return convert_base(source, output)
    except RuntimeError as error:
        raise Unavailable(f"base: expected to convert it, got {error}") from None


def _prepare_rows(task: Header, blob: bytes) -> Header:
    (kind, columns), base, labels = _read_teaching(task), Path(take_path(task, "base")), take(task, "labels", list)
    is_validation_set = task["task"] == "validation-set"
    chat = load_chat(base)
    sides = _read_held_out(task, kind, columns) if is_validation_set else _read_sides(task, kind, columns)
    known = data.check_labels(sides, labels, is_validation_set=is_validation_set) if kind == "classification" else ()
    rows = data.render_rows(
        sides, chat, kind, instruction=take(task, "instruction", str), is_validation_set=is_validation_set
    )
    limit, context = read_context_length(base), "the base's context"
    samples = [
        data.tokenize_row(row, chat, limit, source.place, context) for row, (source, _) in zip(rows, sides, strict=True)
    ]
    counted = {} if is_validation_set else data.count_labels(rows, data.TRAIN)
    about = DatasetDescription(kind, known, tuple(counted.get(label, 0) for label in known) if counted else ())
    blind = is_validation_set and take(task, "blind", bool)
    root = data.write_rows(rows, about, Path(take_path(task, "output")), blob, blind=blind)
    described = _describe_rows(rows, samples, about, root)
    return described if is_validation_set else described | _describe_sides(rows, samples)


def _check_dataset(task: Header, blob: bytes) -> Header:
    """Return all findings that an import of these rows would have, without writing files.

    Without a base, no rows are rendered.
    """
    (kind, columns), form = _read_teaching(task), take(task, "format", str)
    errors = findings.Errors()
    source = Path(take_path(task, "source")).read_bytes()
    sources = errors.keep_rows(read_records(source, form, kind, columns, "dataset"))
    is_validation_set = task.get("is_validation_set") is True
    if is_validation_set:
        sides = data.hold_out_sources(sources)
    elif "held_out_source" in task:
        held_out = Path(take_path(task, "held_out_source")).read_bytes()
        held_out_sources = errors.keep_rows(read_records(held_out, form, kind, columns, "held-out file"))
        errors.add(data.find_shared(kind, sources, held_out_sources))
        sides = [(one, data.TRAIN) for one in sources] + [(one, data.HELD_OUT) for one in held_out_sources]
    else:
        share = data.parse_fraction(take(task, "held_out", str))
        sides = data.split_sources(kind, sources, take(task, "seed", int), share)
    rendering = None
    if "base" in task:
        base = Path(take_path(task, "base"))
        instruction = take(task, "instruction", str)
        rendering = findings.Rendering(load_chat(base), read_context_length(base), instruction)
    found = findings.examine(
        kind, sides, errors, take(task, "labels", list), rendering, is_validation_set=is_validation_set
    )
    notes = [] if is_validation_set else _note_split([(data.known_by(kind, source), side) for source, side in sides])
    return found | {"overlaps": _count_overlaps(task, kind, sides), "notes": [*found["notes"], *notes]}


def _note_split(rows: list[tuple[str, str]]) -> list[str]:
    """Return a note with the number of held-out rows that are near duplicates of training rows, if there are any."""
    return note_near_rows(findings.count_split(rows), sum(side == data.HELD_OUT for _, side in rows))


def _count_overlaps(task: Header, kind: DatasetKind, sides: Sides) -> dict[str, dict[str, int]]:
    """Count for each named validation set how many of its rows are among the training rows."""
    trained, found = [data.known_by(kind, source) for source, side in sides if side == data.TRAIN], {}
    for one in task.get("sets", []):
        texts = [row.text for row in data.load_rows(Path(take_path(one, "folder")), data.HELD_OUT)]
        found[take(one, "name", str)] = {"rows": len(texts), **findings.count_overlap(trained, texts)._asdict()}
    return found


def _read_teaching(task: Header) -> tuple[DatasetKind, dict[str, str]]:
    """Return the kind of the dataset and the file's column for each part of a row."""
    kind = take(task, "dataset_kind", str)
    take(task, "columns", dict)
    if kind not in DATASET_KINDS or not all(isinstance(name, str) for name in task["columns"].values()):
        raise BadInput(
            f"task, dataset_kind: expected one of {', '.join(DATASET_KINDS)} and names of columns, got {kind!r:.40}"
        )
    return kind, map_columns(kind, task["columns"])


def _read_held_out(task: Header, kind: DatasetKind, columns: dict[str, str]) -> Sides:
    """Return the records of an uploaded validation set, all held out."""
    source, form = Path(take_path(task, "source")).read_bytes(), take(task, "format", str)
    sources = parse_source(source, form, kind, columns, "validation set")
    least = LEAST_BLIND_ROWS if take(task, "blind", bool) else 1
    if len(sources) < least:
        raise BadInput(
            f"validation set: expected {least} rows at least, so that no number tells of one, got {len(sources)}"
        )
    if kind not in GENERATED_KINDS and len(sources) > MOST_ITEMS:
        raise BadInput(
            f"validation set: expected at most {MOST_ITEMS} rows, which can be evaluated, got {len(sources)}"
        )
    return data.hold_out_sources(sources)


def _read_sides(task: Header, kind: DatasetKind, columns: dict[str, str]) -> Sides:
    """Return the records of the uploaded file, each with its side of the split; a second file is held out
    completely."""
    form = take(task, "format", str)
    sources = parse_source(Path(take_path(task, "source")).read_bytes(), form, kind, columns)
    if "held_out_source" in task:
        held_out = Path(take_path(task, "held_out_source")).read_bytes()
        return data.join_sources(kind, sources, parse_source(held_out, form, kind, columns, "held-out file"))
    share = data.parse_fraction(take(task, "held_out", str))
    return data.split_sources(kind, sources, take(task, "seed", int), share)


def _describe_rows(
    rows: Sequence[RenderedRow], samples: Sequence[Sample], about: DatasetDescription, root: str
) -> Header:
    lengths = [sample.longest for sample in samples]
    return {
        "rows": len(rows),
        "labels": list(about.labels),
        "root": root,
        "max_tokens": max(lengths),
        "mean_tokens": round(sum(lengths) / len(lengths)),
        "mean_trained_tokens": _mean_trained(samples),
        **data.count_groups(rows),
    }


def _describe_sides(rows: Sequence[RenderedRow], samples: Sequence[Sample]) -> Header:
    """Describe a dataset's split, the effort of training on it, and its first row."""
    return {
        "train_rows": sum(row.split == data.TRAIN for row in rows),
        "held_out_rows": sum(row.split == data.HELD_OUT for row in rows),
        "near_held_out_rows": findings.count_split((row.text, row.split) for row in rows),
        "lengths": _profile_training(rows, samples, _mean_trained(samples)).model_dump(mode="json"),
        "sample": "".join(before + answer for before, answer in rows[0].parts),
    }


def _mean_trained(samples: Sequence[Sample]) -> int:
    return round(sum(sample.trained_tokens for sample in samples) / len(samples))


def _profile_training(rows: Sequence[RenderedRow], samples: Sequence[Sample], trained: int) -> Lengths:
    train = [sample for row, sample in zip(rows, samples, strict=True) if row.split == data.TRAIN]
    # The two answers of a preference row share its prompt; rows share nothing with each other.
    shared = 0 if train[0].rejected else count_common([sample.ids for sample in train])
    return profile_lengths([sample.tokens for sample in train], shared=shared, trained=trained)
