"""The service's log: one line of JSON per event on stderr, or one entry per event in systemd's journal.

Requests have the same names as in the ledger. No line contains text of a person or a request.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from appliance.domain.core.entry import Entry
from appliance.errors import ApplianceError
from appliance.formats.core.stack import encode_stack
from appliance.web.core.journal import JournalHandler, is_stderr_journal

log = structlog.get_logger("appliance.ledger")
_SHOWN = (
    *("request", "unit", "served_model", "adapter", "finish_reason", "prompt_tokens", "completion_tokens"),
    *("code", "count", "run", "base", "dataset"),
)
"""Fields of an entry's body that a log line repeats: names and numbers."""
_QUIET = ("heartbeat", "request.admitted")
"""Types of entries that are not logged."""


def configure_logs(level: int = logging.INFO) -> None:
    """Configure the logs of the service and of its libraries to have one format."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    handler = JournalHandler() if is_stderr_journal() else logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _add_stack,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(sort_keys=True, ensure_ascii=False),
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for library in ("uvicorn", "sqlalchemy", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _add_stack(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the places in the code of an exception, which a diagnosis takes without its messages."""
    found = line.get("exc_info")
    error = found[1] if isinstance(found, tuple) else sys.exc_info()[1] if found is True else found
    if isinstance(error, BaseException):
        line["stack"] = encode_stack(error)
    return line


def set_level(name: str) -> None:
    """Set the level of the service's log: `info`, or `warning` to leave out entries. Alarms are always logged."""
    logging.getLogger().setLevel(name.upper())


def log_entry(entry: Entry, body: Mapping[str, Any], seconds: float | None) -> None:
    """Log a durable entry: its type, index, outcome, actor, and the names in its body.

    `seconds` is the duration of the request that the entry ends.
    """
    if entry.type in _QUIET:
        return
    shown = {name: body[name] for name in _SHOWN if body.get(name) is not None}
    if seconds is not None:
        shown["seconds"] = round(seconds, 3)
    log.info(entry.type, entry=entry.index, actor=entry.actor, outcome=entry.outcome, source=entry.source, **shown)


def log_refused_identity(error: ApplianceError) -> None:
    """Log a sign-in whose ID token was refused: the person and the codes of the refusals, without a claim."""
    if error.code == "identity-refused" and error.claimed is not None:
        reasons = ", ".join(one.code for one in error.refusals)
        log.warning("identity.refused", person=error.claimed[0], reasons=reasons)
