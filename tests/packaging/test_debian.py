"""The Debian packages, installed, upgraded, removed and purged by dpkg on a machine with systemd and no network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.kit.machine import ROOT, Machine, start_machine
from tests.kit.wheelhouse import make_wheelhouse

pytestmark = pytest.mark.outside

OLD, NEW = "0.1.0.dev1+gaaaaaaaa", "0.1.0.dev2+gbbbbbbbb"
INSTALL = "cd /mnt/{} && dpkg --install ./*.deb 2>&1"
STATE = "dpkg-query --show --showformat='${{db:Status-Abbrev}}${{Version}}' {}"
OWNER = "stat -c '%a %U %G' /var/lib/appliance"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build packages of two versions, in a folder each."""
    folder = tmp_path_factory.mktemp("packages")
    for version in (OLD, NEW):
        wheels = make_wheelhouse(folder / f"wheels-{version}", version)
        command = [sys.executable, ROOT / "scripts" / "bundle", "--deb", "--wheels", wheels, "--output"]
        done = subprocess.run([*command, folder / version], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def machine(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with start_machine(tmp_path_factory.mktemp("m")) as made:
        for version in (OLD, NEW):
            (packages / version).rename(made.share / version)
        yield made


def show(machine: Machine, unit: str = "appliance") -> dict[str, str]:
    """Return the state of a unit."""
    names = "ActiveState,StatusText,UnitFileState,LoadState,FragmentPath"
    lines = machine.run(f"systemctl show {unit} -p {names}").splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_an_installation_makes_accounts_folders_and_units_and_starts_nothing(machine: Machine) -> None:
    machine.run(INSTALL.format(OLD))
    assert machine.run("appliance --version") == f"appliance {OLD}\n"
    assert machine.run("dpkg --verify appliance appliance-witness") == "", "each file is as the package has it"
    assert machine.run(OWNER) == "700 appliance appliance\n"
    assert "appliance-people" in machine.run("id -nG appliance")
    assert "nologin" in machine.run("getent passwd appliance appliance-witness")
    shown = show(machine)
    assert (shown["ActiveState"], shown["LoadState"]) == ("inactive", "loaded")
    assert shown["FragmentPath"] == "/usr/lib/systemd/system/appliance.service"
    rules = "/usr/share/doc/appliance/monitoring/alerts.yml"
    assert "ApplianceDiskFull" in machine.run(f"cat {rules}"), "Prometheus' rules are beside the program"
    names = "appliance.service appliance@x.service appliance-feed.service appliance-signer.service"
    names += " appliance-witness@x.service appliance-witness@x.path"
    assert machine.run(f"systemd-analyze verify --man=no {names} 2>&1") == ""
    # Nobody but root writes to what runs.
    assert machine.run("find /usr/lib/appliance /usr/lib/appliance-witness ! -type l -perm /022") == ""
    assert machine.run("find /usr/lib/appliance /usr/lib/appliance-witness ! -user root") == ""
    assert machine.run("python3 -I /usr/lib/appliance-witness/appliance-witness.pyz --version").startswith("appliance")


def test_an_upgrade_stops_what_runs_keeps_what_the_site_changed_and_takes_the_old_version_away(
    machine: Machine,
) -> None:
    machine.run("""
        install -m 600 -o appliance -g appliance /dev/null /var/lib/appliance/trust.json
        install -d -m 700 -o appliance -g appliance /var/lib/appliance-processes/gateway-1
        install -m 600 -o appliance -g appliance /dev/null /var/lib/appliance-processes/gateway-1/trust.json
        chgrp appliance-people /var/lib/appliance; chmod 710 /var/lib/appliance
        mkdir -p /etc/systemd/system/appliance.service.d
        printf '[Service]\\nIPAddressAllow=10.0.0.0/8\\n' >/etc/systemd/system/appliance.service.d/site.conf
        systemctl daemon-reload
        systemctl enable --now appliance appliance@gateway-1 appliance-backup.timer 2>&1
    """)
    assert show(machine)["StatusText"] == OLD
    said = machine.run(INSTALL.format(NEW))
    assert "upgraded from 0.1.0~dev1+gaaaaaaaa" in said and "systemctl start appliance" in said
    for unit in ("appliance", "appliance@gateway-1"):
        shown = show(machine, unit)
        assert (shown["ActiveState"], shown["UnitFileState"]) == ("inactive", "enabled")
    assert machine.run("ls /usr/lib/appliance/versions") == f"{NEW}\n"
    assert machine.run("dpkg --verify appliance appliance-witness") == ""
    assert machine.run(OWNER) == "710 appliance appliance-people\n", "as the service had it"
    assert "IPAddressAllow=10.0.0.0/8" in machine.run("cat /etc/systemd/system/appliance.service.d/site.conf")
    machine.run("systemctl start appliance appliance@gateway-1")
    assert [show(machine, unit)["StatusText"] for unit in ("appliance", "appliance@gateway-1")] == [NEW, NEW]


def test_an_earlier_version_is_a_downgrade_that_dpkg_names(machine: Machine) -> None:
    assert "downgrading appliance (0.1.0~dev2+gbbbbbbbb) to (0.1.0~dev1+gaaaaaaaa)" in machine.run(INSTALL.format(OLD))
    assert machine.run("appliance --version") == f"appliance {OLD}\n"
    machine.run(INSTALL.format(NEW))
    machine.run("systemctl start appliance appliance@gateway-1")


def test_a_removal_ends_the_services_and_keeps_the_home_and_so_does_a_purge(machine: Machine) -> None:
    machine.run("echo evidence >/var/lib/appliance/ledger.db; dpkg --remove appliance appliance-witness 2>&1")
    assert machine.run("ls -d /usr/lib/appliance* /usr/bin/appliance 2>/dev/null || true") == ""
    for unit in ("appliance", "appliance@gateway-1"):
        assert show(machine, unit)["ActiveState"] == "inactive"
    assert machine.run("find /etc/systemd/system -name 'appliance*' -type l") == "", "nothing starts at the boot"
    said = machine.run("dpkg --purge appliance appliance-witness 2>&1")
    assert "/var/lib/appliance and its account are still there" in said
    assert machine.run("cat /var/lib/appliance/ledger.db") == "evidence\n"
    assert machine.run(OWNER) == "710 appliance appliance-people\n"
    assert machine.run("test -e /var/lib/dpkg/info/appliance.list && echo there || echo gone") == "gone\n"


def test_packages_are_installed_where_systemd_does_not_run(machine: Machine) -> None:
    """As in an image that is built."""
    machine.run(f"unshare --mount sh -ec 'mount -t tmpfs none /run/systemd; {INSTALL.format(NEW)}'")
    assert machine.run("appliance --version") == f"appliance {NEW}\n"
    assert machine.run(STATE.format("appliance")) == "ii 0.1.0~dev2+gbbbbbbbb"
    machine.run(
        "unshare --mount sh -ec 'mount -t tmpfs none /run/systemd; dpkg --purge appliance appliance-witness 2>&1'"
    )
