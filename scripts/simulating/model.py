"""A site of many hosts, in time: the ledger's turns, the way of an entry to every host, and what a host does then.

Times are seconds. Every cost names the bench that it was read from, or says that it is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    turn_s: float = 0.70e-3
    """Seconds of an append without its entry: lock, catch-up, signature, commit. `bench ledger`: 1,245 appends a second
    by one writer on PostgreSQL."""
    entry_s: float = 0.107e-3
    """Each entry of a turn. `bench ledger`, 64 writers on PostgreSQL: 8,522 a second."""
    fold_s: float = 43e-6
    """An entry that another process appended. `bench ledger`, replay at a start."""
    network_s: float = 0.25e-3
    """One way between two hosts of a machine room, on average; exponential. Assumed."""
    wake_s: float = 15e-6
    """PostgreSQL wakes one listener, one after another. Measured: 0.5 ms of its processor for 30 listeners."""
    loss: float = 3e-4
    """Share of notices that a host does not get. Assumed: a connection breaks once an hour, for a second."""
    poll_s: float = 1.0
    """A host that was told nothing asks. The service's setting."""
    stall: float = 1e-3
    """Share of notices that find a host's process stalled (garbage, disk, a full core). Assumed."""
    stall_s: float = 0.2
    """Mean seconds of such a stall; exponential. Assumed."""
    unload_s: float = 30e-3
    """A worker drops an adapter: the end of its step, and the slot. `bench serve`, a step of sixteen streams."""
    core_wait_s: float = 0.0
    """Mean seconds for which a process waits for a core before each act; exponential. 0: it has cores of its own.
    `bench revocation` on a machine that other programs keep busy: 0.2 s."""
    silence_s: float = 5.0
    """A gateway that has not reached the ledger for so long answers nobody. The service's rule."""


@dataclass(frozen=True)
class Site:
    """`hosts` gateways with `workers` engines each; `requests` a second at each. Two entries a request."""

    hosts: int
    requests: float
    workers: int = 1
    appender: bool = False
    """Hosts hand their entries to one process, which gathers them and puts all that wait into one turn."""
    gather_s: float = 20e-3
    """Seconds for which an appender gathers."""

    @property
    def entries(self) -> float:
        """A second, of all hosts."""
        return 2 * self.hosts * self.requests


@dataclass(frozen=True)
class Outcome:
    """`busy`: the share of time in which the ledger is taken; from 1 on, work piles up without an end.

    `last_token` and `unloaded`: seconds from the order to the last token at any host, and until every engine has
    confirmed that the adapter is unloaded, for each revocation; empty where the ledger, a host or the notices cannot
    keep up.
    """

    site: Site
    busy: float
    folding: float
    """Share of one core that each host needs to follow the ledger."""
    waking: float
    """Share of one core that PostgreSQL needs to wake the listeners."""
    last_token: Times
    unloaded: Times

    @property
    def bottleneck(self) -> str:
        shares = {"the ledger's turns": self.busy, "folding": self.folding, "notices": self.waking}
        return max(shares, key=lambda name: shares[name])

    @property
    def keeps_up(self) -> bool:
        return max(self.busy, self.folding, self.waking) < 1


def simulate(site: Site, costs: Costs, seed: int, revocations: int = 1_000) -> Outcome:
    """ValueError for a site without hosts or requests, or for a wait that is negative."""
    if site.hosts < 1 or site.requests <= 0 or site.workers < 1 or revocations < 1:
        raise ValueError(f"site: expected hosts, requests, workers and revocations above 0, got {site}, {revocations}")
    if costs.core_wait_s < 0:
        raise ValueError(f"site: expected a wait for a core of 0 or more, got {costs.core_wait_s} s")
    random = np.random.default_rng(seed)
    turns, entries = _turns(site, costs)
    busy = turns * costs.turn_s + entries * costs.entry_s
    folding, waking = entries * costs.fold_s, turns * site.hosts * costs.wake_s
    nothing = np.empty(0)
    if max(busy, folding, waking) >= 1:
        return Outcome(site, busy, folding, waking, nothing, nothing)
    last_token, unloaded = [], []
    for wait in _waits(random, site, costs, revocations):
        arrived = wait + _arrivals(random, site, costs, folding)
        # A gateway sends no token once it has read the revocation; its workers are told at once.
        last_token.append(float(arrived.max()))
        told = random.exponential(costs.network_s, (2, site.workers, site.hosts)).sum(axis=0)
        dropped = random.uniform(0, costs.unload_s, (site.workers, site.hosts)) + costs.unload_s
        if costs.core_wait_s:  # the worker, and the gateway that records what it says
            dropped += random.exponential(costs.core_wait_s, (2, site.workers, site.hosts)).sum(axis=0)
        unloaded.append(float((arrived + told + dropped).max()))
    return Outcome(site, busy, folding, waking, np.array(last_token), np.array(unloaded))


def _turns(site: Site, costs: Costs) -> tuple[float, float]:
    """Return turns and entries a second. A turn takes one process's waiting entries; with an appender, all."""
    entries, each = site.entries, site.entries / site.hosts
    if site.appender:
        return entries / max(1.0, entries * site.gather_s), entries
    # While all others take a turn, each host gathers the entries of its next one.
    gathered = 1.0
    for _ in range(100):
        gathered = max(1.0, each * site.hosts * (costs.turn_s + gathered * costs.entry_s))
    return entries / gathered, entries


def _waits(random: np.random.Generator, site: Site, costs: Costs, count: int) -> Iterator[float]:
    """From a revocation's order until its entry is durable: a queue of turns, simulated arrival by arrival."""
    turns, entries = _turns(site, costs)
    service = costs.turn_s + entries / turns * costs.entry_s
    waiting = 0.0
    for _ in range(50):  # from an empty queue to its usual length
        for gap in random.exponential(1 / turns, 20):
            waiting = max(0.0, waiting + service - gap)
    for _ in range(count):
        for gap in random.exponential(1 / turns, 20):
            waiting = max(0.0, waiting + service - gap)
        hop = float(random.exponential(costs.network_s, 2).sum()) if site.appender else 0.0
        hop += float(random.uniform(0, site.gather_s)) if site.appender else 0.0
        hop += float(random.exponential(costs.core_wait_s)) if costs.core_wait_s else 0.0
        yield hop + waiting + costs.turn_s + costs.entry_s


def _arrivals(random: np.random.Generator, site: Site, costs: Costs, folding: float) -> Times:
    """From the commit until each host has read the entry."""
    hosts = site.hosts
    woken = np.arange(1, hosts + 1) * costs.wake_s
    # Behind the notice: the query and its answer, the entries before it, and a stall now and then.
    read = random.exponential(costs.network_s, (3, hosts)).sum(axis=0)
    before = random.exponential(costs.fold_s * folding / (2 * (1 - folding)) + costs.fold_s, hosts)
    stalled = np.where(random.random(hosts) < costs.stall, random.exponential(costs.stall_s, hosts), 0.0)
    noticed = np.where(random.random(hosts) < costs.loss, random.uniform(0, costs.poll_s, hosts), woken)
    scheduled = random.exponential(costs.core_wait_s, hosts) if costs.core_wait_s else 0.0
    return np.minimum(noticed + read + before + stalled + scheduled, costs.silence_s)
