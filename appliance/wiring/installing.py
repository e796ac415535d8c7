"""A new appliance: folders, database, keys and the first entry."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from appliance.config.values import Settings
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.policy import parse_policy
from appliance.domain.governance.service import Administrator
from appliance.errors import Conflict, NotFound
from appliance.formats.core.fields import encode_base64
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.note import vkey_of
from appliance.formats.log.trust import Trust, encode_trust
from appliance.formats.signatures.keys import keyid_of
from appliance.store.database.claim import claim_founding
from appliance.store.database.engine import migrate, open_engine
from appliance.store.files.disk import write_file
from appliance.store.files.keyring import Keyring
from appliance.store.files.lock import lock_folder
from appliance.store.ledger.ledger import Ledger
from appliance.wiring.ledger import open_ledger
from appliance.workflows.lifecycle import founding


@dataclass(frozen=True)
class Person:
    """An administrator at init: a name and a public key (SubjectPublicKeyInfo, DER)."""

    name: str
    spki: bytes


def init(
    settings: Settings,
    administrators: Sequence[Person],
    *,
    origin: str | None,
    single_administrator: bool,
    policy: bytes,
) -> Trust:
    """Folders, database, keys and the ledger's first entry; returns what is to be kept elsewhere. `policy`: the first
    policy set's document.

    BadInput, before anything is made, for a policy set that could not decide every order; Denied for one that these
    administrators could not replace. Conflict where a ledger
    stands already, before any key is made. What an interrupted init left is gone on with, if the same is asked for.
    """
    people = tuple(
        Administrator(name=p.name, key=encode_base64(p.spki), keyid=keyid_of(p.spki)) for p in administrators
    )
    wanted = founding.FoundingRequest(origin, people, single_administrator, policy)
    founding.check_policy(parse_policy(policy), wanted, encode_time(datetime.now(UTC)))
    with _home(settings), lock_folder(settings.lock):
        # A power cut may have come between the first entry and the trust file, never the other way round.
        if settings.trust.exists():
            raise Conflict(f"appliance in {settings.home}: expected none yet, got one with a ledger")
        # From before the tables are made until the first entry stands: two homes at once would each make keys.
        with claim_founding(open_engine(settings.migration_url)):
            return _found(settings, origin or founding.make_origin(), wanted)


@contextmanager
def _home(settings: Settings) -> Iterator[None]:
    """The folder; one that was made for this goes again where nothing came of it."""
    is_new = not settings.home.exists()
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if is_new and os.listdir(settings.home) == [settings.lock.name]:
                settings.lock.unlink()
                settings.home.rmdir()
        raise


def _found(settings: Settings, name: str, wanted: founding.FoundingRequest) -> Trust:
    engine = open_engine(settings.migration_url)
    try:
        migrate(engine)
    finally:
        engine.dispose()
    keyring = Keyring(settings.keys)
    first = _first_entry(open_ledger(settings, name, "", keyring))
    if first is None:
        first = _append_first(settings, name, keyring, wanted)
    else:
        founding.check_begun(first, wanted, keyring)
        founding.make_keys(keyring)
    trust = founding.trust_of(first)
    # Whole on disk or not there.
    write_file(settings.trust, encode_trust(trust))
    return trust


def _first_entry(ledger: Ledger) -> Entry | None:
    """That of the log in the database, also where it is another installation's."""
    try:
        return parse_entry(ledger.entry_bytes(0))
    except NotFound:
        return None
    finally:
        ledger.close()


def _append_first(settings: Settings, origin: str, keyring: Keyring, wanted: founding.FoundingRequest) -> Entry:
    log_signer, adapter_signer = founding.make_keys(keyring)
    ledger = open_ledger(settings, origin, vkey_of(origin, log_signer), keyring)
    try:
        appended = ledger.append(founding.draft_first(wanted, origin, log_signer, adapter_signer))
        return parse_entry(appended.entry_bytes)
    finally:
        ledger.close()
