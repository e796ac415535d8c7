"""A real Slurm of two nodes on this machine, and an appliance beside it that has a base and a dataset."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.kit.appliance import Appliance, found_site
from scripts.kit.ports import free_port
from scripts.kit.slurm import NODES, Slurm, start_slurm
from scripts.kit.tiny_model import build_base, clauses, write_csv
from tests.kit.holding import remove_hold


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
def holds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder whose file `hold` pauses workers at a frame (tests/slurm/real/held_node.py)."""
    return tmp_path_factory.mktemp("holds")


@pytest.fixture(autouse=True)
def none_is_paused(holds: Path) -> Iterator[None]:
    yield
    remove_hold(holds)


@pytest.fixture(scope="module")
def site(slurm: Slurm, holds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    place = tmp_path_factory.mktemp("a")
    # The nodes' Python is called with `-I -m MODULE JOB-FOLDER`.
    python = holds / "python"
    command = shlex.join([sys.executable, str(Path(__file__).with_name("held_node.py")), str(holds)])
    python.write_text(f'#!/bin/sh\nshift 3\nexec {command} "$@"\n')
    python.chmod(0o700)
    for name in ("shared", "scratch"):
        (place / name).mkdir(mode=0o700)
    folders = {"APPLIANCE_SLURM_FOLDER": str(place / "shared"), "APPLIANCE_SLURM_SCRATCH": str(place / "scratch")}
    settings = {**folders, **slurm.environment, "APPLIANCE_SLURM_PYTHON": str(python)}
    made = found_site(place / "h", free_port(), **settings)
    try:
        assert made.import_base(build_base(place / "base"))["status"] == "finished"
        rows = write_csv(place / "rows.csv", clauses())
        assert made.import_dataset(rows.read_bytes())["status"] == "finished"
        yield made
    finally:
        if made.service is not None:
            made.stop()
