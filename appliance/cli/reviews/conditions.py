"""Conditions as options of a command: of a release request, and of an approval."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.times import END_HELP, parse_end

if TYPE_CHECKING:
    from appliance.domain.core.decisions import Conditions

CONDITIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--not-before", metavar="TIME", help=f"Condition: no answer before it. {END_HELP}"),
    click.option("--not-after", metavar="TIME", help=f"Condition: no answer from it on. {END_HELP}"),
    click.option(
        "--only-task", "tasks", multiple=True, metavar="NAME", help="Condition: only for this task. Can be repeated."
    ),
    click.option(
        "--answers-a-day",
        type=click.IntRange(1),
        metavar="N",
        help="Condition: at most this many requests a day (UTC), of all tasks and programs of the unit.",
    ),
)


def parse_conditions(
    not_before: str | None, not_after: str | None, tasks: tuple[str, ...], answers_a_day: int | None
) -> Conditions | None:
    """None where no condition is given."""
    from appliance.client.releases.decisions import make_conditions

    now = datetime.now(UTC)
    values = {
        "not_before": None if not_before is None else parse_end(not_before, "not before", now),
        "not_after": None if not_after is None else parse_end(not_after, "not after", now),
        "tasks": tasks,
        "answers_a_day": answers_a_day,
    }
    return make_conditions(values)
