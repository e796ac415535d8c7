"""Synthetic logs for benches and tests: valid, of any length, made as a stream in constant memory.

The entries that people sign are made one by one by the rules (`signed_site`). The entries of units and of the service
between them (requests, heartbeats, refusals) are copies of one entry of each kind, chained and hashed in sequence. The
verifier and the ledger accept these logs like any other.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from appliance.domain.core.entry import Event
from appliance.domain.governance.service import Heartbeat
from appliance.domain.serving.requests import RequestRefused, name_request
from appliance.formats.core.merkle import EMPTY_ROOT, hash_leaf, hash_node
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from scripts.benches.signed_site import STEP_MS, Made, SignedSite
from scripts.kit.log_builder import ORIGIN

_HEARTBEAT_EVERY = 120
_REFUSAL_EVERY = 200
_FAILURES = 0.02
_IN_FLIGHT = 8
_DAY_MS = 86_400_000

# Placeholders in the template of a copied entry, for the values that each copy has of its own.
_REQUEST, _COMMITMENT, _LEAF = "a" * 32, "hmac-sha256:" + "b" * 64, "sha256:" + "d" * 64
_TIME, _INDEX = "2001-01-01T00:00:00.000Z", 4_294_967_291
_VARYING = (
    (_REQUEST, b"%(request)b"),
    (_COMMITMENT, b"hmac-sha256:%(commitment)b"),
    (_LEAF, b"sha256:%(leaf)b"),
    (_TIME, b"%(time)b"),
    (str(_INDEX), b"%(index)d"),
)


class _Copied:
    """A template for entries of one kind, which differ only in index, time, predecessor, request and commitment."""

    def __init__(self, site: SignedSite, event: Event, **changes: Any) -> None:
        fixed = {"index": _INDEX, "time": _TIME, "prev": _LEAF, "source": "tcp"}
        entry, _ = site.entry(event, **fixed | changes)
        self.type, self.actor, self.outcome = entry.type, entry.actor, entry.outcome
        self.template = entry.encoded.replace(b"%", b"%%")
        for text, place in _VARYING:
            self.template = self.template.replace(text.encode(), place)
        self._fixed = tuple(subject for subject in entry.subjects if not subject.startswith("request:"))
        self._has_request = len(self._fixed) < len(entry.subjects)

    def subjects(self, request: str) -> tuple[str, ...]:
        return (f"request:{request}", *self._fixed) if self._has_request else self._fixed


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """An adapter that serves a unit, with the templates of its requests' entries. Compared by identity."""

    admitted: _Copied
    finished: _Copied
    failed: _Copied

    @classmethod
    def of(cls, site: SignedSite, slot: Any) -> _Slot:
        place = {
            "unit": slot["unit"],
            "served_model": slot["served_model"],
            "adapter": slot["adapter"],
            "request": _REQUEST,
        }
        ended = {**place, "prompt_tokens": 212, "completion_tokens": 18}
        return cls(
            _Copied(site, site.request(prompt=_COMMITMENT, token_issued_at=_TIME, **place)),
            _Copied(site, site.answered(answer=_COMMITMENT, **ended)),
            _Copied(site, site.answered(finish_reason="failure", **ended), outcome="failure"),
        )


class Synthetic:
    """A log of `size` entries. After the set-up, the share `signed` of the entries are orders, spread evenly.

    `entries` yields each entry once, in order. `checkpoint` covers the entries that were yielded so far. `leaf` and
    `time` are those of the last entry, `index` is that of the next.
    """

    MIN_SIZE = 100
    """Least size: the people are enrolled and the first adapter is released to every unit before the first request."""

    def __init__(self, size: int, *, signed: float = 0.01, seed: int = 0) -> None:
        if size < self.MIN_SIZE:
            raise ValueError(f"synthetic log, size: expected at least {self.MIN_SIZE}, got {size}")
        self.size, self.origin = size, ORIGIN
        self.index, self.time, self.orders = 0, "", 0
        self._site = SignedSite(seed)
        self.signer, self.trust = self._site.log, self._site.trust
        self._signed, self._random = signed, random.Random(f"requests {seed}")
        self.leaf = b""
        self._stack: list[bytes] = []
        self._slots: dict[str, _Slot] = {}
        self._serving: tuple[_Slot, ...] = ()
        self._open: deque[tuple[_Slot, str]] = deque()
        self._day, self._clock_ms = (-1, ""), 0

    def entries(self) -> Iterator[Made]:
        for made in self._all():
            yield made
            if made.index == self.size - 1:
                return

    def checkpoint(self) -> bytes:
        """Return the log's signed checkpoint over the entries so far."""
        root = self._stack[-1] if self._stack else EMPTY_ROOT
        for left in reversed(self._stack[:-1]):
            root = hash_node(left, root)
        return sign_checkpoint(Checkpoint(self.origin, self.index, root), self.signer)

    def _all(self) -> Iterator[Made]:
        for _ in self._site.enrol_people():
            pass
        for _ in self._site.cycle(1):
            pass
        yield from self._take_signed()
        began = self.index
        self.orders = 0
        steps = (step for version in count(2) for step in self._site.cycle(version))
        filler = self._filler()
        while True:
            if self.orders < self._signed * (self.index - began):
                self._site.skip_to(self.index, self.leaf, self.time)
                next(steps)
                yield from self._take_signed()
            yield next(filler)

    def _take_signed(self) -> Iterator[Made]:
        for made in self._site.take():
            self.orders += "order" in made.documents
            for kind, key, value in made.changes:
                if kind == "slot" and value is not None and value["loaded"] is not None:
                    self._slots[key] = _Slot.of(self._site, value)
            yield self._give(made)
        self._serving = tuple(self._slots.values())
        self._clock_ms = round(parse_time(self.time).timestamp() * 1000)

    def _give(self, made: Made) -> Made:
        """Append the entry to the tree, and return it with the nodes that it completes."""
        top, place, stack = made.leaf, made.index, self._stack
        made.nodes.append(top)
        while place & 1:
            top, place = hash_node(stack.pop(), top), place >> 1
            made.nodes.append(top)
        stack.append(top)
        self.index, self.leaf, self.time = made.index + 1, made.leaf, made.time
        return made

    def _filler(self) -> Iterator[Made]:
        """Yield entries of requests of all slots, up to eight at a time, and of heartbeats and refusals."""
        refused = RequestRefused(unit="sales", application=None, served_model=None, code="not-found", count=1)
        others = {_HEARTBEAT_EVERY: _Copied(self._site, Heartbeat()), _REFUSAL_EVERY: _Copied(self._site, refused)}
        chance = self._random.random
        for number in count(1):
            rare = next((copied for every, copied in others.items() if number % every == 0), None)
            if rare is not None:
                yield self._copy(rare, "")
            elif self._open and (len(self._open) == _IN_FLIGHT or chance() < 0.5):
                slot, request = self._open.popleft()
                # A request fails if its slot was emptied meanwhile.
                fails = chance() < _FAILURES or slot not in self._serving
                yield self._copy(slot.failed if fails else slot.finished, request)
            else:
                slot = self._serving[int(chance() * len(self._serving))]
                request = name_request(self._clock_ms, self._random.randbytes(10))
                self._open.append((slot, request))
                yield self._copy(slot.admitted, request)

    def _copy(self, copied: _Copied, request: str) -> Made:
        time = self._tick()
        data = copied.template % {
            b"request": request.encode(),
            b"commitment": b"%064x" % self._random.getrandbits(256),
            b"leaf": self.leaf.hex().encode(),
            b"time": time.encode(),
            b"index": self.index,
        }
        leaf, subjects = hash_leaf(data), copied.subjects(request)
        return self._give(Made(self.index, data, leaf, time, copied.type, copied.actor, copied.outcome, subjects, []))

    def _tick(self) -> str:
        """Return the next entry's time."""
        self._clock_ms += STEP_MS
        day, ms = divmod(self._clock_ms, _DAY_MS)
        if self._day[0] != day:
            self._day = (day, encode_time(datetime.fromtimestamp(day * 86_400, UTC))[:11])
        seconds, ms = divmod(ms, 1000)
        return f"{self._day[1]}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{ms:03d}Z"
