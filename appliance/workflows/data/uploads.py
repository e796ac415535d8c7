"""Uploads that nobody imported are removed after a day."""

from __future__ import annotations

import logging

from appliance.errors import ApplianceError
from appliance.workflows.core.context import Context
from appliance.workflows.data.imports import discard_unwanted

log = logging.getLogger("appliance")

KEPT_S = 86_400


def sweep_uploads(context: Context) -> None:
    """Removes what was sent a day ago and that no import waits for. What cannot be removed is logged, and stays until
    the next time."""
    sent_by = context.clock().timestamp() - KEPT_S
    old = [digest for digest, one in context.artifacts.uploads().items() if one.sent_at <= sent_by]
    if not old:
        return
    try:
        discard_unwanted(context, old, sent_by)
    except ApplianceError as error:
        log.warning("%d uploads that nobody imported stay: %s", len(old), error.code)
