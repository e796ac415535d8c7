"""A real service is upgraded to a build with a migration while a run trains, serves, and goes back without a loss."""

from __future__ import annotations

import json
import sqlite3
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from scripts.kit.appliance import Appliance
from scripts.kit.ports import free_port
from tests.kit.backups import RECIPIENTS
from tests.kit.later_build import NOTES
from tests.kit.two_builds import NEW, make_upgrade

pytestmark = [pytest.mark.outside, pytest.mark.timeout(600)]


def list_tables(site: Appliance) -> set[str]:
    with closing(sqlite3.connect(f"file:{site.home}/ledger.db?mode=ro", uri=True)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def build_of(site: Appliance) -> str:
    with urllib.request.urlopen(f"http://{site.environment['APPLIANCE_OPERATIONS']}/readyz") as answer:
        return str(answer.read().decode().split()[-1])


def test_a_service_with_a_running_run_is_upgraded_and_goes_back(
    released: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = released
    before = site.chat("legal", "labels")["choices"][0]["message"]["content"]
    site.stop()
    site.environment["APPLIANCE_OPERATIONS"] = f"127.0.0.1:{free_port()}"
    token = tmp_path / "token"
    token.write_text("a token of the operations listener\n")
    token.chmod(0o600)
    site.environment["APPLIANCE_OPERATIONS_TOKEN"] = str(token)
    lines = {"backup_recipients": list(RECIPIENTS.data), "backup_key_recipients": list(RECIPIENTS.keyring)}
    with (site.home / "appliance.toml").open("a") as file:
        file.write(f'backup_folder = "{tmp_path}/backups"\n')
        file.writelines(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
    site.start()
    first = build_of(site)
    upgrade = make_upgrade(tmp_path, site)

    # On a busy machine the upgrade takes minutes, and the run must not end before.
    run = str(site.order(site.train_order("later", epochs=4_000, save_steps=192))["result"]["run"])
    while not site.entries(type="run.checkpointed", subject=f"run:{run}"):
        time.sleep(0.1)
    upgrade.upgrade(NEW)
    assert build_of(site) == NEW and NOTES in list_tables(site)
    assert any((tmp_path / "backups").glob("*.json"))
    assert site.chat("legal", "labels")["choices"][0]["message"]["content"] == before
    assert f"run {run} pauses" in capsys.readouterr().err
    until = time.monotonic() + 180
    while not site.entries(type="run.resumed", subject=f"run:{run}"):
        found = [(entry["type"], entry["body"]) for entry in site.entries(subject=f"run:{run}")]
        assert time.monotonic() < until, (found[-3:], site.log()[-2000:])
        time.sleep(0.2)

    upgrade.roll_back()
    assert build_of(site) == first and NOTES not in list_tables(site)
    assert site.chat("legal", "labels")["choices"][0]["message"]["content"] == before
    assert site.get(f"/v1/runs/{run}")["status"] in ("running", "trained", "sealed")
    starts = [entry["body"]["version"] for entry in site.entries(type="service.started")]
    assert starts[-3:] == [first, NEW, first], "what the later build appended is there"
    site.kill()
