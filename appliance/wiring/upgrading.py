"""The database's part of an upgrade, which the installer's `upgrade` runs with the old and with the new build."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.config.settings import Settings
from appliance.errors import Conflict
from appliance.store.database.engine import (
    check_migrated,
    migrate,
    migrate_back,
    open_engine,
    read_revision,
    using_engine,
)
from appliance.store.database.processes import claim_database
from appliance.store.database.tables import REVISION
from appliance.store.files.lock import lock_folder
from appliance.store.ledger.copies import read_database
from appliance.wiring.building import read_trust
from appliance.workflows.backups.restoring import refuse_restored
from appliance.workflows.runs.train import can_continue_run


@dataclass(frozen=True)
class CheckedDatabase:
    """A database whose log this build has read. `continuing`, `ending`: the running runs that the next start continues
    and those that it would end.
    """

    revision: str
    entries: int
    continuing: tuple[str, ...]
    ending: tuple[str, ...]


def check_database(settings: Settings) -> CheckedDatabase:
    """Replay the whole log by this build's rules. The service can run meanwhile.

    Raises:
        Conflict: The database is at another revision.
        Tampered: This build refuses an entry, a row or the schema.
    """
    trust = read_trust(settings)
    with using_engine(settings.database_url.get_secret_value()) as engine:
        check_migrated(engine)
        state = read_database(engine, trust).state
    running = [run for run in state.runs.values() if run.status in ("running", "trained")]
    return CheckedDatabase(
        revision=REVISION,
        entries=state.size,
        continuing=tuple(run.id for run in running if can_continue_run(run)),
        ending=tuple(run.id for run in running if not can_continue_run(run)),
    )


def migrate_database(settings: Settings, revision: str | None) -> tuple[str | None, str]:
    """Migrate the tables to this build's revision, or back to `revision`, and return the revisions before and after.

    A migration forward is followed by `check_database`.

    Raises:
        Conflict: A service uses the database, or a migration cannot be taken back. Nothing is changed.
        Tampered: This build refuses an entry. The tables are migrated.
    """
    read_trust(settings)
    refuse_restored(settings.home)
    with using_engine(settings.database_url.get_secret_value()) as engine:
        before = read_revision(engine)
    wanted = revision or REVISION
    if before == wanted:
        return before, wanted
    if before is None:
        raise Conflict(f"database: expected the tables of an appliance, got none at {settings.home}")
    url = settings.migration_url.get_secret_value()
    with lock_folder(settings.lock), claim_database(open_engine(url)), using_engine(url) as engine:
        if revision is not None:
            migrate_back(engine, revision)
            return before, wanted
        migrate(engine)
    check_database(settings)
    return before, wanted
