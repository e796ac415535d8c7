"""What a run is judged on, its gate set and the rows, and the rules that its judgement is checked by."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from appliance.domain.core.case import Case
from appliance.domain.core.names import split_version
from appliance.domain.core.records.adapters import Judgement, LocalJudgement, SetJudgement
from appliance.domain.core.records.data import BoundSet, Dataset, LocalSet
from appliance.domain.core.records.runs import Run
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.data.imports import RELEASED_ENDING
from appliance.domain.data.local_sets import HARNESS, METRIC, SHIPPED, is_local
from appliance.domain.data.standing import sets_stand
from appliance.domain.evaluation.basis import Basis, find_basis, find_sets, items_path, sets_by_name
from appliance.domain.evaluation.gates import HELD_OUT, GateSet, parse_gates
from appliance.domain.evaluation.items import MOST_ITEMS
from appliance.domain.evaluation.shipped.sets import find_shipped_rows
from appliance.domain.evaluation.verdict import Verdict, check_conclusion, parse_verdict
from appliance.errors import BadInput, Denied, Tampered
from appliance.formats.core.digest import digest_bytes

GATES_FILE, VERDICT_FILE, CALIBRATION_FILE = "gates.json", "verdict.json", "calibration.json"

MOST_ANSWERS = 64
"""Rows for which an answer is written out: drawing one takes as long as reading hundreds of rows."""
CLASSIFICATION = "classification"
WRITTEN = ("question-answering", "summarisation")
"""Tasks whose answers are written out and compared with the rows' own."""
CALLED_ROWS = "called_rows"
"""The fact that counts held-out rows with tools."""

T = TypeVar("T")


def choose_judged(task: str, rows: Sequence[T], has_tools: Callable[[T], bool] = lambda row: False) -> list[T]:
    """Of the held-out rows those that an evaluation judges: all, or as many as answers are written for, evenly.

    Of a chat some of whose rows have tools, it judges these by their calls, and no others."""
    with_tools = [row for row in rows if has_tools(row)]
    rows = with_tools or rows
    count = min(len(rows), MOST_ANSWERS) if task in WRITTEN or with_tools else len(rows)
    return [rows[number * len(rows) // count] for number in range(count)]


def list_judged_rows(rows: bytes, digests: Sequence[bytes], task: str) -> list[str]:
    """The keyed digests of the rows that a run is judged on. `rows`: a dataset's rows.jsonl."""
    lines = rows.splitlines()
    if len(lines) != len(digests):
        raise Tampered(f"dataset: expected a digest for each of {len(lines)} rows, got {len(digests)}")
    read = [(digest.hex(), *_read_row(line)) for line, digest in zip(lines, digests, strict=True)]
    held_out = [(digest, has_tools) for digest, split, has_tools in read if split == HELD_OUT]
    return [digest for digest, _ in choose_judged(task, held_out, lambda row: row[1])]


def _read_row(line: bytes) -> tuple[object, bool]:
    """Its split, and whether it has tools."""
    try:
        row = json.loads(line)
        return row["split"], "calls" in row
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Tampered(f"dataset: expected rows with a split, got {line[:40]!r}") from None


def count_items(facts: Mapping[str, object], rows: str = "held_out_rows") -> int | None:
    """How many rows of a dataset with these facts are judged on; None where they do not say. `rows`: the fact that
    counts them, of a validation set `rows`."""
    count = facts.get(rows)
    if not isinstance(count, int) or count < 1:
        return None
    called = facts.get(CALLED_ROWS)
    if isinstance(called, int) and called > 0:
        return min(called, MOST_ANSWERS)
    return min(count, MOST_ANSWERS) if facts.get("task") in WRITTEN else count


def count_local_items(bound: LocalSet, facts: Mapping[str, object]) -> int | None:
    """How many items a set of no log has; None where only its files say. `facts`: of the dataset."""
    if bound.set in SHIPPED:
        rows = find_shipped_rows(bound)
        return None if rows is None else len(rows)
    return count_items(facts) if bound.set.startswith(METRIC) else None


def check_sets(gates: GateSet, bound: Sequence[BoundSet], local: Sequence[LocalSet] = ()) -> None:
    """BadInput unless the validation sets, and the sets of no log, that an order binds are those that its gates name,
    each once."""
    _check_named(
        gates, "validation sets", [split_version(one.validation_set)[0] for one in bound], gates.validation_sets
    )
    _check_named(gates, "sets of no log", [one.set for one in local], gates.local_sets)


def _check_named(gates: GateSet, what: str, bound: Sequence[str], wanted: tuple[str, ...]) -> None:
    if tuple(sorted(bound)) != wanted:
        expected, got = (", ".join(names) or "none" for names in (wanted, sorted(bound)))
        raise BadInput(f"gate set {gates.name}, {what}: expected {expected}, which its gates name, got {got}")


def unfit_local_sets(dataset: Dataset, bound: Sequence[LocalSet], gates: str | None) -> Reasons:
    """What speaks against judging on these sets a run that trains on this dataset."""
    if bound and gates is None:
        return ["sets of no log: expected none without gates that name them, got some"]
    reasons = [
        f"set {one.set}: expected {', '.join(SHIPPED)}, or a name that begins with {HARNESS} or {METRIC}, got {one.set}"
        for one in bound
        if not is_local(one.set) or one.set.endswith(RELEASED_ENDING)
    ]
    task = dataset.facts.get("task")
    answered = (CLASSIFICATION, *WRITTEN)
    if task is not None and task not in answered:
        metrics = ", ".join(one.set for one in bound if one.set.startswith(METRIC))
        reasons += [f"set {metrics}: expected a dataset of {', '.join(answered)}, got {task}"] if metrics else []
    return reasons


def unfit_sets(state: State, dataset: Dataset, bound: Sequence[BoundSet], gates: str | None) -> Reasons:
    """What speaks against judging on these validation sets a run that trains on this dataset."""
    if bound and gates is None:
        return ["validation sets: expected none without gates that name them, got some"]
    reasons = sets_stand(state, tuple(bound))
    task = dataset.facts.get("task")
    for one in bound:
        found, what = state.validation_sets.get(one.validation_set), f"validation set {one.validation_set}"
        if found is None:
            continue
        if found.base_digest != dataset.base_digest:
            reasons.append(f"{what}: expected one rendered for base {dataset.base}, got {found.base}")
        if task is not None and found.task != task:
            reasons.append(f"{what}: expected one of the task {task}, got {found.task}")
        newest = find_sets(state, (found.name,), dataset.base_digest).get(found.name)
        if newest is not None and newest.version > found.version:
            reasons.append(f"{what}: expected the newest that stands, version {newest.version}, got {found.version}")
    return reasons


def unjudgeable(state: State, purpose: str, dataset: Dataset, gates: str | None) -> Reasons:
    """What speaks against an order to train, of what it is to be judged by."""
    reasons = []
    required = state.parameters.required_gates
    if required and purpose == "release" and gates not in required:
        reasons.append(
            f"gates: expected a gate set that policy requires ({', '.join(required)}), got {gates or 'none'}"
        )
    items = count_items(dataset.facts)
    if items is not None and items > MOST_ITEMS:
        reasons.append(f"dataset, held-out rows: expected at most {MOST_ITEMS}, which can be judged, got {items}")
    return reasons


def check_judgement(
    case: Case, run: Run, adapter: str, files: Mapping[str, str], metrics: Mapping[str, Mapping[str, object]]
) -> Judgement:
    """The judgement that an `adapter.sealed` records. `files`: the digests of the manifest's files, by path.

    What follows from the entry and the log is computed again here; that the verdict follows from the items needs the
    sealed folder (`verify_verdict`).
    """
    local = [one.set for one in run.local_sets]
    own = {name: files.get(items_path(name)) for name in (HELD_OUT, *sets_by_name(run), *local)}
    for name, digest in own.items():
        if digest is None:
            raise Denied(f"{case.place}: manifest: expected {items_path(name)}, got none")
    items = {name: digest for name, digest in own.items() if digest is not None}
    verdict = None if run.gates is None else _check_verdict(case, run, files, items, metrics)
    bound = sorted(role for role in ("gates", "verdict") if role in case.documents)
    expected = [] if verdict is None else ["gates", "verdict"]
    case.require(bound == expected, "documents", f"{expected}, as the run's order bound gates or none", bound)
    typed = [path for path in (GATES_FILE, VERDICT_FILE) if path in files and verdict is None]
    case.require(not typed, "manifest", "no verdict, since the run's order bound no gates", typed)
    named = {items_path(name) for name in items}
    named |= set() if verdict is None else {items_path(one.set, released=True) for one in verdict.judged}
    typed = sorted(path for path in files if path.startswith("items") and path not in named)
    case.require(not typed, "manifest", "no other items than those that were judged", typed)
    return Judgement(
        adapter=adapter,
        run=run.id,
        dataset=run.dataset,
        items=items[HELD_OUT],
        gates=run.gates,
        verdict=None if verdict is None else digest_bytes(case.documents["verdict"]),
        task=None if verdict is None else verdict.task,
        rest=None if verdict is None else verdict.rest,
        passed=None if verdict is None else verdict.passed,
        index=case.entry.index,
        sets=tuple(
            SetJudgement(validation_set=version, items=items[name]) for name, version in sets_by_name(run).items()
        ),
        local_sets=tuple(
            LocalJudgement(set=one.set, digest=one.digest, items=items[one.set]) for one in run.local_sets
        ),
    )


def _check_verdict(
    case: Case,
    run: Run,
    files: Mapping[str, str],
    items: Mapping[str, str],
    metrics: Mapping[str, Mapping[str, object]],
) -> Verdict:
    for role, path in (("gates", GATES_FILE), ("verdict", VERDICT_FILE)):
        if role not in case.documents:
            raise Denied(f"{case.place}: document {role}: expected one, since the run's order bound gates, got none")
        got = digest_bytes(case.documents[role])
        case.require(got == files.get(path), path, f"the document {role} ({got})", files.get(path))
    digest = digest_bytes(case.documents["gates"])
    case.require(digest == run.gates, "gates", f"{run.gates}, which the run's order bound", digest)
    gates, verdict = parse_gates(case.documents["gates"]), parse_verdict(case.documents["verdict"])
    check_conclusion(gates, verdict)
    basis = find_basis(case.state, run, gates)
    _check_records(case, gates, verdict, basis, items, files)
    _check_counts(case, run, verdict, basis, metrics)
    return verdict


def _check_records(
    case: Case, gates: GateSet, verdict: Verdict, basis: Basis, items: Mapping[str, str], files: Mapping[str, str]
) -> None:
    """The records that the verdict names are those of the log and of the sealed folder."""
    expected: dict[tuple[str, str], str | None] = {
        ("run", gate.set): items[gate.set] for gate in gates.gates if gate.set in items
    }
    for key, one in basis.others.items():
        if one is not None:
            expected[key] = files.get(one.path) if one.adapter is None else one.digest
    for gate, result in zip(gates.gates, verdict.results, strict=True):
        unreleased = basis.others.get((gate.comparison, gate.set), ...) is None
        stands = result.outcome != "not-applicable" or unreleased
        case.require(stands, f"gate {gate.name}", "another outcome, since a version is released", result.outcome)
    got = {(one.model, one.set): one.digest for one in verdict.judged}
    case.require(got == expected and len(got) == len(verdict.judged), "verdict, judged", expected, got)


def _check_counts(
    case: Case, run: Run, verdict: Verdict, basis: Basis, metrics: Mapping[str, Mapping[str, object]]
) -> None:
    """The verdict was told how often the rows were judged on, and what of them was found to be trained on."""
    dataset, versions = case.state.datasets.get(run.dataset), sets_by_name(run)
    local = {one.set: one for one in run.local_sets}
    for one in verdict.judged:
        what = f"verdict, {one.model} on {one.set}"
        before = (basis.judged_before.get(one.set), basis.named_before.get(one.set))
        told = f"{before[0]} judged before" + ("" if before[1] is None else f", {before[1]} of this name")
        case.require(before == (one.judged_before, one.named_before), what, told, (one.judged_before, one.named_before))
        found = case.state.validation_sets.get(versions.get(one.set, ""))
        facts = {} if dataset is None else dataset.facts
        if one.set in local:
            count = count_local_items(local[one.set], facts)
        else:
            count = count_items(facts) if found is None else count_items(found.facts, "rows")
        case.require(count in (None, one.items), what, f"{count} items, the rows of the set", one.items)
        told_of = metrics.get("sets", {}).get(one.set)
        overlap = told_of if isinstance(told_of, dict) else {}
        expected = (overlap.get("duplicates"), overlap.get("near_duplicates"))
        got = (one.duplicates, one.near_duplicates)
        case.require(got == expected, f"{what}, duplicates", f"{expected}, as the metrics say", got)
        case.require(
            found is None or one.overlap is not None, f"{what}, duplicates", "a count of a validation set", got
        )
