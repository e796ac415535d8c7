"""Loss of a host: another one, restored from the backup, gives the first response and admits the same adapter."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.formats.log.trust import encode_trust
from scripts.kit.appliance import Appliance
from scripts.kit.ports import free_port
from tests.kit.backups import ANNA, BORIS, DATA, RECIPIENTS


def type_(*words: object) -> None:
    assert main.run([str(word) for word in words]) == 0, words


@pytest.mark.thorough
def test_a_unit_is_served_from_a_backup_of_a_running_service(
    released: Appliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backup is made while the service answers; the old host then loses its disk."""
    before = released.chat("legal", "labels")["choices"][0]["message"]["content"]
    settings = released.home / "appliance.toml"
    lines = {"backup_recipients": list(RECIPIENTS.data), "backup_key_recipients": list(RECIPIENTS.keyring)}
    with settings.open("a") as file:
        file.writelines(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
    trust = tmp_path / "trust.json"
    trust.write_bytes(encode_trust(released.trust))
    for name, value in released.environment.items():
        monkeypatch.setenv(name, value)
    folder, identities = tmp_path / "backups", []
    for name, held in (("data", DATA), ("anna", ANNA), ("boris", BORIS)):
        (tmp_path / name).write_text(f"{held.key}\n")
        identities += ["--identity", tmp_path / name]
    type_("--home", released.home, "backup", "create", folder)
    released.kill()
    os.rename(released.home, tmp_path / "lost")
    (name,) = (path.stem for path in folder.glob("*.json"))
    home = released.home.with_name("new")
    type_("backup", "restore", folder, name, "--folder", home, "--trust", trust, *identities)
    type_("backup", "confirm", "--home", home, "--yes")
    environment = {**released.environment, "APPLIANCE_LISTEN": f"127.0.0.1:{free_port()}"}
    monkeypatch.setenv("APPLIANCE_LISTEN", environment["APPLIANCE_LISTEN"])
    new = Appliance(home, released.keys, environment=environment)
    new.start()
    try:
        assert new.chat("legal", "labels")["choices"][0]["message"]["content"] == before
    finally:
        new.kill()
