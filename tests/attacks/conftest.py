"""One appliance with a sealed adapter, made once and copied for each test, so that every test may spoil its own."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.formats.signatures.keys import Ed25519Signer
from scripts.kit.appliance import Appliance, found_site
from scripts.kit.ports import free_port
from scripts.kit.tiny_model import build_base, clauses, write_csv
from tests.attacks.stopping import LAUNCHER

CONTEXT = 1024
"""An answer this long is still under way when an order that is to cut it was signed, sent and recorded."""


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    """Return a stopped site with a base, a dataset and the unreviewed adapter clauses@1, made once for all workers."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # the workers' common folder; without workers it would outlive this run
    made = place / "golden.json"
    with (place / "golden.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            # A short path: a Unix socket's name has at most 108 bytes.
            site = build_golden(place / f"g{os.getpid()}")
            write_golden(made, site)
        return read_golden(made)


def build_golden(place: Path) -> Appliance:
    place.mkdir()
    site = found_site(place / "h", free_port())
    try:
        base = site.import_base(build_base(place / "base", max_position_embeddings=CONTEXT))
        assert base["status"] == "finished", base
        rows = write_csv(place / "rows.csv", clauses())
        dataset = site.import_dataset(rows.read_bytes())
        assert dataset["status"] == "finished", dataset
        run = site.train()
        assert run["adapter"] == "clauses@1", run
    finally:
        site.stop()
    return site


def write_golden(path: Path, site: Appliance) -> None:
    """Where the home lies and everybody's private key, whole or not there; readable by its owner alone."""
    keys = {name: key.private.private_bytes_raw().hex() for name, key in site.keys.items()}
    value = {"home": str(site.home), "environment": site.environment, "keys": keys}
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
    partial.rename(path)


def read_golden(path: Path) -> Appliance:
    value = json.loads(path.read_text())
    keys = {
        name: Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw)))
        for name, raw in value["keys"].items()
    }
    return Appliance(Path(value["home"]), keys, LAUNCHER, value["environment"])


@pytest.fixture(scope="module")
def wire() -> str:
    """Return how units reach the service. A test that needs TLS parametrises it with `tls`."""
    return "plain"


def copied(golden: Appliance, home: Path, wire: str) -> Appliance:
    site = golden.copy(home, free_port())
    if wire == "tls":
        site.secure()
    return site


@pytest.fixture(scope="module")
def shared(golden: Appliance, tmp_path_factory: pytest.TempPathFactory, wire: str) -> Iterator[Appliance]:
    """Yield a running copy for all tests of a module that leave it as they found it."""
    site = copied(golden, tmp_path_factory.mktemp("m") / "h", wire)
    site.start()
    yield site
    site.stop()


@pytest.fixture
def spoil(golden: Appliance, tmp_path: Path, wire: str) -> Iterator[Callable[[], Appliance]]:
    """Yield a function that makes a stopped copy of the golden site. Its service is ended after the test."""
    made: list[Appliance] = []

    def make() -> Appliance:
        made.append(copied(golden, tmp_path / f"h{len(made)}", wire))
        return made[-1]

    yield make
    for site in made:
        if site.service is not None:
            site.kill()


@pytest.fixture
def site(spoil: Callable[[], Appliance]) -> Appliance:
    """Return a running copy of the golden site."""
    made = spoil()
    made.start()
    return made


@pytest.fixture
def founded(tmp_path: Path) -> Iterator[Appliance]:
    """Yield a running appliance with its people only, for tests without workers."""
    site = found_site(tmp_path / "f", free_port())
    yield site
    if site.service is not None:
        site.kill()


@pytest.fixture
def released(site: Appliance) -> Appliance:
    """... where both reviewers approved and the adapter answers legal/labels."""
    site.approve()
    site.activate()
    return site
