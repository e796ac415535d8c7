"""Reads what a worker wrote, as untrusted bytes: it follows no link and reads only plain files, up to a limit."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from appliance.errors import NotFound, Tampered, TooLarge
from appliance.formats.core.digest import kind_of

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK_BYTES = 1 << 20


def open_output(folder: Path, name: str) -> int:
    """A descriptor of the plain file `name` (slashes allowed) below `folder`; no part of the name may be a link.

    Non-blocking, so that a pipe in a file's place cannot hold the service. A file with a second hard link is refused.
    """
    parts = PurePosixPath(name).parts
    if not parts or any(part in ("/", "..") for part in parts):
        raise Tampered(f"output, {name!r}: expected a relative name below the folder, got another")
    try:
        descriptor = _descend(folder, parts)
    except FileNotFoundError:
        raise NotFound(f"output, {name!r}: expected a file, got none") from None
    except OSError as error:  # ELOOP, ENOTDIR: a link or something else in a folder's or file's place
        raise Tampered(f"output, {name!r}: expected plain folders and a plain file, got {error.strerror}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        got = f"{kind_of(found.st_mode)} with {found.st_nlink} names"
        raise Tampered(f"output, {name!r}: expected a regular file with one name, got {got}")
    return descriptor


def _descend(folder: Path, parts: tuple[str, ...]) -> int:
    here = os.open(folder, _OPEN | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, _OPEN | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        return os.open(parts[-1], _OPEN | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)


def read_output(folder: Path, name: str, max_bytes: int) -> bytes:
    """All bytes of one output file. NotFound, Tampered (not a plain file) or TooLarge."""
    with open(open_output(folder, name), "rb", buffering=0) as file:
        data = bytearray()
        while len(data) <= max_bytes:
            chunk = file.read(min(_CHUNK_BYTES, max_bytes + 1 - len(data)))
            if not chunk:
                return bytes(data)
            data += chunk
    raise TooLarge(f"output, {name!r}: expected at most {max_bytes} bytes, got more")


def list_output(folder: Path, *, max_names: int = 10_000, max_depth: int = 16) -> tuple[str, ...]:
    """Names of everything below `folder`, sorted; folders end in a slash, links are named and not followed.

    TooLarge over either limit: a worker could nest folders deeper than a recursion goes.
    """
    names: list[str] = []
    waiting = [PurePosixPath()]
    while waiting:
        below = waiting.pop()
        if len(below.parts) > max_depth:
            raise TooLarge(f"output, {folder}: expected folders at most {max_depth} deep, got more")
        with os.scandir(folder / below) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                names.append(str(below / entry.name) + ("/" if is_folder else ""))
                if is_folder:
                    waiting.append(below / entry.name)
                if len(names) > max_names:
                    raise TooLarge(f"output, {folder}: expected at most {max_names} names, got more")
    return tuple(sorted(names))
