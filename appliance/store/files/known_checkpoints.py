"""Checkpoints that the log must continue, stored outside the database.

They are the last one that each witness cosigned, the last one that each process committed, and those that a person or
the signer handed in. So restoring an old database does not restore old checkpoints. Each is a signed note in a file of
its own. The folder may be on another medium. Several processes of one log share it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from appliance.store.files import disk

MAX_NOTE_BYTES = 65_536
_PROCESS = "process-"
"""Prefix of the files of processes."""
_NOTES, _GIVEN_UP = ".note", ".lost"
"""Suffixes of the notes that the log must continue, and of those that a restoration gave up, which stay as evidence."""


class StoredNote(NamedTuple):
    """A note of the folder, unverified, and the time at which it was written, in seconds since 1970."""

    name: str
    data: bytes
    time_s: float


class KnownCheckpoints:
    """The folder of the signed notes of checkpoints that the log must continue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, witness: str) -> Path:
        """Return the path of the witness's last note."""
        return self.folder / f"{hashlib.sha256(witness.encode()).hexdigest()[:32]}{_NOTES}"

    def store_cosigned(self, witness: str, note: bytes) -> None:
        """Store the note durably in place of the witness's previous one."""
        self._write(self.path(witness), note)

    def store_committed(self, process: str, note: bytes) -> None:
        """Store the checkpoint of a process's last commit durably in place of its previous one."""
        self._write(self.folder / f"{_PROCESS}{process}{_NOTES}", note)

    def store_received(self, note: bytes, time_s: float | None = None) -> None:
        """Store durably a note that a person or the signer handed in.

        `time_s` is the time at which it was seen, in seconds since 1970. Default: now.
        """
        path = self.folder / f"given-{hashlib.sha256(note).hexdigest()[:32]}{_NOTES}"
        self._write(path, note)
        if time_s is not None:
            with disk.disk_errors("witnessed checkpoints"):
                os.utime(path, (time_s, time_s))

    def mark_given_up(self, name: str) -> None:
        """Rename the file of a note, so that the log need not continue it. Earlier ones of the same name stay."""
        with disk.disk_errors("witnessed checkpoints"):
            path, count = self.folder / name, 1
            while (target := path.with_name(f"{path.stem}-{count}{_GIVEN_UP}")).exists():
                count += 1
            path.rename(target)
            disk.sync_folder(self.folder)

    def _write(self, path: Path, note: bytes) -> None:
        with disk.disk_errors("witnessed checkpoints"):
            disk.make_folder(self.folder)
            disk.write_file(path, note)

    def list_notes(self) -> list[bytes]:
        """Return all notes, unverified; none if the folder does not exist."""
        return [note.data for note in self.list_known()]

    def list_known(self) -> list[StoredNote]:
        """Return all notes with the times at which they were written."""
        found = self._read_all()
        with disk.disk_errors("witnessed checkpoints"):
            return [StoredNote(name, data, (self.folder / name).stat().st_mtime) for name, data in found.items()]

    def list_given_up(self) -> list[bytes]:
        """Return the notes that restorations gave up, unverified."""
        return list(self._read_all(_GIVEN_UP).values())

    def notes_for_backup(self) -> dict[str, bytes]:
        """Return the notes except those of processes by file name, unverified, with those that were given up."""
        found = {**self._read_all(), **self._read_all(_GIVEN_UP)}
        return {name: note for name, note in found.items() if not name.startswith(_PROCESS)}

    def _read_all(self, suffix: str = _NOTES) -> dict[str, bytes]:
        with disk.disk_errors("witnessed checkpoints"):
            if not self.folder.exists():
                return {}
            with disk.open_folder(self.folder) as folder:
                return {path.name: _read(folder, path.name) for path in sorted(self.folder.glob(f"*{suffix}"))}


def _read(folder: int, name: str) -> bytes:
    with disk.open_plain(folder, name, f"witnessed checkpoint {name}") as file:
        return disk.read_all(file, MAX_NOTE_BYTES, f"witnessed checkpoint {name}")
