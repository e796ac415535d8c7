"""A client of the units' API over TCP, with a token for each unit."""

from __future__ import annotations

import http.client
import json
import selectors
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from io import BytesIO
from typing import Any

from scripts.benches.serving_home import UNITS
from scripts.kit.appliance import Appliance

PROMPT = "Write a short note to a customer whose card was declined at a shop this morning."


class UnitsClient:
    """A client of the units' API; each unit has one token."""

    def __init__(self, site: Appliance) -> None:
        self._site = site
        self._tokens = {unit: site.token(unit) for unit in UNITS}
        self.host, self.port = site.settings.listen or ("127.0.0.1", 0)

    def ask(self, unit: str, tokens: int, *, served_model: str = "own") -> int:
        """Ask for one answer and return the number of tokens."""
        with self._pending(unit, tokens, False, served_model) as answer:
            return _drawn(answer.read())

    def stream(self, units: Sequence[str], tokens: int) -> int:
        """Ask for all answers at once and return the number of tokens.

        One thread receives, and parses when all have ended, since the clients share the service's cores.
        """
        with ExitStack() as stack, selectors.DefaultSelector() as ready:
            received: dict[socket.socket, bytearray] = {}
            for unit in units:
                connection = self._connect(stack)
                self._send(connection, unit, tokens, True, "own")
                received[connection.sock] = bytearray()
                ready.register(connection.sock, selectors.EVENT_READ)
            open_ = len(received)
            while open_:
                for key, _ in ready.select():
                    assert isinstance(key.fileobj, socket.socket)
                    data = key.fileobj.recv(1 << 16)
                    received[key.fileobj] += data
                    if not data:
                        ready.unregister(key.fileobj)
                        open_ -= 1
            return sum(map(_read_events, received.values()))

    def stream_events(self, unit: str, tokens: int, *, served_model: str = "own") -> Iterator[dict[str, Any]]:
        """Yield the answer's events as they arrive."""
        with self._pending(unit, tokens, True, served_model) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])

    @contextmanager
    def _pending(self, unit: str, tokens: int, stream: bool, served_model: str) -> Iterator[http.client.HTTPResponse]:
        with ExitStack() as stack:
            connection = self._connect(stack)
            self._send(connection, unit, tokens, stream, served_model)
            yield _check(connection.getresponse())

    def _connect(self, stack: ExitStack) -> http.client.HTTPConnection:
        return stack.enter_context(closing(http.client.HTTPConnection(self.host, self.port, timeout=120)))

    def _send(
        self, connection: http.client.HTTPConnection, unit: str, tokens: int, stream: bool, served_model: str
    ) -> None:
        body = {"model": served_model, "max_tokens": tokens, "messages": [{"role": "user", "content": PROMPT}]}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = {"Authorization": f"Bearer {self._tokens[unit]}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {**headers, "Connection": "close"})


class _Received:
    """Received bytes, with the method of a socket that `http.client` reads an answer from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> BytesIO:
        return BytesIO(self._data)


def _read_events(data: bytes) -> int:
    answer = http.client.HTTPResponse(_Received(data))  # type: ignore[arg-type]
    answer.begin()
    *_, last = _check(answer).read().replace(b"data: [DONE]", b"").removeprefix(b"data: ").split(b"\n\ndata: ")
    return _drawn(last)


def _check(answer: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if answer.status != 200:
        raise RuntimeError(f"expected an answer, got {answer.status}: {answer.read()[:300]!r}")
    return answer


def _drawn(data: bytes) -> int:
    return int(json.loads(data)["usage"]["completion_tokens"])


def find_text(event: dict[str, Any]) -> str:
    """Return the text that an event adds to the answer."""
    return str(event["choices"][0]["delta"].get("content", "")) if event["choices"] else ""
