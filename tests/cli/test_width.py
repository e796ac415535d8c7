"""Output fits the terminal: tables leave out columns and facts are wrapped. `--wide`, pipes and JSON are complete."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest

from appliance.cli.support.output import fit, print_facts, print_table
from appliance.cli.support.progress import ProgressMeter
from tests.cli.conftest import Desk
from tests.cli.test_plans import _recipe

DIGEST = "sha256:" + "1f2e3d4c5b6a" + "0" * 52
TIME = "2026-11-24T10:30:15.123Z"


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_a_table_that_fits_is_left_as_it_is() -> None:
    table = [["key", "time"], [DIGEST, TIME]]
    assert fit(table, 200) == table


def test_digests_become_twelve_characters_and_times_minutes_before_anything_is_cut() -> None:
    table = [["name", "key", "time", "text"], ["a", DIGEST, TIME, "free"]]
    assert fit(table, 60)[1] == ["a", "1f2e3d4c5b6a", "2026-11-24T10:30Z", "free"]


def test_columns_without_a_value_go_before_one_is_cut() -> None:
    table = [["name", "revoked", "text"], ["a", "-", "x" * 20], ["b", "-", "y" * 20]]
    assert fit(table, 28) == [["name", "text"], ["a", "x" * 20], ["b", "y" * 20]]


def test_columns_of_least_importance_say_less_first_and_the_first_column_stays_whole() -> None:
    table = [["name", "note", "text"], ["n" * 30, "o" * 30, "t" * 30]]
    assert fit(table, 80, ["note"])[1] == ["n" * 30, "o" * 15 + "…", "t" * 30]
    assert fit(table, 70, ["note"])[1] == ["n" * 30, "t" * 30], "12 characters say too little"
    assert fit(table, 10, ["note"]) == [["name"], ["n" * 30]]


@pytest.mark.usefixtures("terminal")
def test_a_table_says_that_it_was_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "text"), [("a", "x" * 100)])
    told = capsys.readouterr()
    assert widest(told.out) == 80 and "--wide shows all" in told.err
    print_table(("name", "text"), [("a", "x")])
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("terminal")
def test_the_last_column_of_the_log_continues_below_instead_of_being_cut(capsys: pytest.CaptureFixture[str]) -> None:
    about = [f"adapter:clauses@{number}" for number in range(6)]
    row = ("1234", TIME, "review.recorded", "rita", "success", ", ".join(about))
    print_table(("entry", "time", "type", "actor", "outcome", "about"), [row], wraps=True)
    out = capsys.readouterr().out
    assert widest(out) <= 80 and [word.strip(",") for word in out.split() if ":c" in word] == about
    assert out.splitlines()[1].startswith("1234   2026-11-24T10:30Z")


@pytest.mark.usefixtures("terminal")
def test_a_long_fact_continues_below_and_a_digest_stays_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("why", "word " * 30), ("statement of it", DIGEST)])
    out = capsys.readouterr().out
    assert widest(out) <= 80
    assert out.split() == ["why:", *["word"] * 30, "statement", "of", "it:", DIGEST]
    assert f"\n    {DIGEST}\n" in out


@pytest.mark.parametrize("moves", [True, False])
def test_a_line_of_progress_has_79_columns_at_most(moves: bool) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: moves  # type: ignore[method-assign]
    meter = ProgressMeter("trains", 100_000, "steps", stream)
    meter.set(50_000, "loss 0.123, validation 0.456, 123456 tokens a second")
    meter.close()
    meter.set(50_001, "a note that is much longer than any line of a terminal, " * 3)
    meter.close()
    lines = stream.getvalue().replace("\r\x1b[K", "\n").splitlines()
    assert len(lines) >= 2 and max(map(len, lines)) <= 79
    assert any("50000 of 100000 steps, loss 0.123" in line for line in lines)


COMMANDS = {
    "adapter show": ("olga", "adapter", "show", "clauses@1"),
    "ledger state": ("audrey", "ledger", "state"),
    "ledger log": ("audrey", "ledger", "log", "--last", "20"),
    "review list": ("rita", "review", "list"),
    "finding list": ("rita", "finding", "list"),
    "run show": ("olga", "run", "show", "r-000001"),
    "effective-access": ("audrey", "ledger", "effective-access", "legal"),
    "principal list": ("anna", "principal", "list"),
    "storage": ("anna", "storage"),
}


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "key", "text"), [("a", DIGEST, "x" * 100)])
    print_facts([("why", "word " * 30)])
    told = capsys.readouterr()
    assert DIGEST in told.out and "x" * 100 in told.out and len(told.out.splitlines()) == 3
    assert told.err == ""


@pytest.mark.thorough
@pytest.mark.usefixtures("terminal")
def test_no_list_is_wider_than_the_terminal_and_wide_cuts_nothing(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    for name, (who, *words) in COMMANDS.items():
        told = desk.as_(who, *words)
        assert told.code == 0 and widest(told.out) <= 80, name
        whole = desk.as_(who, *words, "--wide")
        assert "…" not in whole.out, name
        assert "--wide shows" not in whole.err, name
        as_json = desk.as_(who, *words, "--json")
        assert as_json.code == 0 and "--wide shows" not in as_json.err, name
    before = desk.as_("audrey", "--wide", "ledger", "state")
    assert before.out == desk.as_("audrey", "ledger", "state", "--wide").out
    log = desk.as_("audrey", "ledger", "log", "--last", "1", "--wide")
    assert re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z  session", log.out), log.out
    assert "rita (privacy, legal), raul (model-risk, legal)" in desk.as_("rita", "review", "list").out
    csv = desk.as_("audrey", "ledger", "log", "--csv").out
    assert widest(csv) > 80


@pytest.mark.usefixtures("terminal")
def test_a_plan_fits_80_columns(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    told = desk.as_("olga", "run", "plan", _recipe(desk))
    assert told.code == 0 and widest(told.out) <= 80
    assert "full fine-tuning" in told.out and "…" not in told.out
