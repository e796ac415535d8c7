"""A reading session outlives the service, and ends with its time, its logout, its key or its principal."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

from sqlalchemy import text

from appliance.domain.governance.keys import RevokeKey
from appliance.domain.governance.people import RevokePrincipal
from appliance.store.database.engine import connect_reader, open_engine
from scripts.kit.appliance import Appliance

Start = Callable[..., Appliance]


def _kept(site: Appliance) -> list[str]:
    engine = open_engine(site.settings.database_url)
    try:
        with connect_reader(engine) as connection:
            return sorted(connection.execute(text("SELECT principal FROM sessions")).scalars())
    finally:
        engine.dispose()


def _reads(site: Appliance, token: str) -> int:
    with site.http() as client:
        return client.get("/v1/principals", headers={"Authorization": f"Bearer {token}"}).status_code


def test_a_restart_logs_nobody_out(start_small: Start) -> None:
    site = start_small()
    token = site.session("olga")
    site.kill()
    site.start()
    assert _reads(site, token) == 200
    assert _reads(site, token[:-1] + ("A" if token[-1] != "A" else "B")) == 401
    assert site.verify()["verdict"] == "verified"


def test_a_logout_ends_it_for_every_service_to_come(start_small: Start) -> None:
    site = start_small()
    token = site.session("olga")
    with site.http() as client:
        answer = client.delete("/v1/sessions/own", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200
        assert client.delete("/v1/sessions/own", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert _reads(site, token) == 401 and _kept(site) == []
    site.kill()
    site.start()
    assert _reads(site, token) == 401


def test_a_revoked_key_and_a_revoked_person_read_nothing_more_and_their_sessions_are_swept(start_small: Start) -> None:
    site = start_small(beat_s=1.0)
    olga, rita, rob = (site.session(name) for name in ("olga", "rita", "rob"))
    keyid = site.keys["olga"].keyid
    site.order(RevokeKey(principal="olga", keyid=keyid, since=None, **site.terms("olga")))
    site.order(RevokePrincipal(principal="rita", **site.terms("anna")))
    assert [_reads(site, token) for token in (olga, rita, rob)] == [401, 401, 200]
    _wait(lambda: _kept(site) == ["rob"])


def test_a_session_that_ran_out_opens_nothing_and_is_swept(start_small: Start) -> None:
    site = start_small(beat_s=0.5)
    token = site.session("olga", lifetime_s=2)
    assert _reads(site, token) == 200
    _wait(lambda: _kept(site) == [])
    assert _reads(site, token) == 401


def test_a_start_brings_the_tables_of_an_earlier_build_up_to_date(start_small: Start) -> None:
    site = start_small()
    site.stop()
    path = site.settings.database_url.removeprefix("sqlite:///")
    with sqlite3.connect(path) as database:
        for name in ("sessions", "processes", "leases"):
            database.execute(f"DROP TABLE {name}")
        database.execute("UPDATE alembic_version SET version_num = '0001'")
    database.close()
    site.start()
    assert _reads(site, site.session("olga")) == 200
    assert site.verify()["verdict"] == "verified"


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
