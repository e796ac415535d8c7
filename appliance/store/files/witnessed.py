"""What witnesses have seen, kept outside the database, so that a restored old database does not bring back an old one
of these.

One file a witness, the last checkpoint that it cosigned, as a signed note. The folder may be on another medium.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from appliance.store.files import disk

MAX_NOTE_BYTES = 65_536


class Witnessed:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, witness: str) -> Path:
        """Where the witness's last word is kept."""
        return self.folder / f"{hashlib.sha256(witness.encode()).hexdigest()[:32]}.note"

    def keep(self, witness: str, note: bytes) -> None:
        """Durable once this returns, in the place of what the same witness said before."""
        with disk.disk_errors("witnessed checkpoints"):
            disk.make_folder(self.folder)
            disk.write_file(self.path(witness), note)

    def notes(self) -> list[bytes]:
        """Every note, unchecked; none where there is no folder."""
        with disk.disk_errors("witnessed checkpoints"):
            if not self.folder.exists():
                return []
            with disk.open_folder(self.folder) as folder:
                return [_read(folder, path.name) for path in sorted(self.folder.glob("*.note"))]


def _read(folder: int, name: str) -> bytes:
    with disk.open_plain(folder, name, f"witnessed checkpoint {name}") as file:
        return disk.read_all(file, MAX_NOTE_BYTES, f"witnessed checkpoint {name}")
