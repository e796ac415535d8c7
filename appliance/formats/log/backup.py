"""A backup of an appliance: the signed manifest, and the encrypted index of the files.

The manifest is a DSSE envelope with an in-toto statement by the log's key. It names the encrypted objects of the
backup with the digests of their bytes, and hides paths and contents. The index is one of the objects. It names the
files, with their digests before encryption. The formats are described in docs/formats/backup.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.digest import parse_digest
from appliance.formats.core.fields import (
    parse_constant,
    parse_count,
    parse_list,
    parse_object,
    parse_record,
    parse_text,
    show,
)
from appliance.formats.core.timestamp import check_time
from appliance.formats.log.note import parse_vkey
from appliance.formats.signatures.dsse import (
    Envelope,
    Statement,
    encode_envelope,
    encode_statement,
    parse_envelope,
    parse_statement,
    sign_envelope,
    verify_envelope,
)
from appliance.formats.signatures.keys import Signer, keyid_of

PREDICATE_TYPE = "urn:appliance:backup:v1"
INDEX_VERSION = 1
DATABASE_PATH = "database"
"""The path of the database's copy in an index."""
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_OBJECT = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")
_RECIPIENT = re.compile(r"age1[02-9ac-hj-np-z]{58}")
_MOST_MODE = 0o777
_ENVELOPE_COMMAS = 3
"""Commas of an envelope with one signature. Its texts have none."""
_BYTES_PER_COMMA = 64
"""Fewest bytes of a statement for each comma beyond `_FREE_COMMAS`. An object has three commas and 270 bytes."""
_FREE_COMMAS = 1_000


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An encrypted object of a backup folder; digest and size (bytes) are those of the stored, encrypted bytes."""

    name: str
    digest: str
    size: int

    def __post_init__(self) -> None:
        parse_object_name(self.name)
        parse_digest(self.digest, f"backup, digest of {self.name}")
        parse_count(self.size, f"backup, size of {self.name}")


@dataclass(frozen=True, slots=True)
class KeyringPair:
    """The keyring for two administrators: an object encrypted to `outer`, and inside of it again to `inner`."""

    object: str
    outer: str
    inner: str

    def __post_init__(self) -> None:
        parse_object_name(self.object)
        for recipient in (self.outer, self.inner):
            parse_recipient(recipient)
        if self.outer == self.inner:
            raise BadInput(f"backup, keyring: expected two different recipients, got {show(self.outer)} twice")


@dataclass(frozen=True, slots=True)
class Backup:
    """The manifest of a backup.

    `checkpoint` is the signed note over the copied log, and `log_key` the vkey that signed it and the manifest.
    `database` is the kind of the database, `revision` that of its tables. `erasure` is the last entry of the copied log
    that erased a text, if there is one. `index` is the name of the index's object.
    """

    name: str
    time: str
    checkpoint: str
    log_key: str
    database: str
    revision: str
    build: str
    compatibility: int
    erasure: int | None
    recipients: tuple[str, ...]
    index: str
    keyring: tuple[KeyringPair, ...]
    objects: tuple[StoredObject, ...]

    def __post_init__(self) -> None:
        parse_backup_name(self.name)
        check_time(self.time, "backup, time")
        for name in ("checkpoint", "log_key", "revision", "build"):
            parse_text(getattr(self, name), f"backup, {name}")
        parse_vkey(self.log_key)
        if self.database not in ("sqlite", "postgresql"):
            raise BadInput(f"backup, database: expected sqlite or postgresql, got {show(self.database)}")
        parse_count(self.compatibility, "backup, compatibility")
        if self.erasure is not None:
            parse_count(self.erasure, "backup, erasure")
        for recipient in self.recipients:
            parse_recipient(recipient)
        names = [found.name for found in self.objects]
        if names != sorted(set(names)):
            raise BadInput("backup, objects: expected each once, sorted by name, got another order")
        for name in (self.index, *(pair.object for pair in self.keyring)):
            if name not in names:
                raise BadInput(f"backup, objects: expected {show(name)} too, got none")

    @property
    def size(self) -> int:
        """Return the size of all objects in bytes."""
        return sum(found.size for found in self.objects)

    @property
    def by_name(self) -> dict[str, StoredObject]:
        """Return the objects by name."""
        return {found.name: found for found in self.objects}


def sign_backup(backup: Backup, signer: Signer) -> bytes:
    """Sign the manifest with the log's key and return the bytes of its file."""
    return encode_envelope(sign_envelope(encode_backup(backup), signer))


def encode_backup(backup: Backup) -> bytes:
    """Encode the manifest as the statement that is signed."""
    predicate = asdict(backup)
    del predicate["objects"]
    predicate["sizes"] = {found.name: found.size for found in backup.objects}
    subjects = tuple((found.name, found.digest) for found in backup.objects)
    return encode_statement(Statement(subjects, PREDICATE_TYPE, predicate))


def parse_backup(data: bytes) -> Backup:
    """Parse a manifest from its signed file, without verifying the signature."""
    return parse_backup_statement(_parse_envelope(data).payload)


def _parse_envelope(data: bytes) -> Envelope:
    if data.count(b",") > _ENVELOPE_COMMAS:
        raise BadInput("backup: expected an envelope with one signature, got more values")
    return parse_envelope(data)


def parse_backup_statement(payload: bytes) -> Backup:
    """Parse the statement of a manifest.

    Millions of small values are refused unparsed, since they take minutes and gigabytes.
    """
    if payload.count(b",") > _FREE_COMMAS + len(payload) // _BYTES_PER_COMMA:
        raise BadInput("backup: expected a manifest, got too many small values")
    statement = parse_statement(payload)
    parse_constant(statement.predicate_type, "backup, predicateType", PREDICATE_TYPE)
    names = {field.name for field in fields(Backup)} - {"objects"} | {"sizes"}
    values = dict(parse_object(statement.predicate, "backup", frozenset(names)))
    sizes = parse_object(values.pop("sizes"), "backup, sizes", frozenset(name for name, _ in statement.subjects))
    pairs = parse_list(values["keyring"], "backup, keyring")
    values["keyring"] = tuple(parse_record(KeyringPair, pair, "backup, keyring") for pair in pairs)
    values["recipients"] = tuple(parse_list(values["recipients"], "backup, recipients"))
    objects = tuple(StoredObject(name, digest, sizes[name]) for name, digest in statement.subjects)
    return Backup(**values, objects=objects)


def open_backup(data: bytes, log_keys: Iterable[str]) -> Backup:
    """Return the manifest after verifying that one of these log keys (vkeys) signed it.

    Raises:
        Tampered: the signature is invalid or by another key.
        BadInput: the bytes are not a signed manifest.
    """
    envelope = _parse_envelope(data)
    keys = {keyid_of(key.spki): key.spki for key in map(parse_vkey, log_keys)}
    spki = keys.get(envelope.signature.keyid)
    known = ", ".join(sorted(keys)) or "none"
    other = (
        f"backup: expected a signature by a log key ({known}), got one by another key; "
        "if the log's key was rotated, name the present one"
    )
    if spki is None:
        raise Tampered(other)
    verify_envelope(envelope, spki)
    backup = parse_backup_statement(envelope.payload)
    if keyid_of(parse_vkey(backup.log_key).spki) != envelope.signature.keyid:
        raise Tampered(other)
    return backup


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A file of a backup: its path, mode and object, and the digest and size (bytes) of its content."""

    path: str
    mode: int
    object: str
    digest: str
    size: int

    def __post_init__(self) -> None:
        _check_path(self.path)
        _check_mode(self.mode, self.path)
        parse_object_name(self.object)
        parse_digest(self.digest, f"index, digest of {show(self.path)}")
        parse_count(self.size, f"index, size of {show(self.path)}")


@dataclass(frozen=True, slots=True)
class FolderMode:
    """A folder of a backup: its path and its mode."""

    path: str
    mode: int

    def __post_init__(self) -> None:
        _check_path(self.path)
        _check_mode(self.mode, self.path)


@dataclass(frozen=True, slots=True)
class Index:
    """The files and the folders of a backup, each sorted by path."""

    files: tuple[BackupFile, ...]
    folders: tuple[FolderMode, ...]

    def __post_init__(self) -> None:
        for paths in ([file.path for file in self.files], [folder.path for folder in self.folders]):
            if paths != sorted(set(paths)):
                raise BadInput("index, paths: expected each once, sorted, got another order")


def encode_index(index: Index) -> bytes:
    """Encode the index as canonical JSON."""
    return encode_canonical(asdict(index) | {"version": INDEX_VERSION})


def parse_index(data: bytes) -> Index:
    """Parse the index of a backup."""
    value = parse_object(parse_canonical(data), "index", frozenset({"files", "folders", "version"}))
    parse_constant(value["version"], "index, version", INDEX_VERSION)
    files, folders = (parse_list(value[name], f"index, {name}") for name in ("files", "folders"))
    return Index(
        tuple(parse_record(BackupFile, file, "index, file") for file in files),
        tuple(parse_record(FolderMode, folder, "index, folder") for folder in folders),
    )


def parse_recipient(value: Any) -> str:
    """Return the value if it is a public key of age (X25519), such as `age-keygen` prints."""
    text = parse_text(value, "recipient")
    if _RECIPIENT.fullmatch(text) is None:
        raise BadInput(f"recipient: expected a public key of age, age1 and 58 characters, got {show(text)}")
    return text


def parse_object_name(value: Any) -> str:
    text = parse_text(value, "backup, object")
    if _OBJECT.fullmatch(text) is None:
        raise BadInput(f"backup, object: expected 64 and 16 hexadecimal digits, got {show(text)}")
    return text


def parse_backup_name(value: Any) -> str:
    """Return the value if it is the name of a backup: its time in UTC, such as 20261129T013000Z."""
    text = parse_text(value, "backup, name")
    if _NAME.fullmatch(text) is None:
        raise BadInput(f"backup, name: expected a time such as 20261129T013000Z, got {show(text)}")
    time_of_name(text)
    return text


def time_of_name(name: str) -> str:
    """Return the time in the name of a backup, in seconds."""
    day, clock = f"{name[:4]}-{name[4:6]}-{name[6:8]}", f"{name[9:11]}:{name[11:13]}:{name[13:15]}"
    return check_time(f"{day}T{clock}.000Z", "backup, name")


def _check_path(path: str) -> None:
    steps = parse_text(path, "index, path").split("/")
    if not all(steps) or ".." in steps or "." in steps or "\0" in path:
        raise BadInput(f"index, path: expected a plain relative path, got {show(path)}")


def _check_mode(mode: int, path: str) -> None:
    if parse_count(mode, f"index, mode of {show(path)}") > _MOST_MODE:
        raise BadInput(f"index, mode of {show(path)}: expected permission bits, got {mode:o}")
