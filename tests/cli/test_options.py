"""An option has one name for one meaning, in every command and in the programs for auditors and witnesses."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from appliance import verifier, witness
from tests.cli.conftest import Desk, one_line, type_alone
from tests.cli.test_help import LEAVES
from tests.cli.test_trust import COMMANDS, _files

WRITTEN = {"--output": "FILE", "--folder": "FOLDER"}
"""The options that name what is written. Only `principal enrol --folder` reads one: several files, as others write."""
READ = {
    **dict.fromkeys(("--home", "--policy"), "FOLDER"),
    **dict.fromkeys(
        ("--key", "--trust", "--passphrase-file", "--new-passphrase-file", "--pin-file", "--proof", "--token"), "FILE"
    ),
    **dict.fromkeys(
        ("--ca", "--certificate", "--certificate-key", "--state", "--python", "--record", "--answer"), "FILE"
    ),
    **dict.fromkeys(("--service-ca", "--service-log", "--identity", "--checkpoint", "--erasures"), "FILE"),
    **dict.fromkeys(("--archive", "--held-out-file", "--row-file", "--instruction"), "FILE"),
    "--socket": "PATH",
}
"""The options that name what is read. A witness's state is both, and never anything else."""
SEVERAL = {"--served-model", "--to", "--kind", "--owner", "--instruction"}
"""Options with several kinds of values: a served model or its kind; a later step, an earlier version, a tracker; the
kind of an
adapter or of a finding; an owner by name or in words; an instruction as text, or for a verifier as a file."""


def _kind(option: click.Option) -> str:
    """Return the kind of the option's value, as help shows it."""
    if option.is_flag:
        return "flag"
    if isinstance(option.type, click.Choice):
        return f"one of {', '.join(map(str, option.type.choices))}"
    return option.metavar or ""


def _options() -> Iterator[tuple[str, str, str]]:
    """(command, option, kind of its value), of every program."""
    for path, command in LEAVES:
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield from ((" ".join(path), name, _kind(parameter)) for name in parameter.opts)
    for program, parser in (("appliance-verify", verifier._parser()), ("appliance-witness", witness._parser())):
        for action in _actions(parser):
            kind = "flag" if action.nargs == 0 else str(action.metavar or "")
            yield from ((program, name, kind) for name in action.option_strings)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)


OPTIONS = list(_options())


def test_every_value_has_a_word_in_the_help() -> None:
    assert [(command, name) for command, name, kind in OPTIONS if not kind] == []


def test_an_option_means_the_same_in_every_command() -> None:
    kinds: dict[str, set[str]] = {}
    for _, name, kind in OPTIONS:
        kinds.setdefault(name, set()).add(kind)
    assert {name: found for name, found in kinds.items() if len(found) > 1 and name not in SEVERAL} == {}


def test_files_and_folders_are_named_by_the_same_options_everywhere() -> None:
    found = {(name, kind) for _, name, kind in OPTIONS if kind in ("FILE", "FOLDER", "PATH", "DIR")}
    assert found == set((WRITTEN | READ).items())
    paths = {
        name
        for _, command in LEAVES
        for option in command.params
        if isinstance(option, click.Option) and isinstance(option.type, click.Path | click.File)
        for name in option.opts
    }
    assert paths <= WRITTEN.keys() | READ.keys()


SIGNING = {" ".join(path) for path, found in LEAVES if any("--yes" in option.opts for option in found.params)}
TIMED = [(command, name) for command, name, kind in OPTIONS if kind == "TIME"]


def test_every_time_is_an_option_of_the_same_kind() -> None:
    assert {name for _, name in TIMED} == {
        *("--at", "--since", "--until", "--valid-until", "--old-until", "--issued-before"),
        *("--due", "--not-before", "--not-after"),
    }


@pytest.mark.parametrize(("command", "name"), [one for one in TIMED if one[0] != "appliance-verify"])
def test_every_time_is_read_by_one_parser(command: str, name: str, open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    given = [_files(desk.folder).get(word, word) for word in COMMANDS[command]]
    if name in given:
        del given[given.index(name) : given.index(name) + 2]
    told = desk.as_("anna", *command.split(), *given, name, "in a while", *(["--yes"] if command in SIGNING else []))
    assert told.code == 2
    assert (
        "expected a day such as 2026-11-24, a time with its zone such as 2026-11-24T10:30Z, now, or 2h, got 'in a"
        in one_line(told.err)
    )
    assert not Path(desk.folder / "new").exists()


@pytest.mark.parametrize("words", [("--key", "mine.key", "key", "show"), ("key", "show", "--key", "mine.key")])
def test_an_option_at_any_place_is_used_instead_of_its_variable(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APPLIANCE_KEY", "variable.key")
    assert "mine.key" in type_alone(capsys, *words).err
    assert "variable.key" in type_alone(capsys, "key", "show").err
