"""The page of an adapter under review: the review page's value in tabs, quick for thousands of items."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast, get_args
from urllib.parse import quote

import pytest

from appliance.domain.core.decisions import Conditions
from appliance.domain.core.names import encode_value
from appliance.domain.evaluation.confusion import Confusion, count_confusions, measure_calibration
from appliance.domain.evaluation.gates import Gate, GatesFile
from appliance.domain.evaluation.items import Answer, EvaluationItem, Slices, encode_items
from appliance.domain.evaluation.verdict import CalibrationFile
from appliance.domain.queries.review import values
from appliance.domain.queries.review.changes import SealedVersion
from appliance.reports.review.blocks import SIDE, WIDTH, CalibrationPlot, TableBlock
from appliance.reports.review.sections import make_sections
from appliance.web.console.reviewers.adapter import Tab
from appliance.workflows.releases.review import ItemCountCache, review_page
from scripts.kit.item_groups import digest
from tests.kit.console import Browser, Console, console
from tests.kit.founded import EVALUATED, FILES
from tests.kit.timing import is_within

ITEMS, LABELS = 3_080, 77
GATES = GatesFile(
    gates=(
        Gate(
            **{"name": "better", "kind": "target", "set": "held-out", "metric": "accuracy", "comparison": "base"},
            **{"claim": "better", "test": "mcnemar", "least_items": 20, "slices": ("label",)},
        ),
    ),
    name="classification",
    seed=1,
    version=1,
)


def make_items(count: int, labels: int, rows: Sequence[str] = ()) -> tuple[EvaluationItem, ...]:
    """Return items: the adapter is right except for a fifth of the rows, the base for half; at label-00 inversely."""

    def answer(label: int, right: bool) -> Answer:
        chosen = label if right else (label + 1) % labels
        return Answer(confidence=700_000 + 100_000 * right, label=f"label-{chosen:02}", right=right, scores={})

    found = []
    for n in range(count):
        label, turn = n % labels, n // labels
        ours, theirs = (turn % 5 > 0, turn % 2 > 0) if label else (turn % 5 == 0, True)
        slices = Slices(column=None, label=f"label-{label:02}", length="short")
        row = rows[n] if rows else digest(f"row {n}")
        found.append(
            EvaluationItem(
                adapter=answer(label, ours), base=answer(label, theirs), cluster=None, row=row, slices=slices
            )
        )
    return tuple(sorted(found, key=lambda one: one.row))


def seal_second(desk: Console) -> None:
    """clauses@2 with a release request, a gate and a calibration, of another rank than the active clauses@1."""
    site, items = desk.site, make_items(len(EVALUATED), 4, EVALUATED)
    adapter, base = (measure_calibration(items, model, 1) for model in ("adapter", "base"))
    found = CalibrationFile(adapter=adapter, base=base, seed=1, version=1)
    files = {
        **FILES,
        "recipe.json": b'{"rank":16}',
        "items.jsonl": encode_items(items),
        "calibration.json": encode_value(found),
    }
    site.seal(site.train({"epochs": 2}, gates=GATES), 2, items=files["items.jsonl"], files=files)
    site.request_release(version=2, intended_use=site.text("To sort letters."), limits=site.text("No decisions."))


def seal_large(desk: Console) -> None:
    """clauses@3, of thousands of items."""
    items = encode_items(make_items(ITEMS, LABELS))
    desk.site.seal(desk.site.train({"epochs": 3}), 3, items=items, files={**FILES, "items.jsonl": items})


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console("released", tmp_path_factory.mktemp("c") / "h") as made:
        seal_second(made)
        seal_large(made)
        yield made


@pytest.fixture(scope="module")
def browser(desk: Console) -> Browser:
    return desk.signed_in("rita")


def _text(browser: Browser, tab: str, name: str = "clauses@2") -> str:
    """Return the visible text: without tags, with single spaces."""
    return " ".join(re.sub(r"<[^>]*>", " ", _html(browser, tab, name)).split())


def _html(browser: Browser, tab: str, name: str = "clauses@2") -> str:
    answer = browser.get(f"/adapters/{name}?tab={tab}")
    assert answer.status_code == 200, answer.text
    return answer.text[answer.text.index('id="tab"') :]


def _rows(browser: Browser, tab: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(browser.get(f"/adapters/clauses@2.csv?tab={tab}").text)))


@pytest.mark.parametrize("tab", get_args(Tab))
def test_its_json_is_the_review_page_whichever_tab_is_open(desk: Console, browser: Browser, tab: str) -> None:
    got = browser.get(f"/adapters/clauses@2.json?tab={tab}").json()
    expected = review_page(desk.context, "clauses@2").model_dump(mode="json")
    assert got == expected and got["evaluation"]["subgroups"] and got["changes"] and got["calibration"]


@pytest.mark.parametrize("tab", get_args(Tab))
def test_a_tab_has_neither_style_nor_script_in_it(browser: Browser, tab: str) -> None:
    """The Content-Security-Policy would drop both."""
    assert not re.search(r"<(script|style)|\sstyle=|\son[a-z]+=", _html(browser, tab))


def test_the_summary_says_what_is_asked_by_whom_and_who_is_missing_until_when(desk: Console, browser: Browser) -> None:
    status = review_page(desk.context, "clauses@2").release_requests[0].status
    text = _text(browser, "summary")
    for words in ("To sort letters.", "No decisions.", "olga, entry 34", "0 of 2 approvals", "rita (privacy)"):
        assert words in text, words
    assert status.until is not None and status.until[:10] in text
    shown = " ".join(html.unescape(text).split())
    blockers = {one.code: one for one in status.blockers}
    assert blockers.keys() == {"verdict-failed", "approvals-missing", "review-functions-too-few"}
    assert blockers["verdict-failed"].sentence in shown and blockers["verdict-failed"].remedy in shown
    assert "Needs 2 approvals, from different review functions." in shown
    assert "These people can give one: raul (model-risk), rita (privacy)." in shown


def test_the_summary_says_that_a_site_has_too_few_reviewers(tmp_path: Path) -> None:
    with console("sealed", tmp_path / "h") as desk:
        desk.site.request_release(exposure="customers", purpose="decide", tier="high")
        text = html.unescape(_text(desk.signed_in("rita"), "summary", "clauses@1"))
        assert "Needs 3 approvals" in text
        lack = "That is not enough: an administrator gives one more person the role of a reviewer."
        assert f"raul (model-risk), rita (privacy). {lack}" in text
        desk.site.review("rita", "privacy")
        text = html.unescape(_text(desk.signed_in("rita"), "summary", "clauses@1"))
        assert f"raul (model-risk). {lack}" in text


def test_paper_has_every_tab_and_a_screen_only_the_open_one(desk: Console, browser: Browser) -> None:
    whole = browser.get("/adapters/clauses@2?tab=quality").text
    paper = whole[whole.index('<div class="on-paper">') : whole.index('id="tab"')]
    titles = re.findall(r"<h2>([^<]*)</h2>", paper)
    wanted = ("Release clauses@2 to legal", "Changes since clauses@1", "Gates", "Training data", "Signed content")
    places = [titles.index(title) for title in wanted]
    assert places == sorted(places) and "History" in titles
    assert "<h2>History" not in whole[whole.index('id="tab"') :] and 'class="choice"' not in paper


def test_the_summary_has_the_sentence_of_the_verdict(desk: Console, browser: Browser) -> None:
    found = review_page(desk.context, "clauses@2").evaluation
    assert found is not None and found.verdict.why in html.unescape(_text(browser, "summary"))


@pytest.mark.parametrize("decision", ["approve", "approve-with-conditions", "request-changes", "reject"])
def test_each_decision_is_a_link_to_its_form_filled_in(browser: Browser, decision: str) -> None:
    links = [html.unescape(link) for link in re.findall(r'href="(/sign/review[^"]*)"', _html(browser, "summary"))]
    (link,) = [one for one in links if one.endswith(f"given={quote(f'decision:{decision}', safe='')}")]
    form = browser.get(link).text
    assert f'<option value="{decision}" selected>' in form
    assert "clauses@2" in form and "legal" in form


@pytest.mark.parametrize(
    ("who", "offered"),
    [
        ("rita", ["Approve", "Request changes", "Reject", "Approve with conditions", "Write a finding"]),
        ("otto", ["Activate"]),
        ("anna", None),
        ("audrey", None),
    ],
)
def test_a_person_is_offered_what_their_roles_may_sign(desk: Console, who: str, offered: list[str] | None) -> None:
    shown = re.search(r'<p class="actions review-decide">(.*?)</p>', _html(desk.signed_in(who), "summary"))
    assert (None if shown is None else re.findall(r"<a[^>]*>([^<]*)</a>", shown[1])) == offered


@pytest.mark.parametrize(
    ("who", "orders"),
    [
        ("rita", {"suspend-release", "revoke-adapter"}),
        ("anna", {"suspend-release", "revoke-adapter"}),
        ("otto", {"suspend-release", "revoke-adapter"}),
        ("olga", set()),
        ("audrey", set()),
    ],
)
def test_who_may_stop_an_adapter_finds_the_buttons_where_it_serves(desk: Console, who: str, orders: set[str]) -> None:
    browser, stops = desk.signed_in(who), {"suspend-release", "revoke-adapter"}
    for tab in ("summary", "history"):
        assert set(re.findall(r"/sign/([a-z-]+)", _html(browser, tab, "clauses@1"))) & stops == orders
    serves_no_unit = set(re.findall(r"/sign/([a-z-]+)", _html(browser, "summary"))) & stops
    assert serves_no_unit == orders - {"suspend-release"} - ({"revoke-adapter"} if who == "otto" else set())


def test_a_requester_withdraws_the_request_or_makes_it_again_with_the_same_words(desk: Console) -> None:
    olga = desk.signed_in("olga")
    links = [html.unescape(one) for one in re.findall(r'href="(/sign/[^"]*)"', _html(olga, "summary"))]
    (again,) = [one for one in links if one.startswith("/sign/request-release")]
    filled = olga.filled(again)
    assert (filled["intended_use"], filled["limits"]) == ("To sort letters.", "No decisions.")
    assert (filled["adapter"], filled["unit"], filled["exposure"]) == ("clauses@2", "legal", "internal")
    (withdraw,) = [one for one in links if one.startswith("/sign/withdraw-request")]
    assert olga.filled(withdraw) | {"adapter": "clauses@2", "unit": "legal"} == olga.filled(withdraw)
    assert "/sign/withdraw-request" in _html(desk.signed_in("anna"), "summary")
    assert "/sign/withdraw-request" not in _html(desk.signed_in("rita"), "summary")


def test_a_reviewer_can_withdraw_a_decision_of_their_own(tmp_path: Path) -> None:
    with console("sealed", tmp_path / "h") as desk:
        desk.site.request_release()
        desk.site.review("rita", "privacy", decision="reject")
        link = "/sign/review?given=adapter%3Aclauses%401&given=unit%3Alegal&given=decision%3Awithdraw"
        assert link in html.unescape(_html(desk.signed_in("rita"), "summary", "clauses@1"))
        assert "decision%3Awithdraw" not in _html(desk.signed_in("raul"), "summary", "clauses@1")


def test_a_part_that_changed_is_to_be_opened_again_before_the_form_is_filled_in(tmp_path: Path) -> None:
    with console("sealed", tmp_path / "h") as desk:
        desk.site.request_release()
        browser = desk.signed_in("rita")
        assert "Before you approve in the browser, open Changes , Findings and Quality ." in _text(
            browser, "summary", "clauses@1"
        )
        for tab in ("changes", "quality", "findings"):
            _html(browser, tab, "clauses@1")
        assert "Before you approve" not in _text(browser, "summary", "clauses@1")
        desk.site.find("raul", finding=desk.site.text("It is slow."), review_function="model-risk")
        assert "open Findings again, where something has changed." in _text(browser, "summary", "clauses@1")


def test_the_three_decisions_have_the_same_weight(browser: Browser) -> None:
    shown = re.search(r'<p class="actions review-decide">(.*?)</p>', _html(browser, "summary"))
    assert shown is not None
    assert re.findall(r'<a class="choice"[^>]*>([^<]*)</a>', shown[1]) == ["Approve", "Request changes", "Reject"]
    assert 'class="button"' not in shown[1]


def test_changes_are_what_differs_from_the_version_that_answers_and_nothing_else(browser: Browser) -> None:
    first, *rest = _rows(browser, "changes")
    assert first == {"since": "clauses@1", "of": "recipe", "what": "rank", "before": "8", "now": "16"}
    # The first version had no gates.
    assert {(one["of"], one["before"]) for one in rest} == {("evaluation", "")}
    assert {one["what"] for one in rest} >= {"gates file", "gates digest", "alpha", "seed"}
    text = _text(browser, "changes")
    assert "Changes since clauses@1" in text and "recipe rank 8 16" in text
    assert "nothing to compare with" in _text(browser, "changes", "clauses@1")


@pytest.mark.thorough
def test_a_rejection_is_said_first_with_its_reason_and_each_approval_with_its_conditions(tmp_path: Path) -> None:
    with console("sealed", tmp_path / "h") as desk:
        site = desk.site
        site.request_release()
        limit = Conditions(served_models=(), not_before=None, not_after=None, answers_a_day=3)
        site.review("raul", "model-risk", decision="approve-with-conditions", conditions=limit)
        browser = desk.signed_in("rita")
        text = html.unescape(_text(browser, "summary", "clauses@1"))
        assert "Conditions limit its use. At most 3 responses a day, by the approval of raul" in text
        assert "approved with conditions raul (model-risk)" in text and "Conditions: none" not in text
        assert "Needs 1 more approval, from a review function other than model-risk." in text
        assert "These people can give one: rita (privacy)." in text
        site.review("raul", "model-risk", decision="reject", meaning=site.text("It names tenants."))
        page, text = _html(browser, "summary", "clauses@1"), _text(browser, "summary", "clauses@1")
        assert '<p><span class="chip is-bad">rejected</span>' in page
        assert re.search(r"Decisions rejected raul \(model-risk\), entry \d+ Reason: Because. Meaning: It names", text)
        site.review("raul", "model-risk", decision="request-changes", reason=site.text("Train with more rows."))
        text = _text(browser, "summary", "clauses@1")
        assert "Decisions changes requested raul (model-risk), entry" in text and "Train with more rows." in text
        assert "raul requested changes by entry" in text and "Needs 2 approvals" in text
        site.review("raul", "model-risk", decision="withdraw")
        text = _text(browser, "summary", "clauses@1")
        assert "0 of 2 approvals" in text and "Decisions Nobody has decided yet." in text


@pytest.mark.parametrize(
    ("exposure", "purpose", "tier", "tone", "words"),
    [
        ("internal", "assist", "low, 1 of 3", "good", "Only the organisation sees its responses (internal)."),
        ("customers", "assist", "medium, 2 of 3", "wait", "Customers see its responses (customers)."),
        ("public", "decide", "high, 3 of 3", "bad", "Its responses are decisions (decide)."),
    ],
)
def test_a_high_tier_does_not_look_like_a_low_one(
    tmp_path: Path, exposure: str, purpose: str, tier: str, tone: str, words: str
) -> None:
    with console("sealed", tmp_path / "h") as desk:
        desk.site.request_release(exposure=exposure, purpose=purpose, tier=tier.split(",")[0])
        browser = desk.signed_in("rita")
        page = _html(browser, "summary", "clauses@1")
        row = re.search(r'<td><a href="/adapters/clauses@1">.*?</tr>', browser.get("/reviews").text, re.S)
    assert f'<p class="banner is-{tone}"><span><strong>Tier {tier}.</strong>' in page and words in page
    assert f'<span class="chip is-{tone}">{tier.split(",")[0]}</span>' in (row[0] if row else "")
    assert "Trained on internal data." in page


def test_the_evidence_is_beside_the_request(desk: Console, browser: Browser) -> None:
    page = html.unescape(_html(browser, "summary"))
    tiles = re.findall(r'<li class="tile([^"]*)"><p class="label">([^<]*)</p><p class="figure num">([^<]*)</p>', page)
    assert tiles == [
        (" is-bad", "Gain, gate better", "+0.0400"),
        (" is-bad", "Worst subgroup", "-0.8000"),
        ("", "Held-out rows", "100"),
        ("", "Privacy guarantee", "none"),
        ("", "Earlier evaluations", "1"),
    ]
    text = html.unescape(_text(browser, "summary"))
    assert "Interval -0.1391 to 0.2163 at 98.33 % confidence." in text
    assert "Corrected for 1 earlier evaluation. 1 under the name clauses." in text
    assert page.index("Worst subgroup") < page.index("For and against") < page.index("What is missing")


@pytest.mark.parametrize(
    ("who", "links"), [("rita", {"view-samples", "try-adapter"}), ("audrey", {"view-samples"}), ("olga", set())]
)
def test_rows_are_seen_by_a_signed_request_of_those_who_may(desk: Console, who: str, links: set[str]) -> None:
    page = _html(desk.signed_in(who), "summary")
    assert set(re.findall(r'href="/sign/(view-samples|try-adapter)\?', page)) == links


def test_a_score_of_few_rows_says_so(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "one row changes much" not in _text(browser, "quality")
    monkeypatch.setattr(values, "FEW_ROWS", 101)
    assert "Rests on 100 rows: one row changes much" in _text(browser, "quality")


def test_a_part_that_is_worse_is_marked_and_comes_first(desk: Console, browser: Browser) -> None:
    evaluation = review_page(desk.context, "clauses@2").evaluation
    assert evaluation is not None
    assert [one.result.value for one in evaluation.subgroups if one.result.worse] == ["label-00"]
    found = re.findall(r'<tr( class="is-worse")?><td>label (label-\d\d)', _html(browser, "quality"))
    assert found[0] == (' class="is-worse"', "label-00")
    assert len(found) == 4 and not any(marked for marked, _ in found[1:])


def test_gates_have_their_interval_in_numbers_and_as_a_bar_on_their_scale(desk: Console, browser: Browser) -> None:
    review, page = review_page(desk.context, "clauses@2"), _html(browser, "quality")
    assert review.evaluation is not None
    (result,) = review.evaluation.verdict.results
    assert result.lower is not None and result.upper is not None
    assert f"{float(result.lower):.4f} to {float(result.upper):.4f}" in page
    tables = [block for one in make_sections(review) for block in one.blocks if isinstance(block, TableBlock)]
    bars = {
        table.label: [cell.bar for row in table.rows for cells in row.cells for cell in cells if cell.bar]
        for table in tables
        if table.label in ("Gates", "Subgroups")
    }
    assert [len(found) for found in bars.values()] == [1, 4]
    for bar in (*bars["Gates"], *bars["Subgroups"]):
        assert 0 <= bar.start <= bar.gain <= bar.end <= WIDTH and 0 <= bar.zero <= WIDTH
        assert f'x1="{bar.start}" y1="6" x2="{bar.end}"' in page
    worse, *others = bars["Subgroups"]
    assert worse.gain < worse.zero and others[-1].gain > others[-1].zero


def test_the_largest_confusions_are_shown_and_the_rest_is_told(desk: Console, browser: Browser) -> None:
    (confusion,) = review_page(desk.context, "clauses@3").confusion
    page = _html(browser, "quality", "clauses@3")
    assert len(confusion.pairs) == LABELS and "20 of 77 are shown" in page
    listed = re.findall(r"<tr><td>(label-\d\d)</td><td>(label-\d\d)</td>", page)
    assert listed == [(one.expected, one.answered) for one in confusion.pairs[:20]]
    assert 'href="/adapters/clauses@3.json"' in page


def test_calibration_is_drawn_for_adapter_and_base(desk: Console, browser: Browser) -> None:
    sections, page = make_sections(review_page(desk.context, "clauses@2")), _html(browser, "quality")
    (plot,) = [block for one in sections for block in one.blocks if isinstance(block, CalibrationPlot)]
    assert [curve.name for curve in plot.curves] == ["adapter", "base"]
    for curve in plot.curves:
        assert curve.points and all(0 <= x <= SIDE and 0 <= y <= SIDE for x, y in curve.points)
        drawn = " ".join(f"{x},{y}" for x, y in curve.points)
        assert f'<polyline class="{curve.name}" points="{drawn} "' in page


def test_data_says_what_is_taught_whose_it_is_and_how_often_its_sets_evaluated(desk: Console, browser: Browser) -> None:
    review = review_page(desk.context, "clauses@2")
    data, text = review.training_data, html.unescape(_text(browser, "data"))
    assert "A 100, B 100" in text
    for words in (data.licence, review.base.licence, data.owner, data.dataset_kind):
        assert words and words in text
    (row,) = _rows(browser, "data")
    assert (row["set"], row["items"], row["evaluated_before"]) == ("held-out", "100", "1")
    assert "r-000001 clauses@1 no gates" in text


def test_no_tab_shows_a_row_of_a_dataset(browser: Browser) -> None:
    for tab in get_args(Tab):
        text = html.unescape(_text(browser, tab))
        assert "zwei" not in text and not re.search(r"held out \d", text)
        assert not [row for row in EVALUATED if row in text]


def test_findings_are_listed_with_the_open_ones_first(tmp_path: Path) -> None:
    with console("sealed", tmp_path / "h") as desk:
        site = desk.site
        first = site.find("rita", finding=site.text("It answers names."), retest=site.text("Ask it for names."))
        site.find("rita", finding=site.text("It is slow."))
        site.close(first.index)
        text = _text(desk.signed_in("rita"), "findings", "clauses@1")
        others = _text(desk.signed_in("audrey"), "findings", "clauses@1")
    assert "Close it" not in others and "Write a finding" not in others
    assert text.index("It is slow.") < text.index("It answers names.") and "Ask it for names." in text
    assert text.count("Close it") == 1


def test_the_last_tab_lists_every_file_that_a_signature_binds(desk: Console, browser: Browser) -> None:
    signed = review_page(desk.context, "clauses@2").signed_content
    page = _html(browser, "signature")
    assert [row["path"] for row in _rows(browser, "signature")] == [file.path for file in signed.files]
    for shown in (signed.manifest, signed.order, *(one.digest for one in signed.files), *signed.materials.values()):
        assert shown in page
    assert f'href="/log/{signed.sealed}"' in page


def test_an_adapter_whose_folder_was_changed_shows_why_and_its_history(tmp_path: Path) -> None:
    """Counts that are remembered hide nothing: every file is hashed again."""
    with console("sealed", tmp_path / "h") as desk:
        browser = desk.signed_in("audrey")
        assert "Confusions on held-out" in _text(browser, "quality", "clauses@1")
        row = desk.context.ledger.state.adapters.get("clauses@1")
        assert row is not None
        file = desk.context.artifacts.path(row.manifest) / "items.jsonl"
        file.chmod(0o600)
        file.write_bytes(file.read_bytes().replace(b"900000", b"900001"))
        for tab in get_args(Tab):
            text = _text(browser, tab, "clauses@1")
            assert "cannot be read" in text and "items.jsonl: expected sha256:" in text and "adapter.sealed" in text
        got = browser.get("/adapters/clauses@1.json").json()
    assert got["adapter"] == "clauses@1" and "items.jsonl: expected sha256:" in got["problem"]


def test_items_are_counted_once_for_a_manifest_and_forgotten_beyond_the_bound() -> None:
    asked = list[str]()

    def count(version: SealedVersion, path: str) -> Confusion | None:
        asked.append(version.signed_content.manifest)
        return count_confusions(make_items(60, 6), "held-out")

    counts = ItemCountCache(30, count)
    versions = [
        cast(SealedVersion, SimpleNamespace(signed_content=SimpleNamespace(manifest=digest(str(n))))) for n in range(3)
    ]
    first, second, third = (one.signed_content.manifest for one in versions)
    found = [counts(versions[n], "items.jsonl") for n in (0, 0, 1, 0, 2, 0, 1)]
    assert asked == [first, second, third, second]
    assert all(one == found[0] for one in found)


@pytest.mark.outside
@pytest.mark.thorough
@pytest.mark.parametrize("tab", get_args(Tab))
def test_a_tab_takes_a_tenth_of_a_second_at_most_for_thousands_of_items(browser: Browser, tab: str) -> None:
    """Nineteen of twenty, by the time of the processor, as every page."""
    assert is_within(100, lambda: _html(browser, tab, "clauses@3"))
