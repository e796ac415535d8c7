"""An UPDATE, INSERT or DELETE on any row of the ledger, done around the database's refusals, is found and named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from appliance.domain import rules
from appliance.domain.entry import Draft, parse_entry
from appliance.errors import Tampered
from appliance.formats.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.keys import generate_ed25519
from appliance.formats.merkle import hash_leaf, root_of
from appliance.store.engine import open_engine
from appliance.store.ledger import Ledger
from tests.store.attacker import Cursor, attack
from tests.store.conftest import KINDS, Databases
from tests.store.site import ORIGIN, Site, heartbeat, refusal

Attack = Callable[[], AbstractContextManager[Cursor]]
H = b"\xaa" * 32


def fill(site: Site, url: str) -> None:
    """Eight entries: 0 the first, 1 an order (two documents), 2 its endorsement (three), 3 to 7 without documents."""
    ledger = site.open_ledger(open_engine(url))
    carol = site.enrolment("carol")
    ledger.append(site.first_draft())
    ledger.append(carol.pending)
    ledger.append(carol.enrolled)
    for _ in range(3):
        ledger.append(refusal())
    ledger.append(heartbeat())
    ledger.append(heartbeat())
    ledger.close()


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, databases: Databases, site: Site, tmp_path: Path) -> Iterator[str]:
    """As in the other modules, but with the eight entries in it."""
    kind = str(request.param)
    template = databases.filled(kind, "history", lambda url: fill(site, url))
    with databases.copy(kind, template, tmp_path) as url:
        yield url


@pytest.fixture
def history(open_ledger: Callable[[], Ledger]) -> Ledger:
    ledger = open_ledger()
    ledger.load()
    return ledger


@pytest.fixture
def around(database_url: str, databases: Databases) -> Attack:
    return lambda: attack(database_url, databases.server() if database_url.startswith("postgresql") else None)


CHANGES = [
    ("entries", "time", "'2026-11-24T12:00:00.000Z'", '"index" = 4', 4),
    ("entries", "type", "'heartbeat'", '"index" = 4', 4),
    ("entries", "actor", "'mallory'", '"index" = 4', 4),
    ("entries", "outcome", "'success'", '"index" = 4', 4),
    ("entries", "unit", "'treasury'", '"index" = 4', 4),
    ("entries", "unit", "NULL", '"index" = 4', 4),
    ("entries", "bytes", '(SELECT bytes FROM entries WHERE "index" = 5)', '"index" = 4', 4),
    ("entries", "leaf_hash", '(SELECT leaf_hash FROM entries WHERE "index" = 5)', '"index" = 4', 4),
    ("entries", '"index"', "70", '"index" = 4', 4),
    ("entries", '"index"', "70", '"index" = 7', 7),
    ("entry_subjects", "subject", "'unit:treasury'", '"index" = 4', 4),
    ("entry_subjects", '"index"', "6", '"index" = 4', 4),
    (
        "documents",
        "bytes",
        '(SELECT bytes FROM documents WHERE digest = (SELECT digest FROM entry_documents WHERE "index" = 0))',
        "digest = (SELECT digest FROM entry_documents WHERE \"index\" = 1 AND role = 'order')",
        1,
    ),
    ("entry_documents", "role", "'policy'", "\"index\" = 1 AND role = 'possession'", 1),
    (
        "entry_documents",
        "digest",
        "(SELECT digest FROM entry_documents WHERE \"index\" = 1 AND role = 'order')",
        "\"index\" = 1 AND role = 'possession'",
        1,
    ),
    ("entry_documents", '"index"', "3", "\"index\" = 1 AND role = 'possession'", 1),
    ("tree_nodes", "hash", "(SELECT hash FROM tree_nodes WHERE level = 3)", 'level = 0 AND "index" = 3', 3),
    ("tree_nodes", "hash", "(SELECT hash FROM tree_nodes WHERE level = 3)", 'level = 1 AND "index" = 2', 5),
    ("tree_nodes", "hash", 'leaf_hash FROM entries WHERE "index" = 2', 'level = 3 AND "index" = 0', 7),
    ("tree_nodes", "level", "9", 'level = 2 AND "index" = 1', 7),
    ("tree_nodes", '"index"', "9", 'level = 2 AND "index" = 1', 7),
    ("checkpoints", "note", "(SELECT note FROM checkpoints WHERE size = 7)", "size = 8", 7),
    ("checkpoints", "size", "9", "size = 8", 7),
    ("head", "size", "7", "1 = 1", 6),
    ("head", "size", "9", "1 = 1", 8),
    ("head", "leaf_hash", '(SELECT leaf_hash FROM entries WHERE "index" = 3)', "1 = 1", 7),
]


@pytest.mark.parametrize(("table", "column", "value", "where", "index"), CHANGES)
def test_a_changed_column_is_named_at_load(
    history: Ledger,
    open_ledger: Callable[[], Ledger],
    around: Attack,
    table: str,
    column: str,
    value: str,
    where: str,
    index: int,
) -> None:
    value = f"(SELECT {value})" if " FROM " in value and not value.startswith("(") else value
    with around() as database:
        assert database.execute(f"UPDATE {table} SET {column} = {value} WHERE {where}").rowcount >= 1
    with pytest.raises(Tampered, match=rf"^entry {index}\b"):
        open_ledger().load()


DELETIONS = [
    ("entries", '"index" = 4', r"entry 4\b"),
    ("entries", '"index" = 7', r"entry 7\b"),
    ("entry_subjects", '"index" = 4', r"entry 4: subjects"),
    ("documents", 'digest IN (SELECT digest FROM entry_documents WHERE "index" = 0)', r"entry 0: document policy"),
    ("entry_documents", '"index" = 2', r"entry 2: document "),
    ("tree_nodes", 'level = 0 AND "index" = 5', r"entry 5: tree node"),
    ("tree_nodes", "level = 3", r"entry 7: tree node"),
    ("checkpoints", "size = 8", r"entry 7: log checkpoint"),
    ("head", "1 = 1", r"ledger, head: expected one row, got none"),
]


@pytest.mark.parametrize(("table", "where", "message"), DELETIONS)
def test_a_deleted_row_is_named_at_load(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack, table: str, where: str, message: str
) -> None:
    with around() as database:
        assert database.execute(f"DELETE FROM {table} WHERE {where}").rowcount >= 1
    with pytest.raises(Tampered, match=message):
        open_ledger().load()


LIKE_ENTRY_7 = 'time, type, actor, outcome, unit, bytes, leaf_hash FROM entries WHERE "index" = 7'
ADDITIONS = [
    (f"INSERT INTO entries SELECT 8, {LIKE_ENTRY_7}", "entry 8: expected none beyond the head"),
    (f"INSERT INTO entries SELECT -1, {LIKE_ENTRY_7}", "entry -1: expected none beyond the head"),
    ("INSERT INTO entry_subjects VALUES (7, 'unit:legal')", "entry 7: subjects"),
    ("INSERT INTO entry_subjects VALUES (8, 'unit:legal')", "subject of entry 8: expected none"),
    (
        "INSERT INTO entry_documents SELECT 7, 'order', digest FROM documents LIMIT 1",
        "entry 7: document order: expected none",
    ),
    (
        "INSERT INTO entry_documents SELECT 9, 'order', digest FROM documents LIMIT 1",
        "document of entry 9: expected none",
    ),
    ("INSERT INTO tree_nodes SELECT 0, 8, hash FROM tree_nodes WHERE level = 3", "entry 7: tree nodes"),
    ("INSERT INTO tree_nodes SELECT 7, 0, hash FROM tree_nodes WHERE level = 3", "entry 7: tree nodes"),
    (
        "INSERT INTO checkpoints SELECT 9, note FROM checkpoints WHERE size = 8",
        "log checkpoint: expected one of size 8",
    ),
    ("INSERT INTO checkpoints SELECT 0, note FROM checkpoints WHERE size = 8", "checkpoint of size 0: expected none"),
]


@pytest.mark.parametrize(("statement", "message"), ADDITIONS)
def test_an_added_row_is_named_at_load(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack, statement: str, message: str
) -> None:
    with around() as database:
        if statement.startswith("INSERT INTO entries SELECT -1") and not hasattr(database, "commit"):
            database.execute("ALTER TABLE entries DROP CONSTRAINT ck_entries_index")
        database.execute(statement)
    with pytest.raises(Tampered, match=re.escape(message)):
        open_ledger().load()


@pytest.mark.parametrize("index", range(8))
def test_an_entry_replaced_with_its_hashes_is_found_by_the_chain_or_the_checkpoint(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack, index: int
) -> None:
    """Even when leaf hash, tree nodes and head are computed again: the next entry's prev, or the signature, is left."""
    data = history.entry_bytes(index).replace(b'"source":"service"', b'"source":"servant"')
    data = data.replace(b'"source":"tcp"', b'"source":"tpc"').replace(b'"source":"unix"', b'"source":"xinu"')
    assert data != history.entry_bytes(index)
    leaves = [hash_leaf(entry) for entry in history.entries()]
    leaves[index] = hash_leaf(data)
    with around() as database:
        database.execute('UPDATE entries SET bytes = ?, leaf_hash = ? WHERE "index" = ?', (data, leaves[index], index))
        for level in range(4):
            at = index >> level
            below = root_of(leaves[at << level : (at + 1) << level])
            database.execute('UPDATE tree_nodes SET hash = ? WHERE level = ? AND "index" = ?', (below, level, at))
        if index == 7:
            database.execute("UPDATE head SET leaf_hash = ?", (leaves[7],))
    named = min(index + 1, 7)
    with pytest.raises(Tampered, match=rf"^entry {named}: {'tree root' if index == 7 else 'prev'}"):
        open_ledger().load()


def test_a_checkpoint_by_another_key_is_found(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack
) -> None:
    root = root_of(hash_leaf(data) for data in history.entries())
    forged = sign_checkpoint(Checkpoint(ORIGIN, 8, root), generate_ed25519())
    with around() as database:
        database.execute("UPDATE checkpoints SET note = ? WHERE size = 8", (forged,))
    with pytest.raises(Tampered, match=r"^entry 7: log checkpoint of size 8"):
        open_ledger().load()


@pytest.mark.parametrize("call", ["append", "refresh"])
def test_a_running_service_follows_no_entry_that_the_logs_key_has_not_signed(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack, call: str
) -> None:
    """Chain, hashes, tree and head are right, as whoever owns the database can make them; only the key is missing."""
    open_ledger().append(refusal("treasury"))
    root = root_of(hash_leaf(data) for data in history.entries())
    forged = sign_checkpoint(Checkpoint(ORIGIN, 9, root), generate_ed25519())
    with around() as database:
        database.execute("UPDATE checkpoints SET note = ? WHERE size = 9", (forged,))
    with pytest.raises(Tampered, match=r"^entry 8: log checkpoint of size 9"):
        history.append(heartbeat()) if call == "append" else history.refresh()
    assert len(list(history.entries())) == 9, "nothing was appended after it"


def test_an_old_checkpoint_that_was_edited_is_a_finding(history: Ledger, around: Attack, site: Site) -> None:
    wrong_root = sign_checkpoint(Checkpoint(ORIGIN, 3, H), site.log_signer)
    wrong_key = sign_checkpoint(Checkpoint(ORIGIN, 4, history.state.size.to_bytes(32, "big")), generate_ed25519())
    assert history.check_checkpoints() == []
    with around() as database:
        database.execute("UPDATE checkpoints SET note = ? WHERE size = 3", (wrong_root,))
        database.execute("UPDATE checkpoints SET note = ? WHERE size = 4", (wrong_key,))
    findings = history.check_checkpoints()
    assert len(findings) == 2
    assert findings[0].startswith("log checkpoint of size 3: expected size 3, root")
    assert findings[1].startswith("log checkpoint of size 4: ")


def test_an_emptied_database_is_not_an_empty_log_to_a_service_that_knew_it(
    history: Ledger, around: Attack, site: Site
) -> None:
    with around() as database:
        for table in ("entry_documents", "entry_subjects", "documents", "entries", "tree_nodes", "checkpoints"):
            database.execute(f"DELETE FROM {table}")
        database.execute("UPDATE head SET size = 0, leaf_hash = ?", (bytes(32),))
    with pytest.raises(Tampered, match="expected a log of at least 8 entries, seen before, got 0"):
        history.append(heartbeat())
    with pytest.raises(Tampered, match="seen before"):
        history.load()


def test_a_service_does_not_sign_a_second_history_of_a_size_it_has_signed(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack, site: Site
) -> None:
    """The tail is cut off and grown again by somebody with the log's key: this service saw another entry 7."""
    leaves = [hash_leaf(data) for data in history.entries()][:7]
    with around() as database:
        database.execute('DELETE FROM entries WHERE "index" = 7')
        database.execute("DELETE FROM checkpoints WHERE size = 8")
        for level in range(4):
            database.execute('DELETE FROM tree_nodes WHERE level = ? AND "index" = ?', (level, 7 >> level))
        database.execute("UPDATE head SET size = 7, leaf_hash = ?", (leaves[6],))
    other = open_ledger()
    other.load()
    other.append(refusal("treasury"))
    with pytest.raises(Tampered, match="entry 7"):
        history.append(heartbeat())
    with pytest.raises(Tampered, match=r"entry 7: tree root of size 8: expected .* seen before"):
        history.load()


def test_a_flipped_projection_is_a_finding_and_decides_nothing(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack
) -> None:
    with around() as database:
        database.execute("UPDATE projections SET value = '{}' WHERE kind = 'principal' AND id = 'carol'")
        database.execute("UPDATE projections SET until = 5 WHERE kind = 'principal' AND id = 'alice'")
        database.execute("DELETE FROM projections WHERE kind = 'principal' AND id = 'bob'")
        database.execute("INSERT INTO projections VALUES ('principal', 'mallory', 3, NULL, '{}')")
        database.execute("UPDATE projections SET value = '{}' WHERE kind = 'pending'")
    ledger = open_ledger()
    ledger.load()
    carol = ledger.state.principals.get("carol")
    assert carol is not None and carol.roles == ("operator",)
    assert ledger.state.principals.get("mallory") is None
    named = [finding.split(":")[0] for finding in ledger.check_projections() if " pending " not in finding]
    people = (("alice", 0), ("bob", 0), ("carol", 2), ("mallory", 3))
    assert named == [f"projection principal {name} since entry {since}" for name, since in people]
    (past,) = [finding for finding in ledger.check_projections() if " pending " in finding]
    assert "until entry 2, got {} until entry 2" in past, "a value that stands no more is compared too"


def test_an_edited_disclosure_does_not_open(history: Ledger, around: Attack) -> None:
    (disclosure,) = history.all_disclosures()
    with around() as database:
        database.execute("UPDATE disclosures SET text = 'Mallory'")
    with pytest.raises(Tampered):
        history.disclosures([disclosure.commitment])
    with around() as database:
        database.execute("UPDATE disclosures SET salt = ?", (b"short",))
    with pytest.raises(Tampered):
        history.disclosures([disclosure.commitment])


def test_edited_bytes_are_not_handed_out(history: Ledger, around: Attack, site: Site) -> None:
    digest = parse_entry(history.entry_bytes(0)).documents["policy"]
    with around() as database:
        database.execute('UPDATE entries SET bytes = (SELECT bytes FROM entries WHERE "index" = 6) WHERE "index" = 7')
        database.execute("UPDATE documents SET bytes = ? WHERE bytes = ?", (b"{}", site.policy))
    with pytest.raises(Tampered, match="entry 7"):
        history.entry_bytes(7)
    with pytest.raises(Tampered, match=digest):
        history.document(digest)


def test_a_document_that_stands_with_other_bytes_is_not_bound_again(
    history: Ledger, around: Attack, site: Site
) -> None:
    dave = site.enrolment("dave")
    history.append(dave.pending)
    with around() as database:
        database.execute("UPDATE documents SET bytes = ? WHERE bytes = ?", (b"{}", dave.order))
    with pytest.raises(Tampered, match="stored bytes"):
        history.append(dave.enrolled)


def test_an_entry_that_the_rules_refuse_is_found_though_every_hash_and_signature_holds(
    history: Ledger, open_ledger: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the log's key can sign anything; the fold still asks the rules."""

    def lenient(state: object, entry: object, documents: object) -> None:
        state.size, state.last_time = entry.index + 1, entry.time  # type: ignore[attr-defined]
        state.last_leaf = f"sha256:{entry.leaf.hex()}"  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(rules, "apply", lenient)
        history.append(Draft(type="principal.enrolled", actor="mallory"))
    with pytest.raises(Tampered, match=r"^entry 8: expected one that the rules allow"):
        open_ledger().load()
