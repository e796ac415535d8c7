"""A real service whose clock ran ahead and was corrected: it starts no work until two administrators reset the log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.build import build_version
from appliance.domain.core.entry import EntryDraft
from appliance.domain.governance.log_control import ResetClock
from appliance.domain.queries.effective_access import effective_access_then
from appliance.domain.retention import PlaceHold
from appliance.store.files.keyring import Keyring
from appliance.store.ledger.keys import KeyringKeys
from appliance.store.ledger.queue import LogClock
from appliance.verifier import ask_export, verify_export
from appliance.wiring.building import open_ledger
from scripts.kit.appliance import Appliance, Refused, found_site
from scripts.kit.ports import free_port
from scripts.kit.waiting import wait_for

pytestmark = pytest.mark.thorough

AHEAD = timedelta(days=20)


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    made = found_site(tmp_path_factory.mktemp("c") / "h", free_port())
    yield made
    made.stop()


def run_ahead(site: Appliance) -> str:
    """Append an entry as a service 20 days ahead would, while the service is stopped. Return its time."""
    trust = site.trust
    keys = KeyringKeys(Keyring(site.settings.keys), trust.origin)
    ledger = open_ledger(site.settings, trust.origin, trust.log_key, keys)
    ledger.load()
    ledger.clock = LogClock(lambda: datetime.now(UTC) + AHEAD)
    last = ledger.append(EntryDraft(type="heartbeat", body={})).entry.time
    ledger.close()
    return last


def clock(site: Appliance) -> dict[str, Any]:
    return dict(site.ask("GET", "/v1/clock", None))


def wait_until_begun(site: Appliance, before: int) -> None:
    """Its listener for people alone is closed, its first entry is written, and all its listeners open."""
    wait_for(lambda: site.log().count("service.started") > before, lambda: f"a start: {site.log()[-2000:]}")
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
    with pytest.raises(Refused, match="as the time of the last entry"):
        site.order(ResetClock(last=site.now(), **site.terms("anna")))
    with pytest.raises(Refused, match="This action needs administrator"):
        site.order(ResetClock(last=last, **site.terms("olga")))
    first = site.order(ResetClock(last=last, **site.terms("anna")))
    assert (first["type"], first["outcome"]) == ("order.pending", "pending")
    assert [row["digest"] for row in clock(site)["waiting"]] == [first["order"]]
    with pytest.raises(Refused, match="signed this order and cannot countersign it"):
        site.countersign(first["order"], by="anna")
    assert clock(site)["behind"] is True

    before = site.log().count("service.started")
    assert site.countersign(first["order"])["type"] == "clock.reset"
    wait_until_begun(site, before)
    assert site.types()[-3:] == ["clock.reset", "service.started", "session.opened"]
    with pytest.raises(Refused):
        site.countersign(first["order"])
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
    """Check that the auditor's program gives the same verdict from the log alone."""
    path = site.home / "log.tar"
    path.write_bytes(site.get("/v1/ledger/export", "axel"))
    report = verify_export(path, site.trust, site.now())
    assert (report.verdict, report.findings) == ("verified", ())
    assert any(f"entry {pending + 1} set it back from {last}" in text for text in report.remarks)
    now = site.now()

    def ask(entries: Any, documents: Any) -> Any:
        return effective_access_then(entries, documents, "legal", now, now)[0]

    assert ask_export(path, ask, report).at == now
    path.unlink()


def test_a_service_that_waits_for_its_clock_tells_probes_why_and_ends_at_a_signal(
    site: Appliance, tmp_path: Path
) -> None:
    site.stop()
    run_ahead(site)
    token, port = tmp_path / "token", free_port()
    token.touch(0o600)
    token.write_text("t" * 32)
    site.environment |= {"APPLIANCE_OPERATIONS": f"127.0.0.1:{port}", "APPLIANCE_OPERATIONS_TOKEN": str(token)}
    site.start()
    assert clock(site)["behind"] is True
    # A probe of liveness does not restart it, and a probe of readiness hears the reason.
    probes = {path: httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=60) for path in ("healthz", "readyz")}
    assert probes["healthz"].status_code == 200
    assert (probes["readyz"].status_code, probes["readyz"].text.splitlines()) == (
        503,
        ["clock is behind the ledger", f"build {build_version()}"],
    )
    assert site.stop() == 0
    site.start()
    assert clock(site)["behind"] is True
