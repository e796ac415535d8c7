"""Unexpected errors in threads that must continue: each is logged at once, and becomes an ordinary error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import ApplianceError, Unavailable

log = logging.getLogger("appliance")
DEFECT, DISK = "defect", "disk"


@contextmanager
def contain_defects(what: str) -> Iterator[None]:
    """Whatever is raised within leaves as an ApplianceError: the disk's as Unavailable (`disk`), and a defect of the
    appliance under the code `defect`, after an ALARM that has its traceback."""
    try:
        yield
    except ApplianceError:
        raise
    except OSError as error:
        raise Unavailable(f"{what}, disk: expected it to work, got {error}", code=DISK) from error
    except Exception as error:
        # One place for all threads that carry jobs, make rounds or read an engine: one that died would let whatever
        # queued after it would wait for ever, without an error.
        log.critical("ALARM: %s: a defect of the appliance", what, exc_info=True)
        got = type(error).__name__
        raise ApplianceError(
            f"{what}: expected no defect of the appliance, got {got}; see the service's log", code=DEFECT
        ) from error
