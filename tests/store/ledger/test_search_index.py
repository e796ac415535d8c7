"""The search index is written per block, by the process that completes the block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
from sqlalchemy import Engine, select

from appliance.domain.core.entry import parse_entry
from appliance.errors import Tampered
from appliance.store.database.tables import entry_keys
from appliance.store.ledger import search_index
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.search_index import PartialBlock, count_indexed, decode_bits, keys_of
from tests.kit.attacker import attack
from tests.kit.small_log import heartbeat, refusal
from tests.store.conftest import Databases


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_index, "BLOCK", 4)


def stored(engine: Engine) -> list[tuple[str, int]]:
    """(key, index) of whatever is filed."""
    with engine.connect() as connection:
        rows = connection.execute(select(entry_keys)).all()
    places = [
        (row.key, row.block * 4 + place, decode_bits(row.bits) >> place & 1) for row in rows for place in range(8)
    ]
    return sorted((key, index) for key, index, bit in places if bit)


def expected(ledger: Ledger, size: int) -> list[tuple[str, int]]:
    found = [parse_entry(data) for data in ledger.entries(0, size)]
    return sorted((key, entry.index) for entry in found for key in keys_of(entry))


def test_a_block_is_filed_by_the_commit_that_makes_it_whole(ledger: Ledger, engine: Engine) -> None:
    for _ in range(9):
        size = ledger.append(refusal()).entry.index + 1
        assert stored(engine) == expected(ledger, count_indexed(size))
    ledger.append_all([heartbeat()] * 9)
    assert stored(engine) == expected(ledger, count_indexed(size + 9))


def test_a_service_files_what_others_appended(
    ledger: Ledger, engine: Engine, open_ledger: Callable[[], Ledger]
) -> None:
    with closing(open_ledger()) as other:
        while (size := ledger.append(refusal("legal")).entry.index + 1) % 4 != 3:
            continue
        other.append(refusal("treasury"))
        assert stored(engine) == expected(ledger, size + 1)
        ledger.refresh()
        ledger.append(heartbeat())
    open_ledger().load()


def test_a_search_begins_where_the_filed_end_also_after_a_start(
    ledger: Ledger, open_ledger: Callable[[], Ledger]
) -> None:
    for _ in range(11):
        last = ledger.append(refusal("legal")).entry.index
    with closing(open_ledger()) as again:
        for read in (ledger, again, again):
            assert [index for index, _ in read.find(unit="legal")][-11:] == list(range(last - 10, last + 1))


def test_a_refused_append_files_nothing_later(ledger: Ledger, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was staged and rolled back is not remembered as an entry."""
    while ledger.append(heartbeat()).entry.index % 4 != 1:
        continue
    with monkeypatch.context() as patch:
        patch.setattr(
            "appliance.store.ledger.ledger.rows.move_head", lambda *_: (_ for _ in ()).throw(Tampered("stopped"))
        )
        with pytest.raises(Tampered, match="stopped"):
            ledger.append(refusal("treasury"))
    ledger.append(refusal("legal"))
    size = ledger.append(heartbeat()).entry.index + 1
    assert stored(engine) == expected(ledger, count_indexed(size))


def test_a_key_of_an_entry_that_is_not_filed_yet_is_one_too_many(
    ledger: Ledger, open_ledger: Callable[[], Ledger], database_url: str, databases: Databases
) -> None:
    while (last := ledger.append(heartbeat()).entry.index) % 4 != 1:
        continue
    with attack(database_url, databases.server() if database_url.startswith("postgresql") else None) as database:
        database.execute("INSERT INTO entry_keys VALUES ('type=heartbeat', ?, ?)", (last // 4, b"\x02"))
    with pytest.raises(Tampered, match=f"entry {last}: key type=heartbeat: expected not, got filed"):
        open_ledger().load()


def test_a_reader_of_an_earlier_moment_finds_what_was_not_filed_then(engine: Engine, ledger: Ledger) -> None:
    ledger.append_all([heartbeat()] * 3)
    while (last := ledger.append(refusal("legal")).entry.index) % 4 != 1:
        continue
    start, partial_block = count_indexed(last + 1), ledger.partial_block
    with engine.connect() as connection:
        assert partial_block.read(connection, last + 1)["unit:legal"] == 0b11
        ledger.append_all([refusal("treasury")] * 4)
        assert "unit:legal" not in partial_block.read(connection, last + 5)
        assert partial_block.read(connection, last + 1)["unit:legal"] == 0b11
        assert PartialBlock().read(connection, last + 1) == partial_block.read(connection, last + 1)
    assert len(partial_block._bits) < 8 and partial_block._start == start + 4


def test_a_search_of_bytes_that_are_no_entry_says_which(
    ledger: Ledger, engine: Engine, database_url: str, databases: Databases
) -> None:
    while (last := ledger.append(heartbeat()).entry.index) % 4 != 1:
        continue
    with attack(database_url, databases.server() if database_url.startswith("postgresql") else None) as database:
        database.execute('UPDATE entries SET bytes = ? WHERE "index" = ?', (b"[1]", last))
    with engine.connect() as connection, pytest.raises(Tampered, match=f"entry {last}: expected an entry"):
        PartialBlock().read(connection, last + 1)
