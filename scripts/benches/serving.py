"""`scripts/bench serve`: the engine beside peft, transformers, llama.cpp and vLLM, and the cost of the service itself.

Each program has a process of its own, and only one works at a time. All answer the same prompts on the same base with
the same adapters, whose weights are random numbers large enough to change every answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benches import models, serving_llama, serving_prompts, serving_service, serving_start
from scripts.benches.measure import Medians, Row, measure_interleaved, row
from scripts.benches.programs import ROOT, Program, start_program
from scripts.benches.serving_worker import make_adapters

VLLM = ROOT / ".venv-vllm" / "bin" / "python"
"""The environment that `scripts/bench` makes by `scripts/setup --vllm`."""
STREAMS, ADAPTERS, RANK = 16, 8, 16
MB = 1e6
PROMPTS = (
    "Explain in a few sentences why a bank keeps a register of everything that it approves.",
    "Write a short note to a customer whose card was declined at a shop this morning.",
    "List the questions that an auditor asks first about a model that answers customers.",
    "Describe how a payment travels from one account to another, step by step, for a child.",
)


@dataclass(frozen=True)
class Plan:
    """Amounts of a measurement. `tokens`: of each stream in each round."""

    model: models.Model
    device: str
    rounds: int
    tokens: int
    service: serving_service.Plan
    llama_server: str
    peers: bool = True
    """True to measure peft, transformers and other servers, too, and the memory of three tasks."""
    vllm: bool = False
    """True to measure vLLM, too, which takes a minute to start."""
    reads: int = 3
    """Prompts of 512 tokens in a turn."""
    starts: int = 1
    """Number of timed engine starts."""


def quick(model: models.Model, device: str, llama_server: str) -> Plan:
    if model is models.BILLION:
        plan = Plan(model, device, 1, 8, serving_service.BILLION_QUICK, llama_server, peers=False, reads=1)
    else:
        plan = Plan(model, device, 1, 24, serving_service.QUICK, llama_server)
    return replace(plan, service=replace(plan.service, start_s=model.start_s))


def full(model: models.Model, device: str, llama_server: str) -> Plan:
    if model is models.BILLION:
        plan = Plan(model, device, 3, 24, serving_service.BILLION_FULL, llama_server, starts=3)
    else:
        plan = Plan(model, device, 3, 96, serving_service.FULL, llama_server, vllm=True, starts=5)
    return replace(plan, service=replace(plan.service, start_s=model.start_s))


def measure(folder: Path, plan: Plan) -> Iterator[Row]:
    """Yield the rows as they are measured."""
    base, adapters = _prepare(folder, plan)
    yield from _streams(base, adapters, plan)
    with start_program(base, plan.device, "ours") as ours:
        yield from _load_cost(ours, adapters[0], plan)
        if plan.device == "cpu":
            gguf = plan.model.find_gguf()
            yield from serving_prompts.measure(ours, gguf, rounds=plan.rounds, reads=plan.reads)
        first = Path(adapters[0])
        yield from serving_start.measure(ours, base, first, folder, device=plan.device, rounds=plan.starts)
    if plan.peers:
        yield from _memory(base, adapters, plan)
    yield from _through_service(folder, base, adapters, plan)


def measure_streams(folder: Path, plan: Plan) -> Iterator[Row]:
    """Measure only the streams, beside every other server."""
    base, adapters = _prepare(folder, plan)
    yield from _streams(base, adapters, replace(plan, peers=True, vllm=True))


def measure_service(folder: Path, plan: Plan) -> Iterator[Row]:
    """Measure only the cost of the service around the engine."""
    base, adapters = _prepare(folder, plan)
    yield from _through_service(folder, base, adapters, plan)


def _prepare(folder: Path, plan: Plan) -> tuple[Path, list[str]]:
    """Make the base as an import leaves it, and the adapters. Return their folders."""
    base = plan.model.convert(folder)
    return base, [str(path) for path in make_adapters(str(base), folder, [RANK] * ADAPTERS)]


def _streams(base: Path, adapters: list[str], plan: Plan) -> Iterator[Row]:
    kinds = ("ours", "peft", "batching") if plan.peers else ("ours",)
    with _programs(base, plan.device, *kinds, "machine") as running:
        for name in kinds:
            running[name]("load", folders=adapters)
        if plan.peers:
            with _servers(base, adapters, plan) as servers:
                yield from _beside_peers(running, servers, adapters, plan)
        yield from _alone(running["ours"], running["machine"], base, adapters, plan)


def _through_service(folder: Path, base: Path, adapters: list[str], plan: Plan) -> Iterator[Row]:
    with start_program(base, plan.device, "ours") as ours:
        paths = [Path(name) for name in adapters]

        def fingerprint(path: Path) -> dict[str, Any]:
            return ours.request("logit_fingerprint", folder=str(path))

        yield from serving_service.measure(folder, base, paths, fingerprint, plan.service)


def _beside_peers(
    running: dict[str, Program], servers: dict[str, Server], adapters: list[str], plan: Plan
) -> Iterator[Row]:
    slots = [Path(adapters[stream % ADAPTERS]).name for stream in range(STREAMS)]
    prompts = [PROMPTS[stream % len(PROMPTS)] for stream in range(STREAMS)]
    ours, peft, batching = running["ours"], running["peft"], running["batching"]
    for one in (ours, *servers.values()):
        _check_adapters(one, slots)

    def turns(tokens: int) -> dict[str, Callable[[], list[float]]]:
        wanted: dict[str, Any] = {"prompts": prompts, "tokens": tokens}
        return {
            "mixed": lambda: ours("answer", slots=slots, **wanted),
            "one": lambda: ours("answer", slots=slots[:1] * STREAMS, **wanted),
            "base": lambda: ours("answer", slots=[None] * STREAMS, **wanted),
            "alternate": lambda: peft("alternate", slots=slots, **wanted),
            "names": lambda: peft("mixed", slots=slots, **wanted),
            "batching": lambda: batching("answer", slots=slots, **wanted),
            **{name: partial(server.request, "answer", slots=slots, **wanted) for name, server in servers.items()},
        }

    # The first turns are not timed. Continuous batching sizes its memory for the first prompts.
    turns(plan.tokens)["batching"]()
    for turn in turns(4).values():
        turn()
    found = measure_interleaved(plan.rounds, **{name: _rated(turn) for name, turn in turns(plan.tokens).items()})
    gguf = plan.model.find_gguf().stem if "llama" in found else ""
    yield from _rates(found, gguf)
    if "llama" in servers:
        yield from _one_stream(ours, servers["llama"], slots[0], gguf)


def _one_stream(ours: Program, llama: Server, slot: str, gguf: str) -> Iterator[Row]:
    """Yield the row of one answer with one adapter, beside llama.cpp's server with the same adapter."""
    wanted: dict[str, Any] = {"prompts": PROMPTS[:1], "slots": [slot], "tokens": serving_prompts.STREAM_TOKENS}
    found = measure_interleaved(
        3, ours=_rated(lambda: ours("answer", **wanted)), llama=_rated(lambda: llama.request("answer", **wanted))
    )
    yield serving_prompts.stream_row(found, f"llama.cpp's server with that adapter, {gguf.rpartition('.')[2]}")


def _rates(found: Medians, gguf: str) -> Iterator[Row]:
    name = f"tokens a second, {STREAMS} streams over {ADAPTERS} adapters"
    against: dict[str, tuple[str, float | None]] = {
        "alternate": ("PEFT, one adapter after another (set_adapter), NF4", 4.0),
        "names": ("PEFT, mixed batch (adapter_names), NF4", 4.0),
        "base": ("the bare base in the same engine", 0.85),
        "batching": ("transformers' continuous batching, one adapter, NF4", 1.0),
        "llama": (f"llama.cpp's server, {gguf.rpartition('.')[2]}, one adapter a batch", 2.0),
        "vllm": ("vLLM on the CPU, bf16", 1.5),
    }
    for theirs, (title, goal) in against.items():
        if theirs not in found:
            continue
        yield row(
            *(name, found["mixed"], "1/s"),
            against=title,
            theirs=found[theirs],
            ratio=found.ratio("mixed", theirs),
            ratio_at_least=goal,
        )
    yield row(
        *(f"tokens a second, {STREAMS} streams on one adapter", found["one"], "1/s"),
        against="transformers' continuous batching, one adapter",
        theirs=found["batching"],
        ratio=found.ratio("one", "batching"),
    )


def _alone(ours: Program, machine: Program, base: Path, adapters: list[str], plan: Plan) -> Iterator[Row]:
    """Yield the rows of one stream: its rate beside the limit of the memory's bandwidth, and prompts."""
    slot = Path(adapters[0]).name
    wanted = {"prompts": [PROMPTS[0]], "slots": [slot], "tokens": 2 * plan.tokens}
    found = measure_interleaved(
        plan.rounds, alone=_rated(lambda: ours("answer", **wanted)), bandwidth=lambda: machine("bandwidth")
    )
    read = ours("read_bytes", adapter=slot)[0]
    limit = found["bandwidth"] / read
    title = f"bandwidth ({found['bandwidth'] / 1e9:.0f} GB/s) over the bytes of a token ({read / MB:.0f} MB)"
    yield row("tokens a second, one stream, one adapter", found["alone"], "1/s", against=title, theirs=limit)
    yield from serving_prompts.measure_again(ours, slot, max(plan.rounds, 3))
    yield from serving_prompts.measure_stream(ours, Path(adapters[0]), base, plan.model.find_gguf(), plan.rounds)


def _load_cost(ours: Program, adapter: str, plan: Plan) -> Iterator[Row]:
    found = ours("admit", folder=adapter, count=max(5, 4 * plan.rounds))
    yield row("an adapter read and put into a slot", median(found[::2]), "ms")
    yield row("the fingerprint of a load", median(found[1::2]), "ms")


def _memory(base: Path, adapters: list[str], plan: Plan) -> Iterator[Row]:
    """Yield the memory that three adapters add to a process, beside that of three full models."""
    with _programs(base, plan.device, "ours", "full") as running:

        def grown(some: list[str]) -> float:
            """Load these adapters, let each answer, and return the bytes that the process has grown by."""
            running["ours"]("load", folders=some)
            slots = [Path(name).name for name in some]
            running["ours"]("answer", prompts=[PROMPTS[0]] * len(some), slots=slots, tokens=8)
            return running["ours"]("grown")[0]

        three, eight = grown(adapters[:3]), grown(adapters[3:])
        (theirs,) = running["full"]("grown")
    yield row(
        *("memory of three tasks", three / MB, "MB"),
        against="three full models, bf16",
        theirs=theirs / MB,
        ratio_at_most=0.4,
    )
    yield row("memory of a hot adapter more", (eight - three) / MB / (len(adapters) - 3), "MB")


def _check_adapters(one: Server, slots: Sequence[str]) -> None:
    """Raise RuntimeError unless every adapter and the base give different answers.

    Adapters without an effect would measure the base.
    """
    texts = [one.request("text", prompt=PROMPTS[0], slot=slot, tokens=16) for slot in [None, *dict.fromkeys(slots)]]
    if len(set(texts)) < len(texts):
        raise RuntimeError(f"expected {len(texts)} different answers of base and adapters, got {len(set(texts))}")


def _rated(turn: Any) -> Any:
    """Return a function that runs a turn and returns its tokens a second."""

    def rate() -> list[float]:
        seconds, drawn, *_ = turn()
        return [drawn / seconds]

    return rate


Server = Program | serving_llama.Server


@contextmanager
def _servers(base: Path, adapters: list[str], plan: Plan) -> Iterator[dict[str, Server]]:
    """Start the other servers, on a CPU. One that does not start is left out of the table, with a message."""
    starting: dict[str, AbstractContextManager[Server]] = {
        "llama": serving_llama.serving(
            plan.llama_server, plan.model.find_gguf(), base, [Path(name) for name in adapters], STREAMS
        ),
    }
    if plan.vllm:
        starting["vllm"] = _vllm(base, adapters)
    with ExitStack() as stack:
        found = {}
        for name, one in starting.items() if plan.device == "cpu" else ():
            try:
                found[name] = stack.enter_context(one)
            except (OSError, RuntimeError) as error:
                print(f"bench: {name} is left out: {error}", file=sys.stderr)
        yield found


@contextmanager
def _vllm(base: Path, adapters: list[str]) -> Iterator[Program]:
    with start_program(models.as_shipped(base), "cpu", "vllm", VLLM) as one:
        one("load", folders=adapters)
        yield one


@contextmanager
def _programs(base: Path, device: str, *kinds: str) -> Iterator[dict[str, Program]]:
    """Start the programs one after the other, each once the one before is ready."""
    with ExitStack() as stack:
        yield {kind: stack.enter_context(start_program(base, device, kind)) for kind in kinds}
