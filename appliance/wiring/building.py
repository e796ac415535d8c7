"""What the workflows need, built around a loaded ledger."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from appliance.config.values import Settings
from appliance.errors import BadInput
from appliance.runners.decoys import Probes
from appliance.runners.host import describe_host, multiplies_bfloat16
from appliance.runners.slurm.cluster import Cluster, Resources, Site
from appliance.runners.slurm.commands import Commands, command_environment
from appliance.runners.slurm.records import JobRecords
from appliance.store.database.engine import bring_up_to_date, open_engine
from appliance.store.database.processes import Processes
from appliance.store.database.sessions import Sessions
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.calibrations import Calibrations
from appliance.store.files.checkpoints import Checkpoints
from appliance.store.files.keyring import ADAPTER_KEY, Keyring
from appliance.store.files.local_sets import LocalSets
from appliance.store.files.steps import Steps
from appliance.store.files.witnessed import Witnessed
from appliance.wiring.ledger import check_keyring, is_other_build, open_ledger, read_trust
from appliance.workflows.core.code import describe_code
from appliance.workflows.core.context import Context
from appliance.workflows.core.progress import Progress
from appliance.workflows.runs import steps
from appliance.workflows.witnesses import exchange as witness


@contextmanager
def service(
    settings: Settings,
    say: Callable[[str], None] = lambda _: None,
    *,
    after_pause: bool = False,
    rebuild: bool = False,
    processes: Processes | None = None,
) -> Iterator[Context]:
    """A loaded ledger and all that the workflows need. Tampered when the ledger does not hold. `say` hears how far the
    loading is. `after_pause`: the host's clock is right, however long ago the last entry is. `rebuild`: the projections
    are dropped and made anew. `processes`: where this one has its name."""
    trust = read_trust(settings)
    _check_vllm(settings.vllm_packages)
    keyring = Keyring(settings.keys)
    adapter_signer = keyring.open_signer(ADAPTER_KEY)
    code = describe_code()
    if processes is None:
        processes = Processes()
        bring_up_to_date(settings.database_url, settings.migration_url, say)
    ledger = open_ledger(settings, trust.origin, trust.log_key, keyring, code)
    ledger.fence, ledger.tells_others = processes.fence, bool(processes.others)
    ledger.clock.ahead_ms = processes.ahead_ms
    ledger.load(lambda folded, size: say(f"reads its log: {folded:,} of {size:,} entries"))
    if after_pause:
        ledger.clock.accept_pause(ledger.state.last_time)
    if rebuild or is_other_build(ledger, code):
        say("rebuilds the projections")
        ledger.rebuild_projections()
    say("starts")
    check_keyring(keyring, ledger)
    settings.logs.mkdir(mode=0o700, exist_ok=True)
    cuda = os.path.exists("/dev/nvidiactl")
    shared = settings.shared or settings.home
    shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    artifacts, run_steps = Artifacts(settings.home, shared, settings.process), Steps(shared)
    context = Context(
        ledger=ledger,
        sessions=Sessions(open_engine(settings.database_url, process=settings.process)),
        artifacts=artifacts,
        checkpoints=Checkpoints(shared),
        steps=run_steps,
        calibrations=Calibrations(settings.home),
        local_sets=LocalSets(settings.home, settings.harness_packages),
        progress=Progress(earlier=lambda key: steps.earlier_frames(ledger.state, artifacts, run_steps, key)),
        keyring=keyring,
        witnessed=Witnessed(settings.witnessed),
        adapter_signer=adapter_signer,
        clock=lambda: datetime.now(UTC),
        code=code,
        logs=settings.logs,
        probes=_probes(settings),
        host=describe_host(cuda),
        device="cuda" if cuda else "cpu",
        bfloat16=cuda or multiplies_bfloat16(),
        import_s=settings.import_s,
        import_cpu_s=settings.import_cpu_s,
        processes=processes,
        roles=settings.roles,
        runs_on=settings.runs_on,
        prompt_cache_bytes=settings.prompt_cache_bytes,
        vllm=settings.vllm_packages,
    )
    context.cluster = _cluster(settings, context)
    context.missing_from_log = witness.compare(context) or witness.missing_cosignatures(context)
    if context.missing_from_log:
        ledger.close()
        raise context.missing_from_log[0]
    try:
        yield context
    finally:
        for worker in list(context.workers.values()):
            worker.kill()
        context.sessions.close()
        ledger.close()


def _check_vllm(packages: Path | None) -> None:
    if packages is not None and not (packages / "vllm").is_dir():
        expected = "the site-packages of an environment with vLLM"
        raise BadInput(f"settings, vllm_packages: expected {expected}, got {packages}, which has no folder vllm")


def _cluster(settings: Settings, context: Context) -> Cluster | None:
    """The site's Slurm, where it has one."""
    asked = settings.slurm
    if asked is None:
        return None
    resources = Resources(
        partition=asked.partition,
        account=asked.account,
        time_limit=asked.time_limit,
        cpus=asked.cpus,
        memory=asked.memory,
        gres=asked.gres,
        warning_s=asked.warning_s,
    )
    site = Site(asked.folder, resources, asked.python, asked.scratch, asked.patience_s)
    commands = Commands(asked.commands, command_environment())
    return Cluster(site, commands, JobRecords(settings.home / "jobs"), context.closing)


def _probes(settings: Settings) -> Probes:
    """What no worker may reach: keys, the database where it is a file, the appliance's home."""
    read = {"read-keys": settings.keys}
    if settings.database_file is not None:
        read["read-database"] = settings.database_file
    return Probes(read=read, write={"write-outside": settings.home})
