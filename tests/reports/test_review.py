"""The review page as HTML: escaped, self-contained, the same bytes for the same page."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from appliance.domain.core.decisions import Conditions
from appliance.domain.evaluation.confusion import count_confusions, measure_calibration
from appliance.domain.evaluation.items import Answer, EvaluationItem, Slices
from appliance.domain.evaluation.verdict import CalibrationFile
from appliance.domain.queries.review import values
from appliance.domain.queries.review.values import ReviewPage
from appliance.domain.releases.findings import AddFinding
from appliance.domain.releases.requests import RequestRelease
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.errors import Refusal
from appliance.formats.artifacts.manifest import ManifestFile
from appliance.reports.templates import write_report
from scripts.kit.item_groups import digest

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x$ -->]]></style></svg>\u202eabc\x1b[31m"
DIGEST = "sha256:" + "ab" * 32
TIME = "2026-11-26T12:00:00.000Z"
COMMITMENT = "hmac-" + DIGEST
SIGNED: dict[str, Any] = {
    **{"origin": "bank.example/log", "nonce": "ab" * 16, "issued_at": TIME, "expires_at": TIME, "reason": None},
    **{"adapter": "clauses", "version": 2, "manifest": DIGEST},
}


def _items(labels: tuple[str, ...]) -> list[EvaluationItem]:
    def answer(expected: str, chosen: str) -> Answer:
        return Answer(confidence=700_000, label=chosen, right=chosen == expected, scores={"loss": 1})

    count = len(labels)
    return [
        EvaluationItem(
            adapter=answer(labels[n % count], labels[(n + (n % 3 == 0)) % count]),
            base=answer(labels[n % count], labels[0]),
            cluster=None,
            row=digest(f"row {n}"),
            slices=Slices(column=None, label=labels[n % count], length="short"),
        )
        for n in range(60)
    ]


def page(text: str = "plain", labels: tuple[str, ...] = ("billing", "other")) -> ReviewPage:
    """Every field with a text of a person has this one."""
    items = _items(labels)
    calibration = [measure_calibration(items, model, 1) for model in ("adapter", "base")]
    confusion = count_confusions(items, "held-out")
    assert confusion is not None
    conditions = Conditions(not_before=None, not_after=None, served_models=("labels",), answers_a_day=5)
    return ReviewPage(
        version=1,
        adapter="clauses@2",
        status=values.AdapterStatus(revoked=None, quarantined=None, active_for=()),
        release_requests=(
            values.PageRequest(
                entry=9, digest=DIGEST, texts={COMMITMENT: text},
                order=RequestRelease.model_construct(
                    **SIGNED, signer=text, unit="legal", exposure=text, purpose=text, tier=text, verdict=None,
                    intended_use=COMMITMENT, limits=COMMITMENT, conditions=conditions,
                ),
                status=values.RequestStatus(
                    tier=text, tiers=(text,), reviewers=2, distinct_functions=2, required_functions=(), approvals=(),
                    blockers=(Refusal("code", "adapter:clauses@2", {}, "rule", text, text),),
                    until=TIME,
                    eligible_reviewers=(
                        values.EligibleReviewer(name="rita", review_function="privacy", delegates=()),
                    ),
                ),
            ),
        ),
        findings=(
            values.PageFinding(
                entry=10, digest=DIGEST, texts={COMMITMENT: text},
                order=AddFinding.model_construct(
                    **SIGNED, signer=text, kind="issue", severity="high", blocks=True, accepts_verdict=False,
                    review_function=text, owner=text, due=TIME, finding=COMMITMENT, remedy=COMMITMENT,
                    retest=COMMITMENT,
                ),
                status=values.FindingStatus(open=True, closed=None, closed_by=None),
            ),
        ),
        decisions=(
            values.PageDecision(
                entry=11, digest=DIGEST, texts={COMMITMENT: text},
                order=ReviewAdapter.model_construct(
                    **SIGNED, signer=text, decision="reject", unit="legal", review_function=text, meaning=COMMITMENT,
                    valid_until=None, request=None, conditions=None, on_behalf_of=text, opened=(),
                ),
                status=values.DecisionStatus(again_by=None, state="valid", superseded_by=None),
            ),
        ),
        changes=(
            values.VersionChanges(
                units=("legal",), since="clauses@1", entry=7, data=(values.Change(what=text, before=text, now=None),),
                measures=(), recipe=(), base=(), instruction=(), evaluation=(), run=(), code=(),
            ),
        ),
        warnings=(text,),
        measures=(values.Measure(name="accuracy", summary=text),),
        metrics={"adapter": {"accuracy": text}},
        evaluation=None,
        confusion=(confusion,),
        calibration=CalibrationFile(adapter=calibration[0], base=calibration[1], seed=1, version=1),
        training_data=values.TrainingData(
            dataset="clauses@2", dataset_digest=DIGEST, dataset_entry=3, rows={"held_out_rows": 60}, dataset_kind=text,
            instruction=text, labels=labels, label_rows=(), owner=text, licence=text, classification=text,
            imported_by=text, example={"path": "/v1/classify", "body": {"labels": [text]}},
        ),
        base=values.PageBase(name="smollm2", digest=DIGEST, licence=text, facts={"note": text}),
        privacy=values.PrivacySummary(
            epsilon="3.0", delta="0.001", noise=text, clip=text, epsilon_all="8.5", delta_all="0.002",
            before=values.TrainedBefore(
                private=(values.PrivateRun(run=text, epsilon="5.5", delta="0.001"),), plain=2,
            ),
        ),
        evaluated_before=(values.EvaluatedRun(run="r-000001", adapter="clauses@1", entry=5, passed=None),),
        previous_runs=values.PreviousRuns(
            runs=20, people=1, swept=16, sweeps=2, sealed=3, cancelled=14, failed=1
        ),
        signed_content=values.SignedContent(
            manifest=DIGEST, files=(ManifestFile(path="recipe.json", size=10, digest=DIGEST),),
            materials={"order": DIGEST}, sealed=6, sealed_at=TIME, run="r-000002", ordered_by=text, order=DIGEST,
            recipe={"note": text},
        ),
        entries=(values.Named(digest=DIGEST, entry=6, binds=text),),
    )  # fmt: skip


def write(folder: Path, shown: ReviewPage) -> Path:
    folder.mkdir()
    write_report(shown, "a log of 12 entries", folder)
    return folder


class _Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def read(folder: Path) -> _Reader:
    reader = _Reader()
    reader.feed((folder / "review.html").read_text(encoding="utf-8"))
    return reader


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain") / "report", page())


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("evil") / "report", page(EVIL, (EVIL, "other")))


def test_no_text_of_a_person_becomes_markup(plain: Path, evil: Path) -> None:
    ours, theirs = read(plain), read(evil)
    assert not {tag for tag, _ in theirs.tags} & {"script", "iframe", "object", "link", "form"}
    handlers = [name for _, found in theirs.tags for name in found if name.startswith("on")]
    assert handlers == []
    outside = {"path", "g", "use", "defs", "clippath", "rect", "svg"}  # of glyphs there are more in a longer text
    count = [[tag for tag, _ in found.tags if tag not in outside] for found in (ours, theirs)]
    assert count[0] == count[1]


def test_what_a_person_wrote_is_shown_whole_and_cannot_turn_the_text_around(evil: Path) -> None:
    shown = "".join(read(evil).said)
    assert EVIL.replace("\u202e", "\\u{202e}").replace("\x1b", "\\u{001b}") in shown
    assert "\u202e" not in shown and "\x1b" not in shown


def test_the_page_fetches_nothing_and_runs_nothing(plain: Path) -> None:
    reader = read(plain)
    policy = next(found["content"] for tag, found in reader.tags if found.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")
    links = [found.get(name) or "" for _, found in reader.tags for name in ("href", "src", "xlink:href")]
    assert all(link == "" or link.startswith(("#", "data:image/png")) for link in links)
    assert not re.search(r"url\((?!#)|@import", (plain / "review.html").read_text())


def test_every_digest_on_the_page_names_its_entry(plain: Path) -> None:
    text = (plain / "review.html").read_text()
    entry = ' <span class="quiet">entry <a class="num" href="#entry-6">6</a></span>'
    assert 0 < text.count(f">{DIGEST}</code>") == text.count(f">{DIGEST}</code>{entry}")
    assert 'id="entry-6"' in text


def test_what_the_service_reports_is_marked_and_what_was_proved_is_not(plain: Path) -> None:
    text = (plain / "review.html").read_text()
    for title in ("Decisions", "What is missing"):
        assert f'<h3>{title} <span class="chip">reported</span></h3>' in text, title
    for label in ("State", "Active for", "To be decided by", "With earlier runs"):
        assert f'<dt>{label} <span class="chip">reported</span></dt>' in text, label
    for label in ("Intended use", "Requested by", "Manifest", "Licence", "Order", "Epsilon"):
        assert f"<dt>{label}</dt>" in text, label
    assert '<h2>Previous runs <span class="chip">reported</span></h2>' in text
    assert "a log of 12 entries" in text and "Proved here" in text


def test_the_page_is_for_light_dark_and_paper(plain: Path) -> None:
    text = (plain / "review.html").read_text()
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_values_and_plots_lie_beside_it(plain: Path) -> None:
    names = {path.name for path in plain.iterdir()}
    assert names == {"review.html", "page.json", "calibration.svg", "confusion-held-out.svg"}
    assert ReviewPage.model_validate_json((plain / "page.json").read_bytes()) == page()
    for name in ("calibration", "confusion-held-out"):
        drawn = ElementTree.parse(plain / f"{name}.svg").getroot()
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg" and drawn.get("aria-label")


def test_the_same_page_makes_the_same_bytes(plain: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "report", page())
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in plain.iterdir()
    }


def test_many_labels_are_drawn_without_their_names(tmp_path: Path) -> None:
    labels = tuple(f"label-{number:02d}" for number in range(77))
    folder = write(tmp_path / "report", page(labels=labels))
    drawn = ElementTree.parse(folder / "confusion-held-out.svg").getroot()
    assert not drawn.findall(".//{http://www.w3.org/2000/svg}text")
    assert drawn.findall(".//{http://www.w3.org/2000/svg}rect")
