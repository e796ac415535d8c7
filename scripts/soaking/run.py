"""One soak: a deployment, its clients, the changes between them, and the final checks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.domain.evaluation.quality import VLLM
from scripts.kit.appliance import Appliance
from scripts.kit.ports import free_port
from scripts.kit.postgres import APPLICATION, Server
from scripts.soaking.churn import RARE, WORKERS, Churn
from scripts.soaking.clients import Client
from scripts.soaking.deployment import BUILTIN, Deployment, build_site, settle
from scripts.soaking.evaluate import evaluate
from scripts.soaking.memory import Growth, Memory, age_s, find_worker
from scripts.soaking.questions import QUESTIONS, SHORT
from scripts.soaking.record import Record
from scripts.soaking.supervisor import Supervisor
from scripts.soaking.worst import ask_worst, compare_calm

LAUNCHER = ("-m", "scripts.soaking.faulty")
INJECTED = "soak, injected: "
HOSTS_START_S = 120.0
"""Several workers start at once, on the same cores; what a start takes is no leak."""


@dataclass(frozen=True)
class Plan:
    """`cards`: changes in all; none: one for every 60 requests, 24 at least. `calm_s`: of each of two phases before
    them, in which the last unit asks for nothing, and then for the worst of everything, as it does from then on; none:
    it asks as the others do. `engines`: of each gateway; one alone is the whole appliance in one process."""

    requests: int
    seed: int
    seconds: float
    units: int = 8
    clients: int = 3
    cards: int = 0
    calm_s: float = 0
    engines: tuple[str, ...] = (BUILTIN,)

    @property
    def changes(self) -> int:
        return self.cards or max(24, self.requests // 60)

    @property
    def versions(self) -> int:
        """So many adapters a unit that it can lose one at every revocation."""
        return 3 + self.changes // 40


@dataclass
class Result:
    plan: Plan
    database: str
    record: Record
    entries: int
    seconds: float
    growths: list[Growth] = field(default_factory=list)

    @property
    def violations(self) -> list[str]:
        leaks = [
            f"memory of the {g.name}: expected no growth, got {g.start_bytes >> 20} to {g.end_bytes >> 20} MiB"
            for g in self.growths
            if g.is_leak
        ]
        return self.record.violations + leaks

    def lines(self) -> Iterator[str]:
        """Yield the figures as printed lines."""
        engines = ", ".join(self.plan.engines)
        yield f"soak on {self.database}: {self.plan.units} units, seed {self.plan.seed}, {self.seconds:.0f} s of asking"
        yield f"  gateways: {engines}"
        yield f"  on {name_processor()}"
        for name, count in sorted(self.record.figures.items()):
            yield f"  {name:<44} {count:>9,}"
        for name, seconds in sorted(self.record.latencies.items()):
            ordered = sorted(seconds)
            middle, high = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
            yield f"  {name:<44} {middle * 1000:>9.0f} ms, p99 {high * 1000:.0f} ms, of {len(ordered):,}"
        for growth in self.growths:
            start, end = growth.start_bytes >> 20, growth.end_bytes >> 20
            told = f"{start:>9,} MiB, {end:,} MiB after {growth.requests:,} requests more"
            yield f"  memory of the {growth.name:<30} {told}"
        yield f"  {'entries verified by appliance-verify':<44} {self.entries:>9,}"
        yield f"  {'violations':<44} {len(self.violations):>9,}"
        yield from (f"  ! {violation}" for violation in self.violations[:50])


def run(place: Path, plan: Plan, database: Server | None) -> Result:
    """Build a site and soak it."""
    environment = {} if database is None else use_database(database)
    return soak(build_site(place, free_port(), engines=plan.engines, **environment), place, plan, database)


def use_database(server: Server) -> dict[str, str]:
    """Create a database, and return the settings of a site that uses it.

    As at a site, the service has a role of its own, and the owner migrates.
    """
    server.execute(f"CREATE ROLE {APPLICATION} LOGIN PASSWORD '{server.passwords[APPLICATION]}'")
    name = server.create_database()
    return {
        "APPLIANCE_DATABASE_URL": server.url(name, APPLICATION),
        "APPLIANCE_MIGRATION_URL": server.url(name),
    }


def soak(
    site: Appliance, place: Path, plan: Plan, database: Server | None, *, launcher: tuple[str, ...] = LAUNCHER
) -> Result:
    """On a running site with a base and a dataset; the site is stopped afterwards."""
    try:
        questions = SHORT if VLLM in plan.engines else QUESTIONS
        deployed = settle(site, plan.units, plan.versions, engines=plan.engines, questions=questions)
    except BaseException:
        if site.service is not None:
            site.stop()
        raise
    return soak_deployed(deployed, place, plan, database, launcher=launcher)


def soak_deployed(
    deployed: Deployment, place: Path, plan: Plan, database: Server | None, *, launcher: tuple[str, ...] = LAUNCHER
) -> Result:
    """Soak a deployment, and stop it afterwards."""
    record = Record()
    try:
        if plan.calm_s:
            compare_calm(deployed, record, plan.calm_s)
        deployed.stop()
        for gateway in deployed.gateways:
            gateway.site.launcher = launcher
        deployed.start()
        record.restarting |= {gateway.name for gateway in deployed.gateways if gateway.engine == VLLM}
        supervisor = Supervisor(deployed, record)
        churn = Churn(deployed, record, plan.seed, database, supervisor.turn)
        memory = Memory(lambda: _pids(deployed), lambda: record.figures["requests"])
        memory.start()
        if deployed.has_hosts:
            supervisor.start()
        began = time.monotonic()
        with ask_worst(deployed, record, deployed.units[-1], 2 if plan.calm_s else 0):
            _ask_all(deployed, record, churn, plan)
        seconds, growths = time.monotonic() - began, memory.stop()
        churn.mend()
        if deployed.has_hosts:
            supervisor.stop()
        entries = evaluate(deployed, record, churn.released(), place)
        _count_injected(deployed, record)
    finally:
        deployed.stop()
    return Result(plan, "sqlite" if database is None else "postgresql", record, entries, seconds, growths)


def _ask_all(deployed: Deployment, record: Record, churn: Churn, plan: Plan) -> None:
    """Let the clients ask, and play a change each time a share of the requests was sent."""
    lock, wanted, played = threading.Lock(), 0, 0
    ends = time.monotonic() + plan.seconds

    def ticket() -> bool:
        """Return True to ask once more, at most one change ahead."""
        nonlocal wanted
        with lock:
            while wanted < plan.requests and wanted * (plan.changes + 1) >= plan.requests * (played + 2):
                time.sleep(0.01)
            wanted += 1
            return wanted <= plan.requests and time.monotonic() < ends

    units = deployed.units[:-1] if plan.calm_s else deployed.units
    seeds = range(plan.seed * 1000, plan.seed * 1000 + len(units) * plan.clients)
    clients = [Client(deployed, record, units[n % len(units)], seed, ticket) for n, seed in enumerate(seeds)]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        time.sleep(0.02)
        if played < plan.changes and wanted * (plan.changes + 1) >= plan.requests * (played + 1):
            # In the second half the service lives on, so that a growth of its memory would show.
            churn.play(RARE if played % 20 == 4 and played < plan.changes // 2 else "")
            played += 1


def _pids(deployed: Deployment) -> dict[str, int]:
    found = {}
    for gateway in deployed.gateways:
        service = gateway.site.service
        if service is None or service.poll() is not None:
            continue
        found[gateway.name] = service.pid
        worker = find_worker(service.pid, WORKERS[gateway.engine])
        if not deployed.has_hosts or age_s(worker) > HOSTS_START_S:
            found["serving worker" if not deployed.has_hosts else f"serving worker of {gateway.name}"] = worker
    return found


def _count_injected(deployed: Deployment, record: Record) -> None:
    logs = {gateway.site.settings.logs for gateway in deployed.gateways}
    for path in (path for folder in logs for path in folder.glob("serve-*.log")):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith(INJECTED):
                record.count(f"injected: {line.removeprefix(INJECTED)} in a batch")


def name_processor() -> str:
    """As the kernel names it, and how many of its threads there are."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "no known name")
    return f"{len(os.sched_getaffinity(0))} threads of {found}"
