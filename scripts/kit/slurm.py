"""A real Slurm on this machine, for tests and benches: one slurmctld and two slurmd, all of them on loopback.

It needs Debian's slurmctld, slurmd and slurm-client, and root, since slurmd changes users. No munge, no accounting and
no cgroups: auth/slurm, proctrack/linuxproc.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from scripts.kit.ports import free_port

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
NODES = ("n1", "n2")
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"
_START_S = 120.0

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/slurm
CredType=auth/slurm
AuthInfo=cred_expire=10
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SchedulerType=sched/builtin
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptParameters=send_user_signal
JobRequeue=1
ReturnToService=2
SlurmdTimeout=120
KillWait=3
MinJobAge=300
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=idle Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=closed Nodes=n1,n2 MaxTime=INFINITE State=UP AllowGroups=nobody-at-all
"""
_NODE = (
    "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=1000 State=UNKNOWN"
)


@dataclass
class Slurm:
    """Its folder, and its daemons by name: `slurmctld`, and each node's."""

    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def configuration(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which a program finds this cluster."""
        return {"SLURM_CONF": str(self.configuration)}

    def start(self, name: str) -> None:
        """slurmctld, or the slurmd of a node; again after `kill` too."""
        extra = ["-i"] if name == "slurmctld" else ["-N", name]
        program = find(name if name == "slurmctld" else "slurmd")
        with open(self.folder / f"{name}.out", "ab") as log:
            begun = log.tell()
            self.daemons[name] = subprocess.Popen(
                [program, "-D", "-f", str(self.configuration), *extra],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": _SEARCH, **self.environment},
                start_new_session=True,
            )
        # One after the other: each slurmd takes the one socket of auth/slurm in /run from the one before it.
        said = "Running as primary controller" if name == "slurmctld" else "slurmd started on"
        deadline = time.monotonic() + _START_S
        while said not in (self.folder / f"{name}.out").read_text()[begun:]:
            if self.daemons[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: {(self.folder / f'{name}.out').read_text()[-1000:]}")
            time.sleep(0.02)

    def kill(self, name: str) -> None:
        """As a machine that loses power: the daemon and, of a node, every job on it."""
        daemon = self.daemons.pop(name)
        below = _below(daemon.pid)
        for process in (daemon.pid, *below):
            _signal(process, signal.SIGKILL)
        daemon.wait()

    def stop(self) -> None:
        for name in list(self.daemons):
            self.kill(name)
        # Steps of a job are daemons of their own, no children of slurmd: they are found by what they hold open.
        for process in {*_of_configuration(self.configuration), *_with_files_below(self.folder)}:
            _signal(process, signal.SIGKILL)

    def run(self, *command: str) -> str:
        """Run a command of Slurm and return its output."""
        made = subprocess.run(
            [find(command[0]), *command[1:]],
            env={"PATH": _SEARCH, **self.environment},
            capture_output=True,
            text=True,
            timeout=_START_S,
        )
        if made.returncode:
            raise RuntimeError(f"{' '.join(command)}: {made.stderr.strip()}")
        return made.stdout

    def urgent(self, node: str, seconds: int = 1) -> str:
        """Submit a job that takes the node from any job of the usual partition. Return its number."""
        command = ("--wrap", f"sleep {seconds}", "--output=/dev/null")
        return self.run("sbatch", "--parsable", "-p", "urgent", f"--nodelist={node}", *command).strip()

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            try:
                if self.run("sinfo", "-h", "-N", "-o", "%N %t", "-p", "idle").split()[1::2] == ["idle"] * len(NODES):
                    return
            except RuntimeError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"Slurm did not come up: {(self.folder / 'slurmctld.log').read_text()[-2000:]}")


def find(program: str) -> str:
    found = shutil.which(program, path=_SEARCH)
    if found is None:
        raise RuntimeError(f"{program}: expected it, got none; apt-get install slurmctld slurmd slurm-client")
    return found


def start_slurm(folder: Path, *, cpus: int = 1, grace_s: int = 20) -> Slurm:
    """Start a cluster of two nodes, and return it when both are idle."""
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    key = folder / "slurm.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    nodes = "\n".join(_NODE.format(name=name, port=free_port(), cpus=cpus) for name in NODES)
    text = _CONFIGURATION.format(folder=folder, controller=free_port(), nodes=nodes, grace=grace_s)
    slurm = Slurm(folder)
    slurm.configuration.write_text(text)
    try:
        for name in ("slurmctld", *NODES):
            slurm.start(name)
        slurm.wait_until_up()
    except BaseException:
        slurm.stop()
        raise
    return slurm


def _signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _below(process: int) -> list[int]:
    """Every process that descends from this one."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, waiting = [], [process]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _of_configuration(configuration: Path) -> list[int]:
    """List the processes whose environment names this cluster."""
    mark, found = f"SLURM_CONF={configuration}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [process for process in found if process != os.getpid()]


def _with_files_below(folder: Path) -> list[int]:
    """List the processes that have a file or folder of this cluster open."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(one).startswith(f"{folder}/") for one in (path / "fd").iterdir()):
                found.append(int(path.name))
    return [process for process in found if process != os.getpid()]
