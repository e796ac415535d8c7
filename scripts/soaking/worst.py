"""A unit that sends the most expensive requests that are allowed, and some beyond, and what that costs the others."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import httpx

from scripts.soaking.clients import TIMEOUT_S, TOKEN_S, Client
from scripts.soaking.deployment import SERVED_MODEL, Deployment
from scripts.soaking.record import Record

CLIENTS = 8
LEAVE_S = 0.3
ALONE, BESIDE = "calm: answers without the worst unit", "calm: answers beside the worst unit"
MOST = 2.0
"""The p99 of the others' answers beside the worst unit, as a multiple of that without it."""
LEAST_ANSWERS = 100
ROUNDS = 3
"""In turns, so that what else the machine does falls on both."""
CHAT, CLASSIFY = "/v1/chat/completions", "/v1/classify"
HELLO = [{"role": "user", "content": "due " * 20}]
# The tiny base has a context of 256 tokens: a prompt and an answer fill it.
WIDE = [f"{number:03}" for number in range(1000)]
CHAIN = ["a" * depth + "b" for depth in range(120)]
HOT = {"temperature": 2.0, "top_p": 0.999999, "max_tokens": 1024}
BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    (CLASSIFY, {"messages": HELLO, "labels": WIDE}),
    (CLASSIFY, {"messages": HELLO, "labels": CHAIN}),
    (CHAT, {"messages": HELLO, "guided_choice": CHAIN, **HOT}),
    (CHAT, {"messages": HELLO, "stop": ["a" * 255 + end for end in "bcde"], **HOT}),
    (CHAT, {"messages": [{"role": "user", "content": ""}] * 24, **HOT, "stream": True}),
    # Read whole, and over the model's context then.
    (CHAT, {"messages": [{"role": "user", "content": "due and " * 25_000}]}),
    (CHAT, {"messages": HELLO, "max_tokens": 1, "metadata": {"a": [[]] * 149_000}}),
    (CHAT, {"messages": HELLO, "max_tokens": 1, "metadata": {"a": [[]] * 400_000}}),
    # Over a limit: what stalled the engine for minutes.
    (CLASSIFY, {"messages": HELLO, "labels": [f"word{number} " * 120 for number in range(1000)]}),
    (CLASSIFY, {"messages": HELLO, "labels": [f"{number:04}" + "x" * 40 for number in range(1000)]}),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 190_000}] * 9}),
    (CHAT, {"messages": HELLO, **{f"member {number}": 1 for number in range(80_000)}}),
)
SENT = tuple((path, json.dumps({"model": SERVED_MODEL, **body}).encode()) for path, body in BODIES)


class WorstClient(threading.Thread):
    """Sends one request after the other until it is stopped, and disconnects from some."""

    def __init__(self, deployed: Deployment, record: Record, unit: str, seed: int, over: threading.Event) -> None:
        super().__init__(name=f"worst client of {unit}", daemon=True)
        self._deployment, self._record, self._unit, self._over = deployed, record, unit, over
        self._chance = random.Random(seed)
        self._gateway = deployed.gateways[seed % len(deployed.gateways)]
        self._http = httpx.Client(base_url=self._gateway.site.url, timeout=TIMEOUT_S)
        self._token, self._until = "", 0.0

    def run(self) -> None:
        with self._http:
            while not self._over.is_set():
                self._record.wait_until_up(self._gateway.name, TIMEOUT_S)
                self._ask()

    def _ask(self) -> None:
        path, body = self._chance.choice(SENT)
        sent = time.monotonic()
        if sent > self._until:
            self._token, self._until = self._deployment.site.token(self._unit), sent + TOKEN_S
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        leaves = self._chance.random() < 0.3
        timeout = httpx.Timeout(TIMEOUT_S, read=LEAVE_S if leaves else TIMEOUT_S)
        try:
            answer = self._http.post(path, content=body, headers=headers, timeout=timeout)
        except httpx.TimeoutException:
            if not leaves:
                self._record.violate(f"{self._unit}, the worst: expected an end within {TIMEOUT_S:.0f} s, got none")
            return self._record.count("worst: left")
        except httpx.TransportError:
            if not self._record.was_down(self._gateway.name, sent):
                self._record.violate(f"{self._unit}, the worst: expected to reach the service, it did not")
            return None
        self._record.count(f"worst: {answer.status_code}")
        if answer.status_code in (404, 500):
            self._record.violate(f"{self._unit}, the worst: expected an answer or a refusal, got {answer.text[:200]}")
        if answer.status_code in (429, 503):
            time.sleep(0.1)
        return None


class Neighbour(Client):
    """Requests whole answers, which are checked like all others, and times them until it is stopped."""

    phase = ""

    def _ask(self) -> None:
        place, sent = self._chance.randrange(len(self._deployment.questions)), time.monotonic()
        with suppress(httpx.TransportError):
            if self._read_whole(place, sent):
                self._record.time(self.phase, time.monotonic() - sent)


@contextmanager
def ask_worst(deployed: Deployment, record: Record, unit: str, clients: int) -> Iterator[None]:
    """Run while the unit sends the most expensive requests."""
    over = threading.Event()
    asking = [WorstClient(deployed, record, unit, seed, over) for seed in range(clients)]
    for client in asking:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in asking:
            client.join(TIMEOUT_S)


def time_neighbours(deployed: Deployment, record: Record, units: Sequence[str], phase: str, seconds: float) -> None:
    """Three clients of each unit ask for so long."""
    until = time.monotonic() + seconds
    asking = [
        Neighbour(deployed, record, unit, seed, lambda: time.monotonic() < until) for seed in range(3) for unit in units
    ]
    for client in asking:
        client.phase = phase
        client.start()
    for client in asking:
        client.join(seconds + TIMEOUT_S)


def compare_calm(deployed: Deployment, record: Record, seconds: float) -> None:
    """Compare the other units' answers without the worst unit and with it, while nothing changes or fails."""
    *others, worst = deployed.units
    time_neighbours(deployed, record, others, "warming up", 3.0)
    record.latencies.pop("warming up", None)
    for _ in range(ROUNDS):
        time_neighbours(deployed, record, others, ALONE, seconds / ROUNDS)
        with ask_worst(deployed, record, worst, CLIENTS):
            time_neighbours(deployed, record, others, BESIDE, seconds / ROUNDS)
    evaluate_calm(record)


def evaluate_calm(record: Record) -> None:
    """Add a violation if the worst unit cost the others more than their share."""
    alone, beside = (sorted(record.latencies.get(phase, [])) for phase in (ALONE, BESIDE))
    if min(len(alone), len(beside)) < LEAST_ANSWERS:
        record.violate(f"calm: expected {LEAST_ANSWERS} answers in each phase, got {len(alone)} and {len(beside)}")
        return
    before, after = alone[int(len(alone) * 0.99)], beside[int(len(beside) * 0.99)]
    if after > MOST * before:
        record.violate(
            f"calm: expected at most {MOST:.0f} times the p99 beside the worst unit, got {before * 1000:.0f} ms"
            f" without it and {after * 1000:.0f} ms"
        )
