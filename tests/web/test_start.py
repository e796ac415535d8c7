"""Every check that can refuse a start runs before the service reports that it is up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from scripts.kit.appliance import ROOT, Appliance
from scripts.kit.ports import free_port
from scripts.kit.waiting import wait_for

pytestmark = pytest.mark.thorough


def refused(site: Appliance, words: str) -> None:
    """Check that the service ends when it is started again, and that it does not report an address."""
    before = len(site.log())
    with pytest.raises(RuntimeError, match="service ended with"):
        site.start()
    said = site.log()[before:]
    assert words in said
    assert "people:" not in said and "units:" not in said
    site.service = None


def test_a_service_whose_socket_answers_is_ready(start_small: Callable[..., Appliance], tmp_path: Path) -> None:
    """The listener that answers probes during the start has ended by then, however long its end takes."""
    operations, token = f"127.0.0.1:{free_port()}", tmp_path / "token"
    token.touch(0o600)
    token.write_text("a token of the operations listener\n")
    start_small({"APPLIANCE_OPERATIONS": operations, "APPLIANCE_OPERATIONS_TOKEN": str(token)}, late_s=1.5)
    assert httpx.get(f"http://{operations}/readyz").text.startswith("ready\n")


def test_a_start_says_its_addresses_once_nothing_can_refuse_it(
    start_small: Callable[..., Appliance], tmp_path: Path
) -> None:
    site = start_small()
    site.launcher = ("-m", "appliance", "serve")
    running, site.service = site.service, None
    before = len(site.log())
    site.start(wait=False)
    assert site.service is not None and site.service.wait(90) == 5
    assert "[locked]" in site.log()[before:] and "people:" not in site.log()[before:]
    site.service = running
    site.stop()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        kept, site.environment["APPLIANCE_LISTEN"] = site.environment.get("APPLIANCE_LISTEN"), listen
        refused(site, "expected to listen there, got Address already in use")
        assert "another address in the setting listen" in site.log()
    site.environment["APPLIANCE_LISTEN"] = kept or "off"

    site.environment |= {"APPLIANCE_CERTIFICATE": "none.pem", "APPLIANCE_CERTIFICATE_KEY": "none.key"}
    refused(site, "certificate key")
    del site.environment["APPLIANCE_CERTIFICATE"], site.environment["APPLIANCE_CERTIFICATE_KEY"]

    before = len(site.log())
    site.start()
    # The socket answers a moment earlier.
    wait_for(lambda: f"people: {site.settings.socket}" in site.log()[before:], "the line of the people's socket")


def appliance(site: Appliance, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **site.environment, "APPLIANCE_HOME": str(site.home)}
    command = [sys.executable, "-m", "appliance", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)


def test_a_running_service_is_diagnosed_and_then_stopped_in_order(start_small: Callable[..., Appliance]) -> None:
    site = start_small()
    told = appliance(site, "doctor", "--json")
    found = {one["check"]: one for one in json.loads(told.stdout)["findings"]}
    assert site.service is not None
    assert found["service"]["found"] == f"runs, process {site.service.pid}"
    assert [found[name]["level"] for name in ("people's socket", "units' port", "permissions", "database")] == [
        "ok"
    ] * 4
    assert json.loads(appliance(site, "status", "--json").stdout)["service"]["state"] == "running"

    told = appliance(site, "stop")
    assert (told.returncode, told.stdout) == (0, f"stopped: process {site.service.pid}\n")
    assert site.service.wait(60) == 0
    site.service = None
    found = {one["check"]: one for one in json.loads(appliance(site, "doctor", "--json").stdout)["findings"]}
    assert found["service"]["found"] == "none runs" and found["units' port"]["found"].endswith("is free")
    assert json.loads(appliance(site, "status", "--json").stdout)["service"]["state"] == "not running"
    site.start()
    (stop,) = site.entries(type="service.stopped")[-1:]
    assert stop["body"]["reason"] == "signal"
