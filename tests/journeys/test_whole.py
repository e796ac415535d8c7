"""The whole journey, from import to the auditor's program, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.data.artifacts import RevokeValidationSet
from appliance.domain.governance.log_control import RotateLogKey
from appliance.domain.governance.people import RevokePrincipal
from appliance.formats.core.commitment import disclose
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.appliance import Appliance, Refused, found_site
from scripts.kit.ports import free_port
from scripts.kit.postgres import APPLICATION, Server, postgres
from scripts.kit.tiny_model import build_base, clauses, write_csv
from tests.attacks.keeping import cosigned, erase_order, submit_cosignature, two, watched
from tests.journeys.test_banking77 import check_auditor

__all__ = ["postgres"]


CountTexts = Callable[[str], int]
"""Returns how many texts the database has for a commitment."""


@pytest.mark.essential
@pytest.mark.timeout(600)
def test_the_whole_journey_passes_on_sqlite(tmp_path: Path) -> None:
    site = found_site(tmp_path / "h", free_port())

    def count_texts(commitment: str) -> int:
        with closing(sqlite3.connect(f"file:{site.home / 'ledger.db'}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT count(*) FROM disclosures WHERE commitment = ?", (commitment,))
            return int(found.fetchone()[0])

    journey(site, count_texts, tmp_path)


@pytest.mark.essential
@pytest.mark.timeout(600)
def test_the_whole_journey_passes_on_postgresql(postgres: Server, tmp_path: Path) -> None:
    """The owner migrates, and the service connects under a role that may only append."""
    # What a site's administrator does first.
    postgres.execute(f"CREATE ROLE {APPLICATION} LOGIN PASSWORD '{postgres.passwords[APPLICATION]}'")
    with postgres.durable():
        name = postgres.create_database()
        site = found_site(
            tmp_path / "h",
            free_port(),
            APPLIANCE_DATABASE_URL=postgres.url(name, APPLICATION),
            APPLIANCE_MIGRATION_URL=postgres.url(name),
        )
        assert not (site.home / "ledger.db").exists()

        def count_texts(commitment: str) -> int:
            found = postgres.execute(f"SELECT count(*) FROM disclosures WHERE commitment = '{commitment}'", name)
            return int(found[0][0])

        journey(site, count_texts, tmp_path)
        postgres.drop_database(name)


def journey(site: Appliance, count_texts: CountTexts, tmp_path: Path) -> None:
    try:
        assert site.import_base(build_base(tmp_path / "base"))["status"] == "finished"
        rows = write_csv(tmp_path / "rows.csv", clauses())
        assert site.import_dataset(rows.read_bytes())["status"] == "finished"
        assert site.train()["adapter"] == "clauses@1"
        check_sets(site, rows.read_bytes())
        with pytest.raises(Refused, match="denied"):
            site.activate()
        site.approve()
        site.activate()
        assert site.chat("legal", "labels")["choices"]
        site.kill()
        site.start()
        assert site.chat("legal", "labels")["choices"]
        check_kept(site, count_texts)
        report = site.verify()
        assert (report["verdict"], report["local_findings"]) == ("verified", [])
        check_auditor(site, tmp_path)
    finally:
        if site.service is not None:
            site.stop()


def check_sets(site: Appliance, rows: bytes) -> None:
    """Check that a validation set is there after a start, and can be revoked."""
    site.enrol("vera", "validator")
    assert site.import_set(rows, blind=True)["status"] == "finished"
    site.kill()
    site.start()
    row = site.get("/v1/validation-sets/exam@1")
    assert (row["blind"], row["final"], row["facts"]["rows"], row["revoked"]) == (True, False, 30, None)
    with pytest.raises(Refused, match="ordered as exam, which is a validation set") as trained_on:
        site.order_dataset(rows, "again")
    assert trained_on.value.codes == ["file-for-evaluation"]
    site.order(RevokeValidationSet(validation_set="exam", version=1, digest=row["digest"], **site.terms("vera")))
    assert site.get("/v1/validation-sets/exam@1")["revoked"] is not None


def check_kept(site: Appliance, count_texts: CountTexts) -> None:
    """Check that the service erases a text, and that log key and witness are in the database."""
    site.enrol("gone", "operator")
    reason = disclose("left in the eleventh month", os.urandom(32))
    site.order(RevokePrincipal(principal="gone", **site.terms("anna"), reason=reason.commitment), reason)
    assert count_texts(reason.commitment) == 1
    assert two(site, erase_order(site, reason.commitment), reason)["type"] == "text.erased"
    assert count_texts(reason.commitment) == 0
    vkey = site.ask("POST", "/v1/log-keys", "anna", json={})["vkey"]
    until = add_seconds(site.now(), 3_600)
    rotation = RotateLogKey(log_key=vkey, old_until=until, **site.terms("anna"))
    assert two(site, rotation)["type"] == "log-key.rotated"
    witness = generate_ed25519()
    watched(site, witness)
    site.stop()
    site.start()
    with pytest.raises(Refused, match=r"Policy requires 1 witnesses that have cosigned the log since .* There are 0"):
        site.chat("legal", "labels")
    submit_cosignature(site, cosigned(site, witness))
    assert site.chat("legal", "labels")["choices"]
