"""Each setting with its value and where that comes from, and the page of all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from appliance.config.file import read_file
from appliance.config.keys import LIMIT_MEANINGS, SETTINGS, Setting
from appliance.config.load import load_settings


class Explained(NamedTuple):
    """A setting as it stands. `source`: `environment`, `appliance.toml`, `option` or `default`."""

    name: str
    variable: str | None
    default: str | None
    value: str | None
    source: str
    meaning: str


def explain_settings(home: Path | None = None, environment: Mapping[str, str] | None = None) -> list[Explained]:
    """Every setting, and where its value comes from; a password in a database's URL is not shown. BadInput as
    `load_settings` has it."""
    env = os.environ if environment is None else environment
    place = load_settings(home, env).home
    given, limits = read_file(place / "appliance.toml")
    found = [_explain(setting, home, place, given, env) for setting in SETTINGS]
    for unit, values in sorted(limits.items()):
        table = f"limits.{unit}" if unit else "limits"
        found += [
            Explained(f"{table}.{key}", None, "0", str(value), "appliance.toml", LIMIT_MEANINGS[key])
            for key, value in values.items()
        ]
    return found


def _explain(
    setting: Setting, home: Path | None, place: Path, given: Mapping[str, str], env: Mapping[str, str]
) -> Explained:
    name, variable, default, meaning = setting
    if name == "home":
        named = home is not None and str(home) != env.get(variable)
        source = "option" if named else "environment" if env.get(variable) else "default"
        return Explained(name, variable, default, str(place), source, meaning)
    source = "environment" if env.get(variable) else "appliance.toml" if name in given else "default"
    value = env.get(variable) or given.get(name, default)
    return Explained(name, variable, default, _without_password(value), source, meaning)


def _without_password(value: str | None) -> str | None:
    if value is None or "://" not in value:
        return value
    parts = urlsplit(value)
    if parts.password is None and "password" not in parts.query:
        return value
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}", query="***" if parts.query else ""))


def render_page() -> str:
    """docs/reference/configuration.md."""
    rows = [
        f"| `{name}` | `{variable}` | {'' if default is None else f'`{default}`'} | {meaning} |"
        for name, variable, default, meaning in SETTINGS
    ]
    limits = [f"| `{name}` | {meaning} |" for name, meaning in LIMIT_MEANINGS.items()]
    return _PAGE.format(rows="\n".join(rows), limits="\n".join(limits))


_PAGE = """# Configuration

Settings are keys of `<home>/appliance.toml`. A variable of the environment takes precedence over
the file, and the file over the default. An unknown key is refused. A relative path is below the
home.
`appliance config` prints the value of each setting and where it comes from. This page is written by
`appliance config --markdown`; [operations.md](../operations.md) says how the settings work
together.

| key | environment | default | meaning |
| --- | --- | --- | --- |
{rows}

## Limits

`[limits]` holds for every unit, `[limits.UNIT]` for one alone. 0 means no limit, and so does a
limit that is not set.

| key | meaning |
| --- | --- |
{limits}
"""
