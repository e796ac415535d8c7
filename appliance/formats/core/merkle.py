"""Merkle trees of RFC 6962 section 2.1 (the same as RFC 9162 section 2.1), over SHA-256.

A *leaf hash* is SHA-256(0x00 ‖ data), a node SHA-256(0x01 ‖ left ‖ right), the empty tree SHA-256(""). A stored node
(level, index) is the root of the perfect subtree over the leaves [index * 2^level, (index + 1) * 2^level): it never
changes once complete, so proofs for every size are computed from stored nodes alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from appliance.errors import BadInput, Tampered

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

ReadNode = Callable[[int, int], bytes]


def hash_leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """The tree's root over leaf hashes in order, in one pass and O(log n) memory."""
    tree = Tree()
    for leaf in leaf_hashes:
        _check_hashes("leaf", (leaf,), BadInput)
        tree.add(leaf)
    return tree.root()


class Tree:
    """A tree that only grows and keeps only its right edge, for hashing a whole log."""

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[bytes] = []

    def add(self, leaf_hash: bytes) -> None:
        """The next leaf, of 32 bytes."""
        top, place = leaf_hash, self.size
        while place & 1:
            top, place = hash_node(self._edge.pop(), top), place >> 1
        self._edge.append(top)
        self.size += 1

    def root(self) -> bytes:
        return _fold(self._edge)


@dataclass(frozen=True, slots=True)
class Frontier:
    """The right edge of a tree: the roots of its maximal perfect subtrees, largest first, and nothing else."""

    size: int
    hashes: tuple[bytes, ...]

    EMPTY: ClassVar[Frontier]

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.hashes) != self.size.bit_count():
            expected = max(self.size, 0).bit_count()
            raise BadInput(f"frontier of size {self.size}, hashes: expected {expected}, got {len(self.hashes)}")
        _check_hashes("frontier", self.hashes, BadInput)

    def append(self, leaf_hash: bytes) -> Frontier:
        return self.append_nodes(leaf_hash)[0]

    def append_nodes(self, leaf_hash: bytes) -> tuple[Frontier, list[bytes]]:
        """The next frontier, and every node that this leaf completes, by level: itself first."""
        frontier, (nodes,) = self.extend((leaf_hash,))
        return frontier, nodes

    def extend(self, leaf_hashes: Sequence[bytes]) -> tuple[Frontier, list[list[bytes]]]:
        """The frontier after all of these, and for each leaf the nodes that it completes, in one pass."""
        _check_hashes("leaf", leaf_hashes, BadInput)
        edge, completed = list(self.hashes), []
        for size, leaf in enumerate(leaf_hashes, self.size):
            top, place, nodes = leaf, size, [leaf]
            while place & 1:
                top, place = hash_node(edge.pop(), top), place >> 1
                nodes.append(top)
            edge.append(top)
            completed.append(nodes)
        return Frontier(self.size + len(completed), tuple(edge)), completed

    def root(self) -> bytes:
        return _fold(self.hashes)

    def nodes(self) -> dict[tuple[int, int], bytes]:
        """Its hashes by their place in the tree: (level, index)."""
        levels = [level for level in reversed(range(self.size.bit_length())) if self.size >> level & 1]
        return {(level, (self.size >> level) - 1): hash_ for level, hash_ in zip(levels, self.hashes, strict=True)}


def root_at(size: int, node: ReadNode) -> bytes:
    """MTH(D[size]); reads O(log size) stored nodes."""
    return _range_root(0, size, node) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, node: ReadNode) -> list[bytes]:
    """PATH(index, D[size]), leaf's sibling first; reads O(log size) stored nodes."""
    if not 0 <= index < size:
        raise BadInput(f"inclusion proof, index: expected 0 <= index < {size}, got {index}")
    # Below the level where the last leaf's way and this one's part, every sibling is perfect; there it is the rest of
    # the tree; above it every sibling lies to the left.
    parting = (index ^ (size - 1)).bit_length()
    proof = [node(level, index >> level ^ 1) for level in range(parting - 1)]
    if parting:
        proof.append(_range_root((index >> parting - 1 ^ 1) << parting - 1, size, node))
    proof += [node(level, (index >> level) - 1) for level in range(parting, index.bit_length()) if index >> level & 1]
    return proof


def consistency_proof(old: int, new: int, node: ReadNode) -> list[bytes]:
    """PROOF(old, D[new]). Empty when old is 0 or new: from nothing and from itself a tree follows without proof."""
    if not 0 <= old <= new:
        raise BadInput(f"consistency proof, old size: expected 0 <= old <= {new}, got {old}")
    if old in (0, new):
        return []
    proof: list[bytes] = []
    start, stop = 0, new
    while stop != old:
        middle = start + _split(stop - start)
        if old <= middle:
            proof.append(_range_root(middle, stop, node))
            stop = middle
        else:
            proof.append(_range_root(start, middle, node))
            start = middle
    if start:
        proof.append(_range_root(start, stop, node))
    proof.reverse()
    return proof


def verify_inclusion(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 section 2.1.3.2."""
    if not 0 <= index < size:
        raise Tampered(f"inclusion proof, index: expected 0 <= index < {size}, got {index}")
    _check_hashes("inclusion proof", (leaf_hash, *proof, root), Tampered)
    place, last, top = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            raise Tampered(f"inclusion proof of {index} in {size}, length: expected fewer hashes, got {len(proof)}")
        if place & 1 or place == last:
            top = hash_node(sibling, top)
            place, last = _shift_while(place, last, odd=False)
        else:
            top = hash_node(top, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise Tampered(f"inclusion proof of {index} in {size}, length: expected more hashes, got {len(proof)}")
    _check_root(f"inclusion proof of {index} in {size}, root", root, top)


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """RFC 9162 section 2.1.4.2; an old tree of size 0 must have the empty root, and its proof is empty."""
    if not 0 <= old <= new:
        raise Tampered(f"consistency proof, old size: expected 0 <= old <= {new}, got {old}")
    _check_hashes("consistency proof", (*proof, old_root, new_root), Tampered)
    if old in (0, new):
        if proof:
            raise Tampered(f"consistency proof {old} to {new}, length: expected 0 hashes, got {len(proof)}")
        _check_root(f"consistency proof {old} to {new}, old root", new_root if old else EMPTY_ROOT, old_root)
        if new == 0:
            _check_root("consistency proof 0 to 0, new root", EMPTY_ROOT, new_root)
        return
    old_top, new_top = _consistent_roots(old, new, proof, old_root)
    _check_root(f"consistency proof {old} to {new}, old root", old_root, old_top)
    _check_root(f"consistency proof {old} to {new}, new root", new_root, new_top)


def _consistent_roots(old: int, new: int, proof: Sequence[bytes], old_root: bytes) -> tuple[bytes, bytes]:
    """Both roots that a proof implies, for 0 < old < new."""
    what = f"consistency proof {old} to {new}, length"
    # A perfect old tree is its own first hash: the proof leaves it out.
    hashes = [old_root, *proof] if old.bit_count() == 1 else list(proof)
    if not hashes:
        raise Tampered(f"{what}: expected at least 1 hash, got 0")
    place, last = _shift_while(old - 1, new - 1, odd=True)
    old_top = new_top = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise Tampered(f"{what}: expected fewer hashes, got {len(proof)}")
        if place & 1 or place == last:
            old_top, new_top = hash_node(sibling, old_top), hash_node(sibling, new_top)
            place, last = _shift_while(place, last, odd=False)
        else:
            new_top = hash_node(new_top, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise Tampered(f"{what}: expected more hashes, got {len(proof)}")
    return old_top, new_top


def _shift_while(place: int, last: int, *, odd: bool) -> tuple[int, int]:
    """Both shifted right while `place` is odd (or even and not 0)."""
    while place and bool(place & 1) is odd:
        place, last = place >> 1, last >> 1
    return place, last


def _split(size: int) -> int:
    """The largest power of two below `size`, for size > 1."""
    return 1 << (size - 1).bit_length() - 1


def _range_root(start: int, stop: int, node: ReadNode) -> bytes:
    """MTH(D[start:stop]) from stored nodes; `start` is a multiple of the largest power of two within the range."""
    size = stop - start
    if not size & (size - 1):
        # A perfect subtree, as nearly all of a proof's are.
        level = size.bit_length() - 1
        return node(level, start >> level)
    hashes = []
    while start < stop:
        level = (stop - start).bit_length() - 1
        hashes.append(node(level, start >> level))
        start += 1 << level
    return _fold(hashes)


def _fold(hashes: Sequence[bytes]) -> bytes:
    """The root over perfect subtrees, largest first."""
    if not hashes:
        return EMPTY_ROOT
    top = hashes[-1]
    for left in reversed(hashes[:-1]):
        top = hash_node(left, top)
    return top


def _check_hashes(what: str, hashes: Iterable[bytes], error: type[BadInput] | type[Tampered]) -> None:
    for hash_ in hashes:
        if len(hash_) != HASH_BYTES:
            raise error(f"{what}, hash: expected {HASH_BYTES} bytes, got {len(hash_)}")


def _check_root(what: str, expected: bytes, got: bytes) -> None:
    if expected != got:
        raise Tampered(f"{what}: expected {expected.hex()}, got {got.hex()}")


Frontier.EMPTY = Frontier(0, ())
