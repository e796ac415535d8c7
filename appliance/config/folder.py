"""The folder of an appliance: where it is, and the paths in it that a client uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOME = "~/.local/share/appliance"
"""The home unless APPLIANCE_HOME, XDG_DATA_HOME or an option names another."""


class HomePaths:
    """The paths in a home that the service and its clients use."""

    home: Path

    @property
    def socket(self) -> Path:
        """Return the path of the people's Unix socket, which has mode 0600, or 0660 for a group."""
        return self.home / "run" / "appliance.sock"

    @property
    def lock(self) -> Path:
        """Return the path of the file that a running service locks."""
        return self.home / "appliance.lock"

    @property
    def logs(self) -> Path:
        """Return the folder of the service's logs."""
        return self.home / "logs"

    @property
    def trust(self) -> Path:
        """Return the service's own copy of the trust file.

        Clients rely on the copy that was taken elsewhere at init.
        """
        return self.home / "trust.json"


@dataclass(frozen=True)
class ApplianceFolder(HomePaths):
    """An appliance's folder, which may belong to another account."""

    home: Path


def find_folder(home: Path | None = None, environment: Mapping[str, str] | None = None) -> ApplianceFolder:
    """Return the appliance's folder: the named one, else that of the environment, else the default. No file is read."""
    env = os.environ if environment is None else environment
    folder = home or Path(env.get("APPLIANCE_HOME") or _default_home(env))
    return ApplianceFolder(folder.expanduser().absolute())


def _default_home(env: Mapping[str, str]) -> str:
    data = env.get("XDG_DATA_HOME") or os.path.join(env.get("HOME") or "~", ".local", "share")
    return os.path.join(data, "appliance")
