"""Reading the files that a worker wrote as untrusted data: no link is followed, only plain files are read, up to a
limit.

It also writes the log of a worker.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, TooLarge
from appliance.formats.core.digest import kind_of
from appliance.sandbox.launcher import open_pipe

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = _OPEN | os.O_DIRECTORY
_CHUNK_BYTES = 1 << 20
_REPLACED = frozenset({errno.ELOOP, errno.ENOTDIR, errno.ENXIO})
"""Errors of opening a path where a link, file or socket is in place of a plain folder or file."""


@dataclass(frozen=True)
class ConfinedPath:
    """A folder or file below a trusted root.

    Each access descends from the root by descriptors without following links, so that an account that can write below
    the root cannot redirect it.
    """

    root: Path
    below: str = "."

    def __truediv__(self, name: str) -> ConfinedPath:
        return ConfinedPath(self.root, str(PurePosixPath(self.below, name)))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> Path:
        """Return the path, for messages and for programs that open it themselves."""
        return self.root / self.below

    @property
    def parent(self) -> ConfinedPath:
        """Return the folder that contains it."""
        return ConfinedPath(self.root, str(PurePosixPath(self.below).parent))

    @property
    def name(self) -> str:
        """Return the last component of its path."""
        return PurePosixPath(self.below).name

    @classmethod
    def of(cls, path: Path) -> ConfinedPath:
        """Return the place of a path whose parent is trusted."""
        return cls(path.parent, path.name)

    @contextmanager
    def opened(self, *, make: bool = False) -> Iterator[int]:
        """Yield a descriptor of the folder; `make` creates missing folders below the root with mode 0700.

        Raises:
            NotFound: the folder is missing.
            Tampered: a link or a file is in its place or in that of a folder above it.
        """
        with _translate_errors(f"folder {self}"):
            here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in _parts_of(self.below):
                with _translate_errors(f"folder {self}"):
                    if make:
                        with suppress(FileExistsError):
                            os.mkdir(part, 0o700, dir_fd=here)
                    below = os.open(part, _FOLDER, dir_fd=here)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def open_file(self, name: str, flags: int, mode: int = 0o600) -> int:
        """Return a descriptor of the file `name`, without following a link or waiting for the other end of a pipe."""
        with self.opened() as here, _translate_errors(f"file {self.path / name}"):
            return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode, dir_fd=here)

    def names(self) -> list[str]:
        """Return the names in the folder, sorted."""
        with self.opened() as here:
            return sorted(os.listdir(here))


def _parts_of(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    if any(part in ("/", "..") for part in parts):
        raise Tampered(f"output, {name!r}: expected a relative name below the folder, got another")
    return parts


@contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Translate errors: a missing path is NotFound, another kind of file is Tampered; other disk errors are
    unchanged."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"{what}: expected one, got none") from None
    except OSError as error:
        if error.errno not in _REPLACED:
            raise
        raise Tampered(f"{what}: expected plain folders and a plain file, got {error.strerror}") from None


def open_output(folder: Path | ConfinedPath, name: str) -> int:
    """Return a descriptor of the plain file `name` (which may have slashes) below `folder`; no component may be a link.

    It does not block, so that a pipe in place of a file cannot stop the service.

    Raises:
        NotFound: there is none.
        Tampered: it is not a plain file, or has a second hard link.
        OSError: the disk failed.
    """
    parts = _parts_of(name)
    if not parts:
        raise Tampered(f"output, {name!r}: expected a relative name below the folder, got another")
    within = folder if isinstance(folder, ConfinedPath) else ConfinedPath.of(folder)
    descriptor = (within / str(PurePosixPath(*parts[:-1]))).open_file(parts[-1], os.O_RDONLY)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        got = f"{kind_of(found.st_mode)} with {found.st_nlink} names"
        raise Tampered(f"output, {name!r}: expected a regular file with one name, got {got}")
    return descriptor


def read_output(folder: Path | ConfinedPath, name: str, max_bytes: int) -> bytes:
    """Return all bytes of one output file.

    Raises:
        NotFound: there is none.
        Tampered: it is not a plain file.
        TooLarge: it has more than `max_bytes`.
        OSError: the disk failed.
    """
    with open(open_output(folder, name), "rb", buffering=0) as file:
        data = bytearray()
        while len(data) <= max_bytes:
            chunk = file.read(min(_CHUNK_BYTES, max_bytes + 1 - len(data)))
            if not chunk:
                return bytes(data)
            data += chunk
    raise TooLarge(f"output, {name!r}: expected at most {max_bytes} bytes, got more")


def list_output(folder: Path, *, max_names: int = 10_000, max_depth: int = 16) -> tuple[str, ...]:
    """Return the names of everything below `folder`, sorted; folders end with a slash, and links are not followed.

    Raises:
        TooLarge: a limit is exceeded; a worker could nest folders too deeply for a recursion.
    """
    names: list[str] = []
    pending = [PurePosixPath()]
    while pending:
        below = pending.pop()
        if len(below.parts) > max_depth:
            raise TooLarge(f"output, {folder}: expected folders at most {max_depth} deep, got more")
        with os.scandir(folder / below) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                names.append(str(below / entry.name) + ("/" if is_folder else ""))
                if is_folder:
                    pending.append(below / entry.name)
                if len(names) > max_names:
                    raise TooLarge(f"output, {folder}: expected at most {max_names} names, got more")
    return tuple(sorted(names))


FIRST_BYTES = 1 << 20
LAST_BYTES = 64 << 10
_LOG_CHUNK_BYTES = 64 << 10
_SLOWED_S = 0.05
_CUT = b"\n[%d bytes are left out here]\n"
# Only these characters are kept, so that no escape sequence reaches a terminal. C1 controls begin one too (U+009B is
# ESC [), and their bytes depend on the terminal's encoding.
_PLAIN = bytes(byte if 0x20 <= byte < 0x7F or byte in b"\t\n" else ord("?") for byte in range(256))


class WorkerLog:
    """The file and the pipe of a worker's log.

    Give `inner` to the worker, then call `release`; call `join` after all of its processes have ended.
    """

    def __init__(self, path: Path | ConfinedPath) -> None:
        place = path if isinstance(path, ConfinedPath) else ConfinedPath.of(path)
        try:
            self._file = place.parent.open_file(place.name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        except (ApplianceError, OSError) as error:
            got = error.strerror if isinstance(error, OSError) else error
            raise BadInput(f"worker, log {place}: expected a file to append to, got {got}") from None
        self._last = bytearray()
        self._thread = threading.Thread(target=self._copy, name="worker-log", daemon=True)
        with ExitStack() as undo:
            undo.callback(os.close, self._file)
            self._pipe, self.inner = open_pipe(reader=undo, writer=undo)
            self._thread.start()
            undo.pop_all()

    def _copy(self) -> None:
        space_left, left_out = FIRST_BYTES, 0
        with open(self._file, "ab", buffering=0) as file, open(self._pipe, "rb", buffering=0) as pipe:
            while data := pipe.read(_LOG_CHUNK_BYTES):
                data = data.translate(_PLAIN)
                _append(file.fileno(), data[:space_left])
                self._last += data[space_left:]
                left_out += max(0, len(self._last) - LAST_BYTES)
                del self._last[:-LAST_BYTES]
                space_left = max(0, space_left - len(data))
                if not space_left:
                    time.sleep(_SLOWED_S)
            if left_out:
                _append(file.fileno(), _CUT % left_out)
            _append(file.fileno(), bytes(self._last))

    def release(self) -> None:
        """Close this process's copy of `inner`, so that the log ends with the worker."""
        os.close(self.inner)

    def join(self, timeout_s: float) -> None:
        """Wait until everything is in the file."""
        self._thread.join(timeout_s)


def append_foreign(path: Path, folder: ConfinedPath, name: str) -> None:
    """Append the first and the last bytes of a file from elsewhere to a log, in the same plain characters."""
    descriptor = open_output(folder, name)
    try:
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, FIRST_BYTES, 0)
        cut = max(0, size - len(data) - LAST_BYTES)
        last = os.pread(descriptor, LAST_BYTES, max(len(data), size - LAST_BYTES))
    finally:
        os.close(descriptor)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with suppress(OSError), open(os.open(path, flags, 0o600), "ab", buffering=0) as file:
        _append(file.fileno(), data.translate(_PLAIN) + (_CUT % cut if cut else b"") + last.translate(_PLAIN))


def _append(file: int, data: bytes) -> None:
    """Append data; what a full disk does not accept is lost, so that the worker neither waits nor fails."""
    with suppress(OSError):
        while data:
            data = data[os.write(file, data) :]
