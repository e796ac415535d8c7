"""Under a clock that is behind the log, only a reset of the log's time is appended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.domain.actions.apply import subjects_of
from appliance.domain.core.entry import EntryDraft, parse_entry
from appliance.domain.core.names import add_seconds, encode_value
from appliance.domain.core.order import Order
from appliance.domain.governance.countersignature import Countersign, OrderPending
from appliance.domain.governance.log_control import ClockReset, ResetClock
from appliance.domain.retention import HoldPlaced, PlaceHold
from appliance.errors import ApplianceError, Denied, Unavailable
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import encode_envelope
from appliance.store.database.engine import migrate, open_engine
from appliance.store.ledger import search_index
from appliance.store.ledger.keys import HeldLogKeys
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.past import last_at
from scripts.kit.log_builder import ORIGIN, LogBuilder
from tests.kit.small_log import START, Clock

AHEAD = timedelta(days=20)


class Behind:
    """A log on SQLite whose clock ran ahead and was set right."""

    def __init__(self, url: str) -> None:
        self.url, self.clock, self.site = url, Clock(), LogBuilder()
        self.ledger = self.opened()
        body = self.site.first
        self.ledger.append(EntryDraft(type=body.type, documents={"policy": encode_value(self.site.policy)}, body=body))
        for _ in range(3):
            self.ledger.append(heartbeat())
        self.clock.now += AHEAD
        for _ in range(3):
            self.ledger.append(heartbeat())
        self.last = self.ledger.state.last_time
        self.clock.now -= AHEAD

    def opened(self) -> Ledger:
        return Ledger(
            open_engine(self.url),
            origin=ORIGIN,
            log_key=self.site.first.log_key,
            keys=HeldLogKeys(self.site.log_signers.__getitem__),
            clock=self.clock,
        )

    def pending(self, order: Order) -> EntryDraft:
        envelope = self.site.sign(order)
        body = OrderPending(policy=self.site.in_force)
        return EntryDraft(
            type=body.type, actor=order.signer, source="unix", outcome="pending", body=body,
            subjects=subjects_of(body, ((envelope.pae_digest, order),)),
            documents={"order": encode_envelope(envelope)},
        )  # fmt: skip

    def order(self, last: str | None = None) -> ResetClock:
        self.site.now = encode_time(self.clock())
        return self.site.order(ResetClock, "anna", last=last or self.last)

    def reset(self, order: ResetClock) -> EntryDraft:
        first = self.site.sign(order)
        self.site.now = encode_time(self.clock())
        countersignature = self.site.order(Countersign, "ben", order=first.pae_digest)
        second, body = self.site.sign(countersignature), ClockReset(policy=self.site.in_force)
        return EntryDraft(
            type=body.type, actor="ben", source="unix", body=body,
            subjects=subjects_of(body, ((second.pae_digest, countersignature), (first.pae_digest, order))),
            documents={"order": encode_envelope(second), "countersigned": encode_envelope(first)},
        )  # fmt: skip

    def set_right(self) -> str:
        order = self.order()
        self.ledger.append(self.pending(order))
        return self.ledger.append(self.reset(order)).entry.time


def heartbeat() -> EntryDraft:
    return EntryDraft(type="heartbeat", body={})


@pytest.fixture(params=[search_index.BLOCK, 4], ids=["none filed", "filed"])
def behind(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    monkeypatch.setattr(search_index, "BLOCK", request.param)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()
    made = Behind(url)
    with closing(made.ledger):
        yield made


def test_only_what_sets_the_time_back_is_appended_while_the_clock_is_behind(behind: Behind) -> None:
    order, ledger = behind.order(), behind.ledger
    hold = behind.site.order(PlaceHold, "anna", subject="principal:ben")
    envelope, body = behind.site.sign(hold), HoldPlaced(policy=behind.site.in_force)
    placed = EntryDraft(
        type=body.type, actor="anna", source="unix", body=body,
        subjects=subjects_of(body, ((envelope.pae_digest, hold),)),
        documents={"order": encode_envelope(envelope)},
    )  # fmt: skip
    grant, _ = behind.site.enrolment("eve", ("auditor",))
    pending = behind.pending(order)
    for drafts in ([heartbeat()], [placed], [behind.pending(grant)], [pending, heartbeat()], [heartbeat(), pending]):
        with pytest.raises(Unavailable, match="appliance clock reset") as refused:
            ledger.append_all(drafts)
        assert refused.value.code == "clock"
    appended = ledger.append(pending)
    assert appended.entry.time == behind.last
    with pytest.raises(Unavailable):
        ledger.append(heartbeat())
    reset = ledger.append(behind.reset(order)).entry
    assert reset.time < behind.last
    assert ledger.append(heartbeat()).entry.time > reset.time
    assert ledger.check_projections() == []


def test_what_the_rules_refuse_is_not_let_through_either(behind: Behind) -> None:
    size = behind.ledger.state.size
    with pytest.raises(Denied) as caught:
        behind.ledger.append(behind.pending(behind.order(last=encode_time(START))))
    assert [one.code for one in caught.value.refusals] == ["last-entry-differs"]
    with pytest.raises(ApplianceError, match="waits for a second administrator"):
        behind.ledger.append(behind.reset(behind.order()))
    assert behind.ledger.state.size == size


def test_a_clock_that_is_far_ahead_is_believed_for_no_reset(behind: Behind) -> None:
    ledger = Ledger(
        open_engine(behind.url), origin=ORIGIN, log_key=behind.site.first.log_key,
        keys=HeldLogKeys(behind.site.log_signers.__getitem__), clock=behind.clock, longest_pause_days=31,
    )  # fmt: skip
    draft = behind.pending(behind.order())
    behind.clock.now += timedelta(days=400)
    with closing(ledger), pytest.raises(Unavailable, match="--after-pause"):
        ledger.append(draft)


def test_a_service_that_starts_again_folds_a_log_that_was_reset(behind: Behind) -> None:
    behind.set_right()
    behind.ledger.append(heartbeat())
    with closing(behind.opened()) as again:
        again.load()
        assert list(again.state.projections()) == list(behind.ledger.state.projections())
        assert again.check_projections() == []


def test_entries_are_found_by_their_own_times_on_both_sides_of_a_reset(behind: Behind) -> None:
    behind.set_right()
    for _ in range(4):
        behind.ledger.append(heartbeat())
    entries = [parse_entry(data) for data in behind.ledger.entries()]
    times = sorted({entry.time for entry in entries})
    for since in [None, *times, "2099-01-01T00:00:00.000Z"]:
        for until in [None, *times]:
            wanted = [
                e.index for e in entries if (since is None or since <= e.time) and (until is None or e.time < until)
            ]
            found = [index for index, _ in behind.ledger.find(since=since, until=until)]
            assert found == wanted, (since, until)
            newest = [index for index, _ in behind.ledger.find(since=since, until=until, newest=True)]
            assert newest == wanted[::-1]


def test_a_time_stands_for_the_last_entry_of_it_by_a_clock_that_was_right(behind: Behind) -> None:
    right = behind.ledger.entry_bytes(3)
    reset_at = behind.set_right()
    behind.ledger.append(heartbeat())
    reset = behind.ledger.state.site.resets[0]

    def asked(time: str) -> int:
        return behind.ledger.ask(lambda connection: last_at(connection, behind.ledger.partial_block, time))

    assert asked(parse_entry(right).time) == 3
    assert asked(add_seconds(reset_at, -1)) == 3
    assert asked(reset_at) == reset.index
    assert asked("2099-01-01T00:00:00.000Z") == behind.ledger.state.size - 1
