"""How many processes train one run, and on which machine they can."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Processes = Annotated[int, Field(ge=1, le=64)]


def misfits_machine(count: int, device: str, threads: int, cards: int) -> list[str]:
    """What is wrong with so many processes on a machine with these threads, and these cards that a worker may see."""
    if device == "cpu" and threads % count:
        return [f"recipe, processes: expected a divisor of this machine's {threads} threads, got {count}"]
    if device == "cuda" and count > cards:
        return [f"recipe, processes: expected at most {cards}, the cards that a worker may see, got {count}"]
    return []
