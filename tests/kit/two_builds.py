"""A host without systemd for the upgrade: the processes of a site, by this build or by a later one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.build import build_version
from scripts.kit.appliance import ROOT, Appliance
from scripts.packaging import install
from scripts.packaging.upgrade import Host, StepFailed, Upgrade, find_probe
from tests.kit.later_build import write_later_tree

OLD, NEW = build_version(), "0.2.0"
_UNIT = "appliance.service"


def environment_of(site: Appliance, tree: Path) -> dict[str, str]:
    """Return the environment of a program of the build in a folder, for the home of a site."""
    return {**os.environ, "PYTHONPATH": str(tree), "APPLIANCE_HOME": str(site.home), **site.environment}


def start_build(site: Appliance, tree: Path) -> None:
    """Start the service of a site by the build in a folder, without waiting for it."""
    command = [sys.executable, "-m", "appliance", "serve"]
    with open(site.home / "service.log", "ab") as log:
        site.service = subprocess.Popen(command, env=environment_of(site, tree), stdout=log, stderr=log, cwd="/")
    site.sessions.clear()


class ProcessHost(Host):
    """The service of a site. `trees`: the folders that an interpreter imports each version from."""

    def __init__(self, prefix: Path, site: Appliance, trees: dict[str, Path]) -> None:
        self.prefix, self.unit, self.site, self.trees = prefix, _UNIT, site, trees

    def find_services(self) -> tuple[str, ...]:
        return (_UNIT,)

    def stop(self, units: Sequence[str]) -> None:
        if self.site.service is not None:
            self.site.stop()

    def start(self, units: Sequence[str]) -> None:
        version = Path(os.readlink(self.prefix / "current")).name
        start_build(self.site, self.trees[version])

    def find_problem(self, units: Sequence[str], probes: Sequence[str], version: str) -> tuple[str | None, bool]:
        assert self.site.service is not None
        if self.site.service.poll() is not None:
            return f"the service ended with {self.site.service.returncode}: {self.site.log()[-500:]}", True
        return super().find_problem((), probes, version)

    def register(self) -> None:
        """Leave the units as they are: there are none."""

    def run_step(self, version: str, *arguments: str, unit: str | None = None) -> Any:
        command = [sys.executable, "-m", "appliance", *arguments, "--json"]
        environment = environment_of(self.site, self.trees[version])
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
        if done.returncode != 0:
            raise StepFailed(done.returncode, done.stderr)
        if arguments == ("config", "show"):
            assert find_probe(json.loads(done.stdout)) is not None, "readiness is asked for"
        return json.loads(done.stdout)


def make_upgrade(folder: Path, site: Appliance) -> Upgrade:
    """Install this build and a later one, which has a migration of its own, for the service of a site."""
    prefix = folder / "prefix"
    write_later_tree(folder / NEW, NEW, 1_000)
    for version in (OLD, NEW):
        (prefix / "versions" / version).mkdir(parents=True)
        (prefix / "versions" / version / install.COMPLETE).touch()
    (prefix / "current").symlink_to(f"versions/{OLD}")
    host = ProcessHost(prefix, site, {OLD: ROOT, NEW: folder / NEW})
    return Upgrade(prefix, host, deadline_s=120.0)
