"""`scripts/bench console`: times of the console's pages over a large log, and the bytes of a browser's first page.

The console answers in this process, over a synthetic log. More runs and adapters than the log has are inserted into the
state and the projections.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from sqlalchemy import insert
from starlette.testclient import TestClient

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.governance.policies import assemble_policy
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.keys import generate_ed25519
from appliance.store.database.engine import connect_writer, open_engine
from appliance.store.database.sessions import SessionRow
from appliance.store.database.tables import projections
from appliance.store.ledger.keys import HeldLogKeys
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.snapshots import Snapshots
from appliance.web.console.app import console_app
from appliance.web.console.core.events import RecentEntries
from appliance.web.core.auth import CallerAuthenticator
from appliance.workflows.core.context import Context
from appliance.workflows.lifecycle.running import tune_garbage_collector
from scripts.benches.log_files import write_log
from scripts.benches.logs import clock_after, open_ledger
from scripts.benches.measure import Row, row, wall_ms
from scripts.benches.synthetic import Synthetic
from scripts.kit.log_builder import ORIGIN

URL = "http://localhost:8330"
GOAL_MS, FIRST_PAGE_BYTES = 100, 120_000
_POLICY = Path(__file__).resolve().parents[2] / "policies" / "default"
_REVIEW = 39
"""Entry of the synthetic log with a reviewer's decision."""
_ASSET = re.compile(r'(?:href|src)="(/static/[^"#]+)')


@dataclass(frozen=True)
class Plan:
    """Amounts of a measurement. `runs`: runs and adapters that are inserted. `rounds`: requests of each page."""

    entries: int
    runs: int
    rounds: int


QUICK = Plan(entries=100_000, runs=10_000, rounds=20)
FULL = Plan(entries=1_000_000, runs=10_000, rounds=40)


def large_pages(size: int) -> tuple[str, ...]:
    """Return the pages that read much of a log of that size, or many rows."""
    half = size // 2
    return (
        *("/home", "/candidates", "/runs", "/health", "/log", "/log?outcome=denied", "/log?unit=legal&outcome=failure"),
        *(f"/log?before={half}", "/log?type=review.recorded&unit=legal", "/log?actor=rita"),
        f"/past?kind=adapter&at={half}",
        *(
            "/effective-access?unit=legal",
            f"/effective-access?unit=legal&at={half}",
            f"/effective-access?unit=legal&since={half}",
        ),
    )


def pages(size: int) -> tuple[str, ...]:
    """Return an address of every page. Pages that search or look back have the most expensive queries for that size."""
    half = size // 2
    return (
        *large_pages(size),
        *("/reviews", "/reviews?everyone=true", "/adapters", "/releases", "/releases/legal/task-1"),
        *("/runs?status=failed", "/runs/r-000001", "/data", "/imports", "/sweeps", "/bases/smollm2"),
        *("/compare?run=r-000001&run=r-000002", "/log?type=order.refused&actor=nobody"),
        *("/log?since=2020-01-01&until=2020-01-02", f"/log/{half}", f"/log/{half}/proof"),
        *("/past?kind=run", f"/past?kind=principal&at={half}", "/checkpoint"),
        *("/people", "/people/legal", "/orders", "/policy", "/sign", "/passkeys", f"/signed/{_REVIEW}"),
    )


@dataclass(frozen=True)
class Site:
    """A console with a signed-in reviewer. `size`: entries of the log."""

    context: Context
    client: TestClient
    size: int

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)


@contextmanager
def open_site(folder: Path, plan: Plan) -> Iterator[Site]:
    """Make a log and open a console over it, with a reviewer who is signed in."""
    log = Synthetic(plan.entries)
    database, home = folder / "log.db", folder / "home"
    write_log(log, database=database)
    people = [wiring.Person(name, generate_ed25519().spki) for name in ("anna", "ben")]
    settings = load_settings(home, {})
    policy = assemble_policy("default", {path.name: path.read_bytes() for path in _POLICY.iterdir()})
    wiring.init(settings, people, origin=ORIGIN, single_administrator=False, policy=encode_value(policy))
    snapshots = Snapshots(
        folder / "snapshot", origin=log.origin, code=digest_bytes(b"this"), keys=HeldLogKeys(lambda _: log.signer)
    )
    engine = open_engine(f"sqlite:///{database}")
    with (
        wiring.service(settings) as context,
        closing(open_ledger(log, engine, clock_after(log.time), snapshots)) as ledger,
    ):
        ledger.load()
        _multiply(ledger, database, plan)
        tune_garbage_collector()  # as the service does
        context.ledger = ledger
        yield Site(context, _signed_in(context), plan.entries)


def _multiply(ledger: Ledger, database: Path, plan: Plan) -> None:
    """Insert copies of the first run and adapter, `plan.runs` of each."""
    state = ledger.state
    run, adapter = state.runs.values()[0], state.adapters.values()[0]
    rows = []
    for number in range(plan.runs):
        index = plan.entries - plan.runs + number
        name, version = f"r-{number + 100_000}", number + 10_000
        made = run.model_copy(update={"id": name, "index": index})
        sealed = adapter.model_copy(update={"version": version, "index": index, "reviews": ()})
        state.runs.set(name, made)
        state.adapters.set(f"{adapter.name}@{version}", sealed)
        for kind, key, value in (("run", name, made), ("adapter", f"{adapter.name}@{version}", sealed)):
            rows.append({"kind": kind, "id": key, "since": index, "until": None, "value": value.model_dump_json()})
    engine = open_engine(f"sqlite:///{database}")
    with closing(connect_writer(engine)) as connection, connection.begin():
        connection.execute(insert(projections), rows)
    engine.dispose()


def _signed_in(context: Context) -> TestClient:
    state = context.ledger.state
    reviewer = next(one for one in state.principals.values() if "reviewer" in one.roles[0])
    until = "9999-01-01T00:00:00.000Z"
    cookie = context.sessions.add("browser", SessionRow(reviewer.name, reviewer.keyid, until, state.size - 1))
    app = console_app(context, CallerAuthenticator(context), URL, RecentEntries())
    client = TestClient(app, base_url=URL, raise_server_exceptions=False, follow_redirects=False)
    client.cookies.set("appliance-8330", cookie)
    return client


def first_page_bytes(site: Site) -> int:
    """Return the bytes of the first page and of the files that it names: what an empty cache loads."""
    text = site.get("/home").text
    return len(text.encode()) + sum(len(site.get(path).content) for path in {*_ASSET.findall(text)})


def measure(folder: Path, plan: Plan) -> Iterator[Row]:
    """Yield the row of the first page, a row for each page, and one for all."""
    with open_site(folder, plan) as site:
        at = f"{plan.entries:,} entries, {plan.runs:,} runs"
        yield row(f"first page, {at}", first_page_bytes(site) / 1e3, "kB", at_most=FIRST_PAGE_BYTES / 1e3)
        everything: list[float] = []
        for path in pages(site.size):
            answer = site.get(path)
            if answer.status_code != 200:
                raise RuntimeError(f"page {path}: expected 200, got {answer.status_code}: {answer.text:.200}")
            took = sorted(wall_ms(partial(site.get, path)) for _ in range(plan.rounds))
            everything += took
            goal = GOAL_MS if plan.entries <= 1_000_000 else 2 * GOAL_MS
            name = f"{path}, p95 (p50 {statistics.median(took):.0f} ms)"
            yield row(name, took[round(0.95 * (len(took) - 1))], "ms", at_most=goal)
        yield row(f"all pages, p50, {at}", statistics.median(everything), "ms")
