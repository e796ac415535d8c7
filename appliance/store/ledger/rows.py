"""The SQL statements of the ledger: writing the rows of an entry, and reading rows in the order of the log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    union_all,
    update,
)

from appliance.domain.core.entry import Entry
from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.digest import digest_bytes, raw_digest
from appliance.formats.core.merkle import HASH_BYTES, Frontier, ReadNode
from appliance.formats.log.export import encode_removed
from appliance.store.database.engine import Prepared
from appliance.store.database.processes import CHANNEL, Fence
from appliance.store.database.tables import (
    disclosures,
    documents,
    entries,
    entry_documents,
    entry_keys,
    head,
    processes,
    projections,
    removed_entries,
)

OF_RECORDS = ("preview", "replay", "tries")
"""Kinds of projections whose rows come from records. An archive removes the values that were replaced before it."""

Change = tuple[str, str, Mapping[str, Any] | None]
"""A change (kind, id, value) of a projection; the value is None if the row is removed."""


class LogHead(NamedTuple):
    """The size of the log and the hash of its last leaf."""

    size: int
    leaf_hash: bytes


@dataclass(slots=True)
class StoredEntry:
    """An entry as it was read, with its documents; it is unverified."""

    index: int
    time: str
    nodes: bytes
    data: bytes
    """Bytes of the entry; empty if an archive removed them."""
    documents: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    """Documents by role, as (raw digest, bytes)."""


_READ_HEAD = Prepared(select(head.c.size, head.c.leaf_hash).where(head.c.id == bindparam("one")))
_LOCK_HEAD = Prepared(select(head.c.size, head.c.leaf_hash).where(head.c.id == bindparam("one")).with_for_update())
_FIND_EPOCH = select(processes.c.epoch).where(processes.c.name == bindparam("process"))
_EPOCH = Prepared(_FIND_EPOCH)
_UPDATE_HEAD = (
    update(head)
    .where(
        head.c.id == bindparam("one"),
        head.c.size == bindparam("expected_size"),
        head.c.leaf_hash == bindparam("expected_leaf_hash"),
    )
    .values(size=bindparam("new_size"), leaf_hash=bindparam("new_leaf_hash"), note=bindparam("new_note"))
)
_MOVE_HEAD = Prepared(_UPDATE_HEAD)
# Changes of an epoch lock the head, too, so a process that lost its epoch detects it here.
_MOVE_FENCED_HEAD = Prepared(_UPDATE_HEAD.where(_FIND_EPOCH.scalar_subquery() == bindparam("epoch")))
_NOTIFY = Prepared(select(func.pg_notify(literal_column(f"'{CHANNEL}'"), literal_column("''"))))
_PROBE_HEAD = update(head).where(head.c.id == 1).values(probes=head.c.probes + 1)
_INSERT_ENTRY = Prepared(insert(entries))
_INSERT_KEY = Prepared(insert(entry_keys))
_INSERT_DOCUMENT = Prepared(insert(documents))
_INSERT_ENTRY_DOCUMENT = Prepared(insert(entry_documents))
_INSERT_DISCLOSURE = Prepared(insert(disclosures))
_DELETE_DISCLOSURE = Prepared(delete(disclosures).where(disclosures.c.commitment == bindparam("at")))
_INSERT_REMOVED = Prepared(insert(removed_entries))
_CLOSE_PROJECTION = Prepared(
    update(projections)
    .where(
        projections.c.kind == bindparam("of_kind"),
        projections.c.id == bindparam("of_id"),
        projections.c.until.is_(None),
    )
    .values(until=bindparam("at"))
)
_INSERT_PROJECTION = Prepared(insert(projections))
_ENTRY_BYTES = Prepared(select(entries.c.bytes).where(entries.c.index == bindparam("at")))
_ENTRY_SPAN = Prepared(
    select(entries.c.index, entries.c.bytes)
    .where(entries.c.index.between(bindparam("first"), bindparam("last")))
    .order_by(entries.c.index)
)
_LEAF_SPAN = Prepared(
    select(entries.c.index, func.substr(entries.c.nodes, literal_column("1"), literal_column(str(HASH_BYTES)))).where(
        entries.c.index.between(bindparam("first"), bindparam("last"))
    )
)
_ENTRIES = Prepared(
    select(entries).where(entries.c.index.between(bindparam("first"), bindparam("last"))).order_by(entries.c.index)
)
_BOUND = Prepared(
    select(entry_documents.c.index, entry_documents.c.role, documents.c.digest, documents.c.bytes)
    .join(documents)
    .where(entry_documents.c.index.between(bindparam("first"), bindparam("last")))
)
_DOCUMENT_BYTES = Prepared(select(documents.c.bytes).where(documents.c.digest == bindparam("at")))
_DISCLOSURE = Prepared(select(disclosures).where(disclosures.c.commitment == bindparam("at")))
_NOTE = Prepared(select(head.c.note).where(head.c.id == bindparam("one")))
_BITS = Prepared(
    select(entry_keys.c.block, entry_keys.c.bits).where(
        entry_keys.c.key == bindparam("of"), entry_keys.c.block.between(bindparam("first"), bindparam("last"))
    )
)


@cache
def _nodes(count: int) -> Prepared:
    """Build a statement with `count` point reads, since a proof needs a few nodes at once."""
    reads = [
        select(
            literal_column(str(n)),
            func.substr(entries.c.nodes, bindparam(f"from{n}", type_=Integer), literal_column(str(HASH_BYTES))),
        ).where(entries.c.index == bindparam(f"index{n}"))
        for n in range(count)
    ]
    return Prepared(union_all(*reads))


def lock_head(connection: Connection) -> LogHead:
    """Return the head and lock it against other writers until the transaction ends (on SQLite by BEGIN IMMEDIATE)."""
    return _head(connection, _LOCK_HEAD)


def read_head(connection: Connection) -> LogHead:
    return _head(connection, _READ_HEAD)


def _head(connection: Connection, statement: Prepared) -> LogHead:
    row = statement.execute(connection, {"one": 1}).fetchone()
    if row is None:
        raise Tampered("ledger, head: expected one row, got none")
    return LogHead(row[0], row[1])


def move_head(connection: Connection, expected: LogHead, new: LogHead, note: bytes, fence: Fence | None = None) -> None:
    """Replace the head by compare-and-swap; `note` is the signed checkpoint of the new head.

    Raises:
        Unavailable: the epoch of the appending process was taken away (code `fenced`).
        Tampered: the head differs from `expected`.
    """
    values: dict[str, Any] = {
        "one": 1,
        "expected_size": expected.size,
        "expected_leaf_hash": expected.leaf_hash,
        "new_size": new.size,
        "new_leaf_hash": new.leaf_hash,
        "new_note": note,
    }
    if fence is None:
        moved = _MOVE_HEAD.execute(connection, values).rowcount
    else:
        moved = _MOVE_FENCED_HEAD.execute(connection, {**values, **fence._asdict()}).rowcount
    if moved != 1:
        if fence is not None and _head(connection, _READ_HEAD) == expected:
            raise _fenced(fence)
        raise Tampered(f"ledger, head: expected size {expected.size} and its leaf hash, got a head that differs")


def check_fence(connection: Connection, fence: Fence) -> None:
    """Check that the appending process holds its epoch. It cannot change while the head is locked.

    Raises:
        Unavailable: the epoch was taken away (code `fenced`).
    """
    row = _EPOCH.execute(connection, {"process": fence.process}).fetchone()
    if row is None or row[0] != fence.epoch:
        raise _fenced(fence)


def _fenced(fence: Fence) -> Unavailable:
    return Unavailable(
        f"process {fence.process or 'without a name'}: expected to hold its name in epoch {fence.epoch}, got one that "
        "others took over from: it appends nothing more and must end",
        code="fenced",
    )


def notify_others(connection: Connection) -> None:
    """Notify the other processes when the transaction commits."""
    _NOTIFY.execute(connection, {})


def probe_head(connection: Connection) -> None:
    """Write without changing content; committing it shows that the database can be written."""
    connection.execute(_PROBE_HEAD)


def insert_entries(
    connection: Connection, added: Sequence[tuple[Entry, Sequence[bytes], bytes, Mapping[str, bytes]]]
) -> None:
    """Insert entries with their nodes, bytes and documents.

    Raises:
        Tampered: a document of the same digest is stored with other bytes.
    """
    rows, bound = [], []
    for entry, nodes, data, contents in added:
        index = entry.index
        rows.append((index, entry.time, b"".join(nodes), data))
        for role, digest in entry.documents.items():
            raw = raw_digest(digest)
            _insert_document(connection, raw, contents[role])
            bound.append((index, role, raw))
    _INSERT_ENTRY.insert(connection, rows)
    _INSERT_ENTRY_DOCUMENT.insert(connection, bound)


def insert_keys(connection: Connection, filed: Sequence[tuple[str, int, bytes]]) -> None:
    """Insert index rows (key, block, bits) of complete blocks."""
    _INSERT_KEY.insert(connection, filed)


def _insert_document(connection: Connection, digest: bytes, content: bytes) -> None:
    # The head is locked, so no other writer can store it between the query and the insert.
    stored = read_document(connection, digest)
    if stored is None:
        _INSERT_DOCUMENT.execute(connection, {"digest": digest, "bytes": content})
    elif stored != content:
        what = f"document sha256:{digest.hex()}, stored bytes"
        raise Tampered(f"{what}: expected those of its digest, got {digest_bytes(stored)}")


def insert_disclosures(connection: Connection, opened: Iterable[Disclosure]) -> None:
    """Insert disclosures; an existing one is left unchanged, since a commitment has one text and salt."""
    for item in opened:
        if _DISCLOSURE.execute(connection, {"at": item.commitment}).fetchone() is None:
            row = {"commitment": item.commitment, "salt": item.salt, "text": item.text}
            _INSERT_DISCLOSURE.execute(connection, row)


def delete_disclosures(connection: Connection, commitments: Sequence[str]) -> None:
    """Erase disclosures; on SQLite, also their copies in database pages."""
    _DELETE_DISCLOSURE.execute_many(connection, [{"at": commitment} for commitment in commitments])
    if commitments and connection.dialect.name == "sqlite":
        _rebuild_disclosures(connection)


def _rebuild_disclosures(connection: Connection) -> None:
    """Store all remaining disclosures anew, so that no copy of a deleted one is left on disk.

    When SQLite moves a row within a page, it leaves a copy that deleting the row does not overwrite. It overwrites each
    page that it frees, and a DELETE without a condition frees all pages.
    """
    # Insert in batches: since the table has triggers, SQLite would hold all rows of an INSERT … SELECT in memory.
    connection.exec_driver_sql("CREATE TABLE disclosures_kept AS SELECT * FROM disclosures ORDER BY commitment")
    connection.exec_driver_sql("DELETE FROM disclosures")
    with closing(connection.exec_driver_sql("SELECT * FROM disclosures_kept ORDER BY rowid")) as kept:
        while some := kept.fetchmany(1000):
            _INSERT_DISCLOSURE.insert(connection, [tuple(row) for row in some])
    connection.exec_driver_sql("DELETE FROM disclosures_kept")
    connection.exec_driver_sql("DROP TABLE disclosures_kept")


def archive_entries(connection: Connection, archive: int, removed: Iterable[int]) -> None:
    """Remove the bytes of these entries, and the documents that only they bind; `archive` is the entry that lists them.

    On PostgreSQL a function of the database does this, since the service's role has no right to.
    """
    if connection.dialect.name == "sqlite":
        _archive_sqlite(connection, archive, removed)
    else:
        connection.execute(select(func.appliance_archive(archive)))
    column = projections.c
    connection.execute(delete(projections).where(column.kind.in_(OF_RECORDS), column.until <= archive))


def _archive_sqlite(connection: Connection, archive: int, removed: Iterable[int]) -> None:
    _INSERT_REMOVED.insert(connection, [(index, archive) for index in removed])
    listed = select(removed_entries.c.index).where(removed_entries.c.archive == archive)
    own = entry_documents.c.index.in_(listed)
    digests = connection.execute(select(entry_documents.c.digest).where(own).distinct()).scalars().all()
    connection.execute(update(entries).where(entries.c.index.in_(listed)).values(bytes=b""))
    connection.execute(delete(entry_documents).where(own))
    bound = select(entry_documents.c.index).where(entry_documents.c.digest == documents.c.digest).exists()
    for digest in digests:
        connection.execute(delete(documents).where(documents.c.digest == digest, ~bound))


def find_archive(connection: Connection, index: int) -> int | None:
    """Return the entry whose archive removed this entry, or None."""
    found = connection.execute(select(removed_entries.c.archive).where(removed_entries.c.index == index)).scalar()
    return None if found is None else int(found)


def list_archives(connection: Connection) -> list[int]:
    """Return the entries whose archives removed others, in order."""
    found = connection.execute(select(removed_entries.c.archive).distinct()).scalars()
    return sorted(map(int, found))


def write_projections(connection: Connection, index: int, changes: Iterable[Change]) -> None:
    """Write the changes of an entry: close the values that were valid before it, and add the new ones."""
    closed, opened = [], []
    for kind, key, value in changes:
        closed.append({"of_kind": kind, "of_id": key, "at": index})
        if value is not None:
            row = {"kind": kind, "id": key, "since": index, "until": None, "value": encode_projection(value)}
            opened.append(row)
    _CLOSE_PROJECTION.execute_many(connection, closed)
    _INSERT_PROJECTION.execute_many(connection, opened)


def encode_projection(value: Mapping[str, Any]) -> str:
    return encode_canonical(dict(value)).decode()


def read_entry_bytes(connection: Connection, index: int) -> bytes | None:
    return _only_bytes(_ENTRY_BYTES.execute(connection, {"at": index}).fetchone())


def _only_bytes(row: tuple[bytes] | None) -> bytes | None:
    return None if row is None else row[0]


def read_bytes(connection: Connection, start: int, stop: int) -> list[tuple[int, bytes]]:
    """Return (index, bytes) of the stored entries in [start, stop), by index. A removed one has its line of an
    export."""
    span = {"first": start, "last": stop - 1}
    found: list[tuple[int, bytes]] = _ENTRY_SPAN.execute(connection, span).fetchall()
    if all(data for _, data in found):
        return found
    leaves = dict(_LEAF_SPAN.execute(connection, span).fetchall())
    return [(index, data or encode_removed(leaves[index])) for index, data in found]


def read_document(connection: Connection, digest: bytes) -> bytes | None:
    return _only_bytes(_DOCUMENT_BYTES.execute(connection, {"at": digest}).fetchone())


def read_checkpoint(connection: Connection) -> bytes | None:
    """Return the signed note over the whole log, or None if the log is empty."""
    return _only_bytes(_NOTE.execute(connection, {"one": 1}).fetchone())


def read_disclosures(connection: Connection, commitments: Iterable[str]) -> list[Disclosure]:
    rows = (_DISCLOSURE.execute(connection, {"at": commitment}).fetchone() for commitment in dict.fromkeys(commitments))
    return [_disclosure(*row) for row in rows if row is not None]


def _disclosure(commitment: str, salt: bytes, text: str) -> Disclosure:
    try:
        return Disclosure(commitment, salt, text)
    except BadInput as error:
        raise Tampered(f"disclosure {commitment[:80]}: {error.message}") from None


def read_all_disclosures(connection: Connection) -> list[Disclosure]:
    """Return all disclosures in the order of their commitments."""
    return [_disclosure(*row) for row in connection.execute(select(disclosures).order_by(disclosures.c.commitment))]


def read_entries(connection: Connection, start: int, stop: int) -> list[StoredEntry]:
    """Return the stored entries in [start, stop) with their documents; the caller must check for gaps."""
    span = {"first": start, "last": stop - 1}
    found = {stored.index: stored for stored in read_leaves(connection, start, stop)}
    for index, role, digest, content in _BOUND.execute(connection, span):
        if index in found:
            found[index].documents[role] = (digest, content)
    return list(found.values())


def read_leaves(connection: Connection, start: int, stop: int) -> list[StoredEntry]:
    """Return the stored entries in [start, stop) without their documents."""
    rows: list[tuple[int, str, bytes, bytes]]
    rows = _ENTRIES.execute(connection, {"first": start, "last": stop - 1}).fetchall()
    return [StoredEntry(index, time, nodes, data) for index, time, nodes, data in rows]


def read_bits(connection: Connection, key: str, first: int, last: int) -> list[tuple[int, bytes]]:
    """Return (block, bits) of the blocks from `first` to `last` in which the key occurs."""
    found: list[tuple[int, bytes]] = _BITS.execute(connection, {"of": key, "first": first, "last": last}).fetchall()
    return found


def count_keys(connection: Connection, first_block: int) -> int:
    """Count the index rows from a block on, and those of negative blocks, which must not exist."""
    counted = select(func.count()).select_from(entry_keys).where(_from_block(first_block))
    total: int = connection.execute(counted).scalar_one()
    return total


def read_keys(
    connection: Connection, first_block: int, last_block: int | None = None
) -> Iterator[tuple[str, int, bytes]]:
    """Yield the rows that `count_keys` counts as (key, block, bits), block by block; with `last_block` those of these
    blocks."""
    column = entry_keys.c
    place = _from_block(first_block) if last_block is None else column.block.between(first_block, last_block)
    rows = select(column.key, column.block, column.bits).where(place)
    rows = rows.order_by(column.block, column.key)
    with closing(connection.execute(rows.execution_options(yield_per=1000))) as found:
        yield from map(tuple, found)


def _from_block(first: int) -> ColumnElement[bool]:
    return or_(entry_keys.c.block >= first, entry_keys.c.block < 0)


def read_nodes(connection: Connection, places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """Return the stored tree nodes at these (level, index), read in one statement.

    A node is in the row of the entry that completes it.
    """
    wanted = list(places)
    if not wanted:
        return {}
    values = {f"from{n}": HASH_BYTES * level + 1 for n, (level, _) in enumerate(wanted)}
    values |= {f"index{n}": (index + 1 << level) - 1 for n, (level, index) in enumerate(wanted)}
    found = _nodes(len(wanted)).ask(connection, values)
    return {wanted[n]: value for n, value in found if len(value) == HASH_BYTES}


def read_extent(connection: Connection) -> dict[str, tuple[int | None, int | None]]:
    """Return the lowest and highest index of the tables that have a row per entry."""
    columns = {"entry": entries.c.index, "document of entry": entry_documents.c.index}
    return {
        name: (
            connection.execute(select(func.min(column))).scalar_one(),
            connection.execute(select(func.max(column))).scalar_one(),
        )
        for name, column in columns.items()
    }


_KEPT_LEVEL = 8
"""Lowest level of cached nodes, which cover 256 entries or more; ten million entries have 78,000 of them."""
_RECENT = 4_096
"""Number of entries whose nodes are cached in memory, about 2 MB."""

Place = tuple[int, int]
"""Position (level, index) of a tree node."""
Read = Callable[[list[Place]], dict[Place, bytes]]


class Nodes:
    """A cache of tree nodes for proofs."""

    def __init__(self) -> None:
        self._kept: dict[Place, bytes] = {}
        self._edge: dict[Place, bytes] = {}
        self._recent: dict[int, Sequence[bytes]] = {}
        """The nodes that an entry completes, from its leaf upwards, by entry."""
        self._stop = 0

    def add(self, before: Frontier, completed: Iterable[Sequence[bytes]]) -> None:
        """Cache the nodes that each entry after `before` completes, once the entries are durable."""
        if before.size != self._stop or len(self._recent) >= _RECENT:
            # The edge and these nodes suffice to prove the entries that follow.
            self._edge, self._recent, self._stop = before.nodes(), {}, before.size
        for nodes in completed:
            self._recent[self._stop] = nodes
            self._stop += 1

    def prove(self, proof: Callable[[ReadNode], list[bytes]], read: Read) -> list[bytes]:
        """Return the proof; run `proof` once to find the missing nodes, and again with those that were read."""
        missing: list[Place] = []
        recent, edge, kept = self._recent, self._edge, self._kept

        def look(level: int, index: int) -> bytes:
            if nodes := recent.get((index + 1 << level) - 1):
                return nodes[level]
            known = edge.get((level, index)) or kept.get((level, index))
            if known is None:
                missing.append((level, index))
                return bytes(HASH_BYTES)
            return known

        hashes = proof(look)
        if not missing:
            return hashes
        found = read(missing)
        for place in missing:
            if place not in found:
                raise Tampered(f"tree node {place[0]}, {place[1]}: expected a hash, got none")
        hashes = proof(lambda level, index: found.get((level, index)) or look(level, index))
        kept.update((place, value) for place, value in found.items() if place[0] >= _KEPT_LEVEL)
        return hashes
