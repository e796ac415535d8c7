"""The help of every command has an example that can be typed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from appliance.addresses import address_of, locate
from appliance.cli import main
from appliance.cli.support.command import CommandGroup, _WithExample
from tests.cli.conftest import type_alone

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("httpx", "pydantic", "yaml", "cryptography", "torch", "fastapi", "sqlalchemy")


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _commands(below, (*path, name))


ALL = list(_commands(main.cli))
LEAVES = [(path, command) for path, command in ALL if not isinstance(command, click.Group)]


def _names(found: list[tuple[tuple[str, ...], click.Command]]) -> list[str]:
    return [" ".join(path) or "appliance" for path, _ in found]


def test_every_audience_has_its_commands() -> None:
    assert set(_names(LEAVES)) >= {
        "init", "key new", "key show", "key prove", "principal enrol", "principal list", "principal grant",
        "principal remove-role", "principal revoke", "order list", "order show", "order countersign",
        "policy show", "policy adopt",
        "policy test", "policy diff", "policy export", "base import", "base list", "dataset import", "dataset list",
        "dataset show", "run start", "run list", "run show", "run cancel", "review list", "review show",
        "review approve", "review reject", "release activate", "release rollback", "release history",
        "adapter revoke", "adapter show", "adapter list", "token issue", "serve", "ledger log", "ledger show",
        "ledger export", "ledger verify", "completion", "key list", "key rotate", "key revoke",
        "principal replace-key", "log-key rotate", "text erase", "hold place", "hold lift", "hold list",
        "import list", "import cancel", "witness request", "witness accept", "witness list", "login", "logout",
        "whoami",
    }  # fmt: skip


@pytest.mark.parametrize(("path", "command"), ALL, ids=_names(ALL))
def test_every_help_has_a_sentence_and_an_example_that_names_the_command(
    path: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    told = type_alone(capsys, *path, "--help")
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith("Usage: appliance")
    assert command.help is not None and command.help.strip().split("\n")[0].endswith((".", ":"))
    assert isinstance(command, _WithExample)
    assert " ".join(("appliance", *path)) in command.example
    example, shown = (re.sub(r" \\\n +", " ", text) for text in (command.example, told.out))
    assert example.splitlines()[0] in shown


@pytest.mark.parametrize(("path", "command"), ALL, ids=_names(ALL))
def test_a_help_fits_80_columns_and_cuts_no_sentence(
    path: tuple[str, ...],
    command: click.Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = type_alone(capsys, *path, "--help")
    shown = told.out.partition("\nManual: ")[0]  # a path of this machine has any length
    listed = re.sub(r"(?s).*\nCommands:\n|\nExample:\n.*", "", shown.partition("\n")[2])
    assert not re.search(r"\.\.\.$", listed, re.MULTILINE)
    _, _, example = shown.partition("\nExample:\n")
    assert [line for line in example.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", main.COMMANDS)
def test_a_help_of_the_first_level_names_its_section_of_the_manual(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """tests/test_manual.py finds each section."""
    told = type_alone(capsys, name, "--help")
    path, _, section = told.out.splitlines()[-1].removeprefix("Manual: ").partition(" ")
    assert Path(path).is_file() and Path(path).is_relative_to(ROOT / "docs")
    assert section == ("" if not (anchor := main.COMMANDS[name].manual.partition("#")[2]) else f"(section {anchor})")


def test_the_first_help_names_the_first_page_of_the_manual(capsys: pytest.CaptureFixture[str]) -> None:
    assert type_alone(capsys, "--help").out.endswith(f"\nManual: {ROOT}/docs/index.md\n")


def test_an_installed_package_has_the_page_and_a_zipapp_names_the_console(tmp_path: Path) -> None:
    address, package = address_of("reference/errors/#conflict"), tmp_path / "appliance"
    assert locate(address, package) == "/docs/reference/errors/#conflict, at the console"
    page = package / "manual/reference/errors/index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>")
    (package / "manual/index.html").write_text("<p>")
    assert locate(address, package) == f"file://{page}#conflict"
    assert locate(address_of(""), package) == f"file://{package}/manual/index.html"


def test_every_option_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(
        capsys, "finding", "add", "clauses@1", "--review-function", "privacy", "--kind", "issue", "--text", "x"
    )
    assert told.code == 2
    assert "Missing options --severity, --owner, --due, --remedy, --retest; type: appliance finding" in told.err


@pytest.mark.parametrize(("path", "command"), ALL, ids=_names(ALL))
def test_an_example_uses_options_that_exist(path: tuple[str, ...], command: click.Command) -> None:
    assert isinstance(command, _WithExample)
    text = command.example.replace("\\\n", " ")
    for line in re.findall(r"appliance (?!-)[^)\n]*", text):
        words = shlex.split(line.partition(" > ")[0].replace('"', ""))[1:]
        known = {option for p in main.cli.params for option in p.opts}
        at: click.Command = main.cli
        for word in words:
            if isinstance(at, click.Group):
                below = at.get_command(click.Context(at), word)
                assert below is not None, f"{line}: no command {word}"
                at = below
                known |= {option for p in at.params for option in (*p.opts, *p.secondary_opts)}
            elif word.startswith("--"):
                assert word in known, f"{line}: no option {word}"


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=_names(LEAVES))
def test_every_command_speaks_json_and_knows_its_home(path: tuple[str, ...], command: click.Command) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--home"} <= options


def test_no_help_loads_a_library_that_takes_time() -> None:
    """0.2 s for a help text, measured, is the same fact on an idle machine; this holds on a busy one too."""
    script = (
        "import sys, io, contextlib\n"
        "from appliance.cli.main import run\n"
        f"for path in {[list(path) for path, _ in ALL]}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        assert run([*path, '--help']) == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_a_group_without_a_command_shows_its_help_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(capsys, "run")
    assert told.code == 0
    assert "start" in told.out and isinstance(main.cli, CommandGroup)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(capsys, "completion", shell)
    assert told.code == 0
    assert "_APPLIANCE_COMPLETE" in told.out


def test_completion_knows_the_commands() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'appliance'; from appliance.cli.main import main; main()"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"_APPLIANCE_COMPLETE": "bash_complete", "COMP_WORDS": "appliance run ", "COMP_CWORD": "2", "PATH": "/bin"},
    )
    assert {line.partition(",")[2] for line in answer.stdout.split()} == {
        *("authorise", "cancel", "checkpoints", "export", "list", "plan", "refuse", "replay", "report", "resume"),
        *("show", "start", "sweep"),
    }


def test_the_guide_names_every_command_of_the_first_level() -> None:
    page = (ROOT / "docs" / "guides" / "command-line.md").read_text(encoding="utf-8")
    table = page.partition("## Commands by role")[2].partition("\n## ")[0]
    missing = [name for name in main.COMMANDS if not re.search(rf"`{name}( |`)", table)]
    assert missing == [], "docs/guides/command-line.md: expected each of them in the table of commands by role"


def test_the_table_of_commands_says_what_each_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(capsys, "--help")
    for name, entry in main.COMMANDS.items():
        assert f"{name} " in told.out and entry.help.endswith(".")
    assert json.dumps(list(main.COMMANDS)) == json.dumps([path[0] for path, _ in ALL if len(path) == 1])
