"""Follows the feed of entries and gives its lines to a receiver, each at least once and in order.

The index and the leaf hash of the last entry that the receiver took are kept in a file, if one is named. A line that
was sent before a failure and not kept there is sent again, so a receiver can see a line twice. `metadata.sequence`
identifies it.

Each line has the leaf hashes of its entry and of the entry before, and the number of archived entries between them. So
an entry that the service leaves out is an error, and so is another history (docs/formats/feed.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from pydantic import BaseModel, ValidationError

from appliance.client.support.files import read_file, replace_private
from appliance.errors import BadInput, Conflict, NotAuthenticated, NotFound, Tampered, Unavailable

if TYPE_CHECKING:
    import httpx

    from appliance.client.support.connection import Address

MAX_LINES = 1_000
"""Most lines of one request."""
MAX_UNSETTLED = 5_000
"""Most entries for which lines are sent before the receiver has taken them."""
POLL_S = 1.0
"""Seconds between two requests while there is no new entry, and between two looks at the receiver."""
LONGEST_WAIT_S = 60.0
"""Most seconds before the next try after a failure. The first wait is `POLL_S`, and each further one is doubled."""
_TIMEOUT_S = 30.0
_MAX_STATE_BYTES = 1_024


class Line(NamedTuple):
    """One line of the feed, without its end, and the values of it that a receiver needs."""

    entry: int
    time: str
    type: str
    severity: int
    data: bytes
    leaf: str = ""
    """Leaf hash of the entry."""
    prev: str = ""
    """Leaf hash of the entry before it in the log."""
    archived: int = 0
    """Number of archived entries between this one and the one before it in the feed."""


class Receiver(Protocol):
    """A target of the lines. A failure is Unavailable; then lines that were not taken are sent again."""

    def send(self, lines: Sequence[Line]) -> None:
        """Send lines in order."""

    def find_taken(self) -> int | None:
        """Return the index of the last line that was taken, or None if no line was."""

    def close(self) -> None:
        """Close the connection. Lines that were not taken are forgotten."""


class FeedSource:
    """The feed of a service at its operations listener."""

    def __init__(self, address: Address, token: bytes) -> None:
        self._address, self._token = address, token
        self._client: httpx.Client | None = None
        self.origin: str | None = None
        """The name of the log, once a line was read."""
        self._leaves: dict[int, str] = {}
        """The leaf hashes of the last entries that were read, as many as a receiver may not have taken yet."""

    def begin(self, origin: str | None, after: int, leaf: str | None) -> None:
        """Compare what is read with an earlier reading of the log, which ended with the entry `after`."""
        self.origin = origin
        if leaf is not None:
            self._leaves[after] = leaf

    def find_leaf(self, index: int) -> str | None:
        """Return the leaf hash of an entry among the last ones, or None."""
        return self._leaves.get(index)

    def read(self, after: int, limit: int) -> list[Line]:
        """Return the lines after the index.

        Raises:
            Unavailable: The service does not respond, or is not ready. A later try can succeed.
            Conflict: With the code `feed-ahead`, if the log has no such entry.
            Tampered: The lines are not those of all entries after the index in order, without the archived ones; or
                they do not continue what was read before.
        """
        import httpx

        if self._client is None:
            verify = self._address.tls() if self._address.ca else False
            self._client = httpx.Client(
                base_url=self._address.url, verify=verify, timeout=_TIMEOUT_S, trust_env=False, follow_redirects=False
            )
        try:
            answer = self._client.get(
                "/feed",
                params={"after": after, "limit": limit},
                headers={"Authorization": f"Bearer {self._token.decode('ascii', 'replace')}"},
            )
        except httpx.HTTPError as error:
            raise Unavailable(f"feed, {self._address}: expected a response, got {error}") from None
        self._check(answer)
        lines = [_parse(data) for data in answer.content.splitlines()]
        for line, origin in lines:
            if self.origin not in (None, origin):
                raise Tampered(f"feed, {self._address}: expected entries of the log {self.origin}, got {origin:.200}")
            self.origin = origin
            self._check_next(line, after)
            after = line.entry
            self._leaves[after] = line.leaf
        for index in list(self._leaves)[: -(MAX_UNSETTLED + MAX_LINES)]:
            del self._leaves[index]
        return [line for line, _ in lines]

    def _check_next(self, line: Line, after: int) -> None:
        """Check that a line is the next one after the index.

        Raises:
            Tampered: It is not.
        """
        what = f"feed, {self._address}"
        if line.archived < 0 or line.entry != after + 1 + line.archived:
            raise Tampered(
                f"{what}: expected the entries after {after} in order, got entry {line.entry} with {line.archived} "
                "archived before it: the service left entries out. Compare the feed with a verified export",
                code="feed-gap",
            )
        known = None if line.archived else self._leaves.get(after)
        if known not in (None, line.prev):
            raise Tampered(
                f"{what}: expected entry {line.entry} to follow entry {after} with the leaf {known}, got "
                f"{line.prev:.80}: this is another history. If the log was restored, begin again after its last kept "
                "entry, with --after and without the file of --state",
                code="split-view",
            )

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code == 200:
            return
        text = answer.text.strip()[:400]
        match answer.status_code:
            case 401:
                raise NotAuthenticated(f"feed, {self._address}: {text}")
            case 404:
                raise NotFound(f"feed, {self._address}: expected the setting feed_token on the service, got none")
            case 409:
                raise Conflict(f"feed, {self._address}: {text}", code="feed-ahead")
            case 400:
                raise BadInput(f"feed, {self._address}: {text}")
        raise Unavailable(f"feed, {self._address}: expected a response, got HTTP {answer.status_code}: {text}")


class _Metadata(BaseModel):
    sequence: int
    original_time: str
    event_code: str
    log_name: str


class _Place(BaseModel):
    leaf: str
    prev: str
    archived: int


class _Event(BaseModel):
    metadata: _Metadata
    severity_id: int
    unmapped: _Place


def _parse(data: bytes) -> tuple[Line, str]:
    try:
        event = _Event.model_validate_json(data)
    except ValidationError:
        raise Tampered("feed: expected events of OCSF with metadata, got something else") from None
    about, place = event.metadata, event.unmapped
    line = Line(
        about.sequence,
        about.original_time,
        about.event_code,
        event.severity_id,
        data,
        place.leaf,
        place.prev,
        place.archived,
    )
    return line, about.log_name


class FeedPosition(BaseModel):
    """The last entry that a receiver took, with its leaf hash, and the log's name."""

    log: str
    after: int
    leaf: str | None = None


@dataclass(frozen=True)
class FeedState:
    """The file with the last entry that the receiver took."""

    path: Path

    def read(self) -> FeedPosition | None:
        """Return the position, or None if the file does not exist.

        Raises: BadInput if it is malformed.
        """
        if not self.path.exists():
            return None
        data = read_file(self.path, "state of the feed", _MAX_STATE_BYTES)
        try:
            return FeedPosition.model_validate_json(data)
        except ValidationError:
            raise BadInput(f"state of the feed, {self.path}: expected log and after in JSON, got others") from None

    def write(self, position: FeedPosition) -> None:
        """Replace the file durably."""
        data = position.model_dump_json(exclude_none=True).encode() + b"\n"
        replace_private(self.path, data, "state of the feed")


class StreamReceiver:
    """A receiver that reads standard output. It has taken what could be written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._taken: int | None = None

    def send(self, lines: Sequence[Line]) -> None:
        try:
            for line in lines:
                self._stream.write(line.data + b"\n")
            self._stream.flush()
        except OSError as error:
            raise Conflict(f"output: expected a reader of the lines, got {error.strerror or error}") from None
        self._taken = lines[-1].entry

    def find_taken(self) -> int | None:
        return self._taken

    def close(self) -> None:
        self._taken = None


@dataclass
class FeedForwarder:
    """Moves lines from a source to a receiver, from the entry after `after` on.

    `say` is called with each failure. `pause` waits for the seconds, and returns True if the command has to end.
    """

    source: FeedSource
    receiver: Receiver
    after: int
    state: FeedState | None = None
    say: Callable[[str], object] = lambda _: None
    pause: Callable[[float], object] = time.sleep
    waits: int = 0
    """Number of failures in a row."""

    def follow(self, *, once: bool = False) -> None:
        """Follow the feed. With `once`, return when the receiver has taken all entries that exist now.

        Raises:
            Unavailable: With `once`, if a try failed.
        """
        sent = self.after
        while True:
            room = max(0, min(MAX_LINES, MAX_UNSETTLED - (sent - self.after)))  # removed entries count, too
            lines: list[Line] = []
            failure: Unavailable | None = None
            try:
                lines = self.source.read(sent, room) if room else []
            except Unavailable as error:  # the receiver still takes what was sent
                failure = error
            try:
                if lines:
                    self.receiver.send(lines)
                    sent = lines[-1].entry
                self._keep_taken()
            except Unavailable as error:
                failure = error
                self.receiver.close()
                sent = self.after
            if failure is not None and once:
                raise failure
            if failure is not None:
                self._wait(failure)
            elif once and room and not lines and self.after == sent:
                return
            else:
                self.waits = 0
                if not lines:
                    self.pause(POLL_S)

    def _keep_taken(self) -> None:
        taken = self.receiver.find_taken()
        if taken is None or taken <= self.after:
            return
        if self.state is not None and self.source.origin is not None:
            self.state.write(FeedPosition(log=self.source.origin, after=taken, leaf=self.source.find_leaf(taken)))
        self.after = taken

    def _wait(self, error: Unavailable) -> None:
        seconds = min(LONGEST_WAIT_S, POLL_S * 2**self.waits)
        self.waits = min(self.waits + 1, 10)
        self.say(f"{error.message}; the next try is in {seconds:.0f} s, after entry {self.after}")
        self.pause(seconds)


def find_start(state: FeedState | None, after: int | None) -> tuple[int, FeedPosition | None]:
    """Return the index after which to begin, and the position in the state's file, if there is one.

    Raises:
        Conflict: Both the state's file and an index are given.
    """
    kept = None if state is None else state.read()
    if kept is None:
        return -1 if after is None else after, None
    if after is not None and state is not None:
        raise Conflict(
            f"state of the feed, {state.path}: expected none beside --after, got one that ends at entry {kept.after}; "
            "remove the file to begin elsewhere"
        )
    return kept.after, kept
