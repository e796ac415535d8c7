"""The moves of a restore from its staging folders to the final places, which a later try takes back after a power cut.

Places outside of the home cannot be emptied by their names: another appliance may use them by then. So a restore
records what it is about to move in the home, and takes back only what is still exactly that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from appliance.errors import Tampered
from appliance.store.files import disk

MARK = "restored.json"
"""The file of a restored home that keeps a service from starting, until a person confirms that no other copy runs."""
STAGING = ".appliance-restoring"
"""The staging folder in the new home, and in each other folder of the settings that a restore writes to."""
TRUST_FILE = "trust.json"
"""The file that makes a folder a home. A restore moves the mark first and this file last."""
MOVES = ".appliance-restoring.json"
"""The file of a home in which a restore records its moves to other folders. It is there until all is in its place."""


class Target(NamedTuple):
    """The place to which a file or folder is written, and its final place."""

    staged: Path
    final: Path


def move_content(staged: Path, final: Path, moved: list[Path]) -> None:
    """Move the content of a staging folder durably, the mark first and the trust file last, and remove the folder.

    The path of each file or folder is added to `moved`.
    """
    for name in sorted(os.listdir(staged), key=lambda name: (name != MARK, name == TRUST_FILE, name)):
        os.rename(staged / name, final / name)
        moved.append(final / name)
        disk.sync_folder(final)
    staged.rmdir()
    disk.sync_folder(final)


def record_moves(home: Path, folders: Iterable[Target], database: Target | None) -> None:
    """Record durably what is about to be moved out of the home, before the first move.

    `folders` are staging folders whose content is moved; `database` is a file.
    """
    moves = [Target(one.staged / name, one.final / name) for one in folders for name in os.listdir(one.staged)]
    moves += [] if database is None else [database]
    lines = [(str(one.staged), str(one.final), _identify(one.staged)) for one in moves]
    disk.write_file(home / MOVES, json.dumps(lines).encode())


def take_back_moves(home: Path) -> None:
    """Remove what an interrupted restore to this home has moved out of it, and what it was about to move.

    A file or folder that was changed or replaced since stays. Each is first moved back to its staging folder, so that
    this can be interrupted, too. Call it only for a home without a trust file, under the lock of the restore.

    Raises:
        Tampered: the record is another file.
    """
    try:
        moves = [(Target(Path(staged), Path(final)), identity) for staged, final, identity in _read_moves(home)]
    except FileNotFoundError:
        return
    except (ValueError, TypeError) as error:
        raise Tampered(f"{home / MOVES}: expected the moves of a restore, got another file: {error}") from None
    for (staged, final), identity in moves:
        if os.path.lexists(final) and _identify(final) == identity:
            if staged.parent != final.parent:
                staged.parent.mkdir(mode=0o700, exist_ok=True)
            os.rename(final, staged)
            disk.sync_folder(final.parent)
        disk.remove_tree(staged)
        if staged.parent.name == STAGING:
            with suppress(OSError):
                staged.parent.rmdir()


def _read_moves(home: Path) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = json.loads((home / MOVES).read_bytes())
    return found


def _identify(path: Path) -> str:
    """Return a digest of a file, or a folder and all below it, that any later change to one of them changes.

    A rename keeps it, and so does a new start of the machine.
    """
    hasher = hashlib.sha256()
    for one in sorted((path, *path.rglob("*"))):
        status = one.lstat()
        hasher.update(os.fsencode(f"{one.relative_to(path)}\0{status.st_ino}\0{status.st_mtime_ns}\0"))
    return hasher.hexdigest()
