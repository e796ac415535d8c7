"""What is done again and again, in a thread of its own, for as long as the service runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from appliance.errors import ApplianceError
from appliance.workflows.core.context import Context
from appliance.workflows.core.defects import contain_defects

log = logging.getLogger("appliance")

AFTER_FAILURE_S = 60.0
"""A round that failed is followed by another no sooner: a thread that fails each second would fill the log."""


def start(context: Context, name: str, every_s: float, work: Callable[[], object]) -> None:
    """Begins the next round so many seconds after the last, whatever became of that one."""

    def go_round() -> None:
        pause_s = every_s
        while not context.closing.wait(pause_s):
            pause_s = every_s
            try:
                with contain_defects(name):
                    work()
            except ApplianceError as error:
                pause_s = max(every_s, AFTER_FAILURE_S)
                if not context.closing.is_set():
                    log.critical("ALARM: %s failed and is tried again: %s", name, error.message)

    threading.Thread(target=go_round, name=name, daemon=True).start()
