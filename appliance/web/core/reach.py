"""How a group of the machine reaches the people's socket: its members pass the home and the socket's folder, and find
nothing else in the home open."""

from __future__ import annotations

import errno
import grp
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import BadInput, Denied

PASSED = 0o710
"""Of a folder that the group passes through, without a look at what is in it."""
_ACL = "system.posix_acl_access"


@dataclass(frozen=True)
class Group:
    name: str
    gid: int


def find_group(name: str) -> Group:
    try:
        return Group(name, grp.getgrnam(name).gr_gid)
    except KeyError:
        raise BadInput(
            f"settings, socket_group: expected a group of this machine, got {name!r}; make it with: groupadd {name}"
        ) from None


def let_pass(home: Path, folder: Path, group: Group) -> None:
    """Opens the way to `folder`, which is in the home, once nothing else of the home could be read on it."""
    home, folder = home.resolve(), folder.resolve()
    for parent in reversed(home.parents):
        _check_passable(parent, group)
    for path in sorted(home.iterdir()):
        if path != folder and not path.is_symlink():
            _close(path)
    for path in (folder, home):
        give(path, group, PASSED)


def give(path: Path, group: Group, mode: int) -> None:
    """To the group, with this mode."""
    try:
        os.chown(path, -1, group.gid)
        path.chmod(mode)
    except PermissionError:
        raise Denied(
            f"settings, socket_group, {path}: expected the service's account to own it and to be a member of "
            f"{group.name}, got user id {os.geteuid()}; type: usermod --append --groups {group.name} ACCOUNT"
        ) from None


def _check_passable(folder: Path, group: Group) -> None:
    """A list of rights beside the mode is not read: who set one knows whom it lets pass."""
    status = folder.stat()
    by_group = status.st_gid == group.gid and bool(status.st_mode & stat.S_IXGRP)
    if status.st_mode & stat.S_IXOTH or by_group or _has_list(folder):
        return
    raise Denied(
        f"settings, socket_group: expected members of {group.name} to pass {folder}, above the home, got mode "
        f"{stat.S_IMODE(status.st_mode):04o}; put the home where they can (such as /srv/appliance), "
        f"or type: chmod o+x {folder}"
    )


def _has_list(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, _ACL))
    except OSError:
        return False


def _close(path: Path) -> None:
    """What others could open inside the closed home is now readable by the service alone."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & 0o077:
        return
    try:
        path.chmod(mode & 0o700)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
        raise Denied(
            f"settings, socket_group, {path}: expected nothing in the home that others can open, got mode {mode:04o}, "
            f"and {error.strerror}; type: chmod go= {path}"
        ) from None
