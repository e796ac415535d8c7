"""The worker's own root: an empty, read-only tree that holds the named paths and nothing else of the host.

Every source is cloned to a detached mount first (open_tree), given its attributes while nobody can reach it
(mount_setattr), and attached below a new tmpfs, which then becomes the root (pivot_root). Up to that last call a
failure leaves the process where it was.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterator
from ctypes import create_string_buffer
from typing import NamedTuple

from appliance.runners.walls import kernel

_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 1 << 18
_MNT_DETACH = 2
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8  # MOUNT_ATTR_*

ATTRIBUTES = {
    "run": _RDONLY | _NOSUID | _NODEV,
    "read": _RDONLY | _NOSUID | _NODEV | _NOEXEC,
    "write": _NOSUID | _NODEV | _NOEXEC,
    "device": _NOSUID | _NOEXEC,
}
_MOST_HOPS = 40


class Place(NamedTuple):
    """One path of the host and what the worker may do with it: `kind` is a key of ATTRIBUTES."""

    path: str
    kind: str


def _parts(path: str) -> Iterator[str]:
    """Every prefix of an absolute path, from the top: /a, /a/b, /a/b/c."""
    names = [name for name in path.split("/") if name]
    return ("/" + "/".join(names[: depth + 1]) for depth in range(len(names)))


def follow(path: str) -> tuple[str, dict[str, str]]:
    """The real path, and the links on the way as {link: target}: a name must work inside as it does outside."""
    links: dict[str, str] = {}
    for _ in range(_MOST_HOPS):
        for prefix in _parts(path):
            if os.path.islink(prefix):
                target = os.readlink(prefix)
                links[prefix] = target
                rest = path[len(prefix) :]
                path = os.path.normpath(os.path.join(os.path.dirname(prefix), target)) + rest
                break
        else:
            return path, links
    raise OSError(f"{path}: more than {_MOST_HOPS} links")


def _clone(path: str, kind: str) -> int:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    tree = kernel.call("open_tree", _AT_FDCWD, path.encode(), flags)
    _set_attributes(tree, ATTRIBUTES[kind], recursive=True)
    return tree


def _set_attributes(tree: int, attributes: int, *, recursive: bool) -> None:
    request = struct.pack("=QQQQ", attributes, 0, _MS_PRIVATE, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    kernel.call("mount_setattr", tree, b"", flags, create_string_buffer(request, len(request)), len(request))


def _attach(tree: int, target: str) -> None:
    if not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    kernel.call("move_mount", tree, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH)


def _attach_proc(root: str, *, fresh: bool, names_threads: bool) -> None:
    """A /proc of this PID namespace; where the kernel refuses one (a masked /proc, in containers) the host's own.

    All of it is read-only. Only in one of the namespace's own, and where `names_threads`, the mount lets the folders of
    its processes be written: which files of them, Landlock says.
    """
    target = f"{root}/proc"
    os.mkdir(target)
    if fresh:
        with contextlib.suppress(OSError):
            flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
            kernel.call("mount", b"proc", target.encode(), b"proc", flags, None)
            if names_threads:
                _protect_kernel(target)
                return
            tree = os.open(target, os.O_PATH | os.O_CLOEXEC)
            _set_attributes(tree, ATTRIBUTES["read"], recursive=False)
            os.close(tree)
            return
    tree = _clone("/proc", "read")
    _attach(tree, target)
    os.close(tree)


def _protect_kernel(proc: str) -> None:
    """Covers everything of /proc that is no process's with itself, read-only."""
    for name in os.listdir(proc):
        path = f"{proc}/{name}"
        if name.isdigit() or os.path.islink(path):
            continue
        tree = _clone(path, "read")
        kernel.call("move_mount", tree, b"", _AT_FDCWD, path.encode(), _MOVE_MOUNT_F_EMPTY_PATH)
        os.close(tree)


def _populate(
    root: str, trees: list[tuple[str, int]], links: dict[str, str], *, fresh_proc: bool, names_threads: bool
) -> None:
    _attach_proc(root, fresh=fresh_proc, names_threads=names_threads)
    for target, tree in trees:
        _attach(tree, root + target)
        os.close(tree)
    for link, target in links.items():
        if not os.path.lexists(root + link):
            os.makedirs(os.path.dirname(root + link), exist_ok=True)
            os.symlink(target, root + link)


def _needed(places: list[Place]) -> tuple[dict[str, str], dict[str, str]]:
    """Real paths with their kinds, outer before inner and without those an outer one already shows alike; and links."""
    kinds: dict[str, str] = {}
    links: dict[str, str] = {}
    for place in places:
        real, hops = follow(place.path)
        kinds[real] = place.kind
        links.update(hops)
    kept: dict[str, str] = {}
    for path in sorted(kinds, key=lambda real: real.count("/")):
        above = [prefix for prefix in _parts(path) if prefix in kept]
        if not above or kept[above[-1]] != kinds[path]:
            kept[path] = kinds[path]
    return kept, links


def enter_root(places: list[Place], base: str, *, fresh_proc: bool, names_threads: bool = False) -> None:
    """Makes the tree over the folder `base` (any folder will do: it is hidden, not changed) and moves into it."""
    kernel.call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    kinds, links = _needed(places)
    trees = [(path, _clone(path, kind)) for path, kind in kinds.items()]
    kernel.call("mount", b"tmpfs", base.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=0755,size=1m,nr_inodes=4096")
    try:
        _populate(base, trees, links, fresh_proc=fresh_proc, names_threads=names_threads)
        root = os.open(base, os.O_PATH | os.O_CLOEXEC)
        _set_attributes(root, ATTRIBUTES["run"], recursive=False)
        os.fchdir(root)
        # Old and new root on one spot: the old one is unmounted from under the new (pivot_root(2), "pivot_root . .").
        kernel.call("pivot_root", b".", b".")
    except OSError:
        kernel.call("umount2", base.encode(), _MNT_DETACH)
        raise
    kernel.call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
