"""Backups of the appliance that the settings describe: the places of its files, and the folder of its backups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from appliance.config.settings import Settings, load_settings
from appliance.domain.core.records.site import LogKey
from appliance.domain.queries.measures import BackupAges
from appliance.errors import BadInput
from appliance.formats.log.trust import Trust
from appliance.store.files.backups import BackupFolder
from appliance.store.files.encryption import AgeIdentity, read_identities
from appliance.wiring.building import check_account, open_keys, open_snapshots, read_trust
from appliance.workflows.backups import listing, making, opening, restoring
from appliance.workflows.backups.listing import ListedBackup
from appliance.workflows.backups.making import MadeBackup, Places, Recipients
from appliance.workflows.backups.opening import BackupVerification
from appliance.workflows.backups.restoring import RestoredHome, RestoreMark
from appliance.workflows.core.context import describe_code

_CERTIFICATES = ("certificate", "client_ca", "people_client_ca")
_SECRETS = ("certificate_key", "operations_token", "feed_token")

Say = Callable[[str], None]


def find_places(settings: Settings) -> Places:
    """Return the places of an appliance's files."""

    def named(settings_names: Sequence[str]) -> dict[str, Path]:
        paths = {name: getattr(settings, name) for name in settings_names}
        return {name: path for name, path in paths.items() if path is not None}

    return Places(
        home=settings.home,
        shared=settings.shared,
        keys=settings.keys,
        witnessed=settings.witnessed,
        database_url=settings.database_url.get_secret_value(),
        owner_url=settings.migration_url.get_secret_value(),
        certificates=named(_CERTIFICATES),
        secrets=named(_SECRETS),
        signer=None if settings.signer_socket is None else partial(open_keys, settings),
    )


def backup_ages(settings: Settings) -> BackupAges | None:
    """Return the folder of backups and the limits of the settings, without a measurement; None without a folder."""
    folder = settings.backup_folder
    return None if folder is None else BackupAges(str(folder), settings.backup_days, settings.backup_keep_days)


def create_backup(settings: Settings, folder: Path | None, *, with_checkpoints: bool, say: Say) -> MadeBackup:
    """Make a backup of this appliance in the folder, or in that of the settings."""
    recipients = Recipients(settings.backup_recipients, settings.backup_key_recipients)
    target, places = BackupFolder(_find_folder(settings, folder)), find_places(settings)
    origin = read_trust(settings).origin
    with closing(open_keys(settings, origin)) as keys:
        snapshots = open_snapshots(settings, origin, describe_code(), keys)
        return making.create(
            places, target, recipients, _now, with_checkpoints=with_checkpoints, snapshots=snapshots, say=say
        )


def list_backups(
    settings: Settings, folder: Path | None, trust: Trust | None = None, log_key: str | None = None
) -> list[ListedBackup]:
    """Return the backups of a folder, oldest first. Without a trust file, that of the home is used."""
    keys = _find_log_keys(settings, trust, log_key)
    return listing.list_backups(BackupFolder(_find_folder(settings, folder)), keys)


def verify_backups(
    settings: Settings,
    folder: Path | None,
    name: str | None,
    identities: Sequence[Path],
    trust: Trust | None,
    log_key: str | None,
    say: Say,
) -> list[BackupVerification]:
    """Verify a backup, or every backup of the folder. Without a trust file, that of the home is used.

    Raises:
        Denied: There is a home, which belongs to another account. The log is decrypted in it.
    """
    check_account(settings.home)
    places, target = find_places(settings), BackupFolder(_find_folder(settings, folder))
    keys = _find_log_keys(settings, trust, log_key)
    opened = [identity for path in identities for identity in read_identities(path)]
    home = places.home if (places.home / "trust.json").exists() else None
    names = target.names() if name is None else [name]
    found = []
    for one in names:
        say(f"verifies {one}")
        found.append(opening.verify(target, one, keys, trust or places.trust, opened, home))
    return found


def remove_backup(settings: Settings, folder: Path | None, name: str, *, newest: bool) -> None:
    """Remove a backup and the objects that no other backup names. `newest`: allow it for the newest backup, too."""
    check_account(settings.home)
    listing.remove(BackupFolder(_find_folder(settings, folder)), name, newest=newest)


def restore_backup(
    folder: Path,
    name: str,
    home: Path,
    trust: Trust,
    *,
    identities: Sequence[Path],
    log_key: str | None,
    erasures: Path | None,
    checkpoints: Sequence[Path],
    say: Say,
) -> RestoredHome:
    """Restore a backup into a new home. Variables of the environment take precedence over the restored settings."""
    opened: list[AgeIdentity] = [identity for path in identities for identity in read_identities(path)]
    keys = listing.given_keys(trust, log_key)
    request = restoring.RestoreRequest(name, opened, home, trust, keys, erasures, checkpoints)
    return restoring.restore(
        BackupFolder(folder), request, lambda staged: find_places(load_settings(staged)), _now, say
    )


def _find_log_keys(settings: Settings, trust: Trust | None, log_key: str | None) -> tuple[LogKey, ...]:
    """Return the keys that can have signed backups: those of the log here, or the one that the person gives."""
    if trust is not None or log_key is not None:
        return listing.given_keys(trust or find_places(settings).trust, log_key)
    read_trust(settings)  # raises if there is no appliance here, or one of another account
    return listing.read_log_keys(settings.database_url.get_secret_value())


def _find_folder(settings: Settings, folder: Path | None) -> Path:
    found = folder or settings.backup_folder
    if found is None:
        raise BadInput("backups: expected FOLDER, or the setting backup_folder, got neither")
    return found.expanduser().absolute()


def _now() -> datetime:
    return datetime.now(UTC)


def read_restored(home: Path) -> RestoreMark:
    """Return what a restored home that waits to be confirmed says of itself.

    Raises:
        Denied: It belongs to another account.
    """
    check_account(home)
    return restoring.read_mark(home)


def confirm_restored(home: Path) -> None:
    """Allow a service to start in a restored home."""
    restoring.confirm(home)
