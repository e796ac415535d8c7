"""A reading session outlives the service, and ends with its time, its logout, its key or its principal."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress

import pytest
from sqlalchemy import text

from appliance.domain.governance.keys import RevokeKey
from appliance.domain.governance.people import RevokePrincipal
from appliance.store.database.engine import connect_reader, open_engine
from appliance.store.database.tables import REVISION
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.waiting import wait_for

pytestmark = pytest.mark.thorough

Start = Callable[..., Appliance]


def _kept(site: Appliance) -> list[str]:
    engine = open_engine(site.settings.database_url.get_secret_value())
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
    wait_for(lambda: _kept(site) == ["rob"])


def test_a_session_that_ran_out_opens_nothing_and_is_swept(start_small: Start) -> None:
    site = start_small(beat_s=0.5)
    token = _open_briefly(site)
    wait_for(lambda: _kept(site) == [])
    assert _reads(site, token) == 401


def _open_briefly(site: Appliance) -> str:
    """Return the token of a short session that opened something. On a busy machine the session is longer."""
    for seconds in (2, 8, 32):
        began = time.monotonic()
        site.sessions.clear()
        with suppress(Refused):
            token = site.session("olga", lifetime_s=seconds)
            if _reads(site, token) == 200:
                return token
        assert time.monotonic() - began >= seconds, "refused before its end"
    raise AssertionError("expected a session that opens something within 32 s, got none")


def test_a_start_refuses_the_database_of_a_development_build_and_changes_nothing_in_it(start_small: Start) -> None:
    site = start_small()
    site.stop()
    path = site.settings.database_file or ""
    _set_revision(path, "0001")
    before = _dump(path)
    with pytest.raises(RuntimeError, match=r"This database \(revision 0001\) was made by a development build"):
        site.start()
    assert _dump(path) == before
    _set_revision(path, REVISION)
    site.start()
    assert _reads(site, site.session("olga")) == 200
    assert site.verify()["verdict"] == "verified"


def _set_revision(path: str, revision: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def _dump(path: str) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())
