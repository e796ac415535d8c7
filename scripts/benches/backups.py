"""Benches of a backup and its restore, with a long log and ten adapters, and of 16 streams during a backup.

Beside streams, a backup has the quota of processor time of its systemd unit. Rounds with streams alone and rounds with
streams during a backup take turns. Each backup has a folder of its own, so no earlier one saves it work.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyrage import x25519

from appliance.domain.core.names import versioned
from appliance.domain.serving.slots import AdapterLoaded
from appliance.workflows.core.record import append
from appliance.workflows.releases.exports import admit
from scripts.benches import models, serving_home
from scripts.benches.logs import Requests
from scripts.benches.measure import Row, measure_interleaved, row
from scripts.benches.programs import start_program
from scripts.benches.serving_client import UnitsClient
from scripts.benches.serving_home import UNITS, Home
from scripts.benches.serving_worker import make_adapters
from scripts.kit.appliance import ROOT, Appliance, found_site
from scripts.kit.ports import free_port

STREAMS, ADAPTERS, RANK, BATCH = 16, 10, 16, 1_000
KEPT_PACE, BACKUP_S, RESTORE_S = 0.9, 180, 300
_UNIT = ROOT / "scripts" / "packaging" / "systemd" / "appliance-backup.service"
_CONTROLLER, _PERIOD_US = Path("/sys/fs/cgroup/cpu"), 100_000
"""The controller of processor time of cgroup v1, and the period of a quota."""


@dataclass(frozen=True)
class Plan:
    """Amounts of a measurement. `tokens`: of each stream in one measured piece."""

    model: models.Model
    entries: int
    rounds: int
    tokens: int


@contextmanager
def _as_the_unit() -> Iterator[list[str]]:
    """Yield the words before a command that limit it to the processor quota of appliance-backup.service.

    Raises:
        RuntimeError: The machine has no systemd and no writable controller of cgroup v1.
    """
    found = re.search(r"^CPUQuota=(\d+)%$", _UNIT.read_text(), re.MULTILINE)
    assert found, "the unit has a quota"
    if Path("/run/systemd/system").is_dir():
        yield ["systemd-run", "--quiet", "--scope", "--property", found[0]]
        return
    group = _CONTROLLER / f"appliance-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(int(found[1]) * _PERIOD_US // 100))
    except OSError as error:
        raise RuntimeError(f"{group}: cannot limit a command without systemd: {error.strerror}") from None
    try:
        yield ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()


def measure(folder: Path, plan: Plan) -> Iterator[Row]:
    """Yield the rows of backups and of a restore."""
    identities = [x25519.Identity.generate() for _ in range(3)]
    keys = [str(identity.to_public()) for identity in identities]
    recipients = {"APPLIANCE_BACKUP_RECIPIENTS": keys[0], "APPLIANCE_BACKUP_KEY_RECIPIENTS": ",".join(keys[1:])}
    site = found_site(folder / "home", free_port(), **recipients)
    try:
        serving_home.enrol(site)
        site.stop()
        _fill(site, folder, plan)
        site.start()
        yield from _backups(site, folder, plan)
    finally:
        if site.service is not None:
            site.stop()
    yield _restore(site, folder, [str(identity) for identity in identities])


def _fill(site: Appliance, folder: Path, plan: Plan) -> None:
    """Release ten adapters, the first eight for the units of the streams, and append requests up to the log's size."""
    base = plan.model.convert(folder)
    adapters = list(make_adapters(str(base), folder, [RANK] * ADAPTERS))
    with start_program(base, "cpu", "ours") as ours, serving_home.opened(site) as home:
        home.import_base(base)
        home.import_dataset()
        for number, path in enumerate(adapters):
            unit = UNITS[number % len(UNITS)]
            adapter = home.seal(path, f"own-{number}", ours.request("logit_fingerprint", folder=str(path)))
            home.approve(adapter, unit)
            home.release(adapter, unit, "own" if number < len(UNITS) else "other")
        for unit in UNITS:
            _load(home, unit)
        _grow(home, plan.entries)


def _load(home: Home, unit: str) -> None:
    """Record that the unit's adapter is loaded, without an engine. The next start of the service unloads it."""
    admitted = admit(home.context, unit, "own")
    loaded = AdapterLoaded(
        unit=unit,
        served_model="own",
        adapter=versioned(admitted.adapter.name, admitted.adapter.version),
        admitted=admitted.appended.entry.index,
        logit_fingerprint="identical",
        engine=None,
    )
    append(home.context, loaded)


def _grow(home: Home, size: int) -> None:
    ledger = home.context.ledger
    requests = Requests(ledger, seed=1)
    while (left := size - ledger.state.size) > 0:
        ledger.append_all([draft for _ in range(min(BATCH, (left + 1) // 2)) for draft in requests.pair()])
    ledger.seal_snapshot(1)


def _backups(site: Appliance, folder: Path, plan: Plan) -> Iterator[Row]:
    client = UnitsClient(site)
    for unit in UNITS:
        client.ask(unit, 2)
    took: list[float] = []

    def alone() -> list[float]:
        return [_rate(client, plan.tokens)]

    def beside() -> list[float]:
        rates = []
        with ThreadPoolExecutor(1) as thread:
            made: Future[float] = thread.submit(_create, site, folder / f"backups-{len(took)}")
            while not made.done():
                rates.append(_rate(client, plan.tokens))
        took.append(made.result())
        return rates[:-1] or rates  # the backup ended during the last piece

    found = measure_interleaved(plan.rounds, alone=alone, beside=beside)
    yield row(
        f"a backup of {plan.entries:,} entries, {ADAPTERS} adapters, beside {STREAMS} streams, slowest of {len(took)}",
        max(took),
        "s",
        at_most=BACKUP_S,
    )
    yield row(
        *(f"tokens a second, {STREAMS} streams, while a backup is made", found["beside"], "1/s"),
        against="without one",
        theirs=found["alone"],
        ratio=found.ratio("beside", "alone"),
        ratio_at_least=KEPT_PACE,
    )
    size = sum(path.stat().st_size for path in (folder / "backups-0").rglob("*") if path.is_file())
    yield row("the backup on disk", size / 1e6, "MB")
    words = ("backup", "create", str(folder / "backups"))
    yield row("the same backup without streams and quota", _time_command(site, *words), "s")
    yield row("the next backup in the same folder, which adds log and keyring", _time_command(site, *words), "s")


def _rate(client: UnitsClient, tokens: int) -> float:
    """Return the tokens a second of sixteen streams, two for each unit."""
    began = time.perf_counter()
    return client.stream(UNITS * (STREAMS // len(UNITS)), tokens) / (time.perf_counter() - began)


def _create(site: Appliance, backups: Path) -> float:
    """Make a backup as the unit does and return the seconds that it took."""
    with _as_the_unit() as words:
        return _time_command(site, "backup", "create", str(backups), before=words)


def _restore(site: Appliance, folder: Path, identities: list[str]) -> Row:
    backups = folder / "backups"
    name = max(path.stem for path in backups.glob("*.json"))
    options = ["--trust", str(site.settings.trust)]
    for number, identity in enumerate(identities):
        path = folder / f"identity-{number}"
        path.touch(0o600)
        path.write_text(identity + "\n")
        options += ["--identity", str(path)]
    took = _time_command(site, "backup", "restore", str(backups), name, "--folder", str(folder / "restored"), *options)
    return row("the restore of one", took, "s", at_most=RESTORE_S)


def _time_command(site: Appliance, *words: str, before: Sequence[str] = ()) -> float:
    """Run a command of the appliance, and return its seconds.

    Raises:
        RuntimeError: The command failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "APPLIANCE_HOME": str(site.home), **site.environment}
    command = [*before, sys.executable, "-m", "appliance", *words]
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return time.perf_counter() - began
