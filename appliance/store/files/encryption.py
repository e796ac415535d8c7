"""Encryption of streams to public keys in the age format (https://age-encryption.org/v1), with X25519 recipients.

Streams pass through in chunks. Every function hashes what it reads and writes. The library is imported when it is used,
so that a service, which encrypts nothing, does not load it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from appliance.errors import BadInput, Denied, Tampered
from appliance.formats.core.digest import Hasher
from appliance.formats.log.backup import parse_recipient
from appliance.store.files import disk


class AgeIdentity(NamedTuple):
    """A private key of age."""

    key: Any


Write = Callable[[bytes], None]
"""A function that takes the next bytes of a stream."""
MAX_IDENTITY_BYTES = 65_536
_IDENTITY_PREFIX = "AGE-SECRET-KEY-1"
_ENCRYPTED = b"age-encryption.org/"


class StreamDigests(NamedTuple):
    """The digests and sizes of the two sides of an encryption or decryption."""

    plain: Hasher
    stored: Hasher


class DescriptorReader:
    """A reader over a descriptor. An error of the disk is kept, since the library would report another one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.hasher = descriptor, Hasher()
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            data = os.read(self._descriptor, disk.CHUNK_BYTES if size < 0 else size)
        except OSError as error:
            self.error = error
            raise
        self.hasher.update(data)
        return data


class Sink:
    """A writer to a function. An error of the function is kept."""

    def __init__(self, write: Write) -> None:
        self._write, self.hasher = write, Hasher()
        self.error: Exception | None = None

    def write(self, data: bytes) -> int:
        self.hasher.update(data)
        try:
            self._write(data)
        except Exception as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None: ...


def make_identity() -> AgeIdentity:
    """Return a new identity, which exists in memory only."""
    from pyrage import x25519

    return AgeIdentity(x25519.Identity.generate())


def recipient_of(identity: AgeIdentity) -> str:
    """Return the public key of an identity."""
    return str(identity.key.to_public())


def check_recipient(text: str) -> str:
    """Return the text if it is a public key of age.

    Raises:
        BadInput: it is not, or its checksum is wrong.
    """
    from pyrage import RecipientError, x25519

    parse_recipient(text)
    try:
        x25519.Recipient.from_str(text)
    except RecipientError:
        raise BadInput(f"recipient {text}: expected a public key of age, got one with a wrong checksum") from None
    return text


def read_identities(path: Path) -> list[AgeIdentity]:
    """Return the identities of a file, as `age-keygen` writes it.

    Raises:
        BadInput: the file has none, or a line that is not one. The message does not show the line.
    """
    from pyrage import IdentityError, x25519

    what = f"identity file, {path}"
    try:
        with path.open("rb") as file:
            data = disk.read_all(file.fileno(), MAX_IDENTITY_BYTES, what)
    except OSError as error:
        raise BadInput(f"{what}: expected a readable file, got {error.strerror}") from None
    if data.startswith(_ENCRYPTED):
        raise BadInput(f"{what}: expected identities, got an encrypted file; decrypt it first: age -d")
    lines = [line.strip() for line in data.decode("utf-8", "replace").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    try:
        identities = [
            AgeIdentity(x25519.Identity.from_str(line)) for line in found if line.startswith(_IDENTITY_PREFIX)
        ]
    except IdentityError:
        identities = []
    if not found or len(identities) != len(found):
        raise BadInput(f"{what}: expected lines AGE-SECRET-KEY-1…, as age-keygen writes them, got another file")
    return identities


def encrypt(source: int, write: Write, recipients: Sequence[str]) -> StreamDigests:
    """Encrypt the rest of a descriptor to these recipients."""
    from pyrage import EncryptError, encrypt_io, x25519

    keys = [x25519.Recipient.from_str(text) for text in recipients]
    reader, writer = DescriptorReader(source), Sink(write)
    try:
        encrypt_io(reader, writer, keys)
    except (EncryptError, OSError) as error:
        raise reader.error or writer.error or error from None
    return StreamDigests(reader.hasher, writer.hasher)


def decrypt(source: int, write: Write, identities: Sequence[AgeIdentity], what: str) -> StreamDigests:
    """Decrypt the rest of a descriptor. `write` may get the bytes of a file whose end is altered.

    Raises:
        Denied: none of the identities can open it.
        Tampered: the bytes are altered, truncated or not in the age format.
    """
    from pyrage import DecryptError, decrypt_io

    reader, writer = DescriptorReader(source), Sink(write)
    try:
        decrypt_io(reader, writer, [identity.key for identity in identities])
    except (DecryptError, OSError) as error:
        if reader.error or writer.error:
            raise reader.error or writer.error or error from None
        if "No matching keys" in str(error):
            raise Denied(f"{what}: expected an identity that can open it, got others") from None
        raise Tampered(f"{what}: expected a whole file in the age format, got altered bytes: {error}") from None
    # The format ends with its last chunk: bytes after it are an error of the library, too.
    while reader.read(disk.CHUNK_BYTES):
        raise Tampered(f"{what}: expected the end of the file, got more bytes")
    return StreamDigests(writer.hasher, reader.hasher)
