"""A failure before or after any side effect of an append: nothing half-written or signed twice, and later appends
work."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from appliance.domain.core.entry import EntryDraft
from appliance.errors import ApplianceError, Conflict, Tampered, Unavailable
from appliance.store.database.engine import open_engine
from appliance.store.ledger import keys as keys_module
from appliance.store.ledger import ledger as ledger_module
from appliance.store.ledger import writer
from appliance.store.ledger.ledger import Ledger
from tests.kit.faults import failing, unreachable
from tests.kit.small_log import SmallLog, heartbeat
from tests.store.conftest import Databases

MAX_STEPS = 40
ROOT = Path(__file__).resolve().parents[3]


def check_whole(ledger: Ledger, open_ledger: Callable[[], Ledger]) -> None:
    """Check that the service's state is the database's, and that the database is consistent to the last row."""
    other = open_ledger()
    other.load()
    assert ledger.state.size == other.state.size
    assert ledger.state.last_leaf == other.state.last_leaf
    assert sorted(map(str, ledger.state.projections())) == sorted(map(str, other.state.projections()))
    assert other.check_projections() == []
    other.close()


@pytest.mark.thorough
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_failure_at_any_step_leaves_an_entry_whole_or_not_at_all(
    engine: Engine, site: SmallLog, open_ledger: Callable[[], Ledger], after: bool
) -> None:
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    fired = []
    for step in range(MAX_STEPS):
        enrolment = site.enrolment(f"person-{step}-{after}".lower())
        size = ledger.state.size
        with failing(engine, step, after=after) as steps:
            try:
                appended = ledger.append(enrolment.pending)
            except Unavailable:
                stands = False
            else:
                stands = True
                assert appended.entry.index == size
        check_whole(ledger, open_ledger)
        assert ledger.state.size == size + stands
        assert stands == (enrolment.digest in ledger.state.orders)
        assert ledger.append(heartbeat()).entry.index == size + stands
        if steps.fired is None:
            break
        fired.append(steps.fired)
        assert stands == (steps.fired == "COMMIT" and after), f"step {step}: {steps.fired}"
    assert "COMMIT" in fired and len(fired) >= 13, fired
    ledger.close()


@pytest.mark.thorough
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupt_at_any_step_leaves_the_fold_equal_to_the_database(
    engine: Engine, site: SmallLog, open_ledger: Callable[[], Ledger], after: bool
) -> None:
    """Not an error of the database: whatever it was, the state replay is not believed."""
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    for step in range(MAX_STEPS):
        enrolment = site.enrolment(f"person-{step}-{after}".lower())
        with failing(engine, step, after=after, error=lambda _: KeyboardInterrupt()) as steps:
            try:
                ledger.append(enrolment.pending)
            except KeyboardInterrupt:
                assert steps.fired is not None
        check_whole(ledger, open_ledger)
        ledger.append(heartbeat())
        if steps.fired is None:
            break
    assert step >= 13
    ledger.close()


def test_when_a_commits_answer_is_lost_nothing_is_signed_before_the_head_was_read_again(
    engine: Engine, site: SmallLog, open_ledger: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    signed: list[int] = []
    sign = keys_module.sign_checkpoint
    monkeypatch.setattr(
        keys_module,
        "sign_checkpoint",
        lambda checkpoint, signer: signed.append(checkpoint.size) or sign(checkpoint, signer),
    )
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    carol = site.enrolment("carol")
    size = ledger.state.size
    engine.dispose()
    with unreachable(engine):
        with failing(engine, "COMMIT", after=True) as steps, pytest.raises(Unavailable) as caught:
            ledger.append(carol.pending)
        assert steps.fired == "COMMIT"
        assert caught.value.code == "commit-unknown"
        for _ in range(3):
            with pytest.raises(Unavailable):
                ledger.append(heartbeat())
            with pytest.raises(Unavailable):
                _ = ledger.state
    assert signed[-1] == size + 1, "nothing was signed while the database did not answer"
    assert carol.digest in ledger.state.orders
    with pytest.raises(Conflict):
        ledger.append(carol.pending)
    assert ledger.append(heartbeat()).entry.index == size + 1
    assert len(signed) == len(set(signed)), "no size was signed twice"
    check_whole(ledger, open_ledger)
    ledger.close()


def test_an_append_is_retried_once_on_a_connection_that_the_server_closed(
    databases: Databases, database_url: str, ledger: Ledger
) -> None:
    if database_url.startswith("sqlite"):
        ledger.close()
    else:
        name = database_url.rpartition("/")[2]
        databases.server().execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    assert ledger.append(heartbeat()).entry.index == 1


def test_a_signer_that_fails_costs_nothing_but_the_append(
    ledger: Ledger, open_ledger: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("the token was pulled out")

    with monkeypatch.context() as patch:
        patch.setattr(keys_module, "sign_checkpoint", fail)
        with pytest.raises(Unavailable, match="the token was pulled out"):
            ledger.append(heartbeat())
    check_whole(ledger, open_ledger)
    assert ledger.append(heartbeat()).entry.index == 1


def test_a_defect_in_a_rule_that_left_the_state_half_changed_does_not_survive(
    ledger: Ledger, open_ledger: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch, site: SmallLog
) -> None:
    def half(state: Any, *_: object) -> None:
        state.principals.put("mallory", state.principals.get("alice"))
        state.size += 1
        raise Conflict("half-way")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "apply", half)
        with pytest.raises(Conflict, match="half-way"):
            ledger.append(heartbeat())
    assert ledger.state.principals.get("mallory") is None
    check_whole(ledger, open_ledger)


def test_bytes_that_were_stored_otherwise_than_they_were_given_are_not_signed(
    ledger: Ledger, open_ledger: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flipped bit on the way to the disk: found when the bytes are read back, before the signature."""
    insert = ledger_module.rows.insert_entries

    def flip(connection: Any, added: Any) -> None:
        insert(
            connection, [(e, nodes, data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], b) for e, nodes, data, b in added]
        )

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.rows, "insert_entries", flip)
        with pytest.raises(Tampered, match="entry 1: expected the bytes that were written"):
            ledger.append(heartbeat())
    check_whole(ledger, open_ledger)
    assert ledger.append(heartbeat()).entry.index == 1


# --- the disk and the server themselves ---------------------------------------------------------------------------


@pytest.fixture
def sqlite_ledger(sqlite_path: Path, site: SmallLog) -> Iterator[Ledger]:
    ledger = site.open_ledger(open_engine(f"sqlite:///{sqlite_path}"))
    ledger.append(site.first_draft())
    yield ledger
    ledger.close()


def reopen(site: SmallLog, path: Path) -> Callable[[], Ledger]:
    return lambda: site.open_ledger(open_engine(f"sqlite:///{path}"))


def test_a_full_disk_stops_appends_until_there_is_room(
    sqlite_ledger: Ledger, sqlite_path: Path, site: SmallLog
) -> None:
    """The limit on a file's size replaces the disk's: write() fails the same way, with another number."""
    for _ in range(5):
        sqlite_ledger.append(heartbeat())
    largest = max(path.stat().st_size for path in sqlite_path.parent.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = sqlite_ledger.state.size
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 8192, hard))
    refused = 0
    try:
        for _ in range(20):
            try:
                assert sqlite_ledger.append(heartbeat()).entry.index == size
                size += 1
            except Unavailable:
                refused += 1
            assert len(list(sqlite_ledger.entries())) == size, "reading goes on"
            assert sqlite_ledger.state.size == size
        assert refused > 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sqlite_ledger.append(heartbeat()).entry.index == size
    check_whole(sqlite_ledger, reopen(site, sqlite_path))


def test_a_database_file_that_is_read_only_stops_appends_until_it_is_not(sqlite_path: Path, site: SmallLog) -> None:
    """Root writes whatever a file's mode says, so each connection is set to refuse: the error is SQLite's own."""
    engine, closed = open_engine(f"sqlite:///{sqlite_path}"), [False]
    event.listen(engine, "checkout", lambda raw, *_: raw.execute(f"PRAGMA query_only = {int(closed[0])}"))
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    ledger.close()
    closed[0] = True
    for _ in range(3):
        with pytest.raises(Unavailable, match="readonly"):
            ledger.append(heartbeat())
        assert len(list(ledger.entries())) == ledger.state.size == 1, "reading goes on"
    ledger.close()
    closed[0] = False
    assert ledger.append(heartbeat()).entry.index == 1
    check_whole(ledger, reopen(site, sqlite_path))
    ledger.close()


def test_a_failed_commit_does_not_cost_a_fold_over_the_whole_log(
    engine: Engine, site: SmallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every attempt on a full disk would read everything again."""
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    loads = []
    load = ledger.load
    monkeypatch.setattr(ledger, "load", lambda: loads.append(1) or load())
    for _ in range(5):
        with failing(engine, "COMMIT", after=False), pytest.raises(Unavailable):
            ledger.append(heartbeat())
    assert ledger.append(heartbeat()).entry.index == 1
    assert loads == []
    ledger.close()


def test_a_database_file_that_is_gone_is_unavailable_and_never_a_new_empty_one(
    sqlite_ledger: Ledger, sqlite_path: Path, site: SmallLog
) -> None:
    aside = sqlite_path.with_name("aside")
    aside.mkdir()
    files = [path for path in sqlite_path.parent.iterdir() if path.is_file()]
    for path in files:
        path.rename(aside / path.name)
    for _ in range(2):
        with pytest.raises(Unavailable):
            sqlite_ledger.append(heartbeat())
        with pytest.raises(Unavailable):
            sqlite_ledger.entry_bytes(0)
    assert not sqlite_path.exists()
    for path in files:
        (aside / path.name).rename(path)
    assert sqlite_ledger.append(heartbeat()).entry.index == 1
    check_whole(sqlite_ledger, reopen(site, sqlite_path))


def test_nothing_is_committed_into_a_file_that_was_removed_or_set_aside_meanwhile(
    sqlite_ledger: Ledger, sqlite_path: Path, site: SmallLog
) -> None:
    aside = sqlite_path.with_name("aside")
    with pytest.raises(Unavailable, match="expected the database file that was opened"):
        sqlite_ledger.append(heartbeat(), guard=lambda *_: sqlite_path.rename(aside) and None)
    aside.rename(sqlite_path)
    assert sqlite_ledger.append(heartbeat()).entry.index == 1
    check_whole(sqlite_ledger, reopen(site, sqlite_path))
    with pytest.raises(Unavailable, match="expected the database file that was opened"):
        sqlite_ledger.append(heartbeat(), guard=lambda *_: sqlite_path.unlink())


def test_yesterdays_database_in_place_of_todays_is_refused_by_a_service_that_knew_todays(
    sqlite_ledger: Ledger, sqlite_path: Path
) -> None:
    sqlite_ledger.append(heartbeat())
    sqlite_ledger.close()
    yesterday = sqlite_path.with_name("yesterday")
    shutil.copyfile(sqlite_path, yesterday)
    sqlite_ledger.append(heartbeat())
    sqlite_ledger.close()
    os.replace(yesterday, sqlite_path)
    with pytest.raises(Tampered, match="expected a log of at least 3 entries, seen before, got 2"):
        sqlite_ledger.append(heartbeat())


def test_a_page_that_was_overwritten_is_unavailable_or_tampered_never_a_wrong_answer(
    sqlite_ledger: Ledger, sqlite_path: Path, site: SmallLog
) -> None:
    for _ in range(20):
        sqlite_ledger.append(heartbeat())
    sqlite_ledger.close()
    whole = sqlite_path.read_bytes()
    for page in range(1, len(whole) // 4096):
        sqlite_path.write_bytes(whole[: page * 4096] + os.urandom(4096) + whole[(page + 1) * 4096 :])
        ledger = reopen(site, sqlite_path)()
        try:
            ledger.load()
        except (Unavailable, Tampered):
            continue
        finally:
            ledger.close()
        # Pages that a load does not read: indexes that only searches use, projections, free pages.
        assert ledger.state.size == 21


@pytest.mark.thorough
def test_a_server_that_stops_is_unavailable_and_continues_after_its_restart(
    databases: Databases, site: SmallLog, tmp_path: Path
) -> None:
    server = databases.server()
    with databases.copy("postgresql", databases.migrated("postgresql"), tmp_path) as url:
        ledger = site.open_ledger(open_engine(url))
        ledger.append(site.first_draft())
        for how in (signal.SIGINT, signal.SIGQUIT):
            size = ledger.state.size
            server.stop(how)
            try:
                with pytest.raises(Unavailable):
                    ledger.append(heartbeat())
                with pytest.raises(Unavailable):
                    ledger.checkpoint()
            finally:
                server.start()
            assert ledger.append(heartbeat()).entry.index == size
        check_whole(ledger, lambda: site.open_ledger(open_engine(url)))
        ledger.close()


def test_a_server_that_becomes_read_only_is_unavailable_until_it_is_not(
    databases: Databases, site: SmallLog, tmp_path: Path
) -> None:
    server = databases.server()
    with databases.copy("postgresql", databases.migrated("postgresql"), tmp_path) as url:
        ledger = site.open_ledger(open_engine(url))
        ledger.append(site.first_draft())
        name = url.rpartition("/")[2]
        server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        ledger.close()
        with pytest.raises(Unavailable):
            ledger.append(heartbeat())
        assert len(list(ledger.entries())) == 1
        server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        ledger.close()
        assert ledger.append(heartbeat()).entry.index == 1
        ledger.close()


@pytest.mark.thorough
def test_a_process_killed_in_the_middle_of_an_append_leaves_a_whole_log(
    database_url: str, ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog
) -> None:
    """kill -9 of a real process, at its own random moment; three times."""
    code = (
        "import sys\n"
        "from appliance.formats.signatures.keys import Ed25519Signer\n"
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey\n"
        "from appliance.store.database.engine import open_engine\n"
        "from tests.kit.small_log import SmallLog, heartbeat\n"
        "from appliance.formats.log.note import vkey_of\n"
        "site = SmallLog()\n"
        "site.log_signer = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(sys.argv[2])))\n"
        "site.log_key = sys.argv[3]\n"
        "ledger = site.open_ledger(open_engine(sys.argv[1]))\n"
        "while True:\n"
        "    print(ledger.append(heartbeat()).entry.index, flush=True)\n"
    )
    key = site.log_signer.private.private_bytes_raw().hex()
    for round_ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, database_url, key, site.log_key], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        for _ in range(3 + round_):
            told = process.stdout.readline()
        process.kill()
        rest = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        last = int(rest[-1] if rest else told)
        ledger.refresh()
        assert ledger.state.size in (last + 1, last + 2), "what was reported stands; at most one more was on its way"
        check_whole(ledger, open_ledger)
        ledger.append(heartbeat())


def test_the_same_draft_again_after_an_unknown_commit_is_a_conflict_not_a_second_entry(
    engine: Engine, site: SmallLog
) -> None:
    """Orders are accepted once: a retry after `commit-unknown` does no harm."""
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    carol = site.enrolment("carol")
    outcomes: list[str] = []
    with failing(engine, "COMMIT", after=True):
        for draft in (carol.pending, carol.pending):
            try:
                ledger.append(draft)
                outcomes.append("appended")
            except ApplianceError as error:
                outcomes.append(error.code)
    assert outcomes == ["appended", "conflict"], "the answer was lost, and found again by asking"
    assert ledger.state.size == 2
    ledger.close()


def test_a_failed_append_is_an_alarm_and_its_end_a_line_too(
    engine: Engine, site: SmallLog, caplog: pytest.LogCaptureFixture
) -> None:
    """NIST 800-53 AU-5: the service's log reports it, not only the response."""
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    with failing(engine, "COMMIT", after=False), pytest.raises(Unavailable):
        ledger.append(heartbeat())
    assert [r.levelname for r in caplog.records if r.getMessage().startswith("ALARM: the ledger")] == ["CRITICAL"]
    caplog.clear()
    ledger.append(heartbeat())
    assert [r.getMessage() for r in caplog.records] == ["the ledger can be written again"]
    ledger.close()


def test_a_refusal_is_no_alarm(ledger: Ledger, site: SmallLog, caplog: pytest.LogCaptureFixture) -> None:
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    with pytest.raises(Conflict):
        ledger.append(carol.pending)
    assert caplog.records == []


def test_an_entry_that_stands_is_reported_even_where_the_write_ahead_log_cannot_be_emptied(
    ledger: Ledger, open_ledger: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the commit nothing that goes wrong may say that there was none."""

    def fail() -> None:
        raise OSError("no room to move pages")

    monkeypatch.setattr(ledger._writer, "scrub", fail)
    erasing = EntryDraft(type="heartbeat", erased=("hmac-sha256:" + "0" * 64,))
    assert ledger.append(erasing).entry.index == 1
    assert ledger.append(heartbeat()).entry.index == 2
    check_whole(ledger, open_ledger)
