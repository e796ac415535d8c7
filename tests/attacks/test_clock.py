"""A real service whose clock ran ahead and was set right: it begins nothing, and two administrators reset it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from appliance.domain.core.entry import Draft
from appliance.domain.governance.clock import ResetClock
from appliance.domain.queries.could_load import could_load_then
from appliance.domain.retention.holds import PlaceHold
from appliance.store.files.keyring import Keyring
from appliance.store.ledger.clock import LogClock
from appliance.verifier import ask_export, verify_export
from appliance.wiring.ledger import open_ledger
from scripts.kit.appliance import Appliance, Refused, found_site, free_port

AHEAD = timedelta(days=20)


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    made = found_site(tmp_path_factory.mktemp("c") / "h", free_port())
    yield made
    made.stop()


def run_ahead(site: Appliance) -> str:
    """What a service under a clock that is 20 days ahead would have appended; the service is stopped."""
    trust = site.trust
    ledger = open_ledger(site.settings, trust.origin, trust.log_key, Keyring(site.settings.keys), None)
    ledger.load()
    ledger.clock = LogClock(lambda: datetime.now(UTC) + AHEAD)
    last = ledger.append(Draft(type="heartbeat", body={})).entry.time
    ledger.close()
    return last


def clock(site: Appliance) -> dict[str, Any]:
    return dict(site.ask("GET", "/v1/clock", None))


def wait_until_begun(site: Appliance, before: int) -> None:
    """Its door for people alone is shut, its first entry is written, and all its doors open."""
    deadline = time.monotonic() + 60
    while site.log().count("service.started") == before:
        assert time.monotonic() < deadline, site.log()[-2000:]
        time.sleep(0.1)
    site.wait_until_up()


def test_a_service_under_a_clock_that_was_set_right_begins_once_two_administrators_reset_it(site: Appliance) -> None:
    old = site.sign(PlaceHold(subject="principal:rita", **site.terms("axel")))
    site.stop()
    last = run_ahead(site)
    site.start()
    assert (clock(site)["last"], clock(site)["behind"]) == (last, True)

    # Nothing else is recorded, so nobody reads either.
    hold = PlaceHold(subject="principal:rita", **site.terms("axel"))
    for refused in (lambda: site.order(hold), lambda: site.session("axel")):
        with pytest.raises(Refused) as stuck:
            refused()
        assert (stuck.value.status, stuck.value.code) == (503, "clock")

    # Neither one alone, nor by an order of another place, nor somebody else.
    with pytest.raises(Refused, match="expected the time of the last entry"):
        site.order(ResetClock(last=site.now(), **site.terms("anna")))
    with pytest.raises(Refused, match="expected olga to be administrator"):
        site.order(ResetClock(last=last, **site.terms("olga")))
    first = site.order(ResetClock(last=last, **site.terms("anna")))
    assert (first["type"], first["outcome"]) == ("order.pending", "pending")
    assert [row["digest"] for row in clock(site)["waiting"]] == [first["order"]]
    with pytest.raises(Refused, match="separation of duties"):
        site.endorse(first["order"], by="anna")
    assert clock(site)["behind"] is True

    before = site.log().count("service.started")
    assert site.endorse(first["order"])["type"] == "clock.reset"
    wait_until_begun(site, before)
    assert site.types()[-3:] == ["clock.reset", "service.started", "session.opened"]
    with pytest.raises(Refused):
        site.endorse(first["order"])
    site.order(PlaceHold(subject="principal:rob", **site.terms("axel")))
    _check_export(site, last, first["index"])
    report = site.verify()
    assert (report["verdict"], report["findings"], report["local_findings"]) == ("verified", [], [])
    assert any(f"set it back from {last}" in text for text in report["remarks"])

    # What was signed before, and never sent, counts: it is younger than clocks may differ; and a restart folds it all.
    site.send(old)
    site.stop()
    site.start()
    assert site.verify()["verdict"] == "verified"


def _check_export(site: Appliance, last: str, pending: int) -> None:
    """The auditor's program says the same of the log alone."""
    path = site.home / "log.tar"
    path.write_bytes(site.get("/v1/ledger/export", "axel"))
    report = verify_export(path, site.trust, site.now())
    assert (report.verdict, report.findings) == ("verified", ())
    assert any(f"entry {pending + 1} set it back from {last}" in text for text in report.remarks)
    now = site.now()

    def ask(entries: Any, documents: Any) -> Any:
        return could_load_then(entries, documents, "legal", now, now)[0]

    assert ask_export(path, ask, report).at == now
    path.unlink()


def test_a_service_that_waits_for_its_clock_ends_at_a_signal(site: Appliance) -> None:
    site.stop()
    run_ahead(site)
    site.start()
    assert clock(site)["behind"] is True
    assert site.stop() == 0
    site.start()
    assert clock(site)["behind"] is True
