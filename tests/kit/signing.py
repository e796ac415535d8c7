"""A signer for tests: its operations in this process, or behind its socket in a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from appliance.formats.core.merkle import Frontier
from appliance.formats.log.note import vkey_of
from appliance.formats.log.seal import LogSeal, encode_seal
from appliance.signer import opening
from appliance.signer.client import SignerKeys
from appliance.signer.operations import Operations
from appliance.signer.server import Server
from appliance.store.database.engine import open_engine
from appliance.store.files.keyring import LOG_KEY, Keyring
from appliance.store.ledger.keys import LastSigned
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.pending import open_pending
from tests.kit.small_log import ORIGIN, Clock, SmallLog


def make_signer(folder: Path, database: str | None = None) -> Operations:
    """Make a signer whose files have no passphrase, since each decryption would cost half a second."""
    return opening.make_signer(folder, None, database)


class Direct:
    """The part of a signer that the ledger needs, without a socket."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def has_log_key(self, vkey: str) -> bool:
        return vkey in self.operations.list_log_keys(ORIGIN)

    def sign_checkpoint(
        self, origin: str, before: Frontier, leaves: Sequence[bytes], root: bytes, vkeys: Sequence[str]
    ) -> bytes:
        return self.operations.sign_checkpoint(origin, before.size, leaves, root, vkeys)

    def sign_snapshot(self, seal: LogSeal) -> bytes:
        return self.operations.sign_snapshot(encode_seal(seal))

    def last_signed(self, origin: str) -> LastSigned | None:
        last = self.operations.last_signed(origin)
        return None if last is None else LastSigned(last.after.size, last.after.root(), last.note)


def small_site(folder: Path) -> SmallLog:
    """Return the small site, whose log key is the signer's."""
    site = SmallLog()
    signer = Keyring(folder / "keys").open_signer(LOG_KEY)
    site.log_key = vkey_of(ORIGIN, signer)
    return site


def signed_ledger(site: SmallLog, url: str, home: Path, keys: Direct | SignerKeys) -> Ledger:
    engine = open_engine(url)
    pending = open_pending(engine, home, keys)
    return Ledger(engine, origin=ORIGIN, log_key=site.log_key, keys=keys, clock=Clock(), pending=pending)


@contextmanager
def serving(operations: Operations, path: Path, uids: frozenset[int] | None = None) -> Iterator[Path]:
    """Serve the signer's socket while the block runs."""
    server = Server(operations, path, frozenset({os.getuid()}) if uids is None else uids)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    with closing(server):
        yield path
    thread.join(60)
