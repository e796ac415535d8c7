"""The appliance on PostgreSQL: the owner migrates, the service connects under a role that may only append."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.ml.tiny import build_base, clauses, write_csv
from tests.postgres import APPLICATION, Server, postgres
from tests.site import Refused, found_site

__all__ = ["postgres"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_journey_passes_on_postgresql(postgres: Server, tmp_path: Path) -> None:
    # What a site's administrator does first: an owner who migrates, and the service's own role.
    postgres.execute(f"CREATE ROLE {APPLICATION} LOGIN PASSWORD '{postgres.passwords[APPLICATION]}'")
    with postgres.durable():
        journey(postgres, postgres.create_database(), tmp_path)


def journey(postgres: Server, database: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    site = found_site(
        tmp_path / "h",
        port,
        APPLIANCE_DATABASE_URL=postgres.url(database, APPLICATION),
        APPLIANCE_MIGRATION_URL=postgres.url(database),
    )
    try:
        assert not (site.home / "ledger.db").exists()
        assert site.import_base(build_base(tmp_path / "base"))["status"] == "finished"
        rows = write_csv(tmp_path / "rows.csv", clauses())
        assert site.import_dataset(rows.read_bytes())["status"] == "finished"
        assert site.train()["adapter"] == "clauses@1"
        with pytest.raises(Refused, match="denied"):
            site.activate()
        site.approve()
        site.activate()
        assert site.chat("legal", "labels")["choices"]
        site.kill()
        site.start()
        assert site.chat("legal", "labels")["choices"]
        report = site.verify()
        assert (report["verdict"], report["local_findings"]) == ("verified", [])
    finally:
        if site.service is not None:
            site.stop()
        postgres.drop_database(database)
