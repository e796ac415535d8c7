"""The second part of a log, verified at the same time as the first, by whoever runs ahead.

He folds the first part without checking it: orders by the rules, requests by their names alone. That gives the state
in which the first part ends if all of it stands, and from there he verifies the second as any other log. Whoever
verified the first part compares: only if he stands in that very state, with nothing found, does he go on from the end.
Otherwise he verifies the second part himself; so what is said of a log never depends on who ran ahead, or how far.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from appliance.domain.entry import parse_entry
from appliance.domain.events import Heartbeat, RequestAdmitted, RequestFinished, RequestRefused
from appliance.domain.replay import Documents
from appliance.domain.rules import apply, parse_body
from appliance.domain.serving import open_request
from appliance.domain.state import State
from appliance.domain.verify import Audit, Part
from appliance.errors import Conflict


def run_ahead(audit: Audit, entries: Iterator[bytes], start: int, documents: Documents) -> Part:
    """What the entries from index `start` on come to; ApplianceError unless nothing at all is found."""
    assumed = Assumed(audit.state, documents)
    for data in islice(entries, start):
        assumed.take(data)
        audit.pass_over(data)
    assumed.end()
    began = audit.fingerprint()
    for data in entries:
        audit.take(data)
        if not audit.is_clean:
            raise Conflict(f"entry {audit.state.size - 1}: expected nothing against it, got a finding")
    return audit.part(began)


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
