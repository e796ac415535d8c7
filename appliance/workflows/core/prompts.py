"""A reviewer's prompts until the order that binds them: in memory alone, for a quarter of an hour at most."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from appliance.errors import BadInput, TooMany
from appliance.formats.core.commitment import Disclosure, verify_disclosure

MOST = 256
"""Prompts that are held at a time, of all people."""
MOST_OF_ONE = 32
"""Of one person, so that nobody fills the room of all."""
KEPT_S = 900.0
MOST_CHARACTERS = 20_000


class Prompts:
    """By who sent them and by their commitments."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], tuple[float, Disclosure]] = {}

    def hold(self, person: str, prompts: Sequence[Disclosure]) -> int:
        """How many are held for this person now. BadInput names a prompt that is too long, TooMany means no room."""
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
                    raise TooMany(f"prompts: expected at most {most} {of}, got {got}; try again in a few minutes")
            self._held = held
            return own

    def missing(self, person: str, commitments: Sequence[str]) -> list[str]:
        """Those of these that are not held for this person."""
        with self._lock:
            return [one for one in commitments if (person, one) not in self._held]

    def take(self, person: str, commitments: Sequence[str]) -> list[Disclosure]:
        """They are held no longer. BadInput where one is not there any more."""
        with self._lock:
            found = [self._held.pop((person, one), None) for one in commitments]
        prompts = [one[1] for one in found if one is not None]
        if len(prompts) != len(commitments):
            raise BadInput(f"prompts: expected {len(commitments)}, got {len(prompts)}; send them again")
        return prompts
