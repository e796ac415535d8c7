"""A founded appliance with people and units and nothing else, copied for each test and started as small as it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.formats.signatures.keys import encode_key_file
from scripts.kit.appliance import Appliance, found_site, free_port
from tests.web.small import SMALL

PASSPHRASE = b"correct horse battery"


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    """Stopped."""
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


def write_key(site: Appliance, name: str, folder: Path) -> list[str]:
    """This person's key file and passphrase file there, as the options that name them."""
    key = encode_key_file(site.keys[name].private, PASSPHRASE, salt=name.encode().ljust(32), nonce=bytes(12))
    files = {folder / "own.key": key, folder / "pass": PASSPHRASE}
    for path, data in files.items():
        path.write_bytes(data)
        path.chmod(0o600)
    return ["--key", str(folder / "own.key"), "--passphrase-file", str(folder / "pass")]
