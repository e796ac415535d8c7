"""How a command ends: its exit code, and an error that says what, which, expected, got, and what to type next."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from appliance import errors
from appliance.cli import main
from appliance.cli.support.caller import Caller
from tests.cli.conftest import Desk, type_alone

ROOT = Path(__file__).resolve().parents[2]


def _raise(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(**settings: object) -> None:
        raise error

    monkeypatch.setattr(main.cli, "main", fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadInput("x"), 2),
        (errors.TooLarge("x"), 2),
        (errors.NotAuthenticated("x"), 3),
        (errors.Denied("x"), 3),
        (errors.NotFound("x"), 4),
        (errors.Conflict("x"), 5),
        (errors.Tampered("x"), 6),
        (errors.Unavailable("x"), 7),
        (errors.TooMany("x"), 7),
        (click.UsageError("x"), 2),
        (click.Abort(), 130),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_every_error_has_its_exit_code_in_prose_and_in_json(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raise(monkeypatch, error)
    told = type_alone(capsys, "anything")
    assert (told.code, told.out) == (code, "")
    assert told.err.startswith("error: ") and told.err.count("\n") == 1
    told = type_alone(capsys, "anything", "--json")
    assert (told.code, told.out) == (code, "")
    assert json.loads(told.err)["error"]["exit_code"] == code


@pytest.mark.parametrize("joined", [True, False])
def test_reasons_stand_one_a_line_and_once(
    joined: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = ("role: expected a reviewer", "separation of duties: expected another")
    error = errors.Denied("order review by oscar", reasons=reasons if joined else ())
    error.reasons = reasons
    _raise(monkeypatch, error)
    told = type_alone(capsys, "x")
    assert told.err.splitlines() == [
        "error: order review by oscar [denied]",
        "  role: expected a reviewer",
        "  separation of duties: expected another",
    ]


def test_a_defect_shows_no_traceback_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raise(monkeypatch, ZeroDivisionError("of all things"))
    told = type_alone(capsys, "x")
    assert "a defect of the appliance: ZeroDivisionError: of all things" in told.err
    assert "Traceback" not in told.err
    monkeypatch.setenv("APPLIANCE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main.run(["x"])


def test_an_error_cannot_drive_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raise(monkeypatch, errors.NotFound("adapter: got '\x1b[2J\x07'"))
    assert "\x1b" not in type_alone(capsys, "x").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum"], "type: appliance --help"),
        (["run", "begin"], "type: appliance run --help"),
        (["run", "start"], "type: appliance run start --help"),
        (["run", "start", "--folow", "x"], "--follow"),
        (["review", "approve", "clauses@1"], "--unit"),
    ],
)
def test_a_wrong_line_says_where_to_read(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(capsys, *words)
    assert told.code == 2
    assert said in told.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "list"], "--as NAME"),
        (["run", "list", "--as", "ada"], "appliance init"),
        (["key", "prove", "--as", "ada", "--origin", "x"], "appliance key new FILE"),
        (["key", "show", "none.key"], "none.key: expected a file"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_makes_it(
    words: list[str], said: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APPLIANCE_HOME", str(home / "none"))
    told = type_alone(capsys, *words)
    assert told.code in (3, 4)
    assert said in told.err


def test_a_reader_who_leaves_ends_the_command_quietly() -> None:
    answer = subprocess.run(
        f"{sys.executable} -m appliance completion zsh | head -c 1 > /dev/null; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert answer.stderr == ""
    assert answer.stdout.strip() in ("0", str(main.BROKEN_PIPE))


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(capsys, "--version")
    assert told.code == 0
    assert told.out.startswith("appliance, version ")


@pytest.mark.parametrize("ordered", [False, True])
def test_ctrl_c_says_whether_an_order_stands(
    ordered: bool, open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("staffed")

    def interrupt(caller: Caller) -> None:
        raise KeyboardInterrupt

    words = ("principal", "revoke", "olga") if ordered else ("principal", "list")
    monkeypatch.setattr(Caller, "tell_orders", interrupt)
    told = desk.as_("anna", *words, *(("--yes",) if ordered else ()))
    assert told.code == 130
    assert (
        "what you signed stays recorded: principal.revoked, entry" if ordered else "nothing was signed [interrupted]"
    ) in told.err
