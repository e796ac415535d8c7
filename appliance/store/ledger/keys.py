"""The keys with which the service signs: in this process, or in the signer (`appliance.signer`).

Ledger, backups and runs use them through one interface, whose operations name what is signed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from appliance.errors import Conflict, NotFound
from appliance.formats.core.merkle import Frontier
from appliance.formats.log.backup import Backup, sign_backup
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.log.note import name_key, parse_vkey, sign_note, vkey_of
from appliance.formats.log.seal import LogSeal, encode_seal
from appliance.formats.signatures.keys import Signer
from appliance.store.files.keyring import ADAPTER_KEY, POST_QUANTUM_ADAPTER_KEY, Keyring

FindSigner = Callable[[str], Signer]
"""Function that returns the signer of one of the log's vkeys; it raises NotFound if the key is not held here."""


class LastSigned(NamedTuple):
    """The last checkpoint that the signer has signed."""

    size: int
    root: bytes
    note: bytes


class LogKeys(Protocol):
    """The log keys as the ledger uses them."""

    def has_log_key(self, vkey: str) -> bool:
        """Return True if the key signs for this service."""
        ...

    def sign_checkpoint(
        self, origin: str, before: Frontier, leaves: Sequence[bytes], root: bytes, vkeys: Sequence[str]
    ) -> bytes:
        """Sign the checkpoint of the log that adds these leaf hashes with each key, and return the note."""
        ...

    def sign_snapshot(self, seal: LogSeal) -> bytes:
        """Sign the seal of a snapshot with the key that it names, and return the note."""
        ...


class SignerAhead(Conflict):
    """The signer has signed a checkpoint beyond the one that the request continues, or another one."""

    code = "signer-ahead"


class ServiceKeys(LogKeys, Protocol):
    """All keys with which the service signs."""

    origin: str

    @property
    def place(self) -> str:
        """Return the place of the keys, for messages."""
        ...

    def list_log_keys(self) -> list[str]:
        """Return the vkeys of all log keys, oldest first, including those to rotate to."""
        ...

    def next_log_key(self, used: Collection[str], *, post_quantum: bool = False) -> str:
        """Return the vkey to which the log can rotate: an unused key of the kind that exists, or a new one."""
        ...

    def sign_backup(self, backup: Backup) -> bytes:
        """Sign the manifest of a backup with the log key that it names, and return its file."""
        ...

    def adapter_signer(self, *, post_quantum: bool = False) -> Signer:
        """Return the signer of adapters, or the second one with ML-DSA-65. NotFound is raised if there is none."""
        ...

    def post_quantum_adapter_key(self) -> Signer:
        """Return the second signer of adapters; create its key if there is none."""
        ...

    def close(self) -> None:
        """Close connections; they are opened again on the next use."""
        ...


class HeldLogKeys:
    """Log keys in this process. Its methods are those of `LogKeys`."""

    def __init__(self, find: FindSigner) -> None:
        self._find = find

    def has_log_key(self, vkey: str) -> bool:
        try:
            return vkey_of(parse_vkey(vkey).name, self._find(vkey)) == vkey
        except NotFound:
            return False

    def sign_checkpoint(
        self, origin: str, before: Frontier, leaves: Sequence[bytes], root: bytes, vkeys: Sequence[str]
    ) -> bytes:
        return sign_checkpoint(Checkpoint(origin, before.size + len(leaves), root), *map(self._find, vkeys))

    def sign_snapshot(self, seal: LogSeal) -> bytes:
        return sign_note(encode_seal(seal), seal.origin, self._find(seal.vkey))


class KeyringKeys(HeldLogKeys):
    """The keys in the keyring of the service's home. Its methods are those of `ServiceKeys`."""

    def __init__(self, keyring: Keyring, origin: str) -> None:
        super().__init__(self._find_signer)
        self._keyring, self.origin = keyring, origin
        self._signers: dict[str, Signer] = {}

    @property
    def place(self) -> str:
        return str(self._keyring.folder)

    def _find_signer(self, vkey: str) -> Signer:
        if vkey not in self._signers:
            # A rotation may have made the key since.
            self._signers = self._keyring.log_signers(self.origin)
        if vkey not in self._signers:
            raise NotFound(f"log key {name_key(vkey)}: expected it in {self._keyring.folder}, got none")
        return self._signers[vkey]

    def list_log_keys(self) -> list[str]:
        return list(self._keyring.log_signers(self.origin))

    def next_log_key(self, used: Collection[str], *, post_quantum: bool = False) -> str:
        return self._keyring.next_log_key(self.origin, used, post_quantum=post_quantum)

    def sign_backup(self, backup: Backup) -> bytes:
        return sign_backup(backup, self._find_signer(backup.log_key))

    def adapter_signer(self, *, post_quantum: bool = False) -> Signer:
        return self._keyring.open_signer(POST_QUANTUM_ADAPTER_KEY if post_quantum else ADAPTER_KEY)

    def post_quantum_adapter_key(self) -> Signer:
        return self._keyring.ensure_key(POST_QUANTUM_ADAPTER_KEY)

    def close(self) -> None:
        """Do nothing: the keys are in memory."""
