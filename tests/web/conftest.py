"""A founded appliance with people and units, copied for each test and started with the limits that it sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.kit.appliance import Appliance, found_site
from scripts.kit.ports import free_port
from tests.web.small import SMALL


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    """Return a stopped site."""
    site = found_site(tmp_path_factory.mktemp("t") / "h", free_port())
    site.stop()
    return site


@pytest.fixture
def start_small(deployment: Appliance, tmp_path: Path) -> Iterator[Callable[..., Appliance]]:
    """`start_small(tls=True, idle_s=1)`; its service is ended after the test."""
    made: list[Appliance] = []

    def start(environment: dict[str, str] | None = None, *, tls: bool = False, **said: Any) -> Appliance:
        site = deployment.copy(tmp_path / "h", free_port())
        site.environment.update(environment or {})
        site.launcher = ("-m", "tests.web.small")
        if tls:
            site.secure()
        (site.home / SMALL).write_text(json.dumps(said))
        made.append(site)
        site.start()
        return site

    yield start
    for site in made:
        if site.service is not None:
            site.kill()
