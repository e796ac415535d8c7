"""The cache of tree nodes: recent entries are proved without a query, with the same hashes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from appliance.formats.core.merkle import (
    Frontier,
    consistency_proof,
    hash_leaf,
    inclusion_proof,
    root_of,
    verify_inclusion,
)
from appliance.store.ledger import rows as module
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.rows import Nodes, Place
from tests.kit.faults import failing
from tests.kit.small_log import heartbeat

LEAVES = [hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(300)]


def refuse(places: list[Place]) -> dict[Place, bytes]:
    raise AssertionError(f"expected no question, got one for {places}")


def grow(nodes: Nodes, frontier: Frontier, stop: int, batch: int) -> Frontier:
    """Append leaves up to `stop`, so many at a time."""
    while frontier.size < stop:
        before, completed = frontier, []
        for leaf in LEAVES[frontier.size : min(frontier.size + batch, stop)]:
            frontier, made = frontier.append_nodes(leaf)
            completed.append(made)
        nodes.add(before, completed)
    return frontier


def edge(size: int) -> Frontier:
    frontier = Frontier.EMPTY
    for leaf in LEAVES[:size]:
        frontier = frontier.append(leaf)
    return frontier


@pytest.mark.parametrize("start", [0, 1, 63, 64, 100, 127, 200])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_what_was_appended_since_is_proved_without_a_question(start: int, batch: int) -> None:
    nodes = Nodes()
    stop = grow(nodes, edge(start), 300, batch).size
    root = root_of(LEAVES)
    for index in range(start, stop):
        proof = nodes.prove(lambda node, index=index: inclusion_proof(index, 300, node), refuse)  # type: ignore[misc]
        verify_inclusion(LEAVES[index], index, 300, proof, root)


def test_whatever_is_remembered_the_proofs_are_those_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgetting, a log that others went on with, and any size: nothing changes a hash."""
    monkeypatch.setattr(module, "_RECENT", 16)
    monkeypatch.setattr(module, "_KEPT_LEVEL", 3)
    stored: dict[Place, bytes] = {}
    for at in range(300):
        for level, node in enumerate(edge(at).append_nodes(LEAVES[at])[1]):
            stored[level, at >> level] = node
    chosen, nodes, size = random.Random(1), Nodes(), 0
    while size < 300:
        # What another service appended meanwhile is not remembered.
        size = min(size + chosen.choice([0, 0, 5]), 299)
        size = grow(nodes, edge(size), min(size + chosen.randrange(1, 20), 300), chosen.choice([1, 8])).size
        for _ in range(20):
            until, index = chosen.randrange(1, size + 1), 0
            index = chosen.randrange(until)
            read = lambda places: {place: stored[place] for place in places}  # noqa: E731
            got = nodes.prove(lambda node: inclusion_proof(index, until, node), read)  # noqa: B023
            assert got == inclusion_proof(index, until, lambda level, at: stored[level, at])
            got = nodes.prove(lambda node: consistency_proof(index, until, node), read)  # noqa: B023
            assert got == consistency_proof(index, until, lambda level, at: stored[level, at])


def test_a_service_proves_its_last_appends_with_no_database(
    ledger: Ledger, open_ledger: Callable[[], Ledger], engine: Engine
) -> None:
    appended = [ledger.append(heartbeat()) for _ in range(5)]
    with failing(ledger._engine, 0, after=False) as steps:
        proofs = [ledger.inclusion_proof(one.entry.index, 6) for one in appended]
    assert steps.fired is None
    other = open_ledger()
    assert proofs == [other.inclusion_proof(one.entry.index, 6) for one in appended]
    root = root_of(hash_leaf(data) for data in other.entries())
    for one, proof in zip(appended, proofs, strict=True):
        verify_inclusion(one.entry.leaf, one.entry.index, 6, proof, root)


def test_what_a_failed_commit_would_have_appended_is_not_remembered(ledger: Ledger) -> None:
    with failing(ledger._engine, "COMMIT", after=False), pytest.raises(Exception, match="injected"):
        ledger.append(heartbeat())
    appended = ledger.append(heartbeat())
    assert appended.entry.index == 1
    proof = ledger.inclusion_proof(1, 2)
    verify_inclusion(appended.entry.leaf, 1, 2, proof, root_of(hash_leaf(data) for data in ledger.entries()))
