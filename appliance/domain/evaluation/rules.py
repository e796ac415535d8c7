"""The rows and sets that a run is evaluated on, and the rules that its evaluation is checked by."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from appliance.domain.core.case import Case
from appliance.domain.core.names import split_version, versioned
from appliance.domain.core.records.data import BoundSet, Dataset, LocalSet
from appliance.domain.core.records.runs import AdapterEvaluation, LocalSetEvaluation, Run, SetEvaluation
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.data.imports import RELEASED_ENDING
from appliance.domain.data.kinds import HARNESS, METRIC, SHIPPED, is_local
from appliance.domain.data.validity import refuse_invalid_sets
from appliance.domain.evaluation.basis import VerdictBasis, find_basis, find_sets, items_path, sets_by_name
from appliance.domain.evaluation.gates import HELD_OUT, GatesFile, parse_gates
from appliance.domain.evaluation.items import MOST_ITEMS
from appliance.domain.evaluation.shipped.sets import find_shipped_rows
from appliance.domain.evaluation.verdict import Verdict, check_conclusion, parse_verdict
from appliance.errors import BadInput, Denied, RefusalCode, Rejected, Tampered
from appliance.formats.core.digest import digest_bytes

GATES_FILE, VERDICT_FILE, CALIBRATION_FILE = "gates.json", "verdict.json", "calibration.json"

MOST_ANSWERS = 64
"""Most rows for which an answer is generated: generating one takes as long as scoring hundreds of rows."""
CLASSIFICATION = "classification"
GENERATED_KINDS = ("question-answering", "summarisation")
"""Dataset kinds whose answers are generated and compared with those of the rows."""
CALLED_ROWS = "called_rows"
"""The dataset fact that counts held-out rows with tools."""

SETS_WITHOUT_GATES = RefusalCode(
    "sets-without-gates",
    "order",
    "The order names sets of rows, and no gates file that uses them.",
    "Name a gates file, or leave the sets out.",
)
LOCAL_SET_NAME = RefusalCode(
    "local-set-name",
    "order",
    "{name} is not the name of a set on this machine.",
    "Use one of these: {shipped}, or a name that begins with one of these: {prefixes}.",
)
METRIC_NEEDS_OTHER_KIND = RefusalCode(
    "metric-needs-another-dataset",
    "state",
    "Metrics of evaluate need a dataset of one of these kinds: {kinds}. This one is of the kind {dataset_kind}.",
    "Leave the metrics out of the gates file.",
)
SET_OF_ANOTHER_BASE = RefusalCode(
    "validation-set-of-another-base",
    "state",
    "Validation set {id} was rendered for the base model {rendered}. The dataset is for {base}.",
    "Import the validation set for this base model.",
)
SET_OF_ANOTHER_KIND = RefusalCode(
    "validation-set-of-another-kind",
    "state",
    "Validation set {id} is of the kind {set_kind}. The dataset is of the kind {dataset_kind}.",
    "Use a validation set that fits the dataset: appliance gate show.",
)
SET_NOT_NEWEST = RefusalCode(
    "validation-set-not-newest",
    "state",
    "Validation set {id} has a newer valid version, {newest}.",
    "Prepare the order again.",
)
GATES_REQUIRED = RefusalCode(
    "gates-required",
    "policy",
    "Policy requires one of these gates files for a release: {required}. The order names another one, or none.",
    "Name one of them: appliance policy show.",
)
TOO_MANY_ROWS = RefusalCode(
    "too-many-held-out-rows",
    "rule",
    "Dataset {id} has {rows} held-out rows. An evaluation uses {limit} of them.",
    "Hold out fewer rows when you import the dataset.",
)

T = TypeVar("T")


def choose_evaluated(
    dataset_kind: str, rows: Sequence[T], has_tools: Callable[[T], bool] = lambda row: False
) -> list[T]:
    """Return the held-out rows that an evaluation uses.

    They are all rows or, where answers are generated, MOST_ANSWERS of them at even distances. If any rows of a chat
    have tools, only these are used, and they are evaluated by their calls.
    """
    with_tools = [row for row in rows if has_tools(row)]
    rows = with_tools or rows
    count = min(len(rows), MOST_ANSWERS) if dataset_kind in GENERATED_KINDS or with_tools else len(rows)
    return [rows[number * len(rows) // count] for number in range(count)]


def list_evaluated_rows(rows: bytes, digests: Sequence[bytes], dataset_kind: str) -> list[str]:
    """Return the keyed digests of the rows that a run is evaluated on. `rows` is the dataset's rows.jsonl.

    Raises: Tampered where a row is malformed, or the number of digests differs.
    """
    lines = rows.splitlines()
    if len(lines) != len(digests):
        raise Tampered(f"dataset: expected a digest for each of {len(lines)} rows, got {len(digests)}")
    read = [(digest.hex(), *_read_row(line)) for line, digest in zip(lines, digests, strict=True)]
    held_out = [(digest, has_tools) for digest, split, has_tools in read if split == HELD_OUT]
    return [digest for digest, _ in choose_evaluated(dataset_kind, held_out, lambda row: row[1])]


def _read_row(line: bytes) -> tuple[object, bool]:
    """Return the row's split, and True if it has tools."""
    try:
        row = json.loads(line)
        return row["split"], "calls" in row
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Tampered(f"dataset: expected rows with a split, got {line[:40]!r}") from None


def count_items(facts: Mapping[str, object], rows: str = "held_out_rows") -> int | None:
    """Return how many rows of a dataset or validation set an evaluation uses; None where its facts do not say.

    `rows` is the name of the fact that counts them; for a validation set it is `rows`.
    """
    count = facts.get(rows)
    if not isinstance(count, int) or count < 1:
        return None
    called = facts.get(CALLED_ROWS)
    if isinstance(called, int) and called > 0:
        return min(called, MOST_ANSWERS)
    return min(count, MOST_ANSWERS) if facts.get("dataset_kind") in GENERATED_KINDS else count


def count_local_items(bound: LocalSet, facts: Mapping[str, object]) -> int | None:
    """Return how many items a local set has; None where only its files say. `facts` are those of the dataset."""
    if bound.set in SHIPPED:
        rows = find_shipped_rows(bound)
        return None if rows is None else len(rows)
    return count_items(facts) if bound.set.startswith(METRIC) else None


MOST_DRAWN_ITEMS = 4_000_000_000
"""Largest sum, over the gates, of resamples times items. A verdict of so many takes about two minutes."""


def check_draws(state: State, gates: GatesFile, dataset: Dataset, bound: Sequence[BoundSet]) -> None:
    """Check that the verdict of an order's gates takes a bounded time.

    Sets whose size the ledger does not have are not counted.

    Raises: BadInput where it takes too long.
    """
    sizes = {HELD_OUT: count_items(dataset.facts)}
    for one in bound:
        rows = state.validation_sets.get(one.validation_set)
        sizes[split_version(one.validation_set)[0]] = None if rows is None else count_items(rows.facts, "rows")
    drawn = sum(gate.draws * (sizes.get(gate.set) or 0) for gate in gates.gates)
    if drawn > MOST_DRAWN_ITEMS:
        expected = f"expected at most {MOST_DRAWN_ITEMS} resamples times rows of all gates together"
        raise BadInput(f"gates file {gates.name}: {expected}, got {drawn}; take fewer resamples or fewer rows")


def check_sets(gates: GatesFile, bound: Sequence[BoundSet], local: Sequence[LocalSet] = ()) -> None:
    """Check that an order binds exactly the validation sets and local sets that its gates name, each once.

    Raises: BadInput where it does not.
    """
    _check_named(
        gates, "validation sets", [split_version(one.validation_set)[0] for one in bound], gates.validation_sets
    )
    _check_named(gates, "sets of no log", [one.set for one in local], gates.local_sets)


def _check_named(gates: GatesFile, what: str, bound: Sequence[str], wanted: tuple[str, ...]) -> None:
    if tuple(sorted(bound)) != wanted:
        expected, got = (", ".join(names) or "none" for names in (wanted, sorted(bound)))
        raise BadInput(f"gates file {gates.name}, {what}: expected {expected}, which its gates name, got {got}")


def refuse_local_sets(dataset: Dataset, bound: Sequence[LocalSet], gates: str | None) -> Reasons:
    """Return the reasons against evaluating a run on these local sets, where it trains on this dataset."""
    if bound and gates is None:
        return [SETS_WITHOUT_GATES()]
    reasons = [
        LOCAL_SET_NAME(name=Rejected(one.set), shipped=SHIPPED, prefixes=(HARNESS, METRIC))
        for one in bound
        if not is_local(one.set) or one.set.endswith(RELEASED_ENDING)
    ]
    dataset_kind = dataset.facts.get("dataset_kind")
    answered = (CLASSIFICATION, *GENERATED_KINDS)
    if dataset_kind is not None and dataset_kind not in answered and any(one.set.startswith(METRIC) for one in bound):
        reasons.append(METRIC_NEEDS_OTHER_KIND(kinds=answered, dataset_kind=str(dataset_kind)))
    return reasons


def refuse_sets(state: State, dataset: Dataset, bound: Sequence[BoundSet], gates: str | None) -> Reasons:
    """Return the reasons against evaluating a run on these validation sets, where it trains on this dataset."""
    if bound and gates is None:
        return [SETS_WITHOUT_GATES()]
    reasons = refuse_invalid_sets(state, tuple(bound))
    dataset_kind = dataset.facts.get("dataset_kind")
    for bound_set in bound:
        found, subject = (
            state.validation_sets.get(bound_set.validation_set),
            f"validation-set:{bound_set.validation_set}",
        )
        if found is None:
            continue
        if found.base_digest != dataset.base_digest:
            reasons.append(SET_OF_ANOTHER_BASE(subject, rendered=found.base, base=dataset.base))
        if dataset_kind is not None and found.dataset_kind != dataset_kind:
            reasons.append(SET_OF_ANOTHER_KIND(subject, set_kind=found.dataset_kind, dataset_kind=str(dataset_kind)))
        newest = find_sets(state, (found.name,), dataset.base_digest).get(found.name)
        if newest is not None and newest.version > found.version:
            reasons.append(SET_NOT_NEWEST(subject, newest=newest.version))
    return reasons


def find_gate_problems(state: State, purpose: str, dataset: Dataset, gates: str | None) -> Reasons:
    """Return the reasons against the evaluation of an order to train.

    They are a missing gates file that the policy requires, and too many held-out rows.
    """
    reasons = []
    required = state.parameters.required_gates
    if required and purpose == "release" and gates not in required:
        reasons.append(GATES_REQUIRED(required=required))
    items = count_items(dataset.facts)
    if items is not None and items > MOST_ITEMS:
        subject = f"dataset:{versioned(dataset.name, dataset.version)}"
        reasons.append(TOO_MANY_ROWS(subject, rows=items, limit=MOST_ITEMS))
    return reasons


def check_evaluation(
    case: Case, run: Run, adapter: str, files: Mapping[str, str], metrics: Mapping[str, Mapping[str, object]]
) -> AdapterEvaluation:
    """Check the evaluation that an `adapter.sealed` entry records, and return it.

    `files`: the digests of the manifest's files, by path. Everything that follows from the entry and the ledger is
    computed again here. Only `verify_verdict`, which needs the sealed folder, checks that the verdict follows from the
    items.

    Raises: Denied or Tampered for a contradiction.
    """
    local = [one.set for one in run.local_sets]
    digests = {name: files.get(items_path(name)) for name in (HELD_OUT, *sets_by_name(run), *local)}
    for name, digest in digests.items():
        if digest is None:
            raise Denied(f"{case.place}: manifest: expected {items_path(name)}, got none")
    items = {name: digest for name, digest in digests.items() if digest is not None}
    verdict = None if run.gates is None else _check_verdict(case, run, files, items, metrics)
    _check_no_others(case, files, items, verdict)
    return AdapterEvaluation(
        adapter=adapter,
        run=run.id,
        dataset=run.dataset,
        items=items[HELD_OUT],
        gates=run.gates,
        verdict=None if verdict is None else digest_bytes(case.documents["verdict"]),
        target_passed=None if verdict is None else verdict.target_passed,
        regression_passed=None if verdict is None else verdict.regression_passed,
        passed=None if verdict is None else verdict.passed,
        index=case.entry.index,
        sets=tuple(
            SetEvaluation(validation_set=version, items=items[name]) for name, version in sets_by_name(run).items()
        ),
        local_sets=tuple(
            LocalSetEvaluation(set=one.set, digest=one.digest, items=items[one.set]) for one in run.local_sets
        ),
    )


def _check_no_others(case: Case, files: Mapping[str, str], items: Mapping[str, str], verdict: Verdict | None) -> None:
    """Check that the entry and the manifest have no gates, verdict or items besides those of the evaluation."""
    bound = sorted(role for role in ("gates", "verdict") if role in case.documents)
    expected = [] if verdict is None else ["gates", "verdict"]
    case.require(bound == expected, "documents", f"{expected}, as the run's order bound gates or none", bound)
    unexpected = [path for path in (GATES_FILE, VERDICT_FILE) if path in files and verdict is None]
    case.require(not unexpected, "manifest", "no verdict, since the run's order bound no gates", unexpected)
    named = {items_path(name) for name in items}
    named |= set() if verdict is None else {items_path(one.set, released=True) for one in verdict.evaluated}
    unexpected = sorted(path for path in files if path.startswith("items") and path not in named)
    case.require(not unexpected, "manifest", "no other items than those that were evaluated", unexpected)


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
    case: Case,
    gates: GatesFile,
    verdict: Verdict,
    basis: VerdictBasis,
    items: Mapping[str, str],
    files: Mapping[str, str],
) -> None:
    """Check that the verdict names the records of items that the ledger and the sealed folder have."""
    expected: dict[tuple[str, str], str | None] = {
        ("run", gate.set): items[gate.set] for gate in gates.gates if gate.set in items
    }
    for key, record in basis.others.items():
        if record is not None:
            expected[key] = files.get(record.path) if record.adapter is None else record.digest
    for gate, result in zip(gates.gates, verdict.results, strict=True):
        unreleased = basis.others.get((gate.comparison, gate.set), ...) is None
        is_consistent = result.outcome != "not-applicable" or unreleased
        case.require(is_consistent, f"gate {gate.name}", "another outcome, since a version is released", result.outcome)
    got = {(record.model, record.set): record.digest for record in verdict.evaluated}
    case.require(got == expected and len(got) == len(verdict.evaluated), "verdict, evaluated", expected, got)


def _check_counts(
    case: Case, run: Run, verdict: Verdict, basis: VerdictBasis, metrics: Mapping[str, Mapping[str, object]]
) -> None:
    """Check the verdict's counts of earlier runs, items and training duplicates against the ledger and the metrics."""
    dataset, versions = case.state.datasets.get(run.dataset), sets_by_name(run)
    local = {record.set: record for record in run.local_sets}
    for record in verdict.evaluated:
        what = f"verdict, {record.model} on {record.set}"
        before = (basis.evaluated_before.get(record.set), basis.named_before.get(record.set))
        expectation = f"{before[0]} evaluated before" + ("" if before[1] is None else f", {before[1]} of this name")
        case.require(
            before == (record.evaluated_before, record.named_before),
            what,
            expectation,
            (record.evaluated_before, record.named_before),
        )
        found = case.state.validation_sets.get(versions.get(record.set, ""))
        facts = {} if dataset is None else dataset.facts
        if record.set in local:
            count = count_local_items(local[record.set], facts)
        else:
            count = count_items(facts) if found is None else count_items(found.facts, "rows")
        case.require(count in (None, record.items), what, f"{count} items, the rows of the set", record.items)
        set_metrics = metrics.get("sets", {}).get(record.set)
        overlap = set_metrics if isinstance(set_metrics, dict) else {}
        expected = (overlap.get("duplicates"), overlap.get("near_duplicates"))
        got = (record.duplicates, record.near_duplicates)
        case.require(got == expected, f"{what}, duplicates", f"{expected}, as the metrics say", got)
        if found is not None:
            kind, expectation = (str, "few or many, since the set is blind") if found.blind else (int, "a count")
            case.require(all(isinstance(count, kind) for count in got), f"{what}, duplicates", expectation, got)
