"""The tokens of a set of labels as a tree, built in one walk over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from appliance.errors import BadInput


@dataclass
class Node:
    """A place in the tree: how many tokens lead to it, the labels below it, and which tokens may follow."""

    depth: int
    behind: list[int] = field(default_factory=list)
    choices: dict[int, Node] = field(default_factory=dict)


def build_trie(labels: Sequence[Sequence[int]]) -> Node:
    """The root. Time and memory grow with the labels' tokens; BadInput where a label is the beginning of another."""
    root = Node(0)
    ends: dict[int, int] = {}
    for number, label in enumerate(labels):
        node = root
        node.behind.append(number)
        for token in label:
            if id(node) in ends:
                raise _begins_another(ends[id(node)])
            if token not in node.choices:
                node.choices[token] = Node(node.depth + 1)
            node = node.choices[token]
            node.behind.append(number)
        if node.choices or id(node) in ends:
            raise _begins_another(number)
        ends[id(node)] = number
    return root


def walk_trie(root: Node) -> Iterator[Node]:
    """Every place: by its depth, then by the tokens that lead to it."""
    level = [root]
    while level:
        yield from level
        level = [node.choices[token] for node in level for token in sorted(node.choices)]


def _begins_another(number: int) -> BadInput:
    return BadInput(f"labels, number {number}: expected none to be the beginning of another")
