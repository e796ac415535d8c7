"""What a person logged in with: name, key file, appliance and trust file, so that no command needs to be told again.

One 0600 file of the person's own. No passphrase and no token stands in it.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.client.support.door import Address, parse_address
from appliance.client.support.files import read_private, replace_private
from appliance.errors import BadInput, NotFound

VERSION = 1
_MAX_BYTES = 65_536
_WHAT = "profile"
_MEMBERS = ("name", "key", "home", "address", "ca", "certificate", "certificate_key", "trust")
_AGAIN = "write it again with: appliance login NAME --key FILE, or remove it with: appliance logout"


@dataclass(frozen=True)
class Profile:
    """The paths are absolute: a command may be typed in any folder."""

    name: str
    key: Path
    where: Path | Address
    """The home on this machine, or the address of one elsewhere."""
    trust: Path | None = None


def profile_path() -> Path:
    named = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(named) if named.startswith("/") else Path.home() / ".config"
    return base / "appliance" / "profile.toml"


def load_profile() -> Profile | None:
    """None without a login; a file that is no profile, or that others can read, is refused."""
    path = profile_path()
    try:
        data = read_private(path, _WHAT, _MAX_BYTES)
    except NotFound:
        return None
    return _parse(data, f"{_WHAT}, {path}")


def save_profile(profile: Profile) -> Path:
    """Whole or not at all, over the one before."""
    path = profile_path()
    data = _encode(profile)
    if _parse(data, _WHAT) != profile:
        raise BadInput(f"{_WHAT}: expected paths that text can hold, got {profile}")
    replace_private(path, data, _WHAT)
    return path


def forget_profile() -> bool:
    """Whether there was one."""
    try:
        profile_path().unlink()
    except FileNotFoundError:
        return False
    return True


def _encode(profile: Profile) -> bytes:
    """TOML; its strings are escaped as JSON's are, except for DEL."""
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
        content = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{what}: expected TOML, got {error}; {_AGAIN}") from None
    if (version := content.pop("version", None)) != VERSION:
        raise BadInput(f"{what}, version: expected {VERSION}, got {version!r}; {_AGAIN}")
    for key, value in content.items():
        if key not in _MEMBERS or not isinstance(value, str):
            raise BadInput(f"{what}, {key}: expected {', '.join(_MEMBERS)}, as text, got {value!r}; {_AGAIN}")
    name = content.get("name")
    if not name:
        raise BadInput(f"{what}, name: expected one, got none; {_AGAIN}")
    return Profile(name, _path(content, "key", what), _place(content, what), _some_path(content, "trust", what))


def _place(content: Mapping[str, str], what: str) -> Path | Address:
    if "address" not in content:
        return _path(content, "home", what)
    chain, key = (_some_path(content, member, what) for member in ("certificate", "certificate_key"))
    certificate = None if chain is None or key is None else (chain, key)
    try:
        return parse_address(content["address"], _some_path(content, "ca", what), certificate)
    except BadInput as error:
        raise BadInput(f"{what}, {error.message}; {_AGAIN}") from None


def _some_path(content: Mapping[str, str], key: str, what: str) -> Path | None:
    return _path(content, key, what) if key in content else None


def _path(content: Mapping[str, str], key: str, what: str) -> Path:
    text = content.get(key, "")
    if not text.startswith("/"):
        raise BadInput(f"{what}, {key}: expected an absolute path, got {text!r}; {_AGAIN}")
    return Path(text)
