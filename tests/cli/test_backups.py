"""The commands of backups, typed on the service's host; and an erasure that names the backups with the text."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.config.settings import load_settings
from appliance.domain.queries.alarms import find_alarms
from appliance.formats.log.trust import encode_trust
from appliance.store.files.encryption import AgeIdentity, recipient_of
from appliance.wiring import backups as wired
from appliance.workflows.backups import listing
from appliance.workflows.queries import measures
from tests.cli.conftest import Desk, Told, one_line, type_alone
from tests.kit.backups import ANNA, BORIS, DATA, RECIPIENTS, BackedUp, on_sqlite

Type = Callable[..., Told]


@pytest.fixture
def made(tmp_path: Path) -> BackedUp:
    made = on_sqlite(tmp_path, "imported")
    configure(made.home, made.folder.path)
    (tmp_path / "trust.json").write_bytes(encode_trust(made.trust))
    return made


def configure(home: Path, folder: Path) -> None:
    lines = {
        "backup_recipients": json.dumps(RECIPIENTS.data),
        "backup_key_recipients": json.dumps(RECIPIENTS.keyring),
        "backup_folder": json.dumps(str(folder)),
    }
    (home / "appliance.toml").write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))


@pytest.fixture
def type_at(made: BackedUp, capsys: pytest.CaptureFixture[str]) -> Type:
    return lambda *words: type_alone(capsys, "--home", str(made.home), "backup", *map(str, words))


def identity(folder: Path, name: str, held: AgeIdentity) -> Path:
    path = folder / f"{name}.txt"
    path.write_text(f"# public key: {recipient_of(held)}\n{held.key}\n")
    return path


def test_a_backup_is_made_listed_verified_restored_confirmed_and_removed(
    made: BackedUp, type_at: Type, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made.folder.path
    told = type_at("create", folder)
    assert told.code == 0, told.err
    (name,) = made.folder.names()
    assert name in told.out and "entries" in told.out and "try a restore once" in told.err
    assert json.loads(type_at("list", folder, "--json").out)[0]["name"] == name
    assert "signed" in type_at("list", folder).out
    assert "not opened" in type_at("verify", folder).out
    options = [
        word
        for one, held in (("data", DATA), ("anna", ANNA), ("boris", BORIS))
        for word in ("--identity", identity(tmp_path, one, held))
    ]
    told = type_at("verify", folder, name, *options, "--json")
    assert json.loads(told.out) == [{"name": name, "opened": True, "keyring": True}]
    new = tmp_path / "new"
    told = type_at("restore", folder, name, "--folder", new, *options)
    assert (told.code, "expected --trust FILE" in told.err) == (2, True)
    told = type_at("restore", folder, name, "--folder", new, *options[:2], "--trust", tmp_path / "trust.json")
    assert (told.code, "two administrators" in told.err) == (3, True)
    told = type_at("restore", folder, name, "--folder", new, *options, "--trust", tmp_path / "trust.json")
    assert "newer export" not in told.out
    assert told.code == 0, told.err
    assert f"next: appliance backup confirm --home {new}" in told.err
    serve = type_alone(capsys, "serve", "--home", str(new))
    assert (serve.code, "was restored from a backup" in serve.err, "[restored]" in serve.err) == (5, True, True)
    monkeypatch.setattr(main.click, "confirm", lambda *_, **__: False)
    told = type_alone(capsys, "backup", "confirm", "--home", str(new))
    assert (told.code, "nothing was changed" in told.err) == (5, True)
    told = type_alone(capsys, "backup", "confirm", "--home", str(new), "--yes")
    assert (told.code, f"restored from the backup {name}" in one_line(told.err)) == (0, True)
    assert not (new / "restored.json").exists()
    assert f"removed:  {name}" in type_at("remove", folder, name, "--newest").out
    assert json.loads(type_at("list", folder, "--json").out) == []


def test_a_backup_needs_recipients_and_a_folder(made: BackedUp, type_at: Type, tmp_path: Path) -> None:
    told = type_at("list", tmp_path / "none")
    assert (told.code, "expected a folder, got none" in told.err) == (4, True)
    (made.home / "appliance.toml").write_text("")
    told = type_at("create", made.folder.path)
    assert (told.code, "backup_recipients: expected at least one public key of age" in told.err) == (2, True)
    (made.home / "appliance.toml").write_text('backup_recipients = "age1short"\n')
    told = type_at("create", made.folder.path)
    assert (told.code, "expected a public key of age, age1 and 58 characters" in told.err) == (2, True)


def test_a_manifest_that_is_not_signed_is_listed_with_the_reason(made: BackedUp, type_at: Type) -> None:
    backup = made.make().backup
    (made.folder.path / f"{backup.name}.json").write_bytes(b"{}")
    told = type_at("list", made.folder.path)
    assert "expected a manifest, got another file" in one_line(told.out)
    assert type_at("verify", made.folder.path).code == 6


def test_an_erasure_names_the_backups_that_may_have_the_text(
    open_desk: Callable[[str], Desk], home: Path, tmp_path: Path
) -> None:
    desk = open_desk("staffed")
    made = BackedUp(home, on_sqlite(tmp_path / "other", "initialized").folder)
    desk.service.context.backup_folder = made.folder.path
    before = made.make().backup

    def revoke(name: str, reason: str) -> int:
        desk.as_("anna", "principal", "revoke", name, "--reason", reason, "--yes")
        return len(desk.site.entries) - 1

    def erase(entry: int) -> str:
        told = desk.as_("anna", "text", "erase", "--entry", str(entry), "--yes", "--json")
        told = desk.as_("ben", "order", "countersign", json.loads(told.out)["order"][:19], "--yes")
        assert told.code == 0, told.err
        return one_line(told.err)

    entry = revoke("sales", "Sales, which was closed")
    has_text = made.make().backup
    said = erase(entry)
    assert f"may still have the text: {before.name}, {has_text.name}." in said
    assert f"appliance backup remove {made.folder.path} NAME" in said
    entry = revoke("claims", "Claims, too")
    made.folder.path.rename(tmp_path / "away")
    assert "Earlier backups have the text. They could not be listed" in erase(entry)


def test_doctor_and_status_know_how_old_the_backups_are(
    open_desk: Callable[[str], Desk], home: Path, tmp_path: Path
) -> None:
    desk = open_desk("staffed")
    made = BackedUp(home, on_sqlite(tmp_path / "other", "initialized").folder)
    configure(home, made.folder.path)
    ages = wired.backup_ages(load_settings(home, {}))
    assert ages is not None
    desk.service.context.backup_folder = made.folder.path

    def codes() -> list[str]:
        listing._watch(desk.service.context, ages)
        found = find_alarms(measures.measure(desk.service.context))
        return [alarm.code for alarm in found if alarm.code.startswith("backup")]

    def levels() -> list[str]:
        found = json.loads(desk.type("doctor", "--json").out)["findings"]
        return [one["level"] for one in found if one["check"].startswith("backups")]

    assert (codes(), levels()) == (["backup-unreadable"], ["warn"])
    made.now = datetime.now(UTC) - timedelta(days=91)
    made.make()
    assert (codes(), levels()) == (["backup-old", "backup-expired"], ["warn", "warn"])
    made.now = datetime.now(UTC) - timedelta(days=1)
    newest = made.make().backup
    assert (codes(), levels()) == (["backup-expired"], ["warn"])
    listing.remove(made.folder, made.folder.names()[0])
    assert (codes(), levels()) == ([], ["ok"])
    (made.folder.path / f"{newest.name}.json").write_bytes(b"{}")
    assert (codes(), levels()) == (["backup-old"], ["warn"])
