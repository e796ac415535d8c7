"""`scripts/bench revocation`: how long after its entry a revoked adapter still answers, over several gateways.

A process takes the orders, and three gateways answer: two with vLLM, one with the appliance's own engine. Every unit
has a stream open at every gateway all the time. The units' adapters are revoked in turn, and the next version of each
is approved, activated and loaded again.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

from appliance.domain.evaluation.quality import VLLM
from appliance.formats.core.timestamp import parse_time
from scripts.benches.measure import Row, row
from scripts.kit import postgres
from scripts.kit.ports import free_port
from scripts.kit.waiting import wait_for
from scripts.soaking.deployment import BUILTIN, SERVED_MODEL, Deployment, Gateway, build_site, settle
from scripts.soaking.run import use_database

ENGINES = (VLLM, VLLM, BUILTIN)
MOST_MS = 1_000
"""The goal, of 99 of 100 streams."""
CONTEXT, MOST_TOKENS = 2048, 1000
WAIT_S = 240.0


@dataclass(frozen=True)
class Plan:
    revocations: int
    units: int


QUICK = Plan(revocations=8, units=2)
FULL = Plan(revocations=104, units=4)


@dataclass
class Stream:
    """Times of a stream by the machine's clock: of its first token, its latest one, and its end."""

    manifest: str
    first: float = 0.0
    latest: float = 0.0
    ended: float = float("inf")


@dataclass(frozen=True)
class Revoked:
    """Seconds: from the order until its entry, and from there until each stream's last token, and each gateway's entry
    that the adapter is unloaded, by engine."""

    order: float
    tokens: dict[str, list[float]]
    unloaded: dict[str, list[float]]


class Listener(threading.Thread):
    """One client of one unit at one gateway: it opens the next stream when one ends, until it is to stop."""

    def __init__(self, deployed: Deployment, gateway: Gateway, unit: str, over: threading.Event) -> None:
        super().__init__(name=f"{unit} at {gateway.name}", daemon=True)
        self.gateway, self.unit, self._over = gateway, unit, over
        self.streams: list[Stream] = []
        self._chance = random.Random(self.name)
        self._head = {"Authorization": f"Bearer {deployed.site.token(unit)}"}

    def run(self) -> None:
        with httpx.Client(base_url=self.gateway.site.url, timeout=WAIT_S) as http:
            while not self._over.is_set():
                self._listen(http)

    def _listen(self, http: httpx.Client) -> None:
        body = {
            "model": SERVED_MODEL,
            "messages": [{"role": "user", "content": "go on"}],
            "max_tokens": MOST_TOKENS,
            "temperature": 1.0,
            "seed": self._chance.randrange(1 << 30),
            "stream": True,
        }
        stream = Stream("")
        with http.stream("POST", "/v1/chat/completions", json=body, headers=self._head) as answer:
            if answer.status_code != 200:
                time.sleep(0.05)  # its next version is not active yet
                return
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    self._hear(stream, json.loads(line[6:]))
                if self._over.is_set():
                    break
        stream.ended = time.time()

    def _hear(self, stream: Stream, event: dict[str, Any]) -> None:
        if not event.get("choices") or not event["choices"][0]["delta"].get("content"):
            return
        stream.latest = time.time()
        if not stream.first:
            stream.first, stream.manifest = stream.latest, event["system_fingerprint"]
            self.streams.append(stream)

    def answers_by(self, manifest: str) -> bool:
        stream = self.streams[-1] if self.streams else None
        return stream is not None and stream.manifest == manifest and stream.ended == float("inf")


def measure(folder: Path, plan: Plan) -> Iterator[Row]:
    versions = -(-plan.revocations // plan.units) + 2  # of which vLLM may leave one out
    with _deployed(folder, plan.units, versions) as deployed, _listening(deployed) as listeners:
        found = [
            _revoke(deployed, listeners, deployed.units[number % plan.units], number // plan.units)
            for number in range(plan.revocations)
        ]
    yield from _rows(found)


def _rows(found: Sequence[Revoked]) -> Iterator[Row]:
    yield row("revocations", len(found), "")
    orders = sorted(one.order for one in found)
    yield row("from the order to its entry, median", _at(orders, 50), "ms")
    for what, ends in (
        ("last token of all streams", [one.tokens for one in found]),
        ("last gateway's entry that it unloaded", [one.unloaded for one in found]),
    ):
        last = sorted(
            one.order + max(max(seconds, default=0.0) for seconds in end.values())
            for one, end in zip(found, ends, strict=True)
        )
        yield row(f"from the order to the {what}, median", _at(last, 50), "ms")
        yield row("the same, 99 of 100", _at(last, 99), "ms")
    for engine, name in ((VLLM, "gateways with vLLM"), (BUILTIN, "gateway with the appliance's engine")):
        tokens = sorted(seconds for one in found for seconds in one.tokens[engine])
        unloaded = sorted(seconds for one in found for seconds in one.unloaded[engine])
        yield row(f"{name}: from the entry to a stream's last token, median of {len(tokens):,}", _at(tokens, 50), "ms")
        yield row("the same, 99 of 100", _at(tokens, 99), "ms", at_most=MOST_MS)
        yield row("the same, the longest", tokens[-1] * 1000, "ms")
        yield row(f"{name}: from the entry to the gateway's own, unloaded, median", _at(unloaded, 50), "ms")
        yield row("the same, 99 of 100", _at(unloaded, 99), "ms")


def _at(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000


@contextmanager
def _deployed(folder: Path, units: int, versions: int) -> Iterator[Deployment]:
    with (
        patch.dict(postgres._SETTINGS, fsync="on"),
        postgres.run_server(postgres.find_binaries()) as server,
    ):
        site = build_site(folder, free_port(), engines=ENGINES, context=CONTEXT, **use_database(server))
        deployed = None
        try:
            deployed = settle(site, units, versions, engines=ENGINES, questions=())
            yield deployed
        finally:
            if deployed is not None:
                deployed.stop()
            elif site.service is not None:
                site.stop()


@contextmanager
def _listening(deployed: Deployment) -> Iterator[list[Listener]]:
    over = threading.Event()
    listeners = [Listener(deployed, gateway, unit, over) for gateway in deployed.gateways for unit in deployed.units]
    for listener in listeners:
        listener.start()
    try:
        yield listeners
    finally:
        over.set()
        for listener in listeners:
            listener.join(WAIT_S)


def _revoke(deployed: Deployment, listeners: Sequence[Listener], unit: str, number: int) -> Revoked:
    """Revoke this version once each gateway answers by it, then activate the unit's next version."""
    name, after = deployed.adapters[unit][number], deployed.adapters[unit][number + 1]
    manifest, own = deployed.manifests[name], [one for one in listeners if one.unit == unit]
    wait_for(lambda: all(one.answers_by(manifest) for one in own), f"a stream of {name} at each gateway")
    last = deployed.site.get("/v1/status")["log"]["size"] - 1
    sent = time.time()
    deployed.revoke(name)
    (entry,) = deployed.site.entries(type="adapter.revoked", after=last)
    stands = parse_time(entry["time"]).timestamp()

    def told() -> list[dict[str, Any]]:
        found = [
            one for one in deployed.site.entries(type="adapter.unloaded", after=last) if one["body"]["unit"] == unit
        ]
        return found if len({one["source"] for one in found}) == len(own) else []

    entries = wait_for(told, f"the entry of each gateway that it unloaded {name}")
    wait_for(lambda: not any(one.answers_by(manifest) for one in own), f"the end of every stream of {name}")
    tokens: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    unloaded: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for one in own:
        tokens[one.gateway.engine] += [
            max(0.0, stream.latest - stands)
            for stream in one.streams
            if stream.manifest == manifest and stream.ended > stands
        ]
        source = f"service:{one.gateway.name}"
        (time_,) = {
            entry["time"] for entry in entries if entry["source"] == source and entry["body"]["adapter"] == name
        }
        unloaded[one.gateway.engine].append(parse_time(time_).timestamp() - stands)
    deployed.approve(unit, after)
    deployed.activate(unit, after)
    return Revoked(stands - sent, tokens, unloaded)
