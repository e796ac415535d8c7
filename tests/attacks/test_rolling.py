"""Two gateways are upgraded one by one to a build of the same number: each request gets a response from one of them."""

from __future__ import annotations

import signal
import threading
from itertools import cycle
from pathlib import Path

import httpx
import pytest

from appliance.build import COMPATIBILITY
from scripts.kit.appliance import ROOT, Appliance
from scripts.kit.hosts import Hosts, ended
from scripts.kit.postgres import postgres
from scripts.kit.waiting import wait_for
from tests.attacks.conftest import golden
from tests.attacks.streaming import under_way
from tests.attacks.test_hosts import GATEWAYS, hosts
from tests.kit.later_build import write_tree
from tests.kit.two_builds import start_build

__all__ = ["golden", "hosts", "postgres"]
pytestmark = [pytest.mark.outside, pytest.mark.timeout(600)]
LATER = "0.1.1"


def respond(site: Appliance, token: str) -> str | None:
    """Return the response of a gateway, or None if it gives none."""
    body = {"model": "labels", "max_tokens": 4, "messages": [{"role": "user", "content": "the parties agree"}]}
    headers = {"Authorization": f"Bearer {token}"}
    try:
        answer = httpx.post(f"{site.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
    except httpx.HTTPError:
        return None
    return answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else None


def test_responses_never_stop_while_gateways_are_upgraded_one_by_one(hosts: Hosts, tmp_path: Path) -> None:
    write_tree(tmp_path / "later", LATER)
    write_tree(tmp_path / "other", LATER, COMPATIBILITY + 1)
    gateways = [hosts.others[name] for name in GATEWAYS]
    token, is_over, responses = gateways[0].token("legal"), threading.Event(), list[str | None]()
    (expected,) = {respond(site, token) for site in gateways}
    assert expected

    def balance() -> None:
        """Send requests as a load balancer does: to each gateway in turn, and to the other one if it gives none."""
        for first, second in cycle([gateways, gateways[::-1]]):
            if is_over.is_set():
                return
            responses.append(respond(first, token) or respond(second, token))

    def start(site: Appliance, tree: Path) -> None:
        start_build(site, tree)
        wait_for(lambda: respond(site, token) or ended(site), f"{site.home.name}: {site.log()[-1000:]}")

    balancing = threading.Thread(target=balance)
    balancing.start()
    try:
        for site in gateways:
            with under_way(site, [(token, seed) for seed in range(4)], hold=False) as streams:
                assert site.service is not None
                site.service.send_signal(signal.SIGTERM)
                for stream in streams:
                    last = stream.result(120)
                    assert last == "[DONE]" or last["error"]["code"] == "service-ends", last
            site.stop()
            if site is gateways[0]:  # a build of another number does not start, and the previous one goes on
                start(site, tmp_path / "other")
                assert ended(site) and f"has compatibility number {COMPATIBILITY + 1}" in site.log()
                start(site, ROOT)
                assert respond(site, token) == expected
                site.stop()
            start(site, tmp_path / "later")
            assert respond(site, token) == expected, site.log()[-1000:]
    finally:
        is_over.set()
        balancing.join()
    assert len(responses) > 5 and set(responses) == {expected}
    starts = hosts.desk.entries(type="service.started")
    assert [entry["body"]["process"] for entry in starts if entry["body"]["version"] == LATER] == list(GATEWAYS)
