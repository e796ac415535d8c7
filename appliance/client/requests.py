"""What became of a unit's request: its entries, and those that let the adapter answer, each proved on this side."""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.client.support.door import Door
from appliance.client.support.log import Anchor, Proven, find_entries, read_entry
from appliance.domain.rulebook.apply import parse_body
from appliance.domain.serving.requests import RequestAdmitted, RequestFinished
from appliance.errors import BadInput, NotFound, Tampered, Unavailable

_ID = re.compile(r"(?:chatcmpl-|cmpl-|classify-)?([0-9a-f]{32})")


@dataclass(frozen=True)
class Request:
    """`finished` is None while it is being answered; `rests_on`: admission, release and reviews, in this order."""

    name: str
    admitted: Proven
    finished: Proven | None
    rests_on: tuple[Proven, ...]

    @property
    def last(self) -> Proven:
        """The entry that says most of it."""
        return self.finished or self.admitted


def parse_request_id(text: str) -> str:
    """The request's name, from itself or from the `id` of an answer."""
    found = _ID.fullmatch(text)
    if found is None:
        raise BadInput(f"request: expected the id of an answer, or its 32 hexadecimal digits, got {text!r:.80}")
    return found[1]


def find_request(door: Door, anchor: Anchor, name: str) -> Request:
    """NotFound where the log has none of this name; Tampered when its entries are not what they were found as."""
    subject = f"request:{name}"
    found = [read_entry(door, anchor, entry.index) for entry in find_entries(door, subject=(subject,))]
    if not found:
        raise NotFound(f"request: expected one in the log, got {name}")
    for proven in found:
        if proven.entry.subjects[0] != subject:
            raise Tampered(f"entry {proven.entry.index}: expected one of {subject}, got {proven.entry.subjects[0]}")
    admitted, *rest = found
    body = parse_body(admitted.entry)
    if not isinstance(body, RequestAdmitted) or [proven.entry.type for proven in rest] not in (
        [],
        [RequestFinished.type],
    ):
        types = ", ".join(proven.entry.type for proven in found)
        raise Unavailable(f"request {name}: expected its beginning, and its end at most, got {types}")
    rests_on = (body.admitted, body.release, *body.approvals)
    return Request(
        name,
        admitted,
        rest[0] if rest else None,
        tuple(read_entry(door, anchor, index) for index in rests_on),
    )
