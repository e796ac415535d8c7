"""A person's key: made, proved and unlocked here, on the person's side. The service never sees it.

A passphrase comes from a prompt, a file descriptor or a 0600 file; never from an argument or the environment, which
other processes can read.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from itertools import count
from pathlib import Path

from appliance.client.support.files import read_file, read_private, write_new
from appliance.errors import ApplianceError, BadInput, NotAuthenticated
from appliance.formats.signatures.keys import (
    NONCE_BYTES,
    SALT_BYTES,
    Ed25519Signer,
    encode_key_file,
    encode_spki_pem,
    generate_ed25519,
    load_spki_pem,
    parse_key_file,
    parse_key_file_spki,
)

MIN_PASSPHRASE_CHARACTERS = 8
_MAX_PASSPHRASE_BYTES = 4_096
_MAX_KEY_FILE_BYTES = 65_536

Ask = Callable[[], bytes]
"""Where a passphrase comes from, when it is needed."""


def create_key(path: Path, passphrase: bytes) -> Ed25519Signer:
    """Writes the encrypted key (0600) and, beside it, the public key in PEM, which may be handed out."""
    check_passphrase(passphrase)
    public = public_path(path)
    signer = generate_ed25519()
    data = encode_key_file(
        signer.private, passphrase, salt=secrets.token_bytes(SALT_BYTES), nonce=secrets.token_bytes(NONCE_BYTES)
    )
    write_new(path, data, "key file")
    try:
        write_new(public, encode_spki_pem(signer.spki), "public key file", 0o644)
    except ApplianceError:
        path.unlink()  # the key was never used: a half-made pair would only be in the way
        raise
    return signer


def public_path(path: Path) -> Path:
    """`ada.pub` beside `ada.key`; beside any other name, that name and `.pub`."""
    if path.suffix == ".key":
        return path.with_suffix(".pub")
    return path.with_name(f"{path.name}.pub")


def check_passphrase(passphrase: bytes) -> None:
    """For a new key: long enough that guessing through scrypt costs something."""
    length = len(passphrase.decode("utf-8", "replace"))
    if length < MIN_PASSPHRASE_CHARACTERS:
        raise BadInput(f"passphrase: expected at least {MIN_PASSPHRASE_CHARACTERS} characters, got {length}")


def open_key(path: Path, ask: Ask, again: Callable[[int], bool] = lambda tries: False) -> Ed25519Signer:
    """The unlocked key. The file is checked before a passphrase is asked for. `again`: whether to ask once more after
    so many wrong passphrases."""
    data = read_private(path, "key file", _MAX_KEY_FILE_BYTES)
    parse_key_file_spki(data)
    for tries in count(1):
        passphrase = ask()
        try:
            return parse_key_file(data, passphrase)
        except NotAuthenticated:
            if not again(tries):
                break
    raise NotAuthenticated(f"key file, {path}: expected its passphrase, got a wrong one, or the file was changed")


def read_public_key(path: Path) -> bytes:
    """The SPKI of a public key in PEM, or of a key file (its claim, which needs no passphrase)."""
    data = read_file(path, "key", _MAX_KEY_FILE_BYTES)
    if data.startswith(b"{"):
        return parse_key_file_spki(data)
    try:
        return load_spki_pem(data)
    except BadInput as error:
        raise BadInput(f"key, {path}: {error.message}") from None


def passphrase_of_file(path: Path) -> bytes:
    """The file's first line; refused when an account other than its owner's can read it, or when it is a link."""
    return _first_line(read_private(path, "passphrase file", _MAX_PASSPHRASE_BYTES), f"passphrase file, {path}")


def passphrase_of_descriptor(descriptor: int) -> bytes:
    """What another program wrote to an inherited file descriptor, up to its end or its first line."""
    what = f"passphrase, file descriptor {descriptor}"
    if descriptor <= 2:
        raise BadInput(f"{what}: expected 3 or more, since 0 to 2 are standard input and output, got {descriptor}")
    data = b""
    try:
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            while len(data) <= _MAX_PASSPHRASE_BYTES and b"\n" not in data and (chunk := file.read(4_096)):
                data += chunk
    except OSError as error:
        raise BadInput(f"{what}: expected an open one to read, got {error.strerror}; open it so: 3<FILE") from None
    if len(data) > _MAX_PASSPHRASE_BYTES:
        raise BadInput(f"{what}: expected at most {_MAX_PASSPHRASE_BYTES} bytes, got more")
    return _first_line(data, what)


def _first_line(data: bytes, what: str) -> bytes:
    line, _, rest = data.partition(b"\n")
    if rest.strip():
        raise BadInput(f"{what}: expected one line, got more")
    line = line.removesuffix(b"\r")
    if not line:
        raise BadInput(f"{what}: expected a passphrase, got an empty line")
    return line
