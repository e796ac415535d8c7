"""Starts a gateway again that has ended by itself, as the supervisor of a site does."""

from __future__ import annotations

import threading
from contextlib import suppress

from scripts.kit.hosts import ended, is_open, start_process
from scripts.soaking.deployment import Deployment, Gateway
from scripts.soaking.record import Record

EVERY_S = 1.0
SHUT_S = 5


class Supervisor(threading.Thread):
    """A thread that restarts gateways. A test that ends a gateway on purpose holds `turn` until it is up again."""

    def __init__(self, deployed: Deployment, record: Record) -> None:
        super().__init__(name="supervisor", daemon=True)
        self.turn = threading.Lock()
        self._deployment, self._record = deployed, record
        self._over = threading.Event()
        self._shut: dict[str, int] = {}

    def run(self) -> None:
        while not self._over.wait(EVERY_S):
            for gateway in self._deployment.gateways:
                with self.turn:
                    self._look_at(gateway)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _look_at(self, gateway: Gateway) -> None:
        shut = 0 if is_open(gateway.site) else self._shut.get(gateway.name, 0) + 1
        self._shut[gateway.name] = shut
        if not ended(gateway.site) and shut < SHUT_S:
            return
        self._record.goes_down(gateway.name)
        self._record.restarting.add(gateway.name)
        with suppress(OSError):
            gateway.site.kill()
        start_process(gateway.site)
        self._shut[gateway.name] = 0
        self._record.is_up(gateway.name)
        self._record.count("gateways that ended and were started again")
