"""The drill: an empty machine under systemd gets a bundle and the backup of a lost host, and gives the first response.

The bundle has light wheels. Once it is installed, the libraries of this environment take their place.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.formats.log.trust import encode_trust
from scripts.kit.appliance import ROOT, Appliance
from scripts.kit.machine import PYTHON, start_machine
from tests.kit.backups import ANNA, BORIS, DATA, RECIPIENTS
from tests.kit.wheelhouse import make_wheelhouse

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]
VERSION = "0.1.0.dev1+gaaaaaaaa"
AS = "setpriv --reuid appliance --regid appliance --init-groups env HOME=/var/lib/appliance"
APPLIANCE = "/usr/lib/appliance/current/bin/appliance"
FIRST_RESPONSE = """
import json, pathlib, urllib.request
body = {"model": "labels", "max_tokens": 4, "messages": [{"role": "user", "content": "the parties agree"}]}
token = pathlib.Path("/mnt/token").read_text()
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
request = urllib.request.Request("http://127.0.0.1:8331/v1/chat/completions", json.dumps(body).encode(), headers)
print(json.load(urllib.request.urlopen(request, timeout=100))["choices"][0]["message"]["content"])
"""


def build_bundle(share: Path, folder: Path) -> None:
    """Build and unpack a bundle of light wheels, with its public key beside it."""
    key, pem = folder / "release.key", share / "release.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", pem], check=True)
    wheels = make_wheelhouse(folder / "wheels", VERSION)
    command = [sys.executable, ROOT / "scripts" / "bundle", "--key", key, "--wheels", wheels, "--no-deb"]
    done = subprocess.run([*command, "--output", folder], capture_output=True, text=True, check=True)
    (share / "bundle").mkdir()
    subprocess.run(["tar", "-C", share / "bundle", "-xf", done.stdout.strip()], check=True)


def back_up(site: Appliance, folder: Path) -> str:
    """Make a backup of a running site, end the site, and return the backup's name."""
    lines = {"backup_recipients": list(RECIPIENTS.data), "backup_key_recipients": list(RECIPIENTS.keyring)}
    with (site.home / "appliance.toml").open("a") as file:
        file.writelines(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
    assert main.run(["--home", str(site.home), "backup", "create", str(folder)]) == 0
    site.kill()
    (name,) = (path.stem for path in folder.glob("*.json"))
    return name


def test_an_empty_machine_serves_from_a_bundle_and_a_backup(
    released: Appliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = released.chat("legal", "labels")["choices"][0]["message"]["content"]
    for name, value in released.environment.items():
        monkeypatch.setenv(name, value)
    token, trust = released.token("legal"), encode_trust(released.trust)
    with start_machine(tmp_path) as machine:
        share = machine.share
        build_bundle(share, tmp_path)
        name = back_up(released, share / "backups")
        (share / "trust.json").write_bytes(trust)
        (share / "token").write_text(token)
        (share / "identities").write_text("".join(f"{one.key}\n" for one in (DATA, ANNA, BORIS)))
        (share / "first.py").write_text(FIRST_RESPONSE)
        machine.run("test ! -e /usr/lib/appliance -a ! -e /var/lib/appliance")
        packages = "lib/python*/site-packages"
        machine.run(f"""
            echo {PYTHON}/lib >/etc/ld.so.conf.d/000-python.conf; ldconfig
            {PYTHON}/bin/python3 -I /mnt/bundle/install --key /mnt/release.pem 2>&1
            mount --rbind /opt/libraries /usr/lib/appliance/current/{packages}
            chown -R appliance:appliance /mnt/backups
            cp /mnt/trust.json /mnt/identities /tmp; chmod 644 /tmp/trust.json /tmp/identities
        """)
        machine.run(f"""
            cd /tmp
            {AS} {APPLIANCE} backup restore /mnt/backups {name} --folder /var/lib/appliance --trust trust.json \\
                --identity identities
            {AS} {APPLIANCE} --home /var/lib/appliance backup confirm --yes
            systemctl enable --now appliance 2>&1 || {{ journalctl -u appliance -n 20 --no-pager; exit 1; }}
        """)
        assert machine.run("python3 -I /mnt/first.py").strip() == before
        machine.run("systemctl stop appliance")
