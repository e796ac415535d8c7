"""The fold is sealed beside the database as the log grows, and when the service ends: the next one goes on from it.

To fold a million entries again takes most of a minute, in which nobody is answered.
"""

from __future__ import annotations

import logging
from functools import partial

from appliance.errors import ApplianceError
from appliance.workflows import rounds
from appliance.workflows.context import Context
from appliance.workflows.defects import foreseen

log = logging.getLogger("appliance")

EVERY_S = 60.0
LEAST = 10_000
"""Entries whose folding is not worth a snapshot: less than half a second."""
SHARE = 16
"""While the service runs, by a sixteenth before it is written again: what that costs grows with the log."""


def start(context: Context) -> None:
    """Until the service ends."""
    rounds.start(context, "snapshots", EVERY_S, partial(seal, context, SHARE))


def seal(context: Context, share: int | None = None) -> None:
    """Once the log has grown by `LEAST` entries, and by the share where one is given. Without it the next start takes
    longer, and that is all."""
    try:
        with foreseen("snapshot"):
            grown = 0 if share is None else context.ledger.state.size // share
            context.ledger.seal_snapshot(max(LEAST, grown))
    except ApplianceError as error:
        log.warning("the fold could not be kept: %s", error.message)
