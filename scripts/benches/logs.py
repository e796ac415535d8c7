"""Synthetic logs of a given size to measure on: a ledger, with its export, trust file and database in a folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import time

from sqlalchemy import Engine

from appliance.domain.actions.apply import subjects_of
from appliance.domain.core.entry import Entry, EntryDraft, Event, parse_entry
from appliance.domain.governance.service import Heartbeat
from appliance.domain.serving.requests import RequestAdmitted, RequestFinished, name_request
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.log.note import vkey_of
from appliance.formats.log.trust import encode_trust
from appliance.store.database.engine import open_engine
from appliance.store.ledger.keys import HeldLogKeys
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.snapshots import Snapshots
from appliance.workflows.lifecycle.running import tune_garbage_collector
from scripts.benches.log_files import write_log
from scripts.benches.measure import wall_ms
from scripts.benches.signed_site import Made
from scripts.benches.synthetic import Synthetic

WRITES = 1_200
"""Commits after which SQLite writes its write-ahead log from the front again, as it does in a service that has run for
minutes. Until then each commit also makes the file longer, which doubles its cost."""


@dataclass(frozen=True)
class Log:
    """A log that was made with `size` entries. The measures append more to the database only, not to the export."""

    size: int
    export: Path
    trust: Path
    database: Path
    ledger: Ledger
    load_us: float
    """Microseconds for each entry that a service replays at its start."""
    resume_us: float
    """Microseconds an entry for a start from the state snapshot that the service before it has sealed."""


@contextmanager
def open_log(folder: Path, size: int) -> Iterator[Log]:
    """Make a log (about 60 µs and 2 KB an entry), load it, and remove it at the end."""
    log = Synthetic(size)
    export, trust, database = (folder / f"{size}.{kind}" for kind in ("tar", "json", "db"))
    write_log(log, export=export, database=database)
    trust.write_bytes(encode_trust(log.trust))
    try:
        snapshots = partial(Snapshots, folder / f"{size}.snapshot", origin=log.origin, code=digest_bytes(b"this"))
        with closing(_open(log, database, snapshots)) as ledger, closing(_open(log, database, snapshots)) as next_one:
            load_us = wall_ms(ledger.load) * 1e3 / size
            ledger.seal_snapshot(1)
            resume_us = wall_ms(next_one.load) * 1e3 / size
            next_one.close()
            tune_garbage_collector()  # as the service does
            for _ in range(WRITES):
                ledger.probe()
            yield Log(size, export, trust, database, ledger, load_us, resume_us)
    finally:
        for path in folder.glob(f"{size}.*"):
            path.unlink()


def _open(log: Synthetic, database: Path, snapshots: Callable[..., Snapshots]) -> Ledger:
    engine = open_engine(f"sqlite:///{database}")
    return open_ledger(log, engine, clock_after(log.time), snapshots(keys=HeldLogKeys(lambda _vkey: log.signer)))


def open_ledger(
    log: Synthetic, engine: Engine, clock: Callable[[], datetime], snapshots: Snapshots | None = None
) -> Ledger:
    """Return the ledger of a synthetic log in a database."""
    key, keys = vkey_of(log.origin, log.signer), HeldLogKeys(lambda _vkey: log.signer)
    return Ledger(engine, origin=log.origin, log_key=key, keys=keys, clock=clock, snapshots=snapshots)


def clock_after(last: str) -> Callable[[], datetime]:
    """Return a clock that continues from the log's last entry, while its reviews are still valid."""
    lead = time() - parse_time(last).timestamp()
    return lambda: datetime.fromtimestamp(time() - lead, UTC)


def replay(log: Synthetic, engine: Engine) -> Ledger:
    """Append the log entry by entry, with the same times, hashes and rows."""
    now = [datetime.min]
    ledger = open_ledger(log, engine, lambda: now[0])
    for made in log.entries():
        now[0] = parse_time(made.time)
        ledger.append(draft_of(made))
    return ledger


def draft_of(made: Made) -> EntryDraft:
    """Return the draft whose append makes this entry again."""
    entry: Entry = parse_entry(made.data)
    return EntryDraft(
        type=entry.type,
        actor=entry.actor,
        source=entry.source,
        subjects=entry.subjects,
        outcome=entry.outcome,
        documents=made.documents,
        body=entry.body,
        disclosures=made.disclosures,
    )


class Requests:
    """Drafts of the entries that a service appends while it serves units: heartbeats, and pairs for new requests."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self._slots = [slot for _, slot in ledger.state.slots.items() if slot.loaded is not None]
        self._random, self._clock = random.Random(seed), clock_after(ledger.state.last_time)

    def heartbeat(self) -> EntryDraft:
        return _draft(Heartbeat())

    def pair(self) -> tuple[EntryDraft, EntryDraft]:
        """Return the entries of a request's beginning and end."""
        slot = self._random.choice(self._slots)
        place = slot.answering
        now = self._clock()
        request = name_request(int(now.timestamp() * 1000), self._random.randbytes(10))
        digest = f"hmac-sha256:{self._random.getrandbits(256):064x}"
        counts = {"finish_reason": "stop", "prompt_tokens": 212, "completion_tokens": 18}
        token = {"token": f"sha256:{self._random.getrandbits(256):064x}", "token_issued_at": encode_time(now)}
        admitted = RequestAdmitted(request=request, prompt=digest, instruction=None, application=None, **token, **place)
        finished = RequestFinished(request=request, answer=digest, instruction=None, engine=None, **place, **counts)
        return _draft(admitted), _draft(finished)


def _draft(event: Event) -> EntryDraft:
    return EntryDraft(
        type=event.type,
        actor=event.actor or "service",
        source="tcp",
        subjects=subjects_of(event),
        body=event,
    )
