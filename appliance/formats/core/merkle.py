"""Merkle trees over SHA-256 (RFC 6962 section 2.1, identical to RFC 9162 section 2.1).

A *leaf hash* is SHA-256(0x00 ‖ data), a node is SHA-256(0x01 ‖ left ‖ right), and the root of the empty tree is
SHA-256(""). A stored node (level, index) is the root of the perfect subtree over the leaves [index * 2^level, (index +
1) * 2^level). A complete node never changes, so proofs for every size are computed from stored nodes alone.
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
    """Compute a leaf hash: SHA-256(0x00 ‖ data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """Compute an inner node: SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """Compute the root over leaf hashes in one pass, in O(log n) memory."""
    tree = Tree()
    for leaf in leaf_hashes:
        _check_hashes("leaf", (leaf,), BadInput)
        tree.add(leaf)
    return tree.root()


class Tree:
    """An append-only tree that stores only its right edge, for hashing a whole log."""

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[bytes] = []

    def add(self, leaf_hash: bytes) -> None:
        """Append a leaf hash of 32 bytes."""
        top, position = leaf_hash, self.size
        while position & 1:
            top, position = hash_node(self._edge.pop(), top), position >> 1
        self._edge.append(top)
        self.size += 1

    def root(self) -> bytes:
        """Return the root over the leaves so far."""
        return _join_hashes(self._edge)


@dataclass(frozen=True, slots=True)
class Frontier:
    """The right edge of a tree: the roots of its maximal perfect subtrees, largest first."""

    size: int
    hashes: tuple[bytes, ...]

    EMPTY: ClassVar[Frontier]

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.hashes) != self.size.bit_count():
            expected = max(self.size, 0).bit_count()
            raise BadInput(f"frontier of size {self.size}, hashes: expected {expected}, got {len(self.hashes)}")
        _check_hashes("frontier", self.hashes, BadInput)

    def append(self, leaf_hash: bytes) -> Frontier:
        """Return the frontier after this leaf."""
        return self.append_nodes(leaf_hash)[0]

    def append_nodes(self, leaf_hash: bytes) -> tuple[Frontier, list[bytes]]:
        """Return the frontier after this leaf, and the nodes that the leaf completes, from the leaf upwards."""
        frontier, (nodes,) = self.extend((leaf_hash,))
        return frontier, nodes

    def extend(self, leaf_hashes: Sequence[bytes]) -> tuple[Frontier, list[list[bytes]]]:
        """Return the frontier after these leaves, and for each leaf the nodes that it completes."""
        _check_hashes("leaf", leaf_hashes, BadInput)
        edge, completed = list(self.hashes), []
        for size, leaf in enumerate(leaf_hashes, self.size):
            top, position, nodes = leaf, size, [leaf]
            while position & 1:
                top, position = hash_node(edge.pop(), top), position >> 1
                nodes.append(top)
            edge.append(top)
            completed.append(nodes)
        return Frontier(self.size + len(completed), tuple(edge)), completed

    def root(self) -> bytes:
        """Return the root of the tree."""
        return _join_hashes(self.hashes)

    def nodes(self) -> dict[tuple[int, int], bytes]:
        """Return the hashes of the frontier by (level, index)."""
        levels = [level for level in reversed(range(self.size.bit_length())) if self.size >> level & 1]
        return {(level, (self.size >> level) - 1): hash_ for level, hash_ in zip(levels, self.hashes, strict=True)}


def root_at(size: int, node: ReadNode) -> bytes:
    """Compute MTH(D[size]) (RFC 6962 section 2.1) from O(log size) stored nodes."""
    return _range_root(0, size, node) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, node: ReadNode) -> list[bytes]:
    """Compute PATH(index, D[size]) (RFC 6962 section 2.1.1) from O(log size) stored nodes; the leaf's sibling is
    first."""
    if not 0 <= index < size:
        raise BadInput(f"inclusion proof, index: expected 0 <= index < {size}, got {index}")
    # At split_level the paths of this leaf and of the last leaf meet. Siblings below it are perfect subtrees, the
    # sibling there is the rest of the tree, and every sibling above it is on the left.
    split_level = (index ^ (size - 1)).bit_length()
    proof = [node(level, index >> level ^ 1) for level in range(split_level - 1)]
    if split_level:
        proof.append(_range_root((index >> split_level - 1 ^ 1) << split_level - 1, size, node))
    proof += [
        node(level, (index >> level) - 1) for level in range(split_level, index.bit_length()) if index >> level & 1
    ]
    return proof


def consistency_proof(old: int, new: int, node: ReadNode) -> list[bytes]:
    """Compute PROOF(old, D[new]) (RFC 6962 section 2.1.2).

    The proof is empty if `old` is 0 or equals `new`, since these cases need none.
    """
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
    """Verify an inclusion proof (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        raise Tampered(f"inclusion proof, index: expected 0 <= index < {size}, got {index}")
    _check_hashes("inclusion proof", (leaf_hash, *proof, root), Tampered)
    position, last, top = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            raise Tampered(f"inclusion proof of {index} in {size}, length: expected fewer hashes, got {len(proof)}")
        if position & 1 or position == last:
            top = hash_node(sibling, top)
            position, last = _shift_while(position, last, odd=False)
        else:
            top = hash_node(top, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise Tampered(f"inclusion proof of {index} in {size}, length: expected more hashes, got {len(proof)}")
    _check_root(f"inclusion proof of {index} in {size}, root", root, top)


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Verify a consistency proof (RFC 9162 section 2.1.4.2).

    An old tree of size 0 must have the empty root and an empty proof.
    """
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
    """Compute the old and the new root that a proof implies, for 0 < old < new."""
    what = f"consistency proof {old} to {new}, length"
    # If the old tree is perfect, its root is the first hash, which the proof omits.
    hashes = [old_root, *proof] if old.bit_count() == 1 else list(proof)
    if not hashes:
        raise Tampered(f"{what}: expected at least 1 hash, got 0")
    position, last = _shift_while(old - 1, new - 1, odd=True)
    old_top = new_top = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise Tampered(f"{what}: expected fewer hashes, got {len(proof)}")
        if position & 1 or position == last:
            old_top, new_top = hash_node(sibling, old_top), hash_node(sibling, new_top)
            position, last = _shift_while(position, last, odd=False)
        else:
            new_top = hash_node(new_top, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise Tampered(f"{what}: expected more hashes, got {len(proof)}")
    return old_top, new_top


def _shift_while(position: int, last: int, *, odd: bool) -> tuple[int, int]:
    """Shift both numbers right while `position` is odd (or, with `odd` false, even and not 0)."""
    while position and bool(position & 1) is odd:
        position, last = position >> 1, last >> 1
    return position, last


def _split(size: int) -> int:
    """Return the largest power of two below `size`, for size > 1."""
    return 1 << (size - 1).bit_length() - 1


def _range_root(start: int, stop: int, node: ReadNode) -> bytes:
    """Compute MTH(D[start:stop]) from stored nodes.

    `start` must be a multiple of the largest power of two within the range.
    """
    size = stop - start
    if not size & (size - 1):
        # The range is one perfect subtree, as nearly all of a proof are.
        level = size.bit_length() - 1
        return node(level, start >> level)
    hashes = []
    while start < stop:
        level = (stop - start).bit_length() - 1
        hashes.append(node(level, start >> level))
        start += 1 << level
    return _join_hashes(hashes)


def _join_hashes(hashes: Sequence[bytes]) -> bytes:
    """Compute the root over perfect subtrees, largest first."""
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
