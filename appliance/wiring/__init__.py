"""The package that builds every object. It alone opens the keyring and passes signers to other packages."""

from appliance.wiring.backups import (
    confirm_restored,
    create_backup,
    list_backups,
    read_restored,
    remove_backup,
    restore_backup,
    verify_backups,
)
from appliance.wiring.building import service
from appliance.wiring.installing import Person, diagnose, doctor, init
from appliance.wiring.serving import serve
from appliance.wiring.upgrading import check_database, migrate_database

__all__ = [
    "Person",
    "check_database",
    "confirm_restored",
    "create_backup",
    "diagnose",
    "doctor",
    "init",
    "list_backups",
    "migrate_database",
    "read_restored",
    "remove_backup",
    "restore_backup",
    "serve",
    "service",
    "verify_backups",
]
