"""What every workflow works with: built once by wiring, handed to each story."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.access.cedar import SitePolicies
from appliance.domain.core.entry import Entry
from appliance.domain.core.event import Event
from appliance.domain.core.policy import parse_policy
from appliance.domain.core.state import State
from appliance.errors import Tampered
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.keys import Signer
from appliance.runners.decoys import Probes
from appliance.runners.running import Running
from appliance.runners.slurm.cluster import Cluster
from appliance.store.database.processes import Processes
from appliance.store.database.sessions import Sessions
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.calibrations import Calibrations
from appliance.store.files.checkpoints import Checkpoints
from appliance.store.files.keyring import Keyring
from appliance.store.files.local_sets import LocalSets
from appliance.store.files.steps import Steps
from appliance.store.files.witnessed import Witnessed
from appliance.store.ledger.ledger import Ledger
from appliance.workflows.core.contact import Contact
from appliance.workflows.core.jobs import InHand, Jobs
from appliance.workflows.core.progress import Progress
from appliance.workflows.core.prompts import Prompts
from appliance.workflows.core.refused import RefusedOrders
from appliance.workflows.core.uploads import Uploads

ALL_ROLES = frozenset({"people", "units", "runs"})
"""What a process is for: people and their orders, imports and looks; a gateway with an engine; runs, replays and the
care of what is stored."""


@dataclass(frozen=True)
class Code:
    """Which code this service runs: its version and a digest over its own files."""

    version: str
    digest: str
    packages: dict[str, str]


@dataclass
class Context:
    """`probes`: what a worker must fail to reach. `host`: the machine's kind, in words. `device`: where
    training runs. `closing`: set when the service
    ends, so that what its workers leave open goes on at the next start. `appended`: told of each entry once it is
    durable. `missing_from_log`: what witnesses have seen and
    the ledger does not hold; while there is anything, nothing is admitted. `stalled`: a heartbeat has not ended
    in time. `began`: when this service started. `processes`: this one among those of its log.
    `import_s`, `import_cpu_s`: what a small import may take by the clock and of the CPU; a larger one may
    take more."""

    ledger: Ledger
    sessions: Sessions
    artifacts: Artifacts
    checkpoints: Checkpoints
    steps: Steps
    calibrations: Calibrations
    local_sets: LocalSets
    keyring: Keyring
    witnessed: Witnessed
    adapter_signer: Signer
    clock: Callable[[], datetime]
    code: Code
    logs: Path
    probes: Probes
    host: str
    device: str
    bfloat16: bool
    progress: Progress = field(default_factory=Progress)
    import_s: float = 600.0
    import_cpu_s: float = 300.0
    prompt_cache_bytes: int = 256 << 20
    """What each of the appliance's own engines keeps of prompts that it has read."""
    vllm: Path | None = None
    """Where vLLM's packages are, if it is the engine."""
    bases: Jobs = field(default_factory=lambda: Jobs("bases"))
    datasets: Jobs = field(default_factory=lambda: Jobs("datasets"))
    checks: Jobs = field(default_factory=lambda: Jobs("checks"))
    runs: Jobs = field(default_factory=lambda: Jobs("runs"))
    looks: Jobs = field(default_factory=lambda: Jobs("looks"))
    cluster: Cluster | None = None
    cluster_runs: Jobs = field(default_factory=lambda: Jobs("runs on Slurm", threads=8))
    runs_on: str = "here"
    """Where runs train whose order does not choose."""
    in_hand: InHand = field(default_factory=InHand)
    prompts: Prompts = field(default_factory=Prompts)
    uploads: Uploads = field(default_factory=Uploads)
    workers: dict[str, Running] = field(default_factory=dict)
    order_lock: threading.RLock = field(default_factory=threading.RLock)
    refused_orders: RefusedOrders = field(default_factory=RefusedOrders)
    verifying: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)
    recheck_answers: Callable[[], None] = lambda: None
    appended: Callable[[Entry, Event], None] = lambda entry, body: None
    examine: Callable[[], Iterable[Any]] = tuple
    """The findings of `appliance doctor`, made when they are asked for."""
    usage: Callable[[str], tuple[Sequence[Any], Sequence[Any]]] = lambda unit: ((), ())
    """A unit's limits and what is left of them, and what it was answered since the start."""
    processes: Processes = field(default_factory=Processes)
    contact: Contact = field(default_factory=Contact)
    roles: frozenset[str] = ALL_ROLES
    runs_here: bool = True
    """Whether the queue of runs is this process's now; of several, one has it."""
    missing_from_log: list[Tampered] = field(default_factory=list)
    stalled: bool = False
    began: str = field(default_factory=lambda: encode_time(datetime.now(UTC)))
    _site: tuple[str, SitePolicies] | None = None

    def site_policies(self) -> SitePolicies:
        """The policy set in force, parsed once per adoption."""
        digest = self.ledger.state.site.policy
        if self._site is None or self._site[0] != digest:
            policy = parse_policy(self.ledger.document(digest))
            self._site = (digest, SitePolicies(policy))
        return self._site[1]

    @property
    def process(self) -> str | None:
        """This process's name, where it has one."""
        return self.processes.name or None

    def refresh(self) -> bool:
        """Whether other processes have appended anything that was not known here."""
        return not self.processes.alone and self.ledger.refresh()

    def now(self, state: State) -> str:
        """The time that rules count with: the later of the clock and the last entry."""
        return max(encode_time(self.clock()), state.last_time)

    @property
    def busy(self) -> bool:
        """Whether an import, a run or a look is under way or waits."""
        return any(jobs.busy for jobs in self.jobs)

    @property
    def jobs(self) -> tuple[Jobs, ...]:
        """Every queue, in the order in which the service's end waits for them."""
        return self.runs, self.cluster_runs, self.bases, self.datasets, self.checks, self.looks


Frame = dict[str, Any]
