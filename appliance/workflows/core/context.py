"""The objects that every workflow uses. `wiring` builds them once and passes them to each workflow."""

from __future__ import annotations

import copy
import importlib.metadata
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Generic, ParamSpec

from appliance.access.cedar import CedarPolicies
from appliance.build import build_version
from appliance.domain.core.entry import Entry, Event
from appliance.domain.core.policy import parse_policy
from appliance.domain.core.state import State
from appliance.domain.queries.measures import BackupAges, Expiry, Growth
from appliance.errors import ApplianceError, RateLimited, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.keys import Signer
from appliance.sandbox.escape_targets import Probes
from appliance.sandbox.host import RunningWorker, digest_code
from appliance.slurm.cluster import Cluster
from appliance.store.database.processes import Processes
from appliance.store.database.sessions import Sessions
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.keyring import Keyring
from appliance.store.files.known_checkpoints import KnownCheckpoints
from appliance.store.files.local_sets import LocalSets
from appliance.store.files.run_files import CalibrationStore, Checkpoints, StepStore
from appliance.store.files.space import Reserve
from appliance.store.ledger.keys import ServiceKeys
from appliance.store.ledger.ledger import Ledger
from appliance.workflows.core.contact import Contact
from appliance.workflows.core.jobs import ItemsInProgress, Jobs
from appliance.workflows.core.progress import Progress
from appliance.workflows.core.prompts import HeldAnswers, Prompts
from appliance.workflows.core.uploads import Uploads

_REMEMBERED = 100_000
"""Most digests that are kept (about 20 MB). Each of them cost its signer a signature and the log an entry."""
MOST_A_MINUTE = 10
"""Most refused orders of one signer that become entries in a minute."""
_MINUTE_S = 60.0
MOST_RECORDED_A_MINUTE = 240
"""Most accepted orders and opened sessions of one signer in a minute."""
_AT_ONCE = 2
"""Most orders of one signer that are decided at the same time."""


class RefusedOrders:
    """The digests of refused orders and the times of each signer's last ones, used under the lock of orders.

    They are not stored: after a restart of the service, each order can make one more entry.
    """

    def __init__(self, most: int = _REMEMBERED, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._digests: OrderedDict[str, None] = OrderedDict()
        self._times: dict[str, deque[float]] = {}

    def add(self, digest: str, signer: str) -> None:
        """Add an order that has become an entry, and drop the oldest digests beyond the limit."""
        self._digests[digest] = None
        while len(self._digests) > self._most:
            self._digests.popitem(last=False)
        self._times.setdefault(signer, deque(maxlen=MOST_A_MINUTE)).append(self._clock())

    def is_over_rate(self, signer: str) -> bool:
        """Return True if the signer's refused orders of the last minute have used up their entries."""
        times = self._times.get(signer)
        return times is not None and len(times) == MOST_A_MINUTE and self._clock() - times[0] < _MINUTE_S

    def __contains__(self, digest: object) -> bool:
        return digest in self._digests


class SignerRate:
    """A limit on the accepted orders and opened sessions of one signer in a minute, so that nobody fills the log.

    Only accepted orders and opened sessions count. A sender who repeats another person's signed bytes does not use up
    that person's limit.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[str, deque[float]] = {}

    def check(self, signer: str) -> None:
        """Raise RateLimited if the entries of the signer's last minute have used up the limit."""
        times = self._times.get(signer)
        if times is None or len(times) < MOST_RECORDED_A_MINUTE:
            return
        since = self._clock() - times[0]
        if since < _MINUTE_S:
            expected = f"expected at most {MOST_RECORDED_A_MINUTE} orders and sessions of {signer} in a minute"
            raise RateLimited(f"{expected}, got one more", retry_after_s=int(_MINUTE_S - since) + 1)

    def add(self, signer: str) -> None:
        """Count an order or a session that has become an entry."""
        self._times.setdefault(signer, deque(maxlen=MOST_RECORDED_A_MINUTE)).append(self._clock())


@dataclass
class _Turns:
    free: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_AT_ONCE))
    users: int = 0


class SignerTurns:
    """A limit on the orders of one signer that are decided at the same time. Further ones wait.

    They wait before they need the processor or the lock of orders, so that other signers' orders are not delayed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._signers: dict[str, _Turns] = {}

    @contextmanager
    def take(self, signer: str) -> Iterator[None]:
        """Hold one of the signer's turns for the duration of the context."""
        with self._lock:
            turns = self._signers.setdefault(signer, _Turns())
            turns.users += 1
        try:
            with turns.free:
                yield
        finally:
            with self._lock:
                turns.users -= 1
                if not turns.users:
                    del self._signers[signer]


P = ParamSpec("P")


class Signal(Generic[P]):
    """A call to every connected function, in the order in which they were connected."""

    def __init__(self) -> None:
        self._functions: list[Callable[P, object]] = []

    def connect(self, function: Callable[P, object]) -> None:
        """Add a function to call."""
        self._functions.append(function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call the functions. The error of one ends the call."""
        for function in self._functions:
            function(*args, **kwargs)


ALL_ROLES = frozenset({"people", "units", "runs"})
"""Roles of a process. `people`: orders, imports and samples of adapters. `units`: a gateway with a serving engine.
`runs`: runs, replays and the care of stored data.
"""


@dataclass(frozen=True)
class Code:
    """The code of this service: its version, a digest over its own files, and the digests of its packages."""

    version: str
    digest: str
    packages: dict[str, str]


class PolicyTrials:
    """Trials of proposed policy sets, at most one at a time for each person, since a trial takes seconds of the
    processor.

    The last outcomes are cached, so that the adoption of a tried policy set needs no second trial.
    """

    _MOST_OUTCOMES = 16

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._people: set[str] = set()
        self._outcomes: OrderedDict[Hashable, ApplianceError | None] = OrderedDict()

    def check(self, key: Hashable, trial: Callable[[], None]) -> None:
        """Raise the cached error of this key, or run its trial and cache the outcome.

        Raises:
            Unavailable: The machine cannot run the trial now. This outcome is not cached.
            ApplianceError: The trial refused the policy set.
        """
        with self._lock:
            known, error = key in self._outcomes, self._outcomes.get(key)
        if not known:
            try:
                trial()
            except Unavailable:
                raise
            except ApplianceError as raised:
                error = raised
            with self._lock:
                self._outcomes[key] = error
                while len(self._outcomes) > self._MOST_OUTCOMES:
                    self._outcomes.popitem(last=False)
        if error is not None:
            raise copy.copy(error)

    @contextmanager
    def run_for(self, person: str) -> Iterator[None]:
        """Hold the person's only trial for the duration of the context.

        Raises:
            RateLimited: Another trial of this person is running.
        """
        with self._lock:
            if person in self._people:
                message = (
                    f"policy trial of {person}: expected one at a time, got another; wait until the first has ended"
                )
                raise RateLimited(message, retry_after_s=5)
            self._people.add(person)
        try:
            yield
        finally:
            with self._lock:
                self._people.discard(person)


@dataclass(frozen=True)
class DatabaseMeasures:
    """Values that the heartbeat measures in the database, for alarms and metrics.

    `schema`: findings about tables, triggers and rights. `growth`: None before the first measurement. `bytes`: size of
    the database.
    """

    schema: tuple[str, ...] = ()
    growth: Growth | None = None
    bytes: int = 0


@dataclass(kw_only=True)
class LedgerContext:
    """The ledger, the folders and keys beside it, and the orders of people.

    `closing`: set when the service ends; workers that it stops continue at the next start. `missing_from_log`: entries
    that witnesses have seen and the ledger lacks; while the list has any, no adapter is admitted. `awaits_restoration`:
    the service was started to restore such a log, and accepts the orders for that only. `stalled`: True if a
    heartbeat did not end in time. `began`: the time at which this service started. `processes`: this process and the
    other processes of its log.
    """

    ledger: Ledger
    sessions: Sessions
    artifacts: Artifacts
    keyring: Keyring
    keys: ServiceKeys
    known_checkpoints: KnownCheckpoints
    clock: Callable[[], datetime]
    code: Code
    logs: Path
    reserve: Reserve | None = None
    """The reserve on the home's disk. Only a service process has it."""
    uploads: Uploads = field(default_factory=Uploads)
    order_lock: threading.RLock = field(default_factory=threading.RLock)
    refused_orders: RefusedOrders = field(default_factory=RefusedOrders)
    signer_turns: SignerTurns = field(default_factory=SignerTurns)
    signer_rate: SignerRate = field(default_factory=SignerRate)
    policy_trials: PolicyTrials = field(default_factory=PolicyTrials)
    verifying: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)
    recheck_answers: Signal[[]] = field(default_factory=Signal)
    """Called after a change that can end the admission of an adapter that serves."""
    appended: Signal[[Entry, Event]] = field(default_factory=Signal)
    """Called with each entry once it is durable."""
    processes: Processes = field(default_factory=Processes)
    contact: Contact = field(default_factory=Contact)
    roles: frozenset[str] = ALL_ROLES
    missing_from_log: list[Tampered] = field(default_factory=list)
    awaits_restoration: bool = False
    stalled: bool = False
    began: str = field(default_factory=lambda: encode_time(datetime.now(UTC)))
    certificates: tuple[Expiry, ...] = ()
    """The certificates that the listeners use, with their ends."""
    database_measures: DatabaseMeasures = DatabaseMeasures()
    backup_folder: Path | None = None
    """The folder of backups that the settings name."""
    backups: BackupAges | None = None
    """The ages of the backups in it, once they were measured."""
    logged_alarms: frozenset[str] = frozenset()
    """Codes of the warnings that the log has since they began."""
    _site: tuple[str, CedarPolicies] | None = None

    def cedar_policies(self) -> CedarPolicies:
        """Return the valid policy set, parsed once per adoption."""
        digest = self.ledger.state.site.policy
        if self._site is None or self._site[0] != digest:
            policy = parse_policy(self.ledger.document(digest))
            self._site = (digest, CedarPolicies(policy))
        return self._site[1]

    @property
    def process(self) -> str | None:
        """Return the name of this process, or None if it has none."""
        return self.processes.name or None

    def refresh(self) -> bool:
        """Read the entries of other processes. Return True if there were new ones."""
        return not self.processes.alone and self.ledger.refresh()

    def now(self, state: State) -> str:
        """Return the time that the rules use: the later of the clock and the last entry."""
        return max(encode_time(self.clock()), state.last_time)


@dataclass(kw_only=True)
class WorkerContext(LedgerContext):
    """The ledger, and the objects with which a workflow starts workers in the sandbox.

    `probes`: escape targets that a worker must fail to reach. `host`: a description of the machine. `device`: the
    device for training and serving.
    """

    probes: Probes
    host: str
    device: str
    bfloat16: bool
    vllm: Path | None = None
    """Folder of vLLM's packages, if vLLM is the engine."""
    workers: dict[str, RunningWorker] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)


@dataclass(kw_only=True)
class RunContext(WorkerContext):
    """The queues and stores of imports, training runs, replays and checks.

    `import_s`, `import_cpu_s`: limits of a small import in seconds by the clock and of CPU time; larger imports get
    more.
    """

    checkpoints: Checkpoints
    steps: StepStore
    calibrations: CalibrationStore
    local_sets: LocalSets
    adapter_signer: Signer
    import_s: float = 600.0
    import_cpu_s: float = 300.0
    bases: Jobs = field(default_factory=lambda: Jobs("bases"))
    datasets: Jobs = field(default_factory=lambda: Jobs("datasets"))
    checks: Jobs = field(default_factory=lambda: Jobs("checks"))
    runs: Jobs = field(default_factory=lambda: Jobs("runs"))
    cluster: Cluster | None = None
    cluster_runs: Jobs = field(default_factory=lambda: Jobs("runs on Slurm", threads=8))
    runs_on: str = "local"
    """Default place of training for runs whose order does not choose one."""
    items_in_progress: ItemsInProgress = field(default_factory=ItemsInProgress)
    runs_here: bool = True
    """True if this process has the queue of runs. Exactly one of several processes has it."""


@dataclass(kw_only=True)
class ServingContext(WorkerContext):
    """The adapters that serve units, and the sample views and trials of reviewers."""

    prompt_cache_bytes: int = 256 << 20
    """Bytes of processed prompts that each of the appliance's own engines caches."""
    previews: Jobs = field(default_factory=lambda: Jobs("previews"))
    prompts: Prompts = field(default_factory=Prompts)
    answers: HeldAnswers = field(default_factory=HeldAnswers)
    refused_admissions: dict[tuple[str, str], Event] = field(default_factory=dict)
    """The last refusal recorded since a load succeeded, by unit and served model."""


@dataclass(kw_only=True)
class Context(RunContext, ServingContext):
    """All parts. `wiring` builds them once; a function takes the part that it needs."""

    @property
    def busy(self) -> bool:
        """Return True if an import, a run or a sample of an adapter is running or queued."""
        return any(jobs.busy for jobs in self.jobs)

    @property
    def jobs(self) -> tuple[Jobs, ...]:
        """Return every queue, in the order in which the service waits for them when it ends."""
        return self.runs, self.cluster_runs, self.bases, self.datasets, self.checks, self.previews


Frame = dict[str, Any]


_PACKAGES = (
    "bitsandbytes",
    "cryptography",
    "gguf",
    "numpy",
    "peft",
    "pydantic",
    "safetensors",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "transformers",
)


@cache
def describe_code() -> Code:
    """Return the build's version, a digest over its source files, and the digest of each package's RECORD."""
    packages = {}
    for name in _PACKAGES:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        record = distribution.read_text("RECORD") or ""
        packages[f"{name}@{distribution.version}"] = digest_bytes(record.encode())
    return Code(build_version(), digest_code(), packages)
