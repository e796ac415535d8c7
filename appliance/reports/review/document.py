"""The review page as one HTML document: no script, nothing fetched, for a screen in light or dark and for paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction

from appliance.domain.core.decisions import Conditions
from appliance.domain.evaluation.calibration import Calibration
from appliance.domain.evaluation.confusion import Confusion
from appliance.domain.evaluation.measures import show
from appliance.domain.evaluation.verdict import luck_of
from appliance.domain.releases.page.privacy import describe_privacy
from appliance.domain.releases.page.tries import describe_tries
from appliance.domain.releases.page.value import Asked, Changes, Found, Judged, ReviewPage
from appliance.reports.review.markup import Content, Markup, facts, join, lines, section, table, tag

GONE = "its text was erased, or the service withholds it"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { --ink: #1f2933; --soft: #616e7c; --line: #d2d6dc; --paper: #fff; --mark: #fdecea;
  --blue: #1f5fa8; --orange: #c05f00; --red: #b3261e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #3e4c59; --paper: #12181f;
  --mark: #3b1f1d; --blue: #6aa9ee; --orange: #f0a050; --red: #f2857b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0 0 .5rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; margin: .5rem 0; }
th, td { text-align: left; padding: .15rem .9rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } tr.marked td { background: var(--mark); color: var(--red); }
code { font: 12px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; } .soft { color: var(--soft); }
.lines { white-space: pre-wrap; } .failed { color: var(--red); font-weight: 600; } .passed { font-weight: 600; }
svg { max-width: 100%; height: auto; } figure { margin: .75rem 0; } figcaption { color: var(--soft); }
a { color: var(--blue); }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --mark: #eee; --blue: #1f5fa8;
  --orange: #c05f00; --red: #b3261e; } body { max-width: none; padding: 0; font-size: 10.5pt; }
  section { break-inside: auto; } h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


class Document:
    """`figures`: by name, each as it stands in the page. `checked`: what the client found, as (label, text)."""

    def __init__(self, page: ReviewPage, figures: Mapping[str, Markup], checked: Mapping[str, str]) -> None:
        self._page, self._figures, self._checked = page, figures, checked
        self._entries = {one.digest: one.entry for one in page.entries}

    def render(self) -> str:
        head = join(
            (
                Markup('<meta charset="utf-8">'),
                Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
                Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
                tag("title", f"Review of {self._page.adapter}"),
                tag("style", Markup(_STYLE)),
            )
        )
        body = tag("body", tag("main", *self._sections()))
        return f"<!doctype html>\n{tag('html', tag('head', head), body, lang='en')}\n"

    def _sections(self) -> list[Markup]:
        page = self._page
        return [
            tag("h1", f"Review of {page.adapter}"),
            self._status(),
            *(self._asked(one) for one in page.asked),
            section("Findings", *map(_found, page.findings)),
            self._decisions(),
            *map(_changes, page.changes),
            section("Warnings", *(tag("p", text, class_="failed") for text in page.warnings)),
            self._judged(),
            self._measures(),
            *map(self._confusion, page.confusion),
            self._calibration(),
            self._taught(),
            self._made(),
            *([] if page.privacy is None else [section("Differential privacy", facts(describe_privacy(page.privacy)))]),
            self._runs(),
            self._bound(),
            self._named(),
        ]

    def _digest(self, digest: str) -> Markup:
        """A digest, and the entry of the log that binds it."""
        entry = self._entries.get(digest)
        named = "" if entry is None else join((" ", self._entry(entry)))
        return join((tag("code", digest), named))

    def _entry(self, entry: int) -> Markup:
        known = entry in self._entries.values()
        return tag("a", f"entry {entry}", href=f"#entry-{entry}") if known else tag("span", f"entry {entry}")

    def _figure(self, name: str) -> Markup:
        return tag("figure", self._figures[name]) if name in self._figures else Markup("")

    def _status(self) -> Markup:
        page = self._page
        told: list[tuple[str, Content]] = []
        if page.revoked is not None:
            told.append(("revoked", f"by entry {page.revoked}"))
        if page.quarantined is not None:
            told.append(("quarantined", f"by entry {page.quarantined}"))
        told.append(("answers now", ", ".join(page.answers) or "no unit"))
        if not page.asked:
            told.append(("asked", "nothing: no release of it was requested"))
        return facts(told)

    def _asked(self, one: Asked) -> Markup:
        unit = f"Asked: to release {self._page.adapter} to {one.unit}"
        use = "emergency" if one.emergency else "intended use"
        told: list[tuple[str, Content]] = [
            ("asked by", join((f"{one.by}, ", self._entry(one.entry), ", by an emergency" if one.emergency else ""))),
            (use, lines(one.intended_use or GONE)),
        ]
        if not one.emergency:
            told.append(("not to be used for", lines(one.limits or GONE)))
        told += [
            ("conditions", _conditions(one.conditions)),
            ("tier", one.tier if one.emergency else f"{one.tier} ({one.exposure}, {one.purpose})"),
            ("needs", f"{one.reviewers} reviewers of {one.distinct_fields} fields"),
            ("missing", lines("\n".join(one.missing) or "nothing: a release owner may activate it")),
            ("could decide", ", ".join(f"{who.name} ({who.field})" for who in one.could_decide) or "none"),
            ("until", one.until or "policy no longer knows its words"),
            ("request", self._digest(one.order)),
        ]
        return section(unit, facts(told))

    def _decisions(self) -> Markup:
        rows = [
            (
                self._entry(one.entry),
                one.decision,
                one.unit,
                one.reviewer if one.on_behalf_of is None else f"{one.reviewer} for {one.on_behalf_of}",
                one.field,
                one.valid_until,
                _conditions(one.conditions),
                one.state,
            )
            for one in self._page.decisions
        ]
        headers = ("entry", "decision", "unit", "reviewer", "field", "valid until", "conditions", "counts")
        return section("Decisions so far", table(headers, rows))

    def _measures(self) -> Markup:
        page = self._page
        whole = [
            (who, name, _value(value))
            for who, found in page.metrics.items()
            if isinstance(found, dict)
            for name, value in found.items()
        ]
        measures = facts((one.name, one.told) for one in page.measures)
        listed = _folded("Every number", table(("of", "measure", "value"), whole))
        return section("Measured on the held-out rows", measures, listed)

    def _judged(self) -> Markup:
        judged = self._page.judged
        if judged is None:
            return section("Gates", tag("p", "None: no gate decides on this adapter."))
        word = "passed" if judged.passed else "failed"
        return join(
            (
                section(
                    f"Gates: {'passed' if judged.passed else 'not passed'}",
                    tag("p", judged.why, class_=word),
                    self._gates(judged),
                    self._figure("gates"),
                    facts(
                        [
                            ("alpha", f"{judged.gates.alpha}, {judged.gates.correction}, luck {judged.gates.luck}"),
                            ("gate set", join((f"{judged.gates.name} ", self._digest(judged.gates_digest)))),
                            ("verdict", self._digest(judged.verdict_digest)),
                        ]
                    ),
                ),
                self._records(judged),
                self._parts(judged),
            )
        )

    def _records(self, judged: Judged) -> Markup:
        """The items that were compared, and how often each set was judged on."""
        rows = [
            (
                one.set,
                one.model,
                one.items,
                one.judged_before,
                luck_of(judged.gates, one.judged_before),
                one.named_before,
                one.duplicates,
                one.near_duplicates,
                self._digest(one.digest),
            )
            for one in judged.records
        ]
        headers = ("set", "of", "rows", "runs before", "p counts", "of this name", "trained on", "nearly", "items")
        return section("Judged on", table(headers, rows))

    def _gates(self, judged: Judged) -> Markup:
        asks = {gate.name: gate.describe() for gate in judged.gates.gates}
        rows = [
            (
                join((tag("strong", result.gate), tag("div", asks[result.gate], class_="soft"))),
                result.outcome,
                _number(result.ours),
                _number(result.theirs),
                _number(result.gain),
                _span(result.lower, result.upper),
                _percent(result.confidence),
                _p(result.adjusted),
                result.items,
            )
            for result in judged.results
        ]
        headers = ("gate", "outcome", "adapter", "other", "gain", "interval", "level", "p, adjusted", "rows")
        failed = [result.outcome == "failed" for result in judged.results]
        reasons = [tag("p", f"{result.gate}: {result.reason}.", class_="soft") for result in judged.results]
        return join((table(headers, rows, marked=failed), *reasons))

    def _parts(self, judged: Judged) -> Markup:
        worse = sum(part.worse for part in judged.parts)
        rows = [
            (
                part.gate,
                f"{part.by} {part.value}",
                part.found,
                part.items,
                show(part.ours),
                show(part.theirs),
                show(part.gain),
                _span(part.lower, part.upper),
                _p(part.adjusted),
            )
            for part in judged.parts
        ]
        headers = ("gate", "part", "found", "rows", "adapter", "other", "gain", "interval", "p, adjusted")
        told = f"{worse} of {len(rows)} parts are shown to be worse. The least gain comes first."
        listed = table(headers, rows, marked=[part.worse for part in judged.parts])
        return section("Parts", tag("p", told), self._figure("parts"), listed) if rows else Markup("")

    def _confusion(self, confusion: Confusion) -> Markup:
        told = f"{confusion.right} of {confusion.items} rows right, the base {confusion.base_right}."
        pairs = [(one.expected, one.answered, one.items, one.base_items) for one in confusion.pairs]
        labels = [(one.label, one.items, one.answered, one.right, one.base_right) for one in confusion.labels]
        return section(
            f"Confusions on {confusion.set}",
            tag("p", told),
            self._figure(f"confusion-{confusion.set}"),
            table(("expected", "answered", "rows", "base's rows"), pairs),
            _folded("Every label", table(("label", "rows", "answered", "right", "base right"), labels)),
        )

    def _calibration(self) -> Markup:
        found = self._page.calibration
        if found is None:
            return Markup("")
        rows = [_calibration_row("adapter", found.adapter), _calibration_row("base", found.base)]
        headers = ("model", "expected calibration error", "95 % interval", "Brier score", "95 % interval")
        return section("Calibration", tag("p", "0 is best."), table(headers, rows), self._figure("calibration"))

    def _taught(self) -> Markup:
        taught = self._page.taught
        instruction = GONE if taught.instruction is None else taught.instruction or "none"
        body = json.dumps(taught.example["body"], ensure_ascii=False, indent=2)
        return section(
            "What it teaches",
            facts(
                [
                    ("task", taught.task),
                    ("instruction", lines(instruction)),
                    *([(f"{len(taught.labels)} labels", ", ".join(taught.labels))] if taught.labels else []),
                    ("example", lines(f"POST {taught.example['path']}\n{body}")),
                ]
            ),
        )

    def _made(self) -> Markup:
        taught, base = self._page.taught, self._page.base
        rows = [(name.replace("_", " "), str(count)) for name, count in taught.rows.items()]
        recipe = [(name, _value(value)) for name, value in sorted(self._page.bound.recipe.items())]
        return section(
            "What it was trained on and with",
            facts(
                [
                    ("dataset", join((f"{taught.dataset} ", self._digest(taught.dataset_digest)))),
                    *rows,
                    ("owner", GONE if taught.owner is None else taught.owner),
                    ("licence", taught.licence),
                    ("classification", taught.classification),
                    ("imported by", taught.imported_by),
                    ("base", join((f"{base.name} ", self._digest(base.digest)))),
                    ("base licence", base.licence),
                ]
            ),
            _folded("Recipe", table(("key", "value"), recipe)),
            _folded("Base", table(("key", "value"), [(name, _value(value)) for name, value in base.facts.items()])),
        )

    def _runs(self) -> Markup:
        words = {None: "no gates", True: "passed", False: "not passed"}
        rows = [(one.run, one.adapter, words[one.passed], f"entry {one.entry}") for one in self._page.judged_before]
        tried = tag("p", describe_tries(self._page.tried))
        return section("Judged on these rows before", tried, table(("run", "adapter", "gates", "entry"), rows))

    def _bound(self) -> Markup:
        bound = self._page.bound
        files = [(tag("code", file.path), file.size, self._digest(file.digest)) for file in bound.files]
        materials = [(one.name, self._digest(one.digest)) for one in bound.materials]
        return section(
            "What a signature binds",
            tag("p", "This manifest, and through it every file."),
            facts(
                [
                    ("manifest", self._digest(bound.manifest)),
                    ("sealed", join((self._entry(bound.sealed), f", {bound.sealed_at}"))),
                    ("run", f"{bound.run}, ordered by {bound.ordered_by}"),
                    ("order", self._digest(bound.order)),
                    *self._checked.items(),
                ]
            ),
            table(("file", "bytes", "digest"), files),
            tag("h3", "Made of, by the signed provenance"),
            table(("what", "digest"), materials),
        )

    def _named(self) -> Markup:
        """Each entry of the log that binds a digest above, once."""
        by_entry: dict[int, list[str]] = {}
        for one in self._page.entries:
            by_entry.setdefault(one.entry, []).append(one.binds)
        rows = [
            (tag("span", str(entry), id=f"entry-{entry}"), ", ".join(binds))
            for entry, binds in sorted(by_entry.items())
        ]
        return section("Entries of the log", table(("entry", "binds"), rows))


def _found(one: Found) -> Markup:
    stands = "open" if one.open else f"closed by {one.closed_by}, entry {one.closed}"
    title = f"{one.severity} {one.kind}, {stands}{', blocks every release' if one.blocks and one.open else ''}"
    told = [
        ("found", lines(one.finding or GONE)),
        ("remedy", lines(one.remedy or GONE)),
        ("retest", lines(one.retest or GONE)),
        ("found by", f"{one.finder} ({one.field}), entry {one.entry}"),
        ("owner", f"{one.owner}, due {one.due}"),
    ]
    return join((tag("h3", title, class_="failed" if one.open and one.blocks else "passed"), facts(told)))


def _changes(changes: Changes) -> Markup:
    rows = []
    for topic in ("data", "recipe", "base", "teaching", "code"):
        for change in getattr(changes, topic):
            rows.append((topic, change.what, lines(change.before or "-"), lines(change.now or "-")))
    heading = f"Changed since {changes.since}"
    told = f"{changes.since} answers {', '.join(changes.units)} now, by entry {changes.entry}."
    listed = table(("of", "what", "before", "now"), rows) or tag("p", "Nothing differs.")
    return section(heading, tag("p", told), listed)


def _folded(heading: str, content: Markup) -> Markup:
    return tag("details", tag("summary", heading), content, open="") if content else Markup("")


def _conditions(conditions: Conditions | None) -> str:
    if conditions is None:
        return "none"
    said = (
        ("not before", conditions.not_before),
        ("not after", conditions.not_after),
        ("only the tasks", ", ".join(conditions.tasks)),
        ("answers a day", conditions.answers_a_day),
    )
    return "; ".join(f"{name} {value}" for name, value in said if value)


def _calibration_row(name: str, found: Calibration) -> tuple[str, ...]:
    error, brier = found.error, found.brier
    return name, show(error.value), _span(error.lower, error.upper), show(brier.value), _span(brier.lower, brier.upper)


def _number(value: str | None) -> str:
    return "-" if value is None else show(value)


def _p(value: str | None) -> str:
    return "-" if value is None else "<\u00a00.0001" if Fraction(value) < Fraction(1, 10_000) else show(value)


def _span(lower: str | None, upper: str | None) -> str:
    return f"{_number(lower)}\u00a0to\u00a0{_number(upper)}"


def _percent(value: str | None) -> str:
    """Rounded down, so that no more is claimed than was computed."""
    if value is None:
        return "-"
    places = int(Fraction(value) * 10_000)
    return f"{places // 100}.{places % 100:02d}\u00a0%"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
