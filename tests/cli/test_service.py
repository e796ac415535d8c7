"""Keeping an appliance running: what is in order, what it does, what it stores, and how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.config.explain import render_page
from appliance.domain.governance.people import Grant
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.cosignature import witness_vkey_of
from appliance.formats.signatures.keys import generate_ed25519
from appliance.workflows.core.context import Context
from appliance.workflows.operations import installation, machine
from appliance.workflows.operations.status import status
from scripts.kit.certificates import Authority
from tests.cli.conftest import Desk, Told, one_line, type_alone
from tests.kit.founded import policy_set

ROOT = Path(__file__).resolve().parents[2]
Findings = dict[str, dict[str, Any]]


def findings(told: Told) -> Findings:
    """Of `doctor --json`, by what was looked at."""
    return {one["check"]: one for one in json.loads(told.out)["findings"]}


def test_doctor_before_init_says_what_to_do_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = type_alone(capsys, "doctor", "--home", str(tmp_path / "none"), "--json")
    found = findings(told)
    assert (found["home"]["level"], found["service"]["found"]) == ("warn", "none runs")
    assert "appliance init" in found["home"]["action"]
    assert not (tmp_path / "none").exists()
    assert "keys" not in found and "database" not in found
    assert told.code == 0, "a warning alone is no failure"


def test_doctor_reports_settings_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "appliance.toml").write_text('listn = "x"')
    told = type_alone(capsys, "doctor", "--home", str(tmp_path), "--json")
    assert told.code == 7
    assert findings(told)["settings"]["level"] == "fail"
    assert "did you mean 'listen'" in findings(told)["settings"]["found"]


def test_every_finding_says_level_found_expected_and_what_to_do(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    found = findings(desk.type("doctor", "--json"))
    assert {"service", "permissions", "keys", "database", "database role", "clock", "witnesses"} <= set(found)
    for one in found.values():
        assert set(one) == {"check", "level", "found", "expected", "action"}
        assert one["level"] in ("ok", "warn", "fail") and one["found"] and one["expected"]
        assert (one["action"] == "") == (one["level"] == "ok")
    assert [found[name]["level"] for name in ("keys", "database", "clock", "home")] == ["ok"] * 4


def test_doctor_finds_rights_keys_and_a_planted_trigger(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    home = desk.service.settings.home
    (home / "keys" / "adapter.pem").chmod(0o640)
    (home / "keys" / "request-digests.secret").unlink()
    with desk.site.ledger._engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE planted (x)")
        connection.commit()
    told = desk.type("doctor", "--json")
    found = findings(told)
    assert told.code == 7
    assert "adapter.pem: mode 0640" in found["permissions"]["found"]
    assert found["keys"]["level"] == "fail"
    assert "planted" in found["database"]["found"]


def test_doctor_prints_no_secret(open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    desk = open_desk("staffed")
    token = desk.folder / "token"
    token.touch(0o600)
    token.write_text("do-not-print-this-token-of-operations")
    monkeypatch.setenv("APPLIANCE_OPERATIONS", "127.0.0.1:1")
    monkeypatch.setenv("APPLIANCE_OPERATIONS_TOKEN", str(token))
    keys = [path.read_text("latin-1").strip() for path in (desk.service.settings.home / "keys").iterdir()]
    for words in (("doctor",), ("doctor", "--json")):
        told = desk.type(*words)
        for secret in ("do-not-print", *(line for key in keys for line in key.splitlines() if len(line) > 20)):
            assert secret not in told.out + told.err or "PRIVATE KEY" in secret
    monkeypatch.setenv("APPLIANCE_DATABASE_URL", "postgresql://app:hunter22@127.0.0.1:1/ledger")
    for words in (("doctor",), ("doctor", "--json"), ("config",), ("config", "--json")):
        told = desk.type(*words)
        assert "hunter22" not in told.out + told.err


def check(name: str, found: Iterator[Any]) -> Any:
    (one,) = [finding for finding in found if finding.check == name]
    return one


def test_a_wall_that_cannot_be_built_fails_unless_policy_accepts_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "detect_layers", lambda: {"seccomp": True, "user-ns": False})
    assert check("kernel layer user-ns", machine.check_machine(ROOT, (), {})).level == "fail"
    accepted = check("kernel layer user-ns", machine.check_machine(ROOT, ("user-ns",), {}))
    assert (accepted.level, "policy accepts" in accepted.found) == ("warn", True)


def test_little_memory_an_old_landlock_and_an_online_library_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "detect_layers", lambda: {"seccomp": True})
    monkeypatch.setattr(machine, "host_memory", lambda *, now: 1 << 20)
    monkeypatch.setattr(machine.landlock, "abi", lambda: 1)
    monkeypatch.setattr(machine, "disk_shortage", lambda folder, *, engine: "too little")
    found = {one.check: one for one in machine.check_machine(ROOT, (), {"HF_HUB_OFFLINE": "0"})}
    levels = {name: found[name].level for name in ("memory", "Landlock", "disk", "offline variables")}
    assert levels == {"memory": "warn", "Landlock": "warn", "disk": "fail", "offline variables": "warn"}
    assert "HF_HUB_OFFLINE" in found["offline variables"].found


def test_a_certificate_is_warned_of_before_its_end_and_fails_after_it(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    end = installation.read_end(files.chain)
    for now, level in ((end - timedelta(days=31), "ok"), (end - timedelta(days=29), "warn"), (end, "fail")):
        (one,) = installation.check_certificates([files.chain], now)
        assert one.level == level
    (tmp_path / "other.pem").write_text("no certificate")
    (one,) = installation.check_certificates([tmp_path / "other.pem"], end)
    assert one.level == "fail"


def test_a_clock_that_went_back_and_one_that_ran_ahead_fail(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    settings = desk.service.settings
    place = installation.Installation(
        settings.home, settings.keys, settings.socket, settings.database_url, (), (), (), None
    )
    now = datetime.now(UTC)
    for moment, level in ((now, "ok"), (now - timedelta(days=2), "fail"), (now + timedelta(days=60), "fail")):
        found, parameters = installation.check_database(place, moment)
        assert parameters is not None
        assert check("clock", iter(found)).level == level


def test_a_witness_that_is_older_than_policy_wants_is_told_and_admission_that_stops(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("staffed")
    key = generate_ed25519()
    vkey = witness_vkey_of("witness.example/w1", key.spki)
    desk.site.adopt(policy_set(witnesses=(vkey,), witness_quorum=1, witness_lifetime_s=3_600))
    assert findings(desk.type("doctor", "--json"))["witness quorum"]["level"] == "fail"
    event, documents = desk.site.cosigned(key, "witness.example/w1")
    desk.site.add(event, documents=documents)
    settings = desk.service.settings
    place = installation.Installation(
        settings.home, settings.keys, settings.socket, settings.database_url, (), (), (), None
    )
    for later_s, level, quorum in ((0, "ok", "ok"), (3_700, "warn", "fail")):
        found, _ = installation.check_database(place, datetime.now(UTC) + timedelta(seconds=later_s))
        assert check("witness witness.example/w1", iter(found)).level == level
        assert check("witness quorum", iter(found)).level == quorum
    (one,) = status(desk.service.context)["witnesses"]
    assert one["counts"] and one["age_s"] < 60 and one["name"] == "witness.example/w1"


def test_status_starts_nothing_and_says_that_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(capsys, "status", "--home", str(tmp_path), "--json")
    assert (told.code, json.loads(told.out)) == (0, {"service": {"state": "not running", "pid": None}})
    assert list(tmp_path.iterdir()) == []
    plain = type_alone(capsys, "status", "--home", str(tmp_path))
    assert "next: appliance doctor, appliance init" in plain.err


def test_serve_before_init_names_init_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for home in (tmp_path, tmp_path / "none"):
        told = type_alone(capsys, "serve", "--home", str(home))
        assert told.code == 4 and "make it with: appliance init" in told.err
    assert list(tmp_path.iterdir()) == []


@contextmanager
def held(lock: Path, pid: int, doing: str = "") -> Iterator[None]:
    """The lock, as a service holds it that says this process id."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{pid}\n{doing}")
        file.flush()
        yield


@pytest.mark.usefixtures("terminal")
def test_status_shows_on_one_screen_what_runs_and_what_waits_for_whom(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    desk.site.request_run()
    desk.site.pend(desk.site.order(Grant, "anna", principal="olga", role="reviewer:cost"))
    with held(desk.service.settings.lock, os.getpid()):
        told = desk.as_("ben", "status", "--json")
        shown = json.loads(told.out)
        assert shown["service"] | {"since": "", "version": ""} == {
            "state": "running", "pid": os.getpid(), "ready": True, "warnings": [], "since": "", "version": "",
        }  # fmt: skip
        assert shown["log"]["size"] == shown["log"]["checkpoint"] == desk.site.state.size
        assert [(job["kind"], job["status"]) for job in shown["jobs"]] == [("run", "queued")]
        assert [(one["verb"], one["signer"]) for one in shown["orders"]] == [("grant", "anna")]
        assert shown["reviews"] == [{"adapter": "clauses@1", "unit": None, "approvals": 0, "needed": 2}]
        told = desk.as_("ben", "status")
        assert len(told.out.splitlines()) <= 24 and max(map(len, told.out.splitlines())) <= 80
        assert "grant by anna" in told.out and "clauses@1: 0 of 2 approvals" in told.out
        plain = desk.type("status", "--json")
        assert set(json.loads(plain.out)["service"]) == {"state", "pid", "version"}
        login = ("login", "ben", "--key", str(desk.key("ben")), "--passphrase-file", str(desk.passphrase))
        assert desk.type(*login).code == 0
        assert json.loads(desk.type("status", "--json").out)["log"]["size"] == desk.site.state.size


def test_status_says_which_approved_adapter_waits_for_a_release_owner(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("approved")
    with held(desk.service.settings.lock, os.getpid()):
        shown = json.loads(desk.as_("ben", "status", "--json").out)
        assert shown["releases"] == [{"adapter": "clauses@1", "unit": "legal", "owners": ["otto"]}]
        said = "clauses@1 is approved for legal and was never released; release owner: otto"
        assert said in one_line(desk.as_("ben", "status").out)
        desk.site.activate()
        assert "none waits for a release owner" in desk.as_("ben", "status").out


HOLDER = """
import os, signal, sys, time
from pathlib import Path
from appliance.store.files.lock import lock_folder
lock = lock_folder(Path(sys.argv[1]))
def end(*_):
    lock.say("records its end")
    time.sleep(float(sys.argv[2]))
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(home: Path, slow_s: float = 0.0) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLDER, str(home / "appliance.lock"), str(slow_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_stop_ends_the_process_that_holds_the_lock_and_waits_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder(tmp_path, slow_s=0.5) as process:
        told = type_alone(capsys, "stop", "--home", str(tmp_path), "--json")
        assert (told.code, json.loads(told.out)) == (0, {"stopped": process.pid})
        assert process.wait(5) == 0
    told = type_alone(capsys, "stop", "--home", str(tmp_path))
    assert (told.code, told.out) == (0, "no service was running\n")


def test_stop_says_what_it_waits_for_when_its_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holder(tmp_path, slow_s=30):
        told = type_alone(capsys, "stop", "--home", str(tmp_path), "--timeout", "1")
        assert told.code == 7
        assert "expected it to end within 1 s; it records its end" in told.err


def test_stop_sends_no_signal_to_a_process_that_only_has_the_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lock's file names a process of this account that does not have it open."""
    with subprocess.Popen(["/bin/sleep", "60"]) as stranger:
        with holder(tmp_path) as process:
            (tmp_path / "appliance.lock").write_text(f"{stranger.pid}\n")
            told = type_alone(capsys, "stop", "--home", str(tmp_path))
            assert told.code == 5
            assert "no signal was sent" in told.err
            assert stranger.poll() is None and process.poll() is None
        stranger.kill()


def test_storage_says_what_lies_where(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    context: Context = desk.service.context
    data = b"x" * 1000
    file = desk.folder / "state"
    file.write_bytes(data)
    run = desk.site.request_run()
    desk.site.add(desk.site.started(run))
    with file.open("rb") as source, context.checkpoints.keep(source.fileno()) as digest:
        pass
    desk.site.add(desk.site.checkpointed(run, 2, checkpoint=digest))
    shown = json.loads(desk.as_("anna", "storage", "--json").out)
    kinds = shown["kinds"]
    assert set(kinds) == {
        "bases", "datasets", "validation sets", "adapters", "training checkpoints", "uploads", "logs", "steps",
        "database",
    }  # fmt: skip
    assert kinds["training checkpoints"]["things"] == [
        {"name": run, "bytes": 1000, "files": 1, "kept_for": "under way", "kept_until": None}
    ]
    assert kinds["database"]["bytes"] > 0 and kinds["adapters"]["things"][0]["bytes"] > 0
    assert shown["bytes"] == sum(kind["bytes"] for kind in kinds.values())
    (context.logs / "empty.log").touch()
    (context.logs.parent / "uploads" / ("ab" * 32)).write_bytes(data)
    told = desk.as_("anna", "storage")
    assert "under way" in told.out and "1.0 kB" in told.out
    # Nobody learns the digest of a file that another is about to import: who knows it could have it checked.
    assert "upload 1" in told.out and "abab" not in desk.as_("olga", "storage", "--json").out
    assert "empty.log" not in told.out and "empty.log" in desk.as_("anna", "storage", "--json").out


def test_config_says_every_setting_and_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "appliance.toml").write_text('rehash = "off"\n[limits.legal]\nconcurrent = 3\n')
    monkeypatch.setenv("APPLIANCE_LISTEN", "off")
    told = type_alone(capsys, "config", "--home", str(tmp_path), "--json")
    found = {one["name"]: (one["value"], one["source"]) for one in json.loads(told.out)}
    assert found["home"] == (str(tmp_path), "option")
    assert found["listen"] == ("off", "environment")
    assert found["rehash"] == ("off", "appliance.toml")
    assert found["import_minutes"] == ("10", "default")
    assert found["limits.legal.concurrent"] == ("3", "appliance.toml")
    told = type_alone(capsys, "config", "--home", str(tmp_path))
    assert "environment (APPLIANCE_LISTEN)" in told.out


def test_the_page_of_settings_is_written_by_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert page == render_page() == type_alone(capsys, "config", "--markdown").out


def test_an_administrator_hears_once_what_waits_for_them(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    site = desk.site
    words = "1 order waits for a second administrator: appliance order list\n"
    site.pend(site.order(Grant, "anna", principal="olga", role="reviewer:cost"))
    assert desk.as_("ben", "principal", "list").err.count(words) == 1
    assert words not in desk.as_("anna", "principal", "list").err, "it is her own"
    assert words not in desk.as_("olga", "run", "list").err, "she is no administrator"
    told = desk.as_("ben", "principal", "revoke", "olga", "--yes")
    assert told.code == 0 and told.err.count(words) == 1, "without a session, too"
    site.pend(site.order(Grant, "anna", principal="ines", role="reviewer:law"))
    assert "2 orders wait for a second administrator" in desk.as_("ben", "order", "list").err


def test_an_order_that_has_expired_waits_for_nobody(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    site = desk.site
    site.pend(site.order(Grant, "anna", principal="olga", role="reviewer:cost"))
    later = encode_time(datetime.now(UTC) + timedelta(days=30))
    from appliance.domain.governance.endorsement import waiting_orders

    assert [one.signer for one in waiting_orders(site.state, site.now, "ben")] == ["anna"]
    assert waiting_orders(site.state, later, "ben") == []
