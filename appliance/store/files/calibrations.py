"""What was measured of this machine: `calibrations.json`, the last of each base and method.

A measurement is not a record: no decision depends on it, and losing it does no harm. So it is kept beside the ledger,
not in it.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from appliance.domain.planning.cards import Calibration
from appliance.store.files import disk

MOST = 64
"""So many are kept, the last ones."""


class Calibrations:
    """Of a home. Errors of the disk are Unavailable; an unreadable file counts as none."""

    def __init__(self, home: Path) -> None:
        self._path = home / "calibrations.json"

    def read(self) -> tuple[Calibration, ...]:
        try:
            with disk.disk_errors("calibrations"):
                found = json.loads(self._path.read_bytes()) if self._path.exists() else []
            return tuple(Calibration.model_validate(one) for one in found)
        except (ValueError, TypeError, ValidationError):
            return ()

    def keep(self, made: Calibration) -> None:
        """In the place of what was measured before of the same base, method and machine."""
        others = [one for one in self.read() if _key(one) != _key(made)]
        values = [one.model_dump(mode="json") for one in (*others[1 - MOST :], made)]
        with disk.disk_errors("calibrations"):
            disk.write_file(self._path, json.dumps(values, indent=1, sort_keys=True).encode() + b"\n")


def _key(one: Calibration) -> tuple[str, ...]:
    return one.host, one.base, one.method, one.quantisation, one.compute_dtype
