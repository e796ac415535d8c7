"""The command that collects what a maintainer needs, into one file without texts, keys or rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, command, with_common_options
from appliance.cli.support.output import print_result, say
from appliance.errors import ApplianceError
from appliance.formats.core.text import show_bytes

if TYPE_CHECKING:
    from appliance.config.settings import Settings

_LONGEST_LINE = 65_536
_ALARM = re.compile(r'appliance_alarm\{code="([a-z-]+)"\} 1\.0')


@command(
    "diagnose",
    example=(
        "appliance diagnose diagnosis.json\n"
        "journalctl -u appliance -o json -n 1000 | appliance diagnose diagnosis.json --service-log - --yes"
    ),
)
@click.argument("file", type=PATH, metavar="FILE")
@click.option(
    "--service-log",
    "log",
    type=click.File("r", errors="replace"),
    metavar="FILE",
    help="The service's log as JSON; - is stdin.",
)
@click.option("--yes", "confirmed", is_flag=True, help="Write the file without asking.")
@with_common_options
def diagnose(caller: Caller, file: Path, log: IO[str] | None, confirmed: bool) -> None:
    """Collect what a maintainer needs to help you, into one file of JSON.

    Lists what the file would contain and asks first. The file has versions, settings without secrets, findings of
    `appliance doctor`, alarms, metrics, counts, and facts about kernel and machine. With --service-log it also has the
    last lines of the service's log, without their messages. It has no text of a person or a request, no row and no key.
    It has names of people, units and adapters, paths and addresses.
    """
    from appliance import wiring
    from appliance.client.support.files import check_free, write_new

    check_free(file, "diagnosis")
    settings = caller.settings
    lines = [] if log is None else [line for line in log if len(line) <= _LONGEST_LINE]
    metrics = _read_metrics(settings)
    sections = {
        "settings": list(_list_settings(caller.home)),
        **dict(wiring.diagnose(settings, lines)),
        "alarms": [found[1] for line in metrics if (found := _ALARM.fullmatch(line))],
        "metrics": metrics,
    }
    say(f"{file} would contain:")
    for name, value in sections.items():
        say(f"  {name}: {_count(value):,} values, {show_bytes(len(json.dumps(value)))}")
    caller.yes = caller.yes or confirmed
    caller.confirm(f"Write it to {file}?")
    write_new(file, json.dumps(sections, indent=1).encode() + b"\n", "diagnosis")
    print_result(caller.json, {"diagnosis": str(file)}, [("written", str(file))])
    say("Read it before you hand it over: it has names of people, units and adapters, paths and addresses.")


def _list_settings(home: Path | None) -> Iterator[dict[str, str | None]]:
    """Yield the settings. Passwords are masked, and of a program only its path is shown."""
    from appliance.config.description import explain_settings

    for one in explain_settings(home):
        value = one.value
        if value and one.name == "notification_command":
            value = f"{value.split()[0]} ***"
        yield {"name": one.name, "value": value, "source": one.source}


def _read_metrics(settings: Settings) -> list[str]:
    """Return the metrics of the running service as lines, or one line that says why there are none."""
    from appliance.client.metrics import read_metrics
    from appliance.client.support.files import read_private

    if settings.operations is None or settings.operations_token is None:
        return ["# the operations listener is off"]
    try:
        token = read_private(settings.operations_token, "operations token", 1_024).strip()
        text = read_metrics(*settings.operations, token, settings.certificate)
    except ApplianceError as error:
        return [f"# none: {error.message}"]
    return [line for line in text.splitlines() if not line.startswith("#")]


def _count(value: object) -> int:
    return len(value) if isinstance(value, list | dict) else 1
