"""Classes and decorators of commands: help that ends in an example, and shared options at any place on the line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from appliance.addresses import locate
from appliance.cli.support.caller import Caller
from appliance.cli.support.output import disable_shortening
from appliance.errors import BadInput

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")


class SharedOption(click.Option):
    """An option of the root and of commands. Its value goes to the caller.

    The help of a command lists it in a section of its own.
    """

    def resolve_envvar_value(self, context: click.Context) -> str | None:
        """Return the variable's value for the root alone, since that of a command would replace the root's option."""
        return super().resolve_envvar_value(context) if context.parent is None else None


class _WithExample(click.Command):
    """A command whose help has its text, its own options, the shared options, an example and a place in the manual."""

    manual = ""
    """Address in the manual of a command of the first level."""

    def __init__(self, *arguments: Any, example: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.example = example

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and isinstance(parameter, click.Option):
                is_shared = isinstance(parameter, SharedOption) and context.parent is not None
                (shared if is_shared else own).append(record)
        for title, records in (("Options", own), ("Appliance options", shared)):
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
        if self.manual:
            formatter.write(f"\nManual: {locate(self.manual)}\n")


_MOST_PATHS = 4
"""Most commands that the error for an unknown command names."""
_CONTINUES = r" \\\n +"
"""A line continuation of the shell."""


def _continued(line: str, width: int) -> list[str]:
    """Return a line of an example within the width, continued before its options."""
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
    """A command that names every missing option instead of only the first.

    `without_argument` follows the error for an argument that the command does not take.
    """

    def __init__(self, *arguments: Any, without_argument: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.without_argument = without_argument

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(context, args)
        except click.MissingParameter as error:
            missing = self._missing(context, given) if isinstance(error.param, click.Option) else []
            if len(missing) < 2:
                raise
            raise click.UsageError(f"Missing options {', '.join(missing)}", ctx=context) from None
        except click.UsageError as error:
            if type(error) is not click.UsageError or not self.without_argument:
                raise
            raise click.UsageError(f"{error.message.rstrip('.')}. {self.without_argument}", ctx=context) from None

    def _missing(self, context: click.Context, given: list[str]) -> list[str]:
        given_options, _, _ = self.make_parser(context).parse_args(given)
        options = (option for option in self.get_params(context) if isinstance(option, click.Option))
        return [option.opts[0] for option in options if option.required and option.name not in given_options]


class CommandGroup(_WithExample, click.Group):
    """A group of commands that shows its help if no command is given."""

    command_class = Command

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(context, args or ["--help"])

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a command.

        The error for an unknown one names commands of its name in other groups, or a similar one of this group.
        """
        name = arguments[0]
        if name.startswith("-") or context.resilient_parsing or self.get_command(context, name) is not None:
            return super().resolve_command(context, arguments)
        root = context.find_root()
        near = difflib.get_close_matches(name, self.list_commands(context), n=1)
        paths = [path for path in list_paths(root.command, root) if path.rpartition(" ")[2] == name]
        paths = paths or [f"{context.command_path} {one}" for one in near]
        more = f", or {len(paths) - _MOST_PATHS} others" if len(paths) > _MOST_PATHS else ""
        hint = f" Did you mean {' or '.join(paths[:_MOST_PATHS])}{more}?" if paths else ""
        raise click.UsageError(f"No such command {name!r}.{hint}", context)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the whole first sentence of its help, which click would shorten."""
        listed = [(name, self.get_command(context, name)) for name in self.list_commands(context)]
        rows = [
            (name, found_command.get_short_help_str(limit=1_000))
            for name, found_command in listed
            if found_command is not None
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def list_paths(command: click.Command, context: click.Context, path: str = "appliance") -> Iterator[str]:
    """Yield the full paths of all commands and groups below a command."""
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield f"{path} {name}"
        yield from list_paths(below, context, f"{path} {name}")


def command(name: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    """Return a decorator for a command outside a group."""
    return click.command(name, cls=Command, example=example)


def combine(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator for several, whose options help lists in this order."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


PATH = click.Path(path_type=Path)
# A member of the socket's group passes the folder and cannot read it.
FOLDER = click.Path(path_type=Path, readable=False)


def _store_in_caller(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            setattr(context.ensure_object(Caller), attribute, value)

    return callback


def _option(flag: str, attribute: str, help: str, **settings: Any) -> Callable[[F], F]:
    # The prefix keeps the name apart from the command's own arguments.
    return click.option(
        flag,
        f"caller_{attribute}",
        cls=SharedOption,
        expose_value=False,
        callback=_store_in_caller(attribute),
        help=help,
        show_envvar=True,
        **settings,
    )


def _disable_shortening(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        disable_shortening()


_HOME = _option(
    "--home", "home", "The appliance's data folder.", metavar="FOLDER", type=FOLDER, envvar="APPLIANCE_HOME"
)
_KEY = _option("--key", "key", "Your key file.", metavar="FILE", type=PATH, envvar="APPLIANCE_KEY")
_AS = _option("--as", "name", "Your name here.", metavar="NAME", envvar="APPLIANCE_PRINCIPAL")
_FD = _option(
    "--passphrase-fd", "passphrase_fd", "Read the passphrase from this descriptor.", metavar="N", type=click.INT
)
_PASSPHRASE = _option(
    "--passphrase-file", "passphrase_file", "Read the passphrase from a 0600 file.", metavar="FILE", type=PATH
)
_TRUST = _option(
    "--trust", "trust_file", "Check against this trust file.", metavar="FILE", type=PATH, envvar="APPLIANCE_TRUST"
)
_JSON = _option("--json", "json", "Print JSON on stdout; errors too, on stderr.", is_flag=True)
_WIDE = click.option(
    "--wide",
    cls=SharedOption,
    is_flag=True,
    expose_value=False,
    callback=_disable_shortening,
    help="Do not cut or wrap lines to the terminal's width.",
)
_YES = _option("--yes", "yes", "Sign without asking.", is_flag=True)

with_root_options = combine(_HOME, _KEY, _AS, _FD, _PASSPHRASE, _TRUST, _JSON, _WIDE, _YES)
"""Decorator that adds all options of the caller."""


WithCaller = Callable[Concatenate[Caller, P], None]


def _with_caller(*options: Callable[[Any], Any]) -> Callable[[WithCaller[P]], Callable[P, None]]:
    """Return a decorator that adds options of the caller, and passes the caller as the first argument."""

    def decorate(function: WithCaller[P]) -> Callable[P, None]:
        decorated: Callable[P, None] = combine(*options)(click.pass_obj(function))
        return decorated

    return decorate


with_common_options = _with_caller(_HOME, _WIDE, _JSON)
"""Decorator of a command that needs no key."""
with_key_options = _with_caller(_KEY, _AS, _FD, _PASSPHRASE, _HOME, _JSON)
"""Decorator of a command that uses a person's key without a service."""
with_passphrase_options = _with_caller(_FD, _PASSPHRASE, _HOME, _WIDE, _JSON)
"""Decorator of a command that needs the passphrase of keys that are no person's."""
with_session_options = _with_caller(_KEY, _AS, _FD, _PASSPHRASE, _TRUST, _HOME, _WIDE, _JSON)
"""Decorator of a command that reads with a person's session."""
with_signing_options = _with_caller(_YES, _KEY, _AS, _FD, _PASSPHRASE, _TRUST, _HOME, _WIDE, _JSON)
"""Decorator of a command that signs."""

_REASON_HELP = "Why, in your words; can be erased later."
REASON = click.option("--reason", metavar="TEXT", help=_REASON_HELP)
REQUIRED_REASON = click.option("--reason", required=True, metavar="TEXT", help=_REASON_HELP)


def with_tls_options(ca: str) -> Callable[[F], F]:
    """Return a decorator that adds the options of a client's TLS. `ca` is the help of --ca."""
    return combine(
        click.option("--ca", type=PATH, metavar="FILE", help=ca),
        click.option(
            "--certificate",
            type=PATH,
            metavar="FILE",
            help="This host's certificate in PEM, if the server asks for one.",
        ),
        click.option("--certificate-key", type=PATH, metavar="FILE", help="Its private key in PEM."),
    )


def pair_certificate(command: str, certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """Return this host's certificate and key, or None without them.

    Raises: BadInput if one of the two is missing.
    """
    if certificate is not None and key is not None:
        return certificate, key
    if certificate is not None or key is not None:
        raise BadInput(f"{command}: expected --certificate and --certificate-key, got one without the other")
    return None
