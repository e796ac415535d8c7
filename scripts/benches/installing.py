"""Time from a bundle to a serving appliance, and the time for which an upgrade stops responses.

The machine is a Debian under systemd in namespaces, without the appliance and without a network. The commands are those
of docs/operations/install-bundle.md and systemd.md. Python is this interpreter's own installation, since the wheels are
for its version.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pyrage import x25519

from scripts.benches.measure import Row, describe_machine, plain_table, row
from scripts.kit.machine import PYTHON, Machine, start_machine

INSTALLED_S, STOPPED_S = 300, 30
_AS = "setpriv --reuid appliance --regid appliance --init-groups env HOME=/var/lib/appliance"
_HOME = "APPLIANCE_HOME=/var/lib/appliance"
_APPLIANCE = "/usr/lib/appliance/current/bin/appliance"
_INSTALL = f"""
    mkdir -p /root/{{name}}
    tar -C /root/{{name}} -xf /mnt/{{name}}
    cd /root/{{name}}
    openssl pkeyutl -verify -pubin -inkey /mnt/release.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig
    sha256sum --check --strict --quiet SHA256SUMS
    {PYTHON}/bin/python3 -I install --key /mnt/release.pem 2>&1
"""
_PEOPLE = f"""
    cd /tmp
    printf 'correct horse battery\\n' >pw; chmod 600 pw
    for name in anna ben olga; do {_APPLIANCE} key new $name.key --passphrase-file pw; done
    {_AS} {_HOME} {_APPLIANCE} init --administrator anna=anna.pub --administrator ben=ben.pub \\
        --output /var/lib/appliance/copy.json
    install -m 600 /var/lib/appliance/copy.json trust.json
    printf 'socket_group = "appliance-people"\\n{{settings}}' >settings
    install -m 600 -o appliance -g appliance settings /var/lib/appliance/appliance.toml
    systemctl enable --now appliance 2>&1
"""
_IMPORT = f"""
    cd /tmp
    export {_HOME} APPLIANCE_TRUST=/tmp/trust.json
    as() {{ name=$1; shift; {_APPLIANCE} "$@" --as $name --key $name.key --passphrase-file pw; }}
    as olga key prove --output olga.proof
    as anna principal enrol olga --proof olga.proof --printed-name 'Olga' --role operator --yes
    as ben order countersign --yes
    as olga base import /usr/lib/appliance/bases/* --name smollm2 --licence Apache-2.0 --yes
"""


def measure(folder: Path, bundle: Path, later: Path | None, key: Path) -> Iterator[Row]:
    with start_machine(folder) as machine:
        shutil.copyfile(key, machine.share / "release.pem")
        for name, file in (("bundle", bundle), ("later", later)):
            if file is not None:
                shutil.copyfile(file, machine.share / name)
        machine.run(f"echo {PYTHON}/lib >/etc/ld.so.conf.d/000-python.conf; ldconfig; test ! -e /usr/lib/appliance")
        keys = [str(x25519.Identity.generate().to_public()) for _ in range(3)]
        settings = 'backup_folder = "/var/backups/appliance"\\n'
        settings += f'backup_recipients = "{keys[0]}"\\nbackup_key_recipients = "{keys[1]}, {keys[2]}"\\n'
        began = time.monotonic()
        for name, script in (
            ("verified and installed", _INSTALL.format(name="bundle")),
            ("initialised and serving", _PEOPLE.format(settings=settings)),
            ("base imported", _IMPORT),
        ):
            started = time.monotonic()
            machine.run(script, timeout_s=900)
            yield row(name, time.monotonic() - started, "s")
        yield row("from a bundle to a serving appliance", time.monotonic() - began, "s", at_most=INSTALLED_S)
        if later is not None:
            yield _upgrade(machine)


def _upgrade(machine: Machine) -> Row:
    # Python is in /opt in this machine alone.
    machine.run("""
        mkdir -p /etc/systemd/system/appliance-backup.service.d
        printf '[Service]\nExecPaths=/opt/python\n' >/etc/systemd/system/appliance-backup.service.d/site.conf
        systemctl daemon-reload
    """)
    said = machine.run(_INSTALL.format(name="later"), timeout_s=900)
    found = re.search(r"responses stopped for ([0-9.]+) s", said)
    assert found is not None, said
    return row("an upgrade stops the service", float(found[1]), "s", at_most=STOPPED_S)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench install", description="From a bundle to a serving appliance.")
    parser.add_argument("--bundle", type=Path, required=True, metavar="FILE", help="built with one --base")
    parser.add_argument("--later", type=Path, metavar="FILE", help="a bundle of a later build, to upgrade to")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="the public key of both")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as name:
        rows = list(measure(Path(name), given.bundle, given.later, given.key))
        print("\n".join([*describe_machine(Path(name)), "", plain_table(rows)]))
