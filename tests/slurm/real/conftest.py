"""A real Slurm of two nodes on this machine, and an appliance beside it that has a base and a dataset."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts.kit.appliance import Appliance, found_site
from scripts.kit.ports import free_port
from scripts.kit.slurm import NODES, Slurm, start_slurm
from scripts.kit.tiny_model import build_base, clauses, write_csv


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    # In the grace time a worker must write its training checkpoint, also beside other work.
    cluster = start_slurm(tmp_path_factory.mktemp("s"), grace_s=20)
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def both_nodes(slurm: Slurm) -> None:
    """Each test begins with a whole cluster, whatever the one before took from it."""
    for name in set(NODES) - set(slurm.daemons):
        slurm.start(name)
    slurm.wait_until_up()


@pytest.fixture(scope="module")
def site(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    place = tmp_path_factory.mktemp("a")
    for name in ("shared", "scratch"):
        (place / name).mkdir(mode=0o700)
    folders = {"APPLIANCE_SLURM_FOLDER": str(place / "shared"), "APPLIANCE_SLURM_SCRATCH": str(place / "scratch")}
    settings = {**folders, **slurm.environment}
    made = found_site(place / "h", free_port(), **settings)
    try:
        assert made.import_base(build_base(place / "base"))["status"] == "finished"
        rows = write_csv(place / "rows.csv", clauses())
        assert made.import_dataset(rows.read_bytes())["status"] == "finished"
        yield made
    finally:
        if made.service is not None:
            made.stop()
