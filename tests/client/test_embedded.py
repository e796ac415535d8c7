"""The start of the service by a client: a separate process that survives the command which started it."""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance import wiring
from appliance.cli.support.caller import Caller
from appliance.client.policies import load_policy
from appliance.client.support import service_process
from appliance.client.support.connection import Connection, is_answering
from appliance.config.settings import VARIABLES, Settings, load_settings, select_variables
from appliance.errors import NotFound, Unavailable
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.log.trust import parse_trust
from appliance.formats.signatures.keys import generate_ed25519
from appliance.store.files.keyring import LOG_KEY, Keyring
from appliance.store.files.known_checkpoints import KnownCheckpoints
from appliance.store.files.lock import lock_folder
from appliance.store.ledger import log_state
from appliance.wiring import building
from appliance.wiring import building as ledger
from appliance.workflows import integrity
from appliance.workflows.core.context import Code
from appliance.workflows.lifecycle.recovery import recover

POLICY = Path(__file__).resolve().parents[2] / "policies" / "default"


@pytest.fixture
def settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("APPLIANCE_LISTEN", "off")
    # Other tests of this process may have started services too.
    monkeypatch.setattr(service_process, "_started", [])
    yield load_settings()
    for process in service_process._started:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
        process.wait(90)


def _place(settings: Settings) -> service_process.Place:
    return service_process.Place(settings.home, settings.socket, settings.lock, settings.logs, select_variables)


def _init(settings: Settings) -> None:
    people = [wiring.Person(name, generate_ed25519().spki) for name in ("alice", "bob")]
    wiring.init(
        settings, people, origin="embedded.example/1", single_administrator=False, policy=load_policy(POLICY).data
    )


@pytest.mark.thorough
def test_the_service_is_started_in_a_session_of_its_own_and_only_once(settings: Settings) -> None:
    _init(settings)
    connection = Connection(settings.socket, lambda: service_process.start_service(_place(settings)))
    assert connection.about.origin == "embedded.example/1"
    connection.close()
    (process,) = service_process._started
    assert os.getsid(process.pid) == process.pid
    service_process.start_service(_place(settings))
    assert service_process._started == [process]


@pytest.mark.thorough
def test_a_service_that_cannot_start_says_why_and_where_to_read(settings: Settings) -> None:
    with pytest.raises(Unavailable, match=r"got exit code 4: .*appliance init.*; see .*service\.log"):
        service_process.start_service(_place(settings))
    assert not is_answering(settings.socket)


def test_a_lock_that_another_holds_is_waited_for_and_no_second_service_is_started(settings: Settings) -> None:
    handle = os.open(settings.lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(Unavailable, match=r"within 0 s, got none"):
        service_process.start_service(_place(settings), timeout_s=0.2)
    os.close(handle)
    assert service_process._started == []


def test_a_service_that_says_how_far_it_is_is_waited_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long log takes longer to read than anybody waits for silence."""
    now = [0.0]
    monkeypatch.setattr(service_process, "_TELL_S", 0.0)
    answering = iter([False] * 8 + [True])
    monkeypatch.setattr(service_process, "is_answering", lambda _: next(answering))
    heard: list[str] = []
    with lock_folder(settings.lock) as lock:
        count = iter(range(9))

        def rest(_seconds: float) -> None:
            now[0] += 10.0
            lock.say(f"reads its log: {next(count)} of 9 entries")

        monkeypatch.setattr(service_process, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=rest))
        service_process.start_service(_place(settings), timeout_s=25.0, on_progress=heard.append)
    assert heard[:2] == ["reads its log: 0 of 9 entries", "reads its log: 1 of 9 entries"]
    assert service_process._started == []


def test_the_next_service_continues_from_the_fold_that_the_last_one_sealed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "LEAST", 1)
    _init(settings)
    with wiring.service(settings) as context:
        place = context.ledger.state.place
        context.ledger.seal_snapshot(1)
    folded: list[object] = []
    monkeypatch.setattr(log_state, "_advance_one", lambda *entry: folded.append(entry))
    said: list[str] = []
    with wiring.service(settings, said.append) as context:
        assert context.ledger.state.place == place
    assert folded == [] and said == ["reads its log: 0 of 1 entries", "starts"]
    # Other code, to the last byte of a library's record, replays every entry again.
    monkeypatch.undo()
    monkeypatch.setattr(building, "describe_code", lambda: Code("0.0", "sha256:other", {}))
    with wiring.service(settings) as context:
        assert context.ledger.state.place == place
        assert context.ledger._snapshots is not None and context.ledger._snapshots.size == 0


def test_a_service_starts_long_after_the_last_entry_only_where_somebody_says_that_the_clock_is_right(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _init(settings)
    monkeypatch.setattr(ledger, "LONGEST_PAUSE_DAYS", -1)
    with pytest.raises(Unavailable, match=r"^clock: .* the service starts with --after-pause$"):
        wiring.serve(settings, embedded=True)
    with wiring.service(settings, after_pause=True) as context:
        assert context.ledger.state.size == 1, "nothing was written"
        recover(context)
        assert context.ledger.state.size == 2


def test_a_service_that_is_told_to_makes_the_projections_anew(settings: Settings) -> None:
    """They are a cache: rows that somebody has changed are no loss."""
    _init(settings)
    with closing(sqlite3.connect(settings.home / "ledger.db")) as database, database:
        database.execute("UPDATE projections SET value = '{}'")
    with wiring.service(settings) as context:
        assert context.ledger.check_projections() != []
    with wiring.service(settings, rebuild=True) as context:
        assert context.ledger.check_projections() == []


def test_no_data_folder_is_not_found_and_says_what_to_type(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(NotFound, match="appliance init"):
        service_process.start_service(
            service_process.Place(nowhere, nowhere / "s", nowhere / "l", nowhere / "logs", dict)
        )


SETTINGS = dict.fromkeys(VARIABLES.values(), "a value")
PERSONAL = {
    "APPLIANCE_KEY": "/home/ada/ada.key",
    "APPLIANCE_PRINCIPAL": "ada",
    "APPLIANCE_TRUST": "/home/ada/trust.json",
    "SECRET": "x",
}


def test_the_service_has_every_setting_of_the_command_that_starts_it_and_nothing_of_the_persons(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    for name, value in (SETTINGS | PERSONAL).items():
        monkeypatch.setenv(name, value)
    told: list[dict[str, str]] = []

    class Started:
        returncode = 9

        def __init__(self, command: list[str], *, env: dict[str, str], **rest: object) -> None:
            told.append(env)

        def poll(self) -> int:
            return self.returncode

    monkeypatch.setattr(service_process.subprocess, "Popen", Started)
    monkeypatch.setattr(service_process, "_started", [])
    with pytest.raises(Unavailable, match="got exit code 9"):
        _ = Caller(home=home).about
    (environment,) = told
    assert environment["PATH"] == os.environ["PATH"]
    assert {name: value for name, value in environment.items() if name.startswith("APPLIANCE_")} == SETTINGS
    assert "SECRET" not in environment


@pytest.mark.thorough
def test_a_command_starts_no_service_on_a_log_that_lost_what_is_kept_where_the_environment_says(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _init(settings)
    signer, origin = Keyring(settings.keys).open_signer(LOG_KEY), parse_trust(settings.trust.read_bytes()).origin
    KnownCheckpoints(tmp_path / "worm").store_cosigned("w", sign_checkpoint(Checkpoint(origin, 7, bytes(32)), signer))
    monkeypatch.setenv("APPLIANCE_WITNESSED", str(tmp_path / "worm"))
    with pytest.raises(Unavailable, match=r"got exit code 6: .*expected at least 7 entries"):
        _ = Caller(home=settings.home).about


@contextmanager
def _onlookers(lock: Path) -> Iterator[None]:
    """Commands that look all the time whether a service runs."""
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            service_process.is_locked(lock)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@pytest.mark.thorough
def test_a_service_starts_however_many_look_whether_one_runs(settings: Settings) -> None:
    with _onlookers(settings.lock):
        for _ in range(100):
            with lock_folder(settings.lock):
                assert service_process.is_locked(settings.lock)


def test_who_looks_is_not_taken_for_a_service_by_another_who_looks(settings: Settings) -> None:
    settings.lock.touch(0o600)
    with _onlookers(settings.lock):
        assert not any(service_process.is_locked(settings.lock) for _ in range(2_000))
