"""The time that a signer adds to a group commit: the request through its socket, the signature and its record.

The record is in memory once (/dev/shm), without the disk's own syncs, and once on the disk that is measured. The keys
are in files, or in SoftHSM's token.
"""

from __future__ import annotations

import getpass
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from appliance.formats.core.merkle import Frontier, hash_leaf
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.signatures.keys import generate_ed25519
from appliance.signer.client import SignerKeys
from appliance.store.ledger.pending import PendingFile
from scripts.benches.measure import Row, row
from scripts.kit.appliance import ROOT

ORIGIN, LEAVES, GOAL_MS = "bench.example/signer", 8, 1.0
MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
_WARM, _PIN = 20, "correct horse"


def measure(folder: Path, count: int) -> Iterator[Row]:
    own = _own(count)
    yield row("key in the process: signature, p50", statistics.median(own), "ms")
    sync = _sample(count, _sync(folder))
    yield row("disk: write + fdatasync of 4 KiB, p50", statistics.median(sync), "ms")
    yield row("disk: write + fdatasync of 4 KiB, p95", _p95(sync), "ms")
    pending = PendingFile(folder / "pending")
    stored = _sample(count, lambda number: pending.store(number, bytes(32), bytes(8192)))
    yield row("pending batch of 8 KiB on disk, p50", statistics.median(stored), "ms")
    kinds = ("files", "SoftHSM") if MODULE.exists() else ("files",)
    for kind in kinds:
        for place, where in (("/dev/shm", "record in memory"), (str(folder), "record on disk")):  # noqa: S108
            with tempfile.TemporaryDirectory(dir=place) as made, _serving(Path(made), kind) as (socket, pid):
                began = _cpu_ms(pid)
                took = _sign(socket, count)
                cpu = (_cpu_ms(pid) - began) / (count + _WARM)
            added = [one - statistics.median(own) for one in took]
            goal = GOAL_MS if where == "record in memory" else None
            yield row(f"signer, {kind}, {where}: added, p50", statistics.median(added), "ms", at_most=goal)
            yield row(f"signer, {kind}, {where}: added, p95", _p95(added), "ms")
            yield row(f"signer, {kind}, {where}: processor time of both processes, mean", cpu, "ms")


def _own(count: int) -> list[float]:
    signer = generate_ed25519()
    return _sample(count, lambda n: sign_checkpoint(Checkpoint(ORIGIN, n + 1, bytes(32)), signer))


def _sign(socket: Path, count: int) -> list[float]:
    with closing(SignerKeys(socket, ORIGIN)) as keys:
        vkeys, edges = keys.list_log_keys()[:1], [Frontier.EMPTY]

        def sign(number: int) -> None:
            leaves = [hash_leaf(b"%d %d" % (number, leaf)) for leaf in range(LEAVES)]
            after, _ = edges[0].extend(leaves)
            keys.sign_checkpoint(ORIGIN, edges[0], leaves, after.root(), vkeys)
            edges[0] = after

        return _sample(count, sign)


def _sync(folder: Path) -> Callable[[int], None]:
    file = os.open(folder / "sync", os.O_RDWR | os.O_CREAT, 0o600)

    def write(number: int) -> None:
        os.pwrite(file, bytes(4096), 0)
        os.fdatasync(file)

    return write


def _sample(count: int, act: Callable[[int], object]) -> list[float]:
    """Return the milliseconds of each call, without the first ones."""
    took = []
    for number in range(count + _WARM):
        began = time.perf_counter()
        act(number)
        took.append((time.perf_counter() - began) * 1e3)
    return took[_WARM:]


def _cpu_ms(pid: int) -> float:
    """Return the milliseconds of processor time that this process and the signer have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    theirs = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return (time.process_time() + theirs) * 1e3


def _p95(took: list[float]) -> float:
    return sorted(took)[round(0.95 * (len(took) - 1))]


@contextmanager
def _serving(folder: Path, kind: str) -> Iterator[tuple[Path, int]]:
    """Run a signer in a process of its own. Yield its socket and process id."""
    passphrase, environment = folder / "passphrase", dict(os.environ)
    passphrase.write_text(f"{_PIN}\n")
    passphrase.chmod(0o600)
    options = ["--folder", str(folder / "signer"), "--passphrase-file", str(passphrase)]
    if kind == "SoftHSM":
        (folder / "tokens").mkdir()
        (folder / "conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
        environment["SOFTHSM2_CONF"] = str(folder / "conf")
        made = ("softhsm2-util", "--init-token", "--free", "--label", "bench", "--so-pin", "12345678", "--pin", _PIN)
        subprocess.run(made, env=environment, check=True, capture_output=True)
        options += ["--pkcs11", f"pkcs11:token=bench?module-path={MODULE}"]
    command = (sys.executable, "-m", "appliance", "signer")
    subprocess.run([*command, "init", *options], env=environment, check=True, capture_output=True, cwd=ROOT)
    socket = folder / "s"
    serve = [*command, "serve", *options, "--socket", str(socket), "--user", getpass.getuser()]
    server = subprocess.Popen(serve, env=environment, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        while not socket.exists():
            if server.poll() is not None:
                raise RuntimeError(f"signer: expected one that serves, got exit code {server.returncode}")
            time.sleep(0.05)
        yield socket, server.pid
    finally:
        server.terminate()
        server.wait()
