"""The two parts of a long log, verified at the same time.

Whoever takes the second part folds the first without checking it: orders by the rules, requests by their names alone.
That gives the state in which the first part ends if all of it stands, and from there he verifies the second as any
other log. Whoever verifies the first part says in which state it ended: only if it is that very state, with nothing
found in either part, was the log verified whole. Otherwise one verifies it alone, from its beginning; so what is said
of a log never depends on how it was parted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from appliance.domain.entry import parse_entry
from appliance.domain.events import Heartbeat, RequestAdmitted, RequestFinished, RequestRefused
from appliance.domain.names import Digest, Value
from appliance.domain.replay import Documents
from appliance.domain.rules import apply, parse_body
from appliance.domain.serving import open_request
from appliance.domain.state import State
from appliance.domain.verify import Audit
from appliance.errors import Conflict


class Verified(Value):
    """What is said of a first part in which nothing was found: the state in which it ended, and what was counted."""

    ended: Digest
    counted: dict[str, int]


def verify_first(audit: Audit, entries: Iterator[bytes], stop: int) -> Verified:
    """The entries before index `stop`; Conflict at the first finding."""
    for data in islice(entries, stop):
        audit.take(data)
        _check_clean(audit)
    return Verified(ended=audit.fingerprint(), counted=audit.counted)


def verify_second(audit: Audit, entries: Iterator[bytes], start: int, documents: Documents) -> Digest:
    """The entries from index `start` on, behind a first part that is believed: the state in which that ends, if it
    stands. ApplianceError unless nothing at all is found."""
    assumed = Assumed(audit.state, documents)
    for index, data in enumerate(islice(entries, start)):
        assumed.take(data)
        audit.pass_over(data)
        if index == 0:
            audit.compare_with_trust()
    assumed.end()
    began = audit.fingerprint()
    for data in entries:
        audit.take(data)
        _check_clean(audit)
    return began


def _check_clean(audit: Audit) -> None:
    if not audit.is_clean:
        raise Conflict(f"entry {audit.state.size - 1}: expected nothing against it, got a finding")


def _end_of(kind: str) -> bytes:
    """How an entry of the type ends, since members are sorted."""
    return b',"type":"%b","v":1}' % kind.encode()


_ADMITTED, _FINISHED = _end_of(RequestAdmitted.type), _end_of(RequestFinished.type)
_EMPTY = (_end_of(Heartbeat.type), _end_of(RequestRefused.type))
"""Entries that change nothing."""
_REQUEST = b'"request:'


class Assumed:
    """The fold of entries that are believed to stand."""

    def __init__(self, state: State, documents: Documents) -> None:
        self._state = state
        self._documents = documents
        self._last = b""
        self._open: dict[bytes, bytes] = {}
        """Requests that were admitted and have not ended: name to entry."""

    def take(self, data: bytes) -> None:
        self._last = data
        if data.endswith(_ADMITTED):
            self._open[_request_of(data)] = data
        elif data.endswith(_FINISHED):
            self._open.pop(_request_of(data), None)
        elif not data.endswith(_EMPTY):
            self._apply(data)

    def _apply(self, data: bytes) -> None:
        entry, state = parse_entry(data), self._state
        found = {role: self._documents(digest) for role, digest in entry.documents.items()}
        state.size, state.last_leaf = entry.index, entry.prev
        apply(state, entry, {role: content for role, content in found.items() if content is not None})
        state.keep()

    def end(self) -> None:
        """After the last one: what was skipped is put in its place."""
        state = self._state
        for data in self._open.values():
            entry = parse_entry(data)
            body = parse_body(entry)
            if isinstance(body, RequestAdmitted):
                state.requests.set(body.request, open_request(entry, body))
        last = parse_entry(self._last)
        state.size, state.last_time, state.last_leaf = last.index + 1, last.time, last.link


def _request_of(data: bytes) -> bytes:
    start = data.find(_REQUEST) + len(_REQUEST)
    return data[start : start + 32]
