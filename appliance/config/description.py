"""Every setting with its value and source, the reference page of the settings, and a check of what they name.

The page is docs/reference/configuration.md.
"""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel

from appliance.config.folder import DEFAULT_HOME
from appliance.config.settings import (
    FILE,
    HOME_VARIABLE,
    VARIABLES,
    Environment,
    LimitSettings,
    Settings,
    load_settings,
    open_sources,
)

_FILES = ("certificate", "certificate_key", "client_ca", "people_client_ca", "operations_token", "feed_token")
_FOLDERS = ("backup_folder", "vllm_packages", "harness_packages", "slurm_folder", "slurm_commands")


class ExplainedSetting(NamedTuple):
    """A setting with its value. `source` is `environment`, `appliance.toml`, `option` or `default`."""

    name: str
    variable: str | None
    default: str | None
    value: str | None
    source: str
    meaning: str


def explain_settings(
    home: Path | None = None, environment: Environment = None, file: Path | None = None
) -> list[ExplainedSetting]:
    """Return every setting with its value and its source. Passwords in database URLs are masked.

    Raises: BadInput as `load_settings` does.
    """
    settings, sources = load_settings(home, environment, file), open_sources(home, environment, file)
    env = os.environ if environment is None else environment
    is_option = home is not None and str(home) != env.get(HOME_VARIABLE)
    source = "option" if is_option else "environment" if env.get(HOME_VARIABLE) else "default"
    explained = [
        ExplainedSetting(
            "home", HOME_VARIABLE, DEFAULT_HOME, str(settings.home), source, describe_setting(Settings, "home")
        )
    ]
    given = {"environment": sources.environment(), FILE: sources.file.toml_data}
    for name, variable in VARIABLES.items():
        default = find_default(name)
        source = next((source for source, values in given.items() if name in values), "default")
        value = given[source][name] if source in given else default
        text = None if value is None else _mask_password(_show(value))
        explained.append(ExplainedSetting(name, variable, default, text, source, describe_setting(Settings, name)))
    for unit, limits in sorted(settings.limits.items()):
        table = f"limits.{unit}" if unit else "limits"
        explained += [
            ExplainedSetting(
                f"{table}.{key}", None, find_default_limit(key), str(value), FILE, describe_setting(LimitSettings, key)
            )
            for key, value in limits.model_dump(exclude_unset=True).items()
        ]
    return explained


def describe_setting(model: type[BaseModel], name: str) -> str:
    return model.model_fields[name].description or ""


def find_default(name: str) -> str | None:
    """Return a setting's default as people write it; None where it is unset or follows from other settings."""
    default = Settings.model_fields[name].default
    return default if isinstance(default, str) else None


def find_default_limit(name: str) -> str:
    return str(LimitSettings.model_fields[name].default)


def _show(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _mask_password(value: str) -> str:
    if "://" not in value:
        return value
    parts = urlsplit(value)
    if parts.password is None and "password" not in parts.query:
        return value
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}", query="***" if parts.query else ""))


def find_missing(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each setting that names something which this machine lacks, and a text that says so.

    A path that this account cannot look up counts as present.
    """
    if settings.socket_group is not None:
        try:
            grp.getgrnam(settings.socket_group)
        except KeyError:
            expected = f"a group of this machine, got {settings.socket_group!r}"
            yield "socket_group", f"expected {expected}; make it with: groupadd {settings.socket_group}"
    named: dict[str, tuple[str, Path | None]] = {name: ("a file", getattr(settings, name)) for name in _FILES}
    named |= {name: ("a folder", getattr(settings, name)) for name in _FOLDERS}
    if settings.notification_command is not None:
        named["notification_command"] = "a program", Path(settings.notification_command[0])
    for name, (kind, path) in named.items():
        if path is not None and _is_missing(path):
            yield name, f"expected {kind} at {path}, got nothing there"


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def render_page() -> str:
    """Return the text of docs/reference/configuration.md."""
    rows: list[tuple[str, str, str | None]] = [("home", HOME_VARIABLE, DEFAULT_HOME)]
    rows += [(name, variable, find_default(name)) for name, variable in VARIABLES.items()]
    settings = [
        f"| `{name}` | `{variable}` | {f'`{default}`' if default else ''} | {describe_setting(Settings, name)} |"
        for name, variable, default in rows
    ]
    limits = [
        f"| `{name}` | {find_default_limit(name)} | {describe_setting(LimitSettings, name)} |"
        for name in LimitSettings.model_fields
    ]
    return _PAGE.format(settings="\n".join(settings), limits="\n".join(limits))


_PAGE = """# Configuration

Settings are keys of `<home>/appliance.toml`. A variable of the environment takes precedence over
the file, and the file over the default. An unknown key and an unknown variable `APPLIANCE_…` are
refused. A number may be written as text, too. A relative path is below the home.
`appliance config show` prints the value of each setting and where it comes from, and `appliance
config check FILE` checks a file before it is copied to a host. This page is written by `appliance
config show --markdown`; [service.md](../operations/service.md) says how the settings work together.

| key | environment | default | meaning |
| --- | --- | --- | --- |
{settings}

## Limits

`[limits]` holds for every unit, `[limits.UNIT]` for one alone. 0 means no limit.

| key | default | meaning |
| --- | --- | --- |
{limits}
"""
