"""Commands for the service: checks, current work, storage, and stop."""

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

from appliance.config.description import render_page
from appliance.domain.governance.people import Grant
from appliance.domain.queries.measures import DiskSpace
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.checkpoint import witness_vkey_of
from appliance.formats.signatures.keys import generate_ed25519
from appliance.store.files.keyring import read_end
from appliance.workflows.core.context import Context
from appliance.workflows.operations import doctor
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


def test_doctor_says_what_to_do_about_a_database_that_does_not_answer(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("staffed")
    monkeypatch.setenv("APPLIANCE_DATABASE_URL", "postgresql+psycopg://127.0.0.1:1/none")
    found = findings(desk.type("doctor", "--json"))["database"]
    assert (found["level"], found["expected"]) == ("fail", "a database that answers")
    assert found["action"] == "start its server, or correct the settings database_url and migration_url"


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
    for words in (("doctor",), ("doctor", "--json"), ("config", "show"), ("config", "show", "--json")):
        told = desk.type(*words)
        assert "hunter22" not in told.out + told.err


def check(name: str, found: Iterator[Any]) -> Any:
    (one,) = [finding for finding in found if finding.check == name]
    return one


def test_a_layer_that_cannot_be_built_fails_unless_policy_accepts_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "detect_layers", lambda: {"seccomp": True, "user-ns": False})
    assert check("kernel layer user-ns", doctor.check_machine(ROOT, (), {})).level == "fail"
    accepted = check("kernel layer user-ns", doctor.check_machine(ROOT, ("user-ns",), {}))
    assert (accepted.level, "policy accepts" in accepted.found) == ("warn", True)


def test_little_memory_an_old_landlock_and_an_online_library_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "detect_layers", lambda: {"seccomp": True})
    monkeypatch.setattr(doctor, "host_memory", lambda *, now: 1 << 20)
    monkeypatch.setattr(doctor.kernel, "abi", lambda: 1)
    monkeypatch.setattr(doctor, "measure_disk", lambda folder: DiskSpace(str(folder), 100, 9, 10))
    found = {one.check: one for one in doctor.check_machine(ROOT, (), {"HF_HUB_OFFLINE": "0"})}
    levels = {name: found[name].level for name in ("memory", "Landlock", f"disk, {ROOT}", "offline variables")}
    assert levels == {"memory": "warn", "Landlock": "warn", f"disk, {ROOT}": "fail", "offline variables": "warn"}
    assert "HF_HUB_OFFLINE" in found["offline variables"].found


@pytest.mark.parametrize(("encrypted", "level"), [(True, "ok"), (False, "warn"), (None, "warn")])
def test_a_disk_without_encryption_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encrypted: bool | None, level: str
) -> None:
    monkeypatch.setattr(doctor.disk, "is_encrypted", lambda path: encrypted)
    found = check("disk encryption", doctor.check_machine(tmp_path / "later" / "home", (), {}))
    assert found.level == level and str(tmp_path) in found.found


def test_a_certificate_is_warned_of_before_its_end_and_fails_after_it(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    end = read_end(files.chain)
    for now, level in ((end - timedelta(days=31), "ok"), (end - timedelta(days=29), "warn"), (end, "fail")):
        (one,) = doctor.check_certificates({files.chain: False}, now)
        assert one.level == level
    (tmp_path / "other.pem").write_text("no certificate")
    (one,) = doctor.check_certificates({tmp_path / "other.pem": False}, end)
    assert one.level == "fail"


def test_a_clock_that_went_back_and_one_that_ran_ahead_fail(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    settings = desk.service.settings
    url = settings.database_url.get_secret_value()
    place = doctor.Installation(settings.home, settings.keys, settings.socket, url, (), {}, (), None)
    now = datetime.now(UTC)
    for moment, level in ((now, "ok"), (now - timedelta(days=2), "fail"), (now + timedelta(days=60), "fail")):
        found, parameters = doctor.check_database(place, moment)
        assert parameters is not None
        assert check("clock", iter(found)).level == level


def test_a_witness_that_is_older_than_policy_wants_is_told_and_admission_that_stops(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("staffed")
    key, name = generate_ed25519(), "witness.example/w1"
    vkey = witness_vkey_of(name, key.spki)
    desk.site.adopt(policy_set(witnesses=(vkey,), witness_quorum=1, witness_lifetime_s=3_600))
    assert findings(desk.type("doctor", "--json"))["witnesses, quorum"]["level"] == "fail"
    event, documents = desk.site.cosigned(key, "witness.example/w1")
    desk.site.add(event, documents=documents)
    settings = desk.service.settings
    url = settings.database_url.get_secret_value()
    place = doctor.Installation(settings.home, settings.keys, settings.socket, url, (), {}, (), None)
    for later_s, levels in (
        (0, {"witnesses": "ok"}),
        (2_800, {f"witnesses, {name}": "warn"}),
        (3_700, {f"witnesses, {name}": "warn", "witnesses, quorum": "fail"}),
    ):
        found, _ = doctor.check_database(place, datetime.now(UTC) + timedelta(seconds=later_s))
        assert {one.check: one.level for one in found if one.check.startswith("witnesses")} == levels
    (one,) = status(desk.service.context, "anna").witnesses
    assert one.counts and one.age_s is not None and one.age_s < 60 and one.name == "witness.example/w1"


def test_status_starts_nothing_and_says_that_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = type_alone(capsys, "status", "--home", str(tmp_path), "--json")
    assert (told.code, json.loads(told.out)) == (
        0,
        {"service": {"state": "not running", "pid": None, "home": str(tmp_path)}},
    )
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
    """Hold the lock as a service with this process id."""
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
            "state": "running", "pid": os.getpid(), "ready": True, "since": "", "version": "",
            "home": str(desk.service.settings.home),
        }  # fmt: skip
        assert shown["alarms"] == []
        assert shown["log"]["size"] == shown["log"]["checkpoint"] == desk.site.state.size
        assert [(job["kind"], job["status"]) for job in shown["jobs"]] == [("run", "queued")]
        assert [(one["action"], one["signer"]) for one in shown["orders"]] == [("grant", "anna")]
        assert shown["reviews"] == [{"adapter": "clauses@1", "unit": None, "approvals": 0, "needed": 2}]
        told = desk.as_("ben", "status")
        assert len(told.out.splitlines()) <= 24 and max(map(len, told.out.splitlines())) <= 80
        assert "grant by anna" in told.out and "clauses@1: 0 of 2 approvals" in told.out
        plain = desk.type("status", "--json")
        assert set(json.loads(plain.out)["service"]) == {"state", "pid", "version", "home"}
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
        assert "nothing waits for you" in desk.as_("ben", "status").out
        assert "Ready for release: clauses@1 for legal" in one_line(desk.as_("otto", "status").out)
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


@pytest.mark.thorough
def test_stop_ends_the_process_that_holds_the_lock_and_waits_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder(tmp_path, slow_s=0.5) as process:
        told = type_alone(capsys, "stop", "--home", str(tmp_path), "--json")
        assert (told.code, json.loads(told.out)) == (0, {"stopped": process.pid})
        assert process.wait(60) == 0
    told = type_alone(capsys, "stop", "--home", str(tmp_path))
    assert (told.code, told.out) == (0, "no service was running\n")


@pytest.mark.thorough
def test_stop_says_what_it_waits_for_when_its_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holder(tmp_path, slow_s=60):
        told = type_alone(capsys, "stop", "--home", str(tmp_path), "--timeout", "3")
        assert told.code == 7
        assert "expected it to end within 3 s; it records its end" in told.err


def test_stop_sends_no_signal_to_a_process_that_only_has_the_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lock's file names a process of this account that does not have it open."""
    with subprocess.Popen(["/bin/sleep", "60"]) as outsider:
        with holder(tmp_path) as process:
            (tmp_path / "appliance.lock").write_text(f"{outsider.pid}\n")
            told = type_alone(capsys, "stop", "--home", str(tmp_path))
            assert told.code == 5
            assert "no signal was sent" in told.err
            assert outsider.poll() is None and process.poll() is None
        outsider.kill()


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
        "reserve", "database",
    }  # fmt: skip
    assert kinds["training checkpoints"]["items"] == [
        {"name": run, "bytes": 1000, "files": 1, "kept_for": "under way", "kept_until": None}
    ]
    assert kinds["database"]["bytes"] > 0 and kinds["adapters"]["items"][0]["bytes"] > 0
    assert shown["bytes"] == sum(kind["bytes"] for kind in kinds.values())
    (context.logs / "empty.log").touch()
    folder = context.logs.parent / "uploads" / "oscar"
    folder.mkdir()
    (folder / ("ab" * 32)).write_bytes(data)
    told = desk.as_("anna", "storage")
    assert "under way" in told.out and "1 kB" in told.out
    shown_to_another = desk.as_("olga", "storage", "--json").out
    assert "upload 1" in told.out and "abab" not in shown_to_another and "oscar" not in shown_to_another
    assert "empty.log" not in told.out and "empty.log" in desk.as_("anna", "storage", "--json").out


def test_config_says_every_setting_and_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "appliance.toml").write_text('rehash = "off"\n[limits.legal]\nconcurrent = 3\n')
    monkeypatch.setenv("APPLIANCE_LISTEN", "off")
    told = type_alone(capsys, "config", "show", "--home", str(tmp_path), "--json")
    found = {one["name"]: (one["value"], one["source"]) for one in json.loads(told.out)}
    assert found["home"] == (str(tmp_path), "option")
    assert found["listen"] == ("off", "environment")
    assert found["rehash"] == ("off", "appliance.toml")
    assert found["import_minutes"] == ("10", "default")
    assert found["limits.legal.concurrent"] == ("3", "appliance.toml")
    told = type_alone(capsys, "config", "show", "--home", str(tmp_path))
    assert "environment (APPLIANCE_LISTEN)" in told.out


def test_a_file_of_settings_is_checked_before_it_is_copied_to_its_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither this machine's environment nor its own settings count."""
    monkeypatch.setenv("APPLIANCE_LISTEN", "nowhere")
    (tmp_path / "appliance.toml").write_text("nonsense")
    file = tmp_path / "gateway-1.toml"
    file.write_text(
        'process = "gateway-1"\nroles = "units"\nwitnessed = "stick"\n'
        'database_url = "postgresql://appliance_app:secret@db.example/appliance?sslmode=verify-full"\n'
        "[limits.legal]\nconcurrent = 3\n"
    )
    told = type_alone(capsys, "config", "check", str(file), "--home", str(tmp_path), "--json")
    assert {one["name"]: one["value"] for one in json.loads(told.out)} == {
        "process": "gateway-1",
        "roles": "units",
        "witnessed": "stick",
        "database_url": "postgresql://appliance_app:***@db.example/appliance?***",
        "limits.legal.concurrent": "3",
    }
    told = type_alone(capsys, "config", "check", str(file))
    assert told.code == 0 and "valid, with 5 settings" in told.err and "secret" not in told.out

    file.write_text('rehash = "never"\nlisten = "10.0.0.1:1"\nlisten_to = "x"\n')
    told = type_alone(capsys, "config", "check", str(file))
    assert told.code == 2 and str(file) in told.err and "rehash" in told.err and "listen_to" in told.err
    file.write_text("process =")
    assert "expected TOML" in type_alone(capsys, "config", "check", str(file)).err
    told = type_alone(capsys, "config", "check", str(tmp_path / "none.toml"))
    assert told.code == 4 and "expected a file, got nothing" in told.err


def test_groups_and_files_that_settings_name_and_the_machine_lacks_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file may be for another host, so `config check` only says it. On the host, `doctor` makes it a failure."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (tmp_path / "token").write_text("t")
    file = home / "appliance.toml"
    file.write_text(
        f'socket_group = "no-such-group"\nfeed_token = "{tmp_path / "token"}"\nbackup_folder = "/no/such/folder"\n'
        'notification_command = "/no/such/program --to ops"\n'
    )
    told = type_alone(capsys, "config", "check", str(file))
    assert told.code == 0
    lines = [line for line in told.err.splitlines() if line.startswith("not on this machine: ")]
    assert [line.split(": ")[1] for line in lines] == ["socket_group", "backup_folder", "notification_command"]
    assert "expected a group of this machine, got 'no-such-group'" in told.err
    assert "valid, with 4 settings; this machine lacks what these name: socket_group, backup_folder" in told.err
    found = type_alone(capsys, "doctor", "--home", str(home), "--json")
    wrong = [one["found"] for one in json.loads(found.out)["findings"] if one["check"] == "settings"]
    assert found.code == 7 and [text.split(":")[0] for text in wrong] == ["socket_group", "notification_command"]
    file.write_text("")
    found = type_alone(capsys, "doctor", "--home", str(home), "--json")
    assert findings(found)["settings"]["level"] == "ok"


def test_the_page_of_settings_is_written_by_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert page == render_page() == type_alone(capsys, "config", "show", "--markdown").out


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
    from appliance.domain.governance.countersignature import list_waiting_orders

    assert [one.signer for one in list_waiting_orders(site.state, site.now, "ben")] == ["anna"]
    assert list_waiting_orders(site.state, later, "ben") == []
