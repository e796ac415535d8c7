"""The log's own key, and how another takes its place."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Endorsed
from appliance.domain.core.names import Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.policy import own_witnesses
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.site import LogKey
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.governance.keys import overlap
from appliance.errors import BadInput
from appliance.formats.log.note import parse_vkey


class RotateLogKey(Order):
    """A new key signs the log's checkpoints; until a time the old ones sign beside it."""

    verb = "rotate-log-key"
    log_key: str = Field(max_length=400)
    old_until: Time

    def subjects(self) -> Subjects:
        return self._self("log-key")


class LogKeyRotated(Endorsed):
    """From here on the log's checkpoints are signed by the key that the order names."""

    type = "log-key.rotated"


def against_log_key(state: State, vkey: str) -> list[str]:
    """A key named as the log, that never signed for it."""
    try:
        name = parse_vkey(vkey).name
    except BadInput as error:
        return [f"log key: {error.message}"]
    reasons = [] if name == state.site.origin else [f"log key: expected a key of {state.site.origin}, got {name}"]
    if any(key.vkey == vkey for key in state.site.log_keys):
        reasons.append(f"log key: expected one that never signed this log, got {vkey}")
    return reasons + own_witnesses([vkey], state.parameters)


def may_rotate_log_key(state: State, order: RotateLogKey, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator") + against_log_key(state, order.log_key) + overlap(state, order.old_until, now)


def log_key_rotated(case: Case) -> Changes:
    order, site = case.order(RotateLogKey), case.state.site
    old = tuple(
        key if key.until is not None else key.model_copy(update={"until": order.old_until}) for key in site.log_keys
    )
    keys = (*old, LogKey(vkey=order.log_key, since=case.entry.index))
    return [(case.state.sites, "site", site.model_copy(update={"log_keys": keys}))]


VERBS = (
    Verb(
        RotateLogKey,
        may=may_rotate_log_key,
        signers=("administrator",),
        meaning="This key signs the log's checkpoints; earlier keys also sign until the date.",
        event=LogKeyRotated,
        apply=log_key_rotated,
        two_administrators=True,
    ),
)
