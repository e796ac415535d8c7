"""A journey with every part that could reach the network: imports, a run, a release, answers, feed, export, proofs.

python tests/kit/whole_journey.py FOLDER

Everything that the settings can turn on for this machine alone is on: console, people's port, operations, feed, traces
and notifications, each at loopback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.kit.appliance import Appliance, found_site  # noqa: E402
from scripts.kit.ports import free_port  # noqa: E402
from scripts.kit.tiny_model import build_base, clauses, write_csv  # noqa: E402

TOKEN = "t" * 40


def main(folder: Path) -> None:
    """Take the journey; an error ends it with a traceback."""
    folder.mkdir()
    token = folder / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    site = found_site(
        folder / "h",
        free_port(),
        APPLIANCE_OPERATIONS=f"127.0.0.1:{free_port()}",
        APPLIANCE_OPERATIONS_TOKEN=str(token),
        APPLIANCE_FEED_TOKEN=str(token),
        APPLIANCE_CONSOLE=f"127.0.0.1:{free_port()}",
        APPLIANCE_PEOPLE=f"127.0.0.1:{free_port()}",
        APPLIANCE_TRACES=f"http://127.0.0.1:{free_port()}",
        APPLIANCE_NOTIFICATION_SMTP=f"127.0.0.1:{free_port()}",
        APPLIANCE_NOTIFICATION_FROM="appliance@bank.example",
        APPLIANCE_NOTIFICATION_TO="{person}@bank.example",
        APPLIANCE_NOTIFICATION_MINUTES="0.05",
    )
    assert site.import_base(build_base(folder / "base"))["status"] == "finished"
    assert site.import_dataset(write_csv(folder / "rows.csv", clauses()).read_bytes())["status"] == "finished"
    assert site.train()["adapter"] == "clauses@1"
    site.approve()
    site.activate()
    assert site.chat("legal", "labels")["choices"]
    check_operations(site, folder / "diagnosis.json")
    assert site.verify()["verdict"] == "verified"
    assert site.stop() == 0


def check_operations(site: Appliance, diagnosis: Path) -> None:
    """Check that operators get the metrics, the feed, the checks of `doctor` and a diagnosis."""
    settings, header = site.settings, {"Authorization": f"Bearer {TOKEN}"}
    assert settings.operations is not None
    place = f"http://127.0.0.1:{settings.operations[1]}"
    with httpx.Client(trust_env=False, timeout=120) as client:
        assert b"appliance_alarm" in client.get(f"{place}/metrics", headers=header).content
        assert client.get(f"{place}/readyz").status_code == 200
        assert client.get(f"{settings.console_url}/").status_code in (200, 303)
    for words, codes in (
        (("ledger", "feed", "--once"), (0,)),
        (("doctor",), (0, 7)),  # 7: it warns about this machine
        (("diagnose", str(diagnosis), "--yes"), (0,)),
    ):
        command = [sys.executable, "-m", "appliance", *words, "--home", str(site.home)]
        done = subprocess.run(command, env={**os.environ, **site.environment}, capture_output=True, check=False)
        assert done.returncode in codes, done.stderr.decode()
    assert json.loads(diagnosis.read_text())["metrics"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
