"""A machine whose first process is systemd, in namespaces of its own: no network, this machine's files, own writes.

It needs root, Debian's systemd and a cgroup2 hierarchy. Its root is an overlay: what it writes is in memory and ends
with it. The folder `share` is /mnt there.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/opt/python"
"""Folder of this interpreter's own installation, since units do not see a home."""
CHECKOUT = "/opt/checkout"
"""Folder of this checkout, since units have a /tmp of their own."""
_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {work}
mkdir {work}/upper {work}/work {work}/root
mount -t overlay overlay -o lowerdir=/,upperdir={work}/upper,workdir={work}/work {work}/root
cd {work}/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p mnt old opt/python opt/checkout opt/libraries
mount --bind {share} mnt
mount --bind {python} opt/python
mount --bind -o ro {root} opt/checkout
mount --bind -o ro {libraries} opt/libraries
for file in opt/libraries/__editable__*; do  # where an editable installation finds the checkout
    [ -e "$file" ] || continue
    sed 's#{root}/#/opt/checkout/#g' "$file" >"opt/${{file##*/}}"
    mount --bind "opt/${{file##*/}}" "$file"
done
ip link set lo up
pivot_root . old
umount -l /old
mount --make-rshared /  # as systemd does on a machine that is no container; credentials are mounted so
rm -rf /etc/systemd/system/* /var/log/journal
cat >/etc/systemd/system/machine.target <<END
[Unit]
Wants=systemd-journald.service
After=systemd-journald.service
END
export container=test
exec /usr/lib/systemd/systemd --system --unit=machine.target --log-target=journal --log-level=notice
"""
_START_S = 120.0


class Machine:
    """A running machine. `run` runs a shell script in it."""

    def __init__(self, first: int, share: Path) -> None:
        self._first, self.share = first, share

    def run(self, script: str, *, fails: bool = False, timeout_s: float = 240.0) -> str:
        """Return what a script prints; it ends at the first command that fails."""
        done = self._enter(script, timeout_s)
        if (done.returncode != 0) != fails:
            said = self._enter(
                "journalctl --sync; journalctl --no-pager _TRANSPORT=journal _TRANSPORT=stdout -n 20", 60
            )
            raise AssertionError(f"{script}\n{done.stdout}{done.stderr}\n{said.stdout}")
        return done.stdout + done.stderr if fails else done.stdout

    def _enter(self, script: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        enter = ("nsenter", "-t", str(self._first), "-m", "-p", "-n", "-i", "-u", "-C", "-r", "-w")
        clean = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8")
        return subprocess.run(
            [*enter, *clean, "bash", "-e"],
            input=script,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def journal(self, *arguments: str) -> str:
        """Return lines of the journal."""
        return self.run(f"journalctl --sync; journalctl --no-pager {shlex.join(arguments)}")

    def install_units(self) -> None:
        """Install the units, accounts and folders as packages do."""
        packaging = f"{CHECKOUT}/scripts/packaging"
        self.run(f"""
            cp {packaging}/systemd/* /usr/lib/systemd/system/
            for file in {packaging}/sysusers/*; do systemd-sysusers $file; done
            for file in {packaging}/tmpfiles/*; do systemd-tmpfiles --create $file; done
            systemctl daemon-reload
        """)

    def install_checkout(self) -> None:
        """Install this checkout, with the libraries of this environment, where packages install an environment."""
        venv, packages = "/usr/lib/appliance/versions/checkout", f"lib/python{_VERSION}/site-packages"
        self.run(f"""
            echo {PYTHON}/lib >/etc/ld.so.conf.d/000-python.conf; ldconfig
            mkdir -p {venv}/bin {venv}/{packages}
            ln -s {PYTHON}/bin/python{_VERSION} {venv}/bin/python
            printf 'home = {PYTHON}/bin\\n' >{venv}/pyvenv.cfg
            mount --rbind /opt/libraries {venv}/{packages}
            printf '#!{venv}/bin/python\\nfrom appliance.cli.main import main\\nmain()\\n' >{venv}/bin/appliance
            chmod 755 {venv}/bin/appliance
            ln -s versions/checkout /usr/lib/appliance/current
        """)


_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def _find_cgroups() -> Path:
    """Return where the hierarchy of cgroup2 is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next(Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2")


@contextmanager
def start_machine(folder: Path) -> Iterator[Machine]:
    """Start a machine that ends with the block."""
    share, work = folder / "share", folder / "machine"
    share.mkdir()
    work.mkdir()
    share.chmod(0o755)
    group = _find_cgroups() / f"appliance-test-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    boot = _BOOT.format(
        work=work, share=share, python=sys.base_prefix, root=ROOT, libraries=sysconfig.get_path("purelib")
    )
    kinds = ("--mount", "--pid", "--net", "--cgroup", "--ipc", "--uts")
    join = f'echo $$ >"{group}/cgroup.procs"; exec "$@"'
    command = ["sh", "-c", join, "sh", "unshare", *kinds, "--fork", "--kill-child", "bash", "-c", boot]
    with open(folder / "boot.log", "wb") as log:
        outer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield _wait_until_up(outer, share, folder / "boot.log")
    finally:
        outer.send_signal(signal.SIGKILL)  # the kernel ends all processes of its namespace
        outer.wait()
        _remove(group)


def _wait_until_up(outer: subprocess.Popen[bytes], share: Path, log: Path) -> Machine:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and outer.poll() is None:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n":
            machine = Machine(int(children[0]), share)
            with suppress(subprocess.TimeoutExpired):
                if machine._enter("systemctl is-active machine.target", 20).returncode == 0:
                    return machine
        time.sleep(0.1)
    raise RuntimeError(f"machine: expected systemd to be up, got: {log.read_text()}")


def _remove(group: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
