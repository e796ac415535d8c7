"""The facts that a maintainer needs about an appliance: names, numbers, versions and codes.

There is no text of a person, no row, no key and no token. Of the service's log only attributes with known names are
taken. Exceptions are taken from the attribute `stack`, which the service writes without their messages.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.build import COMPATIBILITY, build_version
from appliance.domain.actions.registry import EVENTS
from appliance.domain.core.state import State, Table
from appliance.domain.queries.alarms import CODES
from appliance.errors import ApplianceError
from appliance.formats.core.stack import parse_stack
from appliance.formats.core.timestamp import encode_time
from appliance.store.database.engine import stored_bytes, using_engine
from appliance.store.database.tables import REVISION
from appliance.store.ledger.checks import summarise_database
from appliance.workflows.core.context import describe_code
from appliance.workflows.operations.doctor import Installation, run_checks
from appliance.workflows.queries.measures import measure_disk
from appliance.workflows.runs.planning import host_memory

LOG_ATTRIBUTES = frozenset(
    {
        *("time", "level", "logger", "event", "entry", "actor", "outcome", "source", "seconds", "code", "count"),
        *("request", "unit", "served_model", "adapter", "run", "base", "dataset", "finish_reason"),
        *("prompt_tokens", "completion_tokens"),
    }
)
"""Attributes of a log line that are taken."""
MOST_LINES = 1_000
"""Most lines of the log that are taken: the last ones."""
_VALUE = re.compile(r"[A-Za-z0-9_.:@/+-]{1,128}")
_JOURNAL = "APPLIANCE_"


def collect(
    installation: Installation, environment: Mapping[str, str], now: datetime, log: Iterable[str]
) -> Iterator[tuple[str, Any]]:
    """Yield each section's name with its JSON value. `log`: lines of the service's log, as JSON."""
    yield "build", _describe_build(now)
    yield "machine", _describe_machine(installation.home)
    yield "packages", dict(sorted({one.name: one.version for one in importlib.metadata.distributions()}.items()))
    yield "doctor", [asdict(check) for check in run_checks(installation, environment, now)]
    yield "database", _describe_database(installation)
    yield "files", _count_files(installation.home)
    yield "log", [line for text in list(log)[-MOST_LINES:] if (line := filter_line(text))]


def _describe_build(now: datetime) -> dict[str, Any]:
    return {
        "time": encode_time(now),
        "version": build_version(),
        "compatibility": COMPATIBILITY,
        "code": describe_code().digest,
        "python": sys.version,
    }


def _describe_machine(home: Path) -> dict[str, Any]:
    system = platform.uname()
    disk = measure_disk(home)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "kernel": f"{system.system} {system.release} {system.version}",
        "machine": system.machine,
        "distribution": _read_value(Path("/etc/os-release"), "PRETTY_NAME="),
        "processor": _read_value(Path("/proc/cpuinfo"), "model name"),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": host_memory(now=False),
        "available_bytes": host_memory(now=True),
        "disk_bytes": disk.total,
        "disk_free_bytes": disk.free,
        "disk_needed_bytes": disk.needed,
        "open_files_limit": files,
        "nvidia": os.path.exists("/dev/nvidiactl"),
        "user": os.geteuid(),
    }


def _read_value(path: Path, name: str) -> str | None:
    """Return the value of the first line that begins with the name, or None."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = (line.removeprefix(name).strip(' \t:="') for line in lines if line.startswith(name))
    return next(found, None)


def _describe_database(installation: Installation) -> dict[str, Any]:
    """Return the kind, revision and size of the database, and the rows of the state by their kind."""
    with using_engine(installation.database_url) as engine:
        found: dict[str, Any] = {"kind": engine.dialect.name, "expected_revision": REVISION}
        try:
            seen = summarise_database(engine)
            found |= {"entries": seen.size, "bytes": stored_bytes(engine), "rows": _count_rows(seen.state)}
        except ApplianceError as error:
            found["error"] = error.code
    return found


def _count_rows(state: State | None) -> dict[str, int]:
    tables = {} if state is None else {name: table for name, table in vars(state).items() if isinstance(table, Table)}
    return {name: count for name, table in tables.items() if (count := len(table.values()))}


def _count_files(home: Path) -> dict[str, dict[str, int]]:
    """Return the number and the bytes of the files in each folder of the home, without their names."""
    counts = {}
    for folder in ("artifacts", "checkpoints", "steps", "uploads", "logs", "witnessed"):
        sizes = [path.lstat().st_size for path in (home / folder).rglob("*") if path.is_file()]
        counts[folder] = {"files": len(sizes), "bytes": sum(sizes)}
    return counts


def filter_line(text: str) -> dict[str, Any] | None:
    """Return the known attributes of a line of the service's log, or None if the line is not JSON.

    The line is that of stderr, or of `journalctl -o json`.
    """
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    line = _name_attributes(line)
    kept: dict[str, Any] = {
        name: value for name, value in line.items() if name in LOG_ATTRIBUTES - {"event"} and _is_plain(value)
    }
    if (event := _name_event(line.get("event"))) is not None:
        kept["event"] = event
    if isinstance(stack := line.get("stack"), str) and (found := parse_stack(stack)):
        kept["exceptions"] = [{"class": one.name, "frames": list(one.frames)} for one in found]
    return kept


def _name_attributes(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line with the names of stderr's attributes; those of the journal are fields such as APPLIANCE_ENTRY."""
    named = {name.removeprefix(_JOURNAL).lower(): value for name, value in line.items() if name.startswith(_JOURNAL)}
    if not named:
        return line
    return named | {"time": line.get("__REALTIME_TIMESTAMP"), "level": line.get("PRIORITY")}


def _is_plain(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and _VALUE.fullmatch(value) is not None)


def _name_event(event: object) -> str | None:
    """Return a type of entries or the code of an alarm. Any other text is left out."""
    if not isinstance(event, str):
        return None
    if event in EVENTS:
        return event
    return next((part for part in event.split(": ")[:2] if part in CODES), None)
