"""SHA-256 digests, written as `sha256:` and 64 lower-case hexadecimal digits."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import stat
from typing import Any

from appliance.errors import BadInput, NotFound, Unavailable
from appliance.formats.core.fields import parse_text, show

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


class Hasher:
    """An incremental SHA-256 digest; `size` is the number of bytes so far."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()
        self.size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._state.update(data)
        self.size += memoryview(data).nbytes

    def digest(self) -> str:
        return f"sha256:{self._state.hexdigest()}"


def digest_bytes(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def kind_of(mode: int) -> str:
    """Return the kind of a file for a message, given its `st_mode`."""
    return _KINDS.get(stat.S_IFMT(mode), "a file of an unknown kind")


def digest_file(path: str | os.PathLike[str]) -> str:
    """Compute the digest of a regular file.

    The last component of the path must not be a symbolic link; links before it are followed.

    Raises:
        NotFound: there is no such file.
        BadInput: it is not a regular file, or the path is not valid.
        Unavailable: the file cannot be opened or read.
    """
    name = show(os.fspath(path))
    try:
        # O_NONBLOCK: opening a FIFO must not block.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"file, {name}: expected a regular file, got nothing") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise BadInput(f"file, {name}: expected a regular file, got {error.strerror}") from None
        raise Unavailable(f"file, {name}: expected it to open, got {error.strerror}") from None
    except ValueError:
        raise BadInput(f"file, {name}: expected a path, got a NUL or a lone surrogate in it") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BadInput(f"file, {name}: expected a regular file, got {kind_of(os.fstat(handle).st_mode)}")
        hasher = Hasher()
        while chunk := os.read(handle, _CHUNK_BYTES):
            hasher.update(chunk)
        return hasher.digest()
    except OSError as error:
        raise Unavailable(f"file, {name}: expected it to be readable, got {error.strerror}") from None
    finally:
        os.close(handle)


def parse_digest(value: Any, what: str = "digest") -> str:
    """Return the value if it is the text of a digest."""
    text = parse_text(value, what)
    if _DIGEST.fullmatch(text) is None:
        raise BadInput(f"{what}: expected sha256: and 64 lower-case hexadecimal digits, got {show(text)}")
    return text


def raw_digest(text: str) -> bytes:
    """Return the 32 bytes of a digest."""
    return bytes.fromhex(parse_digest(text).removeprefix("sha256:"))


_CODE_CHARACTERS = 12
_CODE_GROUP = 4


def short_code(digest: str) -> str:
    """Return the short code of a digest, which two people compare by voice: 60 bits in base32, in groups of four."""
    code = base64.b32encode(raw_digest(digest)).decode()[:_CODE_CHARACTERS]
    return "-".join(code[n : n + _CODE_GROUP] for n in range(0, _CODE_CHARACTERS, _CODE_GROUP))


def is_short_code(text: str, digest: str) -> bool:
    """Return True if a person's text is the digest's short code. Capitals, spaces and hyphens do not matter."""
    return re.sub(r"[\s-]", "", text).upper() == short_code(digest).replace("-", "")
