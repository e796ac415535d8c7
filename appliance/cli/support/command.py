"""How a command of ours looks: its help ends in an example, and shared options stand anywhere on the line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.output import say_wide

F = TypeVar("F", bound=Callable[..., Any])

SHARED = "Appliance options"


class SharedOption(click.Option):
    """An option that every command has: it is kept in the caller and listed in a section of its own."""


class _WithExample(click.Command):
    """Help in three parts: what the command is about, its own options and the shared ones, an example."""

    def __init__(self, *arguments: Any, example: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.example = example

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and isinstance(parameter, click.Option):
                (shared if isinstance(parameter, SharedOption) else own).append(record)
        for title, records in (("Options", own), (SHARED, shared)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(context, formatter)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                indent = " " * formatter.current_indent
                for line in re.sub(_CONTINUES, " ", self.example).splitlines():
                    for part in _continued(line, formatter.width - len(indent)):
                        formatter.write(f"{indent}{part}\n")


_CONTINUES = r" \\\n +"
"""Where a shell reads on in the next line."""


def _continued(line: str, width: int) -> list[str]:
    """A line of an example within the width, as a shell takes it: it goes on before an option."""
    if len(line) <= width:
        return [line]
    lines = [""]
    for part in re.split(r" (?=--)", line):
        joined = f"{lines[-1]} {part}" if lines[-1] else part
        if len(joined) + len(" \\") > width and lines[-1]:
            lines.append(f"    {part.strip()}")
        else:
            lines[-1] = joined
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


class Command(_WithExample):
    """Names every option that is missing, not only the first."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(context, args)
        except click.MissingParameter as error:
            missing = self._missing(context, given) if isinstance(error.param, click.Option) else []
            if len(missing) < 2:
                raise
            raise click.UsageError(f"Missing options {', '.join(missing)}", ctx=context) from None

    def _missing(self, context: click.Context, given: list[str]) -> list[str]:
        found, _, _ = self.make_parser(context).parse_args(given)
        options = (option for option in self.get_params(context) if isinstance(option, click.Option))
        return [option.opts[0] for option in options if option.required and option.name not in found]


class CommandGroup(_WithExample, click.Group):
    """A group without a command shows its help and succeeds."""

    command_class = Command

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(context, args or ["--help"])

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with the whole first sentence of its help: click would cut it to the line."""
        listed = [(name, self.get_command(context, name)) for name in self.list_commands(context)]
        rows = [(name, found.get_short_help_str(limit=1_000)) for name, found in listed if found is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def group(name: str, *, example: str) -> Callable[[Callable[..., Any]], CommandGroup]:
    """A group of commands about one kind of thing."""
    return click.group(name, cls=CommandGroup, example=example)


def command(name: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    """A command that stands alone."""
    return click.command(name, cls=Command, example=example)


def _remember(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            setattr(context.ensure_object(Caller), attribute, value)

    return callback


def _option(flag: str, attribute: str, help: str, **settings: Any) -> Callable[[F], F]:
    # Under a name of its own, so that no command's argument is taken for it.
    return click.option(
        flag,
        f"caller_{attribute}",
        cls=SharedOption,
        expose_value=False,
        callback=_remember(attribute),
        help=help,
        **settings,
    )


def _file() -> click.Path:
    return click.Path(path_type=Path)


# A member of the socket's group passes the folder and cannot read it.
FOLDER = click.Path(path_type=Path, readable=False)
_HOME = _option("--home", "home", "The appliance's data folder (APPLIANCE_HOME).", metavar="FOLDER", type=FOLDER)
_JSON = _option("--json", "json", "Print JSON on stdout; errors too, on stderr.", is_flag=True)
_KEY = _option("--key", "key", "Your key file (APPLIANCE_KEY).", metavar="FILE", type=_file())
_AS = _option("--as", "name", "Your name here (APPLIANCE_PRINCIPAL).", metavar="NAME")
_FD = _option(
    "--passphrase-fd", "passphrase_fd", "Read the passphrase from this descriptor.", metavar="N", type=click.INT
)
_PASSPHRASE = _option(
    "--passphrase-file", "passphrase_file", "Read the passphrase from a 0600 file.", metavar="FILE", type=_file()
)
_TRUST = _option(
    "--trust", "trust_file", "Check against this trust file (APPLIANCE_TRUST).", metavar="FILE", type=_file()
)


def be_wide(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        say_wide()


_WIDE = click.option(
    "--wide",
    cls=SharedOption,
    is_flag=True,
    expose_value=False,
    callback=be_wide,
    help="Do not cut or wrap lines to the terminal's width.",
)
_YES = _option("--yes", "yes", "Sign without asking.", is_flag=True)


def _all(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def shares(function: F) -> F:
    """For a command that needs no key."""
    return _all(_HOME, _WIDE, _JSON)(function)


def keyed(function: F) -> F:
    """For a command that uses a person's key, without a service."""
    return _all(_KEY, _AS, _FD, _PASSPHRASE, _HOME, _JSON)(function)


def reads(function: F) -> F:
    """For a command that reads under a person's session."""
    return _all(_KEY, _AS, _FD, _PASSPHRASE, _TRUST, _HOME, _WIDE, _JSON)(function)


def signs(function: F) -> F:
    """For a command by which a person signs."""
    return _all(_YES, _KEY, _AS, _FD, _PASSPHRASE, _TRUST, _HOME, _WIDE, _JSON)(function)
