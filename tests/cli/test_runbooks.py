"""Each command of each runbook is run as printed, on a site in the runbook's situation."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from appliance import verifier
from appliance.build import COMPATIBILITY
from appliance.cli import main
from appliance.config.settings import VARIABLES
from appliance.domain.governance import countersignature
from appliance.domain.queries.alarms import CODES
from appliance.formats.log.checkpoint import Checkpoint, cosign, sign_checkpoint, witness_vkey_of
from appliance.formats.log.note import Note, encode_note, parse_note
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures.keys import encode_spki_pem, generate_ed25519
from appliance.workflows.queries import measures
from scripts.kit.log_builder import ORIGIN
from scripts.references.error_codes import CODES as ERROR_CODES
from tests.cli.conftest import Desk, Told, one_line, type_alone
from tests.cli.test_backups import configure, identity
from tests.cli.test_clock import run_ahead
from tests.kit.backups import ANNA, BORIS, DATA, BackedUp, on_sqlite
from tests.kit.founded import policy_set

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "operations" / "runbooks"
SECTIONS = ("What you see", "What it means", "What to do", "When it is over", "Whom to tell", "What the auditor asks")
BACKUP = "20261129T013000Z"
"""The name of the backup on the pages."""
MOST_LINES = 75
"""Lines of one runbook: it is read in a hurry."""

_BLOCK = re.compile(r"^ *```console\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r" *# exit code ([0-9]+)$")


@dataclass(frozen=True)
class Step:
    """A command as the page shows it, its exit code, and the lines that it prints; … stands for any text."""

    command: str
    code: int
    shown: tuple[str, ...]


def steps_of(text: str) -> list[Step]:
    steps: list[Step] = []
    for block in _BLOCK.findall(text):
        for line in map(str.strip, block.replace("\\\n", " ").splitlines()):
            if line.startswith("$ "):
                code = _CODE.search(line)
                command = one_line(_CODE.sub("", line)[2:])
                steps.append(Step(command, int(code[1]) if code else 0, ()))
            elif line:
                last = steps.pop()
                steps.append(Step(last.command, last.code, (*last.shown, line)))
    return steps


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


@dataclass
class Hands:
    """Types the commands of a runbook. `desk` has the people's keys; `words` are what the test has in place of the
    page's folders and names."""

    desk: Desk | None
    capsys: pytest.CaptureFixture[str]
    words: Mapping[str, str]

    def follow(
        self,
        name: str,
        *,
        by: Mapping[str, str] | None = None,
        after: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        """Type the runbook. `by` says who types a command that begins so, else anna. `after` happens after the first
        one that begins so."""
        people, events = dict(by or {}), dict(after or {})
        for step in steps_of(page(name)):
            if step.command in NOT_RUN:
                continue
            who = next((person for start, person in people.items() if step.command.startswith(start)), "anna")
            self.type(step, who)
            for start in [start for start in events if step.command.startswith(start)]:
                events.pop(start)()
        assert not events, f"{name}: no command begins with {list(events)}"

    def type(self, step: Step, who: str) -> None:
        program, *words = shlex.split(step.command)
        words = [self.words.get(word, word) for word in words]
        if program == "appliance-verify":
            self.capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                verifier.main(words)
            out, err = self.capsys.readouterr()
            told = Told(int(ended.value.code or 0), out, err)
        else:
            assert program == "appliance", f"{step.command}: neither run nor listed in NOT_RUN"
            told = type_alone(self.capsys, *words, *self._signing(words, who))
        printed = one_line(told.out + "\n" + told.err)
        assert told.code == step.code, f"{step.command}: exit code {told.code}\n{told.out}{told.err}"
        for line in step.shown:
            shown = line.replace(BACKUP, self.words.get(BACKUP, BACKUP))
            wanted = ".*?".join(re.escape(one_line(part)) for part in shown.split("…"))
            assert re.search(wanted, printed), f"{step.command}: expected {line!r} in\n{told.out}{told.err}"

    def _signing(self, words: list[str], who: str) -> list[str]:
        """Return what a person has from their login and types when they are asked."""
        options = _options_of(words)
        given = [] if "--yes" not in options else ["--yes"]
        if self.desk is None or "--passphrase-file" not in options:
            return given
        if "--as" not in words:
            return [*given, *self.desk.options(who)]
        return [*given, "--passphrase-file", str(self.desk.passphrase)]


def _options_of(words: list[str]) -> set[str]:
    command: click.Command = main.cli
    context = click.Context(command)
    for word in words:
        below = command.get_command(context, word) if isinstance(command, click.Group) else None
        if below is not None:
            command, context = below, click.Context(below, parent=context)
    return {name for parameter in command.params for name in parameter.opts}


_BUNDLE = "needs a whole bundle: tests/packaging/test_bundle.py"
_VERSIONS = "needs two installed versions: tests/packaging/test_upgrade.py"
_SYSTEMD = "needs a host with systemd: tests/packaging/test_units.py"
NOT_RUN = {
    "openssl pkeyutl -verify -pubin -inkey /root/release.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig": _BUNDLE,
    "sha256sum --check --strict --quiet SHA256SUMS": _BUNDLE,
    "python3 -I install --key /root/release.pem": _BUNDLE,
    "/usr/lib/appliance/upgrade status": _VERSIONS,
    "/usr/lib/appliance/upgrade rollback": _VERSIONS,
    "/usr/lib/appliance/upgrade finalize": _VERSIONS,
    "systemctl enable --now appliance": _SYSTEMD,
    "systemctl disable --now appliance": _SYSTEMD,
    "systemctl start appliance": _SYSTEMD,
    "systemctl stop appliance": _SYSTEMD,
    "pg_isready -h db1.example": "asks the site's own server: tests/attacks/test_failover.py stops one",
    "timedatectl set-ntp true": "sets the clock of the whole machine",
}
"""Commands that no test types here, each with the reason."""

PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")


# The pages.


@pytest.mark.parametrize("name", PAGES)
def test_a_runbook_is_one_screen_with_every_section_in_order(name: str) -> None:
    text = page(name)
    assert tuple(re.findall(r"^## (.*)$", text, re.MULTILINE)) == SECTIONS
    assert len(text.splitlines()) <= MOST_LINES
    assert steps_of(text)
    assert f"({name}.md)" in page("index")


def test_every_command_is_run_or_listed_with_a_reason() -> None:
    commands = {step.command for name in PAGES for step in steps_of(page(name))}
    assert {one for one in commands if not one.startswith(("appliance ", "appliance-verify "))} == set(NOT_RUN)
    followed = set(re.findall(r'\.follow\(\s*"([a-z-]+)"', Path(__file__).read_text(encoding="utf-8")))
    assert followed == set(PAGES)


def test_every_code_that_a_runbook_shows_exists() -> None:
    known = {*ERROR_CODES, *CODES, *VARIABLES}
    known |= {command.replace(" ", "-") for command in main.COMMANDS}
    for name in PAGES:
        seen = page(name).partition("## What you see")[2].partition("## What it means")[0]
        codes = set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", seen))
        assert codes <= known, (name, codes - known)


# The scenarios.


@pytest.fixture
def desk(open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Return the desk of a site with a release, whose folder has the people's files."""
    desk = open_desk("released")
    monkeypatch.chdir(desk.folder)
    return desk


@pytest.fixture
def hands(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Hands:
    return Hands(desk, capsys, {})


def _new_key(desk: Desk, name: str) -> None:
    desk.site.keys[name] = generate_ed25519()
    desk.key(name)


@pytest.mark.thorough
def test_a_lost_key_is_replaced(desk: Desk, hands: Hands) -> None:
    _new_key(desk, "rita-2")
    hands.follow("key-loss", by={"appliance order countersign": "ben"})
    assert len([key for key in desk.site.state.keys.values() if key.principal == "rita" and key.revoked is None]) == 1


def test_a_lost_administrator_is_recovered(desk: Desk, hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait itself is tested with the rule. Here it ends after the first attempt."""
    desk.site.enrol("vault", "recovery")
    desk.key("vault")
    _new_key(desk, "carl")

    def wait() -> None:
        monkeypatch.setattr(countersignature, "find_recovery_start", lambda state, pending: pending.recorded_at)

    hands.follow("lost-administrator", after={"appliance order countersign": wait})
    person = desk.site.state.principals.get("carl")
    assert person is not None and person.has("administrator")


def test_a_leaver_can_do_nothing_more(desk: Desk, hands: Hands) -> None:
    hands.follow("leaver")
    person = desk.site.state.principals.get("rita")
    assert person is not None and person.revoked is not None


def test_an_adapter_is_stopped_at_night(desk: Desk, hands: Hands) -> None:
    hands.follow("revocation-at-night", by={"appliance": "rita"})
    adapter = desk.site.state.adapters.get("clauses@1")
    assert adapter is not None and adapter.revoked is not None


@pytest.mark.outside
def test_after_a_suspected_compromise_what_serves_is_stopped_and_the_log_has_another_key(
    desk: Desk, hands: Hands
) -> None:
    hands.follow("suspected-compromise", by={"appliance ledger": "audrey", "appliance order countersign": "ben"})
    assert len(desk.site.state.site.log_keys) == 2


def test_two_administrators_reset_the_clock(desk: Desk, hands: Hands) -> None:
    run_ahead(desk)
    hands.follow("wrong-clock", by={"appliance clock countersign": "ben"})


@pytest.mark.outside
def test_a_witness_that_saw_more_is_believed_and_the_evidence_verifies(desk: Desk, hands: Hands) -> None:
    key = generate_ed25519()
    desk.site.adopt(policy_set(witnesses=(witness_vkey_of("witness.example/w1", key),)))
    later = Checkpoint(ORIGIN, desk.site.state.size + 5, bytes(32))
    note = parse_note(sign_checkpoint(later, desk.site.log))
    line = cosign(note, "witness.example/w1", key, int(datetime.now(UTC).timestamp()))
    (desk.folder / "cosigned").write_bytes(encode_note(Note(note.text, (*note.signatures, line))))
    people = {"appliance restoration order": "anna", "appliance restoration countersign": "ben", "appliance": "audrey"}
    hands.follow("witness-mismatch", by=people)
    assert [one.lost_size for one in desk.site.state.site.restorations] == [later.size]


@pytest.mark.outside
def test_a_full_disk_is_named_and_its_end_too(
    desk: Desk, hands: Hands, made: BackedUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = made.make().backup.name
    made.make()
    hands.words = {"/media/backup": str(made.folder.path), BACKUP: name}
    with monkeypatch.context() as full:
        full.setattr(measures, "measure_space", lambda folder, reserve: (10**10, 10**8, 2**30))
        hands.follow("full-disk", by={"appliance run": "olga"}, after={"appliance backup remove": full.undo})


@pytest.fixture
def made(tmp_path: Path) -> BackedUp:
    """Return a home with a backup, whose folder has the identities."""
    made = on_sqlite(tmp_path / "made", "imported")
    configure(made.home, made.folder.path)
    for name, held in (("data", DATA), ("anna", ANNA), ("boris", BORIS)):
        identity(tmp_path, name, held)
    (tmp_path / "trust.json").write_bytes(encode_trust(made.trust))
    return made


@pytest.fixture
def alone(made: BackedUp, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Hands:
    """Return the hands of who runs the service, at a home with a backup and without a running service."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPLIANCE_HOME", str(made.home))
    return Hands(None, capsys, {"/media/backup": str(made.folder.path), BACKUP: made.make().backup.name})


@pytest.mark.outside
def test_a_restored_home_is_in_order(alone: Hands) -> None:
    alone.follow("restore")


@pytest.mark.outside
def test_a_host_is_replaced(alone: Hands) -> None:
    alone.follow("host-replaced")


@pytest.mark.outside
def test_a_failed_disk_leaves_a_good_backup(alone: Hands) -> None:
    alone.follow("failed-disk")


@pytest.mark.outside
def test_a_database_that_is_gone_is_named_and_its_return_too(alone: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as gone:
        gone.setenv("APPLIANCE_DATABASE_URL", "postgresql://appliance_app:x@127.0.0.1:1/appliance")
        alone.follow("database-gone", after={"appliance doctor": gone.undo})


@pytest.mark.outside
def test_an_appliance_is_founded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPLIANCE_HOME", str(tmp_path / "home"))
    for name in ("anna", "ben"):
        (tmp_path / f"{name}.pub").write_bytes(encode_spki_pem(generate_ed25519().spki))
    Hands(None, capsys, {}).follow("install")
    assert (tmp_path / "trust.json").exists()


@pytest.mark.outside
def test_an_upgrade_is_prepared(alone: Hands, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    metadata = {"version": "0.2.0", "compatibility": COMPATIBILITY}
    (tmp_path / "bundle" / "compatibility.json").write_text(json.dumps(metadata))
    affected = {"package": {"ecosystem": "PyPI", "name": "pydantic"}, "versions": ["0.1"]}
    advisory = {"id": "PYSEC-1", "modified": datetime.now(UTC).isoformat(), "affected": [affected]}
    (tmp_path / "advisories.json").write_text(json.dumps(advisory))
    alone.follow("upgrade")
