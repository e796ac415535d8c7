"""An import that does not end: bounded, cancelled, and in nobody's way."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.data.imports import ImportBase, ImportDataset
from appliance.formats.core.digest import digest_bytes
from appliance.workflows.core.halt import halt
from appliance.workflows.data import imports as ingest
from scripts.kit.log_builder import LogBuilder, order_of, stage
from tests.workflows.core.test_defects import context_of, finish, inmates, outcomes

pytestmark = pytest.mark.usefixtures("cleared")
__all__ = ["inmates"]


def wanted(context: Any, site: LogBuilder, name: str) -> Any:
    """An import of a base whose bytes were sent."""
    with context.artifacts.receive(digest_bytes(b"gguf"), 4) as upload:
        upload.write(b"gguf")
        upload.finish()
    return site.request_import(name)


@pytest.mark.parametrize(
    ("inmate", "wall_s", "cpu_s"), [("inmates.spin", 60.0, 1.0), ("inmates.sleep", 1.0, 60.0)], ids=["cpu", "clock"]
)
def test_an_import_that_takes_too_long_fails_for_it(
    home: Path, inmates: list[str], inmate: str, wall_s: float, cpu_s: float
) -> None:
    site = stage("staffed")
    context = context_of(site, home)
    context.import_s, context.import_cpu_s = wall_s, cpu_s
    inmates += [inmate]
    requested, began = wanted(context, site, "first"), time.monotonic()
    ingest.import_base(context, order_of(requested))
    assert outcomes(context) == [("import.failed", "time-limit")]
    assert time.monotonic() - began < 30
    assert not list((home / "artifacts").iterdir())


def test_a_cancelled_import_ends_at_once_and_the_next_one_runs(home: Path, inmates: list[str]) -> None:
    site = stage("staffed")
    context = context_of(site, home)
    inmates += ["inmates.spin", "inmates.diligent"]
    first, waiting, second = (wanted(context, site, name) for name in ("first", "waiting", "second"))
    for requested in (first, waiting, second):
        context.bases.put(partial(ingest.import_base, context, order_of(requested)))
    deadline = time.monotonic() + 60
    while order_of(first) not in context.workers and time.monotonic() < deadline:
        time.sleep(0.02)
    site.cancel_import(waiting)
    site.cancel_import(first, "anna")
    began = time.monotonic()
    halt(context, order_of(first))
    assert time.monotonic() - began < 10
    finish(context.bases)
    assert outcomes(context) == [("base.imported", None)]
    for requested in (first, waiting):
        told = context.progress.read(order_of(requested))
        assert told.ended and told.error is not None and told.error["code"] == "cancelled"


def test_an_import_cancelled_before_its_worker_could_be_found_does_not_run(
    home: Path, inmates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = stage("staffed")
    context = context_of(site, home)
    inmates += ["inmates.spin"]
    requested = wanted(context, site, "first")
    bounds = ingest.bounds_of

    def cancel(*given: Any) -> Any:
        site.cancel_import(requested)
        return bounds(*given)

    monkeypatch.setattr(ingest, "bounds_of", cancel)
    ingest.import_base(context, order_of(requested))
    assert outcomes(context) == []
    told = context.progress.read(order_of(requested))
    assert told.error is not None and told.error["code"] == "cancelled"


def test_datasets_do_not_wait_for_bases(home: Path) -> None:
    context = context_of(stage("staffed"), home)
    assert ingest.queue_of(context, ImportBase.verb) is not ingest.queue_of(context, ImportDataset.verb)


@pytest.mark.parametrize(("gigabytes", "minutes"), [(0, 10), (5, 35), (16, 90)])
def test_what_an_import_may_take_grows_with_its_bytes(tmp_path: Path, gigabytes: int, minutes: int) -> None:
    """16 GB is a base of 8 billion parameters in bfloat16: read, written and read again at 10 MB a second."""
    with open(tmp_path / "weights", "wb") as file:
        file.truncate(gigabytes << 30)
    context = context_of(stage("staffed"), tmp_path)
    context.import_s, context.import_cpu_s = 600.0, 300.0
    bounds = ingest.bounds_of(context, [tmp_path / "weights"], ingest._BASE_STEP)
    assert (bounds.wall_s, bounds.cpu_s) == (minutes * 60, minutes * 30)
