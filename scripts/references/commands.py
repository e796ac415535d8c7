"""docs/reference/cli.md: every command with its options, from the command line itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from appliance.cli.main import COMMANDS, cli
from appliance.cli.support.command import SharedOption
from scripts.references.tables import table

Found = tuple[click.Command, click.Context]


def render_commands() -> str:
    """docs/reference/cli.md: a section for each audience, and one below it for each command."""
    sections = []
    for audience in dict.fromkeys(entry.audience for entry in COMMANDS.values()):
        names = [name for name, entry in COMMANDS.items() if entry.audience == audience]
        parts = [_render(*found) for name in names for found in find_leaves(name)]
        sections.append("\n\n".join((f"## {audience}", *parts)))
    return _PAGE.format(
        shared=table(("option", "effect"), _options(cli, click.Context(cli))), sections="\n\n".join(sections)
    )


def find_leaves(name: str) -> Iterator[Found]:
    """Yield each command that does something, of a command of the first level."""
    root = click.Context(cli, info_name="appliance")
    command = cli.get_command(root, name)
    assert command is not None
    yield from _walk(command, click.Context(command, info_name=name, parent=root))


def _walk(command: click.Command, context: click.Context) -> Iterator[Found]:
    if not isinstance(command, click.Group):
        yield command, context
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from _walk(below, click.Context(below, info_name=name, parent=context))


def _render(command: click.Command, context: click.Context) -> str:
    pieces = [piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
    usage = f"```\n{' '.join((context.command_path, *pieces))}\n```"
    rows = list(_options(command, context))
    parts = [f"### appliance {context.command_path.partition(' ')[2]}", _paragraphs(command.help or "")]
    parts += [usage] if pieces else []
    parts += [table(("option", "effect"), rows)] if rows else []
    example = getattr(command, "example", "")
    parts += [f"```sh\n{example}\n```"] if example else []
    return "\n\n".join(parts)


def _paragraphs(help_text: str) -> str:
    """Return a help text with one line a paragraph, which the pages wrap."""
    return "\n\n".join(_wrap(part) for part in re.split(r"\n\s*\n", help_text.strip()))


def _wrap(text: str) -> str:
    lines = [""]
    for word in text.replace("\b", "").split():
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) > 100:
            lines.append(word)
        else:
            lines[-1] = joined
    return "\n".join(lines)


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the options of a command that are its own; for the first level, those that every command takes."""
    for parameter in command.get_params(context):
        is_own = isinstance(parameter, click.Option) and "--help" not in parameter.opts
        if is_own and (command is cli or not isinstance(parameter, SharedOption)):
            record = parameter.get_help_record(context)
            if record is not None:
                yield f"`{record[0]}`".replace("|", r"\|"), re.sub(r"\s+", " ", record[1]).replace("|", r"\|")


_PAGE = """# Commands

Every command, with its own options and an example. `COMMAND --help` prints the same.
[The command line](../guides/command-line.md) explains how commands sign, what they print, and what
a login stores. [Exit codes and error codes](errors.md) lists how a command can end. This page is
written by `scripts/reference` from the command line itself.

Every command takes those of these options that it can use:

{shared}

{sections}
"""
