"""`scripts/bench console --people N`: the rate of 16 streams while people load pages of the console.

Rounds with streams alone and rounds with people at the console take turns. The people are threads of this process. They
request only the HTML of a page, as a browser does that has its other files in the cache.
"""

from __future__ import annotations

import http.client
import re
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scripts.benches import models, serving_home
from scripts.benches.measure import Row, measure_interleaved, row
from scripts.benches.programs import start_program
from scripts.benches.serving_client import UnitsClient
from scripts.benches.serving_home import UNITS
from scripts.benches.serving_worker import make_adapters
from scripts.kit.appliance import Appliance, found_site
from scripts.kit.ports import free_port

STREAMS, PAGE_S, RANK = 16, 20.0, 16
KEPT_RATE = 0.95
PAGES = {
    "olga": ("/home", "/runs", "/runs/r-000001", "/data", "/imports"),
    "rita": ("/home", "/reviews", "/adapters", "/adapters/own-unit-0@1", "/adapters/own-unit-0@1?tab=quality"),
    "axel": ("/home", "/log", "/log/20", "/checkpoint", "/effective-access?unit=unit-0", "/past?kind=adapter"),
    "anna": ("/home", "/people", "/orders", "/policy", "/health"),
    "unit-0": ("/home", "/releases", "/ask", "/requests", "/usage"),
}
"""Pages that each person opens, in turn."""


@dataclass(frozen=True)
class Plan:
    """Amounts of a measurement. `tokens`: of each stream in a round."""

    model: models.Model
    people: int
    rounds: int
    tokens: int


def measure(folder: Path, plan: Plan) -> Iterator[Row]:
    """Yield the rows of the streams and of the pages."""
    site = found_site(folder / "home", free_port())
    port = free_port()
    site.environment["APPLIANCE_CONSOLE"] = f"127.0.0.1:{port}"
    try:
        serving_home.enrol(site)
        site.stop()
        _fill(site, folder, plan)
        site.start()
        yield from _beside(site, People(site, port, plan.people), plan)
    finally:
        if site.service is not None:
            site.stop()


def _fill(site: Appliance, folder: Path, plan: Plan) -> None:
    base = plan.model.convert(folder)
    adapters = [str(path) for path in make_adapters(str(base), folder, [RANK] * len(UNITS))]
    with start_program(base, "cpu", "ours") as ours, serving_home.opened(site) as home:
        home.import_base(base)
        home.import_dataset()
        for unit, path in zip(UNITS, adapters, strict=True):
            adapter = home.seal(Path(path), f"own-{unit}", ours.request("logit_fingerprint", folder=path))
            home.approve(adapter, unit)
            home.release(adapter, unit, "own")


def _beside(site: Appliance, people: People, plan: Plan) -> Iterator[Row]:
    client = UnitsClient(site)
    for unit in UNITS:
        client.ask(unit, 2)

    def alone() -> list[float]:
        return [_rate(client, plan.tokens)]

    def with_people() -> list[float]:
        with people.load_pages():
            return [_rate(client, plan.tokens)]

    found = measure_interleaved(plan.rounds, alone=alone, beside=with_people)
    took = sorted(people.took)
    if len(took) < 2:
        raise RuntimeError(f"only {len(took)} pages were loaded during the streams: use more tokens")
    yield row(
        *(
            f"tokens a second, {STREAMS} streams, {plan.people} people each a page in {PAGE_S:.0f} s",
            found["beside"],
            "1/s",
        ),
        against="nobody at the console",
        theirs=found["alone"],
        ratio=found.ratio("beside", "alone"),
        ratio_at_least=KEPT_RATE,
    )
    yield row(f"a page meanwhile, p50 of {len(took)}", statistics.median(took), "ms")
    yield row("a page meanwhile, p95", took[round(0.95 * (len(took) - 1))], "ms")


def _rate(client: UnitsClient, tokens: int) -> float:
    """Return the tokens a second of sixteen streams, two for each unit."""
    began = time.perf_counter()
    drawn = client.stream(UNITS * (STREAMS // len(UNITS)), tokens)
    return drawn / (time.perf_counter() - began)


class People:
    """Signed-in people who load pages. `took`: milliseconds of each page."""

    def __init__(self, site: Appliance, port: int, count: int) -> None:
        self._port = port
        names = cycle(PAGES)
        self._sessions = [(name, self._sign_in(site, name)) for name, _ in zip(names, range(count), strict=False)]
        self.took: list[float] = []

    def _sign_in(self, site: Appliance, name: str) -> str:
        """Sign in by a link, as `appliance console --open` does, and return the session's cookie."""
        url = str(site.ask("POST", "/v1/console/links", name)["url"])
        site.sessions.pop(name, None)  # the link has moved the session to the browser
        own = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
        status, headers, text = self._request("POST", urlsplit(url).path, own)
        found = re.match(r"([^=]+=[^;]+)", headers.get("set-cookie", ""))
        if status != 303 or found is None:
            raise RuntimeError(f"{name} could not sign in: {status}: {text[:300]!r}")
        return found[1]

    def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request(method, path, headers={"Host": f"localhost:{self._port}", **headers})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    @contextmanager
    def load_pages(self) -> Iterator[None]:
        """Load pages, evenly spread, until the context ends.

        Raises:
            RuntimeError: A page was refused.
        """
        ended, wrong = threading.Event(), []

        def load(number: int) -> None:
            name, cookie = self._sessions[number % len(self._sessions)]
            path = PAGES[name][number // len(self._sessions) % len(PAGES[name])]
            began = time.perf_counter()
            status, _, text = self._request("GET", path, {"Cookie": cookie})
            self.took.append((time.perf_counter() - began) * 1e3)
            if status != 200:
                wrong.append(f"{name} at {path}: {status}, {text[:200]!r}")

        def run() -> None:
            with ThreadPoolExecutor(8) as threads:
                number, began = 0, time.monotonic()
                while not ended.wait(max(0.0, began + number * PAGE_S / len(self._sessions) - time.monotonic())):
                    threads.submit(load, number)
                    number += 1

        thread: Any = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        if wrong:
            raise RuntimeError(f"a page was refused: {wrong[0]}")
