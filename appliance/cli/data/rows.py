"""Files of rows: sent with a meter, checked before they are a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, reads
from appliance.cli.support.output import plain, print_facts, print_json, say
from appliance.cli.support.progress import Meter
from appliance.domain.data.tasks import FORMATS, TASKS
from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.client.checks import Teaching
    from appliance.client.support.uploads import Source

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def describes_rows(function: F) -> F:
    """The options that say what a file's rows teach and how they are divided."""
    for option in (*_TEACHES, *_DIVIDES)[::-1]:
        function = option(function)
    return function


def describes_set(function: F) -> F:
    """Those of rows that all judge."""
    for option in _TEACHES[::-1]:
        function = option(function)
    return function


def describes_terms(function: F) -> F:
    """Those that say whose the data is, and under which terms."""
    for option in _TERMS[::-1]:
        function = option(function)
    return function


_TEACHES = (
    click.option(
        "--task", type=click.Choice(TASKS), default="classification", show_default=True, help="What the rows teach."
    ),
    click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="PART=COLUMN",
        help="The file's column for a part of the task's rows, or for a cluster or slice.",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="WORD",
        help="A label. Can be repeated. Default: all in the file.",
    ),
    click.option("--instruction", default="", metavar="TEXT", help="The system message of every row."),
    click.option(
        "--format", "kind", type=click.Choice(FORMATS), help="Needed when the file's ending does not show it."
    ),
)
_DIVIDES = (
    click.option("--seed", metavar="N", default=1, show_default=True, help="Selects which rows are held out."),
    click.option(
        "--held-out",
        default="0.2",
        show_default=True,
        metavar="FRACTION",
        help="The share of rows kept for evaluation.",
    ),
    click.option(
        "--held-out-file",
        type=PATH,
        metavar="FILE",
        help="Keep this file's rows for evaluation instead of a share.",
    ),
)
_TERMS = (
    click.option("--owner", required=True, metavar="TEXT", help="Who owns the data; can be erased later."),
    click.option("--licence", required=True, metavar="SPDX", help="The licence's SPDX identifier, or LicenseRef-NAME."),
    click.option("--classification", required=True, metavar="WORD", help="Such as public, internal or restricted."),
)


def read_columns(pairs: tuple[str, ...]) -> dict[str, str]:
    """PART=COLUMN, each part once."""
    columns: dict[str, str] = {}
    for pair in pairs:
        part, sign, name = pair.partition("=")
        if not (part and sign and name) or part in columns:
            raise BadInput(f"dataset, --column: expected PART=COLUMN, each part once, got {pair!r}")
        columns[part] = name
    return columns


def read_sources(path: Path, held_out_file: Path | None, kind: str | None) -> list[Source]:
    """The rows and, where they are a file of their own, those held out; hashed, and in one format."""
    from appliance.client.imports import read_rows

    sources = [read_rows(file, kind) for file in (path, held_out_file) if file is not None]
    if len({source.format for source in sources}) > 1:
        first, second = (source.format for source in sources)
        raise BadInput(f"dataset, {held_out_file}: expected {first}, the format of {path}, got {second}")
    return sources


def send(caller: Caller, source: Source) -> None:
    """Sends what was hashed, with a meter."""
    from appliance.client.support.uploads import upload

    meter = Meter("sends", source.total_bytes, "bytes")
    upload(caller.reading(), source, meter.advance)
    meter.close()


def check_before_import(caller: Caller, teaching: Teaching, sources: Sequence[Source], path: Path) -> None:
    """What was found in the rows, on stderr, before anything is signed; BadInput where an import would fail."""
    from appliance.client.checks import check_rows, list_facts, list_warnings, refuse_errors

    found = check_rows(caller.reading(), teaching, sources, keep=True)
    print_facts(list_facts(found), err=True)
    say(*(f"warning: {plain(text)}" for text in list_warnings(found)))
    refuse_errors(found, str(path), ", nothing was imported")


@command("check", example="appliance dataset check clauses.csv\nappliance dataset check clauses.csv --base smollm2")
@click.argument("path", type=PATH)
@describes_rows
@click.option("--base", metavar="NAME", help="Count tokens with this base, and compare with its context.")
@reads
@click.pass_obj
def check(
    caller: Caller,
    /,
    path: Path,
    held_out_file: Path | None,
    kind: str | None,
    columns: tuple[str, ...],
    **given: Any,
) -> None:
    """Find every row of a file that an import would refuse, and what is unusual. Nothing is recorded.

    Names every row that does not fit, counts labels, and lists labels that are nearly the same and repeated texts; with
    --base also lengths. The service's sandboxed worker reads the file, which is not kept.
    """
    from appliance.client.checks import Teaching, check_rows, list_facts, list_warnings, refuse_errors

    teaching = Teaching(columns=read_columns(columns), **given)
    sources = read_sources(path, held_out_file, kind)
    for source in sources:
        send(caller, source)
    found = check_rows(caller.reading(), teaching, sources, keep=False)
    warnings = list_warnings(found)
    if caller.json:
        print_json({**found, "warnings": warnings})
    else:
        print_facts([*list_facts(found), *(("warning", text) for text in warnings)])
    refuse_errors(found, str(path))
