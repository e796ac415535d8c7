"""Benches of the service around the engine: rates, times and memory through its API, beside the engine alone.

There are two copies of one home. On one, the service runs, and units send requests over TCP. On the other, the engine
is called directly, without authentication and ledger. They take turns.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from appliance.domain.releases.activations import Activate, Rollback
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.store.files.artifacts import Artifacts
from appliance.workflows.core.context import Frame
from appliance.workflows.releases.exports import admit
from appliance.workflows.serving.engine import EngineProcess, expect
from scripts.benches import serving_cold, serving_home
from scripts.benches.measure import Row, measure_interleaved, row, sync_ms, wall_ms
from scripts.benches.serving_client import PROMPT, UnitsClient, find_text
from scripts.benches.serving_cold import COLD
from scripts.benches.serving_home import BASE, OWNER, UNITS, Home
from scripts.benches.serving_worker import make_adapters, memory
from scripts.kit.appliance import Appliance, found_site
from scripts.kit.ports import free_port

STREAMS, MB, TURN = 16, 1e6, "turn"


@dataclass(frozen=True)
class Plan:
    """Amounts of a measurement; 0 leaves a part out. `known`: adapters in the ledger. `hot`: those that answer."""

    rounds: int
    tokens: int
    lone: int
    revocations: int
    rollbacks: int
    known: int
    hot: int
    cold: int
    """Number of timed activations while no engine runs."""
    start_s: float = 3
    """Goal: seconds of such an activation until the first answer."""


QUICK = Plan(rounds=1, tokens=32, lone=30, revocations=6, rollbacks=4, known=60, hot=20, cold=1)
FULL = Plan(rounds=9, tokens=96, lone=300, revocations=30, rollbacks=12, known=1000, hot=64, cold=5)
BILLION_QUICK = Plan(rounds=1, tokens=8, lone=6, revocations=0, rollbacks=0, known=0, hot=0, cold=1)
BILLION_FULL = Plan(rounds=5, tokens=48, lone=60, revocations=6, rollbacks=4, known=20, hot=8, cold=3)


def measure(
    folder: Path, base: Path, adapters: list[Path], read_fingerprint: Callable[[Path], dict[str, Any]], plan: Plan
) -> Iterator[Row]:
    site = found_site(folder / "home", free_port())
    try:
        serving_home.enrol(site)
        site.stop()
        yield from _fill(site, folder, base, adapters, read_fingerprint, plan)
        yield from serving_cold.measure(site, plan.cold, at_most_s=plan.start_s)
        other = site.copy(folder / "other", free_port())
        with serving_home.opened(other) as home, closing(_engine(home)) as engine:
            yield from _admission(home, engine, plan)
            site.start()
            yield from _share(folder, site, Direct(home, engine), plan)
        for count, measured in ((plan.hot, _hot), (plan.revocations, _revocations), (plan.rollbacks, _rollbacks)):
            if count:
                yield from measured(site, plan)
    finally:
        if site.service is not None:
            site.stop()


# --- the home ---------------------------------------------------------------------------------------------------------


def _fill(
    site: Appliance,
    folder: Path,
    base: Path,
    adapters: list[Path],
    read_fingerprint: Callable[[Path], dict[str, Any]],
    plan: Plan,
) -> Iterator[Row]:
    """Release each unit's own adapter, one served model in two versions, and adapters of rank 1 as the plan says."""
    probes = {path: read_fingerprint(path) for path in adapters}
    with serving_home.opened(site) as home:
        home.import_base(base)
        home.import_dataset()
        for unit, path in zip(UNITS, adapters, strict=True):
            _release(home, path, f"own-{unit}", probes[path], unit, "own")
        for path in adapters[:2] if plan.rollbacks else ():
            _release(home, path, TURN, probes[path], UNITS[0], TURN)
        for _ in range(plan.cold):
            # Approved now, and activated when the activation is timed.
            home.approve(home.seal(adapters[0], COLD, probes[adapters[0]]), UNITS[0])
        if plan.revocations or plan.known:
            yield from _fill_small(site, home, folder, base, read_fingerprint, plan)


def _fill_small(
    site: Appliance,
    home: Home,
    folder: Path,
    base: Path,
    read_fingerprint: Callable[[Path], dict[str, Any]],
    plan: Plan,
) -> Iterator[Row]:
    """Release adapters of rank 1: those that will be revoked, and those that are only in the ledger."""
    small_folder = folder / "small"
    small_folder.mkdir()
    small = next(make_adapters(str(base), small_folder, [1]))
    fingerprint = read_fingerprint(small)
    for number in range(plan.revocations):
        _release(home, small, f"revoked-{number}", fingerprint, UNITS[number % 8], f"revoked-{number}")
    if not plan.known:
        return
    before = (memory("cpu"), _size(site))
    for number in range(plan.known):
        _release(home, small, f"known-{number}", fingerprint, UNITS[number % 8], f"known-{number}")
    grown = [after - first for after, first in zip((memory("cpu"), _size(site)), before, strict=True)]
    yield row(f"memory of the service, an adapter known ({plan.known:,} known)", grown[0] / plan.known / 1e3, "kB")
    yield row("ledger, an adapter trained, sealed, reviewed twice, released", grown[1] / plan.known / 1e3, "kB")


def _release(home: Home, path: Path, name: str, fingerprint: dict[str, Any], unit: str, served_model: str) -> None:
    adapter = home.seal(path, name, fingerprint)
    home.approve(adapter, unit)
    home.release(adapter, unit, served_model)


def _size(site: Appliance) -> int:
    return sum(path.stat().st_size for path in site.home.glob("ledger.db*"))


# --- admission --------------------------------------------------------------------------------------------------------


def _engine(home: Home) -> EngineProcess:
    base = home.context.ledger.state.bases.get(BASE)
    assert base is not None
    recipe = {"quantisation": "nf4-double", "compute_dtype": "bfloat16"}
    return EngineProcess(home.context, home.context.artifacts.path(base.digest), base.digest, recipe, lambda: None)


class LoadedArtifacts:
    """A store that returns files which were read before, so that a measured admission does not read them."""

    def __init__(self, artifacts: Artifacts, files: dict[str, bytes]) -> None:
        self._files = files
        self.read_beside = artifacts.read_beside

    def read_folder(self, digest: str) -> dict[str, bytes]:
        return self._files


def _admission(home: Home, engine: EngineProcess, plan: Plan) -> Iterator[Row]:
    """Yield the time of an admission of bytes in memory, beside reading and loading them."""
    context, unit = home.context, UNITS[0]
    adapter = context.ledger.state.adapters.get(f"own-{unit}@1")
    assert adapter is not None
    found: dict[str, list[float]] = {"admit": [], "load": []}
    for number in range(3 + plan.rounds * 5):
        files: list[dict[str, bytes]] = []
        read = wall_ms(lambda: files.append(context.artifacts.read_folder(adapter.manifest)))  # noqa: B023
        load = wall_ms(lambda: engine.load(f"{number}", files[0]))  # noqa: B023
        engine.unload(f"{number}")
        given = replace(context, artifacts=LoadedArtifacts(context.artifacts, files[0]))  # type: ignore[arg-type]
        found["load"].append(read + load)
        found["admit"].append(wall_ms(lambda: admit(given, unit, "own")))  # noqa: B023
    yield row(
        *("admission: hash, signatures, proofs and their entry", median(found["admit"]), "ms"),
        against="reading and loading the adapter",
        theirs=median(found["load"]),
        ratio=median(a / b for a, b in zip(found["admit"], found["load"], strict=True)),
        ratio_at_most=0.3,
    )


# --- the share of the service -----------------------------------------------------------------------------------------


class Direct:
    """An engine that threads call as the service does."""

    def __init__(self, home: Home, engine: EngineProcess) -> None:
        self._engine, self._count = engine, 0
        for unit in UNITS:
            adapter = home.context.ledger.state.adapters.get(f"own-{unit}@1")
            assert adapter is not None
            engine.load(unit, home.context.artifacts.read_folder(adapter.manifest))

    def ask(self, unit: str, tokens: int) -> int:
        self._count += 1
        parameters = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens, "temperature": 0.0}
        name, frames = f"{unit}-{self._count}-{threading.get_ident()}", queue.SimpleQueue[Frame | None]()
        self._engine.ask(name, unit, "generate", parameters, frames.put)
        while (frame := expect(frames.get(), "token", "done"))["frame"] == "token":
            continue
        self._engine.leave(name, ended=True)
        return int(frame["completion_tokens"])


def _share(folder: Path, site: Appliance, direct: Direct, plan: Plan) -> Iterator[Row]:
    client = UnitsClient(site)
    for unit in UNITS:
        assert client.ask(unit, 4) == direct.ask(unit, 4)
    found = measure_interleaved(
        plan.rounds,
        direct=lambda: [_rate(lambda unit: direct.ask(unit, plan.tokens))],
        whole=lambda: [_rate(lambda unit: client.ask(unit, plan.tokens))],
        streamed=lambda: [_rate_together(lambda units: client.stream(units, plan.tokens))],
    )
    for name, title in (("whole", "answers whole"), ("streamed", "answers streamed")):
        yield row(
            *(f"tokens a second through the service, {STREAMS} streams, {title}", found[name], "1/s"),
            against="the engine called directly",
            theirs=found["direct"],
            ratio=found.ratio(name, "direct"),
            ratio_at_least=0.95,
        )
    yield from _latency(folder, client, direct, plan)


def _rate(ask: Callable[[str], int]) -> float:
    """Return the tokens a second of sixteen requests at once, two for each unit, each from a thread of its own."""
    with ThreadPoolExecutor(STREAMS) as threads:
        return _rate_together(lambda units: sum(threads.map(ask, units)))


def _rate_together(ask: Callable[[Sequence[str]], int]) -> float:
    began = time.perf_counter()
    drawn = ask(UNITS * (STREAMS // len(UNITS)))
    return drawn / (time.perf_counter() - began)


def _latency(folder: Path, client: UnitsClient, direct: Direct, plan: Plan) -> Iterator[Row]:
    """Yield the latency of answers of one token, one at a time, beside the engine called directly."""
    ours, theirs, syncs = [], [], []
    for number in range(plan.lone):
        unit = UNITS[number % len(UNITS)]
        ours.append(wall_ms(lambda: client.ask(unit, 1)))  # noqa: B023 - called at once
        theirs.append(wall_ms(lambda: direct.ask(unit, 1)))  # noqa: B023
        syncs.append(sum(sync_ms(folder, 2)))
    yield row(
        *("an answer of one token through the service, median", median(ours), "ms"),
        against="the engine called directly",
        theirs=median(theirs),
    )
    beyond = p99(ours) - p99(theirs) - p99(syncs)
    yield row("the same at p99, less the engine's p99 and that of two disk syncs", beyond, "ms", at_most=5)
    yield row("two disk syncs, p99", p99(syncs), "ms")


def p99(samples: list[float]) -> float:
    """Return the 99th percentile."""
    return quantiles(samples, n=100, method="inclusive")[-1]


# --- what takes effect at once ----------------------------------------------------------------------------------------


def _hot(site: Appliance, plan: Plan) -> Iterator[Row]:
    """Yield the times of first answers, for which an adapter is admitted and loaded, and of second answers."""
    client, first, second = UnitsClient(site), [], []
    served_models = [(UNITS[number % 8], f"known-{number}") for number in range(plan.hot)]
    for unit, served_model in served_models:
        first.append(wall_ms(lambda: client.ask(unit, 1, served_model=served_model)))  # noqa: B023
    for unit, served_model in served_models:
        second.append(wall_ms(lambda: client.ask(unit, 1, served_model=served_model)))  # noqa: B023
    yield row(f"first answer of a known adapter (admission, load), {plan.known:,} known", median(first), "ms")
    yield row(f"answer of a hot adapter, {plan.hot} hot", median(second), "ms")


@contextmanager
def _others(client: UnitsClient) -> Iterator[None]:
    """Keep a stream of each unit running until the context ends."""
    ended = threading.Event()

    def work(unit: str) -> None:
        while not ended.is_set():
            client.stream([unit], 48)

    threads = [threading.Thread(target=work, args=(unit,)) for unit in UNITS]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _revocations(site: Appliance, plan: Plan) -> Iterator[Row]:
    """Yield the times from sending a revocation to the last token that the unit gets, beside eight other streams."""
    client, found = UnitsClient(site), []
    with _others(client):
        for number in range(plan.revocations):
            found.append(_revoke(site, client, UNITS[number % 8], f"revoked-{number}"))
    last, cut = zip(*found, strict=True)
    yield row(
        f"from the order of a revocation to the last token, p99 of {plan.revocations}", p99(last), "ms", at_most=250
    )
    yield row("the same, median", median(last), "ms")
    yield row("from the order of a revocation to the error that ends the answer, p99", p99(cut), "ms")
    yield row("the same, median", median(cut), "ms")


def _revoke(site: Appliance, client: UnitsClient, unit: str, served_model: str) -> tuple[float, float]:
    """Return the ms to the last token, and to the event that says that the answer was cut off."""
    times: list[float] = []
    has_tokens = threading.Event()

    def listen() -> None:
        for event in client.stream_events(unit, 1000, served_model=served_model):
            times.append(time.perf_counter())
            if "error" in event:
                return
            if len(times) > 3:
                has_tokens.set()
        raise AssertionError(f"{served_model}: the answer ended before it was cut off")

    with ThreadPoolExecutor(1) as thread:
        listening = thread.submit(listen)
        if not has_tokens.wait(60):
            raise RuntimeError(f"{served_model}: no token came within 60 s")
        envelope = site.sign(RevokeAdapter(**site.on(f"{served_model}@1"), **site.terms("rita")))
        began = time.perf_counter()
        site.send(envelope)
        listening.result(60)
    *_, last, cut = (max(0.0, (at - began) * 1e3) for at in times)
    return last, cut


def _rollbacks(site: Appliance, plan: Plan) -> Iterator[Row]:
    """Yield the time from sending a rollback to the earlier version's first token, of a request right after it."""
    client, found, unit = UnitsClient(site), [], UNITS[0]
    for number in range(plan.rollbacks):
        client.ask(unit, 2, served_model=TURN)
        kind, version = (Activate, 2) if number % 2 else (Rollback, 1)
        terms = {"adds_instruction": False, **site.on(f"{TURN}@{version}"), **site.terms(OWNER)}
        envelope = site.sign(kind(unit=unit, served_model=TURN, **terms))
        began = time.perf_counter()
        site.send(envelope)
        next(event for event in client.stream_events(unit, 4, served_model=TURN) if find_text(event))
        if kind is Rollback:
            found.append((time.perf_counter() - began) * 1e3)
    name = f"from the order of a rollback to the earlier version's first token, slowest of {len(found)}"
    yield row(name, max(found), "ms", at_most=1000)
    yield row("the same, median", median(found), "ms")
