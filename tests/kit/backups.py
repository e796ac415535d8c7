"""Appliances with backups of their own: a founded home on SQLite or PostgreSQL, identities of age, and a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from appliance import wiring
from appliance.config.settings import Settings, load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.core.records.site import LogKey
from appliance.formats.log.backup import Backup
from appliance.formats.log.trust import Trust
from appliance.formats.signatures.keys import generate_ed25519
from appliance.store.database.engine import migrate, open_engine
from appliance.store.files.backups import BackupFolder
from appliance.store.files.encryption import AgeIdentity, make_identity, recipient_of
from appliance.wiring.backups import find_places
from appliance.workflows.backups import listing, making, opening, restoring
from appliance.workflows.core.context import Context
from scripts.kit.log_builder import ORIGIN
from scripts.kit.postgres import APPLICATION, Server
from tests.kit.founded import _DEFAULT, STAGES, STEPS_OF_STAGES, FoundedSite, context_of, template

DATA, ANNA, BORIS, CLEO = (make_identity() for _ in range(4))
"""Identities: one that opens data, and those of three administrators."""
RECIPIENTS = making.Recipients((recipient_of(DATA),), tuple(map(recipient_of, (ANNA, BORIS, CLEO))))
ALL = (DATA, ANNA, BORIS)


@dataclass
class BackedUp:
    """A home without a service, and the folder of its backups. Each backup is a minute later than the one before."""

    home: Path
    folder: BackupFolder
    environment: dict[str, str] = field(default_factory=dict)
    keys: dict[str, Any] | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def settings(self) -> Settings:
        return load_settings(self.home, self.environment)

    @property
    def places(self) -> making.Places:
        return find_places(self.settings)

    @property
    def trust(self) -> Trust:
        return self.places.trust

    def known_keys(self) -> tuple[LogKey, ...]:
        return listing.read_log_keys(self.places.database_url)

    def clock(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now

    def make(self, **options: Any) -> making.MadeBackup:
        return making.create(self.places, self.folder, RECIPIENTS, self.clock, **options)

    def verify(self, backup: Backup, *identities: AgeIdentity) -> opening.BackupVerification:
        return opening.verify(self.folder, backup.name, self.known_keys(), self.trust, identities)

    def restore(
        self,
        backup: Backup,
        home: Path,
        identities: tuple[AgeIdentity, ...] = ALL,
        environment: dict[str, str] | None = None,
        trust: Trust | None = None,
        **options: Any,
    ) -> restoring.RestoredHome:
        variables = self.environment if environment is None else environment
        request = restoring.RestoreRequest(
            backup.name, identities, home, trust or self.trust, self.known_keys(), **options
        )
        return restoring.restore(
            self.folder, request, lambda staged: find_places(load_settings(staged, variables)), self.clock
        )

    @contextmanager
    def site(self) -> Iterator[FoundedSite]:
        """Open the appliance's people over its ledger, with a service's context."""
        if self.keys is None:
            with context_of(self.home) as context:
                yield template(STAGES[-1]).site(self.home, context.ledger)
            return
        with wiring.service(self.settings) as context:
            yield FoundedSite(self.home, context.ledger, self.keys, _DEFAULT, 1_000)


def on_sqlite(folder: Path, stage: str) -> BackedUp:
    home = folder / "home"
    template(stage).copy(home)
    return BackedUp(home, BackupFolder(folder / "backups"))


def make_database(server: Server) -> dict[str, str]:
    """Return the settings of a new, empty PostgreSQL database with logins for its owner and the application."""
    first = server.create_database()
    engine = open_engine(server.url(first))
    migrate(engine)  # makes the application's role
    engine.dispose()
    server.let_application_log_in()
    server.drop_database(first)
    name = server.create_database()
    return {"APPLIANCE_DATABASE_URL": server.url(name, APPLICATION), "APPLIANCE_MIGRATION_URL": server.url(name)}


def on_postgresql(folder: Path, server: Server, stage: str) -> BackedUp:
    made = BackedUp(folder / "home", BackupFolder(folder / "backups"), make_database(server))
    keys: dict[str, Any] = {name: generate_ed25519() for name in ("anna", "ben")}
    people = [wiring.Person(name, key.spki) for name, key in keys.items()]
    wiring.init(made.settings, people, origin=ORIGIN, single_administrator=False, policy=encode_value(_DEFAULT))
    with wiring.service(made.settings) as context:
        site = FoundedSite(made.home, context.ledger, keys, _DEFAULT)
        for name in STAGES[1 : STAGES.index(stage) + 1]:
            STEPS_OF_STAGES[name](site)
    made.keys = site.keys
    return made


@contextmanager
def serving(settings: Settings) -> Iterator[Context]:
    """Run a service over a home without its listeners."""
    with wiring.service(settings) as context:
        yield context
