"""Benches of a prompt of 512 tokens and of one stream, beside llama.cpp with the same weights in 4 bits."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import correlation, median

from scripts.benches import serving_llama
from scripts.benches.measure import Medians, Row, measure_interleaved, row
from scripts.benches.programs import ROOT, Program, start_program

LLAMA = ROOT / ".venv-bench-llama" / "bin" / "python"
"""The environment that `scripts/bench` makes from the extra `bench-llama`."""
TOKENS, WORDS = 512, 10_000
ALIKE = 400
WORDS_OF_LAW = ("party", "sum", "lease", "day", "notice", "rent", "term", "fee", "loss", "land", "bank", "court")
STREAM_TOKENS, STREAM_PROMPT = 128, 48


def measure(ours: Program, gguf: Path, *, rounds: int, reads: int) -> Iterator[Row]:
    """Yield the row of the prompt, which is read `reads` times a turn. Without llama.cpp the row has no comparison."""
    draw = random.Random(1)
    # The first tokens of a vocabulary can be special, so they are left out.
    ids = [draw.randrange(100, WORDS) for _ in range(TOKENS)]
    name = f"a prompt of {TOKENS} tokens: tokens a second"
    if not LLAMA.exists():
        print(f"bench: {name}: llama.cpp is left out, since there is no {LLAMA.parents[1].name}", file=sys.stderr)
        found = measure_interleaved(rounds, ours=lambda: _rate(ours, ids, reads))
        yield row(name, found["ours"], "1/s")
        return
    with start_program(gguf, "cpu", "llama", LLAMA) as llama:
        for one in (ours, llama):
            one("read", ids=ids, count=1)
        found = measure_interleaved(
            rounds, ours=lambda: _rate(ours, ids, reads), llama=lambda: _rate(llama, ids, reads)
        )
    yield row(
        *(name, found["ours"], "1/s"),
        against=f"llama.cpp, {gguf.stem.rpartition('.')[2]}",
        theirs=found["llama"],
        ratio=found.ratio("ours", "llama"),
        ratio_at_least=0.8,
        note="reference 1.0×",
    )


def measure_stream(ours: Program, adapter: Path, base: Path, gguf: Path, rounds: int) -> Iterator[Row]:
    """Yield the row of one answer with one adapter, beside llama.cpp with the same adapter.

    Yield none if llama.cpp is not installed, or if its logits show that it applies the adapter in another way; that is
    printed.
    """
    if not LLAMA.exists():
        return
    prompt = "Name the parties, what each of them owes to the other, and the date by which it is due, in one sentence."
    with tempfile.TemporaryDirectory() as name, start_program(gguf, "cpu", "llama", LLAMA) as llama:
        file = Path(name) / "adapter.gguf"
        serving_llama.write_adapter(adapter, base, file)
        ids = random.Random(1).sample(range(100, WORDS), STREAM_PROMPT)
        expected = ours("logits", ids=ids, slot=adapter.name)
        without = correlation(expected, llama("logits", ids=ids))
        llama("load", adapter=str(file))
        adapted = correlation(expected, llama("logits", ids=ids))
        if not applies_adapter(without, adapted):
            reason = f"with the adapter its logits correlate with ours by {adapted:.3f}, without it by {without:.3f}"
            print(f"bench: one stream: llama.cpp is left out: {reason}", file=sys.stderr)
            return
        turns = {
            "ours": lambda: ours("answer", prompts=[prompt], slots=[adapter.name], tokens=STREAM_TOKENS),
            "llama": lambda: llama("draw", ids=ids, tokens=STREAM_TOKENS),
        }
        for turn in turns.values():
            turn()
        found = measure_interleaved(max(rounds, 3), **{name: partial(_drawn, turn) for name, turn in turns.items()})
    yield stream_row(found, f"llama.cpp with that adapter in float32, {gguf.stem.rpartition('.')[2]}; ours bf16, NF4")


def stream_row(found: Medians, against: str) -> Row:
    """Return the row that compares the turns `ours` and `llama`."""
    return row(
        *(f"tokens a second, one stream of {STREAM_TOKENS} tokens, one adapter", found["ours"], "1/s"),
        against=against,
        theirs=found["llama"],
        ratio=found.ratio("ours", "llama"),
        ratio_at_least=0.5,
        note="reference 1.0×",
    )


def measure_again(ours: Program, slot: str, rounds: int) -> Iterator[Row]:
    """Yield the row of a second prompt with the same first 400 words as the first one."""
    draw = random.Random(1)
    firsts, seconds, read = [], [], 0
    # Each word has one token or a few. So the beginning has at least 400 tokens, which are three cached pieces.
    for _ in range(rounds + 1):
        beginning = " ".join(draw.choices(WORDS_OF_LAW, k=ALIKE))
        first, _, _, second, tokens, kept = ours("again", beginning=beginning, ends=["who pays?", "when?"], slot=slot)
        firsts, seconds, read = [*firsts, first], [*seconds, second], int(tokens - kept)
    ratios = [second / first for first, second in zip(firsts[1:], seconds[1:], strict=True)]
    yield row(
        *("a second prompt with the same 400 tokens before it", 1e3 * median(seconds[1:]), "ms"),
        against="the first",
        theirs=1e3 * median(firsts[1:]),
        ratio=median(ratios),
        ratio_at_most=0.3,
        note=f"{int(tokens)} tokens, {read} of them read",
    )


def applies_adapter(without: float, adapted: float) -> bool:
    """Return True if llama.cpp applies the adapter as we do, by the correlation of its logits with ours.

    Measured with SmolLM2: 0.70 without the adapter, 0.84 with it, 0.71 with its q and k in another order, 0.63 with
    another adapter.
    """
    return 1 - adapted < 0.75 * (1 - without)


def _drawn(turn: Callable[[], list[float]]) -> list[float]:
    seconds, drawn, *_ = turn()
    return [drawn / seconds]


def _rate(one: Program, ids: list[int], reads: int) -> list[float]:
    return [len(ids) / seconds for seconds in one("read", ids=ids, count=reads)]
