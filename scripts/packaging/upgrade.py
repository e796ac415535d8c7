"""Upgrade the services of this host to a version that is installed beside, with a way back until it is finalised.

    /usr/lib/appliance/upgrade status       versions, and what can be done
    /usr/lib/appliance/upgrade to VERSION   upgrade; `install` of a bundle does it
    /usr/lib/appliance/upgrade continue     continue after a power cut or an error
    /usr/lib/appliance/upgrade rollback     go back to the previous version
    /usr/lib/appliance/upgrade finalize     remove the previous version

While the services run: the previous version reads its log, the new one too if its tables are the same, and a backup is
made and verified. Then the services stop, PREFIX/current points to the new version, the tables are migrated, the new
version reads the log, and the services start. If one of these fails, or the services are not ready in time, the
tables are migrated back and the previous version serves again.

No entry is ever removed. If the new version has appended an entry that the previous one refuses, going back is refused.

Exit codes: 2 arguments, 5 the state of this host does not allow it, 7 the machine, 8 the previous version serves again,
130 interrupted.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from scripts.packaging import install
from scripts.packaging.install import INTERRUPTED, PREFIX, Refused, find_homes, hold_lock, register, switch, sync

RECORD = "upgrade.json"
"""The file in PREFIX that names the upgrade that is under way or can still be rolled back."""
FORWARD, BACK, DONE, FINALISING = "forward", "back", "done", "finalising"
SERVICES = ("appliance.service", "appliance@*.service", "appliance-feed.service")
"""Patterns of the units that run the version in PREFIX/current without an end."""
BACKUP_UNIT = "appliance-backup.service"
STEP_UNIT = "appliance-upgrade-step"
"""Name of the unit that runs one command of a version as the service would run it."""
UNITS_AT_RUNTIME = Path("/run/systemd/system")
DEADLINE_S = 300.0
"""Seconds from the start of the services until they must be ready."""
BACKUP_AGE = timedelta(hours=1)
"""Highest age of a backup that --backup names."""
RETURNED = 8
_CONFLICT = 5
_BACKUP_NAME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_WORD = re.compile(r"-{0,2}[A-Za-z0-9][A-Za-z0-9.+_-]*")


class StepFailed(Refused):
    """A command of a version that ended with an exit code other than 0."""


@dataclass(frozen=True)
class Record:
    """An upgrade. `revision`: that of the tables before it. `probes`: addresses of readiness. `units`: what ran."""

    step: str
    previous: str
    version: str
    revision: str | None
    backup: str | None
    units: tuple[str, ...]
    probes: tuple[str, ...]


def say(text: str) -> None:
    """Print a text at the terminal, without the control characters that a service may have written."""
    print(f"upgrade: {''.join(one if one.isprintable() else ' ' for one in text)}", file=sys.stderr)


# --- the host ---------------------------------------------------------------------------------------------------------


class Host:
    """The services of this host under systemd. `unit`: the service whose settings name the database."""

    def __init__(self, prefix: Path = PREFIX) -> None:
        self.prefix = prefix
        homes = find_homes()
        self.unit = None if not homes else homes[0]

    def find_services(self) -> tuple[str, ...]:
        """Return the services that run or start now."""
        options = ("--plain", "--no-legend", "--full", "--state=active,activating,reloading")
        listed = _systemctl("list-units", *options, *SERVICES)
        return tuple(sorted(line.split()[0] for line in listed.splitlines() if line.strip()))

    def stop(self, units: Sequence[str]) -> None:
        """Stop services, and a backup that is being made."""
        _systemctl("stop", *units, BACKUP_UNIT)

    def start(self, units: Sequence[str]) -> None:
        """Start services without waiting for them."""
        if units:
            _systemctl("reset-failed", *units, check=False)
            _systemctl("start", "--no-block", *units)

    def find_problem(self, units: Sequence[str], probes: Sequence[str], version: str) -> tuple[str | None, bool]:
        """Return why services of a version are not ready, or None if they are; True if waiting cannot help."""
        for unit in units:
            shown = _systemctl("show", unit, "-p", "ActiveState,NRestarts,StatusText")
            values = dict(line.partition("=")[::2] for line in shown.splitlines())
            state, restarts = values["ActiveState"], int(values["NRestarts"] or 0)
            if state == "failed" or restarts > 0:
                return f"{unit} does not start: {_last_log(unit)}", True
            if state != "active":
                return f"{unit}: {values['StatusText'] or state}", False
        for address in probes:
            if (problem := _probe(address, version)) is not None:
                return f"{address}: {problem}", False
        return None, False

    def register(self) -> None:
        """Give systemd the units of the current version."""
        register(self.prefix)

    def run_step(self, version: str, *arguments: str, unit: str | None = None) -> Any:
        """Run a command of a version as a unit runs its own: account, settings, credentials and sandbox. Return what it
        prints as JSON.

        Raises:
            StepFailed: The command refuses.
            Refused: A word would be more than a word in the file of a unit.
        """
        for word in arguments:
            if not _WORD.fullmatch(word):
                raise Refused(
                    7, f"appliance {arguments[0]}: expected words of letters, digits and .+_-, got {word!r:.100}"
                )
        base = unit or self.unit
        assert base is not None
        template, instance = base.removesuffix(".service").partition("@")[1:]
        name = f"{STEP_UNIT}{template}{instance}.service"
        # A step that an interrupted upgrade has left would be taken for this one.
        _systemctl("stop", name, check=False)
        program = self.prefix / "versions" / version / "bin" / "appliance"
        place, output = UNITS_AT_RUNTIME / name, Path(f"/run/{STEP_UNIT}")
        output.mkdir(mode=0o700, exist_ok=True)
        words = " ".join(one.replace("%", "%%").replace("$", "$$") for one in (str(program), *arguments, "--json"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{_systemctl('cat', base)}\n{_STEP.format(command=words, output=output)}", encoding="utf-8")
        try:
            _systemctl("daemon-reload")
            done = subprocess.run(["systemctl", "start", name], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                code = int(_systemctl("show", name, "-p", "ExecMainStatus", "--value").strip() or 0)
                reason = _find_reason(output / "errors") or _last_log(name) or done.stderr.strip()
                raise StepFailed(code, f"appliance {' '.join(arguments)} of {version}: {reason}")
            return json.loads((output / "output").read_text(errors="replace"))
        finally:
            _systemctl("stop", name, check=False)
            place.unlink(missing_ok=True)
            shutil.rmtree(output, ignore_errors=True)
            _systemctl("reset-failed", name, check=False)
            _systemctl("daemon-reload")


_STEP = """
[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStart=
ExecStart={command}
StandardOutput=truncate:{output}/output
StandardError=truncate:{output}/errors
"""


def _systemctl(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise Refused(
            7, f"systemctl {arguments[0]}: expected exit code 0, got {done.returncode}: {done.stderr.strip()}"
        )
    return done.stdout


def _find_reason(errors: Path) -> str:
    """Return the message of the error that a command has printed, or "" if it printed none."""
    try:
        said = errors.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
    try:
        error = json.loads(said.rpartition("\n")[2])["error"]
        return "; ".join([error["message"], *error["reasons"]])
    except (ValueError, KeyError, TypeError):
        return " ".join(said.split())[-1500:]


def _last_log(unit: str) -> str:
    """Return what a service itself has written last."""
    command = ["journalctl", "--no-pager", "--output=cat", "--lines=3", f"_SYSTEMD_UNIT={unit}"]
    try:
        subprocess.run(["journalctl", "--sync"], capture_output=True, check=False)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "see its log"
    return " ".join(done.stdout.split())[-600:]


def _probe(address: str, version: str) -> str | None:
    """Return why a listener of this host does not report that this version is ready, or None if it does.

    The second line of the answer names the build. Another service of the host could have the address.
    """
    # It is this host's own listener. Its certificate names the host as others see it.
    context = ssl._create_unverified_context()  # noqa: S323
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(address, timeout=6) as answer:
            said = answer.read(200).decode(errors="replace").splitlines()
            expected = f"build {version}"
            return None if expected in said else f"expected an answer of {expected}, got {'; '.join(said)!r:.100}"
    except urllib.error.HTTPError as error:
        return error.read(200).decode(errors="replace").partition("\n")[0]
    except (OSError, http.client.HTTPException) as error:  # the second: something that speaks no HTTP
        return str(error) or type(error).__name__


def find_probe(settings: Sequence[dict[str, Any]]) -> str | None:
    """Return the address of readiness that a service's settings name.

    None without an operations listener, and for one that asks for a client's certificate.
    """
    values = {one["name"]: one["value"] for one in settings}
    if values.get("operations") in (None, "", "off") or values.get("client_ca"):
        return None
    host, _, port = str(values["operations"]).rpartition(":")
    local = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"http{'s' if values.get('certificate') else ''}://{local}:{port}/readyz"


# --- the upgrade ------------------------------------------------------------------------------------------------------


@dataclass
class Upgrade:
    """The upgrades of one installation. `deadline_s`: seconds until started services must be ready."""

    prefix: Path
    host: Host
    deadline_s: float = DEADLINE_S
    wait: Callable[[float], None] = time.sleep

    @property
    def program(self) -> Path:
        """Return the file of this program, as a person types it."""
        return self.prefix / "upgrade"

    # --- what is known ------------------------------------------------------------------------------------------------

    def read(self) -> Record | None:
        """Return the upgrade that is under way or can be rolled back, or None."""
        try:
            values = json.loads((self.prefix / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Record(**{**values, "units": tuple(values["units"]), "probes": tuple(values["probes"])})

    def save(self, record: Record) -> Record:
        """Write the record durably, in place of the one before."""
        part = self.prefix / f".{RECORD}.part"
        with open(part, "w", encoding="utf-8") as file:
            json.dump(asdict(record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.prefix / RECORD)
        sync(self.prefix)
        return record

    def forget(self) -> None:
        """Remove the record durably."""
        (self.prefix / RECORD).unlink(missing_ok=True)
        sync(self.prefix)

    def current(self) -> str:
        """Return the version that PREFIX/current points to."""
        return Path(os.readlink(self.prefix / "current")).name

    def switch(self, version: str) -> None:
        """Link PREFIX/current to a version, and register its units with systemd."""
        if self.current() != version:
            switch(self.prefix, self.prefix / "versions" / version)
        self.host.register()

    # --- the commands -------------------------------------------------------------------------------------------------

    def upgrade(self, version: str, backup: str | None = None, *, end_runs: bool = False) -> None:
        """Upgrade to an installed version, or resume the upgrade to it.

        Raises:
            Refused: Another upgrade is not finalised, or a check fails. The previous version serves.
        """
        if not (self.prefix / "versions" / version / install.COMPLETE).exists():
            raise Refused(2, f"version: expected one that is installed in {self.prefix}/versions, got {version}")
        record = self.read()
        if record is not None and record.version == version and record.step != DONE:
            self.resume()
            return
        if self.current() == version:
            say(f"{version} is the current version already")
            return
        if record is not None:
            what = f"{self.program} rollback, or finalize" if record.step == DONE else f"{self.program} continue"
            raise Refused(
                5, f"upgrade from {record.previous} to {record.version}: expected it to be over; type: {what}"
            )
        self._forward(self.save(self._prepare(version, backup, end_runs=end_runs)))

    def _prepare(self, version: str, backup: str | None, *, end_runs: bool) -> Record:
        """Check everything that can be checked while the services run, and make a backup."""
        previous, units = self.current(), self.host.find_services()
        if self.host.unit is None:
            return Record(FORWARD, previous, version, None, None, units, ())
        say(f"{previous} reads its log")
        found = self.host.run_step(previous, "database", "check")
        if found["ending"] and not end_runs:
            runs = ", ".join(found["ending"])
            raise Refused(
                5,
                f"runs: expected ones that the next start continues, got {runs}, which were resumed too often and "
                "would end; wait for them, cancel them, or upgrade with --end-runs",
            )
        for run in found["continuing"]:
            say(f"run {run} pauses, and continues from its last training checkpoint")
        try:
            say(f"{version} reads the log")
            self.host.run_step(version, "database", "check")
        except StepFailed as error:
            if error.code != _CONFLICT:
                raise
            say("the tables are migrated after the services have stopped")
        probes = [
            find_probe(self.host.run_step(previous, "config", "show", unit=unit))
            for unit in units
            if unit != "appliance-feed.service"
        ]
        # What a step prints is the word of the service's account, which becomes part of a unit later.
        if not (isinstance(found["revision"], str) and _NAME.fullmatch(found["revision"])):
            raise Refused(7, f"revision: expected the name of one of the tables, got {found['revision']!r:.100}")
        name = self._make_backup(previous) if backup is None else self._check_backup(previous, backup)
        return Record(FORWARD, previous, version, found["revision"], name, units, tuple(one for one in probes if one))

    def _make_backup(self, previous: str) -> str:
        say("makes a backup, and verifies it")
        unit = BACKUP_UNIT if self.host.unit == "appliance.service" else None
        try:
            name = str(self.host.run_step(previous, "backup", "create", unit=unit)["backup"])
        except StepFailed as error:
            raise Refused(
                _CONFLICT,
                f"backup: expected one before the upgrade, got: {str(error).rstrip('.')}. "
                "The services were not changed. Correct this, or name one of the last hour with --backup",
            ) from None
        if not _NAME.fullmatch(name):
            raise Refused(_CONFLICT, f"backup: expected a name, got {name!r}. The services were not changed")
        say(f"the backup is {name}")
        return name

    def _check_backup(self, previous: str, name: str) -> str:
        unit = BACKUP_UNIT if self.host.unit == "appliance.service" else None
        listed = {one["name"]: one for one in self.host.run_step(previous, "backup", "list", unit=unit)}
        if name not in listed or listed[name]["problem"]:
            got = "none of this name" if name not in listed else listed[name]["problem"]
            raise Refused(5, f"backup {name}: expected a valid one in the folder of the settings, got {got}")
        made = datetime.strptime(name[:16], _BACKUP_NAME).replace(tzinfo=UTC)
        if datetime.now(UTC) - made > BACKUP_AGE:
            raise Refused(5, f"backup {name}: expected one of the last hour, got an older one; make another one")
        return name

    def resume(self) -> None:
        """Resume the step that a power cut or an error has interrupted."""
        record = self.read()
        if record is None or record.step == DONE:
            say("nothing is under way")
        elif record.step == FORWARD:
            self._forward(record)
        elif record.step == BACK:
            self._back(record)
        else:
            self.finalise()

    def roll_back(self) -> None:
        """Go back to the previous version.

        Raises:
            Refused: There is none, or it cannot read what the new one has appended.
        """
        record = self.read()
        if record is None or record.step == FINALISING:
            raise Refused(
                5,
                "rollback: expected an upgrade that is not finalised, got none; to go back to an earlier build, "
                "install its bundle with --older",
            )
        units = record.units if record.step != DONE else self.host.find_services()
        self._back(self.save(replace(record, step=BACK, units=units)))

    def finalise(self) -> None:
        """Remove the previous version.

        Raises:
            Refused: The upgrade is not complete, or the services are not ready.
        """
        record = self.read()
        if record is None or record.step not in (DONE, FINALISING):
            raise Refused(5, f"finalize: expected a complete upgrade, got none; see: {self.program} status")
        problem, _ = self.host.find_problem(record.units, record.probes, record.version)
        if record.step == DONE and problem is not None:
            raise Refused(5, f"finalize: expected services that are ready, got {problem}")
        self.save(replace(record, step=FINALISING))
        if (folder := self.prefix / "versions" / record.previous).exists():
            shutil.rmtree(folder)
        self.forget()
        say(f"{record.previous} is removed")

    def describe(self) -> list[str]:
        """Return what `status` shows."""
        record = self.read()
        lines = [f"current   {self.current()}"]
        if record is None:
            return [*lines, "upgrade   none; nothing to go back to"]
        words = {
            FORWARD: f"under way; type: {self.program} continue, or rollback",
            BACK: f"being rolled back; type: {self.program} continue",
            DONE: f"complete; type: {self.program} finalize, or rollback",
            FINALISING: f"being finalised; type: {self.program} continue",
        }
        lines += [f"upgrade   from {record.previous} to {record.version}, {words[record.step]}"]
        lines += [f"backup    {record.backup or 'none: there was no appliance'}"]
        if record.step == DONE:
            lines += ["rollback  keeps all entries; it is refused if the previous version cannot read one of them"]
        return lines

    # --- the ways -----------------------------------------------------------------------------------------------------

    def _forward(self, record: Record) -> None:
        """Stop, switch, migrate and read the log, start. Each step can be repeated, and goes back if one fails."""
        try:
            stopped = time.monotonic()
            say("stops the services")
            self.host.stop(record.units)
            self.switch(record.version)
            if self.host.unit is not None:
                say("brings the tables up to date")
                self.host.run_step(record.version, "database", "migrate")
            say("starts the services")
            self._start(record, record.version)
        except (Refused, OSError) as error:
            say(f"{record.version}: {error}")
            self._back(self.save(replace(record, step=BACK)))
            raise Refused(
                RETURNED, f"{record.previous} serves again; {record.version} was rolled back: {error}"
            ) from None
        self.save(replace(record, step=DONE))
        say(f"{record.version} serves; responses stopped for {time.monotonic() - stopped:.1f} s")
        say(f"next: appliance doctor, later: {self.program} finalize, or rollback")

    def _back(self, record: Record) -> None:
        """Stop, migrate back, let the previous version read the log, switch, start.

        PREFIX/current points to the new version until the tables are those of the previous one: at each moment the
        version that a boot would start can read the database, or migrates it.
        """
        say("stops the services")
        self.host.stop(record.units)
        problem = None
        if self.host.unit is not None:
            say(f"{record.previous} reads the log")
            problem = self._find_refusal(record)
        if problem is not None:
            if self.current() == record.version:
                self.host.run_step(record.version, "database", "migrate")
            self.host.start(record.units)
            self.save(replace(record, step=DONE))
            raise Refused(
                5,
                f"{record.previous} refuses the log, so {record.version} stays: {problem.rstrip('.')}. "
                "Entries are never removed. "
                f"To lose those since the upgrade, restore the backup {record.backup} with {record.previous}.",
            )
        say("starts the services")
        self.switch(record.previous)
        self._start(record, record.previous)
        self.forget()
        say(f"{record.previous} serves again")

    def _find_refusal(self, record: Record) -> str | None:
        """Return why the previous version cannot serve the log, after the tables were migrated back if need be."""
        try:
            self.host.run_step(record.previous, "database", "check")
        except StepFailed as error:
            if error.code != _CONFLICT or record.revision is None:
                return str(error)
        else:
            return None
        try:
            self.host.run_step(record.version, "database", "migrate", "--to", record.revision)
            self.host.run_step(record.previous, "database", "check")
        except StepFailed as error:
            return str(error)
        return None

    def _start(self, record: Record, version: str) -> None:
        """Start the services, and wait until those of this version are ready.

        Raises:
            Refused: They are not in time.
        """
        self.host.start(record.units)
        end = time.monotonic() + self.deadline_s
        while True:
            problem, is_final = self.host.find_problem(record.units, record.probes, version)
            if problem is None:
                return
            if is_final or time.monotonic() > end:
                raise Refused(7, f"services: expected them to be ready in {self.deadline_s:.0f} s, got: {problem}")
            self.wait(0.2)


def main() -> NoReturn:
    """Run a command, or end with an exit code."""
    os.umask(0o022)
    parser = argparse.ArgumentParser(prog="upgrade", description=(__doc__ or "").partition("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in (
        ("status", "show the versions, the backup, and what can be done"),
        ("continue", "continue where an error or a power cut ended it"),
        ("rollback", "go back to the previous version, until finalize"),
        ("finalize", "remove the previous version; the next upgrade needs that"),
    ):
        commands.add_parser(name, help=summary)
    to = commands.add_parser("to", help="upgrade to a version that is installed beside; install does this")
    to.add_argument("version", metavar="VERSION")
    to.add_argument("--backup", metavar="NAME", help="a backup of the last hour, instead of a new one")
    to.add_argument("--end-runs", action="store_true", help="also if runs would end that cannot be continued")
    parser.add_argument(
        "--deadline", type=float, default=DEADLINE_S, metavar="SECONDS", help="seconds that the services have to start"
    )
    given = parser.parse_args()
    try:
        if not (PREFIX / "current").is_symlink():
            raise Refused(5, f"{PREFIX}/current: expected an installed version, got none")
        with hold_lock(PREFIX):
            one = Upgrade(PREFIX, Host(), given.deadline)
            if given.command == "to":
                if not _NAME.fullmatch(given.version):
                    raise Refused(2, f"version: expected the name of a version, got {given.version!r}")
                one.upgrade(given.version, given.backup, end_runs=given.end_runs)
            elif given.command == "status":
                print("\n".join(one.describe()))
            else:
                {"continue": one.resume, "rollback": one.roll_back, "finalize": one.finalise}[given.command]()
    except Refused as error:
        say(f"error: {error}")
        sys.exit(_CONFLICT if isinstance(error, StepFailed) else error.code)
    except OSError as error:
        say(f"error: {error}")
        sys.exit(7)
    except KeyboardInterrupt:
        say(f"interrupted; see: {PREFIX / 'upgrade'} status")
        sys.exit(INTERRUPTED)
    sys.exit(0)
