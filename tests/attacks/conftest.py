"""One appliance with a sealed adapter, made once and copied for each test, so that every test may spoil its own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ml.tiny import build_base, clauses, write_csv
from tests.site import Site, found_site


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Stopped: a base, a dataset and the adapter clauses@1, reviewed by nobody."""
    # A short path: a Unix socket's name has at most 108 bytes.
    place = tmp_path_factory.mktemp("g")
    site = found_site(place / "h", free_port())
    try:
        base = site.import_base(build_base(place / "base"))
        assert base["status"] == "finished", base
        rows = write_csv(place / "rows.csv", clauses())
        dataset = site.import_dataset(rows.read_bytes())
        assert dataset["status"] == "finished", dataset
        run = site.train()
        assert run["adapter"] == "clauses@1", run
    finally:
        site.stop()
    return site


@pytest.fixture
def spoil(golden: Site, tmp_path: Path) -> Iterator[Callable[[], Site]]:
    """Makes a stopped copy of the golden site; its service is ended after the test."""
    made: list[Site] = []

    def make() -> Site:
        made.append(golden.copy(tmp_path / f"h{len(made)}", free_port()))
        return made[-1]

    yield make
    for site in made:
        if site.service is not None:
            site.kill()


@pytest.fixture
def site(spoil: Callable[[], Site]) -> Site:
    """A running copy of the golden site."""
    made = spoil()
    made.start()
    return made


@pytest.fixture
def released(site: Site) -> Site:
    """... where both reviewers approved and the adapter answers legal/labels."""
    site.approve()
    site.activate()
    return site
