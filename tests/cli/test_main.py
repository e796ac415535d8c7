"""The end of a command: its exit code, and an error with subject, expected and got values, and the next command."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from appliance import errors
from appliance.build import build_version
from appliance.cli import main
from appliance.cli.support.caller import Caller
from appliance.domain.core.roles import refuse_role
from appliance.domain.releases.approval import ORDERED_THE_RUN
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
        (errors.RateLimited("x"), 7),
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
    first, *rest = told.err.splitlines()
    name = re.fullmatch(r"error: .* \[([a-z-]+)\]", first)
    assert name is not None
    assert rest == ([] if code == 130 else [f"manual: {ROOT}/docs/reference/errors.md (section {name[1]})"])
    told = type_alone(capsys, "anything", "--json")
    assert (told.code, told.out) == (code, "")
    assert json.loads(told.err)["error"]["exit_code"] == code


def test_refusals_are_one_a_line_and_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    refusals = (refuse_role("oscar", ("operator",), ("reviewer",)), ORDERED_THE_RUN("principal:oscar"))
    _raise(monkeypatch, errors.Denied("order review by oscar", refusals=refusals))
    told = type_alone(capsys, "x")
    assert told.err.splitlines() == [
        "error: order review by oscar [denied]",
        f"  {refusals[0]}",
        f"  {refusals[1]}",
        f"manual: {ROOT}/docs/reference/refusals.md (section role-missing)",
        f"manual: {ROOT}/docs/reference/refusals.md (section reviewer-ordered-the-run)",
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


def test_a_word_in_place_of_a_number_is_named_without_a_term_of_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(capsys, "ledger", "show", "x")
    assert told.code == 2 and "'x' is not a whole number; type: appliance ledger show --help [usage]" in told.err


def test_an_error_cannot_drive_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raise(monkeypatch, errors.NotFound("adapter: got '\x1b[2J\x07'"))
    assert "\x1b" not in type_alone(capsys, "x").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum"], "Did you mean appliance run? Or type: appliance --help"),
        (["run", "begin"], "No such command 'begin'; type: appliance run --help"),
        (["feed"], "No such command 'feed'. Did you mean appliance ledger feed? Or type: appliance --help"),
        (["backup", "feed"], "Did you mean appliance ledger feed? Or type: appliance backup --help"),
        (["enrol"], "Did you mean appliance principal enrol or appliance token enrol?"),
        (["list"], "others? Or type: appliance --help"),
        (["run", "lsit"], "Did you mean appliance run list?"),
        (["run", "start"], "type: appliance run start --help"),
        (["run", "start", "--folow", "x"], "--follow"),
        (["review", "approve", "clauses@1"], "--unit"),
        (["ledger", "verify", "ledger.tar"], "To verify an exported file, use appliance-verify FILE --trust TRUST;"),
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


def test_output_to_a_full_disk_is_an_error_with_a_remedy() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "appliance", "completion", "zsh"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: output: expected room to write, got No space left on device; free some on the disk")
    assert done.returncode == 7 and rest == [f"manual: {ROOT}/docs/reference/errors.md (section unavailable)"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some on the disk of the output, and of the folder for temporary files"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EROFS, "name a path on a disk that can be written"),
    ],
)
def test_an_open_file_that_takes_no_more_is_no_defect(
    number: int, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raise(monkeypatch, OSError(number, os.strerror(number)))
    told = type_alone(capsys, "x")
    assert told.code == 7 and told.err.splitlines()[0].endswith(f"{os.strerror(number)}; {remedy} [unavailable]")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(capsys, "--version")
    assert told.code == 0
    assert told.out == f"appliance, version {build_version()}\n"


@pytest.mark.parametrize("ordered", [False, True])
def test_ctrl_c_says_whether_an_order_stands(
    ordered: bool, open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("staffed")

    def interrupt(caller: Caller) -> None:
        raise KeyboardInterrupt

    words = ("principal", "revoke", "olga") if ordered else ("principal", "list")
    monkeypatch.setattr(Caller, "print_waiting_orders", interrupt)
    told = desk.as_("anna", *words, *(("--yes",) if ordered else ()))
    assert told.code == 130
    assert (
        "what you signed stays recorded: principal.revoked, entry" if ordered else "nothing was signed [interrupted]"
    ) in told.err
