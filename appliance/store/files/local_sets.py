"""Tasks of lm-eval and metrics of evaluate that an administrator of the machine puts into the home.

    harness/NAME/NAME.yaml and the files that it names      the set harness-NAME
    metrics/NAME/NAME.py                                    the set metric-NAME

An order binds such a folder by its digest, and the worker gets a copy with that digest.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from appliance.domain.core.records.data import LocalSet
from appliance.domain.data.kinds import HARNESS, METRIC
from appliance.errors import BadInput, NotFound, Tampered, TooLarge
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.store.files import disk

log = logging.getLogger("appliance")

MOST_FILES, MOST_BYTES = 1_000, 256 << 20
_PLACES = {HARNESS: ("harness", "yaml"), METRIC: ("metrics", "py")}


class LocalSets:
    """The local sets of a home; `packages` is the folder of additional libraries for their worker."""

    def __init__(self, home: Path, packages: Path | None = None) -> None:
        self._home, self.packages = home, packages

    def list(self) -> list[LocalSet]:
        """Return the sets that can be read, with the current digest of their files; others are skipped with a log
        message."""
        found = []
        for name in self._names():
            try:
                found.append(LocalSet(set=name, digest=digest_files(self._read(name))))
            except (BadInput, TooLarge) as error:
                log.warning("set left out: %s", error.message)
            except ValidationError:
                log.warning("set left out, %s: expected a name of lower-case letters, digits and hyphens", name)
        return found

    def copy(self, bound: LocalSet, folder: Path) -> None:
        """Copy the files of a set into a folder.

        Raises:
            NotFound: there is no such set.
            Tampered: its digest differs from the bound one.
        """
        files = self._read(bound.set)
        if (got := digest_files(files)) != bound.digest:
            raise Tampered(f"set {bound.set}: expected the files of {bound.digest}, which the order bound, got {got}")
        with disk.disk_errors(f"set {bound.set}"):
            for path, data in files.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)

    def _names(self) -> Iterator[str]:
        for prefix, (below, ending) in _PLACES.items():
            for path in sorted((self._home / below).glob("*")):
                if (path / f"{path.name}.{ending}").is_file():
                    yield prefix + path.name

    def _read(self, name: str) -> dict[str, bytes]:
        """Return the files by path below the set's folder, without Python's caches."""
        prefix = next((one for one in _PLACES if name.startswith(one)), HARNESS)
        below, ending = _PLACES[prefix]
        own = name.removeprefix(prefix)
        folder = self._home / below / own
        if not (folder / f"{own}.{ending}").is_file():
            known = ", ".join(self._names()) or "none"
            raise NotFound(f"set {name}: expected the file {below}/{own}/{own}.{ending} in the home, got sets {known}")
        found: dict[str, bytes] = {}
        size = 0
        with disk.disk_errors(f"set {name}"):
            for path in sorted(_walk(folder)):
                if path.is_symlink() or not path.is_file():
                    raise BadInput(f"set {name}, {path.name}: expected regular files and folders alone, got another")
                size += path.stat().st_size
                if len(found) == MOST_FILES or size > MOST_BYTES:
                    raise TooLarge(f"set {name}: expected at most {MOST_FILES} files of {MOST_BYTES} bytes, got more")
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
        return found


def digest_files(files: dict[str, bytes]) -> str:
    """Return the digest of the canonical JSON object from paths to the digests of their files."""
    return digest_bytes(encode_canonical({path: digest_bytes(data) for path, data in files.items()}))


def _walk(folder: Path) -> Iterator[Path]:
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (
            Path(path) / name for name in (*names, *(one for one in folders if (Path(path) / one).is_symlink()))
        )
