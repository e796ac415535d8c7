"""A synthetic log is valid: the verifier accepts it, and the ledger continues it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.audit.verify import verify_log
from appliance.domain.core.entry import EntryDraft
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import hash_leaf, root_of, verify_inclusion
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.export import write_export
from appliance.formats.log.trust import encode_trust
from appliance.store.database.engine import migrate, open_engine
from appliance.store.database.tables import metadata
from appliance.store.ledger.checks import check_guards
from appliance.store.ledger.ledger import Ledger
from appliance.verifier import load_trust, verify_export
from scripts.benches.log_files import DatabaseFile, write_log
from scripts.benches.logs import clock_after, draft_of, open_ledger
from scripts.benches.signed_site import Made
from scripts.benches.synthetic import Synthetic

NOW = "2026-11-24T12:00:00.000Z"
SIZE, SHARE = 2_000, 0.1


def texts(made: list[Made]) -> dict[str, Disclosure]:
    return {one.commitment: one for entry in made for one in entry.disclosures}


def contents(made: list[Made]) -> dict[str, bytes]:
    return {digest_bytes(data): data for entry in made for data in entry.documents.values()}


def verdict(made: list[Made], log: Synthetic) -> Any:
    found = contents(made)
    entries = (entry.data for entry in made)
    return verify_log(entries, found.get, texts(made).values(), log.checkpoint(), log.trust, now=NOW)


@pytest.mark.thorough
@pytest.mark.parametrize(("size", "share"), [(100, 0.01), (SIZE, 0.01), (SIZE, SHARE), (1_500, 0.9)])
def test_a_synthetic_log_of_any_size_and_share_of_orders_is_verified(size: int, share: float) -> None:
    """The last of them loads where something is loaded, as a long log does: the earlier adapter is unloaded first."""
    log = Synthetic(size, signed=share)
    report = verdict(list(log.entries()), log)
    assert (report.verdict, report.findings) == ("verified", ())
    assert report.size == report.counts.entries == size


def test_orders_are_as_many_as_asked_for_and_spread_over_the_whole_log() -> None:
    made = list(Synthetic(SIZE, signed=SHARE).entries())
    signed = [entry.index for entry in made if "order" in entry.documents]
    later = [index for index in signed if index >= SIZE // 2]
    assert len(later) == pytest.approx(SIZE // 2 * SHARE, rel=0.1)
    assert max(b - a for a, b in pairwise(later)) < 5 / SHARE


def test_a_seed_makes_the_same_people_and_another_seed_makes_others() -> None:
    first, same, other = (Synthetic(100, seed=seed) for seed in (1, 1, 2))
    assert first.trust.administrators == same.trust.administrators != other.trust.administrators


def test_one_entry_that_is_not_as_it_was_made_is_found() -> None:
    log = Synthetic(200)
    made = list(log.entries())
    made[150] = made[150]._replace(data=made[150].data.replace(b'"v":1', b'"v":2'))
    assert verdict(made, log).verdict == "failed"


@pytest.mark.thorough
def test_the_export_is_byte_for_byte_that_of_the_product(tmp_path: Path) -> None:
    """ECDSA signatures differ each time, so both are written from one pass over the entries."""
    log, made = Synthetic(SIZE, signed=SHARE), []
    path, entries = tmp_path / "ledger.tar", log.entries

    def noted() -> Any:
        for entry in entries():
            made.append(entry)
            yield entry

    log.entries = noted  # type: ignore[method-assign]
    write_log(log, export=path)
    found, known = contents(made), texts(made)
    chunks = write_export(
        origin=log.origin,
        size=SIZE,
        checkpoint=log.checkpoint(),
        entries=lambda: (entry.data for entry in made),
        document=found.__getitem__,
        disclosures=lambda wanted: {name: known[name] for name in wanted if name in known},
    )
    assert path.read_bytes() == b"".join(chunks)


@pytest.mark.thorough
def test_the_auditors_program_verifies_the_export(tmp_path: Path) -> None:
    log = Synthetic(SIZE, signed=SHARE)
    write_log(log, export=tmp_path / "ledger.tar")
    (tmp_path / "trust.json").write_bytes(encode_trust(log.trust))
    report = verify_export(
        tmp_path / "ledger.tar", load_trust(tmp_path / "trust.json"), NOW, without_cedar_policies=True
    )
    assert (report.verdict, report.size) == ("verified, without Cedar policies", SIZE)


@pytest.mark.thorough
def test_the_filled_rows_are_those_that_the_ledger_writes(tmp_path: Path) -> None:
    """One log appended entry by entry and filled at once: every table is the same."""
    log = Synthetic(400, signed=0.2)
    now = [datetime.min]
    appended = open_engine(f"sqlite:///{tmp_path / 'appended.db'}")
    migrate(appended)
    ledger, place = open_ledger(log, appended, lambda: now[0]), DatabaseFile(tmp_path / "filled.db", log)
    for made in log.entries():
        place.take(made)
        now[0] = parse_time(made.time)
        ledger.append(draft_of(made))
    place.close()
    ledger.close()
    for table in metadata.sorted_tables:
        assert _rows(tmp_path / "filled.db", table.name) == _rows(tmp_path / "appended.db", table.name), table.name


def _rows(path: Path, table: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return sorted(connection.execute(f'SELECT * FROM "{table}"').fetchall(), key=repr)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Path]:
    log, path = Synthetic(SIZE, signed=SHARE), tmp_path_factory.mktemp("filled") / "ledger.db"
    write_log(log, database=path)
    return log, path


@pytest.fixture
def ledger(filled: tuple[Synthetic, Path]) -> Iterator[Ledger]:
    log, path = filled
    with closing(open_ledger(log, open_engine(f"sqlite:///{path}"), clock_after(log.time))) as opened:
        yield opened


@pytest.mark.thorough
def test_the_ledger_loads_the_rows_and_continues(ledger: Ledger) -> None:
    ledger.load()
    assert ledger.check_projections() == []
    assert ledger.ask(check_guards) == []
    appended = ledger.append(EntryDraft(type="heartbeat"))
    assert appended.entry.index >= SIZE
    found = ledger.find(types=["request.finished"], actor="legal", unit="legal", outcome="failure")
    assert all(b'"request.finished"' in data for _, data in found)


def test_every_entry_is_proved_to_be_in_the_signed_tree(ledger: Ledger) -> None:
    root = root_of(hash_leaf(data) for data in ledger.entries(0, SIZE))
    for index in (0, 1, 777, SIZE - 1):
        verify_inclusion(hash_leaf(ledger.entry_bytes(index)), index, SIZE, ledger.inclusion_proof(index, SIZE), root)
