"""A founded appliance whose records are 200 days old, and whose witness has cosigned the log today."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from functools import cache
from pathlib import Path
from typing import Self

import pytest

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.domain.audit.archives import find_last_archivable
from appliance.domain.core.names import encode_value
from appliance.domain.core.policy import Retention
from appliance.domain.governance.service import Heartbeat
from appliance.domain.retention import LogArchived
from appliance.formats.signatures.keys import Signer, generate_ed25519
from appliance.wiring import building, installing
from appliance.workflows import witnesses
from appliance.workflows.core.context import Context
from scripts.kit.log_builder import _STEPS as STEPS_OF_STAGES
from scripts.kit.log_builder import ORIGIN
from tests.kit import founded
from tests.kit.archived_log import CLASSES, NAME, VKEY, WITNESS, add_records, archive_of, prepare
from tests.kit.founded import STAGES, FoundedSite, Template, context_of, policy_set

AGE = timedelta(days=200)
DAYS = 183
"""Retention of every class."""


class Past(datetime):
    """The clock of the time when the records were made."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) - AGE


def cosign_with(
    context: Context, site: FoundedSite, witness: Signer = WITNESS, name: str = NAME, now: str | None = None
) -> None:
    """Have a witness cosign the log, as a request of its machine does."""
    witnesses.accept(context, site.cosigned(witness, name, now=now)[1]["note"], "unix:1000")


@cache
def old_template() -> Template:
    """Made once in a process."""
    return make_old(founded._folder() / "old", {})


def make_old(home: Path, environment: dict[str, str]) -> Template:
    """Found the appliance in an empty home, with the database that the environment names."""
    settings = load_settings(home, environment)
    with pytest.MonkeyPatch.context() as patch:
        for module in (building, installing, founded):
            patch.setattr(module, "datetime", Past)
        keys = {name: generate_ed25519() for name in ("anna", "ben")}
        people = [wiring.Person(name, key.spki) for name, key in keys.items()]
        policy = policy_set()
        wiring.init(settings, people, origin=ORIGIN, single_administrator=False, policy=encode_value(policy))
        with context_of(home, environment) as context:
            site = FoundedSite(home, context.ledger, keys, policy)
            for stage in STAGES[1:]:
                STEPS_OF_STAGES[stage](site)
            retention = tuple(Retention(records=records, days=DAYS) for records in CLASSES)
            site.adopt(policy_set(witnesses=(VKEY,), retention=retention))
            add_records(site)
    with context_of(home, environment) as context:
        context.ledger.clock.accept_pause(context.ledger.state.last_time)
        site = Template(home, site.keys, site._count).site(home, context.ledger)
        site.add(Heartbeat())
        cosign_with(context, site)
        context.ledger.seal_snapshot(1)
    return Template(home, site.keys, site._count)


def archive(site: FoundedSite, records: tuple[str, ...] = CLASSES) -> bytes:
    """Remove the old records of these classes, as two administrators order it, and return the archive's bytes."""
    up_to = find_last_archivable(site.entries, DAYS, site.now)
    order, prepared = prepare(site, up_to, records)
    data = archive_of(site)
    site.two(LogArchived(policy=site.in_force), order, {"removed": prepared.removed})
    return data
