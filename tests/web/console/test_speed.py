"""How long pages take where there is much: a log of 100,000 entries, 10,000 runs and adapters."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from appliance.store.database.sessions import SessionRow
from appliance.web.console.app import console_app
from appliance.web.console.core.events import Changes
from appliance.web.core.auth import Doorkeeper
from appliance.workflows.core.context import Context
from scripts.benches.logs import open_log
from tests.kit.console import URL, Browser
from tests.kit.founded import context_of, template

pytestmark = [pytest.mark.outside, pytest.mark.slow, pytest.mark.timeout(600)]

ENTRIES, RUNS = 100_000, 10_000
GOAL_MS, ROUNDS = 100, 20
PAGES = (
    *("/home", "/reviews", "/reviews?everyone=true", "/adapters", "/candidates", "/releases", "/releases/legal/task-1"),
    *("/runs", "/runs?status=failed", "/runs/r-000001", "/compare?run=r-000001&run=r-000002", "/data", "/imports"),
    *("/log", "/log?outcome=denied", "/log?unit=legal&outcome=failure", "/log?type=order.refused&actor=nobody"),
    *("/log?since=2020-01-01&until=2020-01-02", "/log?before=50000", "/log/50000", "/past?kind=run"),
    *("/past?kind=principal&at=50000", "/checkpoint", "/people", "/people/legal", "/orders", "/policy", "/health"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    home = tmp_path_factory.mktemp("c") / "h"
    template("staffed").copy(home)
    with open_log(tmp_path_factory.mktemp("l"), ENTRIES) as log, context_of(home) as context:
        context.ledger = log.ledger
        _multiply(context)
        app = console_app(context, Doorkeeper(context), URL, Changes())
        made = Browser(app)
        reviewer = next(one for one in log.ledger.state.principals.values() if "reviewer" in one.roles[0])
        row = SessionRow(reviewer.name, reviewer.keyid, "9999-01-01T00:00:00.000Z", log.size - 1)
        context.sessions.add("browser:made-here", row)
        made.take("made-here")
        yield made


def _multiply(context: Context) -> None:
    """The same run and adapter many times over."""
    state = context.ledger.state
    run, adapter = state.runs.values()[0], state.adapters.values()[0]
    for number in range(RUNS):
        place = {"index": ENTRIES - RUNS + number}
        state.runs.set(f"r-{number + 100_000}", run.model_copy(update={"id": f"r-{number + 100_000}", **place}))
        name = f"{adapter.name}@{number + 1_000}"
        state.adapters.set(name, adapter.model_copy(update={"version": number + 1_000, **place}))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_takes_a_tenth_of_a_second_at_most(browser: Browser, path: str) -> None:
    """Nineteen of twenty, by the time of the processor: what else the machine does is not the page's."""
    assert browser.get(path).status_code == 200
    took = []
    for _ in range(ROUNDS):
        began = time.process_time()
        browser.get(path)
        took.append((time.process_time() - began) * 1e3)
    assert sorted(took)[-2] < GOAL_MS, sorted(took)
