"""The fold is sealed beside the database as the log grows, and when the service ends. The next start continues from it.
Folding a million entries again takes most of a minute, in which nothing is answered.
"""

from __future__ import annotations

import logging
from functools import partial

from appliance.errors import ApplianceError
from appliance.workflows.core import rounds
from appliance.workflows.core.context import Context
from appliance.workflows.core.defects import contain_defects

log = logging.getLogger("appliance")

EVERY_S = 60.0
LEAST = 10_000
"""Entries whose folding, with every check of a row, is not worth a snapshot: less than half a second. A start takes no
fold of fewer from it, only the word that the log had them."""
SHARE = 16
"""While the service runs, by a sixteenth before it is written again: what that costs grows with the log."""


def start(context: Context) -> None:
    """Until the service ends."""
    rounds.start(context, "snapshots", EVERY_S, partial(seal, context, SHARE))


def seal(context: Context, share: int | None = None) -> None:
    """While the service runs, once the log has grown by `LEAST` entries and by the share; at its end, without one, by a
    single entry: an older log in the place of this one is refused from then on, however short it is."""
    try:
        with contain_defects("snapshot"):
            grown = 1 if share is None else max(LEAST, context.ledger.state.size // share)
            context.ledger.seal_snapshot(grown)
    except ApplianceError as error:
        log.warning("the fold could not be kept: %s", error.message)
