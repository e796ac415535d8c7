"""The entry point of the command line: the root group, and the output of errors.

A command's module is loaded when it is used, so that `--help` responds quickly.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any

import click

from appliance.addresses import address_of, address_of_error, address_of_refusal, locate
from appliance.build import build_version
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import Command, CommandGroup, with_root_options
from appliance.cli.support.groups import COMMANDS, GROUPS
from appliance.cli.support.output import encode_json, plain
from appliance.errors import ApplianceError, Unavailable

INTERRUPTED = 130
"""Exit code after an interruption by the person."""
BROKEN_PIPE = 141
"""Exit code after a broken pipe: 128 plus the signal, as in shells."""


class _Root(CommandGroup):
    """The root group, which loads each command when it is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        entry = COMMANDS.get(name)
        if entry is None:
            return None
        modules = [import_module(f"appliance.cli.{file}") for file in entry.files]
        found = GROUPS.get(name) or getattr(modules[0], name)
        assert isinstance(found, Command | CommandGroup)
        found.manual = address_of(entry.manual)
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by audience, from the table and without loading them."""
        for audience in dict.fromkeys(entry.audience for entry in COMMANDS.values()):
            with formatter.section(audience):
                formatter.write_dl([(name, e.help) for name, e in COMMANDS.items() if e.audience == audience])


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        click.echo(f"appliance, version {build_version()}")
        context.exit()


@click.group(
    "appliance",
    cls=_Root,
    context_settings={"max_content_width": 110},
    example=(
        "appliance run start recipe.yaml --follow\n"
        "appliance review show clauses@1\n"
        "appliance ledger verify --trust trust.json"
    ),
)
@with_root_options
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the build's version and exit.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Train, review, release and serve adapters.

    Every decision is signed. The log of decisions can be verified independently of the service.

    The options below may be given here or after any command.
    """
    context.call_on_close(context.ensure_object(Caller).close)


cli.manual = address_of("")


@cli.result_callback()
@click.pass_obj
def _after(caller: Caller, *_: Any, **__: Any) -> None:
    caller.print_waiting_orders()


_PATH_REMEDIES: Mapping[int | None, str] = {
    errno.EACCES: "ask its owner for access, or name another path",
    errno.EPERM: "ask its owner for access, or name another path",
    errno.EROFS: "name a path on a disk that can be written",
    errno.ENOSPC: "make room on its disk, or name a path on another one",
    errno.EDQUOT: "make room within your quota, or name a path on another disk",
    errno.ENAMETOOLONG: "name a shorter path",
}
"""Remedies for a path that the operating system refuses to a command, by the number of the error."""

_NO_ROOM: Mapping[int | None, str] = {
    errno.ENOSPC: "free some on the disk of the output, and of the folder for temporary files",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "name a path on a disk that can be written",
}
"""Remedies if an open file takes no more bytes, by the number of the error, which then comes without a path."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. docs/reference/errors.md lists the codes."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(given))


def run(given: list[str]) -> int:
    """Run one command and return its exit code."""
    as_json, caller = "--json" in given, Caller()
    try:
        code = cli.main(args=given, prog_name="appliance", standalone_mode=False, obj=caller)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except ApplianceError as error:
        return _fail(error.exit_code, error.code, error.summary, as_json, error)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail(INTERRUPTED, "interrupted", caller.interrupted(), as_json)
    except click.ClickException as error:
        return _fail(2, "usage", _usage(error), as_json)
    except BrokenPipeError:
        _drop_output()  # the reader has gone
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("APPLIANCE_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is None and (remedy := _NO_ROOM.get(error.errno)):
            _drop_output()
            message = f"output: expected room to write, got {error.strerror}; {remedy}"
            return _fail(Unavailable.exit_code, Unavailable.code, message, as_json)
        if isinstance(error, OSError) and error.filename is not None and (remedy := _PATH_REMEDIES.get(error.errno)):
            message = f"path, {error.filename}: expected that this account can use it, got {error.strerror}; {remedy}"
            return _fail(Unavailable.exit_code, Unavailable.code, message, as_json)
        message = f"a defect of the appliance: {type(error).__name__}: {error}; APPLIANCE_DEBUG=1 shows where"
        return _fail(1, "defect", message, as_json)


def _drop_output() -> None:
    """Drop what standard output does not take, which the interpreter would otherwise try to write at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: click.ClickException) -> str:
    """Return click's message and the command that shows the help."""
    path = "appliance"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        path = error.ctx.command_path
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message.replace("is not a valid integer range", "is not a whole number")  # click's name of a type
    return f"{message}{' Or type' if message.endswith('?') else '; type'}: {path} --help"


def _fail(exit_code: int, code: str, message: str, as_json: bool, error: ApplianceError | None = None) -> int:
    """Print an error on stderr: its message, a line for each reason and refusal, and where the manual has its codes.

    Returns the exit code.
    """
    reasons, refusals = ((), ()) if error is None else (error.reasons, error.refusals)
    if as_json:
        sentences = message if error is None else error.sentences
        fields = {"code": code, "message": sentences, "reasons": list(reasons)}
        details = fields | {"refusals": [asdict(one) for one in refusals], "exit_code": exit_code}
        click.echo(encode_json({"error": details}), err=True)
        return exit_code
    click.echo(f"error: {plain(message)} [{code}]", err=True)
    for reason in (*reasons, *map(str, refusals)):
        click.echo(f"  {plain(reason)}", err=True)
    if exit_code != INTERRUPTED:
        places = [address_of_refusal(one.code) for one in refusals] or [address_of_error(code)]
        for place in dict.fromkeys(places):
            click.echo(f"manual: {locate(place)}", err=True)
    return exit_code
