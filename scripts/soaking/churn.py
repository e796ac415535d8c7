"""Changes and failures while the units send requests: releases, revocations, database, worker, service."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx

from appliance.domain.evaluation.quality import VLLM
from scripts.kit.appliance import Refused
from scripts.kit.hosts import ended, start_process
from scripts.kit.postgres import Server
from scripts.soaking.deployment import BUILTIN, SERVED_MODEL, Deployment, Gateway
from scripts.soaking.memory import find_worker
from scripts.soaking.record import Record

DECK = ["activate"] * 5 + ["roll back"] * 3 + ["reject"] * 2 + ["revoke"] * 2 + ["database", "worker killed"]
HOSTS_DECK = [card for card in DECK if card != "worker killed"] + ["worker killed", "worker stopped"]
RARE = "power cut"
WORKERS = {BUILTIN: "soaking.breaking", VLLM: "soaking.breaking_vllm"}
STOPPED_S = 3.0
FAULT_S = 0.7
START_S = 240.0


class Churn:
    """Plays one card at a time; every card that a deck holds is played before any comes again."""

    def __init__(
        self, deployed: Deployment, record: Record, seed: int, database: Server | None, turn: threading.Lock
    ) -> None:
        """`turn` is held while a gateway is down on purpose."""
        self._turn = turn
        self._deployment, self._record, self._database = deployed, record, database
        self._chance = random.Random(seed)
        self._deck: list[str] = []
        self._current = {unit: names[0] for unit, names in deployed.adapters.items()}
        self._past: dict[str, list[str]] = {unit: [names[0]] for unit, names in deployed.adapters.items()}
        self._fresh = {unit: list(names[1:]) for unit, names in deployed.adapters.items()}

    def play(self, card: str = "") -> None:
        """One change; without a name the next of the deck. What the service refuses while it is broken is counted."""
        if not self._deck:
            deck = HOSTS_DECK if self._deployment.has_hosts else DECK
            self._deck = self._chance.sample(deck, len(deck))
        card = card or self._deck.pop()
        unit = self._chance.choice(self._deployment.units)
        acts: dict[str, Callable[[str], None]] = {
            "activate": self._activate,
            "roll back": self._roll_back,
            "reject": self._reject,
            "revoke": self._revoke,
            "database": self._break_database,
            "worker killed": self._kill_worker,
            "worker stopped": self._stop_worker,
            RARE: self._cut_power,
        }
        try:
            acts[card](unit)
        except Refused as error:
            self._record.violate(f"{card} for {unit}: expected the order to stand, got {error}")

    def _list_active(self, unit: str) -> list[str]:
        return [name for name in self._past[unit] if name not in self._record.revoked and name != self._current[unit]]

    def _activate(self, unit: str) -> None:
        """Activate a version that never answered, or roll back to an earlier one if there is none."""
        if not self._fresh[unit]:
            return self._roll_back(unit)
        name = self._fresh[unit].pop(0)
        self._deployment.approve(unit, name)
        self._deployment.activate(unit, name)
        self._past[unit].append(name)
        self._current[unit] = name
        self._record.count("activations")
        return None

    def _roll_back(self, unit: str) -> None:
        if not (active := self._list_active(unit)):
            return
        name, began = self._chance.choice(active), time.monotonic()
        self._deployment.roll_back(unit, name)
        self._current[unit] = name
        self._record.count("rollbacks")
        with suppress(Refused, httpx.TransportError):  # by a fault that the worker injects, or at a gateway that ended
            gateway = self._chance.choice(self._deployment.gateways)
            answer = gateway.site.chat(unit, SERVED_MODEL, max_tokens=1, temperature=0)
            if answer["system_fingerprint"] == self._deployment.manifests[name]:
                self._record.time("rollback, order to first token", time.monotonic() - began)

    def _reject(self, unit: str) -> None:
        """Reject and approve the current version as one of its reviewers."""
        name = self._current[unit]
        if name in self._record.revoked:
            return
        self._deployment.site.review("rob", unit, name, decision="reject")
        self._record.count("rejections")
        time.sleep(0.3)
        self._deployment.site.review("rob", unit, name)

    def _revoke(self, unit: str) -> None:
        """Revoke the active version, if another version can become active after it."""
        name = self._current[unit]
        if name in self._record.revoked or not (self._fresh[unit] or self._list_active(unit)):
            return
        began = time.monotonic()
        self._deployment.revoke(name)
        self._record.revoked[name] = time.monotonic()
        self._record.time("revoke, order to its answer", time.monotonic() - began)
        self._record.count("revocations")
        time.sleep(0.3)
        self._activate(unit)

    def _break_database(self, unit: str) -> None:
        """PostgreSQL is stopped and started; with SQLite the disk is full."""
        if self._database is not None:
            self._database.stop()
            time.sleep(FAULT_S)
            self._database.start()
            self._record.count("injected: database stopped")
        else:
            with self._full_disk():
                time.sleep(FAULT_S)
            self._record.count("injected: disk full")
        self._wait_until_written()

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        """No file of the service can grow, nor be written behind its first page."""
        service = self._deployment.site.service
        assert service is not None
        subprocess.run(["prlimit", f"--pid={service.pid}", "--fsize=4096:"], check=True)
        try:
            yield
        finally:
            subprocess.run(["prlimit", f"--pid={service.pid}", "--fsize=unlimited:"], check=True)

    def _wait_until_written(self) -> None:
        """Wait until an order that changes only the ledger's length is recorded again."""
        began = time.monotonic()
        unit = self._deployment.units[0]
        while True:
            try:
                self._deployment.site.review("rita", unit, self._current[unit])
                return
            except Refused as error:
                if time.monotonic() - began > 30:
                    raise
                if error.status != 503:
                    self._record.violate(f"database: expected the order refused with 503, got {error}")
                time.sleep(0.1)

    def _find_worker(self, gateway: Gateway) -> int:
        """0 where none is started in time."""
        began = time.monotonic()
        service = gateway.site.service
        assert service is not None
        while not (worker := find_worker(service.pid, WORKERS[gateway.engine])):
            if ended(gateway.site):
                return 0
            if time.monotonic() - began > START_S:
                self._record.violate(f"worker: expected one within {START_S:.0f} s, got none")
                break
            time.sleep(0.1)  # it is being started
        return worker

    def _kill_worker(self, unit: str) -> None:
        gateway = self._chance.choice(self._deployment.gateways)
        if worker := self._find_worker(gateway):
            os.kill(worker, signal.SIGKILL)
            self._record.restarting.add(gateway.name)
            self._record.count("injected: worker killed")

    def _stop_worker(self, unit: str) -> None:
        """Pause the worker for some seconds; then it continues."""
        if worker := self._find_worker(self._chance.choice(self._deployment.gateways)):
            os.kill(worker, signal.SIGSTOP)
            time.sleep(STOPPED_S)
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)
            self._record.count("injected: worker stopped")

    def _cut_power(self, unit: str) -> None:
        gateway = self._chance.choice(self._deployment.gateways)
        with self._turn:
            self._record.goes_down(gateway.name)
            gateway.site.kill()
            start_process(gateway.site)
            self._record.restarting.add(gateway.name)
            self._record.is_up(gateway.name)
        self._record.count("injected: power cut")

    def mend(self) -> None:
        """In the end every unit has a valid release."""
        for unit in self._deployment.units:
            if self._current[unit] in self._record.revoked:
                self._activate(unit)

    def released(self) -> dict[str, str]:
        """Today's version by unit."""
        return dict(self._current)


__all__ = ["RARE", "SERVED_MODEL", "WORKERS", "Churn"]
