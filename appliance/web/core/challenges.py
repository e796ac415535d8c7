"""Nonces that a person or an application answers: made without being remembered, so that no flood takes them away."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable

from appliance.errors import NotAuthenticated

CHALLENGE_S = 60
_STAMP, _RANDOM, _MAC = 4, 4, 8


class Challenges:
    """16 bytes in hexadecimal: a time, random bytes, and a code over both under a key of this process. Those that were
    answered are remembered until they end; a restart ends all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, what: str = "token request") -> None:
        """`what` an error names."""
        self._clock, self._what = clock, what
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._answered: dict[str, int] = {}

    def make(self) -> str:
        head = int(self._clock()).to_bytes(_STAMP) + secrets.token_bytes(_RANDOM)
        return (head + self._code(head)).hex()

    def check(self, nonce: str) -> int:
        """When it ends; NotAuthenticated unless it was made here within the last minute, and never taken."""
        data, now = bytes.fromhex(nonce), int(self._clock())
        head, code = data[:-_MAC], data[-_MAC:]
        ends = int.from_bytes(head[:_STAMP]) + CHALLENGE_S
        if not hmac.compare_digest(code, self._code(head)) or ends < now or nonce in self._answered:
            expected = "a nonce of the last minute that was not used, got one unknown, used or too old"
            raise NotAuthenticated(f"{self._what}: expected {expected}", code="challenge")
        return ends

    def take(self, nonce: str) -> None:
        """Once; NotAuthenticated as `check` has it."""
        with self._lock:
            now = int(self._clock())
            self._answered = {known: end for known, end in self._answered.items() if end >= now}
            self._answered[nonce] = self.check(nonce)

    def _code(self, head: bytes) -> bytes:
        return hmac.digest(self._key, head, "sha256")[:_MAC]
