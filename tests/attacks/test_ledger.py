"""Changes by a database administrator are detected: edited, removed and added rows, and a column set to approved."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from appliance import wiring
from appliance.domain.releases.activations import Activate
from appliance.errors import Tampered
from appliance.formats.core.merkle import hash_leaf
from appliance.store.database.tables import APPEND_ONLY, entry_keys, removed_entries
from appliance.store.ledger.search_index import BLOCK
from scripts.kit.appliance import Appliance, Refused
from tests.kit.small_log import heartbeat

Spoil = Callable[[], Appliance]


def database(site: Appliance) -> Path:
    assert site.settings.database_file is not None
    return site.settings.database_file


@contextmanager
def opened(site: Appliance) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(database(site), isolation_level=None)) as connection:
        yield connection


@contextmanager
def around_the_refusal(site: Appliance) -> Iterator[sqlite3.Connection]:
    """Remove the database's own refusals while the block runs, and restore them exactly."""
    with opened(site) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f'DROP TRIGGER "{name}"')
        yield connection
        for _, sql in triggers:
            connection.execute(sql)


def refuses_to_start(site: Appliance) -> str:
    """Return the last message in the log of a service that ended with the exit code of Tampered, before it answered."""
    site.start(wait=False)
    assert site.service is not None
    code = site.service.wait(60)
    site.service = None
    assert code == Tampered.exit_code, site.log()[-2000:]
    *_, said, manual = site.log().rstrip().splitlines()
    assert manual.startswith("manual: ")
    return said


@pytest.mark.thorough
def test_the_database_itself_refuses_to_change_or_remove_any_row(shared: Appliance) -> None:
    with opened(shared) as connection:
        # A log as short as this one has no whole block, so no row of keys, and no archive, so no removed entries:
        # store/database/test_guards.py has rows of both.
        for table in (table for table in APPEND_ONLY if table not in (entry_keys, removed_entries)):
            count = f"SELECT count(*) FROM {table.name}"
            before = connection.execute(count).fetchone()
            assert before[0] > 0, table.name
            column = table.columns.values()[-1].name
            replacing = f"INSERT OR REPLACE INTO {table.name} SELECT * FROM {table.name} LIMIT 1"
            for statement in (
                f'UPDATE {table.name} SET "{column}" = "{column}"',
                f"DELETE FROM {table.name}",
                replacing,
            ):
                with pytest.raises(sqlite3.DatabaseError, match="append-only"):
                    connection.execute(statement)
            assert connection.execute(count).fetchone() == before
    assert shared.verify()["local_findings"] == []


@pytest.mark.thorough
def test_a_refusal_that_was_switched_off_is_named_by_verify(founded: Appliance) -> None:
    """Nothing was changed yet, and every entry is as it was: the database would no longer refuse to."""
    with opened(founded) as connection:
        connection.execute("DROP TRIGGER entries_refuse_delete")
    report = founded.verify()
    assert report["verdict"] == "failed"
    (finding,) = report["local_findings"]
    assert finding.startswith("trigger entries_refuse_delete on entries: expected CREATE TRIGGER ")
    assert finding.endswith(", got none; restore it as migrations/ makes it")


@pytest.mark.thorough
def test_a_planted_trigger_is_named_by_verify_and_by_a_start_before_it_copies_more(founded: Appliance) -> None:
    """It keeps what two administrators erase."""
    with opened(founded) as connection:
        connection.execute("CREATE TABLE kept (text TEXT)")
        steal = "CREATE TRIGGER keep AFTER INSERT ON disclosures BEGIN INSERT INTO kept VALUES (NEW.text); END"
        connection.execute(steal)
    report = founded.verify()
    assert (report["verdict"], len(report["local_findings"])) == ("failed", 2)
    assert report["local_findings"][1].startswith("trigger keep on disclosures: expected none, got CREATE TRIGGER keep")
    founded.stop()
    said = refuses_to_start(founded)
    assert "[schema]" in said and "table kept: expected none" in said and "trigger keep on disclosures" in said
    with opened(founded) as connection:
        connection.execute("DROP TRIGGER keep")
        connection.execute("DROP TABLE kept")
    founded.start()
    assert founded.verify()["verdict"] == "verified"


@pytest.mark.thorough
def test_yesterdays_database_of_a_young_log_is_refused_after_an_orderly_end(founded: Appliance) -> None:
    """No witness, and far fewer entries than are sealed while a service runs."""
    founded.stop()
    yesterday = founded.home / "yesterday.db"
    shutil.copy(database(founded), yesterday)
    founded.start()
    founded.enrol("clerk", "operator")
    founded.stop()
    today = database(founded).read_bytes()
    shutil.copy(yesterday, database(founded))
    told = refuses_to_start(founded)
    assert "expected at least" in told and "[log-truncated]" in told and "appliance serve --restoration" in told
    database(founded).write_bytes(today)
    founded.start()
    assert founded.verify()["verdict"] == "verified"


def flip(data: bytes) -> bytes:
    """Return the data with one bit changed in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture(scope="module")
def stopped(golden: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Appliance]:
    """Return a function that makes stopped copies of the golden site, of which only database and keys are read."""
    made: list[Appliance] = []

    def make() -> Appliance:
        made.append(golden.copy(tmp_path_factory.mktemp("l") / "h", 1))
        return made[-1]

    return make


@pytest.mark.parametrize("index", [0, 3, 20, -1])
def test_a_changed_byte_of_an_entry_is_named_at_start(stopped: Spoil, index: int) -> None:
    site = stopped()
    with around_the_refusal(site) as connection:
        if index < 0:
            index = connection.execute('SELECT max("index") FROM entries').fetchone()[0]
        (data,) = connection.execute('SELECT bytes FROM entries WHERE "index" = ?', (index,)).fetchone()
        connection.execute('UPDATE entries SET bytes = ? WHERE "index" = ?', (flip(data), index))
    assert re.search(rf"\bentry {index}: ", refuses_to_start(site))


def test_an_entry_changed_with_its_leaf_hash_is_named_by_its_place_in_the_tree(stopped: Spoil) -> None:
    """A careful administrator also writes the hash that belongs to the changed bytes."""
    site = stopped()
    with around_the_refusal(site) as connection:
        (data,) = connection.execute('SELECT bytes FROM entries WHERE "index" = 4').fetchone()
        changed = data.replace(b'"source":"unix:', b'"source":"unit:')
        assert changed != data
        leaf = hash_leaf(changed)
        connection.execute('UPDATE entries SET bytes = ?, nodes = ? WHERE "index" = 4', (changed, leaf))
    # The chain of the entry after it.
    assert re.search(r"\bentry [45]: ", refuses_to_start(site))


def test_a_removed_entry_is_named(stopped: Spoil) -> None:
    site = stopped()
    with around_the_refusal(site) as connection:
        for table in ("entry_documents", "entries"):
            connection.execute(f'DELETE FROM {table} WHERE "index" = 7')
    assert "entry 7: " in refuses_to_start(site)


def test_a_tail_cut_off_is_named(stopped: Spoil) -> None:
    """Documents and row of the last entry go; the head still says how long the log was."""
    site = stopped()
    with around_the_refusal(site) as connection:
        last = connection.execute('SELECT max("index") FROM entries').fetchone()[0]
        for table in ("entry_documents", "entries"):
            connection.execute(f'DELETE FROM {table} WHERE "index" = ?', (last,))
    assert f"entry {last}: " in refuses_to_start(site)


@pytest.mark.parametrize("type_", ["appliance.initialized", "principal.enrolled", "adapter.sealed"])
def test_a_changed_document_is_named_by_the_entry_that_binds_it(stopped: Spoil, type_: str) -> None:
    site = stopped()
    with around_the_refusal(site) as connection:
        index, digest, data = connection.execute(
            'SELECT e."index", d.digest, d.bytes FROM entries e JOIN entry_documents USING ("index") '
            "JOIN documents d USING (digest) WHERE e.bytes ->> '$.type' = ? LIMIT 1",
            (type_,),
        ).fetchone()
        first = connection.execute('SELECT min("index") FROM entry_documents WHERE digest = ?', (digest,)).fetchone()[0]
        connection.execute("UPDATE documents SET bytes = ? WHERE digest = ?", (flip(data), digest))
    assert first <= index
    assert f"entry {first}: document" in refuses_to_start(site)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry_keys SET key = 'principal:nobody' WHERE key = ?",
        "UPDATE entry_keys SET bits = x'01' WHERE key = ?",
        "DELETE FROM entry_keys WHERE key = ?",
    ],
)
def test_a_changed_subject_is_named(stopped: Spoil, statement: str) -> None:
    site = stopped()
    with wiring.service(site.settings) as context:
        context.ledger.append_all([heartbeat()] * BLOCK)
        (first, _), *_ = context.ledger.find(subjects=["adapter:clauses@1"])
    with around_the_refusal(site) as connection:
        assert connection.execute(statement, ("adapter:clauses@1",)).rowcount == 1
    said = refuses_to_start(site)
    assert re.search(rf"entry (0|{first}): key adapter:clauses@1: expected (filed, got not|not, got filed)", said)


@pytest.mark.parametrize(("level", "index"), [(1, 5), (2, 3), (3, 7)])
def test_a_changed_node_of_the_tree_is_named_by_the_entry_that_completed_it(
    stopped: Spoil, level: int, index: int
) -> None:
    site = stopped()
    with around_the_refusal(site) as connection:
        (nodes,) = connection.execute('SELECT nodes FROM entries WHERE "index" = ?', (index,)).fetchone()
        start = 32 * level
        changed = nodes[:start] + flip(nodes[start : start + 32]) + nodes[start + 32 :]
        connection.execute('UPDATE entries SET nodes = ? WHERE "index" = ?', (changed, index))
    assert f"entry {index}: tree node ({level}, {index >> level})" in refuses_to_start(site)


def test_an_invented_entry_behind_the_last_is_named(stopped: Spoil) -> None:
    """Everything but the log's key: the row, its hash and the head's row."""
    site = stopped()
    with around_the_refusal(site) as connection:
        row = connection.execute('SELECT * FROM entries ORDER BY "index" DESC LIMIT 1').fetchone()
        index, data = row[0] + 1, row[3]
        entry = json.loads(data)
        entry["index"], entry["prev"] = index, "sha256:" + row[2][:32].hex()
        invented = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        leaf = hash_leaf(invented)
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (index, row[1], leaf, invented))
        connection.execute("UPDATE head SET size = ?, leaf_hash = ?", (index + 1, leaf))
    assert f"entry {index}: " in refuses_to_start(site)


@pytest.mark.essential
def test_a_row_flipped_to_approved_admits_nothing_and_verify_names_it(site: Appliance) -> None:
    """Reviews are invented in the adapter's row, and a release, while the service runs and across a restart."""
    row = site.adapter()
    reviews = [
        {
            "reviewer": name, "keyid": site.keys[name].keyid, "review_function": field, "unit": "legal",
            "decision": "approve", "valid_until": "2099-01-01T00:00:00.000Z",
            "index": row["index"], "order": "sha256:" + "11" * 32,
        }
        for name, field in (("rita", "privacy"), ("rob", "model-risk"))
    ]  # fmt: skip
    with opened(site) as connection:
        key, value = connection.execute("SELECT id, value FROM projections WHERE kind = 'adapter'").fetchone()
        assert key == "clauses@1"
        flipped = json.dumps(json.loads(value) | {"reviews": reviews}, sort_keys=True, separators=(",", ":"))
        assert (
            connection.execute(
                "UPDATE projections SET value = ? WHERE kind = 'adapter' AND id = ?", (flipped, key)
            ).rowcount
            == 1
        )
    for restarted in (False, True):
        if restarted:
            site.stop()
            site.start()
        with pytest.raises(Refused) as refused:
            site.order(
                Activate(
                    unit="legal",
                    served_model="labels",
                    adds_instruction=False,
                    **site.on("clauses@1"),
                    **site.terms("lou"),
                )
            )
        assert any("valid approvals" in reason and "has 0" in reason for reason in refused.value.reasons)
        with pytest.raises(Refused) as unknown:
            site.chat("legal", "labels")
        assert unknown.value.code == "model-not-found"
        assert site.adapter()["reviews"] == []
        report = site.verify()
        assert report["verdict"] == "failed"
        assert any(f"projection adapter {key}" in finding for finding in report["local_findings"])


@pytest.mark.thorough
def test_what_was_changed_under_a_running_service_is_found_by_verify(site: Appliance) -> None:
    with around_the_refusal(site) as connection:
        (data,) = connection.execute('SELECT bytes FROM entries WHERE "index" = 9').fetchone()
        connection.execute('UPDATE entries SET bytes = ? WHERE "index" = 9', (flip(data),))
    try:
        report = site.verify()
    except Refused as refused:
        assert (refused.status, refused.code) == (422, "tampered")
        assert "entry 9" in refused.message
    else:
        assert report["verdict"] == "failed"
        assert any(finding["index"] == 9 for finding in report["findings"])
    assert os.path.exists(site.settings.socket)
