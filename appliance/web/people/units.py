"""What a unit reads at the people's door: the log, and what it needs to sign. Its adapters answer at its own door."""

from __future__ import annotations

import re

from appliance.domain.core.roles import is_unit
from appliance.errors import Denied
from appliance.web.core.auth import Session
from appliance.workflows.core.context import Context

_FOR_UNITS = re.compile(
    r"/v1/(?:console/links|orders/(?:check|waiting)|policy|principals|rules|ledger(?:/[0-9]+|/state|/export)?|documents/[^/]+)"
)
"""Neither sealed files nor rows, no upload, and nothing that starts a worker."""


def check_unit(context: Context, session: Session, path: str) -> None:
    """Denied where a unit asks for what only people are told: other units' adapters are among it."""
    if is_unit(context.ledger.state, session.principal) and _FOR_UNITS.fullmatch(path) is None:
        raise Denied(
            f"{path:.80}, which is for people",
            reasons=(f"role: expected {session.principal} to be a person, got a unit",),
        )
