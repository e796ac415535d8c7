"""Small requests that once blocked the whole service use only their sender's share, and end in time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.api.people import OrderRequest, SessionRequest
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.governance.people import RevokePrincipal
from appliance.errors import ApplianceError
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.fields import encode_base64
from appliance.web.people import parsing
from appliance.web.units.request_bodies import ChatRequest, parse_request
from appliance.wiring import serving
from appliance.workflows import orders
from scripts.kit.appliance import Appliance
from tests.attacks.busy import MARK
from tests.attacks.test_cost_of_parsers import cpu_s, fields
from tests.kit.service import running

BUSY = (str(Path(__file__).with_name("busy.py")),)
MESSAGES = [{"role": "user", "content": "x"}]


def tools(size: int) -> bytes:
    return json.dumps({"model": "labels", "messages": MESSAGES, "tools": [1] * (size // 3)}).encode()


def session(body: bytes) -> object:
    return parsing.BodyOf(SessionRequest).parse(body)


def order(body: bytes) -> object:
    return parsing.BodyOf(OrderRequest).parse(body)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("parse", "data"),
    [
        *((lambda body: parse_request(ChatRequest, body), tools(size)) for size in (10_000, 20_000, 50_000)),
        (session, fields(50_000)),
        (order, fields(180_000 * 12)),
        (order, fields(162_000)),
        (parse_canonical, fields(429_000)[:-1] + b',"z":1,"z":1}'),
        (parse_gates, fields(176_000)),
        (lambda body: parse_gates(json.dumps({"gates": json.loads(body)}).encode()), b"[" + b"1," * 88_000 + b"1]"),
    ],
    ids=["tools-10", "tools-20", "tools-50", "session", "order", "order-162", "field-twice", "gates", "verify"],
)
def test_a_request_that_does_not_fit_costs_a_fraction_of_a_second(
    parse: Callable[[bytes], object], data: bytes
) -> None:
    with pytest.raises(ApplianceError):
        parse(data)
    assert min(cpu_s(parse, data) for _ in range(3)) < 0.5


def test_an_order_without_a_valid_signature_waits_for_no_other_order(home: Path) -> None:
    """Nor does any other order wait while it is read: whoever has no key comes no further than the lock."""
    with running("sealed", home) as service:
        refused = threading.Event()
        submission = orders.Submission(envelope=fields(100_000), disclosures=(), documents={}, source="tcp:x")

        def submit() -> None:
            with suppress(ApplianceError):
                orders.submit(service.context, submission)
            refused.set()

        with service.context.order_lock:
            threading.Thread(target=submit, daemon=True).start()
            assert refused.wait(90)


@pytest.mark.thorough
def test_a_revocation_is_recorded_while_outsiders_send_large_orders(founded: Appliance) -> None:
    """The CPU time of the service is bounded; the time of the revocation is told only where it fails."""
    stop = threading.Event()
    answers: list[int] = []

    def flood(body: bytes) -> None:
        with founded.http() as client:
            while not stop.is_set():
                with suppress(httpx.HTTPError):
                    head = {"Content-Type": "application/json"}
                    answers.append(client.post("/v1/orders", content=body, headers=head).status_code)

    threads = [threading.Thread(target=flood, args=(fields(size),)) for size in (162_000, 130_000, 130_000)]
    before = cpu_of(founded)
    for thread in threads:
        thread.start()
    try:
        begun = time.monotonic()
        revoked = founded.order(RevokePrincipal(principal="olga", reason=None, **founded.terms("anna")))
        took = time.monotonic() - begun
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)
    assert revoked["type"] in ("principal.revoked", "order.pending"), revoked
    assert set(answers) <= {400, 413, 429}
    assert (cpu_of(founded) - before) / (len(answers) + 1) < 0.5, f"the revocation took {took:.1f} s"


def cpu_of(site: Appliance) -> float:
    """CPU seconds of the service so far."""
    assert site.service is not None
    words = Path(f"/proc/{site.service.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / 100


@pytest.mark.thorough
def test_a_busy_service_ends_in_time_and_its_run_is_resumed(spoil: Callable[[], Appliance]) -> None:
    site = spoil()
    usual, site.launcher = site.launcher, BUSY
    site.start()
    run = site.order(site.train_order("long", epochs=12))["result"]["run"]
    while not site.entries(type="run.started", subject=f"run:{run}"):
        time.sleep(0.1)
    head = {"Authorization": f"Bearer {site.session('olga')}"}

    def ask() -> None:
        with suppress(httpx.HTTPError), site.http() as client:
            client.post("/v1/orders/check", json={"statement": encode_base64(MARK.encode())}, headers=head)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    time.sleep(0.5)
    assert asking.is_alive()
    begun = time.monotonic()
    assert site.stop() == 0
    # A busy machine may start and reap the process late; then the service says that it gave up in time.
    seconds, gave_up = time.monotonic() - begun, f"has not ended within {serving.END_S:.0f} s of a signal"
    assert serving.END_S < 10 and (seconds < 10 or (gave_up in site.log() and seconds < serving.END_S + 30))
    site.launcher = usual
    site.start()
    found: dict[str, Any] = site.wait_run(run)
    assert found["status"] == "sealed"
