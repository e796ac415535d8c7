"""Two administrators step a log back from one checkpoint to another, and everything that served is suspended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.core.signatures import accept_session
from appliance.domain.governance.restoration import RestoreLog, make_step_back
from appliance.domain.governance.service import Heartbeat
from appliance.domain.releases.approval import find_blockers
from appliance.errors import ApplianceError, BadInput, Denied, NotAuthenticated, Tampered
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN, LogBuilder, stage
from tests.domain.audit.test_verify import rules, verify
from tests.kit.ahead import reset_clock, run_ahead
from tests.kit.restored import event, lose, restore, restore_order, restored, root_at


@contextmanager
def refused(error: type[ApplianceError], words: str) -> Iterator[None]:
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error and words in caught.value.message, caught.value.message


def blockers(site: LogBuilder) -> list[str]:
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    return [one.code for one in find_blockers(site.state, adapter, "legal", site.now)]


def test_two_administrators_restore_a_log_and_the_verifier_reports_it() -> None:
    site, other, entry = restored()
    site.add(Heartbeat())
    (step,) = site.state.site.restorations
    assert (step.index, step.kept_size, step.lost_size) == (entry.index, entry.index - 1, other.state.size)
    assert step.signers == ("anna", "ben")
    report = verify(site)
    assert (report.verdict, report.findings) == ("verified", ())
    (remark,) = (text for text in report.remarks if text.startswith("restoration:"))
    assert f"kept {step.kept_size} entries and gave up a log of {step.lost_size}, by anna and ben" in remark


def test_a_single_administrator_restores_where_the_site_has_one() -> None:
    site = LogBuilder(single=True)
    lost = lose(site).checkpoint()
    order = restore_order(site, lost)
    site.ordered(event(site, order), order, documents={"lost": lost})
    assert site.state.site.restorations[0].signers == ("anna",)
    assert verify(site).verdict == "verified"


# Who, and which checkpoints.


def test_one_administrator_alone_restores_nothing() -> None:
    site = stage("staffed")
    lost = lose(site).checkpoint()
    order = restore_order(site, lost)
    with refused(Denied, "expected a second one's countersignature"):
        site.ordered(event(site, order), order, documents={"lost": lost})
    with refused(Denied, "anna signed this order and cannot countersign it."):
        restore(site, lost, second="anna")


def test_an_administrator_who_was_enrolled_after_the_kept_entries_cannot_sign() -> None:
    site = stage("staffed")
    kept = site.state.size
    other = lose(site, 20)
    site.enrol("nora", "administrator")
    with refused(Denied, "nora was enrolled by entry"):
        restore(site, other.checkpoint(), by="nora", kept_size=kept)
    with refused(Denied, f"expected one enrolled before entry {kept}"):
        restore(site, other.checkpoint(), second="nora", kept_size=kept)
    site.keys["ben"] = site.replace("ben")
    with refused(Denied, f"expected one enrolled before entry {kept}"):
        restore(site, other.checkpoint(), kept_size=kept)


def test_an_administrator_of_the_lost_entries_alone_cannot_sign() -> None:
    site = stage("staffed")
    other = lose(site)
    other.enrol("nora", "administrator")
    site.keys["nora"] = other.keys["nora"]
    with refused(NotAuthenticated, "expected a key enrolled"):
        restore(site, other.checkpoint(), by="nora")


WRONG: dict[str, tuple[Callable[[LogBuilder, bytes], object], type[ApplianceError], str]] = {
    "other bytes": (lambda s, lost: restore(s, lost, lost_size=s.state.size + 50), Denied, "lost: expected"),
    "another root": (lambda s, lost: restore(s, lost, lost_root=root_at(s, 3)), Denied, "lost: expected"),
    "no larger": (lambda s, lost: restore(s, s.checkpoint()), Denied, "entries, and the log keeps"),
    "another log's key": (
        lambda s, lost: restore(s, sign_checkpoint(open_checkpoint(lost, s.first.log_key), generate_ed25519())),
        Tampered,
        "note, signature",
    ),
    "more than there is": (
        lambda s, lost: restore(s, lost, kept_size=s.state.size + 1, kept_root=root_at(s, s.state.size)),
        Denied,
        "entries. The log has",
    ),
    "no note": (
        lambda s, lost: s.two(event(s, o := restore_order(s, lost)), o),
        BadInput,
        "lost",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_restoration_names_must_be_so(name: str) -> None:
    act, error, message = WRONG[name]
    site = stage("staffed")
    lost = lose(site).checkpoint()
    with refused(error, message):
        act(site, lost)


def test_a_checkpoint_by_a_replaced_log_key_is_no_proof_of_lost_entries() -> None:
    site = stage("staffed")
    old, vkey = site.log, site.first.log_key
    site.rotate_log_key()
    other = lose(site)
    head = Checkpoint(ORIGIN, other.state.size, b"\1" * 32)
    with refused(Tampered, "note, signature"):
        restore(site, sign_checkpoint(head, old))
    assert open_checkpoint(sign_checkpoint(head, old), vkey) == head


def test_the_verifier_finds_a_kept_root_that_the_log_does_not_have() -> None:
    site = stage("staffed")
    lost = lose(site).checkpoint()
    restore(site, lost, kept_root=root_at(site, site.state.size - 1))
    report = verify(site)
    assert (report.verdict, rules(report)) == ("failed", {"restoration"})


# What it changes.


def test_everything_that_was_approved_is_suspended_until_a_release_owner_resumes_it() -> None:
    site = stage("serving")
    assert blockers(site) == []
    entry = restore(site, lose(site).checkpoint())
    assert blockers(site) == ["release-suspended"]
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None and [one.role for one in adapter.suspensions] == ["release-owner:legal"]
    site.resume_release(entry.index, by="otto")
    assert blockers(site) == []
    assert verify(site).verdict == "verified"


def test_orders_tokens_and_sessions_from_before_are_refused() -> None:
    site = stage("serving")
    key = site.enrol_application()
    site.issue(site.token_request(key))
    early = site.now
    waiting = site.pend(site.order(RestoreLog, "anna", **_some(site)), {"lost": (note := lose(site).checkpoint())})
    session, request = site.session("rita", issued_at=early), site.token_request(key)
    restore(site, note)
    assert len(site.state.issued_tokens) == 0 and waiting.pae_digest not in site.state.pending
    with pytest.raises(NotAuthenticated, match="before the log was restored"):
        accept_session(site.state, encode_envelope(session), site.now)
    with pytest.raises((Denied, NotAuthenticated), match="before the log was restored"):
        site.issue(request)
    with refused(Denied, "before the log was restored"):
        site.review("rita", "privacy", issued_at=early)
    accept_session(site.state, encode_envelope(site.session("rita")), site.now)


def _some(site: LogBuilder) -> dict[str, object]:
    order = restore_order(site, lose(site.fork()).checkpoint())
    return {name: getattr(order, name) for name in ("kept_size", "kept_root", "lost", "lost_size", "lost_root")}


def test_a_reset_of_the_clock_ends_the_date_of_a_restoration() -> None:
    site = stage("staffed")
    right = run_ahead(site, 20 * 86_400)
    other = lose(site)
    restore(site, other.checkpoint())
    reset_clock(site, add_seconds(right, 60))
    site.enrol("nora", "auditor")
    assert verify(site).verdict == "verified"


# Which checkpoints the step gives up.


def test_a_step_gives_up_exactly_the_checkpoints_between_kept_and_lost() -> None:
    site, other, _ = restored(entries=9)
    step = make_step_back(site.state.site, site.state.site.restorations[0])

    def refuse(size: int, at_s: float = 0.0, log: LogBuilder = other) -> str:
        seen = open_checkpoint(log.checkpoint(size), site.first.log_key)
        with pytest.raises(Tampered) as caught:
            step.check(seen, at_s)
        return caught.value.message

    kept, lost = step.kept.size, step.lost.size
    for size in (kept + 1, lost - 1, lost):
        step.check(open_checkpoint(other.checkpoint(size), site.first.log_key), 0.0)
    assert "which the log keeps" in refuse(kept)
    other.add(Heartbeat())
    assert f"at most {lost} entries" in refuse(lost + 1)
    forged = Checkpoint(ORIGIN, lost, b"\1" * 32)
    with pytest.raises(Tampered, match="expected the root"):
        step.check(forged, 0.0)
    assert "before the order" in refuse(kept + 1, at_s=4e9)
    with pytest.raises(Tampered, match="expected a checkpoint of"):
        step.check(Checkpoint("other.example/log", lost, step.lost.root), 0.0)


def test_a_second_restoration_covers_what_the_first_cannot() -> None:
    site, other, _ = restored(entries=9)
    early = site.state.size
    site.add(Heartbeat())
    second = lose(site, 30)
    restore(site, second.checkpoint())
    first, last = (make_step_back(site.state.site, one) for one in site.state.site.restorations)
    assert last.kept.size == early + 1 and last.lost.size == second.state.size
    seen = open_checkpoint(other.checkpoint(), site.first.log_key)
    first.check(seen, 0.0)
    with pytest.raises(Tampered, match="at most"):
        first.check(open_checkpoint(second.checkpoint(), site.first.log_key), 0.0)
    assert verify(site).verdict == "verified"
