"""The review page as text, in its own order: what is asked, what changed, what was measured, what is bound."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from appliance.cli.support.output import plain, print_facts, print_line, print_table, print_text, say
from appliance.cli.support.progress import show_bytes
from appliance.cli.support.reviews import GONE, state_of, until_of

if TYPE_CHECKING:
    from appliance.domain.evaluation.calibration import Calibration
    from appliance.domain.evaluation.confusion import Confusion
    from appliance.domain.releases.page.value import Asked, Change, Changes, Decided, Found, Judged, ReviewPage

FEW_ROWS = 100
"""Held-out rows, below which a score is said to rest on few."""
SHOWN = 8
"""Lines of a list whose rest `--json` and `review report` have."""

Facts = list[tuple[str, object]]
_TOPICS = ("data", "recipe", "base", "teaching", "code")


def show(value: str) -> str:
    """Four places. What is imported here takes time that no help text should."""
    from appliance.domain.evaluation import measures

    return measures.show(value)


class PagePrinter:
    """Prints to stdout, or with `err` to stderr, before a signature. Sections that have nothing to say are left out."""

    def __init__(self, page: ReviewPage, *, err: bool = False) -> None:
        self._page, self._err, self._began = page, err, False

    def print(self, checked: Facts) -> None:
        """`checked`: which log the proofs are of."""
        page = self._page
        self._status()
        for asked in page.asked:
            self._section(f"Asked: to release {page.adapter} to {asked.unit}", _asked(asked))
        self._section("Findings", [fact for found in page.findings for fact in _found(found)])
        self._section("Decisions so far", [_decided(one) for one in page.decisions])
        for changes in page.changes:
            self._changes(changes)
        self._section("Warnings", [("  warning", text) for text in page.warnings])
        self._judged()
        self._measures()
        for confusion in page.confusion:
            self._confusion(confusion)
        self._calibration()
        self._section("What it teaches", _taught(page))
        self._section("What it was trained on and with", _made(page))
        self._section("Differential privacy", _privacy(page))
        self._runs()
        self._bound(checked)

    def _heading(self, text: str) -> None:
        if self._began:
            self._line("")
        self._began = True
        self._line(text)

    def _line(self, text: str) -> None:
        say(plain(text)) if self._err else print_line(plain(text))

    def _section(self, heading: str, facts: Facts) -> None:
        if facts:
            self._heading(heading)
            print_facts(facts, err=self._err)

    def _table(self, headers: Sequence[str], rows: Iterable[Sequence[object]], least: Sequence[str] = ()) -> None:
        indented = [f"  {headers[0]}", *headers[1:]]
        cells = [[f"  {plain(row[0])}", *row[1:]] for row in rows]
        print_table(indented, cells, least=least, err=self._err)

    def _status(self) -> None:
        page = self._page
        facts: Facts = []
        if page.revoked is not None:
            facts.append(("  revoked", f"by entry {page.revoked}: it answers nobody"))
        if page.quarantined is not None:
            facts.append(("  quarantined", f"by entry {page.quarantined}: its bytes changed"))
        if page.answers:
            facts.append(("  answers now", ", ".join(page.answers)))
        if not page.asked:
            facts.append(("  asked", "nothing: no release of it was requested"))
        self._section(f"Adapter {page.adapter}", facts)

    def _changes(self, changes: Changes) -> None:
        units = ", ".join(changes.units)
        self._heading(f"Changed since {changes.since}, which answers {units} now (entry {changes.entry})")
        found: dict[str, tuple[Change, ...]] = {topic: getattr(changes, topic) for topic in _TOPICS}
        same = ", ".join(topic for topic, differs in found.items() if not differs)
        facts: Facts = [(f"  {topic}", "\n".join(map(_change, differs))) for topic, differs in found.items() if differs]
        print_facts([*facts, *([("  unchanged", same)] if same else [])], err=self._err)

    def _judged(self) -> None:
        judged = self._page.judged
        if judged is None:
            self._section("Gates", [("  gates", "none: no gate decides on this adapter")])
            return
        self._heading(f"Gates: {'passed' if judged.passed else 'not passed'}")
        print_text(f"  {plain(judged.why)}", "  ", err=self._err)
        by_name = {gate.name: gate for gate in judged.gates.gates}
        for result in judged.results:
            asks = by_name[result.gate].describe()
            facts: Facts = [("    asks", asks), ("    found", result.reason)]
            if result.lower is not None or result.upper is not None:
                facts.append(("    gain", _gain(result.gain, result.lower, result.upper, result.confidence)))
            self._line(f"  {result.gate}: {result.outcome}")
            print_facts(facts, err=self._err)
        print_facts(_luck(judged), err=self._err)
        self._parts(judged)

    def _parts(self, judged: Judged) -> None:
        if not judged.parts:
            return
        worse = sum(part.worse for part in judged.parts)
        shown = judged.parts[: max(worse, SHOWN)]
        told = f"{worse} shown to be worse" if worse else "none shown to be worse"
        self._heading(f"Parts: {len(judged.parts)}, {told}; the least gain first")
        rows = [
            (
                f"{part.by} {part.value}",
                part.found or "-",
                part.items,
                show(part.ours),
                show(part.theirs),
                _span(part.lower, part.upper),
            )
            for part in shown
        ]
        self._table(("part", "found", "rows", "adapter", "other", "gain from, to"), rows)
        self._rest(len(judged.parts) - len(shown), "parts")

    def _measures(self) -> None:
        page = self._page
        facts: Facts = [(f"  {one.name}", one.told) for one in page.measures]
        rows = page.taught.rows.get("held_out_rows")
        if facts and rows is not None and rows < FEW_ROWS:
            facts.append(("  rests on", f"{rows} rows: one answer changes much"))
        of_sets = page.metrics.get("sets")
        whole = {who: found for who, found in page.metrics.items() if who != "sets"}
        whole |= {f"set {name}": found for name, found in of_sets.items()} if isinstance(of_sets, dict) else {}
        facts += [(f"  {who}", found) for who, found in whole.items() if isinstance(found, dict)]
        self._section("Measured on the held-out rows", facts)

    def _confusion(self, confusion: Confusion) -> None:
        wrong = confusion.items - confusion.right
        right = f"{confusion.right} of {confusion.items} right, the base {confusion.base_right}"
        self._heading(f"Confusions on {confusion.set}: {right}")
        if not wrong:
            return
        rows = [(pair.expected, pair.answered, pair.items, pair.base_items) for pair in confusion.pairs[:SHOWN]]
        self._table(("expected", "answered", "rows", "base"), rows)
        self._rest(len(confusion.pairs) - len(rows), "confusions")

    def _rest(self, count: int, what: str) -> None:
        if count > 0:
            self._line(f"  and {count} more {what}: review report has all of them")

    def _calibration(self) -> None:
        found = self._page.calibration
        if found is not None:
            rows = [_calibration_row("adapter", found.adapter), _calibration_row("base", found.base)]
            self._heading("Calibration: 0 is best; with 95 % intervals")
            self._table(("model", "calibration error", "from, to", "Brier score", "from, to"), rows)

    def _runs(self) -> None:
        from appliance.domain.releases.page.tries import describe_tries

        self._heading("Tried before")
        print_text(f"  {describe_tries(self._page.tried)}", "  ", err=self._err)
        runs = self._page.judged_before
        if not runs:
            return
        self._heading(f"Judged on these rows before: {_runs(len(runs))}")
        words = {None: "no gates", True: "passed", False: "not passed"}
        self._table(
            ("run", "adapter", "gates", "entry"),
            [(one.run, one.adapter, words[one.passed], one.entry) for one in runs[:SHOWN]],
        )
        self._rest(len(runs) - SHOWN, "runs")

    def _bound(self, checked: Facts) -> None:
        bound = self._page.bound
        self._heading("What a signature binds: this manifest, and through it every file")
        print_facts([("  manifest", bound.manifest)], err=self._err)
        print_facts([(f"  {one.path}, {show_bytes(one.size)}", one.digest) for one in bound.files], err=self._err)
        facts: Facts = [
            ("  sealed", f"entry {bound.sealed}, {bound.sealed_at}"),
            ("  run", f"{bound.run}, ordered by {bound.ordered_by}"),
            ("  order", bound.order),
            *((f"  {one.name}", one.digest) for one in bound.materials if one.name != "order"),
        ]
        print_facts(facts, err=self._err)
        self._line("")
        self._line("Checked here: every file by its digest, the appliance's signature over them,")
        self._line("the provenance, the orders behind it, and their entries in the log.")
        print_facts(checked, err=self._err)
        self._line("The service's word: that no request, finding or decision is left out; tier,")
        self._line("what is missing, who could decide, which findings are open, what decisions")
        self._line("count for, which version answers now; whether it is revoked or quarantined;")
        self._line("and what was judged, tried and trained before.")


def _asked(one: Asked) -> Facts:
    use = "emergency" if one.emergency else "intended use"
    weight = one.tier if one.emergency else f"{one.tier} ({one.exposure}, {one.purpose})"
    facts: Facts = [
        ("  asked by", f"{one.by}, entry {one.entry}{', by an emergency' if one.emergency else ''}"),
        (f"  {use}", one.intended_use or GONE),
    ]
    if not one.emergency:
        facts.append(("  not to be used for", one.limits or GONE))
    return [
        *facts,
        ("  conditions", conditions_text(None if one.conditions is None else one.conditions.model_dump(mode="json"))),
        ("  tier", weight),
        ("  missing", "\n".join(one.missing) or "nothing: a release owner may activate it"),
        ("  could decide", ", ".join(f"{who.name} ({who.field})" for who in one.could_decide) or "none"),
        ("  until", one.until or "policy no longer knows its words"),
    ]


def _found(one: Found) -> Facts:
    row = one.model_dump(mode="json")
    texts = (("found", one.finding), ("remedy", one.remedy), ("retest", one.retest))
    return [(f"  entry {one.entry}", finding_text(row)), *((f"    {name}", text or GONE) for name, text in texts)]


def finding_text(row: dict[str, Any]) -> str:
    """One line: what it is, whether it blocks, whose it is, and how it stands."""
    stands = "open" if row["open"] else f"closed by {row['closed_by']}, entry {row['closed']}"
    blocks = ", blocks" if row["blocks"] else ", accepts the verdict" if row["accepts_verdict"] else ""
    about = f"{row['severity']} {row['kind']}{blocks}; found by {row['finder']} ({row['field']})"
    return f"{stands}: {about}; owner {row['owner']}, due {row['due']}"


def conditions_text(value: dict[str, Any] | None) -> str:
    if value is None:
        return "none"
    said = (
        ("not before", value["not_before"]),
        ("not after", value["not_after"]),
        ("only the tasks", ", ".join(value["tasks"])),
        ("answers a day", value["answers_a_day"]),
    )
    return "; ".join(f"{name} {what}" for name, what in said if what)


def _decided(one: Decided) -> tuple[str, object]:
    words = {"approve": "approved", "reject": "rejected"}
    place = f" on behalf of {one.on_behalf_of}" if one.on_behalf_of else ""
    who = f"{words.get(one.decision, one.decision)} for {one.unit} by {one.reviewer} ({one.field}){place}"
    row = one.model_dump(mode="json")
    return f"  entry {one.entry}", f"{who}{until_of(row)}; {state_of(row)}"


def _change(one: Change) -> str:
    """`epochs 2, was 3`; of a text of several lines, its first."""
    before, now = (None if text is None else _first_line(text) for text in (one.before, one.now))
    if before is None:
        return f"{one.what}: {now} (new)" if not one.what.startswith("labels") else f"{one.what}: {now}"
    if now is None:
        return f"{one.what}: {before} (no longer)" if not one.what.startswith("labels") else f"{one.what}: {before}"
    return f"{one.what}: {now}, was {before}"


def _first_line(text: str) -> str:
    lines = text.splitlines()
    return f"{lines[0]} …" if len(lines) > 1 else text


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _luck(judged: Judged) -> Facts:
    """How often each set was judged on before, and what of a validation set is trained on."""
    from appliance.domain.evaluation.verdict import luck_of

    facts: Facts = []
    for one in judged.records:
        if one.model != "run":
            continue
        told = f"{one.items} rows; judged on before: {_runs(one.judged_before)}; "
        if judged.gates.luck == "once":
            told += "the set judges once"
        else:
            times = luck_of(judged.gates, one.judged_before)
            told += f"each p-value counts {'once' if times == 1 else f'{times} times'}"
        if one.named_before is not None:
            told += f"; final, {_runs(one.named_before)} of this name before"
        if one.duplicates is not None:
            told += f"; trained on: {one.duplicates} of them, {one.near_duplicates} nearly"
        facts.append((f"  on {one.set}", told))
    return [*facts, ("  gate set", f"{judged.gates.name}, {judged.gates_digest}")]


def _gain(gain: str | None, lower: str | None, upper: str | None, confidence: str | None) -> str:
    level = "" if confidence is None else f", at {percent(confidence)} confidence"
    return f"{'-' if gain is None else show(gain)}, interval {_span(lower, upper)}{level}"


def percent(value: str) -> str:
    """`95 %`, `99.17 %`: rounded down, so that no more is claimed than was computed."""
    places = Fraction(value) * 10_000
    text = f"{int(places) // 100}.{int(places) % 100:02d}".rstrip("0").rstrip(".")
    return f"{text} %"


def _span(lower: str | None, upper: str | None) -> str:
    if lower is None and upper is None:
        return "-"
    return f"{'-' if lower is None else show(lower)} to {'-' if upper is None else show(upper)}"


def _calibration_row(name: str, found: Calibration) -> tuple[object, ...]:
    error, brier = found.error, found.brier
    return name, show(error.value), _span(error.lower, error.upper), show(brier.value), _span(brier.lower, brier.upper)


def _taught(page: ReviewPage) -> Facts:
    taught = page.taught
    instruction = GONE if taught.instruction is None else taught.instruction or "none"
    facts: Facts = [("  task", taught.task), ("  instruction", instruction)]
    if taught.labels:
        facts.append((f"  {len(taught.labels)} labels", ", ".join(taught.labels)))
    body = json.dumps(taught.example["body"], ensure_ascii=False)
    return [*facts, ("  example", f"POST {taught.example['path']} {body}")]


def _privacy(page: ReviewPage) -> Facts:
    from appliance.domain.releases.page.privacy import describe_privacy

    if page.privacy is None:
        return []
    return [(f"  {label}", text) for label, text in describe_privacy(page.privacy)]


def _made(page: ReviewPage) -> Facts:
    from appliance.domain.rulebook.showing import label_of, show_value

    taught, base = page.taught, page.base
    rows = ", ".join(f"{count} {name.removesuffix('_rows').replace('_', ' ')}" for name, count in taught.rows.items())
    recipe = {k: v for k, v in page.bound.recipe.items() if k not in ("base", "dataset")}
    return [
        ("  dataset", f"{taught.dataset}, entry {taught.dataset_entry}{f', rows: {rows}' if rows else ''}"),
        ("  owner", GONE if taught.owner is None else taught.owner),
        ("  licence", f"{taught.licence}; classification {taught.classification}"),
        ("  imported by", taught.imported_by),
        ("  base", f"{base.name}, licence {base.licence}"),
        *((f"  {label_of(k)}", show_value(v)) for k, v in base.facts.items() if k in ("quantisation", "compute_dtype")),
        ("  recipe", ", ".join(f"{label_of(k)} {show_value(v)}" for k, v in recipe.items())),
    ]
