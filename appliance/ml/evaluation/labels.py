"""The loss and the likeliest label of many rows in one pass, and then in short ones where a row is not decided yet.

A label's score is that of `ml/inference/score.py`: the product of the model's probabilities along its path in the tree
of labels, at each branching place over what leads to a label. The search keeps what is open and takes the likeliest
first: a path only loses as it goes on, so the first whole label that comes up is the best of all, and most places of
the tree are never asked for. Those on the path of the row's own answer are read with it, for its loss.

Rows may each have labels of their own, such as the choices of a question. Few labels are read whole, in the first pass.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from appliance.ml.data.samples import Sample
from appliance.ml.inference.score import branch_scores, find_branches
from appliance.ml.layers.head import Head
from appliance.ml.layers.packing import Pack, Segment, count_common
from appliance.ml.layers.trees import Held
from appliance.ml.model.base import Base

# Tokens of a pass beside the beginning that all rows share.
PACK_TOKENS = 2048


@dataclass(frozen=True)
class Judged:
    """Of a row: the summed cross-entropy of its trained tokens, its likeliest label, and the logarithm of that
    label's probability among the labels. `every`: those of all labels, where they were read whole; else empty."""

    index: int
    loss: float
    label: int
    log_probability: float
    every: tuple[float, ...] = ()


class LabelTree:
    """The labels' branching places, and which follows each choice of one."""

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        self.count, self.branches = len(labels), find_branches(labels)
        by_labels = {
            frozenset().union(*(behind for _, behind in one.choices)): n for n, one in enumerate(self.branches)
        }
        # A label, or the branching place after a choice.
        self.behind = [
            [(min(some), None) if len(some) == 1 else (None, by_labels[some]) for _, some in one.choices]
            for one in self.branches
        ]


class _Row:
    """The search in one row: what is open, the likeliest first; of equals the first label's."""

    def __init__(self, sample: Sample, prompt: Segment, tree: LabelTree) -> None:
        self.sample, self.prompt, self.tree = sample, prompt, tree
        self.known: dict[int, list[float]] = {}
        # The logarithm of what leads there (negative: the least comes first), a label or a place of the tree.
        self._open: list[tuple[float, int, int | None, int | None]] = []
        if tree.branches:
            self._open.append((0.0, 0, None, 0))
        else:
            self._open.append((0.0, 0, 0, None))

    def search(self) -> int | None:
        """The branching place whose probabilities are needed next; None where the best label is found."""
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

    def judge(self, loss: float) -> Judged:
        cost, _, label, _ = self._open[0]
        assert label is not None
        every = self._sum_paths() if len(self.known) == len(self.tree.branches) else ()
        return Judged(self.sample.index, loss, label, -cost, every)

    def _sum_paths(self) -> tuple[float, ...]:
        """The logarithm of each label's probability: along its path, from the root."""
        found = [0.0] * self.tree.count
        waiting = [(0, 0.0)] if self.tree.branches else []
        for place, before in waiting:
            for log_probability, (label, behind) in zip(self.known[place], self.tree.behind[place], strict=True):
                if label is not None:
                    found[label] = before + log_probability
                elif behind is not None:
                    waiting.append((behind, before + log_probability))
        return tuple(found)


def judge_rows(
    base: Base,
    samples: Sequence[Sample],
    prompts: Sequence[int],
    trees: Sequence[LabelTree],
    report: Callable[[int, int], None],
    *,
    whole: bool = False,
) -> list[Judged]:
    """Every row, in the order of the samples; `prompts` says how many of a sample's tokens come before its answer, and
    `report` is called with how many rows more are done, and their tokens.

    `trees`: of each row's labels; rows may share one. `whole`: read them whole, so that each has its probability.
    """
    found: dict[int, Judged] = {}
    extra = [sum(len(one.path) for one in tree.branches) if whole else 0 for tree in trees]
    for some in _split(base, samples, prompts, extra):
        found |= zip(some, _judge(base, samples, prompts, some, trees, whole), strict=True)
        report(len(some), sum(len(samples[place].ids) for place in some))
    return [found[place] for place in range(len(samples))]


def _split(base: Base, samples: Sequence[Sample], prompts: Sequence[int], extra: Sequence[int]) -> Iterator[list[int]]:
    """Rows of one pass, short with short; long sequences (`Positions`) by themselves. `extra`: tokens of a row that are
    read beside its own."""
    order = sorted(range(len(samples)), key=lambda place: (len(samples[place].ids), samples[place].index))
    common = count_common([samples[place].ids[: prompts[place] - 1] for place in order])
    limit, some, size = base.longest_short, list[int](), 0
    for place in order:
        own = len(samples[place].ids) - common + extra[place]
        crosses = limit is not None and some and len(samples[some[0]].ids) <= limit < len(samples[place].ids)
        if some and (size + own > PACK_TOKENS or crosses):
            yield some
            some, size = [], 0
        some.append(place)
        size += own
    yield some


@torch.inference_mode()
def _judge(
    base: Base,
    samples: Sequence[Sample],
    prompts: Sequence[int],
    some: Sequence[int],
    trees: Sequence[LabelTree],
    whole: bool,
) -> list[Judged]:
    pack, held, head = Pack(), Held(), base.head()
    shared = min(count_common([samples[place].ids for place in some]), min(prompts[place] for place in some) - 1)
    root = pack.add(samples[some[0]].ids[:shared]) if shared > 0 and len(some) > 1 else None
    first = root.stop if root else 0
    rows, answers = [], []
    for place in some:
        sample = samples[place]
        prompt = pack.add(sample.ids[first : prompts[place]], after=root)
        answers.append(pack.add(sample.ids[prompts[place] :], after=prompt))
        rows.append(_Row(sample, prompt, trees[place]))
    wanted = [_list_known(row, answer) for row, answer in zip(rows, answers, strict=True)]
    if whole:
        for row, known in zip(rows, wanted, strict=True):
            known += _read_rest(row, {place for place, _ in known}, pack)
    hidden = base.read_pack(pack, held=held)
    _learn(rows, wanted, hidden, 0, head)
    losses = _sum_losses(rows, answers, hidden, head)
    while open_rows := [(row, missing) for row in rows if (missing := row.search()) is not None]:
        start = len(pack.ids)
        asked = {
            id(row): [(missing, pack.add(row.tree.branches[missing].path, after=row.prompt).stop - 1)]
            for row, missing in open_rows
        }
        hidden = base.read_pack(pack, start=start, held=held)
        _learn(rows, [asked.get(id(row), []) for row in rows], hidden, start, head)
    return [row.judge(loss) for row, loss in zip(rows, losses, strict=True)]


def _list_known(row: _Row, answer: Segment) -> list[tuple[int, int]]:
    """The branching places that the row's own answer leads past, and the token after which each is decided."""
    ids = row.sample.ids[len(row.sample.ids) - (answer.stop - answer.start) :]
    return [
        (place, answer.start + len(one.path) - 1 if one.path else row.prompt.stop - 1)
        for place, one in enumerate(row.tree.branches)
        if ids[: len(one.path)] == one.path
    ]


def _read_rest(row: _Row, known: set[int], pack: Pack) -> list[tuple[int, int]]:
    """The branching places that are not known, each at the end of a segment of its own behind the row's prompt."""
    return [
        (place, (pack.add(one.path, after=row.prompt) if one.path else row.prompt).stop - 1)
        for place, one in enumerate(row.tree.branches)
        if place not in known
    ]


def _learn(
    rows: Sequence[_Row],
    wanted: Sequence[Sequence[tuple[int, int]]],
    hidden: torch.Tensor,
    start: int,
    head: Head,
) -> None:
    """Fills in the probabilities that rows need at places of their trees, each after a token of the pack, for all rows
    of a tree together."""
    by_place: dict[tuple[int, int], list[tuple[_Row, int]]] = {}
    for row, places in zip(rows, wanted, strict=True):
        for place, token in places:
            by_place.setdefault((id(row.tree), place), []).append((row, token - start))
    for (_, place), asked in by_place.items():
        branch = asked[0][0].tree.branches[place]
        values = branch_scores(hidden, head, branch, [token for _, token in asked])
        for (row, _), one in zip(asked, values.tolist(), strict=True):
            row.known[place] = one


def _sum_losses(rows: Sequence[_Row], answers: Sequence[Segment], hidden: torch.Tensor, head: Head) -> list[float]:
    """Of each row's trained tokens, all of which are in its answer."""
    places, targets, owners = list[int](), list[int](), list[int]()
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        ids = row.sample.ids
        before = [row.prompt.stop - 1, *range(answer.start, answer.stop - 1)]
        for start, stop in row.sample.spans:
            offset = len(ids) - (answer.stop - answer.start)
            places += before[start - offset : stop - offset]
            targets += ids[start:stop]
            owners += [number] * (stop - start)
    losses = head.token_losses(hidden[places], torch.tensor(targets, device=hidden.device))
    total = losses.new_zeros(len(rows)).index_add(0, torch.tensor(owners, device=hidden.device), losses)
    found: list[float] = total.tolist()
    return found
