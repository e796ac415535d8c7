"""Which label a model gives a row: the label's log-probability, the model constrained to the label set.

The labels' tokens form a tree; wherever it branches, the model's probabilities are normalised over the branches that
lead to a label, and a label's score is the sum of their logarithms along its path. That is what a constrained decoder
would draw from, it does not favour short labels, and it needs the model only where the tree branches: all rows of a
batch, their common beginning and their labels go through it in one pack. The same for base and adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch

from appliance.ml.inference.cache import Cache, Held
from appliance.ml.inference.drawing import PROMPT_CHUNK, chunk_size, read_after, read_chunk
from appliance.ml.inference.trie import Node, build_trie, walk_trie
from appliance.ml.layers.head import Head
from appliance.ml.layers.packing import Pack, Segment, count_common
from appliance.ml.model.base import Base

# Rows are scored in packs of about so many tokens.
PACK_TOKENS = 1024
# Tokens of a prompt and its labels up to which a pass takes both.
PASS_TOKENS = 512
# Branches that a pass takes at most: each is attended by itself.
PASS_BRANCHES = 64
# Keys of the prompt that the branches of one pass may look at, each at all of them: they are copied for each branch.
PASS_KEYS = 1 << 16


@dataclass(frozen=True)
class Branch:
    """A place where label paths part: the tokens that lead there, and each next token with the labels behind it."""

    path: tuple[int, ...]
    choices: tuple[tuple[int, frozenset[int]], ...]


def find_branches(labels: Sequence[Sequence[int]]) -> list[Branch]:
    """Every branching place of the labels' tree, the root first; a label that is a beginning of another is refused.

    All paths together have no more tokens than the labels: each branch can be given a label behind it of its own.
    """
    return [_branch(labels, node) for node in walk_trie(build_trie(labels)) if len(node.choices) > 1]


def _branch(labels: Sequence[Sequence[int]], node: Node) -> Branch:
    path = tuple(labels[node.behind[0]][: node.depth])
    return Branch(path, tuple((token, frozenset(node.choices[token].behind)) for token in sorted(node.choices)))


def score_rows(
    base: Base, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], report: Callable[[int], None]
) -> list[list[float]]:
    """For every prompt the log-probability of each label, in the labels' order; `report` is told the rows done."""
    branches = find_branches(labels)
    scores: dict[int, list[float]] = {}
    extra, longest = sum(len(branch.path) for branch in branches), _longest_path(branches)
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    # Rows whose sequences have positions of different kinds share no beginning.
    for _, kind in groupby(order, key=lambda row: base.is_long(len(prompts[row]) + longest)):
        for rows in _batches(list(kind), prompts, extra):
            scores |= zip(rows, _score_batch(base, [prompts[row] for row in rows], branches, len(labels)), strict=True)
            report(len(scores))
    return [scores[row] for row in range(len(prompts))]


def score_in_passes(
    base: Base, cache: Cache, held: Held, prompt: Sequence[int], branches: Sequence[Branch], labels: int
) -> Iterator[list[float] | None]:
    """The same for one prompt and so many labels, in passes of some hundred tokens; None behind each but the last.

    What fits one pass is scored as in an evaluation, bit for bit. Otherwise the prompt is read in chunks, and the
    branches of the labels' tree, some in each pass, go on from it.
    """
    tokens = len(prompt) + sum(len(branch.path) for branch in branches)
    if tokens <= PASS_TOKENS and len(branches) <= PASS_BRANCHES:
        yield _score_batch(base, [prompt], branches, labels)[0]
        return
    last = torch.empty(0)
    held.long = base.is_long(len(prompt) + _longest_path(branches))
    size = chunk_size(base, len(prompt), PROMPT_CHUNK)
    for start in range(0, len(prompt), size):
        last = read_chunk(base, cache, held, prompt[start : start + size])[-1:]
        yield None
    chosen = [branch_scores(last, base.head(), branch, [0]) for branch in branches if not branch.path]
    for some in _split([branch for branch in branches if branch.path], len(prompt)):
        ends = [end - 1 for end in accumulate(len(branch.path) for branch in some)]
        hidden = read_after(base, cache, held, [branch.path for branch in some])
        chosen += [branch_scores(hidden, base.head(), branch, [end]) for branch, end in zip(some, ends, strict=True)]
        yield None
    yield _sum_scores(branches, chosen, 1, labels)[0]


def _longest_path(branches: Sequence[Branch]) -> int:
    """Tokens that the model reads behind a prompt at most."""
    return max((len(branch.path) for branch in branches), default=0)


def _split(branches: Sequence[Branch], held: int) -> Iterator[list[Branch]]:
    """Branches that one pass takes: so many, of so many tokens, and of so many keys that these look at."""
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


def choose_labels(scores: Sequence[Sequence[float]], names: Sequence[str]) -> list[str]:
    """The best label of each row; of equals the first."""
    return [names[max(range(len(row)), key=lambda number: row[number])] for row in scores]


def _batches(order: Sequence[int], prompts: Sequence[Sequence[int]], extra: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for row in order:
        if batch and sum(len(prompts[other]) + extra for other in batch) + len(prompts[row]) + extra > PACK_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _score_batch(
    base: Base, prompts: Sequence[Sequence[int]], branches: Sequence[Branch], labels: int
) -> list[list[float]]:
    pack, rows = _pack_rows(prompts)
    # Where each branch is decided: behind the row's last token, or behind the tokens that lead to it.
    decided = [
        [(pack.add(branch.path, after=row) if branch.path else row).stop - 1 for branch in branches] for row in rows
    ]
    with torch.inference_mode():
        hidden, head = base.read_pack(pack), base.head()
        chosen = [
            branch_scores(hidden, head, branch, [row[place] for row in decided])
            for place, branch in enumerate(branches)
        ]
    return _sum_scores(branches, chosen, len(prompts), labels)


def _sum_scores(
    branches: Sequence[Branch], chosen: Sequence[torch.Tensor], rows: int, labels: int
) -> list[list[float]]:
    """Along each label's path: `chosen` is by branch, [rows, choices]."""
    total = torch.zeros(rows, labels, dtype=torch.float64)
    for branch, values in zip(branches, chosen, strict=True):
        # A label is behind one choice of a branch at most.
        paths = [(label, place) for place, (_, behind) in enumerate(branch.choices) for label in sorted(behind)]
        total[:, [label for label, _ in paths]] += values[:, [place for _, place in paths]]
    scores: list[list[float]] = total.tolist()
    return scores


def _pack_rows(prompts: Sequence[Sequence[int]]) -> tuple[Pack, list[Segment]]:
    pack = Pack()
    shared = min(count_common(prompts), min(len(prompt) for prompt in prompts) - 1)
    root = pack.add(prompts[0][:shared]) if shared > 0 else None
    return pack, [pack.add(prompt[max(shared, 0) :], after=root) for prompt in prompts]


def branch_scores(hidden: torch.Tensor, head: Head, branch: Branch, places: Sequence[int]) -> torch.Tensor:
    """[rows, choices], float64 on the CPU: log-probabilities of the next tokens that lead to a label."""
    tokens = [token for token, _ in branch.choices]
    logits = head.judge(hidden[list(places)].float(), tokens)
    return torch.log_softmax(logits.double(), dim=-1).cpu()
