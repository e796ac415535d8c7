"""A restored backup of an appliance with a signer: the service waits, the signer steps back, and the log continues."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from appliance import wiring
from appliance.cli import main
from appliance.config.settings import Settings, load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.governance.service import Heartbeat
from appliance.errors import Tampered, Unavailable
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import claimed_size
from appliance.formats.log.trust import Trust, encode_trust
from appliance.formats.signatures.keys import encode_key_file, generate_ed25519
from appliance.signer.operations import Operations
from appliance.signer.record import SignedCheckpoint
from appliance.store.files.backups import BackupFolder
from appliance.store.ledger.pending import FILE as PENDING
from appliance.store.ledger.pending import PendingFile
from appliance.workflows import integrity, restoration
from appliance.workflows.backups import restoring
from appliance.workflows.core.record import append
from scripts.kit.waiting import wait_for
from tests.kit.backups import BackedUp
from tests.kit.founded import _DEFAULT
from tests.kit.signing import make_signer, serving

ROOT = Path(__file__).resolve().parents[2]
KEYS = {name: generate_ed25519() for name in ("anna", "ben")}
PASSPHRASE = b"correct horse battery"
START_S = 180.0


def init(settings: Settings) -> Trust:
    people = [wiring.Person(name, key.spki) for name, key in KEYS.items()]
    return wiring.init(settings, people, origin=None, single_administrator=False, policy=encode_value(_DEFAULT))


def beat(settings: Settings, count: int) -> int:
    with wiring.service(settings) as context:
        for _ in range(count):
            append(context, Heartbeat())
        return context.ledger.state.size


# --- the service that waits -------------------------------------------------------------------------------------------


@pytest.fixture
def operations(tmp_path: Path) -> Operations:
    return make_signer(tmp_path / "signer")


@pytest.fixture
def settings(operations: Operations, tmp_path: Path) -> Iterator[Settings]:
    """Yield a home that was put back to two entries, and a signer that has signed five."""
    home = tmp_path / "home"
    with serving(operations, tmp_path / "s") as path:
        made = load_settings(home, {"APPLIANCE_SIGNER_SOCKET": str(path)})
        init(made)
        beat(made, 1)
        shutil.copytree(home, tmp_path / "older")
        beat(made, 3)
        shutil.rmtree(home)
        (tmp_path / "older").rename(home)
        yield made


def test_a_restored_log_can_be_read_while_its_signer_is_ahead_and_does_not_grow(
    settings: Settings, operations: Operations, tmp_path: Path
) -> None:
    with pytest.raises(Tampered, match="appliance serve --restoration") as refused, wiring.service(settings):
        pass
    assert refused.value.code == "batch-missing"
    with wiring.service(settings, restoration=True) as context:
        described = restoration.describe(context, None)
        assert (described.waits, described.signer_ahead, described.kept_size) == (True, True, 2)
        assert [(loss.size, claimed_size(loss.note)) for loss in described.losses] == [(5, 5)]
        for _ in range(2):
            with pytest.raises(Unavailable, match="appliance signer step-back") as waits:
                append(context, Heartbeat())
            assert waits.value.code == "awaits-step-back"
        assert context.ledger.state.size == 2 and restoration.describe(context, None).signer_ahead
        (kept,) = context.known_checkpoints.list_known()
        assert kept.data == described.losses[0].note
        # While the signer is stopped, its last answer counts.
        (tmp_path / "s").rename(tmp_path / "stopped")
        context.keys.close()
        assert restoration.describe(context, None).signer_ahead
        with pytest.raises(Unavailable) as unreachable:
            append(context, Heartbeat())
        assert unreachable.value.code == "signer-unreachable"
        (tmp_path / "stopped").rename(tmp_path / "s")
    time.sleep(0.01)
    with wiring.service(settings, restoration=True) as context:
        # The time of the note is before that of any order that gives it up, however soon it is issued.
        assert abs(kept.time_s - parse_time(context.ledger.state.last_time).timestamp()) < 0.001
        assert [note.time_s for note in context.known_checkpoints.list_known()] == [kept.time_s]
        last, edge = operations.last_signed(context.ledger.state.site.origin), context.ledger.edge
        assert last is not None and edge.hashes == described.edge
        back = SignedCheckpoint(last.origin, edge, edge, described.checkpoint, last.signed_ms)
        assert operations._record.step_back(last, back, b"orders")
        operations._seen = back
        assert not restoration.describe(context, None).signer_ahead
        assert append(context, Heartbeat()).entry.index == 2
        # The signer's note is still to be given up.
        assert [error.code for error in context.missing_from_log] == ["log-truncated"]
        # From then on a signer that is ahead without its batch stops the service again.
        last = operations.last_signed(last.origin)
        assert last is not None
        operations.sign_checkpoint(
            last.origin, 3, [b"\1" * 32], last.after.append(b"\1" * 32).root(), operations.list_log_keys(last.origin)
        )
        with pytest.raises(Tampered) as missing:
            append(context, Heartbeat())
        assert missing.value.code == "batch-missing"


def test_a_pending_batch_of_the_lost_log_does_not_stop_the_restored_one(
    settings: Settings, operations: Operations
) -> None:
    """The service died before its last commit, and its home was kept when the database was restored."""
    home = settings.home
    with wiring.service(settings, restoration=True) as context:
        size, origin, edge = context.ledger.state.size, context.ledger.state.site.origin, context.ledger.edge
    last = operations.last_signed(origin)
    assert last is not None
    PendingFile(home / PENDING).store(last.after.size, last.after.root(), b"{}")
    with pytest.raises(Tampered) as refused, wiring.service(settings):
        pass
    assert refused.value.code == "batch-missing"
    with wiring.service(settings, restoration=True) as context:
        assert restoration.describe(context, None).signer_ahead
        note = context.ledger.checkpoint()
    # The signer steps back, and the service dies before it records the orders.
    assert operations._record.step_back(last, SignedCheckpoint(origin, edge, edge, note, last.signed_ms), b"orders")
    operations._seen = None
    with pytest.raises(Tampered, match="serve --restoration") as lost, wiring.service(settings):
        pass
    assert lost.value.code == "log-truncated"
    with wiring.service(settings, restoration=True) as context:
        described = restoration.describe(context, None)
        assert (described.waits, described.signer_ahead, described.kept_size) == (True, False, size)
        assert [loss.size for loss in described.losses] == [last.after.size]
        assert append(context, Heartbeat()).entry.index == size


@pytest.mark.thorough
def test_a_state_snapshot_and_a_signer_that_are_ahead_wait_for_one_restoration(
    operations: Operations, tmp_path: Path
) -> None:
    """The database alone was put back. The home has the snapshot of the lost log."""
    home = tmp_path / "home"
    with serving(operations, tmp_path / "s") as path:
        made = load_settings(home, {"APPLIANCE_SIGNER_SOCKET": str(path)})
        init(made)
        kept = beat(made, 1)
        database = made.database_file
        assert database is not None
        older = database.read_bytes()
        with wiring.service(made) as context:
            append(context, Heartbeat())
            integrity.seal(context)
            append(context, Heartbeat())
            lost = context.ledger.state.size
        database.write_bytes(older)
        with pytest.raises(Tampered) as refused, wiring.service(made):
            pass
        assert refused.value.code == "batch-missing" and made.snapshot.exists()
        with wiring.service(made, restoration=True) as context:
            described = restoration.describe(context, None)
            assert (described.waits, described.signer_ahead, described.kept_size) == (True, True, kept)
            assert [loss.size for loss in described.losses] == [lost - 1, lost]
        assert not made.snapshot.exists() and (home / "state.snapshot-1.lost").exists()


# --- all of it --------------------------------------------------------------------------------------------------------


class Host:
    """The processes of the appliance and of its signer, and the people who type commands beside them."""

    def __init__(self, folder: Path, stack: ExitStack, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.stack, self.home, self.capsys = folder, stack, folder / "home", capsys
        self.trust, self.signer = folder / "trust.json", folder / "signer"
        self.passphrase = folder / "passphrase"
        self.passphrase.write_bytes(PASSPHRASE + b"\n")
        self.passphrase.chmod(0o600)
        self.signer_options = ("--folder", self.signer, "--passphrase-file", self.passphrase)
        self.variables = {"APPLIANCE_SIGNER_SOCKET": str(folder / "s"), "APPLIANCE_LISTEN": "off"}
        for name, key in KEYS.items():
            path = folder / f"{name}.key"
            path.write_bytes(encode_key_file(key.private, PASSPHRASE, salt=os.urandom(32), nonce=os.urandom(12)))
            path.chmod(0o600)

    def type(self, *words: object, code: int = 0) -> str:
        """Type a command; return what it printed."""
        self.capsys.readouterr()
        ended = main.run([str(word) for word in words])
        told = self.capsys.readouterr()
        self.printed = told.out
        assert ended == code, told.out + told.err
        return told.out + told.err

    def show(self) -> dict[str, Any]:
        self.type("restoration", "show", "--json", "--trust", self.trust)
        found: dict[str, Any] = json.loads(self.printed)
        return found

    def wait_for(self, size: int) -> dict[str, Any]:
        """Return what is shown once the log has this many entries. Meanwhile the service changes its sockets."""
        deadline = time.monotonic() + START_S
        while True:
            self.capsys.readouterr()
            ended = main.run(["restoration", "show", "--json", "--trust", str(self.trust)])
            told = self.capsys.readouterr()
            if ended == 0:
                found: dict[str, Any] = json.loads(told.out)
                if found["size"] >= size:
                    return found
            assert time.monotonic() < deadline, told.out + told.err
            time.sleep(0.1)

    def sign(self, name: str, *words: object, code: int = 0) -> str:
        given = ("--as", name, "--key", self.folder / f"{name}.key", "--passphrase-file", self.passphrase)
        return self.type(*words, *given, "--trust", self.trust, code=code)

    def signs(self, *words: object, code: int = 0) -> str:
        """Type a command of the signer."""
        return self.type("signer", *words, *self.signer_options, code=code)

    def start(self, *words: object, ready: Path) -> subprocess.Popen[bytes]:
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "appliance", *map(str, words)]
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.stack.callback(self.stop, process)
        wait_for(lambda: ready.exists() or process.poll() is not None, f"{ready}")
        assert ready.exists(), process.communicate()
        return process

    @staticmethod
    def stop(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=START_S)

    def start_signer(self) -> subprocess.Popen[bytes]:
        path, user = self.folder / "s", pwd.getpwuid(os.getuid()).pw_name
        return self.start("signer", "serve", "--socket", path, "--user", user, *self.signer_options, ready=path)


@pytest.mark.outside
@pytest.mark.timeout(600)
# httpx leaves the socket of a refused connection open, and the waiting service changes its sockets.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_administrators_restore_a_backup_of_an_appliance_with_a_signer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        host = Host(tmp_path, stack, capsys)
        for name, value in {**host.variables, "HOME": str(tmp_path), "APPLIANCE_HOME": str(host.home)}.items():
            monkeypatch.setenv(name, value)
        host.signs("init")
        signer = host.start_signer()
        settings = load_settings(host.home, host.variables)
        trust = init(settings)
        host.trust.write_bytes(encode_trust(trust))
        kept = beat(settings, 2)
        made = BackedUp(host.home, BackupFolder(tmp_path / "backups"), host.variables)
        backup = made.make().backup
        lost = beat(settings, 3)
        keys = made.known_keys()
        host.home.rename(tmp_path / "broken")
        made.known_keys = lambda: keys  # type: ignore[method-assign]
        made.restore(backup, host.home, trust=trust)
        restoring.confirm(host.home)
        assert "[batch-missing]" in host.type("serve", code=6)

        service = host.start("serve", "--restoration", ready=settings.socket)
        shown = host.show()
        assert (shown["size"], shown["lost"], shown["signer_ahead"]) == (kept, [lost], True)
        assert "--output FILE" in host.sign("anna", "restoration", "order", "--yes", code=5)
        first, both = tmp_path / "anna.json", tmp_path / "step-back.json"
        assert f"Given up: the entries {kept} to {lost - 1}" in host.sign(
            "anna", "restoration", "order", "--yes", "--output", first
        )
        assert "[awaits-step-back]" in host.type("restoration", "submit", first, "--trust", host.trust, code=7)
        host.sign("ben", "restoration", "countersign", first, "--yes", "--output", both)
        assert host.show()["size"] == kept

        trusted = [word for key in KEYS.values() for word in ("--administrator-key", key.keyid)]
        assert "stop that signer first" in host.signs("step-back", both, *trusted, code=5)
        host.stop(signer)
        assert "signatures of 2 administrators" in host.signs("step-back", first, *trusted, code=6)
        assert "trusted administrator" in host.signs("step-back", both, *trusted[:2], code=6)
        assert "expected --administrator-key" in host.signs("step-back", both, code=2)
        assert f"the entries {kept} to {lost - 1}" in host.signs("step-back", both, *trusted)
        assert "stepped back already" in host.signs("step-back", both, *trusted, code=5)
        signer = host.start_signer()
        submitted = host.type("restoration", "submit", both, "--trust", host.trust)
        assert "the log is restored" in submitted
        shown = host.wait_for(kept + 3)  # the order, the restoration, and the start of the service
        assert [(one["kept_size"], one["lost_size"]) for one in shown["restorations"]] == [(kept, lost)]
        assert not shown["waits"] and not shown["signer_ahead"]

        assert "got one accepted as entry" in host.type("restoration", "submit", both, "--trust", host.trust, code=5)
        assert f"{lost} → {kept} entries" in host.signs("show")
        assert "verified" in host.sign("anna", "ledger", "verify")
        host.stop(service)
        host.stop(signer)
        # The signer went on, so the same orders step nobody back again.
        assert "[restoration-refused]" in host.signs("step-back", both, "--administrators", host.trust, code=6)
