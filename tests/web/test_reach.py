"""Several accounts on one machine: members of the group reach the people's socket, and no other file of the service."""

from __future__ import annotations

import grp
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.errors import BadInput, Denied
from appliance.web.core import sockets
from appliance.web.core.sockets import SystemGroup, find_group, let_pass
from scripts.kit.appliance import ROOT, Appliance
from scripts.kit.ports import free_port

GROUP = grp.getgrgid(1)
"""Some group that the machine has; on Debian `daemon`."""
FIRST_UID = 61_000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other accounts")


@dataclass
class Person:
    """One account at one desk."""

    uid: int
    folder: Path
    home: Path
    group: str = str(GROUP.gr_gid)

    def type(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.web.someone", str(self.uid), self.group, *words]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)

    def log_in(self, name: str) -> subprocess.CompletedProcess[str]:
        files = ("--key", str(self.folder / "own.key"), "--passphrase-file", str(self.folder / "pass"))
        return self.type("login", name, *files, "--home", str(self.home))


@pytest.fixture
def site(deployment: Appliance) -> Iterator[Appliance]:
    """Its home is where everybody can go; its service runs with the group."""
    folder = Path(tempfile.mkdtemp(prefix="ap-"))
    folder.chmod(0o711)
    copied = deployment.copy(folder / "h", free_port())
    copied.environment["APPLIANCE_SOCKET_GROUP"] = GROUP.gr_name
    (copied.home / "appliance.toml").write_text('rehash = "off"\n')  # readable by everybody, but for the home
    (copied.home / "appliance.toml").chmod(0o644)
    yield copied
    if copied.service is not None:
        copied.kill()
    shutil.rmtree(folder)


def _person(site: Appliance, name: str, uid: int, group: str = str(GROUP.gr_gid)) -> Person:
    folder = site.home.parent / name
    folder.mkdir(0o700)
    site.write_key(name, folder)
    for path in folder.iterdir():
        os.chown(path, uid, uid)
    os.chown(folder, uid, uid)
    return Person(uid, folder, site.home, group)


@pytest.mark.thorough
@as_root
def test_seven_people_under_seven_accounts_each_work_at_their_own_desk(site: Appliance) -> None:
    site.start()
    names = ("olga", "rita", "rob", "lou", "axel", "legal", "cleo")
    people = {name: _person(site, name, FIRST_UID + n) for n, name in enumerate(names)}
    for name, person in people.items():
        told = person.log_in(name)
        assert told.returncode == 0, told.stderr
    told = people["rita"].type("whoami")
    assert told.returncode == 0 and "reviewer:privacy" in told.stdout, told.stderr
    opened = {(entry["actor"], entry["source"]) for entry in site.entries(type="session.opened")}
    assert opened >= {(name, f"unix:{person.uid}") for name, person in people.items()}


@pytest.mark.thorough
@as_root
def test_only_the_socket_stands_open_and_only_to_the_group(site: Appliance) -> None:
    site.start()
    for path, mode in ((site.home, 0o710), (site.settings.socket.parent, 0o710), (site.settings.socket, 0o660)):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (mode, GROUP.gr_gid)
    others = [path for path in site.home.iterdir() if path.name != "run"]
    assert {path.name for path in others} >= {"keys", "ledger.db", "appliance.toml", "appliance.lock"}
    assert [path for path in others if path.stat().st_mode & 0o077] == []
    outsider = _person(site, "olga", FIRST_UID, group="-")
    told = outsider.log_in("olga")
    assert told.returncode == 3 and "socket_group" in told.stderr
    assert not (outsider.folder / ".config").exists()


@pytest.mark.thorough
@as_root
def test_without_the_group_the_socket_is_its_owners_again(site: Appliance) -> None:
    site.start()
    site.stop()
    del site.environment["APPLIANCE_SOCKET_GROUP"]
    site.start()
    assert stat.S_IMODE(site.settings.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(site.settings.socket.parent.stat().st_mode) == 0o700
    assert _person(site, "olga", FIRST_UID).log_in("olga").returncode == 3


@as_root
def test_a_home_below_a_closed_folder_is_refused_before_a_listener_opens(site: Appliance) -> None:
    site.home.parent.chmod(0o700)
    site.start(wait=False)
    assert site.service is not None and site.service.wait(60) != 0
    assert f"to pass {site.home.parent}" in site.log() and "got mode 0700" in site.log()
    assert stat.S_IMODE(site.home.stat().st_mode) == 0o700 and not site.settings.socket.exists()
    site.service = None


def test_a_group_that_the_machine_has_not_is_refused() -> None:
    with pytest.raises(BadInput, match="groupadd no-such-group"):
        find_group("no-such-group")


def test_a_folder_that_the_group_alone_passes_is_enough(tmp_path: Path) -> None:
    gid = os.getegid()
    outer = tmp_path / "outer"
    outer.mkdir(0o710)
    os.chown(outer, -1, gid)
    sockets._check_passable(outer, SystemGroup("own", gid))
    with pytest.raises(Denied, match="0710"):
        sockets._check_passable(outer, SystemGroup("other", gid + 1))


def test_a_service_that_is_not_of_the_group_is_told_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(sockets, "_check_passable", lambda *_: None)
    monkeypatch.setattr(os, "chown", refuse)
    (tmp_path / "run").mkdir()
    with pytest.raises(Denied, match="usermod --append --groups own"):
        let_pass(tmp_path, tmp_path / "run", SystemGroup("own", 1))
