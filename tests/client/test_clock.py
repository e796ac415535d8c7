from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from appliance.client import clock
from appliance.client.support import orders
from appliance.client.support.session import envelope_value
from appliance.domain.core.entry import Draft
from appliance.domain.governance.clock import ResetClock
from appliance.errors import NotFound, Tampered
from appliance.store.ledger.clock import LogClock
from tests.client.conftest import Office


def run_ahead(office: Office) -> str:
    ledger = office.site.ledger
    ledger.clock = LogClock(lambda: datetime.now(UTC) + timedelta(days=20))
    last = ledger.append(Draft(type="heartbeat", body={})).entry.time
    ledger.clock = LogClock(lambda: datetime.now(UTC))
    return last


def test_the_order_names_the_last_entrys_time_and_is_found_by_the_other_administrator_without_a_session(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("staffed")
    last = run_ahead(office)
    found = clock.read_clock(office.door)
    assert (found.last, found.is_behind, found.waiting) == (last, True, ())
    with pytest.raises(NotFound, match="an administrator types: appliance clock reset"):
        clock.find_reset(found)
    proposal = clock.propose_reset(office.door.about, "anna", found)
    assert isinstance(proposal.order, ResetClock) and proposal.order.last == last
    receipt = orders.submit(office.door, orders.sign(proposal, office.site.keys["anna"]), office.anchor.log_key)
    assert receipt.outcome == "pending"
    assert clock.find_reset(clock.read_clock(office.door)).digest == receipt.order


def test_an_order_that_waits_under_a_clock_that_is_right_is_read_in_a_session_alone(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("staffed")
    proposal = clock.propose_reset(office.door.about, "anna", clock.read_clock(office.door))
    receipt = orders.submit(office.door, orders.sign(proposal, office.site.keys["anna"]), office.anchor.log_key)
    assert clock.read_clock(office.door).waiting == ()
    waiting: Any = office.as_("anna").get("/v1/orders/pending")
    assert [row["digest"] for row in waiting] == [receipt.order]


def test_another_order_is_taken_for_no_reset(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    order, documents = office.site.enrolment("eve", ("auditor",))
    office.site.pend(order, documents)
    waiting: Any = office.as_("anna").get("/v1/orders/pending")
    office.service.bend["/v1/clock"] = lambda answer: {**answer, "waiting": waiting}
    with pytest.raises(Tampered, match="expected reset-clock, got enroll"):
        clock.read_clock(office.door)


def test_a_reset_that_was_signed_for_another_log_is_not_endorsed(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    last = run_ahead(office)
    elsewhere = replace(office.door.about, origin="other.example/log")
    signed = orders.sign(
        orders.propose(elsewhere, "anna", ResetClock, {"last": last}, texts={}), office.site.keys["anna"]
    )
    row = {
        "digest": signed.digest,
        "index": 1,
        "envelope": envelope_value(signed.envelope),
        "disclosures": [],
        "documents": {},
    }
    office.service.bend["/v1/clock"] = lambda answer: {**answer, "waiting": [row]}
    with pytest.raises(Tampered, match=r"pending order, log: expected .*, got other\.example/log"):
        clock.read_clock(office.door)
