"""The upgrade with its way back, on a host in this process: failures at each step, and power cuts."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from scripts.packaging import install, upgrade
from scripts.packaging.install import Refused
from scripts.packaging.upgrade import Host, StepFailed, Upgrade, find_probe
from tests.kit.cuts import cut_at, find_cuts

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
FILES = frozenset({upgrade.__file__, install.__file__})
OLD, NEW = "0.1.0", "0.2.0"
UNIT = "appliance.service"


@dataclass
class Build:
    """A version, and the tables that it needs and reads. `broken`: commands that fail."""

    revision: str
    older: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


@dataclass
class FakeHost(Host):
    """A host whose database and running version are in a file, so that they outlive a power cut."""

    prefix: Path
    builds: dict[str, Build]
    file: Path
    unit: str | None = UNIT
    backups: list[dict[str, Any]] = field(default_factory=list)
    made: str = "20261130T010203Z"
    has_recipients: bool = True
    runs: dict[str, list[str]] = field(default_factory=lambda: {"continuing": [], "ending": []})
    said: list[str] = field(default_factory=list)

    def get(self) -> dict[str, Any]:
        return dict(json.loads(self.file.read_text()))

    def set(self, **values: Any) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps({**self.get(), **values}))
        part.replace(self.file)

    @property
    def current(self) -> str:
        return (self.prefix / "current").resolve().name

    def find_services(self) -> tuple[str, ...]:
        return (UNIT,) if self.get()["running"] else ()

    def stop(self, units: Sequence[str]) -> None:
        self.set(running=None)

    def start(self, units: Sequence[str]) -> None:
        build = self.builds[self.current]
        if not units:
            return
        if self.get()["revision"] in build.older and "migrate" not in build.broken:
            self.set(revision=build.revision)
        self.check(self.current)
        if "start" not in build.broken:
            self.set(running=self.current, entries=[*self.get()["entries"], f"started by {self.current}"])

    def find_problem(self, units: Sequence[str], probes: Sequence[str], version: str) -> tuple[str | None, bool]:
        assert version == self.current
        if not units or (self.get()["running"] == self.current and "ready" not in self.builds[self.current].broken):
            return None, False
        return "it never starts", False

    def register(self) -> None:
        self.set(units=self.current)

    def check(self, version: str) -> None:
        build, found = self.builds[version], self.get()
        if found["revision"] != build.revision:
            raise StepFailed(5, f"revision: expected {build.revision}, got {found['revision']}")
        if "check" in build.broken or set(found["entries"]) & set(build.unread):
            raise StepFailed(6, "an entry is refused.")

    def run_step(self, version: str, *arguments: str, unit: str | None = None) -> Any:
        build, found = self.builds[version], self.get()
        self.said.append(f"{version} {' '.join(arguments)}")
        match arguments:
            case ("database", "check"):
                self.check(version)
                return {"revision": build.revision, "entries": len(found["entries"]), **self.runs}
            case ("database", "migrate", *to):
                assert found["running"] is None, "a migration beside a service"
                wanted = to[1] if to else build.revision
                if found["revision"] not in (*build.older, build.revision) or "migrate" in build.broken:
                    raise StepFailed(7, "cannot migrate")
                if to and "back" in build.broken:
                    raise StepFailed(5, "no way back.")
                self.set(revision=wanted)
                if not to and found["revision"] != wanted:
                    self.check(version)
                return {"before": found["revision"], "after": wanted}
            case ("config", "show"):
                return [{"name": "operations", "value": "off"}]
            case ("backup", "create"):
                if not self.has_recipients:
                    raise StepFailed(2, "backup_recipients: expected keys of age, got none")
                assert unit == upgrade.BACKUP_UNIT
                return {"backup": self.made}
            case ("backup", "list"):
                return self.backups
        raise AssertionError(arguments)

    def boot(self) -> None:
        """Start what a boot would start."""
        self.set(running=None)
        self.start((UNIT,))
        assert self.get()["running"] == self.current


def make_host(folder: Path, new: Build, old: Build | None = None) -> tuple[Upgrade, FakeHost]:
    prefix = folder / "prefix"
    for version in (OLD, NEW):
        (prefix / "versions" / version).mkdir(parents=True)
        (prefix / "versions" / version / install.COMPLETE).touch()
    (prefix / "current").symlink_to(f"versions/{OLD}")
    file = folder / "host.json"
    file.write_text(json.dumps({"revision": "a", "entries": ["first"], "running": OLD, "units": OLD}))
    host = FakeHost(prefix, {OLD: old or Build("a"), NEW: new}, file)
    return Upgrade(prefix, host, deadline_s=0.0, wait=lambda _: None), host


SAME, MIGRATES = Build("a"), Build("b", older=("a",))


@pytest.mark.parametrize("new", [SAME, MIGRATES])
def test_an_upgrade_makes_a_backup_first_goes_back_and_is_finalised(new: Build, tmp_path: Path) -> None:
    one, host = make_host(tmp_path, new)
    one.upgrade(NEW)
    assert host.get() == {
        **{"revision": new.revision, "running": NEW, "units": NEW},
        "entries": ["first", f"started by {NEW}"],
    }
    assert "backup    20261130T010203Z" in one.describe()
    created = host.said.index(f"{OLD} backup create")
    assert created < host.said.index(f"{NEW} database migrate")
    one.roll_back()
    assert host.get()["entries"] == ["first", f"started by {NEW}", f"started by {OLD}"], "no entry is lost"
    assert (host.current, host.get()["revision"], one.read()) == (OLD, "a", None)
    one.upgrade(NEW)
    one.finalise()
    assert not (one.prefix / "versions" / OLD).exists() and one.read() is None
    with pytest.raises(Refused, match="expected an upgrade that is not finalised"):
        one.roll_back()
    with pytest.raises(Refused, match="expected a complete upgrade"):
        one.finalise()


@pytest.mark.parametrize("broken", ["migrate", "check", "start", "ready"])
@pytest.mark.parametrize("new", [SAME, MIGRATES])
def test_the_previous_version_serves_again_if_a_step_fails(new: Build, broken: str, tmp_path: Path) -> None:
    one, host = make_host(tmp_path, replace(new, broken=(broken,)))
    with pytest.raises(Refused) as refused:
        one.upgrade(NEW)
    assert (host.current, host.get()["revision"], host.get()["running"]) == (OLD, "a", OLD)
    assert host.get()["units"] == OLD and one.read() is None
    if new is SAME and broken == "check":  # found while the previous version served
        assert refused.value.code == 6 and host.get()["entries"] == ["first"]
    else:
        assert refused.value.code == upgrade.RETURNED


def test_a_backup_whose_name_has_other_characters_is_refused(tmp_path: Path) -> None:
    """The service's account prints the name, and root's terminal shows it."""
    one, host = make_host(tmp_path, SAME)
    host.made = "2026\x1b[2J"
    with pytest.raises(Refused, match=r"backup: expected a name, got '2026\\x1b"):
        one.upgrade(NEW)
    assert host.get()["running"] == OLD


def test_nothing_stops_without_a_backup(tmp_path: Path) -> None:
    one, host = make_host(tmp_path, SAME)
    host.has_recipients = False
    with pytest.raises(Refused, match=r"expected one before the upgrade.*backup_recipients.*--backup"):
        one.upgrade(NEW)
    assert host.get()["entries"] == ["first"] and one.read() is None
    now = datetime.now(UTC)
    names = [f"{now - timedelta(minutes=minutes):%Y%m%dT%H%M%SZ}" for minutes in (5, 61)]
    host.backups = [{"name": name, "problem": None} for name in names]
    with pytest.raises(Refused, match="of the last hour"):
        one.upgrade(NEW, names[1])
    with pytest.raises(Refused, match="got none of this name"):
        one.upgrade(NEW, "20200101T000000Z")
    host.backups[0]["problem"] = "another signature"
    with pytest.raises(Refused, match="got another signature"):
        one.upgrade(NEW, names[0])
    host.backups[0]["problem"] = None
    assert host.get()["entries"] == ["first"]
    one.upgrade(NEW, names[0])
    assert f"backup    {names[0]}" in one.describe() and f"{OLD} backup create" not in host.said[-4:]


def test_a_run_that_would_end_keeps_the_upgrade_from_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, host = make_host(tmp_path, SAME)
    host.runs = {"continuing": ["run-1"], "ending": ["run-2"]}
    with pytest.raises(Refused, match=r"got run-2.*--end-runs"):
        one.upgrade(NEW)
    assert host.get()["running"] == OLD and host.get()["entries"] == ["first"]
    one.upgrade(NEW, end_runs=True)
    assert host.current == NEW and "run run-1 pauses" in capsys.readouterr().err


@pytest.mark.parametrize("new", [SAME, MIGRATES])
def test_going_back_is_refused_if_the_previous_version_cannot_read_an_entry(new: Build, tmp_path: Path) -> None:
    one, host = make_host(tmp_path, new, Build("a", unread=("a new kind",)))
    one.upgrade(NEW)
    host.set(entries=[*host.get()["entries"], "a new kind"])
    with pytest.raises(Refused, match=rf"{OLD} refuses the log, so {NEW} stays: .*restore the backup 20261130T010203Z"):
        one.roll_back()
    assert (host.current, host.get()["running"], host.get()["revision"]) == (NEW, NEW, new.revision)
    assert "a new kind" in host.get()["entries"]
    one.finalise()


def test_a_migration_that_cannot_be_taken_back_keeps_the_new_version(tmp_path: Path) -> None:
    one, host = make_host(tmp_path, replace(MIGRATES, broken=("back",)))
    one.upgrade(NEW)
    with pytest.raises(Refused, match="no way back"):
        one.roll_back()
    assert (host.current, host.get()["running"], host.get()["revision"]) == (NEW, NEW, "b")


def test_services_that_do_not_run_stay_stopped(tmp_path: Path) -> None:
    one, host = make_host(tmp_path, MIGRATES)
    host.set(running=None)
    one.upgrade(NEW)
    assert host.get() == {"revision": "b", "entries": ["first"], "running": None, "units": NEW}
    one.roll_back()
    assert host.get() == {"revision": "a", "entries": ["first"], "running": None, "units": OLD}


def test_one_upgrade_is_finalised_before_the_next(tmp_path: Path) -> None:
    one, host = make_host(tmp_path, SAME)
    with pytest.raises(Refused, match="expected one that is installed"):
        one.upgrade("0.3.0")
    one.upgrade(NEW)
    one.upgrade(NEW)  # changes nothing
    assert host.get()["entries"] == ["first", f"started by {NEW}"]
    with pytest.raises(Refused, match="upgrade rollback, or finalize"):
        one.upgrade(OLD)
    host.builds[NEW].broken = ("ready",)
    with pytest.raises(Refused, match="expected services that are ready"):
        one.finalise()
    assert (one.prefix / "versions" / OLD).exists()


# --- power cuts -------------------------------------------------------------------------------------------------------


def begin(one: Upgrade) -> None:
    one.upgrade(NEW)


def fail(one: Upgrade) -> None:
    one.host.builds[NEW].broken = ("ready",)  # type: ignore[attr-defined]
    with pytest.raises(Refused):
        one.upgrade(NEW)


def return_(one: Upgrade) -> None:
    one.upgrade(NEW)
    one.roll_back()


def finalise(one: Upgrade) -> None:
    one.upgrade(NEW)
    one.finalise()


@pytest.mark.thorough
@pytest.mark.parametrize("act", [fail, return_, finalise])
def test_a_power_cut_in_each_state_of_the_disk_leaves_a_version_that_starts_and_the_rest_can_be_done(
    act: Callable[[Upgrade], None], tmp_path: Path
) -> None:
    one, _ = make_host(tmp_path / "first", replace(MIGRATES))
    places = find_cuts(tmp_path / "first", FILES, lambda: act(one))
    assert len(places) > 16
    ends = set()
    for number, place in enumerate(places):
        one, host = make_host(tmp_path / f"n{number}", replace(MIGRATES))
        assert cut_at(place, FILES, lambda one=one: act(one)), place
        before = host.get()["entries"]
        host.boot()  # whichever version `current` names can start
        ends.add((record := one.read()) and record.step)
        one.resume()
        assert one.read() is None or one.read().step == upgrade.DONE  # type: ignore[union-attr]
        found = host.get()
        assert found["running"] == host.current == found["units"]
        assert found["revision"] == host.builds[host.current].revision
        assert found["entries"][: len(before)] == before, "entries are only added"
        if host.current == OLD:
            begin(one)  # begins from what was left
            assert host.current == NEW
        else:
            one.finalise() if one.read() else None
            assert {path.name for path in (one.prefix / "versions").iterdir()} >= {NEW}
        one.describe()
    assert ends >= {None, upgrade.FORWARD}


# --- what a person sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ('copies\n{"error": {"message": "keys: expected some", "reasons": ["a", "b"]}}\n', "keys: expected some; a; b"),
        ("Traceback:\n  a line\n", "Traceback: a line"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_reason_of_a_step_is_the_message_of_its_error(said: str | None, reason: str, tmp_path: Path) -> None:
    if said is not None:
        (tmp_path / "errors").write_text(said)
    assert upgrade._find_reason(tmp_path / "errors") == reason


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (StepFailed(6, "an entry is refused"), 5, "error: an entry is refused"),
        (StepFailed(203, "no such program"), 5, "error: no such program"),
        (Refused(8, "0.1.0 serves again"), 8, "error: 0.1.0 serves again"),
        (KeyboardInterrupt(), 130, "interrupted; see: "),
    ],
)
def test_the_exit_codes_of_an_upgrade_are_its_own(
    error: BaseException,
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, _ = make_host(tmp_path, SAME)
    monkeypatch.setattr(upgrade, "PREFIX", one.prefix)
    monkeypatch.setattr(upgrade.sys, "argv", ["upgrade", "rollback"])
    monkeypatch.setattr(Upgrade, "roll_back", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit) as ended:
        upgrade.main()
    assert ended.value.code == code and words in capsys.readouterr().err


# --- readiness --------------------------------------------------------------------------------------------------------


def test_the_address_of_readiness_follows_the_settings() -> None:
    def found(**values: str | None) -> str | None:
        return find_probe([{"name": name, "value": value} for name, value in values.items()])

    assert found(operations="127.0.0.1:8332", certificate=None) == "http://127.0.0.1:8332/readyz"
    assert found(operations="0.0.0.0:8332", certificate="/x.pem") == "https://127.0.0.1:8332/readyz"
    assert found(operations="[::]:8332") == "http://[::1]:8332/readyz"
    assert found(operations="off") is None
    assert found(operations="127.0.0.1:8332", client_ca="/ca.pem") is None, "it asks for a client's certificate"


@pytest.fixture
def listener() -> Iterator[http.server.HTTPServer]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/ready" else 503)
            self.end_headers()
            self.wfile.write(b"ready\nbuild 0.2.0\n" if self.path == "/ready" else b"closing\nbuild 0.2.0\n")

        def log_message(self, *_: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.thorough
def test_a_service_is_ready_once_its_listener_says_so(listener: http.server.HTTPServer) -> None:
    address = f"http://127.0.0.1:{listener.server_port}"
    assert upgrade._probe(f"{address}/ready", "0.2.0") is None
    assert upgrade._probe(f"{address}/other", "0.2.0") == "closing"
    assert "refused" in str(upgrade._probe("http://127.0.0.1:9/ready", "0.2.0"))


@pytest.mark.thorough
def test_the_answer_of_another_build_is_no_readiness(listener: http.server.HTTPServer) -> None:
    address = f"http://127.0.0.1:{listener.server_port}/ready"
    for version in ("0.1.0", "0.2", "0.2.0.dev1"):
        said = upgrade._probe(address, version)
        assert said == f"expected an answer of build {version}, got 'ready; build 0.2.0'"


@pytest.mark.thorough
def test_a_listener_that_speaks_no_http_is_a_problem_in_words() -> None:
    class Other(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4_096)
            self.request.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            assert "SSH-2.0" in str(upgrade._probe(f"http://127.0.0.1:{server.server_address[1]}/readyz", "0.2.0"))
        finally:
            server.shutdown()


# --- what comes from others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["a\nExecStart=+/bin/sh", "a b", "-", "%n", "$HOME", "a\u2028b", ""])
def test_no_word_of_a_step_is_more_than_a_word_in_its_unit(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "UNITS_AT_RUNTIME", tmp_path / "units")
    _, host = make_host(tmp_path, MIGRATES)
    with pytest.raises(Refused, match="expected words of letters"):
        Host.run_step(host, NEW, "database", "migrate", "--to", word)
    assert not (tmp_path / "units").exists()


@pytest.mark.parametrize("revision", ["a\nExecStart=+/bin/sh", "", None, 1])
def test_a_revision_that_the_services_account_made_up_stops_nothing(revision: Any, tmp_path: Path) -> None:
    one, host = make_host(tmp_path, MIGRATES, Build(revision))
    host.set(revision=revision)
    with pytest.raises(Refused, match="revision: expected the name"):
        one.upgrade(NEW)
    assert host.get()["running"] == OLD and one.read() is None


def test_what_a_service_says_does_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    upgrade.say("a\x1b]0;title\x07b\rc\u202ed")
    assert capsys.readouterr().err == "upgrade: a ]0;title b c d\n"


ORDERED = (
    "0.1.0.dev1",
    "0.1.0.dev2",
    "0.1a1",
    "0.1rc1.dev3",
    "0.1rc1",
    "0.1rc2",
    "0.1.0",
    "0.1.post1",
    "0.1.1",
    "0.10",
)


def test_an_older_version_is_refused_by_the_order_of_versions(tmp_path: Path) -> None:
    for at, current in enumerate(ORDERED):
        prefix = tmp_path / str(at)
        prefix.mkdir()
        install.check_later(prefix, "0.0.1")  # nothing is current yet
        (prefix / "current").symlink_to(f"versions/{current}")
        for later in (f"{current}+gabc", *ORDERED[at:]):
            install.check_later(prefix, later)
        for older in (*ORDERED[:at], "unknown"):
            with pytest.raises(Refused, match="version: expected"):
                install.check_later(prefix, older)


def test_a_bundle_in_a_place_that_others_can_change_is_refused(tmp_path: Path) -> None:
    """The owner of a folder above could replace what was verified before it is used."""
    outer, bundle = tmp_path / "outer", tmp_path / "outer" / "bundle"
    bundle.mkdir(parents=True)
    install.check_place(bundle)
    for place, mode in ((outer, 0o777), (outer, 0o775), (bundle, 0o777), (bundle, 0o1777)):
        place.chmod(mode)
        with pytest.raises(Refused, match=f"bundle, {place}: expected that only you can write"):
            install.check_place(bundle)
        place.chmod(0o755)
    outer.chmod(0o1777)
    install.check_place(bundle)
