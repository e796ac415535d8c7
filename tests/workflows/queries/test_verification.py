"""The service's own verification: the log in a separate process, with the same report as in the service."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from appliance.access.cedar import CedarPolicies
from appliance.api.wire import json_value
from appliance.domain.audit.verify import verify_log
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import encode_value
from appliance.errors import RateLimited, Unavailable
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import Trust, encode_trust, parse_trust
from appliance.sandbox import program
from appliance.store.database.engine import open_engine
from appliance.store.ledger.ledger import Ledger
from appliance.workflows.core.context import Context
from appliance.workflows.queries import verification
from appliance.workflows.queries.verification_program import Moment, encode_moment
from scripts.kit.postgres import SUPERUSER, Server, postgres
from scripts.kit.waiting import wait_for
from tests.kit.attacker import attack
from tests.kit.founded import policy_set
from tests.kit.one_process import one_process
from tests.kit.small_log import ORIGIN, START, SmallLog, heartbeat
from tests.store.conftest import Databases, database_url, databases

__all__ = ["database_url", "databases", "postgres"]

SIZE = 6
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what happens to the program, whatever database it reads."""
FSYNC = "database server, fsync: expected on, got off"
"""What is found of the tests' PostgreSQL, which need not last."""


@pytest.fixture
def site() -> SmallLog:
    """With Cedar policies, which are evaluated again."""
    site = SmallLog()
    site.policy = encode_value(policy_set())
    return site


@pytest.fixture
def ledger(database_url: str, site: SmallLog) -> Iterator[Ledger]:
    with closing(site.open_ledger(open_engine(database_url))) as ledger:
        enrolment = site.enrolment("carol")
        for draft in (site.first_draft(), enrolment.pending, enrolment.enrolled, *(heartbeat() for _ in range(3))):
            ledger.append(draft)
        yield ledger


@pytest.fixture
def context(ledger: Ledger, tmp_path: Path) -> Context:
    made = SimpleNamespace(
        **one_process(),
        ledger=ledger,
        logs=tmp_path / "logs",
        clock=lambda: START,
        verifying=threading.Lock(),
        closing=threading.Event(),
    )
    return cast(Context, made)


@pytest.fixture
def trust(ledger: Ledger, site: SmallLog) -> dict[str, Any]:
    people = tuple((name, key.keyid) for name, key in site.administrators.items())
    first = parse_entry(ledger.entry_bytes(0))
    value: dict[str, Any] = parse_canonical(
        encode_trust(Trust(ORIGIN, site.log_key, f"sha256:{first.leaf.hex()}", people))[:-1]
    )
    return value


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield the processes that were started, which must all have ended."""
    real, processes = program._start, []

    def start(module: str, log: Path) -> subprocess.Popen[bytes]:
        processes.append(real(module, log))
        return processes[-1]

    monkeypatch.setattr(program, "_start", start)
    yield processes
    assert all(process.returncode is not None for process in processes)


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """While the program waits for the texts."""

    def encode(moment: Moment, texts: Any) -> Iterator[bytes]:
        first, *rest = encode_moment(moment, texts)
        yield first
        act()
        yield from rest

    monkeypatch.setattr(verification, "encode_moment", encode)


def verify(context: Context, trust: dict[str, Any] | None) -> dict[str, Any]:
    """Without what is the tests' own."""
    report: dict[str, Any] = json_value(verification.verify(context, trust))
    if report["local_findings"] == [FSYNC]:
        assert context.ledger.database_url.startswith("postgresql")
        verdict = "verified" if trust else "unverifiable"
        report |= {"local_findings": [], "verdict": "failed" if report["findings"] else verdict}
    return report


def in_process(ledger: Ledger, trust: Trust | None) -> dict[str, Any]:
    checkpoint, texts = ledger.signed_texts()
    report = verify_log(
        *(ledger.entries(), ledger.document, texts, checkpoint, trust),
        now=encode_time(START),
        replay=lambda policy: CedarPolicies(policy).decide,
    )
    return report.model_dump(mode="json")


@pytest.mark.thorough
def test_the_report_is_the_one_that_the_service_would_make_itself(
    context: Context, trust: dict[str, Any], started: list[Any]
) -> None:
    for given in (trust, None):
        report = verify(context, given)
        own = in_process(context.ledger, None if given is None else parse_trust(encode_canonical(given) + b"\n"))
        assert {name: report[name] for name in own} == own
        assert (report["local_findings"], report["size"], report["counts"]["disclosures"]) == ([], SIZE, 1)
    assert report["verdict"] == "unverifiable"
    url = context.ledger.database_url
    for process in started:
        assert "-I" in process.args
        assert not any(secret in word for word in process.args for secret in (url, url.rpartition("@")[0] or url))


@pytest.mark.thorough
@pytest.mark.family(keep=2)
@pytest.mark.parametrize("changed", ["entries", "projections"])
def test_what_was_changed_in_the_database_is_found(
    context: Context, trust: dict[str, Any], database_url: str, databases: Databases, changed: str
) -> None:
    assert verify(context, trust)["verdict"] == "verified"
    with attack(database_url, databases.server() if database_url.startswith("postgresql") else None) as database:
        if changed == "entries":
            database.execute(
                'UPDATE entries SET bytes = (SELECT bytes FROM entries WHERE "index" = 5) WHERE "index" = 4'
            )
        else:
            database.execute("UPDATE projections SET value = '{}' WHERE kind = 'principal' AND id = 'carol'")
    report = verify(context, trust)
    assert report["verdict"] == "failed"
    found = [finding["message"] for finding in report["findings"]] + report["local_findings"]
    expected = "entry 4" if changed == "entries" else "projection principal carol"
    assert any(expected in message for message in found), found


@pytest.mark.thorough
def test_what_is_appended_meanwhile_is_not_of_that_moment(
    context: Context, trust: dict[str, Any], monkeypatch: pytest.MonkeyPatch, site: SmallLog
) -> None:
    dave = site.enrolment("dave")
    meanwhile(monkeypatch, lambda: [context.ledger.append(one) for one in (dave.pending, dave.enrolled, heartbeat())])
    report = verify(context, trust)
    assert (report["verdict"], report["size"], report["checkpoint_size"]) == ("verified", SIZE, SIZE)
    assert context.ledger.state.size == SIZE + 3


@pytest.mark.thorough
@ON_SQLITE
def test_a_program_that_was_killed_is_an_error_and_no_verdict(
    context: Context, trust: dict[str, Any], monkeypatch: pytest.MonkeyPatch, started: list[Any]
) -> None:
    with monkeypatch.context() as patch:
        meanwhile(patch, lambda: started[-1].send_signal(signal.SIGKILL))
        with pytest.raises(Unavailable, match="expected an answer, got its end by signal 9") as caught:
            verification.verify(context, trust)
        assert caught.value.code == "program-ended"
    assert verify(context, trust)["verdict"] == "verified", "the next one is not held up"


@pytest.mark.parametrize("who", ["service", "client"])
def test_a_verification_ends_with_the_service_and_with_whoever_asked(
    context: Context, trust: dict[str, Any], monkeypatch: pytest.MonkeyPatch, started: list[Any], who: str
) -> None:
    left = threading.Event()
    meanwhile(monkeypatch, (context.closing if who == "service" else left).set)
    with pytest.raises(Unavailable, match="expected a caller that waits for its answer, got none") as caught:
        verification.verify(context, trust, left.is_set)
    assert caught.value.code == "cancelled"
    assert started[-1].returncode == -signal.SIGKILL


@pytest.mark.thorough
@ON_SQLITE
@pytest.mark.family(keep=2)
@pytest.mark.parametrize("place", ["a pipe", "a link", "a folder", "a file for its folder"])
def test_a_log_that_cannot_be_written_is_refused_at_once(
    context: Context, trust: dict[str, Any], tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "logs"
    if place == "a file for its folder":
        folder.touch()
    else:
        folder.mkdir()
        path = folder / "verification.log"
        make: dict[str, Callable[[], object]] = {
            "a pipe": lambda: os.mkfifo(path),
            "a link": lambda: path.symlink_to(tmp_path / "elsewhere"),
            "a folder": path.mkdir,
        }
        make[place]()
    with pytest.raises(Unavailable, match="expected a log that can be written"):
        verification.verify(context, trust)
    assert not (tmp_path / "elsewhere").exists()
    (folder if folder.is_file() else folder / "verification.log").rename(tmp_path / "away")
    assert verify(context, trust)["verdict"] == "verified", "the next one is not held up"


@pytest.mark.thorough
@ON_SQLITE
def test_there_is_one_verification_at_a_time(context: Context, trust: dict[str, Any]) -> None:
    with context.verifying, pytest.raises(RateLimited, match="got a second one during the first"):
        verification.verify(context, trust)
    assert verify(context, trust)["verdict"] == "verified"


@pytest.mark.thorough
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_program_ends_when_its_service_has_died_though_the_database_says_nothing(
    context: Context, databases: Databases, tmp_path: Path
) -> None:
    name = context.ledger.database_url.rpartition("/")[2]
    checkpoint, texts = context.ledger.signed_texts()
    moment = Moment(context.ledger.database_url, {}, context.ledger.seen, checkpoint, None, encode_time(START))
    server: Server = databases.server()
    with psycopg.connect(server.url(name, SUPERUSER)) as other:
        other.execute("LOCK TABLE entries IN ACCESS EXCLUSIVE MODE")
        process = program._start(verification.PROGRAM, tmp_path / "log")
        with process:
            assert process.stdin is not None
            process.stdin.write(b"".join([*encode_moment(moment, texts), program.END]))
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
            with psycopg.connect(server.url(name, SUPERUSER), autocommit=True) as watcher:
                wait_for(lambda: watcher.execute(waiting, (name,)).fetchone() != (0,), "a session that waits")
            process.stdin.close()
            assert process.wait(60) == 1


@pytest.mark.thorough
@ON_SQLITE
def test_a_database_that_does_not_answer_is_no_finding(context: Context, trust: dict[str, Any]) -> None:
    elsewhere = SimpleNamespace(
        signed_texts=context.ledger.signed_texts, seen=context.ledger.seen, database_url="sqlite:////nowhere/ledger.db"
    )
    with pytest.raises(Unavailable, match="expected a database that answers"):
        verification.verify(cast(Context, SimpleNamespace(**vars(context) | {"ledger": elsewhere})), trust)


@pytest.mark.thorough
@ON_SQLITE
def test_the_program_knows_nothing_of_the_services_environment(
    context: Context, trust: dict[str, Any], monkeypatch: pytest.MonkeyPatch, started: list[Any]
) -> None:
    monkeypatch.setenv("APPLIANCE_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    found: list[bytes] = []
    meanwhile(monkeypatch, lambda: found.append(_environment(started[-1].pid)))
    verification.verify(context, trust)
    assert b"secret" not in found[0] and b"PYTHONPATH" not in found[0]


def _environment(pid: int) -> bytes:
    """As far as the kernel shows it: of a process that may not be dumped, to root alone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except PermissionError:
        assert os.geteuid() != 0
        return b""
