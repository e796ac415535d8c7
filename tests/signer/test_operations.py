"""The signer's operations: each size of one log is signed once, from bytes that the signer builds itself."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.domain.releases.adapters import SLSA_PROVENANCE
from appliance.errors import BadInput, Conflict, Denied, NotFound, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import Frontier, hash_leaf
from appliance.formats.log.checkpoint import open_checkpoint, parse_checkpoint
from appliance.formats.log.note import parse_note, verify_note
from appliance.formats.log.seal import LogSeal, encode_seal
from appliance.formats.signatures.dsse import Statement, encode_statement, pae
from appliance.formats.signatures.keys import Signer, verify_signature
from appliance.signer import opening
from appliance.signer.operations import MOST_LEAVES, Operations
from appliance.signer.record import FILE, SignedCheckpoint, SignerRecord
from appliance.store.database.engine import open_engine
from appliance.store.files.keyring import ADAPTER_KEY, LOG_KEY, KeyKind, Keyring
from appliance.store.ledger.keys import SignerAhead
from tests.kit.signing import make_signer
from tests.kit.small_log import ORIGIN

LEAVES = [hash_leaf(b"%d" % number) for number in range(8)]
CODE, BODY = digest_bytes(b"code"), digest_bytes(b"body")


@pytest.fixture
def signer(tmp_path: Path) -> Operations:
    return make_signer(tmp_path / "signer")


@pytest.fixture
def key(signer: Operations) -> str:
    return signer.list_log_keys(ORIGIN)[0]


def root_after(count: int) -> bytes:
    return Frontier.EMPTY.extend(LEAVES[:count])[0].root()


@pytest.fixture
def sign(signer: Operations, key: str) -> Callable[[int, int], bytes]:
    def sign_one(before: int, after: int) -> bytes:
        return signer.sign_checkpoint(ORIGIN, before, LEAVES[before:after], root_after(after), [key])

    return sign_one


def test_each_checkpoint_continues_the_last_one(sign: Callable[[int, int], bytes], key: str) -> None:
    for before, after in ((0, 1), (1, 5), (5, 8)):
        checkpoint = open_checkpoint(sign(before, after), key)
        assert (checkpoint.size, checkpoint.root) == (after, root_after(after))


def test_the_same_request_gets_the_same_note(sign: Callable[[int, int], bytes], tmp_path: Path, key: str) -> None:
    sign(0, 3)
    note = sign(3, 5)
    assert sign(3, 5) == note
    again = Operations(Keyring(tmp_path / "signer" / "keys"), SignerRecord.in_folder(tmp_path / "signer"))
    assert again.sign_checkpoint(ORIGIN, 3, LEAVES[3:5], root_after(5), [key]) == note
    last = again.last_signed(ORIGIN)
    assert last is not None and last.note == note


def test_a_second_view_of_the_log_is_not_signed(
    signer: Operations, sign: Callable[[int, int], bytes], key: str
) -> None:
    sign(0, 3)
    sign(3, 5)
    other = hash_leaf(b"other")
    for before, leaves in ((3, [other, other]), (3, [LEAVES[3]]), (4, [other]), (0, LEAVES[:3]), (6, [other])):
        known = Frontier.EMPTY.extend(LEAVES[:before])[0]
        root = known.extend(leaves)[0].root()
        with pytest.raises(SignerAhead, match="continues the last one, of 5 entries"):
            signer.sign_checkpoint(ORIGIN, before, leaves, root, [key])
    last = signer.last_signed(ORIGIN)
    assert last is not None and last.after.root() == root_after(5)
    sign(5, 6)


def test_a_log_with_other_earlier_entries_is_not_continued(
    signer: Operations, sign: Callable[[int, int], bytes], key: str
) -> None:
    """The signer computes the root from its own tree."""
    sign(0, 3)
    forked = Frontier.EMPTY.extend([hash_leaf(b"other"), *LEAVES[1:4]])[0]
    with pytest.raises(Conflict, match="not those that were signed"):
        signer.sign_checkpoint(ORIGIN, 3, LEAVES[3:4], forked.root(), [key])
    sign(3, 4)


def test_another_log_is_refused(signer: Operations, sign: Callable[[int, int], bytes], key: str) -> None:
    sign(0, 1)
    with pytest.raises(Denied, match="its own log") as refused:
        signer.sign_checkpoint("other.example/log", 0, LEAVES[:1], root_after(1), [key])
    assert refused.value.code == "another-log"
    for act in (signer.list_log_keys, signer.last_signed):
        with pytest.raises(Denied, match="its own log"):
            act("other.example/log")


@pytest.mark.parametrize("leaves", [[], [b"short"], [bytes(32)] * (MOST_LEAVES + 1)])
def test_leaves_must_be_whole_and_few(signer: Operations, key: str, leaves: list[bytes]) -> None:
    with pytest.raises(BadInput):
        signer.sign_checkpoint(ORIGIN, 0, leaves, root_after(1), [key])
    assert signer.find_log() is None


def test_a_checkpoint_needs_a_key_of_the_signer(signer: Operations, key: str) -> None:
    for keys, error in (([], BadInput), ([key.replace(ORIGIN, "other.example/log")], NotFound), (["x"], NotFound)):
        with pytest.raises(error):
            signer.sign_checkpoint(ORIGIN, 0, LEAVES[:1], root_after(1), keys)
    assert signer.find_log() is None


def test_all_keys_that_are_valid_sign(signer: Operations, sign: Callable[[int, int], bytes], key: str) -> None:
    sign(0, 1)
    new = signer.next_log_key(ORIGIN, [key])
    assert signer.next_log_key(ORIGIN, [key]) == new != key
    note = signer.sign_checkpoint(ORIGIN, 1, LEAVES[1:2], root_after(2), [key, new])
    for one in (key, new):
        open_checkpoint(note, one)
    assert signer.list_log_keys(ORIGIN) == [key, new]


def test_nothing_is_signed_that_is_not_stored(
    sign: Callable[[int, int], bytes], signer: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(0, 1)

    def fail(*_: object) -> bool:
        raise Unavailable("signer, record: expected the disk to work, got No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SignerRecord, "swap", fail)
        with pytest.raises(Unavailable, match="No space left"):
            sign(1, 2)
    last = signer.last_signed(ORIGIN)
    assert last is not None and last.after.size == 1
    sign(1, 3)


@pytest.mark.thorough
def test_a_full_disk_of_the_record_is_an_error_and_no_note(
    sign: Callable[[int, int], bytes], signer: Operations, tmp_path: Path
) -> None:
    sign(0, 1)
    raw = signer._record._connection
    assert raw is not None
    pages = raw.exec_driver_sql("PRAGMA page_count").scalar_one()
    raw.rollback()
    raw.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    raw.rollback()
    big = [hash_leaf(b"%d" % number) for number in range(1, 3)]
    edge = Frontier.EMPTY.extend([LEAVES[0], *big])[0]
    # A note grows by a line with each key, until the row needs another page.
    keys = [signer.list_log_keys(ORIGIN)[0]]
    for _ in range(60):
        keys.append(signer.next_log_key(ORIGIN, keys))
    with pytest.raises(Unavailable, match="full"):
        signer.sign_checkpoint(ORIGIN, 1, big, edge.root(), keys)
    last = signer.last_signed(ORIGIN)
    assert last is not None and last.after.size == 1


def test_two_signers_with_one_record_sign_one_view(tmp_path: Path) -> None:
    """Both have read the same last checkpoint; the second to store its own is refused."""
    first = make_signer(tmp_path / "signer")
    second = Operations(Keyring(tmp_path / "signer" / "keys"), SignerRecord.in_folder(tmp_path / "signer"))
    key = first.list_log_keys(ORIGIN)[0]
    first.sign_checkpoint(ORIGIN, 0, LEAVES[:1], root_after(1), [key])
    read, other = second._record.read, hash_leaf(b"other")

    def race() -> object:
        found = read()
        if found is not None and found.after.size == 1:
            first.sign_checkpoint(ORIGIN, 1, LEAVES[1:2], root_after(2), [key])
        return found

    second._record.read = race  # type: ignore[method-assign, assignment]
    root = Frontier.EMPTY.extend([LEAVES[0], other])[0].root()
    with pytest.raises(SignerAhead):
        second.sign_checkpoint(ORIGIN, 1, [other], root, [key])
    last = second.last_signed(ORIGIN)
    assert last is not None and last.after.root() == root_after(2)


# --- other signatures -------------------------------------------------------------------------------------------------


def test_a_seal_is_of_a_log_that_was_signed(signer: Operations, sign: Callable[[int, int], bytes], key: str) -> None:
    with pytest.raises(Conflict):
        signer.sign_snapshot(encode_seal(LogSeal(ORIGIN, key, 1, root_after(1), CODE, BODY)))
    sign(0, 3)
    note = parse_note(signer.sign_snapshot(encode_seal(LogSeal(ORIGIN, key, 3, root_after(3), CODE, BODY))))
    verify_note(note, key)
    with pytest.raises(BadInput):
        parse_checkpoint(note.text)
    for size, root in ((3, root_after(2)), (4, root_after(4))):
        with pytest.raises(Conflict, match="3 entries"):
            signer.sign_snapshot(encode_seal(LogSeal(ORIGIN, key, size, root, CODE, BODY)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "anything\n",
        f"{ORIGIN}\n9\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{ORIGIN}/state\n9\n{base64.b64encode(bytes(32)).decode()}\n",
    ],
)
def test_only_a_seal_is_signed_as_one(signer: Operations, sign: Callable[[int, int], bytes], text: str) -> None:
    sign(0, 1)
    with pytest.raises(BadInput):
        signer.sign_snapshot(text)


def test_the_adapters_key_signs_statements_about_adapters(signer: Operations) -> None:
    payload = encode_statement(Statement((("clauses", digest_bytes(b"m")),), SLSA_PROVENANCE, {"a": 1}))
    sig = signer.sign_adapter(payload)
    verify_signature(signer.adapter_key(), pae("application/vnd.in-toto+json", payload), sig)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"anything",
        json.dumps({"a": 1}).encode(),
        encode_statement(Statement((("x", digest_bytes(b"m")),), "urn:appliance:order:activate:v1", {})),
        encode_statement(Statement((("x", digest_bytes(b"m")),), "urn:appliance:backup:v1", {})),
    ],
)
def test_no_other_statement_is_signed(signer: Operations, payload: bytes) -> None:
    for act in (signer.sign_adapter, signer.sign_backup):
        with pytest.raises(BadInput):
            act(payload)


def test_a_record_that_somebody_changed_is_an_error(
    sign: Callable[[int, int], bytes], tmp_path: Path, signer: Operations
) -> None:
    sign(0, 3)
    engine = open_engine(f"sqlite:///{tmp_path / 'signer' / FILE}")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE signed_checkpoint SET edge = x'00'")
    engine.dispose()
    with pytest.raises(Exception, match="signer, record"):
        sign(3, 4)


def put_back(folder: Path, expected: SignedCheckpoint | None) -> None:
    """Have the record of a signer be another one, as the administrator of its database can."""
    record = SignerRecord.in_folder(folder)
    last = record.read()
    assert last is not None
    if expected is not None:
        assert record.swap(last, expected)
    else:
        record.close()
        engine = open_engine(f"sqlite:///{folder / FILE}")
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM signed_checkpoint")
        engine.dispose()
    record.close()


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_record_that_goes_back_while_the_signer_runs_gets_no_second_view_signed(
    is_empty: bool, signer: Operations, sign: Callable[[int, int], bytes], key: str, tmp_path: Path
) -> None:
    sign(0, 1)
    first = signer.last_signed(ORIGIN)
    sign(1, 3)
    put_back(tmp_path / "signer", None if is_empty else first)
    before = 0 if is_empty else 1
    other = hash_leaf(b"other")
    root = Frontier.EMPTY.extend([*LEAVES[:before], other])[0].root()
    with pytest.raises(Tampered, match="the record was put back"):
        signer.sign_checkpoint(ORIGIN, before, [other], root, [key])
    with pytest.raises(Tampered, match="the record was put back"):
        signer.last_signed(ORIGIN)


def test_a_record_of_a_checkpoint_that_the_signer_has_not_signed_is_not_continued(
    signer: Operations, sign: Callable[[int, int], bytes], key: str, tmp_path: Path
) -> None:
    """The administrator of its database has no key, so the note is that of another tree or by another key."""
    sign(0, 1)
    last = signer.last_signed(ORIGIN)
    assert last is not None
    other = Frontier.EMPTY.extend([hash_leaf(b"a"), hash_leaf(b"b")])[0]
    by_another = make_signer(tmp_path / "other")
    (foreign,) = by_another.list_log_keys(ORIGIN)
    note = by_another.sign_checkpoint(ORIGIN, 0, [hash_leaf(b"a"), hash_leaf(b"b")], other.root(), [foreign])
    for changed in (
        replace(last, before=last.after, after=other),
        replace(last, before=last.after, after=other, note=note),
    ):
        put_back(tmp_path / "signer", changed)
        again = Operations(Keyring(tmp_path / "signer" / "keys"), SignerRecord.in_folder(tmp_path / "signer"))
        for running in (signer, again):
            with pytest.raises(Tampered, match="signer, record: expected"):
                running.sign_checkpoint(ORIGIN, 2, LEAVES[2:3], other.extend(LEAVES[2:3])[0].root(), [key])
        put_back(tmp_path / "signer", last)
    sign(1, 2)


def test_no_record_begins_beside_keys_that_have_signed(signer: Operations, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "signer" / "keys", tmp_path / "second" / "keys")
    for _ in range(2):
        with pytest.raises(Conflict, match="begin a new record of its log with: appliance signer adopt"):
            make_signer(tmp_path / "second")
        with pytest.raises(Conflict, match="appliance signer adopt"):
            opening.open_signer(tmp_path / "second", None, None)


def test_an_interrupted_init_continues(signer: Operations, tmp_path: Path) -> None:
    keys = Keyring(tmp_path / "signer" / "keys")
    log_key = keys.open_signer(LOG_KEY).spki
    keys.destroy_key(ADAPTER_KEY)
    with pytest.raises(NotFound, match="make it with: appliance signer init"):
        opening.open_signer(tmp_path / "signer", None, None)
    assert make_signer(tmp_path / "signer").find_log() is None
    assert keys.open_signer(LOG_KEY).spki == log_key and keys.open_signer(ADAPTER_KEY)
    with pytest.raises(NotFound, match="make the signer with: appliance signer init"):
        opening.open_signer(tmp_path / "none", None, None)
    assert not (tmp_path / "none").exists()


def test_a_record_is_of_one_log_key_before_the_first_signature(tmp_path: Path) -> None:
    """Signers of two hosts share a record. Each of the second host's calls would else make or use other keys."""
    first, second, database = tmp_path / "first", tmp_path / "second", f"sqlite:///{tmp_path / 'shared.db'}"
    make_signer(first, database)
    for call in (opening.make_signer, opening.open_signer):
        with pytest.raises(NotFound, match="else copy them into the signer's folder"):
            call(second, None, database)
    assert not (second / "keys").exists()
    Keyring(second / "keys").make_keys()
    for call in (opening.make_signer, opening.open_signer):
        with pytest.raises(Conflict, match=r"expected sha256:.*, as in the signer's record, got sha256:"):
            call(second, None, database)
    shutil.rmtree(second / "keys")
    shutil.copytree(first / "keys", second / "keys")
    assert make_signer(second, database).adapter_key() == make_signer(first, database).adapter_key()


def test_a_host_whose_init_lost_the_race_for_the_record_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, create = f"sqlite:///{tmp_path / 'shared.db'}", Keyring.create_key

    def be_late(keys: Keyring, uri: str, kind: KeyKind) -> Signer:
        monkeypatch.undo()
        make_signer(tmp_path / "first", database)
        return create(keys, uri, kind)

    monkeypatch.setattr(Keyring, "create_key", be_late)
    with pytest.raises(Conflict, match="copy the keys of its signer"):
        make_signer(tmp_path / "second", database)
    opening.open_signer(tmp_path / "first", None, database)


@pytest.mark.parametrize("uri", [LOG_KEY, ADAPTER_KEY])
def test_no_key_is_made_for_a_record_that_has_a_checkpoint(
    sign: Callable[[int, int], bytes], tmp_path: Path, uri: str
) -> None:
    """The keys were moved, and the person forgot to name the token."""
    sign(0, 1)
    keys = Keyring(tmp_path / "signer" / "keys")
    keys.destroy_key(uri)
    left = keys.list_keys()
    for call in (opening.make_signer, opening.open_signer):
        with pytest.raises(NotFound, match="if the keys are in a token, name it with --pkcs11"):
            call(tmp_path / "signer", None, None)
    assert keys.list_keys() == left
