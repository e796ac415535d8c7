"""A collector of traces on loopback, that keeps what it is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer


@dataclass
class Collected:
    address: str = ""
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    """Path and body of each request."""
    codes: list[int] = field(default_factory=list)
    """With which the next requests are answered; 200 when none is left."""


@contextmanager
def collecting() -> Iterator[Collected]:
    found = Collected()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.sent.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(found.codes.pop(0) if found.codes else 200)
            self.send_header("Content-Length", "0")
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        found.address = f"http://127.0.0.1:{server.server_port}"
        yield found
        server.shutdown()
        thread.join()
