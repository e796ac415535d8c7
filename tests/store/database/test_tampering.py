"""An UPDATE, INSERT or DELETE on any row of the ledger, done around the database's refusals, is found and named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from appliance.domain.core.entry import EntryDraft, parse_entry
from appliance.errors import Tampered
from appliance.formats.core.merkle import hash_leaf, root_of
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.signatures.keys import generate_ed25519
from appliance.store.database.engine import open_engine
from appliance.store.ledger import writer
from appliance.store.ledger.ledger import Ledger
from tests.kit.attacker import Cursor, attack
from tests.kit.small_log import ORIGIN, SmallLog, heartbeat, refusal
from tests.store.conftest import KINDS, Databases

pytestmark = pytest.mark.usefixtures("filed")

Attack = Callable[[], AbstractContextManager[Cursor]]
H = b"\xaa" * 32


def fill(site: SmallLog, url: str) -> None:
    """Eight entries: 0 the first, 1 an order (two documents), 2 its countersignature (three), 3 to 7 without any."""
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
def database_url(request: pytest.FixtureRequest, databases: Databases, site: SmallLog, tmp_path: Path) -> Iterator[str]:
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


@pytest.mark.parametrize("bits", [b"\x02", b"\x01\x00", b"\x01\x01"])
def test_changed_bits_are_named_at_load(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack, bits: bytes
) -> None:
    with around() as database:
        database.execute("UPDATE entry_keys SET bits = ? WHERE block = 4 AND key = 'unit:legal'", (bits,))
    with pytest.raises(Tampered, match=r"^entry 4: key unit:legal: expected"):
        open_ledger().load()


LEAF = "substr(nodes, 1, 32)"
CHANGES = [
    ("entries", "time", "'2026-11-24T12:00:00.000Z'", '"index" = 4', 4),
    ("entries", "bytes", '(SELECT bytes FROM entries WHERE "index" = 5)', '"index" = 4', 4),
    ("entries", "nodes", '(SELECT nodes FROM entries WHERE "index" = 6)', '"index" = 4', 4),
    ("entries", "nodes", LEAF, '"index" = 5', 5),
    ("entries", '"index"', "70", '"index" = 4', 4),
    ("entries", '"index"', "70", '"index" = 7', 7),
    ("entry_keys", "key", "'unit:treasury'", "block = 4 AND key = 'unit:legal'", 4),
    ("entry_keys", "key", "'type=heartbeat'", "block = 4 AND key = 'type=request.refused'", 4),
    ("entry_keys", "key", "'actor=mallory'", "block = 4 AND key = 'actor=legal'", 4),
    ("entry_keys", "key", "'outcome=failure'", "block = 4 AND key = 'outcome=denied'", 4),
    ("entry_keys", "block", "6", "block = 4 AND key = 'unit:legal'", 4),
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
    ("head", "note", "NULL", "1 = 1", 7),
    ("head", "size", "7", "1 = 1", 6),
    ("head", "size", "9", "1 = 1", 8),
    ("head", "leaf_hash", '(SELECT substr(nodes, 1, 32) FROM entries WHERE "index" = 3)', "1 = 1", 7),
]


@pytest.mark.family(keep=14)
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


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (5, lambda nodes: nodes[:32] + nodes[:32]),
        (5, lambda nodes: nodes + nodes[:32]),
        (7, lambda nodes: nodes + nodes[:1]),
        (7, lambda nodes: nodes[:96] + nodes[:32]),
    ],
    ids=["another node", "one more", "a byte more", "another root"],
)
def test_changed_nodes_are_named_at_load(
    history: Ledger,
    open_ledger: Callable[[], Ledger],
    around: Attack,
    index: int,
    change: Callable[[bytes], bytes],
) -> None:
    with around() as database:
        (nodes,) = database.execute('SELECT nodes FROM entries WHERE "index" = ?', (index,)).fetchone()
        database.execute('UPDATE entries SET nodes = ? WHERE "index" = ?', (change(nodes), index))
    with pytest.raises(Tampered, match=rf"^entry {index}: tree node"):
        open_ledger().load()


DELETIONS = [
    ("entries", '"index" = 4', r"entry 4\b"),
    ("entries", '"index" = 7', r"entry 7\b"),
    ("entry_keys", "block = 4 AND key = 'unit:legal'", r"entry 4: key unit:legal: expected filed, got not"),
    ("entry_keys", "key = 'type=heartbeat'", r"entry 6: key type=heartbeat: expected filed, got not"),
    ("entry_keys", "1 = 1", r"entry 0: key type=appliance.initialized: expected filed, got not"),
    ("documents", 'digest IN (SELECT digest FROM entry_documents WHERE "index" = 0)', r"entry 0: document policy"),
    ("entry_documents", '"index" = 2', r"entry 2: document "),
    ("head", "1 = 1", r"ledger, head: expected one row, got none"),
]


@pytest.mark.family(keep=8)
@pytest.mark.parametrize(("table", "where", "message"), DELETIONS)
def test_a_deleted_row_is_named_at_load(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack, table: str, where: str, message: str
) -> None:
    with around() as database:
        assert database.execute(f"DELETE FROM {table} WHERE {where}").rowcount >= 1
    with pytest.raises(Tampered, match=message):
        open_ledger().load()


LIKE_ENTRY_7 = 'time, nodes, bytes FROM entries WHERE "index" = 7'
A_BIT = "bits FROM entry_keys WHERE block = 4 AND key = 'unit:legal'"
ADDITIONS = [
    (f"INSERT INTO entries SELECT 8, {LIKE_ENTRY_7}", "entry 8: expected none beyond the head"),
    (f"INSERT INTO entries SELECT -1, {LIKE_ENTRY_7}", "entry -1: expected none beyond the head"),
    (f"INSERT INTO entry_keys SELECT 'unit:legal', 7, {A_BIT}", "entry 7: key unit:legal: expected not, got filed"),
    (f"INSERT INTO entry_keys SELECT 'unit:nobody', 7, {A_BIT}", "entry 7: key unit:nobody: expected not, got filed"),
    (f"INSERT INTO entry_keys SELECT 'unit:legal', 8, {A_BIT}", "entry 8: key unit:legal: expected not, got filed"),
    (f"INSERT INTO entry_keys SELECT 'unit:legal', -1, {A_BIT}", "entry -1: key unit:legal: expected not, got filed"),
    (
        "INSERT INTO entry_documents SELECT 7, 'order', digest FROM documents LIMIT 1",
        "entry 7: document order: expected none",
    ),
    (
        "INSERT INTO entry_documents SELECT 9, 'order', digest FROM documents LIMIT 1",
        "document of entry 9: expected none",
    ),
]


@pytest.mark.family(keep=8)
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


def nodes_of(leaves: list[bytes], index: int) -> bytes:
    """Return the stored nodes of this entry's row: the roots of the perfect subtrees that end with it."""
    widths = [1 << level for level in range(8) if (index + 1) % (1 << level) == 0]
    return b"".join(root_of(leaves[index + 1 - width : index + 1]) for width in widths)


@pytest.mark.family(keep=6)
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
        database.execute('UPDATE entries SET bytes = ? WHERE "index" = ?', (data, index))
        for place in range(index, 8):
            nodes = nodes_of(leaves, place)
            database.execute('UPDATE entries SET nodes = ? WHERE "index" = ?', (nodes, place))
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
        database.execute("UPDATE head SET note = ?", (forged,))
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
        database.execute("UPDATE head SET note = ?", (forged,))
    with pytest.raises(Tampered, match=r"^entry 8: log checkpoint of size 9"):
        history.append(heartbeat()) if call == "append" else history.refresh()
    assert len(list(history.entries())) == 9, "nothing was appended after it"


def test_an_earlier_checkpoint_in_the_place_of_the_last_is_found(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack, site: SmallLog
) -> None:
    """Signed by the log's own key, over this very log as it was."""
    root = root_of([hash_leaf(data) for data in history.entries()][:7])
    earlier = sign_checkpoint(Checkpoint(ORIGIN, 7, root), site.log_signer)
    with around() as database:
        database.execute("UPDATE head SET note = ?", (earlier,))
    with pytest.raises(Tampered, match="entry 7: log checkpoint, size: expected 8, got 7"):
        open_ledger().load()


def test_a_key_that_is_added_while_the_service_runs_is_found_when_its_rows_are_checked(
    history: Ledger, around: Attack
) -> None:
    assert history.check_projections() == []
    with around() as database:
        database.execute("INSERT INTO entry_keys VALUES ('unit:treasury', 3, ?)", (b"\x01",))
    with pytest.raises(Tampered, match="entry 3: key unit:treasury: expected not, got filed"):
        history.check_projections()


def test_an_emptied_database_is_not_an_empty_log_to_a_service_that_knew_it(
    history: Ledger, around: Attack, site: SmallLog
) -> None:
    with around() as database:
        for table in ("entry_documents", "entry_keys", "documents", "entries"):
            database.execute(f"DELETE FROM {table}")
        database.execute("UPDATE head SET size = 0, leaf_hash = ?", (bytes(32),))
    with pytest.raises(Tampered, match="expected a log of at least 8 entries, seen before, got 0"):
        history.append(heartbeat())
    with pytest.raises(Tampered, match="seen before"):
        history.load()


def test_a_service_does_not_sign_a_second_history_of_a_size_it_has_signed(
    history: Ledger, open_ledger: Callable[[], Ledger], around: Attack, site: SmallLog
) -> None:
    """The tail is cut off and grown again by somebody with the log's key: this service saw another entry 7."""
    leaves = [hash_leaf(data) for data in history.entries()][:7]
    with around() as database:
        database.execute('DELETE FROM entries WHERE "index" = 7')
        database.execute("DELETE FROM entry_keys WHERE block = 7")
        note = sign_checkpoint(Checkpoint(ORIGIN, 7, root_of(leaves)), site.log_signer)
        database.execute("UPDATE head SET size = 7, leaf_hash = ?, note = ?", (leaves[6], note))
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
    (disclosure,) = history.signed_texts()[1]
    with around() as database:
        database.execute("UPDATE disclosures SET text = 'Mallory'")
    with pytest.raises(Tampered):
        history.disclosures([disclosure.commitment])
    with around() as database:
        database.execute("UPDATE disclosures SET salt = ?", (b"short",))
    with pytest.raises(Tampered):
        history.disclosures([disclosure.commitment])


def test_edited_bytes_are_not_handed_out(history: Ledger, around: Attack, site: SmallLog) -> None:
    digest = parse_entry(history.entry_bytes(0)).documents["policy"]
    with around() as database:
        database.execute('UPDATE entries SET bytes = (SELECT bytes FROM entries WHERE "index" = 6) WHERE "index" = 7')
        database.execute("UPDATE documents SET bytes = ? WHERE bytes = ?", (b"{}", site.policy))
    with pytest.raises(Tampered, match="entry 7"):
        history.entry_bytes(7)
    with pytest.raises(Tampered, match=digest):
        history.document(digest)


def test_a_document_that_stands_with_other_bytes_is_not_bound_again(
    history: Ledger, around: Attack, site: SmallLog
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
    """An attacker with the log's key can sign anything; the state replay still applies the rules."""

    def lenient(state: object, entry: object, documents: object) -> None:
        state.size, state.last_time = entry.index + 1, entry.time  # type: ignore[attr-defined]
        state.last_leaf = f"sha256:{entry.leaf.hex()}"  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(writer, "apply", lenient)
        history.append(EntryDraft(type="principal.enrolled", actor="mallory"))
    with pytest.raises(Tampered, match=r"^entry 8: expected one that the rules allow"):
        open_ledger().load()
