"""A log whose clock ran ahead, and how two administrators set it back."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.entry import Entry
from appliance.domain.core.names import add_seconds
from appliance.domain.governance.countersignature import OrderPending
from appliance.domain.governance.log_control import ClockReset, ResetClock
from appliance.domain.governance.service import Heartbeat
from appliance.formats.signatures.dsse import Envelope, encode_envelope
from scripts.kit.log_builder import LogBuilder

DAY_S = 86_400


def run_ahead(site: LogBuilder, seconds: int) -> str:
    """Add an entry that is dated ahead by so many seconds. Return the right time."""
    right = site.now
    site.now = add_seconds(right, seconds)
    site.add(Heartbeat())
    return right


def pend_reset(site: LogBuilder, now: str, by: str = "anna", **fields: Any) -> tuple[ResetClock, Envelope]:
    """Add the first administrator's order, under the right time. Its entry has the time of the last one."""
    site.now = now
    order = site.order(ResetClock, by, **{"last": site.state.last_time} | fields)
    envelope = site.sign(order)
    site.add(
        OrderPending(policy=site.in_force),
        documents={"order": encode_envelope(envelope)},
        signed=((envelope.pae_digest, order),),
        time=site.state.last_time,
    )
    return order, envelope


def reset_clock(site: LogBuilder, now: str, second: str = "ben", **fields: Any) -> Entry:
    """Both entries; `now` is the right time."""
    order, envelope = pend_reset(site, now, **fields)
    return site.countersign(ClockReset(policy=site.in_force), order, envelope, second=second)
