"""The review page as HTML: escaped, self-contained, the same bytes for the same page."""

from __future__ import annotations

import html.parser
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.domain.core.decisions import Conditions
from appliance.domain.evaluation.calibration import measure_calibration
from appliance.domain.evaluation.confusion import count_confusions
from appliance.domain.evaluation.evidence import Calibrations
from appliance.domain.evaluation.items import Answer, Item, Slices
from appliance.domain.releases.page import value
from appliance.domain.releases.page.value import ReviewPage
from scripts.kit.judged import digest

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x$ -->]]></style></svg>\u202eabc\x1b[31m"
DIGEST = "sha256:" + "ab" * 32
TIME = "2026-11-26T12:00:00.000Z"


def _items(labels: tuple[str, ...]) -> list[Item]:
    def answer(expected: str, chosen: str) -> Answer:
        return Answer(confidence=700_000, label=chosen, right=chosen == expected, scores={"loss": 1})

    count = len(labels)
    return [
        Item(
            adapter=answer(labels[n % count], labels[(n + (n % 3 == 0)) % count]),
            base=answer(labels[n % count], labels[0]),
            cluster=None,
            row=digest(f"row {n}"),
            slices=Slices(column=None, label=labels[n % count], length="short"),
        )
        for n in range(60)
    ]


def page(text: str = "plain", labels: tuple[str, ...] = ("billing", "other")) -> ReviewPage:
    """Every place in which a text of a person stands holds this one."""
    items = _items(labels)
    calibration = [measure_calibration(items, model, 1) for model in ("adapter", "base")]
    confusion = count_confusions(items, "held-out")
    assert confusion is not None
    conditions = Conditions(not_before=None, not_after=None, tasks=("labels",), answers_a_day=5)
    return ReviewPage(
        version=1,
        adapter="clauses@2",
        revoked=None,
        quarantined=None,
        answers=(),
        asked=(
            value.Asked(
                unit="legal", by=text, entry=9, order=DIGEST, emergency=False, intended_use=text, limits=text,
                exposure=text, purpose=text, conditions=conditions, verdict=None, tier=text, reviewers=2,
                distinct_fields=2, required_fields=(), approvals=(), missing=(text,),
                could_decide=(value.Person(name="rita", field="privacy"),), until=TIME,
            ),
        ),
        findings=(
            value.Found(
                entry=10, open=True, kind="issue", severity="high", blocks=True, accepts_verdict=False,
                field=text, finder=text, owner=text,
                due=TIME, finding=text, remedy=text, retest=None, closed=None, closed_by=None,
            ),
        ),
        decisions=(
            value.Decided(
                entry=11, decision="reject", unit="legal", field=text, reviewer=text, on_behalf_of=text,
                conditions=None, valid_until=None, again_by=None, state="standing", superseded_by=None,
            ),
        ),
        changes=(
            value.Changes(
                units=("legal",), since="clauses@1", entry=7, data=(value.Change(what=text, before=text, now=None),),
                recipe=(), base=(), teaching=(), code=(),
            ),
        ),
        warnings=(text,),
        measures=(value.Measure(name="accuracy", told=text),),
        metrics={"adapter": {"accuracy": text}},
        judged=None,
        confusion=(confusion,),
        calibration=Calibrations(adapter=calibration[0], base=calibration[1], seed=1, version=1),
        taught=value.Taught(
            dataset="clauses@2", dataset_digest=DIGEST, dataset_entry=3, rows={"held_out_rows": 60}, task=text,
            instruction=text, labels=labels, owner=text, licence=text, classification=text, imported_by=text,
            example={"path": "/v1/classify", "body": {"labels": [text]}},
        ),
        base=value.Based(name="smollm2", digest=DIGEST, licence=text, facts={text: text}),
        privacy=value.Privacy(
            epsilon="3.0", delta="0.001", noise=text, clip=text, epsilon_all="8.5", delta_all="0.002",
            before=value.TrainedBefore(
                private=(value.PrivateRun(run=text, epsilon="5.5", delta="0.001"),), plain=2,
            ),
        ),
        judged_before=(value.Run(run="r-000001", adapter="clauses@1", entry=5, passed=None),),
        tried=value.Tried(runs=20, people=1, swept=16, sweeps=2, sealed=3, cancelled=14, failed=1),
        bound=value.Bound(
            manifest=DIGEST, files=(value.File(path="recipe.json", size=10, digest=DIGEST),),
            materials=(value.Material(name=text, digest=DIGEST),), sealed=6, sealed_at=TIME, run="r-000002",
            ordered_by=text, order=DIGEST, recipe={text: text},
        ),
        entries=(value.Named(digest=DIGEST, entry=6, binds=text),),
    )  # fmt: skip


def write(folder: Path, shown: ReviewPage) -> Path:
    folder.mkdir()
    given = json.dumps({"page": shown.model_dump(mode="json"), "checked": {"log": "12 entries"}})
    done = subprocess.run(
        [sys.executable, "-m", "appliance.reports.review.report", str(folder)],
        input=given.encode(),
        env={**os.environ, "MPLCONFIGDIR": str(folder.parent)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
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
    assert EVIL.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b") in shown
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
    assert text.count(f"<code>{DIGEST}</code>") == text.count(f'<code>{DIGEST}</code> <a href="#entry-6">entry 6</a>')
    assert 'id="entry-6"' in text


def test_the_page_is_for_light_dark_and_paper(plain: Path) -> None:
    text = (plain / "review.html").read_text()
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    drawn = text[text.index("<svg") :]
    assert "#1f2933" not in drawn and "var(--ink)" in drawn


def test_values_and_plots_lie_beside_it(plain: Path) -> None:
    names = {path.name for path in plain.iterdir()}
    plots = {f"{name}.{kind}" for name in ("calibration", "confusion-held-out") for kind in ("svg", "png")}
    assert names == {"review.html", "page.json", *plots}
    assert ReviewPage.model_validate_json((plain / "page.json").read_bytes()) == page()
    data = (plain / "calibration.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG") and width > height > 400


def test_the_same_page_makes_the_same_bytes(plain: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "report", page())
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in plain.iterdir()
    }


def test_many_labels_are_no_wall_of_names(tmp_path: Path) -> None:
    labels = tuple(f"label-{number:02d}" for number in range(77))
    folder = write(tmp_path / "report", page(labels=labels[:77]))
    assert (folder / "confusion-held-out.svg").exists()
    assert "<!-- label-05 -->" not in (folder / "confusion-held-out.svg").read_text()
