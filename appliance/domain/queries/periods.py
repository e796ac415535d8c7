"""Since when a unit could load what: the moments at which the answer may change, and whether it did."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta

from appliance.domain.core.names import Time, add_seconds
from appliance.domain.queries.could_load import Candidate, CouldLoad
from appliance.formats.core.timestamp import encode_time, parse_time

_TIME = re.compile(r'"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z)"')
_LENGTH = re.compile(r'_s":([0-9]+)')


def dates_between(values: Iterable[str], since: Time, until: Time) -> list[Time]:
    """Every moment in between at which a rule may decide otherwise although no entry was appended.

    The rules compare a moment with the times that `values` name (rows in canonical JSON), or with such a time and one
    of the policy's lengths, which are in seconds and are in a row too. The millisecond after each is one, too: some
    rules count a moment itself, some do not.
    """
    texts = list(values)
    times = {time for text in texts for time in _TIME.findall(text)}
    lengths = {0, *(int(length) for text in texts for length in _LENGTH.findall(text))}
    found = {add_seconds(time, length) for time in times if time < until for length in lengths}
    found |= {encode_time(parse_time(time) + timedelta(milliseconds=1)) for time in found if since <= time < until}
    return sorted(time for time in found if since < time < until)


def is_same(one: CouldLoad, other: CouldLoad) -> bool:
    """Whether both say that the same could be loaded by the same decisions. The moment, the engine's slots and adapters
    that no release named do not count."""
    return _gist(one) == _gist(other)


def _gist(answer: CouldLoad) -> tuple[object, ...]:
    tasks = tuple((task.task, task.could_load, task.release.entry, _decided(task.candidate)) for task in answer.tasks)
    return tasks, answer.exported


def _decided(candidate: Candidate) -> tuple[object, ...]:
    counts = tuple(review.entry for review in candidate.reviews if review.against is None)
    return candidate.adapter, counts, tuple(sorted({reason.partition(":")[0] for reason in candidate.reasons}))
