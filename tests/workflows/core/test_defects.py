"""An unexpected exception ends neither a queue nor a round, and is recorded as a failure."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.actions.apply import apply
from appliance.domain.core.entry import Entry, EntryDraft, encode_entry, parse_entry
from appliance.domain.data.artifacts import BaseImported
from appliance.domain.data.imports import ImportBase, ImportRequested
from appliance.domain.runs.training import RunFailed
from appliance.errors import Denied, NotFound, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.sandbox.escape_targets import Probes
from appliance.sandbox.local import start_worker
from appliance.store.database.processes import Processes
from appliance.store.files import space
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.keyring import Keyring
from appliance.store.files.run_files import Checkpoints, StepStore
from appliance.store.ledger.writer import propose
from appliance.workflows import integrity
from appliance.workflows.core import retry, workers
from appliance.workflows.core.contact import Contact
from appliance.workflows.core.context import ALL_ROLES
from appliance.workflows.core.jobs import ItemsInProgress, Jobs, contain_defects
from appliance.workflows.core.progress import Progress
from appliance.workflows.core.record import conceal
from appliance.workflows.core.uploads import Uploads
from appliance.workflows.data import imports as ingest
from appliance.workflows.data.folders import seal_folder, secret_name
from appliance.workflows.lifecycle import recovery as recover
from appliance.workflows.runs import planning, replay, train
from scripts.kit.log_builder import LAYERS, LogBuilder, order_of, stage
from tests.kit.nesting import nest

pytestmark = pytest.mark.usefixtures("cleared")

INMATES = Path(__file__).parents[2] / "sandbox" / "inmates"


def invalid() -> Exception:
    """Return an error as pydantic words it."""
    try:
        RunFailed(run="", code="", message="")
    except ValueError as error:
        return error
    raise AssertionError


FOREIGN = [KeyError("labels"), RecursionError("maximum depth"), MemoryError(), TypeError("int() argument"), invalid()]
by_name = pytest.mark.parametrize("error", FOREIGN, ids=lambda error: type(error).__name__)


def context_of(site: LogBuilder, home: Path) -> Any:
    """Disk and queues are real, the ledger lies in memory; `recorded`: what was appended, under the rules."""
    recorded: list[Entry] = []

    def append_all(drafts: Sequence[EntryDraft], guard: None = None) -> list[Any]:
        for draft in drafts:
            entry = propose(draft, site.state, site.now)
            apply(site.state, entry, draft.documents)
            site.entries.append(encode_entry(entry))
            recorded.append(parse_entry(site.entries[-1]))
        return [SimpleNamespace(entry=entry) for entry in recorded[len(recorded) - len(drafts) :]]

    def documents_of(index: int) -> dict[str, bytes]:
        bound = parse_entry(site.entries[index]).documents
        return {role: site.documents[digest] for role, digest in bound.items()}

    ledger = SimpleNamespace(
        state=site.state,
        append_all=append_all,
        documents_of=documents_of,
        entry_bytes=site.entries.__getitem__,
    )
    logs = home / "logs"
    logs.mkdir()
    return SimpleNamespace(
        ledger=ledger,
        appended=lambda *_: None,
        recheck_answers=lambda: None,
        artifacts=Artifacts(home),
        keyring=Keyring(home / "keys"),
        checkpoints=Checkpoints(home),
        steps=StepStore(home),
        progress=Progress(),
        uploads=Uploads(),
        bases=Jobs("bases"),
        datasets=Jobs("datasets"),
        import_s=60.0,
        import_cpu_s=60.0,
        runs=Jobs("runs"),
        cluster=None,
        cluster_runs=Jobs("runs on Slurm"),
        items_in_progress=ItemsInProgress(),
        processes=Processes(),
        process=None,
        roles=ALL_ROLES,
        runs_here=True,
        contact=Contact(),
        refresh=lambda: False,
        workers={},
        order_lock=threading.RLock(),
        closing=threading.Event(),
        logs=logs,
        reserve=None,
        probes=Probes(),
        code=SimpleNamespace(version="1", digest=digest_bytes(b"code")),
        device="cpu",
        recorded=recorded,
    )


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def outcomes(context: Any) -> list[tuple[str, str | None]]:
    return [(entry.type, entry.body.get("code")) for entry in context.recorded]


def finish(jobs: Jobs) -> None:
    jobs.stop(60)
    assert not jobs.busy


def ask_for_base(site: LogBuilder, name: str) -> str:
    """Order an import of a base, and return its identity."""
    source = digest_bytes(b"gguf")
    order = site.order(ImportBase, "ines", base=name, format="gguf", source=source, licence="Apache-2.0")
    return order_of(site.ordered(ImportRequested(policy=site.in_force), order))


# --- jobs -----------------------------------------------------------------------------------------------------------


@by_name
def test_what_nobody_foresaw_in_an_import_is_its_failure_and_the_next_one_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    site = stage("staffed")
    context = context_of(site, home)
    wanted = [ask_for_base(site, name) for name in ("first", "second")]
    calls = iter([raising(error), raising(Unavailable("not now"))])
    monkeypatch.setattr(ingest, "_read_order", lambda *given: next(calls)(*given))
    for digest in wanted:
        context.bases.put(partial(ingest.import_base, context, digest))
    finish(context.bases)
    assert outcomes(context) == [("import.failed", "defect"), ("import.failed", "unavailable")]
    told = context.progress.read(wanted[0])
    assert told.ended and told.error.code == "defect" and type(error).__name__ in told.error.message
    assert "ALARM: import: a defect of the appliance" in caplog.text and "Traceback" in caplog.text


@by_name
def test_what_nobody_foresaw_in_a_run_is_its_failure_and_the_next_one_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    site = stage("imported")
    context = context_of(site, home)
    runs = [site.request_run(), site.request_run()]
    calls = iter([raising(error), raising(OSError(errno.EIO, "Input/output error"))])
    monkeypatch.setattr(train, "_train_and_seal", lambda *given: next(calls)(*given))
    for _ in runs:
        train.enqueue(context)
    finish(context.runs)
    assert outcomes(context) == [("run.failed", "defect"), ("run.failed", "disk")]
    assert [context.progress.read(run).error.code for run in runs] == ["defect", "disk"]


@by_name
def test_what_nobody_foresaw_in_a_replay_or_a_calibration_is_its_failure(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    site = stage("imported")
    run = site.train()
    wanted = order_of(site.replay(run))
    context = context_of(site, home)
    monkeypatch.setattr(replay, "_replay", raising(error))
    monkeypatch.setattr(planning, "_subject", lambda *_: None)
    monkeypatch.setattr(planning, "_calibrate", raising(error))
    replay.enqueue(context, wanted)
    key = planning.order_calibration(context, "olga", site.train_order().recipe)
    finish(context.runs)
    assert outcomes(context) == [("replay.failed", "defect")]
    assert context.progress.read(wanted).error.code == "defect"
    assert planning.calibration_status(context, "olga", key).error.code == "defect"  # type: ignore[union-attr]


@by_name
def test_a_job_that_cannot_even_record_its_failure_lets_the_next_one_run(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    jobs, done = Jobs("runs"), threading.Event()
    jobs.put(raising(error))
    jobs.put(done.set)
    assert done.wait(60)
    finish(jobs)
    assert "ALARM: runs: a defect of the appliance" in caplog.text and "Traceback" in caplog.text


def test_a_refusal_and_a_disk_pass_as_what_they_are(caplog: pytest.LogCaptureFixture) -> None:
    refusal = Unavailable("not now")
    with pytest.raises(Unavailable) as raised, contain_defects("job"):
        raise refusal
    assert raised.value is refusal
    with pytest.raises(Unavailable, match="job, disk: expected it to work") as broken, contain_defects("job"):
        raise OSError(errno.EIO, "Input/output error")
    assert broken.value.code == "disk"
    assert "ALARM" not in caplog.text


# --- what a worker chooses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["x" * 200_000, "", "Two Words", None, 7, ["list"]])
def test_a_workers_code_that_is_none_does_not_keep_its_failure_from_being_recorded(code: Any) -> None:
    """An entry has 65,535 bytes at most."""
    assert workers.failure({"code": code, "message": "why"}).code == "worker-failed"
    assert workers.failure({"code": "base-refused", "message": "why"}).code == "base-refused"


def test_a_file_name_that_is_no_unicode_does_not_either() -> None:
    assert conceal("output, caf\udce9: expected a regular file").text == "output, caf?: expected a regular file"


@pytest.fixture
def inmates(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the modules that the next workers run in the sandbox."""
    modules: list[str] = []

    def start(_: str, sandbox: Any, **more: Any) -> Any:
        return start_worker(modules.pop(0), sandbox, code=INMATES, **more)

    monkeypatch.setattr(workers, "start_worker", start)
    return modules


def import_two_bases(context: Any, site: LogBuilder) -> None:
    """One after the other, of the same bytes, to the end of both."""
    with context.artifacts.receive("ines", digest_bytes(b"gguf"), 4) as upload:
        upload.write(b"gguf")
        upload.finish()
    for name in ("first", "second"):
        context.bases.put(partial(ingest.import_base, context, ask_for_base(site, name)))
    finish(context.bases)


@pytest.mark.thorough
def test_a_worker_that_nests_folders_fails_alone(
    home: Path, inmates: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Check that all it left is gone, in its home and where it was to write; the next import and start work."""
    site = stage("staffed")
    context = context_of(site, home)
    inmates += ["inmates.nest", "inmates.diligent"]
    import_two_bases(context, site)
    assert outcomes(context) == [("import.failed", "bad-input"), ("base.imported", None)]
    assert not list((home / "artifacts").glob(".staging-*"))
    assert "ALARM" not in caplog.text


def small_disk(home: Path, size: int) -> Callable[[Path], Any]:
    """statvfs of a disk of this size that holds what lies in the staging folders, and nothing else."""

    def look(_: Path) -> Any:
        used = sum(path.stat().st_size for path in home.glob("artifacts/.staging-*/model.safetensors"))
        return SimpleNamespace(f_blocks=size, f_frsize=1, f_bavail=size - used)

    return look


@pytest.mark.thorough
def test_a_worker_that_fills_the_disk_is_ended_before_it_is_full(
    home: Path, inmates: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of it can still be recorded, and the next import has the room."""
    size = 400 << 20
    monkeypatch.setattr(space, "os", SimpleNamespace(statvfs=small_disk(home, size)))
    site = stage("staffed")
    context = context_of(site, home)
    inmates += ["inmates.fill", "inmates.diligent"]
    import_two_bases(context, site)
    assert outcomes(context) == [("import.failed", "disk"), ("base.imported", None)]
    assert f"worker, disk: expected {size // 20} bytes free" in caplog.text


def test_an_engine_is_ended_only_when_little_of_the_needed_space_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(f_blocks=100 << 30, f_frsize=1)
    monkeypatch.setattr(space, "os", SimpleNamespace(statvfs=lambda _: disk))
    got = []
    for disk.f_bavail in (1 << 30, (1 << 30) - 1, 1 << 27, (1 << 27) - 1):
        got.append([workers.disk_shortage(tmp_path, None, engine=engine) is None for engine in (False, True)])
    assert got == [[True, True], [False, True], [False, True], [False, False]]


def test_the_end_of_a_worker_that_was_killed_says_so(home: Path, inmates: list[str]) -> None:
    inmates.append("inmates.killed")
    with workers.worker(context_of(stage("staffed"), home), "key", "m", read=()) as started:
        workers.check_sandbox(started)
        with pytest.raises(Unavailable, match="by signal 9: it was killed, as the kernel does where memory runs out"):
            workers.carry_out(started, {})


class PowerCut(BaseException):
    """Not an Exception: nothing cleans up after it."""


@pytest.mark.parametrize("error", [Denied("refused by the rules"), PowerCut()], ids=["refused", "killed"])
def test_an_import_that_was_sealed_and_not_recorded_leaves_nothing(
    home: Path, inmates: list[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    site = stage("staffed")
    context = context_of(site, home)
    with context.artifacts.receive("ines", digest_bytes(b"gguf"), 4) as upload:
        upload.write(b"gguf")
        upload.finish()
    inmates += ["inmates.diligent"]
    record = ingest.append_with_retry

    def refuse(context: Any, body: Any, **more: Any) -> Any:
        if isinstance(body, BaseImported):
            assert len(context.artifacts.pending()) == 1
            raise error
        return record(context, body, **more)

    monkeypatch.setattr(ingest, "append_with_retry", refuse)
    monkeypatch.setattr(recover, "detect_layers", lambda: LAYERS)
    with suppress(PowerCut):
        ingest.import_base(context, ask_for_base(site, "first"))
    if isinstance(error, PowerCut):
        assert list((home / "artifacts").iterdir())
        recover.recover(context)
    assert not list((home / "artifacts").iterdir())


def test_a_start_destroys_the_key_of_a_dataset_that_no_entry_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recover, "detect_layers", lambda: LAYERS)
    context = context_of(stage("imported"), home)
    with context.artifacts.staging() as staging:
        (staging / "rows.jsonl").write_bytes(b"{}")
        digest = digest_bytes(seal_folder(context, staging, "clauses", 2))
    context.keyring.keep_secret(secret_name(digest), b"k" * 32)
    recover.recover(context)
    assert not list((home / "artifacts").iterdir())
    with pytest.raises(NotFound):
        context.keyring.read_secret(secret_name(digest))


def test_a_start_continues_whatever_a_worker_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recover, "detect_layers", lambda: LAYERS)
    context = context_of(stage("imported"), home)
    left = home / "artifacts" / ".staging-x"
    left.mkdir()
    os.close(nest(left, 1_900))
    recover.recover(context)
    assert [entry.type for entry in context.recorded] == ["service.started"]
    assert not left.exists()


# --- rounds ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "AFTER_FAILURE_S", 0.001)
    for name in ("EVERY_S", "WRITEBACK_EVERY_S"):
        monkeypatch.setattr(integrity, name, 0.001)


def once(error: Exception, done: threading.Event) -> Callable[..., None]:
    """Fails the first time it is called."""
    calls: list[int] = []

    def act(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise error
        if len(calls) == 3:
            done.set()

    return act


@pytest.mark.family(keep=6)
@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("name", ["rehash", "writeback", "snapshots"])
@by_name
def test_a_round_that_fails_is_followed_by_others(
    caplog: pytest.LogCaptureFixture, error: Exception, name: str, home: Path
) -> None:
    context, done = context_of(stage("imported"), home), threading.Event()
    act = once(error, done)
    context.artifacts.check = act
    context.ledger.write_back = context.ledger.seal_snapshot = act
    begin = {
        "rehash": lambda: integrity.start_rehash(context, 0.001),
        "writeback": lambda: integrity.start_writeback(context),
        "snapshots": lambda: integrity.start_snapshots(context),
    }
    try:
        begin[name]()
        assert done.wait(60)
    finally:
        context.closing.set()
    assert caplog.text.count("a defect of the appliance") == 1 and "Traceback" in caplog.text
    if name == "rehash":
        assert ("artifacts.checked", None) in outcomes(context), "the next round came to its end"


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_disk_that_fails_under_the_check_of_folders_is_said_and_checked_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    context, said = context_of(stage("imported"), home), threading.Event()
    critical = retry.log.critical

    def say(text: str, *rest: Any) -> None:
        critical(text, *rest)
        said.set()

    monkeypatch.setattr(retry.log, "critical", say)
    is_dir = Path.is_dir
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", raising(OSError(number, os.strerror(number))))
        integrity.start_rehash(context, 0.001)
        try:
            assert said.wait(60)
            patch.setattr(Path, "is_dir", is_dir)
            first = context.recorded[0]
            assert first.body["unread"] and not first.body["changed"], "it says nothing of the bytes"
            count = len(context.recorded)
            context.artifacts.check = lambda *_: 0
            for _ in range(1_000):
                if len(context.recorded) > count and not context.recorded[-1].body["unread"]:
                    break
                context.closing.wait(0.01)
        finally:
            context.closing.set()
    assert "ALARM: check of the sealed folders failed and is tried again: expected to read every" in caplog.text
    assert not context.recorded[-1].body["unread"]


def test_a_round_that_failed_does_not_fill_the_log() -> None:
    """Not once a second, as the write-back would."""
    assert retry.AFTER_FAILURE_S >= 60
    waited: list[float] = []

    class Closing:
        def wait(self, seconds: float) -> bool:
            waited.append(seconds)
            return len(waited) == 4

        def is_set(self) -> bool:
            return False

    context: Any = SimpleNamespace(closing=Closing())
    done = threading.Event()
    results = iter([None, Unavailable("not now"), None])

    def work() -> None:
        if (error := next(results)) is not None:
            raise error
        if len(waited) == 3:
            done.set()

    retry.start(context, "round", 1.0, work)
    assert done.wait(60)
    assert waited[:3] == [1.0, 1.0, retry.AFTER_FAILURE_S]
