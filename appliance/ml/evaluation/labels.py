"""Loss and most likely label of many rows, in one pass and then short passes for rows that are undecided.

A label's score is that of `ml/inference/score.py`: the product of the model's probabilities along its path in the tree
of labels, normalised at each branching node over the tokens that lead to a label. The search is best-first: paths only
lose probability, so the first complete label is the best of all, and most nodes are never evaluated. The nodes on the
path of the row's own target are read together with it, for its loss. Each row may have its own labels, such as the
choices of a question. Small label sets are read completely in the first pass.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from appliance.domain.planning.packs import PACK_TOKENS, count_common, split_into_packs
from appliance.ml.data.rows import Sample
from appliance.ml.inference.score import branch_scores, find_branches, sum_paths
from appliance.ml.layers.fixed import Held
from appliance.ml.layers.head import Head, sum_losses
from appliance.ml.layers.packing import Pack, Segment
from appliance.ml.model.base import LoadedBase


@dataclass(frozen=True)
class LabelResult:
    """The result of a row.

    `loss` is the sum of the cross-entropy of its trained tokens, `label` the index of its most likely label, and
    `log_probability` that label's log-probability among the labels. `every` has those of all labels if all nodes were
    read; empty otherwise.
    """

    index: int
    loss: float
    label: int
    log_probability: float
    every: tuple[float, ...] = ()


class LabelTree:
    """The branching nodes of the labels' tree, and what follows each choice of a node."""

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        self.count, self.branches = len(labels), find_branches(labels)
        by_labels = {
            frozenset().union(*(behind for _, behind in one.choices)): n for n, one in enumerate(self.branches)
        }
        # A label, or the index of the branching node after a choice.
        self.behind = [
            [(min(some), None) if len(some) == 1 else (None, by_labels[some]) for _, some in one.choices]
            for one in self.branches
        ]


class _LabelSearch:
    """The best-first search in one row; of equally likely paths the one with the first label comes first."""

    def __init__(self, sample: Sample, prompt: Segment, tree: LabelTree) -> None:
        self.sample, self.prompt, self.tree = sample, prompt, tree
        self.known: dict[int, list[float]] = {}
        # Negative log-probability of the path, smallest label, then either a label or the index of a node.
        self._open: list[tuple[float, int, int | None, int | None]] = []
        if tree.branches:
            self._open.append((0.0, 0, None, 0))
        else:
            self._open.append((0.0, 0, 0, None))

    def search(self) -> int | None:
        """Return the index of the node whose probabilities are needed next; None if the best label is found."""
        while self._open[0][2] is None:
            cost, _, _, place = self._open[0]
            assert place is not None
            if place not in self.known:
                return place
            heapq.heappop(self._open)
            found = zip(self.known[place], self.tree.branches[place].choices, self.tree.behind[place], strict=True)
            for log_probability, (_, labels), (label, behind) in found:
                heapq.heappush(self._open, (cost - log_probability, min(labels), label, behind))
        return None

    def evaluate(self, loss: float) -> LabelResult:
        cost, _, label, _ = self._open[0]
        assert label is not None
        branches, every = self.tree.branches, list[float]()
        if len(self.known) == len(branches):
            every = sum_paths(branches, [self.known[place] for place in range(len(branches))], self.tree.count)
        return LabelResult(self.sample.index, loss, label, -cost, tuple(every))


def evaluate_rows(
    base: LoadedBase,
    samples: Sequence[Sample],
    prompts: Sequence[int],
    trees: Sequence[LabelTree],
    report: Callable[[int, int], None],
    *,
    whole: bool = False,
) -> list[LabelResult]:
    """Return the result of every row, in the order of the samples.

    `prompts` has the number of tokens of each sample before its target. `trees` are the labels of each row; rows may
    share one. With `whole`, all nodes are read, so that each label has its probability. `report` is called with the
    number of rows that were finished since the last call, and their tokens.
    """
    found: dict[int, LabelResult] = {}
    extra = [sum(len(one.path) for one in tree.branches) if whole else 0 for tree in trees]
    for some in _split_into_passes(base, samples, prompts, extra):
        found |= zip(some, _evaluate_pass(base, samples, prompts, some, trees, whole), strict=True)
        report(len(some), sum(len(samples[place].ids) for place in some))
    return [found[place] for place in range(len(samples))]


def _split_into_passes(
    base: LoadedBase, samples: Sequence[Sample], prompts: Sequence[int], extra: Sequence[int]
) -> Iterator[list[int]]:
    """Yield the rows of each pass, of similar length; long sequences (`Positions`) are separate.

    `extra` is the number of tokens that are read for a row besides its own.
    """
    order = sorted(range(len(samples)), key=lambda place: (len(samples[place].ids), samples[place].index))
    common = count_common([samples[place].ids[: prompts[place] - 1] for place in order])
    limit = base.longest_short
    short = [place for place in order if limit is None or len(samples[place].ids) <= limit]
    for places in (short, order[len(short) :]):
        yield from split_into_packs(places, lambda place: len(samples[place].ids) - common + extra[place], PACK_TOKENS)


@torch.inference_mode()
def _evaluate_pass(
    base: LoadedBase,
    samples: Sequence[Sample],
    prompts: Sequence[int],
    some: Sequence[int],
    trees: Sequence[LabelTree],
    whole: bool,
) -> list[LabelResult]:
    pack, held, head = Pack(), Held(), base.head()
    shared = min(count_common([samples[place].ids for place in some]), min(prompts[place] for place in some) - 1)
    root = pack.add(samples[some[0]].ids[:shared]) if shared > 0 and len(some) > 1 else None
    first = root.stop if root else 0
    rows, answers = [], []
    for place in some:
        sample = samples[place]
        prompt = pack.add(sample.ids[first : prompts[place]], after=root)
        answers.append(pack.add(sample.ids[prompts[place] :], after=prompt))
        rows.append(_LabelSearch(sample, prompt, trees[place]))
    wanted = [_list_known(row, answer) for row, answer in zip(rows, answers, strict=True)]
    if whole:
        for row, known in zip(rows, wanted, strict=True):
            known += _read_rest(row, {place for place, _ in known}, pack)
    hidden = base.read_pack(pack, held=held)
    _store_probabilities(rows, wanted, hidden, 0, head)
    # All trained tokens are in the target, which follows the prompt in the pack.
    targets = [row.sample.targets(answer.stop - len(row.sample.ids)) for row, answer in zip(rows, answers, strict=True)]
    losses: list[float] = sum_losses(hidden, targets, head.token_losses).tolist()
    while open_rows := [(row, missing) for row in rows if (missing := row.search()) is not None]:
        start = len(pack.ids)
        asked = {
            id(row): [(missing, pack.add(row.tree.branches[missing].path, after=row.prompt).stop - 1)]
            for row, missing in open_rows
        }
        hidden = base.read_pack(pack, start=start, held=held)
        _store_probabilities(rows, [asked.get(id(row), []) for row in rows], hidden, start, head)
    return [row.evaluate(loss) for row, loss in zip(rows, losses, strict=True)]


def _list_known(row: _LabelSearch, answer: Segment) -> list[tuple[int, int]]:
    """Return the nodes on the path of the row's own target, and the token after which each is decided."""
    ids = row.sample.ids[len(row.sample.ids) - (answer.stop - answer.start) :]
    return [
        (place, answer.start + len(one.path) - 1 if one.path else row.prompt.stop - 1)
        for place, one in enumerate(row.tree.branches)
        if ids[: len(one.path)] == one.path
    ]


def _read_rest(row: _LabelSearch, known: set[int], pack: Pack) -> list[tuple[int, int]]:
    """Return the remaining nodes, each at the end of a new segment after the row's prompt."""
    return [
        (place, (pack.add(one.path, after=row.prompt) if one.path else row.prompt).stop - 1)
        for place, one in enumerate(row.tree.branches)
        if place not in known
    ]


def _store_probabilities(
    rows: Sequence[_LabelSearch],
    wanted: Sequence[Sequence[tuple[int, int]]],
    hidden: torch.Tensor,
    start: int,
    head: Head,
) -> None:
    """Store the probabilities at nodes, each read after a token of the pack, for all rows of a tree together."""
    by_place: dict[tuple[int, int], list[tuple[_LabelSearch, int]]] = {}
    for row, places in zip(rows, wanted, strict=True):
        for place, token in places:
            by_place.setdefault((id(row.tree), place), []).append((row, token - start))
    for (_, place), asked in by_place.items():
        branch = asked[0][0].tree.branches[place]
        values = branch_scores(hidden, head, branch, [token for _, token in asked])
        for (row, _), one in zip(asked, values.tolist(), strict=True):
            row.known[place] = one
