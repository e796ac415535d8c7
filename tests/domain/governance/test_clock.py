"""A clock that ran ahead is reset once, at one entry of one log; what had expired by then stays expired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.entry import Entry
from appliance.domain.core.names import add_seconds, encode_value, parse_value
from appliance.domain.core.signatures import accept_session
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.log_control import ClockReset, ResetClock
from appliance.domain.governance.service import Heartbeat
from appliance.domain.queries.effective_access import effective_access_then
from appliance.domain.releases.approval import find_blockers
from appliance.domain.releases.exports import ExportRows, collect_rows
from appliance.domain.retention import PlaceHold
from appliance.domain.witnesses import refuse_unwitnessed_log, witnessed_until
from appliance.errors import Conflict, Denied, NotAuthenticated, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.checkpoint import witness_vkey_of
from appliance.formats.signatures.dsse import Envelope, encode_envelope
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.domain.audit.test_verify import verify
from tests.kit.ahead import DAY_S, pend_reset, reset_clock, run_ahead
from tests.kit.refusals import refuses

Forged = tuple[Entry, dict[str, bytes]]

AHEAD_S = 20 * DAY_S
WITNESS = generate_ed25519()
VKEY = witness_vkey_of("witness.example/w1", WITNESS)


def against(site: LogBuilder) -> list[str]:
    """Return the blockers of clauses@1 for legal."""
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    return find_blockers(site.state, adapter, "legal", site.now)


def test_two_administrators_set_a_clock_back_that_ran_ahead_and_the_log_verifies() -> None:
    site = stage("serving")
    right = run_ahead(site, AHEAD_S)
    ahead = site.state.last_time
    entry = reset_clock(site, right)
    site.add(Heartbeat())
    assert entry.time < site.state.last_time < ahead
    (reset,) = site.state.site.resets
    assert (reset.index, reset.reached, reset.time) == (entry.index, ahead, entry.time)
    report = verify(site)
    assert (report.verdict, report.findings) == ("verified", ())
    assert any(f"entry {entry.index} set it back from {ahead} to {entry.time}" in text for text in report.remarks)


def test_one_administrator_sets_back_the_clock_where_the_site_has_one() -> None:
    site = LogBuilder(single=True)
    right = run_ahead(site, AHEAD_S)
    site.now = right
    site.ordered(ClockReset(policy=site.in_force), site.order(ResetClock, "anna", last=site.state.last_time))
    assert site.state.last_time == right
    assert verify(site).verdict == "verified"


# Whose order, and where.


def test_one_administrator_alone_sets_back_nothing() -> None:
    site = stage("staffed")
    site.now = run_ahead(site, AHEAD_S)
    order = site.order(ResetClock, "anna", last=site.state.last_time)
    with refuses(site, Denied, "expected a second one's countersignature"):
        site.ordered(ClockReset(policy=site.in_force), order)
    _, envelope = pend_reset(site, site.now)
    with refuses(site, Denied, "anna signed this order and cannot countersign it."):
        site.countersign(ClockReset(policy=site.in_force), order, envelope, second="anna")
    with refuses(site, Denied, "olga is operator. This action needs administrator."):
        pend_reset(site, site.now, by="olga")


def test_an_order_that_names_another_time_than_the_last_entrys_is_refused() -> None:
    site = stage("staffed")
    right = run_ahead(site, AHEAD_S)
    with refuses(site, Denied, "as the time of the last entry, which has the time"):
        pend_reset(site, right, last=right)


def test_an_order_stands_no_more_once_another_entry_is_the_last() -> None:
    site = stage("staffed")
    right = run_ahead(site, AHEAD_S)
    order, envelope = pend_reset(site, right)
    site.now = add_seconds(site.state.last_time, 1)
    site.add(Heartbeat())
    site.now = right
    with refuses(site, Denied, "as the time of the last entry, which has the time"):
        site.countersign(ClockReset(policy=site.in_force), order, envelope)


def test_an_order_that_was_carried_out_sets_back_no_second_time() -> None:
    site = stage("staffed")
    right = run_ahead(site, AHEAD_S)
    order, envelope = pend_reset(site, right)
    site.countersign(ClockReset(policy=site.in_force), order, envelope)
    with refuses(site, Denied, "waits for a second administrator."):
        site.countersign(ClockReset(policy=site.in_force), order, envelope)
    # Nor once the log has the same last time again.
    site.now = order.last
    site.add(Heartbeat())
    site.now = right
    with pytest.raises(Conflict, match="expected a new one, got one accepted"):
        ORDERS.accept(site.state, encode_envelope(envelope), order.last)


def test_a_clock_that_is_right_is_not_set_back() -> None:
    site = stage("staffed")
    order, envelope = pend_reset(site, site.now)
    with refuses(site, Denied, "clock: expected a time more than"):
        site.countersign(ClockReset(policy=site.in_force), order, envelope)


def test_no_other_entry_has_an_earlier_time_than_the_one_before() -> None:
    site = stage("staffed")
    site.now = run_ahead(site, AHEAD_S)
    with refuses(site, Tampered, "time: expected at least", code="entry-out-of-order"):
        site.add(Heartbeat())


@pytest.mark.parametrize(
    ("issued_s", "expires_s", "code"),
    [(-2 * DAY_S, -2 * DAY_S + 600, "expired"), (DAY_S, DAY_S + 600, "not-yet-valid")],
    ids=["expired", "to come"],
)
def test_the_order_stands_at_the_new_time(issued_s: int, expires_s: int, code: str) -> None:
    site = stage("staffed")
    right = run_ahead(site, AHEAD_S)
    times = {"issued_at": add_seconds(right, issued_s), "expires_at": add_seconds(right, expires_s)}
    order, envelope = pend_reset(site, right, **times)
    with refuses(site, Denied, "The order expired at" if code == "expired" else ". The service's clock shows"):
        site.countersign(ClockReset(policy=site.in_force), order, envelope)


def test_an_order_that_stands_too_long_does_not_wait_either() -> None:
    site = stage("staffed")
    right = run_ahead(site, AHEAD_S)
    with refuses(site, Denied, "It is valid from", code="too-long"):
        pend_reset(site, right, expires_at=add_seconds(right, 30 * DAY_S))


def _again(site: LogBuilder, right: str) -> Forged:
    """Another countersignature of an order that was carried out."""
    order, envelope = pend_reset(site, right)
    site.countersign(ClockReset(policy=site.in_force), order, envelope)
    return _countersigned(site, order, envelope)


def _elsewhere(site: LogBuilder, right: str) -> Forged:
    """Return the entry of an order that waited while another entry was recorded."""
    order, envelope = pend_reset(site, right)
    site.now = add_seconds(site.state.last_time, 1)
    site.add(Heartbeat())
    site.now = right
    return _countersigned(site, order, envelope)


def _alone(site: LogBuilder, right: str) -> Forged:
    """Return the first administrator's order without the second's."""
    site.now = right
    order = site.order(ResetClock, "anna", last=site.state.last_time)
    envelope = site.sign(order)
    signed = ((envelope.pae_digest, order),)
    return site.entry(ClockReset(policy=site.in_force), documents={"order": encode_envelope(envelope)}, signed=signed)


def _unordered(site: LogBuilder, right: str) -> Forged:
    """Another entry with an earlier time."""
    site.now = right
    return site.entry(Heartbeat())


def _countersigned(site: LogBuilder, order: ResetClock, envelope: Envelope) -> Forged:
    countersignature = site.order(Countersign, "ben", order=envelope.pae_digest)
    second = site.sign(countersignature)
    return site.entry(
        ClockReset(policy=site.in_force),
        documents={"order": encode_envelope(second), "countersigned": encode_envelope(envelope)},
        signed=((second.pae_digest, countersignature), (envelope.pae_digest, order)),
    )


@pytest.mark.parametrize("forge", [_again, _elsewhere, _alone, _unordered])
def test_a_log_whose_time_goes_back_otherwise_does_not_verify(forge: Callable[[LogBuilder, str], Forged]) -> None:
    """As the service's own account would have written it: chained, and under the log's key."""
    site = stage("staffed")
    entry, documents = forge(site, run_ahead(site, AHEAD_S))
    site.entries.append(entry.encoded)
    site.documents.update({digest_bytes(data): data for data in documents.values()})
    report = verify(site)
    assert report.verdict == "failed"
    assert {finding.index for finding in report.findings} == {entry.index}


# What does not revive.


def test_an_approval_that_had_lapsed_does_not_stand_again_and_a_new_one_does() -> None:
    site = stage("approved")
    assert against(site) == []
    right = run_ahead(site, AHEAD_S)
    assert any(
        "Adapter clauses@1 needs 2 valid approvals for legal and has 0." in str(reason) for reason in against(site)
    )
    reset_clock(site, right)
    assert any(
        "Adapter clauses@1 needs 2 valid approvals for legal and has 0." in str(reason) for reason in against(site)
    )
    site.review("rita", "privacy")
    site.review("raul", "model-risk")
    assert against(site) == []


def test_what_was_cleared_before_is_asked_again() -> None:
    site = stage("serving")
    right = run_ahead(site, AHEAD_S)
    reset_clock(site, right)
    with refuses(site, Denied, "Adapter clauses@1 needs 2 valid approvals for legal and has 0."):
        site.add(site.request(7))


def test_a_key_that_had_ended_signs_nothing_again() -> None:
    site = stage("staffed")
    old, site_keys = site.keys["rita"], dict(site.keys)
    site.rotate("rita", add_seconds(site.now, 3_600))
    right = run_ahead(site, AHEAD_S)
    reset_clock(site, right)
    key = site.state.keys.get(old.keyid)
    assert key is not None and not key.is_valid(site.now)
    site.keys = site_keys
    with pytest.raises(NotAuthenticated, match="is no longer valid"):
        ORDERS.read(site.state, encode_envelope(site.sign(site.order(ResetClock, "rita", last=site.now))), site.now)


def test_a_key_that_had_ended_does_not_sign_the_reset_itself() -> None:
    site = stage("staffed")
    old = site.keys["ben"]
    site.keys["ben"] = site.rotate("ben", add_seconds(site.now, 3_600))
    right = run_ahead(site, AHEAD_S)
    order, envelope = pend_reset(site, right)
    site.keys["ben"] = old
    with refuses(site, NotAuthenticated, "is no longer valid"):
        site.countersign(ClockReset(policy=site.in_force), order, envelope)


def test_a_key_of_the_log_that_had_ended_signs_no_checkpoint_again() -> None:
    site = stage("staffed")
    site.rotate_log_key(add_seconds(site.now, 3_600))
    assert len(site.state.site.signing_keys(site.now)) == 2
    right = run_ahead(site, AHEAD_S)
    reset_clock(site, right)
    assert site.state.site.signing_keys(site.state.last_time) == (site.state.site.log_key,)
    assert verify(site).verdict == "verified"


def test_a_key_that_was_replaced_under_the_time_ahead_overlaps_no_longer_than_policy_lets_it() -> None:
    site = stage("staffed")
    old = site.keys["rita"]
    right, overlap_s = run_ahead(site, AHEAD_S), site.state.parameters.key_overlap_s
    site.rotate("rita", add_seconds(site.now, overlap_s))
    site.rotate_log_key(add_seconds(site.now, overlap_s))
    entry = reset_clock(site, right)
    key, ends = site.state.keys.get(old.keyid), add_seconds(entry.time, overlap_s)
    assert key is not None and key.until == ends
    assert len(site.state.site.signing_keys(site.now)) == 2
    assert site.state.site.signing_keys(ends) == (site.state.site.log_key,)
    assert verify(site).verdict == "verified"


def test_an_order_that_waited_waits_no_more() -> None:
    site = stage("staffed")
    order, documents = site.enrolment("eve", ("auditor",))
    envelope = site.pend(order, documents)
    right = run_ahead(site, AHEAD_S)
    reset_clock(site, right)
    assert envelope.pae_digest not in site.state.pending
    assert not len(site.state.pending)


def test_a_cosignature_that_had_lapsed_counts_no_more() -> None:
    site = stage("staffed")
    site.adopt(policy_set(witnesses=(VKEY,), witness_quorum=1, witness_lifetime_s=DAY_S))
    _cosign(site)
    assert refuse_unwitnessed_log(site.state, site.now) == []
    right = run_ahead(site, AHEAD_S)
    reset_clock(site, right)
    assert refuse_unwitnessed_log(site.state, site.now) != [] and witnessed_until(site.state) == []
    _cosign(site)
    assert refuse_unwitnessed_log(site.state, site.now) == []


def test_a_cosignature_that_is_dated_ahead_counts_no_more() -> None:
    site = stage("staffed")
    site.adopt(policy_set(witnesses=(VKEY,), witness_quorum=1, witness_lifetime_s=DAY_S))
    right = run_ahead(site, AHEAD_S)
    _cosign(site)
    reset_clock(site, right)
    assert refuse_unwitnessed_log(site.state, site.now) != [] and witnessed_until(site.state) == []


def _cosign(site: LogBuilder) -> None:
    body, documents = site.cosigned(WITNESS, "witness.example/w1")
    site.add(body, documents=documents)


# What was issued before it.


def _order(site: LogBuilder, issued_at: str) -> Callable[[State], object]:
    envelope = site.sign(site.order(PlaceHold, "anna", subject="unit:legal", issued_at=issued_at))
    return lambda state: ORDERS.accept(state, encode_envelope(envelope), site.now)


def _session(site: LogBuilder, issued_at: str) -> Callable[[State], object]:
    data = encode_envelope(site.session("rita", issued_at=issued_at))
    return lambda state: accept_session(state, data, site.now)


@pytest.mark.parametrize("made", [_order, _session], ids=["order", "session"])
def test_what_was_issued_before_the_reset_does_not_count_after_it(made: Callable[..., Any]) -> None:
    site = stage("staffed")
    before = made(site, site.now)
    site.now = add_seconds(site.now, 500)
    right = run_ahead(site, AHEAD_S)
    reset_clock(site, right)
    with pytest.raises((Denied, NotAuthenticated), match="before the clock was set back"):
        before(site.state)
    made(site, site.now)(site.state)


def test_a_token_of_before_the_reset_opens_nothing_after_it() -> None:
    site = stage("serving")
    issued = site.now
    site.now = add_seconds(site.now, 500)
    right = run_ahead(site, 3_600)
    reset_clock(site, right)
    with refuses(site, NotAuthenticated, "before the clock was set back", code="revoked"):
        site.add(site.request(7, token_issued_at=issued))
    site.add(site.request(7))


# What was dated ahead holds nobody up.


def test_who_was_enrolled_under_the_time_ahead_can_sign_after_the_reset() -> None:
    site = stage("staffed")
    right = run_ahead(site, AHEAD_S)
    site.enrol("eve", "auditor")
    reset_clock(site, right)
    site.hold("unit:legal", signer="eve")
    assert verify(site).verdict == "verified"


def test_a_log_that_was_begun_under_a_time_ahead_is_set_back() -> None:
    site = stage("initialized")
    right = add_seconds(site.now, -AHEAD_S)
    reset_clock(site, right)
    site.enrol("eve", "auditor")
    assert verify(site).verdict == "verified"


def test_a_unit_whose_tokens_were_revoked_under_the_time_ahead_asks_after_the_reset() -> None:
    site = stage("serving")
    right = run_ahead(site, 3_600)
    site.revoke_tokens(issued_before=site.now)
    reset_clock(site, right)
    site.add(site.request(7))


def test_a_token_that_was_revoked_by_its_identity_stays_so_when_its_date_has_come() -> None:
    site = stage("serving")
    right = run_ahead(site, 3_600)
    issued, token = site.now, f"sha256:{7:064x}"
    site.revoke_tokens(token=token)
    reset_clock(site, right)
    site.now = issued
    with refuses(site, NotAuthenticated, "was revoked by entry", code="revoked"):
        site.add(site.request(7, token=token, token_issued_at=issued))


def test_a_slot_that_was_filled_under_the_time_ahead_is_emptied_after_the_reset() -> None:
    site = stage("released")
    right = site.now
    site.now = add_seconds(site.now, 3_600)
    site.load()
    reset_clock(site, right)
    site.add(site.unloaded(last_token=site.now))


def test_a_clock_that_runs_ahead_again_is_set_back_again() -> None:
    site = stage("approved")
    for _ in range(2):
        right = run_ahead(site, AHEAD_S)
        reset_clock(site, right)
    assert [reset.reached for reset in site.state.site.resets] == sorted(r.reached for r in site.state.site.resets)
    assert verify(site).verdict == "verified"


def test_a_reset_to_a_time_that_was_still_ahead_is_set_right_by_another() -> None:
    site = stage("approved")
    right = run_ahead(site, 2 * AHEAD_S)
    reset_clock(site, add_seconds(right, AHEAD_S))
    site.add(Heartbeat())
    reset_clock(site, right)
    assert site.state.last_time < add_seconds(right, DAY_S)
    assert any(
        "Adapter clauses@1 needs 2 valid approvals for legal and has 0." in str(reason) for reason in against(site)
    )
    site.review("rita", "privacy")
    assert verify(site).verdict == "verified"


# Questions about the past.


def test_a_time_before_the_reset_is_asked_of_the_entries_before_the_clock_ran_ahead() -> None:
    site = stage("released")
    index, at = site.state.size - 1, site.state.last_time
    right = run_ahead(site, AHEAD_S)
    entry = reset_clock(site, add_seconds(right, 60))
    site.add(Heartbeat())

    def asked(moment: str) -> int:
        return effective_access_then(lambda: site.entries, site.documents.get, "legal", moment, site.now)[1]

    assert asked(at) == index
    assert asked(add_seconds(right, 30)) == index
    assert asked(entry.time) == entry.index
    assert asked(add_seconds(right, AHEAD_S)) == site.state.size - 1  # a time to come is now
    assert asked(str(entry.index - 1)) == entry.index - 1


def test_the_rows_of_an_export_hold_the_resets_that_its_approvals_are_held_against() -> None:
    site = stage("released")
    reset_clock(site, run_ahead(site, 3_600))
    order = site.export_order()
    state_rows = collect_rows(site.state, order, site.keys["otto"].keyid)
    rows = parse_value(ExportRows, encode_value(state_rows), "state_rows")
    assert rows.to_state().site.resets == site.state.site.resets != ()
    assert site.export().type == "adapter.exported"
    # Where the clock never ran ahead they are the bytes that they were.
    assert b"resets" not in encode_value(stage("released").state.site)
