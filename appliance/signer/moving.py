"""Moves of keys: from a service into a signer, and from a signer's files into a token.

A move runs while the service and the signer are stopped. `adopt` reads the last checkpoint and the right edge of its
tree from the log's database, and verifies both. `move_to_token` takes the keys of a signer from its files into a token.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from appliance.errors import BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.merkle import Frontier
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from appliance.formats.log.note import parse_note, vkey_of
from appliance.formats.signatures.keys import verify_signature
from appliance.formats.signatures.ml_dsa import MlDsaSigner
from appliance.signer.opening import lock_signer, open_keys, open_record
from appliance.signer.record import SignedCheckpoint
from appliance.store.database.engine import connect_reader, database_errors, using_engine
from appliance.store.files import disk
from appliance.store.files.keyring import ADAPTER_KEY, LOG_KEY, HeldSigner, Keyring, KeyStore
from appliance.store.files.lock import lock_folder
from appliance.store.ledger import rows


def read_last(url: str) -> tuple[bytes, Frontier]:
    """Return the signed checkpoint of a log's database, unverified, and the right edge of its tree.

    Raises:
        NotFound: the log is empty.
        Tampered: the stored tree has another root than the checkpoint.
    """
    with using_engine(url, read_only=True) as engine, database_errors("log"), connect_reader(engine) as connection:
        note = rows.read_checkpoint(connection)
        if note is None:
            raise NotFound("log: expected a signed checkpoint, got an empty log")
        found = parse_checkpoint(parse_note(note).text)
        levels = [level for level in reversed(range(found.size.bit_length())) if found.size >> level & 1]
        places = [(level, (found.size >> level) - 1) for level in levels]
        nodes = rows.read_nodes(connection, places)
    if nodes.keys() != set(places):
        raise Tampered(f"log: expected the tree of {found.size} entries, got one without some of its nodes")
    edge = Frontier(found.size, tuple(nodes[place] for place in places))
    if edge.root() != found.root:
        raise Tampered(f"log: expected a tree of the root {found.root.hex()}, got {edge.root().hex()}")
    return note, edge


def adopt(
    home: Path,
    keys: Path,
    url: str,
    lock: Path,
    folder: Path,
    passphrase: bytes | None,
    database: str | None,
    token: str | None = None,
) -> SignedCheckpoint:
    """Move the signing keys of a home, whose log is at `url`, into a signer, and continue at the log's checkpoint.

    The signer's keys are files, or objects of the token that the URI names. An interrupted call continues if it is
    repeated. Run as root, it reads and writes as the owners of both folders.

    Raises:
        BadInput: a token is to have a key of ML-DSA-65.
        Conflict: the service is running, or the signer has other keys or another checkpoint.
        Tampered: none of the keys has signed the checkpoint.
        Unavailable: the token refuses the keys.
    """
    held = Keyring(keys)
    with _acting_as(home), lock_folder(lock):
        signers = _open_files(held, token)
        note, edge = read_last(url)
        with _acting_as(folder):
            disk.make_folder(folder)
            own = open_keys(folder, passphrase, token)
            _add_keys(own, signers)
            checkpoint = _open_own(note, own)
            new = SignedCheckpoint(checkpoint.origin, edge, edge, note, time.time_ns() // 1_000_000)
            keyid = own.open_signer(LOG_KEY).keyid
            with closing(open_record(folder, database)) as record:
                record.create()
                last = record.read()
                is_ours = record.read_log_key() in (None, keyid) and (
                    record.swap(None, new) if last is None else last.after == edge
                )
                # The key id comes last: the signer opens no record without it.
                if not is_ours or not record.add_log_key(keyid):
                    raise Conflict("signer, record: expected none yet, or that of this log, got another one")
        with _acting_as(home):
            for uri in signers:
                held.destroy_key(uri)
    return new


def move_to_token(folder: Path, passphrase: bytes | None, token: str, pin: bytes) -> list[str]:
    """Move the keys of a signer from its files into the token that the URI names, and return their URIs.

    The files are removed after the token has signed with each key. An interrupted call continues if it is repeated.

    Raises:
        BadInput: a file has a key of ML-DSA-65, or the passphrase is another one.
        Conflict: the signer is running, or the token has another key of the same name.
        NotFound: a signer's key is neither in a file nor in the token.
        Unavailable: the token refuses the keys.
    """
    with _acting_as(folder), lock_signer(folder):
        files = Keyring(folder / "keys", passphrase)
        signers = _open_files(files, token)
        own = open_keys(folder, pin, token)
        _add_keys(own, signers)
        for uri in (LOG_KEY, ADAPTER_KEY):
            own.open_signer(uri)
        for uri in signers:
            files.destroy_key(uri)
    return list(signers)


def _open_files(keyring: Keyring, token: str | None) -> dict[str, HeldSigner]:
    """Return the signers of the key files that are to move, by URI."""
    signers = {uri: keyring.open_signer(uri) for uri in keyring.list_keys()}
    found = [uri for uri, signer in signers.items() if isinstance(signer, MlDsaSigner)]
    if token is not None and found:
        raise BadInput(
            f"signer, token: expected keys of Ed25519 and P-256, got ML-DSA-65 ({', '.join(found)}), which can only be "
            "in files; keep all keys of this signer in files (signer adopt without --pkcs11)"
        )
    return signers


def _add_keys(own: KeyStore, signers: dict[str, HeldSigner]) -> None:
    """Add keys to a store, and verify a signature that the store makes with each."""
    for uri, signer in signers.items():
        own.add_key(uri, signer)
    for uri, signer in signers.items():
        verify_signature(signer.spki, b"appliance", own.open_signer(uri).sign(b"appliance"))


def _open_own(note: bytes, keyring: KeyStore) -> Checkpoint:
    """Return the checkpoint of a note that one of the signer's keys has signed."""
    origin = parse_checkpoint(parse_note(note).text).origin
    for signer in keyring.log_signers(origin).values():
        with suppress(Tampered):
            return open_checkpoint(note, vkey_of(origin, signer))
    raise Tampered("log checkpoint: expected a signature by one of the signer's keys, got no valid one")


@contextmanager
def _acting_as(folder: Path) -> Iterator[None]:
    """Act as the owner of a folder within the block, with the folder's group and the owner's groups, if root runs this.

    Of a missing folder, use the one above it.
    """
    if os.getuid() != 0:
        yield
        return
    while not folder.exists():
        folder = folder.parent
    owner, before = folder.stat(), (os.geteuid(), os.getegid(), os.getgroups())
    _act_as(owner.st_uid, owner.st_gid, _list_groups(owner.st_uid, owner.st_gid))
    try:
        yield
    finally:
        _act_as(*before)


def _list_groups(user: int, group: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(user).pw_name, group)
    except KeyError:
        return []


def _act_as(user: int, group: int, groups: list[int]) -> None:
    os.seteuid(0)
    os.setgroups(groups)
    os.setegid(group)
    os.seteuid(user)
