"""The ledger's statements, over a connection: what one entry is as rows, and rows read back in the entry's order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from appliance.formats.core.merkle import HASH_BYTES
from appliance.store.database.prepared import Prepared
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
)

Change = tuple[str, str, Mapping[str, Any] | None]
"""(kind, id, value) of a projection; None where the row goes."""


class Head(NamedTuple):
    size: int
    leaf_hash: bytes


@dataclass(slots=True)
class StoredEntry:
    """An entry with the documents filed with it, as it was read: nothing about it has been checked."""

    index: int
    time: str
    nodes: bytes
    data: bytes
    documents: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    """Role to (raw digest, bytes)."""


_READ_HEAD = Prepared(select(head.c.size, head.c.leaf_hash).where(head.c.id == bindparam("one")))
_LOCK_HEAD = Prepared(select(head.c.size, head.c.leaf_hash).where(head.c.id == bindparam("one")).with_for_update())
_MOVE_HEAD = Prepared(
    update(head)
    .where(
        head.c.id == bindparam("one"),
        head.c.size == bindparam("expected_size"),
        head.c.leaf_hash == bindparam("expected_leaf_hash"),
    )
    .values(size=bindparam("new_size"), leaf_hash=bindparam("new_leaf_hash"), note=bindparam("new_note"))
)
_MOVE_FENCED_HEAD = Prepared(
    update(head)
    .where(
        head.c.id == bindparam("one"),
        head.c.size == bindparam("expected_size"),
        head.c.leaf_hash == bindparam("expected_leaf_hash"),
        # The head is locked, and so is each change of an epoch: whoever was fenced sees it here.
        select(processes.c.epoch).where(processes.c.name == bindparam("process")).scalar_subquery()
        == bindparam("epoch"),
    )
    .values(size=bindparam("new_size"), leaf_hash=bindparam("new_leaf_hash"), note=bindparam("new_note"))
)
_NOTIFY = Prepared(select(func.pg_notify(literal_column(f"'{CHANNEL}'"), literal_column("''"))))
_PROBE_HEAD = update(head).where(head.c.id == 1).values(probes=head.c.probes + 1)
_INSERT_ENTRY = Prepared(insert(entries))
_INSERT_KEY = Prepared(insert(entry_keys))
_INSERT_DOCUMENT = Prepared(insert(documents))
_INSERT_ENTRY_DOCUMENT = Prepared(insert(entry_documents))
_INSERT_DISCLOSURE = Prepared(insert(disclosures))
_DELETE_DISCLOSURE = Prepared(delete(disclosures).where(disclosures.c.commitment == bindparam("at")))
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
    """That many point reads in one statement: a proof asks for a few nodes, again and again."""
    reads = [
        select(
            literal_column(str(n)),
            func.substr(entries.c.nodes, bindparam(f"from{n}", type_=Integer), literal_column(str(HASH_BYTES))),
        ).where(entries.c.index == bindparam(f"index{n}"))
        for n in range(count)
    ]
    return Prepared(union_all(*reads))


def lock_head(connection: Connection) -> Head:
    """The head, locked against every other writer until the transaction ends (SQLite: by BEGIN IMMEDIATE)."""
    return _head(connection, _LOCK_HEAD)


def read_head(connection: Connection) -> Head:
    return _head(connection, _READ_HEAD)


def _head(connection: Connection, statement: Prepared) -> Head:
    row = statement.execute(connection, {"one": 1}).fetchone()
    if row is None:
        raise Tampered("ledger, head: expected one row, got none")
    return Head(row[0], row[1])


def move_head(connection: Connection, expected: Head, new: Head, note: bytes, fence: Fence | None = None) -> None:
    """Compare-and-swap: the head that this transaction builds on must be the head it replaces. `note`: the signed
    checkpoint of the new one. Unavailable (`fenced`) where the epoch of the process that appends was taken away."""
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
            raise Unavailable(
                f"process {fence.process or 'without a name'}: expected to hold its name in epoch {fence.epoch}, got "
                "one that others took over from: it appends nothing more and must end",
                code="fenced",
            )
        raise Tampered(f"ledger, head: expected size {expected.size} and its leaf hash, got a head that differs")


def tell_others(connection: Connection) -> None:
    """With the commit, the other processes hear of it."""
    _NOTIFY.execute(connection, {})


def probe_head(connection: Connection) -> None:
    """A write without content: its commit shows that the database can be written."""
    connection.execute(_PROBE_HEAD)


def insert_entries(
    connection: Connection, added: Sequence[tuple[Entry, Sequence[bytes], bytes, Mapping[str, bytes]]]
) -> None:
    """Each entry with its nodes and bytes, and its documents by role; a document that is already stored must have the
    same bytes."""
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
    """(key, block, bits) of blocks that are whole now."""
    _INSERT_KEY.insert(connection, filed)


def _insert_document(connection: Connection, digest: bytes, content: bytes) -> None:
    # The head is locked, so no other writer can store it between the question and the insert.
    stored = read_document(connection, digest)
    if stored is None:
        _INSERT_DOCUMENT.execute(connection, {"digest": digest, "bytes": content})
    elif stored != content:
        what = f"document sha256:{digest.hex()}, stored bytes"
        raise Tampered(f"{what}: expected those of its digest, got {digest_bytes(stored)}")


def insert_disclosures(connection: Connection, opened: Iterable[Disclosure]) -> None:
    """A disclosure that is already there stays as it is: a commitment has one text and salt."""
    for item in opened:
        if _DISCLOSURE.execute(connection, {"at": item.commitment}).fetchone() is None:
            row = {"commitment": item.commitment, "salt": item.salt, "text": item.text}
            _INSERT_DISCLOSURE.execute(connection, row)


def delete_disclosures(connection: Connection, commitments: Sequence[str]) -> None:
    _DELETE_DISCLOSURE.execute_many(connection, [{"at": commitment} for commitment in commitments])
    if commitments and connection.dialect.name == "sqlite":
        _rebuild_disclosures(connection)


def _rebuild_disclosures(connection: Connection) -> None:
    """Stores all that is left anew. Where SQLite moves a row within a page, it leaves a copy behind that the row's
    deletion does not overwrite. It overwrites each page that it frees, and a DELETE without a condition frees all."""
    # Row by row: for INSERT … SELECT, SQLite would hold all of them in memory, since the table has triggers.
    connection.exec_driver_sql("CREATE TABLE disclosures_kept AS SELECT * FROM disclosures ORDER BY commitment")
    connection.exec_driver_sql("DELETE FROM disclosures")
    with closing(connection.exec_driver_sql("SELECT * FROM disclosures_kept ORDER BY rowid")) as kept:
        while some := kept.fetchmany(1000):
            _INSERT_DISCLOSURE.insert(connection, [tuple(row) for row in some])
    connection.exec_driver_sql("DELETE FROM disclosures_kept")
    connection.exec_driver_sql("DROP TABLE disclosures_kept")


def write_projections(connection: Connection, index: int, changes: Iterable[Change]) -> None:
    """What the entry changed: the values that were in force until it are closed, and those from it on are added."""
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
    """(index, bytes) of the entries [start, stop) that are stored, by index."""
    found: list[tuple[int, bytes]] = _ENTRY_SPAN.execute(connection, {"first": start, "last": stop - 1}).fetchall()
    return found


def read_document(connection: Connection, digest: bytes) -> bytes | None:
    return _only_bytes(_DOCUMENT_BYTES.execute(connection, {"at": digest}).fetchone())


def read_checkpoint(connection: Connection) -> bytes | None:
    """The signed note over the whole log; None while it is empty."""
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
    """In the order of their commitments."""
    return [_disclosure(*row) for row in connection.execute(select(disclosures).order_by(disclosures.c.commitment))]


def read_entries(connection: Connection, start: int, stop: int) -> list[StoredEntry]:
    """What is stored of the entries [start, stop), by index; gaps are the caller's to find."""
    span = {"first": start, "last": stop - 1}
    found = {stored.index: stored for stored in read_leaves(connection, start, stop)}
    for index, role, digest, content in _BOUND.execute(connection, span):
        if index in found:
            found[index].documents[role] = (digest, content)
    return list(found.values())


def read_leaves(connection: Connection, start: int, stop: int) -> list[StoredEntry]:
    """The same without their documents."""
    rows: list[tuple[int, str, bytes, bytes]]
    rows = _ENTRIES.execute(connection, {"first": start, "last": stop - 1}).fetchall()
    return [StoredEntry(index, time, nodes, data) for index, time, nodes, data in rows]


def read_bits(connection: Connection, key: str, first: int, last: int) -> list[tuple[int, bytes]]:
    """(block, bits) of the blocks from first to last in which the key is filed."""
    found: list[tuple[int, bytes]] = _BITS.execute(connection, {"of": key, "first": first, "last": last}).fetchall()
    return found


def count_keys(connection: Connection, first_block: int) -> int:
    """How many rows of a key there are from a block on, and before the first, where there can be none."""
    counted = select(func.count()).select_from(entry_keys).where(_from_block(first_block))
    total: int = connection.execute(counted).scalar_one()
    return total


def read_keys(connection: Connection, first_block: int) -> Iterator[tuple[str, int, bytes]]:
    """The same rows, (key, block, bits), block by block."""
    column = entry_keys.c
    rows = select(column.key, column.block, column.bits).where(_from_block(first_block))
    rows = rows.order_by(column.block, column.key)
    with closing(connection.execute(rows.execution_options(yield_per=1000))) as found:
        yield from map(tuple, found)


def _from_block(first: int) -> ColumnElement[bool]:
    return or_(entry_keys.c.block >= first, entry_keys.c.block < 0)


def read_nodes(connection: Connection, places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """The stored nodes at these (level, index), read in one statement; each is in the row of the entry that completes
    it."""
    wanted = list(places)
    if not wanted:
        return {}
    values = {f"from{n}": HASH_BYTES * level + 1 for n, (level, _) in enumerate(wanted)}
    values |= {f"index{n}": (index + 1 << level) - 1 for n, (level, index) in enumerate(wanted)}
    found = _nodes(len(wanted)).ask(connection, values)
    return {wanted[n]: value for n, value in found if len(value) == HASH_BYTES}


def read_extent(connection: Connection) -> dict[str, tuple[int | None, int | None]]:
    """The lowest and highest key of the tables with a row for each entry."""
    columns = {"entry": entries.c.index, "document of entry": entry_documents.c.index}
    return {
        name: (
            connection.execute(select(func.min(column))).scalar_one(),
            connection.execute(select(func.max(column))).scalar_one(),
        )
        for name, column in columns.items()
    }
