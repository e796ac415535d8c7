"""The service's log: a line of JSON for each thing that happened, on stderr. Requests are named as in the ledger, and
no line has a text of a person or a request."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from appliance.domain.core.entry import Entry

log = structlog.get_logger("appliance.ledger")
_SHOWN = (
    *("request", "unit", "task", "adapter", "finish_reason", "prompt_tokens", "completion_tokens"),
    *("code", "count", "run", "base", "dataset"),
)
"""Members of an entry's body that a line repeats: names and numbers."""
_QUIET = ("heartbeat", "request.admitted")
"""Each has its other end in the log."""


def configure_logs(level: int = logging.INFO) -> None:
    """Every line of the service and its libraries, in one form."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
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


def log_entry(entry: Entry, body: Mapping[str, Any], seconds: float | None) -> None:
    """What became durable: its type, place and outcome, who did it, and the names in it."""
    if entry.type in _QUIET:
        return
    shown = {name: body[name] for name in _SHOWN if body.get(name) is not None}
    if seconds is not None:
        shown["seconds"] = round(seconds, 3)
    log.info(entry.type, entry=entry.index, actor=entry.actor, outcome=entry.outcome, source=entry.source, **shown)
