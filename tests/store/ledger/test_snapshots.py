"""A load continues from a sealed snapshot: to the same state, under the same checks, and never from an unsealed one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from appliance.domain.core.entry import EntryDraft, parse_entry
from appliance.errors import Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import hash_leaf
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.log.note import parse_note, vkey_of
from appliance.formats.log.seal import parse_seal
from appliance.formats.signatures.keys import generate_ed25519
from appliance.store.database.engine import open_engine
from appliance.store.files import disk
from appliance.store.ledger import log_state
from appliance.store.ledger.keys import HeldLogKeys
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.log_state import NotContinued
from appliance.store.ledger.snapshots import Snapshots, copy_log_state
from appliance.wiring.building import _load
from scripts.kit.log_builder import ORIGIN as BUILT
from scripts.kit.log_builder import LogBuilder as Built
from scripts.kit.log_builder import stage
from tests.kit.attacker import Cursor, attack
from tests.kit.small_log import CODE, ORIGIN, OTHER_CODE, Clock, SmallLog, heartbeat, refusal
from tests.store.conftest import Databases

pytestmark = pytest.mark.usefixtures("filed")

SIZE = 12
"""Of the log that the snapshot is of."""

Open = Callable[..., Ledger]
Attacked = Callable[[], AbstractContextManager[Cursor]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.snapshot"


@pytest.fixture
def reopen(site: SmallLog, database_url: str, path: Path) -> Iterator[Open]:
    """Yield a function that opens the next service on the same database, not loaded yet."""
    opened: list[Ledger] = []

    def reopen(snapshots: Snapshots | None = None) -> Ledger:
        opened.append(site.open_ledger(open_engine(database_url), snapshots=snapshots or site.snapshots(path)))
        return opened[-1]

    yield reopen
    for ledger in opened:
        ledger.close()


@pytest.fixture
def elsewhere(databases: Databases, tmp_path: Path) -> Iterator[str]:
    """Another database, without an entry."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with databases.copy("sqlite", databases.migrated("sqlite"), folder) as url:
        yield url


@pytest.fixture
def sealed(reopen: Open, site: SmallLog) -> Ledger:
    """Return a ledger that has sealed its state at `SIZE`, and three entries behind that."""
    ledger = reopen()
    ledger.load()
    ledger.append(site.first_draft())
    for name in ("carol", "dave"):
        enrolment = site.enrolment(name)
        ledger.append(enrolment.pending)
        ledger.append(enrolment.enrolled)
    while ledger.state.size < SIZE:
        ledger.append(refusal())
    ledger.seal_snapshot(1)
    for draft in (heartbeat(), site.enrolment("erin").pending, refusal()):
        ledger.append(draft)
    return ledger


@pytest.fixture
def attacked(database_url: str, databases: Databases) -> Attacked:
    """Return a function that opens the database as its owner."""
    return lambda: attack(database_url, None if database_url.startswith("sqlite") else databases.server())


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the entries that loads read."""
    found: list[int] = []
    real = log_state.read_entries

    def read_entries(connection: Connection, start: int, stop: int) -> list[object]:
        found.extend(range(start, stop))
        return list(real(connection, start, stop))

    monkeypatch.setattr(log_state, "read_entries", read_entries)
    return found


def _told(ledger: Ledger) -> tuple[object, ...]:
    return ledger.state.place, ledger.edge.root(), list(ledger.state.projections()), ledger.checkpoint()


def test_a_load_reads_what_stands_behind_the_snapshot_and_comes_to_the_same(
    sealed: Ledger, reopen: Open, read: list[int]
) -> None:
    other = reopen()
    other.load()
    assert read == [SIZE, SIZE + 1, SIZE + 2]
    assert _told(other) == _told(sealed)
    assert other.append(heartbeat()).entry.index == SIZE + 3
    assert other.check_projections() == []
    sealed.refresh()
    assert _told(other) == _told(sealed)


def test_a_short_log_is_folded_whole_and_must_be_as_long_as_it_was_sealed(
    sealed: Ledger, reopen: Open, site: SmallLog, path: Path, read: list[int], elsewhere: str
) -> None:
    """What a start checks of each row costs little there."""
    reopen(site.snapshots(path, least=SIZE)).load()
    assert read == [SIZE, SIZE + 1, SIZE + 2]
    read.clear()
    reopen(site.snapshots(path, least=SIZE + 1)).load()
    assert read == list(range(SIZE + 3))
    ledger = site.open_ledger(open_engine(elsewhere), snapshots=site.snapshots(path, least=SIZE + 1))
    expected = f"^entry 0: expected a log of at least {SIZE} entries, seen before"
    with closing(ledger), pytest.raises(Tampered, match=expected):
        ledger.load()


def test_a_load_of_nothing_new_reads_no_entry(sealed: Ledger, reopen: Open, read: list[int]) -> None:
    sealed.seal_snapshot(1)
    other = reopen()
    other.load()
    assert read == []
    assert _told(other) == _told(sealed)


def test_a_load_says_how_far_it_is(sealed: Ledger, reopen: Open, path: Path) -> None:
    heard: list[tuple[int, int]] = []
    reopen().load(lambda *at: heard.append(at))
    path.unlink()
    reopen().load(lambda *at: heard.append(at))
    assert heard == [(0, SIZE), (SIZE, SIZE + 3), (0, SIZE + 3)]


def test_a_snapshot_is_written_once_the_log_has_grown_enough(sealed: Ledger, path: Path) -> None:
    before = path.read_bytes()
    sealed.seal_snapshot(4)
    assert path.read_bytes() == before
    sealed.seal_snapshot(3)
    assert path.read_bytes() != before
    assert path.stat().st_mode & 0o777 == 0o600


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _other_state(data: bytes) -> bytes:
    return data.replace(b'"carol"', b'"carla"')


def _longer_note(data: bytes) -> bytes:
    return b"9" + data


def _other_size(data: bytes) -> bytes:
    return data.replace(f"\n{SIZE}\n".encode(), f"\n{SIZE - 1}\n".encode(), 1)


def _no_note(data: bytes) -> bytes:
    return data.partition(b"\n")[2]


def _empty(_data: bytes) -> bytes:
    return b""


@pytest.mark.thorough
@pytest.mark.parametrize("change", [_cut, _other_state, _longer_note, _other_size, _no_note, _empty])
def test_a_file_that_is_not_what_was_sealed_is_not_believed(
    sealed: Ledger, reopen: Open, path: Path, read: list[int], change: Callable[[bytes], bytes]
) -> None:
    changed = change(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    other = reopen()
    other.load()
    assert read == list(range(SIZE + 3))
    assert _told(other) == _told(sealed)


def test_a_link_in_its_place_is_not_followed(sealed: Ledger, reopen: Open, path: Path, read: list[int]) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))
    reopen().load()
    assert read == list(range(SIZE + 3))


def test_who_has_another_key_cannot_seal_a_fold(
    sealed: Ledger, reopen: Open, site: SmallLog, path: Path, read: list[int]
) -> None:
    """Even where the state replay itself names that key as the log's own."""
    forger = generate_ed25519()
    vkey = vkey_of(ORIGIN, forger)
    forged = Snapshots(path, origin=ORIGIN, code=CODE, keys=HeldLogKeys(lambda _: forger))
    forgery, frontier, _, note = _copied(sealed, site, path)
    row = forgery.tables["sites"]["site"]
    keys = (row.log_keys[0].model_copy(update={"vkey": vkey}),)
    forgery.tables["sites"]["site"] = row.model_copy(update={"log_keys": keys})
    forged.write(forgery, frontier, vkey, note)
    other = reopen()
    other.load()
    assert read == list(range(SIZE + 3))
    assert _told(other) == _told(sealed)


@pytest.mark.thorough
def test_a_fold_that_a_replaced_key_sealed_is_not_believed(database_url: str, path: Path) -> None:
    """Whoever stole the log's key before it was rotated could seal one with a person more in it."""
    made = stage("staffed")
    size = made.state.size
    made.rotate_log_key()
    clock = Clock()
    key, keys = made.first.log_key, HeldLogKeys(made.log_signers.__getitem__)
    with ExitStack() as stack:

        def opened() -> Ledger:
            snapshots = Snapshots(path, origin=BUILT, code=CODE, keys=keys)
            engine = open_engine(database_url)
            ledger = Ledger(engine, origin=BUILT, log_key=key, keys=keys, clock=clock, snapshots=snapshots)
            return stack.enter_context(closing(ledger))

        ledger = opened()
        _append(ledger, made, 0, size, clock)
        forgery, frontier, sealed_by, note = copy_log_state(ledger._current(), ledger.checkpoint())
        people = forgery.tables["principals"]
        people["mallory"] = people["anna"].model_copy(update={"name": "mallory"})
        _append(ledger, made, size, made.state.size, clock)
        Snapshots(path, origin=BUILT, code=CODE, keys=keys).write(forgery, frontier, sealed_by, note)
        other = opened()
        other.load()
        assert other.state.principals.get("mallory") is None
        assert _told(other) == _told(ledger)


def _append(ledger: Ledger, made: Built, start: int, stop: int, clock: Clock) -> None:
    """Append entries that were made elsewhere, at their own times."""
    for data in made.entries[start:stop]:
        entry = parse_entry(data)
        clock.now = parse_time(entry.time) - timedelta(seconds=1)
        documents = {role: made.documents[digest] for role, digest in entry.documents.items()}
        said = entry.model_dump(include={"type", "actor", "source", "subjects", "outcome", "body"})
        ledger.append(EntryDraft(**said, documents=documents))


def _copied(ledger: Ledger, site: SmallLog, path: Path) -> tuple[object, ...]:
    taken: list[tuple[object, ...]] = []

    class Taking(Snapshots):
        def write(self, *copied: object) -> None:
            taken.append(copied)

    ledger._snapshots = Taking(path, origin=ORIGIN, code=CODE, keys=HeldLogKeys(site.signer))
    ledger.seal_snapshot(1)
    return taken[0]


def test_other_code_folds_every_entry(
    sealed: Ledger, reopen: Open, site: SmallLog, path: Path, read: list[int]
) -> None:
    other = reopen(site.snapshots(path, code=OTHER_CODE))
    other.load()
    assert read == list(range(SIZE + 3))
    assert _told(other) == _told(sealed)
    other.seal_snapshot(SIZE)
    read.clear()
    reopen(site.snapshots(path, code=OTHER_CODE)).load()
    assert read == []


def test_another_logs_snapshot_is_not_believed(
    sealed: Ledger, reopen: Open, site: SmallLog, path: Path, read: list[int]
) -> None:
    reopen(site.snapshots(path, origin="appliance.example/other")).load()
    assert read == list(range(SIZE + 3))


@pytest.mark.parametrize("code", [CODE, OTHER_CODE])
def test_a_log_that_is_shorter_than_it_was_sealed_is_refused(
    sealed: Ledger, site: SmallLog, path: Path, elsewhere: str, code: str
) -> None:
    """A backup in the log's place: no witness is needed to see it."""
    ledger = site.open_ledger(open_engine(elsewhere), snapshots=site.snapshots(path, code=code))
    expected = f"^entry 0: expected a log of at least {SIZE} entries, seen before"
    with closing(ledger), pytest.raises(Tampered, match=expected):
        ledger.load()


@pytest.mark.thorough
@pytest.mark.parametrize("code", [CODE, OTHER_CODE])
def test_a_log_that_went_another_way_is_refused(
    sealed: Ledger, site: SmallLog, path: Path, elsewhere: str, code: str
) -> None:
    """Signed by the log's own key all the same: the fork shows at the size that was sealed."""
    with closing(site.open_ledger(open_engine(elsewhere))) as ledger:
        ledger.load()
        ledger.append(site.first_draft())
        for _ in range(SIZE + 5):
            ledger.append(heartbeat())
    ledger = site.open_ledger(open_engine(elsewhere), snapshots=site.snapshots(path, code=code))
    expected = rf"^entry {SIZE - 1}: tree root of size {SIZE}: expected .*seen before"
    with closing(ledger), pytest.raises(Tampered, match=expected):
        ledger.load()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (f'UPDATE entries SET bytes = ? WHERE "index" = {SIZE}', f"^entry {SIZE}: leaf hash"),
        (
            f"UPDATE entries SET time = 'x', bytes = bytes WHERE ? <> '' AND \"index\" = {SIZE + 1}",
            f"^entry {SIZE + 1}: time",
        ),
        (f"DELETE FROM entry_keys WHERE block = {SIZE + 2} AND ? <> ''", f"^entry {SIZE + 2}: key"),
        ("UPDATE head SET size = size - 1 WHERE ? <> ''", "."),
    ],
)
def test_what_stands_behind_the_snapshot_is_checked_as_ever(
    sealed: Ledger, reopen: Open, attacked: Attacked, statement: str, words: str
) -> None:
    sealed.append(heartbeat())
    sealed.close()
    with attacked() as database:
        database.execute(statement, (b"{}" if "bytes = ?" in statement else "x",))
    with pytest.raises(Tampered, match=words):
        reopen().load()


def test_the_checkpoint_in_a_snapshot_is_that_of_its_size_also_after_entries_of_another_process(
    reopen: Open, sealed: Ledger, site: SmallLog, path: Path
) -> None:
    """The other process has appended, and this one has not read it yet."""
    other = reopen()
    other.load()
    other.append(heartbeat())
    sealed.seal_snapshot(1)
    content = site.snapshots(path).read()
    assert content is not None and content.log_state is not None
    found = open_checkpoint(content.checkpoint, site.log_key)
    assert (found.size, found.root) == content.seen == (SIZE + 4, other.edge.root())
    assert content.time_s == path.stat().st_mtime


@pytest.mark.parametrize("kind", ["none", "of another size", "of an earlier build"])
def test_a_seal_without_its_checkpoint_still_proves_how_long_the_log_was(
    sealed: Ledger, site: SmallLog, path: Path, elsewhere: str, kind: str
) -> None:
    """The checkpoint of another size would let the caller take a log that lacks entries."""
    if kind == "of an earlier build":
        length, _, rest = path.read_bytes().partition(b"\n")
        edge, _, state = rest[int(length) :].split(b"\n", 2)
        body = edge + b"\n" + state
        seal = parse_seal(parse_note(rest[: int(length)]).text)
        note = site.snapshots(path)._keys.sign_snapshot(replace(seal, code=OTHER_CODE, body=digest_bytes(body)))
        path.write_bytes(b"%d\n" % len(note) + note + body)
    else:
        older = site.snapshots(path).read()
        assert older is not None and older.checkpoint
        snapshot, frontier, vkey, _ = _copied(sealed, site, path)
        site.snapshots(path).write(snapshot, frontier, vkey, b"" if kind == "none" else older.checkpoint)
    content = site.snapshots(path).read()
    assert content is not None and content.checkpoint == b"" and content.seen.size >= SIZE
    with closing(site.open_ledger(open_engine(elsewhere), snapshots=site.snapshots(path))) as ledger:
        with pytest.raises(NotContinued):
            ledger.load()
        given: Any = (ledger, site.snapshots(path), None, lambda _: None)
        with pytest.raises(Tampered, match="no checkpoint for a restoration"):
            _load(*given, after_pause=False, rebuild=False)


def test_a_shorter_log_is_read_without_its_snapshot_if_the_caller_says_so(
    sealed: Ledger, site: SmallLog, path: Path, elsewhere: str
) -> None:
    with closing(site.open_ledger(open_engine(elsewhere), snapshots=site.snapshots(path))) as ledger:
        with pytest.raises(NotContinued):
            ledger.load()
        with pytest.raises(NotContinued):
            ledger.load()
        ledger.load(with_snapshot=False)
        assert ledger.state.size == 0


def test_a_log_that_was_restored_is_sealed_again_although_it_is_shorter_than_the_lost_one(
    sealed: Ledger, site: SmallLog, path: Path, elsewhere: str
) -> None:
    """Otherwise nothing would show a second loss until the log is longer than the lost one."""
    with closing(site.open_ledger(open_engine(elsewhere), snapshots=site.snapshots(path))) as ledger:
        with pytest.raises(NotContinued):
            ledger.load()
        ledger.load(with_snapshot=False)
        site.snapshots(path).set_aside()
        ledger.append(site.first_draft())
        ledger.seal_snapshot(1)
        content, data = site.snapshots(path).read(), path.read_bytes()
        assert content is not None and content.seen.size == 1
        ledger.append(heartbeat())
        ledger.seal_snapshot(2)
        assert path.read_bytes() == data


def test_a_snapshot_that_is_set_aside_is_kept_and_not_read(
    sealed: Ledger, site: SmallLog, path: Path, elsewhere: str
) -> None:
    for count in (1, 2):
        data = path.read_bytes()
        site.snapshots(path).set_aside()
        assert path.with_name(f"state.snapshot-{count}.lost").read_bytes() == data
        assert site.snapshots(path).read() is None
        sealed.seal_snapshot(0)


EDITS = [
    ('UPDATE entries SET bytes = ? WHERE "index" = 7', b"{}", "entry 7: leaf hash"),
    ('UPDATE entries SET nodes = ? WHERE "index" = 7', bytes(32 * 4), "entry 7: leaf hash"),
    ('DELETE FROM entries WHERE bytes <> ? AND "index" = 7', b"", "entry 7: expected a row, got none"),
]


@pytest.mark.parametrize(("statement", "value", "words"), EDITS)
def test_an_edit_before_it_is_found_too(
    sealed: Ledger, reopen: Open, attacked: Attacked, statement: str, value: bytes, words: str
) -> None:
    """Entries that are not folded again are hashed again."""
    sealed.close()
    with attacked() as database:
        database.execute(statement, (value,))
    with pytest.raises(Tampered, match=f"^{words}"):
        reopen().load()


def test_bytes_and_nodes_that_fit_each_other_are_not_those_that_were_sealed(
    sealed: Ledger, reopen: Open, attacked: Attacked
) -> None:
    sealed.close()
    with attacked() as database:
        ((nodes, data),) = database.execute('SELECT nodes, bytes FROM entries WHERE "index" = 6').fetchall()
        other = data.replace(b'"code":"denied"', b'"code":"deniex"')
        assert other != data and len(nodes) == 32
        database.execute('UPDATE entries SET nodes = ?, bytes = ? WHERE "index" = 6', (hash_leaf(other), other))
    with pytest.raises(Tampered, match=r"^entry 7: "):
        reopen().load()


def test_a_full_disk_leaves_the_snapshot_before(
    sealed: Ledger, reopen: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(_descriptor: int, _data: bytes) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(disk, "write_all", full)
    with pytest.raises(Unavailable, match="No space left"):
        sealed.seal_snapshot(1)
    assert path.read_bytes() == before
    assert os.listdir(path.parent).count(path.name) == 1
    assert not [name for name in os.listdir(path.parent) if name.startswith(disk.PARTIAL)]
    assert sealed.append(heartbeat()).entry.index == SIZE + 3
