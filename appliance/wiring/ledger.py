"""The ledger, opened with the keys that sign it."""

from __future__ import annotations

from datetime import UTC, datetime

from appliance.config.values import Settings
from appliance.domain.core.entry import parse_entry
from appliance.domain.governance.service import ServiceStarted
from appliance.errors import NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import Trust, parse_trust
from appliance.formats.signatures.keys import Signer
from appliance.store.database.engine import check_migrated, open_engine
from appliance.store.files.keyring import Keyring
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.snapshots import FindSigner, Snapshots
from appliance.workflows.core.context import Code
from appliance.workflows.integrity import snapshots

LONGEST_PAUSE_DAYS = 31
"""Between two entries, where nobody says that it was longer."""


def read_trust(settings: Settings) -> Trust:
    try:
        return parse_trust(settings.trust.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"appliance in {settings.home}: expected one, got none; make it with: appliance init") from None


def open_ledger(settings: Settings, origin: str, log_key: str, keyring: Keyring, code: Code | None = None) -> Ledger:
    """`code`: what folds the log, where that is kept between one start and the next."""
    engine = open_engine(settings.database_url, process=settings.process)
    try:
        check_migrated(engine)
    except BaseException:
        engine.dispose()
        raise
    held = keyring.log_signers(origin)

    def signer(vkey: str) -> Signer:
        if vkey not in held:
            # Made since, to rotate to.
            held.update(keyring.log_signers(origin))
        if vkey not in held:
            raise NotFound(f"log key {vkey}: expected it in {settings.keys}, got none")
        return held[vkey]

    return Ledger(
        engine,
        origin=origin,
        log_key=log_key,
        signers=signer,
        clock=lambda: datetime.now(UTC),
        snapshots=None if code is None else _snapshots(settings, origin, code, signer),
        longest_pause_days=LONGEST_PAUSE_DAYS,
    )


def _snapshots(settings: Settings, origin: str, code: Code, signers: FindSigner) -> Snapshots:
    digest = digest_bytes(repr(code).encode())
    return Snapshots(settings.snapshot, origin=origin, code=digest, signers=signers, least=snapshots.LEAST)


def is_other_build(ledger: Ledger, code: Code) -> bool:
    """Whether another build started last: its projections may lack what this one keeps of the same entries."""
    last = ledger.find(types=(ServiceStarted.type,), newest=True, limit=1)
    return any(parse_entry(data).body["code"] != code.digest for _, data in last)


def check_keyring(keyring: Keyring, ledger: Ledger) -> None:
    """Whatever must sign the log now is held here: one that has ended since the last entry may have been destroyed."""
    site, now = ledger.state.site, max(encode_time(datetime.now(UTC)), ledger.state.last_time)
    missing = sorted(set(site.signing_keys(now)) - set(keyring.log_signers(site.origin)))
    if missing:
        raise Tampered(f"keyring: expected the log's keys, got none of {', '.join(missing)}; put the keys folder back")
