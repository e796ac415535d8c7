"""Several hosts on PostgreSQL: their signers share a record, and their services commit each other's signed batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Conflict, Unavailable
from appliance.formats.core.merkle import Frontier, hash_leaf
from appliance.signer.operations import Operations
from appliance.signer.record import SignedCheckpoint, SignerRecord
from appliance.store.database.engine import migrate, open_engine
from appliance.store.files.keyring import Keyring
from appliance.store.ledger.keys import SignerAhead
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.writer import Writer
from scripts.kit.postgres import Server, postgres
from tests.kit.signing import Direct, make_signer, signed_ledger, small_site
from tests.kit.small_log import ORIGIN, heartbeat

__all__ = ["postgres"]


class Hosts:
    """The database of a log, that of its signers' record, and the keys that the signers have."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.url, self.record = (server.url(server.create_database()) for _ in range(2))
        engine = open_engine(self.url)
        migrate(engine)
        engine.dispose()
        make_signer(folder, self.record).close()
        self.signers: list[Operations] = []
        self.folder, self.site = folder, small_site(folder)

    def signer(self) -> Operations:
        """Return a signer of another host, with the same keys."""
        self.signers.append(Operations(Keyring(self.folder / "keys"), SignerRecord(self.record)))
        return self.signers[-1]

    def ledger(self) -> Ledger:
        return signed_ledger(self.site, self.url, self.folder, Direct(self.signer()))

    def pending(self) -> int:
        engine = open_engine(self.url)
        with engine.connect() as connection:
            count: int = connection.exec_driver_sql("SELECT count(*) FROM pending_batches").scalar_one()
        engine.dispose()
        return count


@pytest.fixture
def hosts(postgres: Server, tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(postgres, tmp_path / "signer")
    yield made
    for signer in made.signers:
        signer.close()


@pytest.mark.thorough
def test_signers_of_two_hosts_that_race_sign_one_view(hosts: Hosts) -> None:
    first, second = hosts.signer(), hosts.signer()
    key = first.list_log_keys(ORIGIN)[0]
    edge = Frontier.EMPTY
    for number in range(8):
        leaves = [hash_leaf(b"%d of %d" % (host, number)) for host in range(2)]
        notes: dict[int, bytes] = {}
        barrier = threading.Barrier(2)

        def sign(
            host: int, signer: Operations, leaf: bytes, edge: Frontier = edge, notes: dict[int, bytes] = notes,
            barrier: threading.Barrier = barrier,
        ) -> None:  # fmt: skip
            root = edge.extend([leaf])[0].root()
            barrier.wait()
            with suppress(SignerAhead):
                notes[host] = signer.sign_checkpoint(ORIGIN, edge.size, [leaf], root, [key])

        threads = [
            threading.Thread(target=sign, args=(host, signer, leaves[host]))
            for host, signer in enumerate((first, second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(notes) == 1, "one of them was first"
        (host,) = notes
        edge = edge.extend([leaves[host]])[0]
    last = first.last_signed(ORIGIN)
    assert last is not None and last.after == edge


def test_a_step_back_waits_until_the_signers_of_all_hosts_are_stopped(hosts: Hosts) -> None:
    first, second = hosts.signer(), hosts.signer()
    key = first.list_log_keys(ORIGIN)[0]
    leaves = [hash_leaf(b"%d" % number) for number in range(3)]
    kept = Frontier.EMPTY.extend(leaves[:1])[0]
    note = first.sign_checkpoint(ORIGIN, 0, leaves[:1], kept.root(), [key])
    first.sign_checkpoint(ORIGIN, 1, leaves[1:], Frontier.EMPTY.extend(leaves)[0].root(), [key])
    last = second.last_signed(ORIGIN)
    assert last is not None
    first.close()
    record = SignerRecord(hosts.record)
    with closing(record):
        back = SignedCheckpoint(ORIGIN, kept, kept, note, last.signed_ms)
        with pytest.raises(Conflict, match="expected the signers of all hosts to be stopped, got connections"):
            record.step_back(last, back, b"orders")
        assert record.read() == last and record.list_given_up() == []
        second.close()
        deadline = time.monotonic() + 60
        while True:  # the server ends the session a moment after the connection was closed
            with suppress(Conflict):
                assert record.step_back(last, back, b"orders")
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert record.read() == back and [one.kept_size for one in record.list_given_up()] == [1]


@pytest.mark.thorough
def test_another_host_commits_the_batch_of_one_that_died_after_its_signature(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(hosts.ledger()) as first, closing(hosts.ledger()) as second:
        for one in (first, second):
            one.notifies_others = True
        first.append(hosts.site.first_draft())
        second.load()

        def die(*_: Any) -> None:
            raise OSError("the host is gone")

        with monkeypatch.context() as patch:
            patch.setattr(Writer, "commit", die)
            with pytest.raises(Unavailable):
                first.append(heartbeat())
        assert hosts.pending() == 1
        appended = second.append(heartbeat())
        assert appended.entry.index == 2, "the signed entry came first"
        assert second.loads == 1
        assert hosts.pending() == 0
        assert first.append(heartbeat()).entry.index == 3
        for one in (first, second):
            one.refresh()
        assert first.edge == second.edge


def test_a_batch_of_another_host_is_not_removed_by_a_commit(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other host has stored and signed it, and cannot commit yet."""
    with closing(hosts.ledger()) as first:
        first.append(hosts.site.first_draft())
        assert first.pending is not None
        first.pending.store(7, bytes(32), b"of another host")
        first.append(heartbeat())
        assert hosts.pending() == 1
