"""The measured values that alarms compare, in a running service and beside one.

Values that need the database are measured once a minute, by the heartbeat. All others come from memory and from the
disk, so that they can be read while the database does not respond.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from appliance.domain.core.policy import Parameters
from appliance.domain.core.records.site import WitnessRecord
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import (
    RECOVER_ADMINISTRATOR,
    find_recovery_start,
    list_waiting_orders,
)
from appliance.domain.queries.measures import (
    DiskSpace,
    Expiry,
    Growth,
    Measures,
    Recovery,
    WitnessAge,
    find_insufficient_administrators,
    list_ended_approvals,
    list_ending_approvals,
    list_ending_keys,
    seconds_between,
)
from appliance.errors import ApplianceError
from appliance.formats.core.timestamp import encode_time
from appliance.store.database.catalogue import check_catalogue
from appliance.store.files.keyring import read_end
from appliance.store.files.space import Reserve, is_released, measure_space
from appliance.store.ledger.past import last_at
from appliance.workflows.core.context import DatabaseMeasures, LedgerContext


def measure(context: LedgerContext) -> Measures:
    """Return the values of a running service. It needs no query to the database."""
    state, contact = context.ledger.state, context.contact
    disk = measure_disk(context.logs.parent, context.reserve)
    measured = measure_state(state, Measures(now=encode_time(context.clock()), disk=disk))
    return replace(
        measured,
        certificates=context.certificates,
        serving_since=context.began,
        stalled=context.stalled,
        contact_age_s=contact.age_s,
        has_lost_contact=contact.is_lost,
        missing=tuple(error.message for error in context.missing_from_log),
        schema=context.database_measures.schema,
        growth=context.database_measures.growth,
        backups=context.backups,
    )


def measure_state(state: State, measures: Measures) -> Measures:
    """Return the measures with the values of the state."""
    now = max(measures.now, state.last_time)
    return replace(
        measures,
        last_entry=state.last_time,
        clock_skew_s=state.parameters.clock_skew_s,
        witnesses=measure_witnesses(state.parameters, state.witnesses.values(), now),
        witness_quorum=state.parameters.witness_quorum,
        witness_lifetime_s=state.parameters.witness_lifetime_s,
        ending_approvals=tuple(list_ending_approvals(state, now)),
        ended_approvals=tuple(list_ended_approvals(state, now)),
        ending_keys=tuple(
            Expiry(f"{key.principal} ({key.title} {key.keyid[7:19]}…)", key.until)
            for key in list_ending_keys(state, now)
            if key.until is not None
        ),
        insufficient_administrators=find_insufficient_administrators(state, now),
        recoveries=tuple(
            Recovery(
                one.signer,
                ", ".join(about.removeprefix("principal:") for about in one.about if about.startswith("principal:")),
                find_recovery_start(state, one),
                one.expires_at,
            )
            for one in list_waiting_orders(state, now)
            if one.action == RECOVER_ADMINISTRATOR
        ),
    )


def measure_witnesses(parameters: Parameters, seen: Iterable[WitnessRecord], now: str) -> tuple[WitnessAge, ...]:
    """Return each witness of the valid policy with the age of its last cosignature."""
    times = {one.vkey: one.time for one in seen}
    return tuple(
        WitnessAge(vkey.partition("+")[0], seconds_between(times[vkey], now) if vkey in times else None)
        for vkey in parameters.witnesses
    )


def measure_disk(folder: Path, reserve: Reserve | None = None) -> DiskSpace:
    """Return the space of the home's disk. A folder that does not exist yet has that of its nearest parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return DiskSpace(str(folder), *measure_space(folder, reserve), is_reserve_released=is_released(folder))
    except OSError as error:
        return DiskSpace(str(folder), error=error.strerror or str(error))


def measure_certificates(files: Mapping[Path, bool]) -> tuple[Expiry, ...]:
    """Return the certificate files with their ends. The value is True for a file of CAs.

    Raises:
        BadInput: A file is not PEM.
        Unavailable: A file cannot be read.
    """
    return tuple(Expiry(path.name, encode_time(read_end(path, is_ca=is_ca))) for path, is_ca in files.items())


def measure_database(context: LedgerContext) -> DatabaseMeasures:
    """Return the values that need queries to the database. While it does not respond, the last ones remain."""
    ledger = context.ledger
    try:
        schema = tuple(f"database, {finding}" for finding in ledger.ask(check_catalogue))
        day_ago = encode_time(context.clock() - timedelta(days=1))
        before = ledger.ask(partial(last_at, partial_block=ledger.partial_block, time=day_ago))
        size, stored = ledger.state.size, ledger.stored_bytes()
    except ApplianceError:
        return context.database_measures
    entries = size - (0 if before is None else before + 1)
    local = ledger.dialect == "sqlite"
    return DatabaseMeasures(schema, Growth(entries, stored * entries // max(1, size), local), stored)
