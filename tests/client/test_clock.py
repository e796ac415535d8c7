from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from appliance.api.people import PendingOrder
from appliance.api.wire import json_value
from appliance.client import policies
from appliance.client.support import orders
from appliance.domain.core.entry import EntryDraft
from appliance.domain.core.lookup import OrderInput
from appliance.domain.governance.log_control import ResetClock
from appliance.errors import NotFound, Tampered
from appliance.formats.signatures.dsse import envelope_value
from appliance.store.ledger.queue import LogClock
from tests.client.conftest import Office


def run_ahead(office: Office) -> str:
    ledger = office.site.ledger
    ledger.clock = LogClock(lambda: datetime.now(UTC) + timedelta(days=20))
    last = ledger.append(EntryDraft(type="heartbeat", body={})).entry.time
    ledger.clock = LogClock(lambda: datetime.now(UTC))
    return last


def test_the_order_names_the_last_entrys_time_and_is_found_by_the_other_administrator_without_a_session(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("staffed")
    last = run_ahead(office)
    found = policies.read_clock(office.connection)
    assert (found.last, found.is_behind, found.waiting) == (last, True, ())
    with pytest.raises(NotFound, match="an administrator types: appliance clock reset"):
        policies.find_reset(found)
    proposal = office.propose("anna", ResetClock, {"last": found.last})
    assert isinstance(proposal.order, ResetClock) and proposal.order.last == last
    receipt = orders.submit(office.connection, orders.sign(proposal, office.site.keys["anna"]), office.anchor.log_keys)
    assert receipt.outcome == "pending"
    assert policies.find_reset(policies.read_clock(office.connection)).digest == receipt.order


def test_an_order_that_waits_under_a_clock_that_is_right_is_read_in_a_session_alone(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("staffed")
    last = policies.read_clock(office.connection).last
    proposal = office.propose("anna", ResetClock, {"last": last})
    receipt = orders.submit(office.connection, orders.sign(proposal, office.site.keys["anna"]), office.anchor.log_keys)
    assert policies.read_clock(office.connection).waiting == ()
    waiting = office.as_("anna").get("/v1/orders/pending", list[PendingOrder])
    assert [row.digest for row in waiting] == [receipt.order]


def test_another_order_is_taken_for_no_reset(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    order, documents = office.site.enrolment("eve", ("auditor",))
    office.site.pend(order, documents)
    waiting = json_value(office.as_("anna").get("/v1/orders/pending", list[PendingOrder]))
    office.service.bend["/v1/clock"] = lambda answer: {**answer, "waiting": waiting}
    with pytest.raises(Tampered, match="expected reset-clock, got enrol"):
        policies.read_clock(office.connection)


def test_a_reset_that_was_signed_for_another_log_is_not_countersigned(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    last = run_ahead(office)
    elsewhere = office.connection.about.model_copy(update={"origin": "other.example/log"})
    signed = orders.sign(
        orders.propose(elsewhere, "anna", ResetClock, OrderInput({"last": last}), office.lookup("anna")),
        office.site.keys["anna"],
    )
    row = {
        "digest": signed.digest,
        "action": "reset-clock",
        "about": [],
        "signer": "anna",
        "keyid": office.site.keys["anna"].keyid,
        "recorded_at": last,
        "expires_at": last,
        "blockers": [],
        "index": 1,
        "envelope": envelope_value(signed.envelope),
        "disclosures": [],
        "documents": {},
    }
    office.service.bend["/v1/clock"] = lambda answer: {**answer, "waiting": [row]}
    with pytest.raises(Tampered, match=r"pending order, log: expected .*, got other\.example/log"):
        policies.read_clock(office.connection)
