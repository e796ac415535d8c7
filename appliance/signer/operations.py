"""The operations of the signer. Each parses its input, and builds the bytes that it signs.

A checkpoint continues the last one that the signer signed: the signer computes the root from its own right edge of the
tree and the new leaf hashes. It stores the checkpoint before it returns the note. The same request again gets the same
note. Every other request is refused, so a service that was taken over gets one view of its log signed.

The service cannot request a step back. The person at the signer's host gives the orders of two administrators.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from appliance.domain.releases.adapters import SLSA_PROVENANCE
from appliance.errors import BadInput, Conflict, Denied, NotFound, Tampered, Unavailable
from appliance.formats.core.fields import show
from appliance.formats.core.merkle import Frontier
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.backup import encode_backup, parse_backup_statement, sign_backup
from appliance.formats.log.checkpoint import (
    Checkpoint,
    claimed_size,
    open_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
)
from appliance.formats.log.note import parse_note, parse_vkey, sign_note
from appliance.formats.log.restoration import VerifiedStepBack, parse_step_back, verify_step_back
from appliance.formats.log.seal import encode_seal, parse_seal
from appliance.formats.signatures.bundle import PREDICATE_TYPE as MODEL_SIGNATURE
from appliance.formats.signatures.dsse import encode_statement, parse_statement, sign_envelope
from appliance.formats.signatures.keys import Signer
from appliance.signer.record import SignedCheckpoint, SignerRecord
from appliance.store.files.keyring import ADAPTER_KEY, POST_QUANTUM_ADAPTER_KEY, KeyStore
from appliance.store.ledger.keys import SignerAhead

MOST_LEAVES = 65_536
"""Most entries that one checkpoint adds."""
ADAPTER_STATEMENTS = frozenset({MODEL_SIGNATURE, SLSA_PROVENANCE})
"""Types of the statements that the adapters' key signs."""


class LogDescription(NamedTuple):
    """The log of a signer, the size and root of its last checkpoint, and its public keys."""

    origin: str
    size: int
    root: str
    log_keys: tuple[str, ...]
    adapter_key: str
    steps_back: tuple[tuple[int, int], ...]
    """The sizes from which and to which the signer has stepped back."""


def _read_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Operations:
    """The keys and the record of a signer. Calls are made one after another."""

    def __init__(self, keys: KeyStore, record: SignerRecord, clock: Callable[[], int] = _read_clock_ms) -> None:
        """Use these keys and this record. `clock` returns the milliseconds since 1970."""
        self._keys, self._record, self._clock = keys, record, clock
        self._lock = threading.Lock()
        self._seen: SignedCheckpoint | None = None
        """The newest record that this process has written or verified."""
        self._log_signers: dict[str, Signer] = {}
        self._adapter_signers: dict[str, Signer] = {}

    def close(self) -> None:
        """Close the record; it is opened again on the next use."""
        self._record.close()

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def sign_checkpoint(
        self, origin: str, before: int, leaves: Sequence[bytes], root: bytes, vkeys: Sequence[str]
    ) -> bytes:
        """Sign the checkpoint of the log after `before` entries and these leaf hashes, and return the note.

        Raises:
            SignerAhead: the last signed checkpoint is not that of `before` entries.
            Conflict: these leaves give another root than `root`.
            Denied: the signer has another log.
        """
        if not 0 < len(leaves) <= MOST_LEAVES:
            raise BadInput(f"signer, leaves: expected 1 to {MOST_LEAVES}, got {len(leaves)}")
        with self._lock:
            last = self._find(origin)
            edge = Frontier.EMPTY if last is None else last.after
            if before == edge.size:
                after = _extend(edge, leaves, root)
                signers = [self._find_log_signer(origin, vkey) for vkey in vkeys]
                if not signers:
                    raise BadInput("signer, keys: expected at least one, got none")
                note = sign_checkpoint(Checkpoint(origin, after.size, root), *signers)
                signed_ms = self._clock() if last is None else max(self._clock(), last.signed_ms)
                signed = SignedCheckpoint(origin, edge, after, note, signed_ms)
                if self._record.swap(last, signed):
                    self._seen = signed
                    return note
                last = self._find(origin)  # the signer of another host was first
            if last is not None and before == last.before.size and last.before.extend(leaves)[0] == last.after:
                return last.note
        got = 0 if last is None else last.after.size
        raise SignerAhead(
            f"signer: expected a checkpoint that continues the last one, of {got} entries, got one after {before}"
        )

    def find_log(self) -> str | None:
        """Return the origin of the signer's log, or None before its first checkpoint."""
        with self._lock:
            last = self._read()
            return None if last is None else last.origin

    def last_signed(self, origin: str) -> SignedCheckpoint | None:
        """Return the last checkpoint that was signed."""
        with self._lock:
            return self._find(origin)

    def _find(self, origin: str) -> SignedCheckpoint | None:
        last = self._read()
        if last is not None and last.origin != origin:
            raise Denied(f"signer: expected its own log {last.origin}, got {show(origin)}", code="another-log")
        return last

    def _read(self) -> SignedCheckpoint | None:
        """Return the record, which other accounts may be able to change if it is on PostgreSQL.

        Raises:
            Tampered: it has fewer entries than this process saw before, or a checkpoint that none of its keys signed.
        """
        last, seen = self._record.read(), self._seen
        if last == seen:
            return last
        if seen is not None and (last is None or last.after.size <= seen.after.size):
            got = "none" if last is None else f"one of {last.after.size}"
            raise Tampered(
                f"signer, record: expected a checkpoint of more than {seen.after.size} entries, which was signed, or "
                f"this one, got {got}: the record was put back; start this signer again if that was a step back, else "
                "stop the signers and find out who did it"
            )
        if last is not None and not self._has_signed(last):
            raise Tampered(
                "signer, record: expected a checkpoint that one of the signer's keys has signed, got another"
            )
        self._seen = last
        return last

    def _has_signed(self, last: SignedCheckpoint) -> bool:
        expected = _checkpoint_of(last)
        if _is_signed(last.note, expected, self._log_signers):
            return True
        self._log_signers = self._keys.log_signers(last.origin)  # a rotation may have made a key since
        return _is_signed(last.note, expected, self._log_signers)

    def step_back(self, data: bytes, administrators: Collection[str], *, signatures: int = 2) -> VerifiedStepBack:
        """Continue from the checkpoint that the orders in a step-back file keep, and keep the last one as evidence.

        The last checkpoint must be one that the orders give up, and signed before they were issued. So the same file is
        refused after the step.

        Raises:
            Tampered: the file proves no step, or another one than from the last checkpoint.
            Conflict: the signer has signed no checkpoint, has stepped back already, or signers of other hosts run.
            Denied: an order has expired.
            Unavailable: the order or the last signature is dated after the signer's clock.
        """
        file = parse_step_back(data)
        with self._lock:
            last = self._read()
            if last is None:
                raise Conflict("signer: expected a checkpoint to step back from, got none yet")
            if last.note == file.kept:
                raise Conflict(
                    "signer: expected a checkpoint that the file gives up, got the one that it keeps: the signer has "
                    "stepped back already; start it, then on the service's host: appliance restoration submit FILE"
                )
            vkeys = list(self._keys.log_signers(last.origin))
            found = verify_step_back(file, vkeys, administrators, signatures=signatures)
            now_ms = self._clock()
            if now_ms < last.signed_ms:
                # No order is later than that signature, unless its own clock is ahead, too.
                raise Unavailable(
                    f"signer, clock: expected a time after the signer's last signature, of {_show_ms(last.signed_ms)}, "
                    f"got {_show_ms(now_ms)}; set this machine's clock if it is behind; if it was ahead at that "
                    "signature, wait until that time and have the administrators sign again, or begin a new record: "
                    "docs/operations/signer.md"
                )
            found.step.check(_checkpoint_of(last), last.signed_ms / 1000)
            if now_ms < found.step.ordered_s * 1000:
                # It would give up what is signed until then, too.
                raise Unavailable(
                    f"signer, clock: expected a time after the order of {found.step.ordered_at}, got an earlier one; "
                    "set this machine's clock if it is behind, else ask the administrators for an order with the right "
                    "time"
                )
            if now_ms >= found.expires_ms:
                raise Denied(
                    "signer: expected valid orders, got one that has expired; both administrators have to sign again",
                    code="expired",
                )
            new = SignedCheckpoint(last.origin, found.edge, found.edge, file.kept, now_ms)
            if not self._record.step_back(last, new, data):
                raise Conflict("signer: expected the checkpoint that was read, got one that was signed meanwhile")
            self._seen = new
        return found

    def describe(self) -> LogDescription:
        """Return the log, the last checkpoint and the public keys, for a person."""
        with self._lock:
            last = self._read()
            origin, size, root = (
                ("", 0, "") if last is None else (last.origin, last.after.size, last.after.root().hex())
            )
            log_keys = tuple(self._keys.log_signers(origin)) if origin else ()
            steps = tuple((claimed_size(one.note), one.kept_size) for one in self._record.list_given_up())
            return LogDescription(origin, size, root, log_keys, self._open_adapter_signer().keyid, steps)

    # --- other signatures ---------------------------------------------------------------------------------------------

    def sign_snapshot(self, text: str) -> bytes:
        """Sign the seal of a state snapshot, and return the note.

        Raises:
            Conflict: the signer has signed no checkpoint of that size, or one with another root.
        """
        seal = parse_seal(text)
        with self._lock:
            last = self._find(seal.origin)
            self._check_signed(last, seal.size, seal.root)
            return sign_note(encode_seal(seal), seal.origin, self._find_log_signer(seal.origin, seal.vkey))

    def sign_backup(self, payload: bytes) -> bytes:
        """Sign the manifest of a backup, and return its file.

        Raises:
            Conflict: the backup is of a log that the signer has not signed.
        """
        backup = parse_backup_statement(payload)
        if encode_backup(backup) != payload:
            raise BadInput("signer, backup: expected a manifest as it is written, got another encoding")
        checkpoint = parse_checkpoint(parse_note(backup.checkpoint.encode()).text)
        with self._lock:
            last = self._find(checkpoint.origin)
            self._check_signed(last, checkpoint.size, checkpoint.root)
            return sign_backup(backup, self._find_log_signer(checkpoint.origin, backup.log_key))

    @staticmethod
    def _check_signed(last: SignedCheckpoint | None, size: int, root: bytes) -> None:
        """Check that the signer has signed at least `size` entries, and this root if it has signed exactly these."""
        if last is None or size > last.after.size or (size == last.after.size and root != last.after.root()):
            got = 0 if last is None else last.after.size
            raise Conflict(f"signer: expected a part of the log that it has signed, {got} entries, got {size} entries")

    def sign_adapter(self, payload: bytes, *, post_quantum: bool = False) -> bytes:
        """Sign a statement about an adapter, and return the signature of its envelope.

        Raises:
            BadInput: the payload is another statement.
        """
        statement = parse_statement(payload)
        if statement.predicate_type not in ADAPTER_STATEMENTS:
            expected = " or ".join(sorted(ADAPTER_STATEMENTS))
            raise BadInput(f"signer, statement: expected {expected}, got {show(statement.predicate_type)}")
        with self._lock:
            signer = self._open_adapter_signer(post_quantum=post_quantum)
            return sign_envelope(encode_statement(statement), signer).signature.sig

    # --- keys ---------------------------------------------------------------------------------------------------------

    def list_log_keys(self, origin: str) -> list[str]:
        """Return the vkeys of all log keys under the name of the log, oldest first."""
        with self._lock:
            self._find(origin)
            self._log_signers = self._keys.log_signers(origin)
            return list(self._log_signers)

    def next_log_key(self, origin: str, used: Collection[str], *, post_quantum: bool = False) -> str:
        """Return the vkey to which the log can rotate: an unused key of the kind that exists, or a new one."""
        with self._lock:
            self._find(origin)
            return self._keys.next_log_key(origin, used, post_quantum=post_quantum)

    def adapter_key(self, *, post_quantum: bool = False) -> bytes:
        """Return the adapters' public key, or the second one with ML-DSA-65 (SubjectPublicKeyInfo, DER)."""
        with self._lock:
            return self._open_adapter_signer(post_quantum=post_quantum).spki

    def create_post_quantum_adapter_key(self) -> bytes:
        """Return the adapters' public key with ML-DSA-65; create the key if there is none."""
        with self._lock:
            return self._keys.ensure_key(POST_QUANTUM_ADAPTER_KEY).spki

    def _open_adapter_signer(self, *, post_quantum: bool = False) -> Signer:
        uri = POST_QUANTUM_ADAPTER_KEY if post_quantum else ADAPTER_KEY
        if uri not in self._adapter_signers:
            self._adapter_signers[uri] = self._keys.open_signer(uri)
        return self._adapter_signers[uri]

    def _find_log_signer(self, origin: str, vkey: str) -> Signer:
        if vkey not in self._log_signers:
            self._log_signers = self._keys.log_signers(origin)
        if vkey not in self._log_signers or parse_vkey(vkey).name != origin:
            raise NotFound(f"signer, log key: expected one that it has, got {show(vkey)}")
        return self._log_signers[vkey]


def _show_ms(since_1970: int) -> str:
    return encode_time(datetime.fromtimestamp(since_1970 / 1000, UTC))


def _checkpoint_of(signed: SignedCheckpoint) -> Checkpoint:
    return Checkpoint(signed.origin, signed.after.size, signed.after.root())


def _is_signed(note: bytes, expected: Checkpoint, vkeys: Iterable[str]) -> bool:
    for vkey in vkeys:
        with suppress(Tampered):
            return open_checkpoint(note, vkey) == expected
    return False


def _extend(edge: Frontier, leaves: Sequence[bytes], root: bytes) -> Frontier:
    """Return the right edge after these leaves, which must have this root."""
    after = edge.extend(leaves)[0]
    if after.root() != root:
        raise Conflict(
            f"signer: expected the root {after.root().hex()} of {after.size} entries, got {root.hex()}: the entries "
            "before are not those that were signed",
        )
    return after
