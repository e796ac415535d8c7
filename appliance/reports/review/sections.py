"""The review page in sections, the same for the console, a report and a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from appliance.domain.actions.showing import label_of, show_value
from appliance.domain.core.decisions import APPROVALS
from appliance.domain.evaluation.confusion import Confusion
from appliance.domain.evaluation.verdict import CalibrationFile, EvaluatedSet, GateResult
from appliance.domain.queries.review.values import (
    LARGE_LOSS,
    PageDecision,
    PageFinding,
    ReviewPage,
    Subgroup,
    VerdictSummary,
    VersionChanges,
)
from appliance.domain.releases.approval import describe_state
from appliance.formats.core.text import show_bytes
from appliance.reports.review.blocks import (
    MARK,
    NONE,
    Bar,
    Block,
    CalibrationPlot,
    Cell,
    FactList,
    Folded,
    Part,
    Section,
    TableRow,
    draw_bars,
    draw_curve,
    draw_matrix,
    make_chip,
    make_entry,
    make_fact,
    make_note,
    make_row,
    make_table,
    make_time,
    make_written,
)
from appliance.reports.review.decision import read_reasons, show_assessment, show_decision
from appliance.reports.review.words import (
    count_of,
    describe_change,
    describe_previous_runs,
    describe_privacy,
    describe_record,
    name_decision,
    shorten_decimals,
    show_interval,
    show_number,
    show_p,
    show_percent,
)

_PASSED = {None: ("no gates", ""), True: ("passed", "good"), False: ("failed", "bad")}
_OUTCOMES = {"passed": "good", "failed": "bad"}


def make_sections(page: ReviewPage) -> tuple[Section, ...]:
    """Return the sections of a page in the order in which a reviewer needs them."""
    return tuple(_Sections(page).list_all())


def make_verification(log: str) -> Section:
    """Return the section that says what the client proved. `log` is the log against which it was proved."""
    proved = (
        "Proved here: each file by its digest, the signatures over files and provenance, the orders, and their entries "
        "in the log."
    )
    reported = (
        "Marked “reported”: values that the service computes from its state, and that cannot be checked here. The "
        "service also reports that no request, finding or decision is left out."
    )
    return Section(
        "Verification", "signature", (FactList((make_fact("Log", log),)), make_note(proved), make_note(reported))
    )


def _fold(summary: str, values: Mapping[str, object]) -> tuple[Folded, ...]:
    """Return the values of a JSON object as facts that are shown on demand."""
    facts = tuple(make_fact(label_of(name).capitalize(), show_value(value)) for name, value in sorted(values.items()))
    return (Folded(summary, FactList(facts)),) if facts else ()


class _Sections:
    """The sections of one page."""

    def __init__(self, page: ReviewPage) -> None:
        self._page = page
        self._entries = {one.digest: one.entry for one in page.entries}
        self._findings = sorted(page.findings, key=lambda one: (not one.status.open, one.order.due, one.entry))

    def list_all(self) -> Iterator[Section]:
        page = self._page
        for request in page.release_requests:
            yield show_decision(page, request)
        if not page.release_requests:
            yield show_assessment(page)
        yield self._show_adapter()
        if page.decisions:
            columns = "#Entry, Decision, *State, Unit, Reviewer, Valid until UTC, Reasons"
            table = make_table("All decisions", columns, map(_list_decision, page.decisions), rest="csv")
            yield Section("All decisions", "summary", (table,))
        yield from map(_show_finding, self._findings)
        yield from map(_show_changes, page.changes)
        yield from self._list_quality()
        yield from self._list_data()
        yield from self._list_signed()

    def _digest(self, digest: str) -> Cell:
        return Cell(digest, "digest", entry=self._entries.get(digest))

    def _show_adapter(self) -> Section:
        page, status, signed, data = self._page, self._page.status, self._page.signed_content, self._page.training_data
        states = (("revoked", status.revoked), ("quarantined", status.quarantined))
        ended = [
            (make_chip(word, "bad"), " by entry ", make_entry(entry)) for word, entry in states if entry is not None
        ]
        state: tuple[Part, ...] = ended[0] if ended else (make_chip("sealed", "good"),)
        facts = (
            make_fact("State", *state, reported=True),
            make_fact("Active for", ", ".join(status.active_for) or "no unit", reported=True),
            make_fact("Trained by", f"{signed.ordered_by}, ", Cell(signed.run, "run")),
            make_fact("Dataset by", f"{data.imported_by}, ", Cell(data.dataset, "dataset")),
            make_fact("Manifest", self._digest(signed.manifest)),
        )
        return Section(f"Adapter {page.adapter}", "summary", (FactList(facts, is_beside=True),))

    def _list_quality(self) -> Iterator[Section]:
        page = self._page
        if page.evaluation is None:
            yield Section(
                "Gates",
                "quality",
                (make_note("The run set no gates: nothing was fixed before the results were known."),),
            )
        else:
            yield self._show_gates(page.evaluation)
            if page.evaluation.subgroups:
                yield _show_subgroups(page.evaluation)
        yield from map(_show_confusion, page.confusion)
        if page.calibration is not None:
            yield _show_calibration(page.calibration)
        facts = [make_fact(one.name.capitalize(), one.summary) for one in page.measures]
        if facts and page.few_rows is not None:
            facts.append(make_fact("Rests on", f"{page.few_rows} rows: one row changes much"))
        measures = FactList(tuple(facts)) if facts else make_note("Nothing was measured.")
        numbers = shorten_decimals(page.metrics)
        of_sets = numbers.get("sets")
        metrics = {who: values for who, values in numbers.items() if isinstance(values, dict) and who != "sets"}
        metrics |= {f"set {name}": values for name, values in of_sets.items()} if isinstance(of_sets, dict) else {}
        yield Section("Measures on the held-out rows", "quality", (measures, *_fold("All numbers", metrics)))

    def _show_gates(self, found: VerdictSummary) -> Section:
        gates, tested = found.gates, [one for one in found.verdict.results if one.gain is not None]
        bars = draw_bars([(one.metric, (str(one.gain), one.lower, one.upper)) for one in tested])
        drawn = dict(zip([one.gate for one in tested], bars, strict=True))
        rules = {gate.name: gate.describe() for gate in gates.gates}
        columns = "Gate, Outcome, #Adapter, #Other, #Gain, Interval, #Level, #Adjusted p, #Rows"
        rows = (_list_result(one, rules[one.gate], drawn.get(one.gate)) for one in found.verdict.results)
        before = f"Corrected for {count_of(found.runs_before, 'earlier evaluation')} on the set used most often"
        settings = f" alpha {gates.alpha}, {gates.correction}, correction for earlier runs: {gates.run_correction}"
        facts = (
            make_fact("Gates file", f"{gates.name} ", self._digest(found.verdict.gates), settings),
            make_fact("Earlier evaluations", f"{before}: p-values are multiplied by {found.correction_factor}"),
            make_fact("Verdict", self._digest(found.verdict_digest)),
        )
        blocks = (
            make_note(found.verdict.why, tone="lead"),
            make_table("Gates", columns, rows, rest="csv"),
            FactList(facts),
        )
        return Section("Gates", "quality", blocks, (make_chip(*_PASSED[found.verdict.passed]),))

    def _list_data(self) -> Iterator[Section]:
        page = self._page
        yield self._show_training_data()
        if page.privacy is not None:
            reported = ("With earlier runs", "Not covered")
            facts = (
                make_fact(label, text, reported=label in reported) for label, text in describe_privacy(page.privacy)
            )
            yield Section("Differential privacy", "data", (FactList(tuple(facts)),))
        if page.evaluation is not None:
            columns = "Set, Answers of, #Rows, #Runs before, #Of this name, #Duplicates, #Near-duplicates, Items"
            records = (self._list_record(page.evaluation, one) for one in page.evaluation.verdict.evaluated)
            yield Section("Evaluated sets", "data", (make_table("Evaluated sets", columns, records, rest="csv"),))
        previous = make_note(describe_previous_runs(page.previous_runs))
        yield Section("Previous runs", "data", (previous,), is_reported=True)
        rows = (
            make_row(
                Cell(one.run, "run"),
                Cell(one.adapter, "adapter"),
                make_chip(*_PASSED[one.passed]),
                make_entry(one.entry),
            )
            for one in page.evaluated_before
        )
        title = f"Evaluated on the same rows before: {count_of(len(page.evaluated_before), 'run')}"
        blocks = (make_table(title, "Run, Adapter, Gates, #Entry", rows, most=50),) if page.evaluated_before else ()
        yield Section(title, "data", blocks, is_reported=True)

    def _show_training_data(self) -> Section:
        data, base = self._page.training_data, self._page.base
        example = f"POST {data.example['path']}\n{json.dumps(data.example['body'], ensure_ascii=False, indent=1)}"
        labels = [make_fact(f"{len(data.labels)} labels", ", ".join(data.counted_labels))] if data.labels else []
        facts = (
            make_fact("Instruction", make_written(data.instruction)),
            make_fact("Dataset kind", data.dataset_kind),
            *labels,
            make_fact("Dataset", Cell(data.dataset, "dataset"), " ", self._digest(data.dataset_digest)),
            *(make_fact(label_of(name).capitalize(), f"{count:,}") for name, count in data.rows.items()),
            make_fact("Owner", make_written(data.owner)),
            make_fact("Licence", data.licence),
            make_fact("Classification", data.classification),
            make_fact("Imported by", f"{data.imported_by}, entry ", make_entry(data.dataset_entry)),
            make_fact("Base", f"{base.name} ", self._digest(base.digest)),
            make_fact("Base's licence", base.licence),
        )
        folded = (
            Folded("Example request", make_note(example, tone="code")),
            *_fold("The base, as it was used", base.facts),
        )
        return Section("Training data", "data", (FactList(facts, is_beside=True), *folded))

    def _list_record(self, found: VerdictSummary, one: EvaluatedSet) -> TableRow:
        own = one.model == "run"
        return make_row(
            *(one.set, "the adapter" if own else one.model, one.items, one.evaluated_before, one.named_before),
            *(one.duplicates, one.near_duplicates, self._digest(one.digest)),
            line=(one.set if own else f"{one.set}, {one.model}", describe_record(found.gates, one)),
        )

    def _list_signed(self) -> Iterator[Section]:
        signed = self._page.signed_content
        facts = (
            make_fact("Manifest", self._digest(signed.manifest)),
            make_fact("Sealed", make_time(signed.sealed_at), ", entry ", make_entry(signed.sealed)),
            make_fact("Run", Cell(signed.run, "run"), f", ordered by {signed.ordered_by}"),
            make_fact("Order", self._digest(signed.order)),
        )
        files = (
            make_row(one.path, size, self._digest(one.digest), line=(f"{one.path}, {size}", one.digest))
            for one, size in ((one, show_bytes(one.size)) for one in signed.files)
        )
        note = make_note("A signature binds this manifest, and through it every file.")
        table = make_table("Files", "File, #Size, Digest", files, rest="csv")
        yield Section("Signed content", "signature", (note, FactList(facts), table, *_fold("Recipe", signed.recipe)))
        materials = (make_row(name, self._digest(one), line=(name, one)) for name, one in signed.materials.items())
        title = "Inputs, by the signed provenance"
        yield Section(title, "signature", (make_table(title, "Name, Digest", materials),))
        by_entry: dict[int, list[str]] = {}
        for one in self._page.entries:
            by_entry.setdefault(one.entry, []).append(one.binds)
        named = (make_row(Cell(str(entry), "anchor"), ", ".join(binds)) for entry, binds in sorted(by_entry.items()))
        title = "Entries of the log"
        yield Section(title, "entries", (make_table(title, "#Entry, Binds", named),))


def _list_decision(one: PageDecision) -> TableRow:
    order, status, reasons = one.order, one.status, "\n".join(read_reasons(one))
    valid, approves = status.state == "valid", order.decision in APPROVALS
    state = describe_state(status.state, status.superseded_by, order.valid_until)
    place = "" if order.on_behalf_of is None else f" on behalf of {order.on_behalf_of}"
    renews = approves and status.again_by and (order.valid_until is None or status.again_by < order.valid_until)
    again = (Cell(" renew by ", "quiet"), make_time(status.again_by)) if renews else ()
    until = "" if order.valid_until is None else f" until {order.valid_until}"
    did = name_decision(order.decision)
    line = f"{did} for {order.unit} by {order.signer} ({order.review_function}){place}{until}; {state} (reported)"
    return make_row(
        make_entry(one.entry),
        make_chip(did, ("good" if approves else "bad") if valid else ""),
        make_chip(state, "good" if valid else ""),
        *(order.unit, f"{order.signer} ({order.review_function}){place}", (make_time(order.valid_until), *again)),
        reasons,
        line=(f"Entry {one.entry}", f"{line}\n{reasons}"),
    )


def _show_finding(one: PageFinding) -> Section:
    status = one.status
    chips = [make_chip("open", "wait") if status.open else make_chip("closed", "good")]
    chips += [make_chip("blocks", "bad")] if one.order.blocks and status.open else []
    chips += [make_chip("accepts the verdict", "wait")] if one.order.accepts_verdict else []
    facts = [
        make_fact("Found", make_written(one.open_text(one.order.finding))),
        make_fact("Owner", f"{one.order.owner}, due ", make_time(one.order.due), " UTC"),
        make_fact("Remediation", make_written(one.open_text(one.order.remedy))),
        make_fact("Closed when", make_written(one.open_text(one.order.retest))),
        make_fact("Found by", f"{one.order.signer} ({one.order.review_function}), entry ", make_entry(one.entry)),
    ]
    if status.closed is not None:
        facts.append(make_fact("Closed", f"by {status.closed_by}, entry ", make_entry(status.closed), reported=True))
    chips.append(MARK)
    title = f"Finding {one.entry}: {one.order.severity} {one.order.kind}"
    return Section(title, "findings", (FactList(tuple(facts)),), tuple(chips), finding=one.entry, is_open=status.open)


def _show_changes(changes: VersionChanges) -> Section:
    rows = [
        make_row(
            topic,
            _name_field(one.what),
            Cell(one.before or NONE, "del"),
            Cell(one.now or NONE, "ins"),
            line=(topic, text),
        )
        for topic, found in changes.topics
        for one, text in ((one, describe_change(one)) for one in found)
    ]
    same = ", ".join(topic for topic, found in changes.topics if not found)
    title = f"Changes since {changes.since}"
    active = f"{changes.since} is active for {', '.join(changes.units)}, released by entry "
    note = make_note(
        active, make_entry(changes.entry), ". Compared are the measures, all fields of both runs' orders, and the code."
    )
    table = (make_table(title, "Topic, Field, Before, Now", rows, rest="csv"),) if rows else ()
    unchanged = (make_note(f"Unchanged: {same}."),) if same else ()
    return Section(title, "changes", (note, *table, *unchanged))


def _name_field(name: str) -> str:
    """Return a field's name as words. The names of labels and gates, which follow a word, stay as they are."""
    return name if " " in name else name.replace("_", " ")


def _list_result(one: GateResult, rule: str, bar: Bar | None) -> TableRow:
    interval, level = show_interval(one.lower, one.upper), show_percent(one.confidence)
    failed = one.outcome == "failed"
    gain = "" if one.gain is None else f"\ngain {show_number(one.gain)}, interval {interval}, at {level} confidence"
    return make_row(
        (Cell(f"{one.gate}\n"), Cell(f"{rule}\n", "quiet"), Cell(one.reason)),
        make_chip(one.outcome, _OUTCOMES.get(one.outcome, "")),
        *map(show_number, (one.ours, one.theirs, one.gain)),
        Cell(interval, "interval", "bad" if failed else "", bar=bar),
        *(level, show_p(one.adjusted), one.items),
        line=(f"{one.gate}: {one.outcome}", f"{rule}\n{one.reason}{gain}"),
        marked=failed,
    )


def _show_subgroups(found: VerdictSummary) -> Section:
    listed = [one.result for one in found.subgroups]
    pairs = zip(found.subgroups, listed, strict=True)
    spans = [(each.gate, (one.gain, one.lower, one.upper)) for each, one in pairs]
    few, worse = sum(one.adjusted is None for one in listed), sum(one.worse for one in listed)
    lost = sum(one.lost_much and not one.result.worse for one in found.subgroups)
    tested = count_of(len(listed) - few, "subgroup")
    text = f"Significant regression in {worse} of {tested}." if worse else f"No significant regression in {tested}."
    text += f" {few} of {count_of(len(listed), 'subgroup')} could not be evaluated: too few rows." if few else ""
    much = f"{show_number(str(LARGE_LOSS))} or more, which no test shows"
    text += f" {count_of(lost, 'other subgroup')} lost {much}." if lost else ""
    columns = "Subgroup, Gate, Found, #Rows, #Adapter, #Other, #Gain, Interval, #Adjusted p"
    note = make_note(f"{text} The smallest gain comes first.")
    table = make_table(
        "Subgroups", columns, map(_list_subgroup, found.subgroups, draw_bars(spans)), most=60, rest="csv"
    )
    return Section("Subgroups", "quality", (note, table))


def _list_subgroup(one: Subgroup, bar: Bar) -> TableRow:
    result = one.result
    interval = Cell(show_interval(result.lower, result.upper), "interval", "bad" if result.worse else "", bar=bar)
    return make_row(
        *(f"{result.by} {result.value}", one.gate),
        make_chip(one.found, "bad" if result.worse else "wait") if result.worse or one.lost_much else one.found,
        result.items,
        *map(show_number, (result.ours, result.theirs, result.gain)),
        interval,
        show_p(result.adjusted),
        marked=result.worse or one.lost_much,
    )


def _show_confusion(one: Confusion) -> Section:
    title, matrix = f"Confusions on {one.set}", draw_matrix(one)
    blocks: list[Block] = [make_note(f"{one.right} of {one.items} rows right, the base {one.base_right}.")]
    blocks += [] if matrix is None else [matrix]
    pairs = (make_row(pair.expected, pair.answered, pair.items, pair.base_items) for pair in one.pairs)
    if one.pairs:
        blocks.append(make_table(title, "Expected, Answered, #Rows, #Base's rows", pairs, most=20))
    labels = (make_row(each.label, each.items, each.answered, each.right, each.base_right) for each in one.labels)
    table = make_table(f"Labels of {one.set}", "Label, #Rows, #Answered, #Right, #Base right", labels)
    return Section(title, "quality", (*blocks, Folded(count_of(len(one.labels), "label"), table)))


def _show_calibration(found: CalibrationFile) -> Section:
    rows = (
        make_row(
            one.model,
            *(show_number(one.error.value), show_interval(one.error.lower, one.error.upper)),
            *(show_number(one.brier.value), show_interval(one.brier.lower, one.brier.upper)),
        )
        for one in (found.adapter, found.base)
    )
    columns = "Model, #Calibration error, Its interval, #Brier score, Interval of the score"
    label = "Share right (up) by mean confidence (right), from 0 to 1. On the dashed line, both are equal."
    plot = CalibrationPlot("calibration", label, (draw_curve(found.adapter), draw_curve(found.base)))
    return Section(
        "Calibration",
        "quality",
        (
            make_note("The expected calibration error and the Brier score, with 95 % intervals. 0 is best."),
            make_table("Calibration", columns, rows),
            plot,
        ),
    )
