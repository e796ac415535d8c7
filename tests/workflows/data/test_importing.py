"""An import that does not end: bounded, cancelled, and without an effect on others."""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core.signatures import AcceptedOrder
from appliance.domain.data.imports import MOST_WAITING, ImportBase, ImportDataset, ImportRequested
from appliance.errors import BadInput
from appliance.formats.artifacts.manifest import Manifest, ManifestFile, encode_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.workflows.core.jobs import Jobs
from appliance.workflows.core.retry import stop_run_workers
from appliance.workflows.data import imports as ingest
from scripts.kit.log_builder import LogBuilder, order_of, stage
from scripts.kit.waiting import wait_for
from tests.workflows.core.test_defects import context_of, finish, inmates, outcomes

pytestmark = pytest.mark.usefixtures("cleared")
__all__ = ["inmates"]


def wanted(context: Any, site: LogBuilder, name: str) -> Any:
    """Order the import of a base whose bytes were sent."""
    with context.artifacts.receive("ines", digest_bytes(b"gguf"), 4) as upload:
        upload.write(b"gguf")
        upload.finish()
    return site.request_import(name)


@pytest.mark.thorough
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
    assert time.monotonic() - began < 50
    assert not list((home / "artifacts").iterdir())


@pytest.mark.thorough
def test_a_cancelled_import_ends_at_once_and_the_next_one_runs(home: Path, inmates: list[str]) -> None:
    site = stage("staffed")
    context = context_of(site, home)
    inmates += ["inmates.spin", "inmates.diligent"]
    first, waiting, second = (wanted(context, site, name) for name in ("first", "waiting", "second"))
    for requested in (first, waiting, second):
        context.bases.put(partial(ingest.import_base, context, order_of(requested)))
    wait_for(lambda: order_of(first) in context.workers, "the first worker")
    site.cancel_import(waiting)
    site.cancel_import(first, "anna")
    began = time.monotonic()
    stop_run_workers(context, order_of(first))
    assert time.monotonic() - began < 30
    finish(context.bases)
    assert outcomes(context) == [("base.imported", None)]
    for requested in (first, waiting):
        told = context.progress.read(order_of(requested))
        assert told.ended and told.error is not None and told.error.code == "cancelled"


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
    assert told.error is not None and told.error.code == "cancelled"


@pytest.mark.parametrize("begins", [True, False], ids=["at work", "waiting"])
def test_an_import_that_the_end_of_the_service_ends_was_interrupted(
    home: Path, inmates: list[str], begins: bool
) -> None:
    """Its bytes are not the reason, and neither is the memory of the machine."""
    site = stage("staffed")
    context = context_of(site, home)
    inmates += ["inmates.spin"]
    requested = order_of(wanted(context, site, "first"))
    if not begins:
        context.closing.set()
    context.bases.put(partial(ingest.import_base, context, requested))
    if begins:
        wait_for(lambda: requested in context.workers, "the worker")
        context.closing.set()
        context.workers[requested].kill()
    finish(context.bases)
    assert outcomes(context) == [("import.failed", "interrupted")]
    told = context.progress.read(requested).error
    assert told is not None and "import it again" in told.message
    assert not inmates if begins else inmates, "a worker starts only for an import that had begun"


def send(context: Any, data: bytes) -> str:
    with context.uploads.receive(context.artifacts, "ines", digest_bytes(data), len(data)) as upload:
        upload.write(data)
        upload.finish()
    return digest_bytes(data)


def folder_manifest(context: Any, count: int) -> str:
    """Upload a manifest whose files all have the same byte, and return its digest."""
    byte = send(context, b"x")
    files = tuple(ManifestFile(f"f{number:05d}", 1, byte) for number in range(count))
    return send(context, encode_manifest(Manifest("tiny", 1, files)))


def order_base(site: LogBuilder, source: str, name: str) -> AcceptedOrder:
    order = site.order(ImportBase, "ines", base=name, format="safetensors", source=source, licence="Apache-2.0")
    entry = site.ordered(ImportRequested(policy=site.in_force), order)
    return AcceptedOrder(order, order_of(entry), "")


def test_the_manifest_of_waiting_imports_is_parsed_once_and_without_the_lock_of_orders(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = stage("staffed")
    context = context_of(site, home)
    source = folder_manifest(context, 300)
    work: list[tuple[str, bool]] = []

    def note(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def noted(*given: Any) -> Any:
            work.append((name, context.order_lock._is_owned()))
            return whole(*given)

        monkeypatch.setattr(owner, name, noted)

    for path in (home / "uploads").glob("*/*"):
        os.utime(path, (0, 0))  # sent before every order
    note(ingest, "parse_manifest")
    for name in ("upload", "discard_upload"):
        note(context.artifacts, name)
    accepted = [order_base(site, source, f"b{number}") for number in range(MOST_WAITING)]
    for one in accepted:
        ingest.check_base_uploaded(context, one.order, one.digest)
    assert [name for name, _ in work].count("parse_manifest") == 1
    assert [name for name, _ in work].count("upload") == 3 * len(accepted), "the manifest, and each file once"
    work.clear()
    for left, one in enumerate(reversed(accepted)):
        assert len(context.artifacts.uploads()) == 2, left
        ingest._fail(context, one.digest, BadInput("base: expected another, got this"))
    assert not context.artifacts.uploads(), "the last import releases its uploads"
    assert work == [("discard_upload", False)] * 2


def test_uploads_of_imports_that_wait_since_before_the_start_are_kept(home: Path) -> None:
    site = stage("staffed")
    context = context_of(site, home)
    source = folder_manifest(context, 3)
    order_base(site, source, "waiting")
    ended = order_base(site, source, "ended")
    ingest._fail(context, ended.digest, BadInput("base: expected another, got this"))
    assert len(context.artifacts.uploads()) == 2


def test_a_manifest_names_so_many_files(home: Path) -> None:
    site = stage("staffed")
    context = context_of(site, home)
    accepted = order_base(site, folder_manifest(context, ingest._MOST_FILES + 1), "many")
    with pytest.raises(BadInput, match="base many, manifest: expected at most 512 files, got 513; leave out"):
        ingest.check_base_uploaded(context, accepted.order, accepted.digest)


def test_a_person_has_so_many_imports_that_wait() -> None:
    site = stage("staffed")
    requested = [site.request_import(f"b{number}") for number in range(MOST_WAITING)]
    order = site.order(ImportBase, "ines", base="more", format="gguf", source=digest_bytes(b"x"), licence="Apache-2.0")
    reason = f"ines has {MOST_WAITING} imports that wait or run. One person can have {MOST_WAITING} of them."
    assert [told for told in list_refusal_reasons(site.state, order, site.now) if str(told).startswith(reason)]
    site.cancel_import(requested[0])
    assert not list_refusal_reasons(site.state, order, site.now)


def test_people_with_waiting_imports_take_turns() -> None:
    jobs, began, go = Jobs("bases"), list[str](), threading.Event()
    jobs.put(partial(go.wait, 30), "olga")
    for name in ("olga1", "olga2", "olga3", "rita1", "rita2", "vera1"):
        jobs.put(partial(began.append, name), name[:-1])
    go.set()
    finish(jobs)
    assert began == ["rita1", "vera1", "olga1", "rita2", "olga2", "olga3"]


def test_datasets_do_not_wait_for_bases(home: Path) -> None:
    context = context_of(stage("staffed"), home)
    assert ingest.queue_of(context, ImportBase.action) is not ingest.queue_of(context, ImportDataset.action)


@pytest.mark.parametrize(("gigabytes", "minutes"), [(0, 10), (5, 35), (16, 90)])
def test_what_an_import_may_take_grows_with_its_bytes(tmp_path: Path, gigabytes: int, minutes: int) -> None:
    """16 GB is a base of 8 billion parameters in bfloat16: read, written and read again at 10 MB a second."""
    with open(tmp_path / "weights", "wb") as file:
        file.truncate(gigabytes << 30)
    context = context_of(stage("staffed"), tmp_path)
    context.import_s, context.import_cpu_s = 600.0, 300.0
    bounds = ingest.bounds_of(context, [tmp_path / "weights"], ingest._BASE_STEP)
    assert (bounds.wall_s, bounds.cpu_s) == (minutes * 60, minutes * 30)
