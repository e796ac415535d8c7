"""The worker's own root: an empty, read-only tree with the named paths of the host only.

Every source is first cloned to a detached mount (open_tree), gets its attributes while it is unreachable
(mount_setattr), and is attached below a new tmpfs, which then becomes the root (pivot_root). If any call before
pivot_root fails, the process keeps its root.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterator
from ctypes import create_string_buffer
from typing import NamedTuple

from appliance.sandbox import kernel

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
_MAX_LINKS = 40


class VisiblePath(NamedTuple):
    """A path of the host and the worker's access to it; `kind` is a key of ATTRIBUTES."""

    path: str
    kind: str


def _parts(path: str) -> Iterator[str]:
    """Return every prefix of an absolute path from the top: /a, /a/b, /a/b/c."""
    names = [name for name in path.split("/") if name]
    return ("/" + "/".join(names[: depth + 1]) for depth in range(len(names)))


def follow(path: str) -> tuple[str, dict[str, str]]:
    """Return the real path, and the links on the way as {link: target}, since names must work in the sandbox as
    outside."""
    links: dict[str, str] = {}
    for _ in range(_MAX_LINKS):
        for prefix in _parts(path):
            if os.path.islink(prefix):
                target = os.readlink(prefix)
                links[prefix] = target
                rest = path[len(prefix) :]
                path = os.path.normpath(os.path.join(os.path.dirname(prefix), target)) + rest
                break
        else:
            return path, links
    raise OSError(f"{path}: more than {_MAX_LINKS} links")


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
    """Mount a /proc of this PID namespace; if the kernel refuses it (a masked /proc, in containers), use the host's.

    All of it is read-only, except that with `names_threads` the folders of processes in the namespace's own /proc are
    writable; Landlock then restricts which files can be written.
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
    """Cover everything in /proc that does not belong to a process with a read-only mount of itself."""
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


def _needed(places: list[VisiblePath]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the kinds by real path, outer paths first, without those that an outer path already provides; and the
    links."""
    kinds: dict[str, str] = {}
    links: dict[str, str] = {}
    for place in places:
        real, hops = follow(place.path)
        kinds[real] = place.kind
        links.update(hops)
    needed: dict[str, str] = {}
    for path in sorted(kinds, key=lambda real: real.count("/")):
        above = [prefix for prefix in _parts(path) if prefix in needed]
        if not above or needed[above[-1]] != kinds[path]:
            needed[path] = kinds[path]
    return needed, links


def enter_root(places: list[VisiblePath], base: str, *, fresh_proc: bool, names_threads: bool = False) -> None:
    """Build the tree over the folder `base`, which is hidden and not changed, and move into it."""
    kernel.call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    kinds, links = _needed(places)
    trees = [(path, _clone(path, kind)) for path, kind in kinds.items()]
    kernel.call("mount", b"tmpfs", base.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=0755,size=1m,nr_inodes=4096")
    try:
        _populate(base, trees, links, fresh_proc=fresh_proc, names_threads=names_threads)
        root = os.open(base, os.O_PATH | os.O_CLOEXEC)
        _set_attributes(root, ATTRIBUTES["run"], recursive=False)
        os.fchdir(root)
        # Stack the new root on the old one, and unmount the old one below it (pivot_root(2), "pivot_root . .").
        kernel.call("pivot_root", b".", b".")
    except OSError:
        kernel.call("umount2", base.encode(), _MNT_DETACH)
        raise
    kernel.call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
