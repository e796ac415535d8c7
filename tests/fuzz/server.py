"""A process with every listener of a service over a founded log: `python -m tests.fuzz.server FOLDER`.

A unit's questions are answered without a model. It writes its addresses and credentials to `FOLDER/server.json`, and
each unforeseen exception of a request, which a listener answers with 500, to `FOLDER/exceptions`. It ends when its
input ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.credentials import UnitToken, encode_credential, encode_token
from appliance.domain.core.names import add_seconds
from appliance.formats.signatures.dsse import sign_envelope
from appliance.web.operations.health import OperationsTokens, Readiness, operations_app, read_feed
from appliance.web.operations.metrics import Metrics
from appliance.web.people.api import people_app
from appliance.web.people.middleware import PeopleLimitsMiddleware
from appliance.web.units.openai import units_app
from appliance.workflows.core.jobs import Job, Jobs
from scripts.kit.log_builder import ORIGIN
from scripts.kit.ports import free_port
from tests.domain.runs.test_sweeps import VALIDATING
from tests.kit.console import Console, console, listening

PEOPLE = {
    "administrator": "anna",
    "auditor": "audrey",
    "operator": "olga",
    "reviewer": "rita",
    "release-owner": "otto",
    "unit": "legal",
}
"""A person of each role, and a unit."""
TOKENS = OperationsTokens(b"metrics" * 4, b"feed" * 8)
SESSION_S = 900
"""Seconds that the policy allows a session."""


class _Undone(Jobs):
    """Jobs that no worker does."""

    def put(self, job: Job, owner: str = "") -> None:
        return


@contextmanager
def serving(folder: Path, home: Path) -> Iterator[None]:
    """Serve all listeners, and tell their addresses."""
    ports = {name: free_port() for name in ("people", "units", "operations", "console")}
    url = f"http://localhost:{ports['console']}"
    with ExitStack() as stack:
        desk = stack.enter_context(console("serving", home, url))
        _complete(desk)
        context: Any = desk.context
        metrics = Metrics(context, desk.answers.quotas)
        serving, quotas = desk.answers.serving, desk.answers.quotas
        apps: dict[str, Any] = {
            "people": PeopleLimitsMiddleware(people_app(context, desk.authenticator, url), desk.authenticator),
            "units": units_app(serving, desk.authenticator, quotas, metrics),
            "operations": operations_app(Readiness(context), metrics, partial(read_feed, context), TOKENS),
            "console": desk.app,
        }
        for name, app in apps.items():
            stack.enter_context(listening(desk, ports[name], app))
        people = {kind: desk.token(name, SESSION_S) for kind, name in PEOPLE.items()}
        cookies = {kind: desk.signed_in(name) for kind, name in PEOPLE.items()}
        told = {
            "urls": {name: f"http://127.0.0.1:{port}" for name, port in ports.items()} | {"console": url},
            "sessions": people,
            "unit": _unit_token(desk),
            "operations": {"metrics": TOKENS.metrics.decode(), "feed": TOKENS.feed.decode()},  # type: ignore[union-attr]
            "cookies": {kind: dict(one.http.cookies) for kind, one in cookies.items()},
            "csrf": {kind: one.csrf for kind, one in cookies.items()},
            "pid": os.getpid(),
        }
        part = folder / "server.part"
        part.write_text(json.dumps(told))
        part.rename(folder / "server.json")
        yield


def _complete(desk: Console) -> None:
    """Add what addresses name beside the things of the stage. Work that is ordered waits without end."""
    context: Any = desk.context
    desk.site.import_set()
    desk.site.request_run(recipe=VALIDATING, sweep="tried-1")
    for name in ("bases", "datasets", "runs", "previews"):
        setattr(context, name, _Undone(name))


def _unit_token(desk: Console) -> str:
    now = desk.context.now(desk.context.ledger.state)
    end = add_seconds(now, SESSION_S)
    token = UnitToken(origin=ORIGIN, signer="legal", nonce="0" * 32, issued_at=now, expires_at=end)
    return encode_token(sign_envelope(encode_credential(token), desk.site.keys["legal"]))


def main() -> None:
    folder = Path(sys.argv[1])
    written = logging.FileHandler(folder / "exceptions")
    written.addFilter(lambda record: record.exc_info is not None)
    logging.getLogger().addHandler(written)
    with tempfile.TemporaryDirectory(prefix="ap-fuzz-") as home, serving(folder, Path(home, "h")):
        sys.stdin.read()


if __name__ == "__main__":
    main()
