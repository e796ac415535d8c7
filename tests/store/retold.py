"""A log of the domain's builder, appended to a ledger of the store entry by entry."""

from __future__ import annotations

from sqlalchemy import Engine

from appliance.domain.core.entry import EntryDraft, parse_entry
from appliance.formats.core.timestamp import parse_time
from appliance.store.ledger.keys import HeldLogKeys
from appliance.store.ledger.ledger import Ledger
from scripts.kit.log_builder import ORIGIN, LogBuilder


def retell(engine: Engine, site: LogBuilder) -> Ledger:
    """Return a ledger with exactly the site's entries."""
    times = [parse_entry(data).time for data in site.entries]
    ledger = Ledger(
        engine,
        origin=ORIGIN,
        log_key=site.first.log_key,
        keys=HeldLogKeys(site.log_signers.__getitem__),
        clock=lambda: parse_time(times[min(ledger.state.size, len(times) - 1)]),
    )
    ledger.load()
    opened = {text.commitment: text for text in site.disclosures}
    for data in site.entries:
        entry = parse_entry(data)
        appended = ledger.append(
            EntryDraft(
                type=entry.type,
                actor=entry.actor,
                source=entry.source,
                subjects=entry.subjects,
                outcome=entry.outcome,
                documents={role: site.documents[digest] for role, digest in entry.documents.items()},
                body=entry.body,
                disclosures=tuple(opened.values()) if entry.index == len(times) - 1 else (),
            )
        )
        assert appended.entry_bytes == data
    return ledger
