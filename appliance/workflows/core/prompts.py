"""Texts of sample views in memory: prompts until their order arrives, and answers until the reviewer fetches them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.domain.core.decisions import Preview
from appliance.domain.core.entry import Event
from appliance.errors import BadInput, RateLimited
from appliance.formats.core.commitment import Disclosure, verify_disclosure

MOST = 256
"""Most prompts that are held at a time for all people together."""
MOST_OF_ONE = 32
"""Most prompts of one person, so that a single person cannot use up the limit of all."""
KEPT_S = 900.0
"""Seconds that a prompt waits for its order."""
ANSWERS_KEPT_S = 600.0
"""Seconds that answers wait for the person who ordered them."""
MOST_CHARACTERS = 20_000
"""Most characters of a prompt."""


class Prompts:
    """Prompts by the person who sent them and by their commitments."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], tuple[float, Disclosure]] = {}

    def hold(self, person: str, prompts: Sequence[Disclosure]) -> int:
        """Hold the prompts, and return how many are held for this person now.

        Raises:
            BadInput: A prompt is empty or too long; the error names it.
            RateLimited: A limit on held prompts would be exceeded.
        """
        for number, prompt in enumerate(prompts):
            verify_disclosure(prompt)
            if not 0 < len(prompt.text) <= MOST_CHARACTERS:
                got = len(prompt.text)
                raise BadInput(f"prompt {number}: expected 1 to {MOST_CHARACTERS} characters, got {got}")
        with self._lock:
            now = self._clock()
            self._held = {key: found for key, found in self._held.items() if now - found[0] < KEPT_S}
            held = self._held | {(person, prompt.commitment): (now, prompt) for prompt in prompts}
            own = sum(owner == person for owner, _ in held)
            for most, got, of in ((MOST, len(held), "at a time"), (MOST_OF_ONE, own, "of one person at a time")):
                if got > most:
                    raise RateLimited(f"prompts: expected at most {most} {of}, got {got}; try again in a few minutes")
            self._held = held
            return own

    def missing(self, person: str, commitments: Sequence[str]) -> list[str]:
        """Return the commitments whose prompts are not held for this person."""
        with self._lock:
            return [one for one in commitments if (person, one) not in self._held]

    def take(self, person: str, commitments: Sequence[str]) -> list[Disclosure]:
        """Remove the prompts of these commitments and return them.

        Raises:
            BadInput: A prompt is no longer held.
        """
        with self._lock:
            found = [self._held.pop((person, one), None) for one in commitments]
        prompts = [one[1] for one in found if one is not None]
        if len(prompts) != len(commitments):
            raise BadInput(f"prompts: expected {len(commitments)}, got {len(prompts)}; send them again")
        return prompts


@dataclass(frozen=True)
class Answers:
    """The computed answers of a preview, and the event that records that they were received."""

    preview: Preview
    event: Event
    result: dict[str, Any]
    prompts: tuple[Disclosure, ...] = ()


class HeldAnswers:
    """Answers by the order of their preview. Each can be taken once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, tuple[float, Answers]] = {}

    def put(self, answers: Answers) -> None:
        """Hold the answers until they are taken."""
        with self._lock:
            self._held[answers.preview.order] = (self._clock(), answers)

    def find(self, order: str) -> Answers | None:
        """Return the answers of the order without removing them, or None."""
        found = self._held.get(order)
        return None if found is None else found[1]

    def take(self, order: str) -> Answers | None:
        """Remove the answers and return them. Return None if another caller took them."""
        with self._lock:
            found = self._held.pop(order, None)
        return None if found is None else found[1]

    def take_expired(self) -> list[Answers]:
        """Remove and return the answers that nobody fetched in time."""
        with self._lock:
            now = self._clock()
            late = [order for order, (since, _) in self._held.items() if now - since >= ANSWERS_KEPT_S]
            return [self._held.pop(order)[1] for order in late]
