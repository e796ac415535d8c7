"""The construction of the workflows' context around a loaded ledger."""

from __future__ import annotations

import hmac
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from appliance.config.settings import Settings
from appliance.domain.core.entry import parse_entry
from appliance.domain.governance.service import ServiceStarted
from appliance.domain.queries.alarms import LONGEST_PAUSE_DAYS
from appliance.errors import BadInput, Conflict, Denied, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.note import name_key
from appliance.formats.log.trust import Trust, parse_trust
from appliance.formats.signatures.keys import Signer
from appliance.sandbox.escape_targets import Probes
from appliance.sandbox.host import describe_host, multiplies_bfloat16
from appliance.signer.client import SignerKeys
from appliance.slurm.cluster import Cluster, ClusterSettings, Resources
from appliance.slurm.commands import Commands, command_environment
from appliance.slurm.folder import JobRecords
from appliance.store.database.engine import bring_up_to_date, check_migrated, open_engine
from appliance.store.database.processes import Processes
from appliance.store.database.sessions import Sessions
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.keyring import Keyring
from appliance.store.files.known_checkpoints import KnownCheckpoints
from appliance.store.files.local_sets import LocalSets
from appliance.store.files.run_files import CalibrationStore, Checkpoints, StepStore
from appliance.store.files.space import Reserve
from appliance.store.ledger.keys import KeyringKeys, LogKeys, ServiceKeys
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.log_state import NotContinued
from appliance.store.ledger.pending import open_pending
from appliance.store.ledger.snapshots import SnapshotContent, Snapshots
from appliance.workflows import integrity
from appliance.workflows.core.context import Code, Context, describe_code
from appliance.workflows.core.progress import Progress
from appliance.workflows.core.uploads import Uploads
from appliance.workflows.restoration import (
    give_up_notes,
    settle,
    store_signer_checkpoint,
    store_snapshot_checkpoint,
)
from appliance.workflows.runs import steps
from appliance.workflows.serving.serve import DIGEST_KEY
from appliance.workflows.witnesses import compare, missing_cosignatures


def check_account(home: Path) -> None:
    """Check that this account owns the home. The service could not use the files that another account makes in it.

    Raises:
        Denied: It belongs to another account.
    """
    if home.is_dir() and (owner := home.stat().st_uid) != os.geteuid():
        raise Denied(
            f"data folder, {home}: expected the account that owns it, user id {owner}, got {os.geteuid()}; type the "
            "command as that account"
        )


def read_trust(settings: Settings) -> Trust:
    """Return the appliance's trust file.

    Raises:
        NotFound: The home has no appliance yet.
        Denied: The home belongs to another account.
    """
    check_account(settings.home)
    try:
        return parse_trust(settings.trust.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"appliance in {settings.home}: expected one, got none; make it with: appliance init") from None


def open_keys(settings: Settings, origin: str) -> ServiceKeys:
    """Return the keys with which the service signs: the signer's if the settings name its socket, or the keyring's."""
    if settings.signer_socket is not None:
        return SignerKeys(settings.signer_socket, origin)
    return KeyringKeys(Keyring(settings.keys), origin)


def find_signed_log(settings: Settings) -> str | None:
    """Return the origin of the log that the signer has begun, or None without a signer or a log."""
    if settings.signer_socket is None:
        return None
    with closing(SignerKeys(settings.signer_socket, "")) as keys:
        return keys.find_log()


def open_ledger(
    settings: Settings,
    origin: str,
    log_key: str,
    keys: ServiceKeys,
    code: Code | None = None,
    *,
    restoration: bool = False,
) -> Ledger:
    """Open the ledger of the database.

    `code`: the code that computes the state, if snapshots of the state are kept from one start to the next.
    `restoration`: the signer may have signed entries that the log lacks.

    Raises:
        NotFound: When an append needs a log key that is missing.
    """
    engine = open_engine(settings.database_url.get_secret_value(), process=settings.process)
    try:
        check_migrated(engine)
    except BaseException:
        engine.dispose()
        raise
    return Ledger(
        engine,
        origin=origin,
        log_key=log_key,
        keys=keys,
        clock=lambda: datetime.now(UTC),
        snapshots=None if code is None else open_snapshots(settings, origin, code, keys),
        longest_pause_days=LONGEST_PAUSE_DAYS,
        pending=(
            open_pending(engine, settings.home, keys, restoration=restoration) if isinstance(keys, SignerKeys) else None
        ),
    )


def open_reserve(settings: Settings) -> Reserve:
    """Return the disk reserve of the home."""
    return Reserve(settings.home, settings.disk_reserve << 20)


def open_snapshots(settings: Settings, origin: str, code: Code, keys: LogKeys) -> Snapshots:
    """Return the snapshot of the state that this code keeps from one start to the next."""
    digest = digest_bytes(repr(code).encode())
    return Snapshots(settings.snapshot, origin=origin, code=digest, keys=keys, least=integrity.LEAST)


def is_other_build(ledger: Ledger, code: Code) -> bool:
    """Return True if another build started last, whose projections may lack what this build derives from the same
    entries.
    """
    last = ledger.find(types=(ServiceStarted.type,), newest=True, limit=1)
    return any(parse_entry(data).body["code"] != code.digest for _, data in last)


def require_signing_keys(keys: ServiceKeys, ledger: Ledger) -> None:
    """Check that every key is there that must sign the log now, and the adapters' key.

    Keys that have ended since the last entry may have been destroyed.

    Raises:
        Tampered: A key is missing.
    """
    site, now = ledger.state.site, max(encode_time(datetime.now(UTC)), ledger.state.last_time)
    missing = sorted(set(site.signing_keys(now)) - set(keys.list_log_keys()))
    if missing:
        names = ", ".join(map(name_key, missing))
        raise Tampered(f"keys: expected the log's, got none of {names}; put the keys of {keys.place} back")


@contextmanager
def service(
    settings: Settings,
    say: Callable[[str], None] = lambda _: None,
    *,
    after_pause: bool = False,
    rebuild: bool = False,
    restoration: bool = False,
    processes: Processes | None = None,
) -> Iterator[Context]:
    """Load the ledger and give the context that the workflows need.

    `say` is called with the progress of the loading. `after_pause`: the operator confirms that the host's clock is
    right, however old the last entry is. `rebuild`: drop the projections and compute them again. `restoration`: a log
    that lacks entries is loaded, too, and `awaits_restoration` is set. `processes`: the registry in which this process
    has its name.

    Raises:
        Tampered: The ledger fails its verification, or witnesses have seen entries that it lacks.
        Conflict: The service is to await a restoration, and the log lacks nothing.
    """
    trust = read_trust(settings)
    vllm = _find_vllm(settings)
    code = describe_code()
    if processes is None:
        processes = Processes()
        bring_up_to_date(settings.database_url.get_secret_value(), settings.migration_url.get_secret_value(), say)
    with closing(open_keys(settings, trust.origin)) as keys:
        adapter_signer = keys.adapter_signer()
        ledger = open_ledger(settings, trust.origin, trust.log_key, keys, code, restoration=restoration)
        ledger.fence, ledger.notifies_others = processes.fence, bool(processes.others)
        ledger.clock.ahead_ms = processes.ahead_ms
        snapshots = open_snapshots(settings, trust.origin, code, keys)
        uncontinued_snapshot = _load(ledger, snapshots, code, say, after_pause=after_pause, rebuild=rebuild)
        require_signing_keys(keys, ledger)
        context = _make_context(settings, ledger, keys, adapter_signer, code, processes, vllm)
        try:
            if uncontinued_snapshot is not None:
                store_snapshot_checkpoint(context, uncontinued_snapshot)
            _compare_with_notes(context, restoration=restoration)
            if uncontinued_snapshot is not None:
                snapshots.set_aside()
        except BaseException:
            ledger.close()
            raise
        context.appended.connect(partial(settle, context))
        try:
            yield context
        finally:
            for worker in list(context.workers.values()):
                worker.kill()
            context.sessions.close()
            ledger.close()


def _compare_with_notes(context: Context, *, restoration: bool) -> None:
    """Compare the log with the notes beside it.

    With `restoration`, a log that lacks entries awaits their restoration.
    """
    store_signer_checkpoint(context)
    give_up_notes(context)
    lost = compare(context)
    if restoration and not lost:
        raise Conflict("restoration: expected a log that lacks entries that others have seen, got one that has all")
    if restoration and "people" not in context.roles:
        raise Conflict("restoration: expected a process with the role people, got one without")
    if missing := missing_cosignatures(context):
        raise (lost or missing)[0]
    if lost and not restoration:
        raise Tampered(
            f"{lost[0].message}. If an older state was restored on purpose, start it with: appliance serve "
            "--restoration, and see docs/operations/backup.md",
            code=lost[0].code,
        )
    context.missing_from_log[:], context.awaits_restoration = lost, restoration


def _load(
    ledger: Ledger,
    snapshots: Snapshots,
    code: Code,
    say: Callable[[str], None],
    *,
    after_pause: bool,
    rebuild: bool,
) -> SnapshotContent | None:
    """Load the ledger. If the log does not continue the state snapshot, replay every entry and return the snapshot.

    The log lost entries then, or has others. The caller compares the snapshot's checkpoint as it does those of others.
    """

    def on_progress(folded: int, size: int) -> None:
        say(f"reads its log: {folded:,} of {size:,} entries")

    uncontinued_snapshot = None
    try:
        ledger.load(on_progress)
    except NotContinued as error:
        uncontinued_snapshot = snapshots.read()
        if uncontinued_snapshot is None:
            raise
        if not uncontinued_snapshot.checkpoint:
            raise Tampered(
                f"{error.message}; the state snapshot shows it, but has no checkpoint for a restoration, since another "
                "build wrote it: see docs/operations/backup.md"
            ) from None
        ledger.load(on_progress, with_snapshot=False)
        if not ledger.state.size:
            raise
    if after_pause:
        ledger.clock.accept_pause(ledger.state.last_time)
    if rebuild or is_other_build(ledger, code):
        say("rebuilds the projections")
        ledger.rebuild_projections()
    say("starts")
    return uncontinued_snapshot


def _make_context(
    settings: Settings,
    ledger: Ledger,
    keys: ServiceKeys,
    adapter_signer: Signer,
    code: Code,
    processes: Processes,
    vllm: Path | None,
) -> Context:
    """Return the context; the folders that it needs are created."""
    settings.logs.mkdir(mode=0o700, exist_ok=True)
    cuda = os.path.exists("/dev/nvidiactl")
    shared = settings.shared
    shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    closing = threading.Event()
    keyring = Keyring(settings.keys)
    reserve = open_reserve(settings)
    if settings.database_file is None or reserve.is_on_disk_of(settings.database_file):
        ledger.release_reserve = reserve.release_for
    artifacts, run_steps = Artifacts(settings.home, shared, settings.process), StepStore(shared)
    return Context(
        ledger=ledger,
        sessions=Sessions(
            open_engine(settings.database_url.get_secret_value(), process=settings.process),
            hmac.digest(keyring.read_secret(DIGEST_KEY), b"sessions", "sha256"),
        ),
        artifacts=artifacts,
        checkpoints=Checkpoints(shared),
        steps=run_steps,
        calibrations=CalibrationStore(settings.home),
        local_sets=LocalSets(settings.home, settings.harness_packages),
        progress=Progress(earlier=lambda key: steps.earlier_frames(ledger.state, artifacts, run_steps, key)),
        keyring=keyring,
        keys=keys,
        known_checkpoints=KnownCheckpoints(settings.witnessed),
        adapter_signer=adapter_signer,
        clock=lambda: datetime.now(UTC),
        code=code,
        logs=settings.logs,
        reserve=reserve,
        uploads=Uploads(reserve),
        probes=_probes(settings),
        host=describe_host(cuda),
        device="cuda" if cuda else "cpu",
        bfloat16=cuda or multiplies_bfloat16(),
        import_s=settings.import_minutes * 60,
        import_cpu_s=settings.import_cpu_minutes * 60,
        processes=processes,
        roles=settings.roles,
        runs_on=settings.runs_on,
        prompt_cache_bytes=settings.prompt_cache << 20,
        vllm=vllm,
        closing=closing,
        backup_folder=settings.backup_folder,
        cluster=_cluster(settings, closing),
    )


def _find_vllm(settings: Settings) -> Path | None:
    """Return the folder of vLLM's packages, or None with the builtin engine."""
    packages = settings.vllm_packages if settings.engine == "vllm" else None
    if packages is not None and not (packages / "vllm").is_dir():
        expected = "the site-packages of an environment with vLLM"
        raise BadInput(f"settings, vllm_packages: expected {expected}, got {packages}, which has no folder vllm")
    return packages


def _cluster(settings: Settings, closing: threading.Event) -> Cluster | None:
    """Return the site's Slurm cluster, or None if the settings have none."""
    if settings.slurm_folder is None:
        return None
    resources = Resources(
        partition=settings.slurm_partition,
        account=settings.slurm_account,
        time_limit=settings.slurm_time_limit,
        cpus=settings.slurm_cpus,
        memory=settings.slurm_memory,
        gres=settings.slurm_gres,
        warning_s=settings.slurm_warning,
    )
    site = ClusterSettings(
        settings.slurm_folder,
        resources,
        None if settings.slurm_python is None else str(settings.slurm_python),
        str(settings.slurm_scratch),
        settings.slurm_patience * 60.0,
    )
    commands = Commands(settings.slurm_commands, command_environment())
    return Cluster(site, commands, JobRecords(settings.home / "jobs"), closing)


def _probes(settings: Settings) -> Probes:
    """Return the escape targets that no worker may reach: the keys, a database in a file, and the appliance's home."""
    read = {"read-keys": settings.keys}
    if settings.database_file is not None:
        read["read-database"] = settings.database_file
    return Probes(read=read, write={"write-outside": settings.home})
