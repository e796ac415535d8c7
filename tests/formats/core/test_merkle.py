"""The tree is RFC 6962's: the reference roots and proofs come out, and no proof passes for anything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BadInput, Tampered
from appliance.formats.core.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    consistency_proof,
    hash_leaf,
    hash_node,
    inclusion_proof,
    root_of,
    verify_consistency,
    verify_inclusion,
)

CT = json.loads((Path(__file__).resolve().parents[2] / "vectors/rfc6962.json").read_text())
CT_LEAVES = [hash_leaf(bytes.fromhex(leaf)) for leaf in CT["leaves"]]
CT_ROOTS = [bytes.fromhex(root) for root in CT["roots"]]
LARGEST = 70
LEAVES = [hash_leaf(b"leaf %d" % index) for index in range(LARGEST)]


def mth(leaves: list[bytes]) -> bytes:
    """MTH as RFC 6962 section 2.1 writes it down, slowly."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + mth(leaves[:split]) + mth(leaves[split:])).digest()


ROOTS = [mth(LEAVES[:size]) for size in range(LARGEST + 1)]


def stored(leaves: list[bytes]) -> dict[tuple[int, int], bytes]:
    """Every node that the appends complete, as a store would keep them."""
    nodes: dict[tuple[int, int], bytes] = {}
    frontier = Frontier.EMPTY
    for at, leaf in enumerate(leaves):
        frontier, completed = frontier.append_nodes(leaf)
        for level, node in enumerate(completed):
            assert (level, at >> level) not in nodes
            nodes[level, at >> level] = node
    return nodes


@cache
def nodes_of_all() -> dict[tuple[int, int], bytes]:
    return stored(LEAVES)


def read(level: int, index: int) -> bytes:
    return nodes_of_all()[level, index]


def read_ct(level: int, index: int) -> bytes:
    return stored(CT_LEAVES)[level, index]


@pytest.mark.parametrize("size", range(9))
def test_the_reference_tree_has_the_reference_root_at_every_size(size: int) -> None:
    assert root_of(CT_LEAVES[:size]) == CT_ROOTS[size]
    frontier = Frontier.EMPTY
    for leaf in CT_LEAVES[:size]:
        frontier = frontier.append(leaf)
    assert (frontier.size, frontier.root()) == (size, CT_ROOTS[size])


@pytest.mark.parametrize("case", CT["inclusion"], ids=lambda case: f"{case['index']}-of-{case['size']}")
def test_reference_inclusion_proofs_come_out_and_hold(case: dict[str, object]) -> None:
    index, size, proof = case["index"], case["size"], [bytes.fromhex(h) for h in case["proof"]]
    assert inclusion_proof(index, size, read_ct) == proof
    verify_inclusion(CT_LEAVES[index], index, size, proof, CT_ROOTS[size])


@pytest.mark.parametrize("case", CT["consistency"], ids=lambda case: f"{case['old']}-to-{case['new']}")
def test_reference_consistency_proofs_come_out_and_hold(case: dict[str, object]) -> None:
    old, new, proof = case["old"], case["new"], [bytes.fromhex(h) for h in case["proof"]]
    assert consistency_proof(old, new, read_ct) == proof
    verify_consistency(old, new, proof, CT_ROOTS[old], CT_ROOTS[new])


def test_a_leaf_is_never_a_node() -> None:
    left, right = LEAVES[0], LEAVES[1]
    assert hash_leaf(left + right) != hash_node(left, right)
    assert root_of([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()


def test_roots_agree_with_the_definition_at_every_size() -> None:
    frontier = Frontier.EMPTY
    for size in range(LARGEST + 1):
        assert root_of(LEAVES[:size]) == frontier.root() == ROOTS[size]
        if size < LARGEST:
            frontier = frontier.append(LEAVES[size])


def test_a_tree_has_the_root_of_its_leaves_at_every_size_it_grows_through() -> None:
    tree, frontier = Tree(), Frontier.EMPTY
    assert (tree.size, tree.root()) == (0, EMPTY_ROOT)
    for leaf in LEAVES:
        tree.add(leaf)
        frontier = frontier.append(leaf)
        assert (tree.size, tree.root()) == (frontier.size, frontier.root())


def test_stored_nodes_are_the_roots_of_perfect_subtrees() -> None:
    for (level, index), node in nodes_of_all().items():
        assert node == mth(LEAVES[index << level : (index + 1) << level])
    assert {key for key in nodes_of_all() if key[0] == 0} == {(0, index) for index in range(LARGEST)}


def test_every_inclusion_proof_holds_for_its_leaf_and_reads_few_nodes() -> None:
    for size in range(1, LARGEST + 1):
        for index in range(size):
            reads: list[tuple[int, int]] = []
            proof = inclusion_proof(index, size, _counting(reads))
            verify_inclusion(LEAVES[index], index, size, proof, ROOTS[size])
            assert len(proof) <= (size - 1).bit_length()
            assert len(reads) <= 2 * size.bit_length()


def test_every_consistency_proof_holds_and_reads_few_nodes() -> None:
    for new in range(LARGEST + 1):
        for old in range(new + 1):
            reads: list[tuple[int, int]] = []
            proof = consistency_proof(old, new, _counting(reads))
            verify_consistency(old, new, proof, ROOTS[old], ROOTS[new])
            assert len(reads) <= 2 * new.bit_length()


def _counting(reads: list[tuple[int, int]]) -> Callable[[int, int], bytes]:
    def node(level: int, index: int) -> bytes:
        reads.append((level, index))
        return read(level, index)

    return node


def test_an_inclusion_proof_holds_for_no_other_leaf_place_size_or_root() -> None:
    for size in (1, 2, 3, 7, 8, 13):
        for index in range(size):
            proof = inclusion_proof(index, size, read)
            for other in range(size):
                if other != index:
                    _refuse_inclusion(LEAVES[other], index, size, proof, ROOTS[size])
                    _refuse_inclusion(LEAVES[index], other, size, proof, ROOTS[size])
            _refuse_inclusion(LEAVES[index], index, size, proof, ROOTS[size + 1])
            _refuse_inclusion(LEAVES[index], size, size, proof, ROOTS[size])
            _refuse_inclusion(LEAVES[index], -1, size, proof, ROOTS[size])
            _refuse_inclusion(LEAVES[index], index, size, [*proof, LEAVES[0]], ROOTS[size])
            _refuse_inclusion(LEAVES[index], index, size, [LEAVES[0], *proof], ROOTS[size])
            if proof:
                _refuse_inclusion(LEAVES[index], index, size, proof[:-1], ROOTS[size])
                _refuse_inclusion(LEAVES[index], index, size, proof[1:], ROOTS[size])
                _refuse_inclusion(LEAVES[index], index, size, [proof[0][:31], *proof[1:]], ROOTS[size])


def _refuse_inclusion(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> None:
    with pytest.raises(Tampered):
        verify_inclusion(leaf, index, size, proof, root)


def test_a_consistency_proof_holds_for_no_other_tree() -> None:
    for new in (1, 2, 3, 7, 8, 13):
        for old in range(1, new + 1):
            proof = consistency_proof(old, new, read)
            _refuse_consistency(old, new, proof, ROOTS[old - 1], ROOTS[new])
            _refuse_consistency(old, new, proof, ROOTS[old], ROOTS[new + 1])
            _refuse_consistency(old, new, [*proof, LEAVES[0]], ROOTS[old], ROOTS[new])
            if proof:
                _refuse_consistency(old, new, proof[:-1], ROOTS[old], ROOTS[new])
                _refuse_consistency(old, new, proof[1:], ROOTS[old], ROOTS[new])
                _refuse_consistency(old, new, [proof[0], *proof[1:-1], proof[-1][::-1]], ROOTS[old], ROOTS[new])
                _refuse_consistency(old, new, [], ROOTS[old], ROOTS[new])


def _refuse_consistency(old: int, new: int, proof: list[bytes], old_root: bytes, new_root: bytes) -> None:
    with pytest.raises(Tampered):
        verify_consistency(old, new, proof, old_root, new_root)


def test_a_proof_of_another_length_is_refused_even_for_the_root_it_leads_to() -> None:
    """The size in a signed checkpoint fixes the shape of the proof; a made-up root must not change it."""
    extra = LEAVES[9]
    _refuse_inclusion(LEAVES[0], 0, 1, [extra], hash_node(extra, LEAVES[0]))
    _refuse_inclusion(LEAVES[0], 0, 8, [LEAVES[1]], ROOTS[2])
    _refuse_consistency(2, 8, [read(1, 1)], ROOTS[2], ROOTS[4])
    proof = [*consistency_proof(3, 4, read), extra]
    _refuse_consistency(3, 4, proof, hash_node(extra, ROOTS[3]), hash_node(extra, ROOTS[4]))


def test_the_empty_tree_comes_before_every_tree_and_has_the_empty_root() -> None:
    verify_consistency(0, 5, [], EMPTY_ROOT, ROOTS[5])
    _refuse_consistency(0, 5, [], ROOTS[1], ROOTS[5])
    _refuse_consistency(0, 5, [LEAVES[0]], EMPTY_ROOT, ROOTS[5])
    _refuse_consistency(0, 0, [], ROOTS[1], ROOTS[1])
    _refuse_consistency(5, 4, [], ROOTS[5], ROOTS[4])
    _refuse_inclusion(LEAVES[0], 0, 0, [], EMPTY_ROOT)


def test_proofs_that_do_not_exist_are_bad_input() -> None:
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(BadInput):
            inclusion_proof(index, size, read)
    for old, new in ((6, 5), (-1, 5)):
        with pytest.raises(BadInput):
            consistency_proof(old, new, read)


def test_a_leaf_hash_has_32_bytes() -> None:
    for leaf in (b"", LEAVES[0][:31], LEAVES[0] + b"x"):
        for frontier in (Frontier.EMPTY, Frontier.EMPTY.append(LEAVES[0])):
            with pytest.raises(BadInput):
                frontier.append(leaf)
        with pytest.raises(BadInput):
            root_of([LEAVES[0], leaf])


def test_a_frontier_has_as_many_hashes_as_its_size_has_bits() -> None:
    Frontier(5, (LEAVES[0], LEAVES[1]))
    for size, hashes in ((5, (LEAVES[0],)), (0, (LEAVES[0],)), (-1, ()), (1, (b"short",))):
        with pytest.raises(BadInput):
            Frontier(size, hashes)


@settings(deadline=None)
@given(st.integers(1, LARGEST), st.data())
def test_one_flipped_bit_breaks_an_inclusion_proof(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    hashes = [LEAVES[index], *inclusion_proof(index, size, read), ROOTS[size]]
    place, bit = data.draw(st.integers(0, len(hashes) - 1)), data.draw(st.integers(0, 255))
    hashes[place] = (int.from_bytes(hashes[place], "big") ^ 1 << bit).to_bytes(32, "big")
    _refuse_inclusion(hashes[0], index, size, hashes[1:-1], hashes[-1])


@settings(deadline=None)
@given(st.integers(0, 2**70), st.integers(0, 2**70), st.lists(st.binary(min_size=32, max_size=32), max_size=80))
def test_made_up_proofs_of_huge_trees_are_refused(first: int, second: int, proof: list[bytes]) -> None:
    with pytest.raises(Tampered):
        verify_inclusion(LEAVES[0], first, second, proof, LEAVES[1])
    with pytest.raises(Tampered):
        verify_consistency(first, second, proof, LEAVES[0], LEAVES[1])
