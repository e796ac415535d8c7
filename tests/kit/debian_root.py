"""The files of a small Debian, with Python and openssl, from the packages that this machine has installed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

PACKAGES = ("python3", "openssl", "passwd")


def _list_packages() -> dict[str, tuple[bool, set[str]]]:
    """Return whether each installed package is essential, and the packages that it depends on."""
    form = "${Package}\t${Essential}\t${Pre-Depends}, ${Depends}\t${Provides}\n"
    done = subprocess.run(["dpkg-query", "-W", "-f", form], capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    provided = {name: package for package, _, _, names in rows for name in re.findall(r"[a-z0-9][a-z0-9.+-]+", names)}
    installed = {row[0] for row in rows}
    found = {}
    for package, essential, needs, _ in rows:
        names = {re.split(r"[ :(|]", need.strip())[0] for need in needs.split(",")}
        found[package] = essential == "yes", {one if one in installed else provided.get(one, "") for one in names}
    return found


def write_root(target: Path) -> None:
    """Write a tar of the files of the essential packages, of PACKAGES, and of what they depend on."""
    known = _list_packages()
    wanted = [*PACKAGES, *(name for name, (essential, _) in known.items() if essential)]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in known and name not in seen:
            seen.add(name)
            wanted += known[name][1]
    listed = subprocess.run(["dpkg-query", "-L", *sorted(seen)], capture_output=True, text=True, check=True).stdout
    leave = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/")
    paths = {Path(line) for line in listed.splitlines() if line.startswith("/") and not line.startswith(leave)}
    paths |= {Path(name) for name in ("/bin", "/sbin", "/lib", "/lib64")}
    # Some packages name a file below one of these four, which are links into /usr.
    files = {path.parent.resolve() / path.name for path in paths if path.exists() or path.is_symlink()}
    names = "\n".join(sorted(map(str, files)))
    # As the installation of base-passwd makes them.
    accounts = [f"--transform=s#^usr/share/base-passwd/{name}.master#etc/{name}#" for name in ("passwd", "group")]
    command = ["tar", "--create", "--file", target, "--no-recursion", "--hard-dereference", "--files-from=-", *accounts]
    subprocess.run(command, input=names, capture_output=True, text=True, check=True)
