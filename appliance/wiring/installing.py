"""The installation of a new appliance (folders, database, keys, first entry), and the call of `appliance doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from appliance.api.operations import Check
from appliance.config.description import find_missing
from appliance.config.settings import Settings
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.policy import parse_policy
from appliance.domain.governance.service import Administrator
from appliance.errors import ApplianceError, Conflict, NotFound, Unavailable
from appliance.formats.core.fields import encode_base64
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import Trust, encode_trust
from appliance.formats.signatures.keys import keyid_of
from appliance.signer.client import SignerKeys
from appliance.store.database.engine import migrate, open_engine, using_engine
from appliance.store.database.processes import claim_database
from appliance.store.files.disk import write_file
from appliance.store.files.keyring import Keyring
from appliance.store.files.lock import holder_of, lock_folder
from appliance.store.ledger.keys import ServiceKeys
from appliance.store.ledger.ledger import Ledger
from appliance.wiring.backups import backup_ages
from appliance.wiring.building import check_account, find_signed_log, open_keys, open_ledger
from appliance.wiring.listening import tls_of_console, tls_of_people, tls_of_units
from appliance.workflows.backups.restoring import refuse_restored
from appliance.workflows.lifecycle import founding
from appliance.workflows.operations.diagnosis import collect
from appliance.workflows.operations.doctor import Installation, run_checks

_CHECKED_APART = ("certificate", "certificate_key", "client_ca", "people_client_ca", "backup_folder")
"""Settings whose files `doctor` reads in checks of their own."""


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
    post_quantum: bool = False,
) -> Trust:
    """Make the folders, the database, the keys and the ledger's first entry, and return the trust to keep elsewhere.

    `policy` is the document of the first policy set. `post_quantum`: ML-DSA-65 signs checkpoints and adapters, too. An
    interrupted init continues if it is repeated with the same
    arguments.

    Raises:
        BadInput: The policy set could not decide every order, or the origin, a name or a key is not allowed. Nothing
            has been made.
        Denied: These administrators could not replace the policy set, or the home belongs to another account. Nothing
            has been made.
        Conflict: There is a ledger already. No key has been made.
    """
    people = tuple(
        Administrator(name=p.name, key=encode_base64(p.spki), keyid=keyid_of(p.spki)) for p in administrators
    )
    wanted = founding.FoundingRequest(origin, people, single_administrator, policy, post_quantum)
    founding.check_request(wanted)
    founding.check_policy(parse_policy(policy), wanted, encode_time(datetime.now(UTC)))
    refuse_restored(settings.home)
    _check_free(settings)  # before the lock, which a running service holds
    with _home(settings), lock_folder(settings.lock):
        _check_free(settings)
        # The claim lasts until the first entry is durable. Otherwise two homes could each make keys for one database.
        with claim_database(open_engine(settings.migration_url.get_secret_value())):
            return _found_appliance(settings, origin or find_signed_log(settings) or founding.make_origin(), wanted)


def _check_free(settings: Settings) -> None:
    # The trust file is written after the first entry, so its presence proves that there is a ledger.
    if settings.trust.exists():
        raise Conflict(
            f"appliance in {settings.home}: expected none yet, got one with a ledger; name another folder with --home"
        )


@contextmanager
def _home(settings: Settings) -> Iterator[None]:
    """Make the home folder. If init fails and has left only the lock file in a new folder, remove the folder again.

    Raises:
        Unavailable: The folder cannot be made.
    """
    is_new = not settings.home.exists()
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"data folder, {settings.home}: expected a folder, or a place where this account can make one, got "
            f"{error.strerror}; name another one with --home"
        ) from None
    check_account(settings.home)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if is_new and os.listdir(settings.home) == [settings.lock.name]:
                settings.lock.unlink()
                settings.home.rmdir()
        raise


def _found_appliance(settings: Settings, name: str, wanted: founding.FoundingRequest) -> Trust:
    with using_engine(settings.migration_url.get_secret_value()) as engine:
        migrate(engine)
    with closing(open_keys(settings, name)) as keys:
        first = _first_entry(open_ledger(settings, name, "", keys))
    origin = name if first is None else founding.trust_of(first).origin
    with closing(open_keys(settings, origin)) as keys:
        if first is not None:
            founding.check_begun(first, wanted, keys)
        keyring = Keyring(settings.keys)
        # A signer has made the log's key and the adapters'.
        if settings.signer_socket is None:
            keyring.make_keys()
        founding.make_secret(keyring)
        if first is None:
            first = _append_first(settings, keys, wanted)
            founding.check_begun(first, wanted, keys)
    trust = founding.trust_of(first)
    # Atomic: the file is complete or absent.
    write_file(settings.trust, encode_trust(trust))
    return trust


def _first_entry(ledger: Ledger) -> Entry | None:
    """Return the first entry of the log in the database, which may belong to another installation, or None."""
    try:
        return parse_entry(ledger.entry_bytes(0))
    except NotFound:
        return None
    finally:
        ledger.close()


def _append_first(settings: Settings, keys: ServiceKeys, wanted: founding.FoundingRequest) -> Entry:
    origin = keys.origin
    ledger = open_ledger(settings, origin, keys.list_log_keys()[0], keys)
    try:
        ledger.load()  # commits the first entry of an interrupted init if the signer has signed it
        if ledger.state.size == 0:
            ledger.append(founding.draft_first(wanted, keys))
        return parse_entry(ledger.entry_bytes(0))
    finally:
        ledger.close()


def doctor(settings: Settings) -> Iterator[Check]:
    """Yield the findings on this appliance. It works beside a running service, without one, and before `init`."""
    return run_checks(_describe_installation(settings), os.environ, datetime.now(UTC))


def diagnose(settings: Settings, log: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Return the sections of a diagnosis for a maintainer. `log`: lines of the service's log.

    Raises:
        Denied: The home belongs to another account.
    """
    check_account(settings.home)
    return collect(_describe_installation(settings), os.environ, datetime.now(UTC), log)


def _describe_installation(settings: Settings) -> Installation:
    tls_error: str | None = None
    try:
        tls_of_units(settings)
        tls_of_people(settings)
        tls_of_console(settings)
    except ApplianceError as error:
        tls_error = error.message
    private = [settings.home / "trust.json"]
    private += [] if settings.database_file is None else [settings.database_file]
    private += [] if settings.certificate_key is None else [settings.certificate_key]
    private += [token for token in (settings.operations_token, settings.feed_token) if token is not None]
    addresses = {
        "units' port": settings.listen,
        "people's port": settings.people,
        "console": settings.console,
        "operations": settings.operations,
    }
    return Installation(
        home=settings.home,
        keys=settings.keys,
        socket=settings.socket,
        database_url=settings.database_url.get_secret_value(),
        private=tuple(private),
        certificates=settings.certificates,
        listeners=tuple((name, *address) for name, address in addresses.items() if address is not None),
        pid=holder_of(settings.lock),
        settings=settings.home / "appliance.toml",
        has_socket_group=settings.socket_group is not None,
        missing=tuple(one for one in find_missing(settings) if one[0] not in _CHECKED_APART),
        tls_error=tls_error,
        backups=backup_ages(settings),
        signer=None if settings.signer_socket is None else partial(SignerKeys, settings.signer_socket),
    )
