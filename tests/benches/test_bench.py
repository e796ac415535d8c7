"""Every measure of `scripts/bench ledger` runs at a tiny size. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benches import ledger, peer, verifying
from scripts.benches.appends import Timed, one_writer_rows
from scripts.benches.logs import open_log
from scripts.benches.measure import Medians, Row, markdown_table, measure_interleaved, plain_table, row, write_json

TINY = ledger.Plan(size=200, largest=1_000, rounds=1, appends=2, turns=1, alone=2, each=1, proofs=2, postgresql=False)
COLUMNS = ["name", "ours", "unit", "against", "theirs", "ratio", "goal", "met"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return list(ledger.measure(tmp_path_factory.mktemp("bench"), TINY))


def named(rows: list[Row], part: str) -> list[Row]:
    found = [one for one in rows if part in one.name]
    assert found, f"no row named {part}"
    return found


@pytest.mark.outside
def test_every_measure_that_was_promised_has_its_row_and_its_goal(rows: list[Row]) -> None:
    assert [one.goal for one in named(rows, "append by one writer, ")] == ["≤ 8×"] * 3
    assert "≥ 5,000" in str(named(rows, "64 writers, SQLite")[0].goal)
    assert named(rows, "inclusion proof, 200 entries")[0].goal == "≤ 2"
    assert named(rows, "offline verification")[0].goal == "80× only from 1,000,000 entries"
    assert named(rows, "memory of verification")[0].goal == "≤ 1.5×"
    assert all(one.goal == "≤ 50" for one in named(rows, "question: "))


@pytest.mark.outside
def test_the_growth_goes_up_to_the_largest_log(rows: list[Row]) -> None:
    sizes = {one.name.rpartition(" at ")[2] for one in named(rows, "growth, ")}
    assert sizes == {"1,000"}


@pytest.mark.outside
def test_the_json_is_one_object_a_row(rows: list[Row], tmp_path: Path) -> None:
    write_json(tmp_path / "rows.json", rows)
    read = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert len(read) == len(rows)
    assert all(list(one) == COLUMNS for one in read)
    assert all(isinstance(one["ours"], float | int) and one["ours"] > 0 for one in read)
    assert all(one["met"] in (True, False, None) for one in read)


@pytest.mark.thorough
def test_the_comparison_is_left_out_where_pymerkle_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peer, "PYTHON", tmp_path / "none")
    with open_log(tmp_path, 100) as log:
        assert peer.measure_beside_pymerkle(log, tmp_path, 1, alone=1, proofs=1) == []


@pytest.mark.thorough
def test_a_verification_that_finds_something_is_no_measure(tmp_path: Path) -> None:
    """A bench that times a failure would be fast and say nothing."""
    with open_log(tmp_path, 100) as log:
        data = log.export.read_bytes()
        log.export.write_bytes(
            data.replace(b'"heartbeat"', b'"heartbeaT"').replace(b'"source":"tcp"', b'"source":"tcq"', 1)
        )
        with pytest.raises(RuntimeError, match="expected verified"):
            verifying.verify(log)


def test_a_row_says_whether_every_bound_holds() -> None:
    assert row("a", 3, "1/s", theirs=1, at_least=2, ratio_at_least=3).met is True
    assert row("a", 3, "1/s", theirs=2, at_least=2, ratio_at_least=3).met is False
    assert row("a", 3, "ms", at_most=2).met is False
    assert row("a", 3, "ms").met is None


@pytest.mark.parametrize(("bare_us", "met"), [(20.0, [True, True, True]), (11.0, [False, False, True])])
def test_a_lone_append_is_evaluated_by_the_bare_inserts_of_its_own_run(bare_us: float, met: list[bool]) -> None:
    beats, pairs, bares = Timed([100, 150, 400], [0]), Timed([160], [160]), Timed([bare_us], [20])
    writer_rows = one_writer_rows(beats, pairs, bares, sync_us=10)
    assert [(one.ours, one.theirs) for one in writer_rows] == [(150, bare_us), (160, bare_us), (160, 20), (20, 10)]
    assert [one.met for one in writer_rows] == [*met, None]


@pytest.mark.parametrize(
    ("size", "seconds", "peak_mb", "met"),
    [
        (1_000_000, 8.0, 45.0, [True, True]),
        (1_000_000, 8.1, 45.1, [False, False]),
        (999_999, 8.1, 45.0, [None, True]),
    ],
)
def test_a_verification_is_evaluated_by_hashing_and_by_a_tenth_of_its_log(
    size: int, seconds: float, peak_mb: float, met: list[bool | None]
) -> None:
    found = verifying.rows(size, seconds=seconds, hashing_s=0.1, peak_mb=peak_mb, tenth_mb=30)
    assert [one.met for one in found] == met


@pytest.mark.parametrize(("proved", "met"), [([2.8, 2.9, 2.7], True), ([2.7, 2.9, 2.7], False)])
def test_appends_with_proofs_are_evaluated_by_the_median_of_each_turns_own_ratio(
    proved: list[float], met: bool
) -> None:
    """The disk is ten times as quick in the second turn."""
    pace = (1.0, 10.0, 1.0)
    others = ("plain_alone", "alone", "their_alone", "batch", "their_batch", "proof", "their_proof")
    samples = {name: [[1.0]] * 3 for name in others}
    samples["both"] = [[ratio * speed] for ratio, speed in zip(proved, pace, strict=True)]
    samples["their_both"] = [[speed] for speed in pace]
    found = peer.peer_rows(Medians(samples), "9 entries")
    assert [one.met for one in found] == [None, None, False, False, met]
    assert found[-1].goal == "≥ 2.8×"


def test_measures_take_turns_and_give_medians() -> None:
    order: list[str] = []

    def one(name: str) -> list[float]:
        order.append(name)
        return [len(order)]

    found = measure_interleaved(3, a=lambda: one("a"), b=lambda: one("b"))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": 4, "b": 3}
    assert found.ratio("a", "b") == 5 / 6  # of 1/2, 4/3 and 5/6


@pytest.mark.outside
def test_the_tables_show_each_row_once(rows: list[Row]) -> None:
    assert len(plain_table(rows).splitlines()) == len(rows) + 1
    assert len(markdown_table(rows).splitlines()) == len(rows) + 2


@pytest.mark.outside
def test_the_command_has_the_options_that_every_bench_takes() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "scripts.benches", "--help"], capture_output=True, text=True, check=True
    )
    assert all(option in said.stdout for option in ("--quick", "--json", "--folder", "--largest", "--markdown"))
