"""`scripts/bench serve`: the engine beside peft and transformers, and what the service around it costs.

Every program runs in a process of its own and they take turns; only one works at a time. All of them answer the same
prompts on the same base with the same adapters, which are random numbers large enough to change every answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benches import serving_llama, serving_service
from scripts.benches.measure import Found, Row, interleaved, row
from scripts.benches.methods import convert
from scripts.benches.programs import Program, start_program
from scripts.benches.serving_worker import make_adapters
from scripts.fetch_base import fetch

ROOT = Path(__file__).resolve().parents[2]
VLLM = ROOT / ".venv-bench-vllm" / "bin" / "python"
"""The environment that `scripts/bench` makes from the extra `bench-vllm`."""
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
    """`tokens` are drawn for each stream in each round. `vllm`: whether it is waited for, a minute."""

    device: str
    rounds: int
    tokens: int
    service: serving_service.Plan
    llama_server: str
    vllm: bool


def quick(device: str, llama_server: str) -> Plan:
    return Plan(device, rounds=1, tokens=24, service=serving_service.QUICK, llama_server=llama_server, vllm=False)


def full(device: str, llama_server: str) -> Plan:
    return Plan(device, rounds=3, tokens=96, service=serving_service.FULL, llama_server=llama_server, vllm=True)


def measure(folder: Path, plan: Plan) -> Iterator[Row]:
    """Every row, as it is found."""
    model, base, adapters = _prepare(folder)
    with _programs(base, plan.device, "ours", "peft", "batching", "machine") as programs:
        for name in ("ours", "peft", "batching"):
            programs[name]("load", folders=adapters)
        with _servers(model, base, adapters, plan) as servers:
            yield from _beside_peers(programs, servers, adapters, plan)
        yield from _alone(programs["ours"], programs["machine"], adapters, plan)
        yield from _load_cost(programs["ours"], adapters[0], plan)
    yield from _memory(base, adapters, plan)
    yield from _through_service(folder, base, adapters, plan)


def measure_service(folder: Path, plan: Plan) -> Iterator[Row]:
    """What the service around the engine costs, alone."""
    _, base, adapters = _prepare(folder)
    yield from _through_service(folder, base, adapters, plan)


def _prepare(folder: Path) -> tuple[Path, Path, list[str]]:
    """The model's file, the base that it was converted to, and the adapters' folders."""
    model = fetch(ROOT / ".cache")
    base = convert(model, folder)
    return model, base, [str(path) for path in make_adapters(str(base), folder, [RANK] * ADAPTERS)]


def _through_service(folder: Path, base: Path, adapters: list[str], plan: Plan) -> Iterator[Row]:
    with start_program(base, plan.device, "ours") as ours:
        paths = [Path(name) for name in adapters]

        def probe(path: Path) -> dict[str, Any]:
            return ours.told("probe", folder=str(path))

        yield from serving_service.measure(folder, base, paths, probe, plan.service)


def _beside_peers(
    programs: dict[str, Program], servers: dict[str, Server], adapters: list[str], plan: Plan
) -> Iterator[Row]:
    slots = [Path(adapters[stream % ADAPTERS]).name for stream in range(STREAMS)]
    prompts = [PROMPTS[stream % len(PROMPTS)] for stream in range(STREAMS)]
    ours, peft, batching = programs["ours"], programs["peft"], programs["batching"]
    for program in (ours, *servers.values()):
        _check_adapters(program, slots)

    def turns(tokens: int) -> dict[str, Callable[[], list[float]]]:
        wanted: dict[str, Any] = {"prompts": prompts, "tokens": tokens}
        return {
            "mixed": lambda: ours("answer", slots=slots, **wanted),
            "one": lambda: ours("answer", slots=slots[:1] * STREAMS, **wanted),
            "base": lambda: ours("answer", slots=[None] * STREAMS, **wanted),
            "alternate": lambda: peft("alternate", slots=slots, **wanted),
            "names": lambda: peft("mixed", slots=slots, **wanted),
            "batching": lambda: batching("answer", slots=slots, **wanted),
            **{name: partial(server.told, "answer", slots=slots, **wanted) for name, server in servers.items()},
        }

    # Once without a clock; continuous batching fits itself to the first that it is asked for.
    turns(plan.tokens)["batching"]()
    for turn in turns(4).values():
        turn()
    found = interleaved(plan.rounds, **{name: _rated(turn) for name, turn in turns(plan.tokens).items()})
    yield from _rates(found)


def _rates(found: Found) -> Iterator[Row]:
    name = f"tokens a second, {STREAMS} streams over {ADAPTERS} adapters"
    against: dict[str, tuple[str, float | None]] = {
        "alternate": ("PEFT, one adapter after another (set_adapter)", 4.0),
        "names": ("PEFT, mixed batch (adapter_names)", 1.8),
        "base": ("the bare base in the same engine", 0.85),
        "batching": ("transformers' continuous batching, one adapter", 1.0),
        "llama": ("llama.cpp's server, Q4_1", None),
        "vllm": ("vLLM on the CPU, bf16", None),
    }
    for theirs, (said, goal) in against.items():
        if theirs not in found:
            continue
        yield row(
            *(name, found["mixed"], "1/s"),
            against=said,
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


def _alone(ours: Program, machine: Program, adapters: list[str], plan: Plan) -> Iterator[Row]:
    """One stream: how much of what the memory gives is read."""
    slot = Path(adapters[0]).name
    wanted = {"prompts": [PROMPTS[0]], "slots": [slot], "tokens": 2 * plan.tokens}
    found = interleaved(
        plan.rounds, alone=_rated(lambda: ours("answer", **wanted)), bandwidth=lambda: machine("bandwidth")
    )
    read = ours("read_bytes", adapter=slot)[0]
    limit = found["bandwidth"] / read
    said = f"bandwidth ({found['bandwidth'] / 1e9:.0f} GB/s) over the bytes of a token ({read / MB:.0f} MB)"
    yield row("tokens a second, one stream, one adapter", found["alone"], "1/s", against=said, theirs=limit)


def _load_cost(ours: Program, adapter: str, plan: Plan) -> Iterator[Row]:
    found = ours("admit", folder=adapter, count=max(5, 4 * plan.rounds))
    yield row("an adapter read and put into a slot", median(found[::2]), "ms")
    yield row("the probe of a load", median(found[1::2]), "ms")


def _memory(base: Path, adapters: list[str], plan: Plan) -> Iterator[Row]:
    """What three tasks add to a process, and what three full models do."""
    with _programs(base, plan.device, "ours", "full") as programs:

        def grown(some: list[str]) -> float:
            """With these adapters more, each of which has answered."""
            programs["ours"]("load", folders=some)
            slots = [Path(name).name for name in some]
            programs["ours"]("answer", prompts=[PROMPTS[0]] * len(some), slots=slots, tokens=8)
            return programs["ours"]("grown")[0]

        three, eight = grown(adapters[:3]), grown(adapters[3:])
        (theirs,) = programs["full"]("grown")
    yield row(
        *("memory of three tasks", three / MB, "MB"),
        against="three full models, bf16",
        theirs=theirs / MB,
        ratio_at_most=0.4,
    )
    yield row("memory of a hot adapter more", (eight - three) / MB / (len(adapters) - 3), "MB")


def _check_adapters(program: Server, slots: Sequence[str]) -> None:
    """Every adapter answers in words of its own: a bench of adapters that do nothing would measure the base."""
    told = [program.told("text", prompt=PROMPTS[0], slot=slot, tokens=16) for slot in [None, *dict.fromkeys(slots)]]
    if len(set(told)) < len(told):
        raise RuntimeError(f"adapters: expected {len(told)} different answers with the base's, got {len(set(told))}")


def _rated(turn: Any) -> Any:
    """Tokens a second of one turn."""

    def rate() -> list[float]:
        seconds, drawn, *_ = turn()
        return [drawn / seconds]

    return rate


Server = Program | serving_llama.Server


@contextmanager
def _servers(model: Path, base: Path, adapters: list[str], plan: Plan) -> Iterator[dict[str, Server]]:
    """Other servers of adapters, on a CPU. One that does not start costs its own row, not the table; which is said."""
    starting: dict[str, AbstractContextManager[Server]] = {
        "llama": serving_llama.serving(plan.llama_server, model, base, [Path(name) for name in adapters], STREAMS),
    }
    if plan.vllm:
        starting["vllm"] = _vllm(base, adapters)
    with ExitStack() as stack:
        found = {}
        for name, one in starting.items() if plan.device == "cpu" else ():
            try:
                found[name] = stack.enter_context(one)
            except (OSError, RuntimeError) as error:
                print(f"bench: no row compares with {name}: {error}", file=sys.stderr)
        yield found


@contextmanager
def _vllm(base: Path, adapters: list[str]) -> Iterator[Program]:
    with start_program(base, "cpu", "vllm", VLLM) as program:
        program("load", folders=adapters)
        yield program


@contextmanager
def _programs(base: Path, device: str, *kinds: str) -> Iterator[dict[str, Program]]:
    """Started one after the other, each once it is ready."""
    with ExitStack() as stack:
        yield {kind: stack.enter_context(start_program(base, device, kind)) for kind in kinds}
