"""Log-probabilities of labels, with the model constrained to the label set.

The labels' tokens form a tree. At each branching node the model's probabilities are normalised over the branches that
lead to a label; a label's score is the sum of their logarithms along its path. A constrained decoder samples from the
same distribution, short labels have no advantage, and the model is needed only at branching nodes. A prompt and its
labels go through it in one pack. Base and adapter are scored in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from appliance.errors import BadInput
from appliance.ml.inference.cache import Cache, RequestCache
from appliance.ml.inference.sampling import PROMPT_CHUNK, chunk_size, read_after, read_chunk
from appliance.ml.layers.head import Head
from appliance.ml.layers.packing import Pack
from appliance.ml.model.base import LoadedBase
from appliance.ml.model.grammars import Matcher


@dataclass
class LabelNode:
    """A node of the tree: the number of tokens that lead to it, the labels below it, and its children by next token."""

    depth: int
    behind: list[int] = field(default_factory=list)
    choices: dict[int, LabelNode] = field(default_factory=dict)


def build_trie(labels: Sequence[Sequence[int]]) -> LabelNode:
    """Return the root of the labels' tree. Time and memory are linear in the labels' tokens.

    Raises:
        BadInput: a label is the beginning of another.
    """
    root = LabelNode(0)
    ends: dict[int, int] = {}
    for number, label in enumerate(labels):
        node = root
        node.behind.append(number)
        for token in label:
            if id(node) in ends:
                raise _begins_another(ends[id(node)])
            if token not in node.choices:
                node.choices[token] = LabelNode(node.depth + 1)
            node = node.choices[token]
            node.behind.append(number)
        if node.choices or id(node) in ends:
            raise _begins_another(number)
        ends[id(node)] = number
    return root


def walk_trie(root: LabelNode) -> Iterator[LabelNode]:
    """Yield all nodes by depth, then by the tokens that lead to them."""
    level = [root]
    while level:
        yield from level
        level = [node.choices[token] for node in level for token in sorted(node.choices)]


def _begins_another(number: int) -> BadInput:
    return BadInput(f"labels, number {number}: expected none to be the beginning of another")


# Largest number of tokens of a prompt and its labels in one pass.
PASS_TOKENS = 512
# Largest number of branches in a pass; each has its own attention.
PASS_BRANCHES = 64
# Largest number of prompt keys for the branches of one pass; they are copied for each branch.
PASS_KEYS = 1 << 16


@dataclass(frozen=True)
class Branch:
    """A branching node of the labels' tree.

    The tokens that lead to it, and each next token with the labels below it.
    """

    path: tuple[int, ...]
    choices: tuple[tuple[int, frozenset[int]], ...]


def find_branches(labels: Sequence[Sequence[int]]) -> list[Branch]:
    """Return every branching node of the labels' tree, the root first.

    All paths together have at most as many tokens as the labels, since each branch can be assigned a label of its own.

    Raises:
        BadInput: a label is the beginning of another.
    """
    return [_make_branch(labels, node) for node in walk_trie(build_trie(labels)) if len(node.choices) > 1]


def _make_branch(labels: Sequence[Sequence[int]], node: LabelNode) -> Branch:
    path = tuple(labels[node.behind[0]][: node.depth])
    return Branch(path, tuple((token, frozenset(node.choices[token].behind)) for token in sorted(node.choices)))


def score_in_passes(
    base: LoadedBase, cache: Cache, held: RequestCache, prompt: Sequence[int], branches: Sequence[Branch], labels: int
) -> Iterator[list[float] | None]:
    """Score the labels of one prompt in passes of some hundred tokens.

    Yield None after each pass but the last, then the log-probability of each label.

    A prompt that fits one pass is scored as in an evaluation, bit for bit. Otherwise the prompt is read in chunks, and
    the branches of the labels' tree, some in each pass, continue from it.
    """
    tokens = len(prompt) + sum(len(branch.path) for branch in branches)
    if tokens <= PASS_TOKENS and len(branches) <= PASS_BRANCHES:
        yield score_prompt(base, prompt, branches, labels)
        return
    last = torch.empty(0)
    held.long = base.is_long(len(prompt) + _longest_path(branches))
    size = chunk_size(base, len(prompt), PROMPT_CHUNK)
    for start in range(0, len(prompt), size):
        last = read_chunk(base, cache, held, prompt[start : start + size])[-1:]
        yield None
    chosen = [branch_scores(last, base.head(), branch, [0])[0].tolist() for branch in branches if not branch.path]
    for some in _split([branch for branch in branches if branch.path], len(prompt)):
        ends = [end - 1 for end in accumulate(len(branch.path) for branch in some)]
        hidden = read_after(base, cache, held, [branch.path for branch in some])
        for branch, end in zip(some, ends, strict=True):
            chosen.append(branch_scores(hidden, base.head(), branch, [end])[0].tolist())
        yield None
    yield sum_paths(branches, chosen, labels)


def _longest_path(branches: Sequence[Branch]) -> int:
    """Return the largest number of tokens that the model reads after a prompt."""
    return max((len(branch.path) for branch in branches), default=0)


def _split(branches: Sequence[Branch], held: int) -> Iterator[list[Branch]]:
    """Yield the branches of each pass, within the limits of branches, tokens and prompt keys."""
    some: list[Branch] = []
    tokens = 0
    for branch in branches:
        most = max(1, min(PASS_BRANCHES, PASS_KEYS // held))
        if some and (len(some) == most or tokens + len(branch.path) > PROMPT_CHUNK):
            yield some
            some, tokens = [], 0
        some.append(branch)
        tokens += len(branch.path)
    if some:
        yield some


def score_prompt(base: LoadedBase, prompt: Sequence[int], branches: Sequence[Branch], labels: int) -> list[float]:
    """Return the log-probability of each label after the prompt, in one pass."""
    pack = Pack()
    row = pack.add(prompt)
    # Index of the token before each branch's choice: the prompt's last token, or the last one of the branch's path.
    places = [(pack.add(branch.path, after=row) if branch.path else row).stop - 1 for branch in branches]
    chosen = []
    with torch.inference_mode():
        hidden = base.read_pack(pack)
        for branch, place in zip(branches, places, strict=True):
            chosen.append(branch_scores(hidden, base.head(), branch, [place])[0].tolist())
    return sum_paths(branches, chosen, labels)


def sum_paths(branches: Sequence[Branch], scores: Sequence[Sequence[float]], labels: int) -> list[float]:
    """Return the log-probability of each label, the sum along its path; `scores` has those of each branch's choices."""
    total = [0.0] * labels
    for branch, values in zip(branches, scores, strict=True):
        for (_, behind), score in zip(branch.choices, values, strict=True):
            for label in behind:
                total[label] += score
    return total


def branch_scores(hidden: torch.Tensor, head: Head, branch: Branch, places: Sequence[int]) -> torch.Tensor:
    """Return log-probabilities of the next tokens that lead to a label, float64 [rows, choices] on the CPU."""
    tokens = [token for token, _ in branch.choices]
    logits = head.evaluate_logits(hidden[list(places)].float(), tokens)
    return torch.log_softmax(logits.double(), dim=-1).cpu()


class Choices:
    """Restricts the next tokens to those that lead to a label, each with the end-of-turn token.

    Raises:
        BadInput: a label is the beginning of another.
    """

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        self._place = build_trie(labels)

    def allows(self, token: int) -> bool:
        """Return True if this token leads to a label."""
        return token in self._place.choices

    def allowed(self) -> list[int]:
        """Return the tokens that lead to a label; empty after a complete one."""
        return sorted(self._place.choices)

    def narrow(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits with -inf for tokens that do not lead to a label."""
        allowed = self.allowed()
        narrowed = torch.full_like(logits, float("-inf"))
        narrowed[allowed] = logits[allowed]
        return narrowed

    def take(self, token: int) -> None:
        """Keep only the labels that continue with this token."""
        self._place = self._place.choices[token]


class Grammar:
    """Restricts the next tokens to those that a grammar accepts.

    Masks are computed per row, so results do not depend on the batch.
    """

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def allows(self, token: int) -> bool:
        """Return True if this token may come next; much faster than a mask."""
        return self._matcher.allows(token)

    def narrow(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits with -inf for tokens that may not come next."""
        mask = torch.frombuffer(bytearray(self._matcher.mask()), dtype=torch.uint8)
        bits = mask[:, None].bitwise_right_shift(torch.arange(8, dtype=torch.uint8)).bitwise_and(1).bool().flatten()
        return logits.masked_fill(~bits[: len(logits)], float("-inf"))

    def take(self, token: int) -> None:
        """Advance by this token."""
        self._matcher.take(token)
