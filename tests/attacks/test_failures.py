"""While the ledger cannot be written, the service starts nothing, reports it, and resumes by itself afterwards."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from scripts.kit.appliance import Appliance, Refused


@contextmanager
def moved_away(site: Appliance) -> Iterator[None]:
    """Move the database away while the block runs."""
    aside = site.home / "aside"
    aside.mkdir()
    files = list(site.home.glob("ledger.db*"))
    for path in files:
        path.rename(aside / path.name)
    try:
        yield
    finally:
        assert not list(site.home.glob("ledger.db*")), "no new, empty database was made"
        for path in files:
            (aside / path.name).rename(path)
        aside.rmdir()


@contextmanager
def disk_full(site: Appliance) -> Iterator[None]:
    """No file of the service can grow: write() fails as on a full disk, with another number."""
    assert site.service is not None
    largest = max(path.stat().st_size for path in site.home.glob("ledger.db*"))
    limit = f"--fsize={max(largest, 4096)}:"
    subprocess.run(["prlimit", f"--pid={site.service.pid}", limit], check=True)
    try:
        yield
    finally:
        subprocess.run(["prlimit", f"--pid={site.service.pid}", "--fsize=unlimited:"], check=True)


CAUSES = [pytest.param(moved_away, id="gone")]
if shutil.which("prlimit"):
    CAUSES.append(pytest.param(disk_full, id="full"))


def orders_until_refused(site: Appliance) -> int:
    """Send orders until one is refused, since small entries fit until the files are full. Return its status."""
    for _ in range(400):
        try:
            site.order(*site.review_order("rita"))
        except Refused as error:
            return error.status
    raise AssertionError("expected a refusal within 400 orders")


def until_unanswered(site: Appliance) -> int:
    """Ask right after an order was refused, until a question is refused, too. Return its status.

    Once a second the database writes its log back and begins it again, and small entries fit for a moment.
    """
    for _ in range(20):
        assert orders_until_refused(site) == 503
        try:
            site.chat("legal", "labels")
        except Refused as error:
            return error.status
    raise AssertionError("expected a refusal within 20 questions, each after a refused order")


@pytest.mark.thorough
@pytest.mark.parametrize("cause", CAUSES)
def test_while_the_ledger_cannot_be_written_nothing_acts_and_everybody_is_told(
    released: Appliance, cause: Callable[[Appliance], AbstractContextManager[None]]
) -> None:
    site = released
    assert site.chat("legal", "labels")["choices"]
    size = len(site.entries())
    with cause(site):
        assert until_unanswered(site) == 503
        assert "ALARM: the ledger cannot be written" in site.log()
    assert site.order(*site.review_order("rita"))["index"] >= size, "it goes on by itself"
    assert site.chat("legal", "labels")["choices"]
    assert "the ledger can be written again" in site.log()
    assert site.verify()["verdict"] == "verified"
