"""A person's login, which commands use unless other values are given, and key files.

The profile is one private file of mode 0600 with name, key file, appliance and trust file, without passphrase or token.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from appliance.client.support.connection import Address, parse_address
from appliance.client.support.files import read_file, read_private, replace_private, write_new
from appliance.errors import ApplianceError, BadInput, NotAuthenticated, NotFound
from appliance.formats.core.toml import parse_toml
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

VERSION = 1
_MAX_BYTES = 65_536
_WHAT = "profile"
_MEMBERS = ("name", "key", "home", "address", "ca", "certificate", "certificate_key", "trust")
_AGAIN = "write it again with: appliance login NAME --key FILE, or remove it with: appliance logout"


@dataclass(frozen=True)
class Profile:
    """A login. The paths are absolute, since commands run in any folder."""

    name: str
    key: Path
    where: Path | Address
    """The home folder on this machine, or the address of another one."""
    trust: Path | None = None


def profile_path() -> Path:
    """Return the path of the profile."""
    named = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(named) if named.startswith("/") else Path.home() / ".config"
    return base / "appliance" / "profile.toml"


def load_profile() -> Profile | None:
    """Return the profile, or None without a login.

    Raises: BadInput for a malformed file; Denied if other accounts can read it.
    """
    path = profile_path()
    try:
        data = read_private(path, _WHAT, _MAX_BYTES)
    except NotFound:
        return None
    return _parse(data, f"{_WHAT}, {path}")


def save_profile(profile: Profile) -> Path:
    """Write the profile, atomically."""
    path = profile_path()
    data = _encode(profile)
    if _parse(data, _WHAT) != profile:
        raise BadInput(f"{_WHAT}: expected paths that text can hold, got {profile}")
    replace_private(path, data, _WHAT)
    return path


def forget_profile() -> bool:
    """Remove the profile; return True if there was one."""
    try:
        profile_path().unlink()
    except FileNotFoundError:
        return False
    return True


def _encode(profile: Profile) -> bytes:
    """Encode the profile as TOML, whose strings are escaped as JSON's are, except for DEL."""
    values = {"name": profile.name, "key": profile.key, **_encode_place(profile.where), "trust": profile.trust}
    lines = [f"version = {VERSION}"]
    for key, value in values.items():
        if value is not None:
            text = json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{key} = {text}")
    try:
        return ("\n".join(lines) + "\n").encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput(f"{_WHAT}: expected paths in UTF-8, got {profile}") from None


def _encode_place(where: Path | Address) -> dict[str, Path | str | None]:
    if isinstance(where, Path):
        return {"home": where}
    certificate, key = where.certificate or (None, None)
    return {"address": str(where), "ca": where.ca, "certificate": certificate, "certificate_key": key}


def _parse(data: bytes, what: str) -> Profile:
    try:
        content = parse_toml(data, what)
    except BadInput as error:
        raise BadInput(f"{error.message}; {_AGAIN}") from None
    if (version := content.pop("version", None)) != VERSION:
        raise BadInput(f"{what}, version: expected {VERSION}, got {version!r}; {_AGAIN}")
    for key, value in content.items():
        if key not in _MEMBERS or not isinstance(value, str):
            raise BadInput(f"{what}, {key}: expected {', '.join(_MEMBERS)}, as text, got {value!r}; {_AGAIN}")
    name = content.get("name")
    if not name:
        raise BadInput(f"{what}, name: expected one, got none; {_AGAIN}")
    return Profile(
        name, _path(content, "key", what), _parse_place(content, what), _optional_path(content, "trust", what)
    )


def _parse_place(content: Mapping[str, str], what: str) -> Path | Address:
    if "address" not in content:
        return _path(content, "home", what)
    chain, key = (_optional_path(content, member, what) for member in ("certificate", "certificate_key"))
    certificate = None if chain is None or key is None else (chain, key)
    try:
        return parse_address(content["address"], _optional_path(content, "ca", what), certificate)
    except BadInput as error:
        raise BadInput(f"{what}, {error.message}; {_AGAIN}") from None


def _optional_path(content: Mapping[str, str], key: str, what: str) -> Path | None:
    return _path(content, key, what) if key in content else None


def _path(content: Mapping[str, str], key: str, what: str) -> Path:
    text = content.get(key, "")
    if not text.startswith("/"):
        raise BadInput(f"{what}, {key}: expected an absolute path, got {text!r}; {_AGAIN}")
    return Path(text)


MIN_PASSPHRASE_CHARACTERS = 8
"""Smallest length of a passphrase, in characters."""
_MAX_PASSPHRASE_BYTES = 4_096
_MAX_KEY_FILE_BYTES = 65_536

Ask = Callable[[], bytes]
"""A function that returns a passphrase when one is needed."""


def create_key(path: Path, passphrase: bytes) -> Ed25519Signer:
    """Write the encrypted key (mode 0600) and, beside it, the public key in PEM, which is not secret."""
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
        path.unlink()  # the key was never used, and half of a pair would block another attempt
        raise
    return signer


def public_path(path: Path) -> Path:
    """Return the path of the public key: `ada.pub` for `ada.key`; otherwise the key's name with `.pub` appended."""
    if path.suffix == ".key":
        return path.with_suffix(".pub")
    return path.with_name(f"{path.name}.pub")


def check_passphrase(passphrase: bytes) -> None:
    """Raise BadInput if a new passphrase is so short that guessing it through scrypt would be cheap."""
    length = len(passphrase.decode("utf-8", "replace"))
    if length < MIN_PASSPHRASE_CHARACTERS:
        raise BadInput(f"passphrase: expected at least {MIN_PASSPHRASE_CHARACTERS} characters, got {length}")


def open_key(path: Path, ask: Ask, again: Callable[[int], bool] = lambda tries: False) -> Ed25519Signer:
    """Return the unlocked key. The file is checked before the passphrase is requested.

    `again` returns True if the passphrase is requested once more after so many wrong ones.

    Raises: NotAuthenticated for a wrong passphrase or a changed file.
    """
    if read_file(path, "key file", _MAX_KEY_FILE_BYTES).startswith(b"-----BEGIN PUBLIC KEY-----"):
        raise BadInput(f"key file, {path}: expected the key file, such as ada.key, got a public key")
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


def read_public_key(path: Path, *, accepts_key_file: bool = True) -> bytes:
    """Return the SPKI of a public key in PEM, or the one that a key file claims, for which no passphrase is needed.

    `accepts_key_file`: False for the key of another person, whose key file only they may have.
    """
    data = read_file(path, "key", _MAX_KEY_FILE_BYTES)
    if data.startswith(b"{"):
        spki = parse_key_file_spki(data)
        if not accepts_key_file:
            raise BadInput(
                f"key, {path}: expected the public key, such as {public_path(path).name}, got the key file, which has "
                "the private key. Take the key file off this machine; its owner alone keeps it"
            )
        return spki
    try:
        return load_spki_pem(data)
    except BadInput as error:
        raise BadInput(f"key, {path}: {error.message}") from None


def passphrase_of_file(path: Path) -> bytes:
    """Return the first line of a private file.

    Raises: Denied if other accounts can read it; BadInput if it is a link.
    """
    return _first_line(read_private(path, "passphrase file", _MAX_PASSPHRASE_BYTES), f"passphrase file, {path}")


def passphrase_of_descriptor(descriptor: int) -> bytes:
    """Return what another program wrote to an inherited file descriptor, up to its end or its first line."""
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
