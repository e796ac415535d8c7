"""What a run is judged on: its gate set, the rows, the records that it is compared with, and how often the rows were
judged on before. All of it follows from the log, so every reader of the log finds the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from appliance.domain.core.case import Case
from appliance.domain.core.names import split_version, versioned
from appliance.domain.core.records import Adapter, Dataset, Judgement, Run
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.evaluation.gates import GateSet, parse_gates
from appliance.domain.evaluation.items import ITEMS_FILE, MOST_ITEMS
from appliance.domain.evaluation.verdict import Verdict, check_conclusion, parse_verdict
from appliance.errors import BadInput, Denied, Tampered
from appliance.formats.core.digest import digest_bytes

HELD_OUT = "held-out"
"""The set of every run: rows of its dataset that it does not train on."""
GATES_FILE, VERDICT_FILE, CALIBRATION_FILE = "gates.json", "verdict.json", "calibration.json"
FULL = "full"

MOST_ANSWERS = 64
"""Rows for which an answer is written out: drawing one takes as long as reading hundreds of rows."""
WRITTEN = ("question-answering", "summarisation")
"""Tasks whose answers are written out and compared with the rows' own."""

T = TypeVar("T")


def choose_judged(task: str, rows: Sequence[T]) -> list[T]:
    """Of the held-out rows those that an evaluation judges: all, or as many as answers are written for, evenly."""
    count = min(len(rows), MOST_ANSWERS) if task in WRITTEN else len(rows)
    return [rows[number * len(rows) // count] for number in range(count)]


def list_judged_rows(rows: bytes, digests: Sequence[bytes], task: str) -> list[str]:
    """The keyed digests of the rows that a run is judged on. `rows`: a dataset's rows.jsonl."""
    lines = rows.splitlines()
    if len(lines) != len(digests):
        raise Tampered(f"dataset: expected a digest for each of {len(lines)} rows, got {len(digests)}")
    held_out = [digest.hex() for line, digest in zip(lines, digests, strict=True) if _split_of(line) == HELD_OUT]
    return choose_judged(task, held_out)


def _split_of(line: bytes) -> object:
    try:
        return json.loads(line)["split"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Tampered(f"dataset: expected rows with a split, got {line[:40]!r}") from None


def count_items(facts: Mapping[str, object]) -> int | None:
    """How many rows of a dataset with these facts are judged on; None where they do not say."""
    held_out = facts.get("held_out_rows")
    if not isinstance(held_out, int) or held_out < 1:
        return None
    return min(held_out, MOST_ANSWERS) if facts.get("task") in WRITTEN else held_out


def check_sets(gates: GateSet) -> None:
    """BadInput where a gate is judged on rows that no run is judged on."""
    for gate in gates.gates:
        if gate.set != HELD_OUT:
            raise BadInput(f"gate set {gates.name}, gate {gate.name}, set: expected {HELD_OUT}, got {gate.set}")


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


@dataclass(frozen=True)
class Basis:
    """What a verdict rests on beside the run's own items. `judged_before`: the runs that were judged on these rows.
    `others`: by comparison, whose items it is compared with; None where no version is released, and missing where
    there is no record of the same rows."""

    judged_before: int
    others: Mapping[str, Judgement | None]


def find_basis(state: State, run: Run) -> Basis:
    """That of a run which is sealed next."""
    others: dict[str, Judgement | None] = {}
    released = find_released(state, run.name)
    found = None if released is None else state.judgements.get(versioned(released.name, released.version))
    if released is None:
        others["released"] = None
    elif found is not None and found.dataset == run.dataset:
        others["released"] = found
    full = [one for one in state.judgements.values() if one.dataset == run.dataset and _method(state, one) == FULL]
    if full:
        others["full-fine-tuning"] = max(full, key=lambda one: one.index)
    return Basis(count_judged(state, run.dataset), others)


def count_judged(state: State, dataset: str) -> int:
    """The runs that were evaluated on the dataset's held-out rows and sealed: each showed its metrics, with gates or
    without. Every version of the dataset counts, and one of another name whose rows are held out of the same file."""
    name, file = split_version(dataset)[0], _held_out_of(state, dataset)
    return sum(
        split_version(one.dataset)[0] == name or _held_out_of(state, one.dataset) == file
        for one in state.judgements.values()
    )


def _held_out_of(state: State, name: str) -> str:
    """The digest of the file that the dataset's held-out rows came in."""
    dataset = state.datasets.get(name)
    ordered = None if dataset is None else state.imports.get(dataset.order)
    return name if ordered is None else ordered.held_out_of


def find_released(state: State, name: str) -> Adapter | None:
    """The version of this adapter name that answers a unit now; of several the one that was released last."""
    current = [release.current for release in state.releases.values()]
    for activation in sorted(current, key=lambda one: one.index, reverse=True):
        adapter = state.adapters.get(activation.adapter)
        if adapter is not None and adapter.name == name and adapter.revoked is None and adapter.quarantined is None:
            return adapter
    return None


def _method(state: State, judgement: Judgement) -> str | None:
    run = state.runs.get(judgement.run)
    return None if run is None else run.method


def check_judgement(case: Case, run: Run, adapter: str, files: Mapping[str, str]) -> Judgement:
    """The judgement that an `adapter.sealed` records. `files`: the digests of the manifest's files, by path.

    What follows from the entry and the log is computed again here; that the verdict follows from the items needs the
    sealed folder (`verify_verdict`).
    """
    items = files.get(ITEMS_FILE)
    if items is None:
        raise Denied(f"{case.place}: manifest: expected {ITEMS_FILE}, got none")
    verdict = None if run.gates is None else _check_verdict(case, run, files, items)
    bound = sorted(role for role in ("gates", "verdict") if role in case.documents)
    expected = [] if verdict is None else ["gates", "verdict"]
    case.require(bound == expected, "documents", f"{expected}, as the run's order bound gates or none", bound)
    typed = [path for path in (GATES_FILE, VERDICT_FILE) if path in files and verdict is None]
    case.require(not typed, "manifest", "no verdict, since the run's order bound no gates", typed)
    return Judgement(
        adapter=adapter,
        run=run.id,
        dataset=run.dataset,
        items=items,
        gates=run.gates,
        verdict=None if verdict is None else digest_bytes(case.documents["verdict"]),
        task=None if verdict is None else verdict.task,
        rest=None if verdict is None else verdict.rest,
        passed=None if verdict is None else verdict.passed,
        index=case.entry.index,
    )


def _check_verdict(case: Case, run: Run, files: Mapping[str, str], items: str) -> Verdict:
    for role, path in (("gates", GATES_FILE), ("verdict", VERDICT_FILE)):
        if role not in case.documents:
            raise Denied(f"{case.place}: document {role}: expected one, since the run's order bound gates, got none")
        got = digest_bytes(case.documents[role])
        case.require(got == files.get(path), path, f"the document {role} ({got})", files.get(path))
    digest = digest_bytes(case.documents["gates"])
    case.require(digest == run.gates, "gates", f"{run.gates}, which the run's order bound", digest)
    gates, verdict = parse_gates(case.documents["gates"]), parse_verdict(case.documents["verdict"])
    check_conclusion(gates, verdict)
    _check_judged(case, run, gates, verdict, items)
    return verdict


def _check_judged(case: Case, run: Run, gates: GateSet, verdict: Verdict, items: str) -> None:
    """The records that the verdict names are those of the log, and it was told how often the rows were judged on."""
    basis = find_basis(case.state, run)
    unreleased = "released" in basis.others and basis.others["released"] is None
    expected = {("run", HELD_OUT): items}
    for gate, result in zip(gates.gates, verdict.results, strict=True):
        other = basis.others.get(gate.comparison)
        if other is not None:
            expected[(gate.comparison, HELD_OUT)] = other.items
        stands = result.outcome != "not-applicable" or (unreleased and gate.comparison == "released")
        case.require(stands, f"gate {gate.name}", "another outcome, since a version is released", result.outcome)
    got = {(one.model, one.set): one.digest for one in verdict.judged}
    case.require(got == expected and len(got) == len(verdict.judged), "verdict, judged", expected, got)
    dataset = case.state.datasets.get(run.dataset)
    count = None if dataset is None else count_items(dataset.facts)
    for one in verdict.judged:
        what = f"verdict, {one.model} on {one.set}"
        case.require(
            one.judged_before == basis.judged_before, what, f"{basis.judged_before} judged before", one.judged_before
        )
        case.require(count in (None, one.items), what, f"{count} items, the rows of the set", one.items)
