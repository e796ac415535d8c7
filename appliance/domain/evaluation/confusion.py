"""Which label a model chose for which: counted from the items of one set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from appliance.domain.core.names import Identifier, Value
from appliance.domain.evaluation.items import Item


class Confused(Value):
    """Rows of one label for which the adapter chose another. `base_items`: those for which the base chose that one."""

    expected: str
    answered: str
    items: int = Field(ge=0)
    base_items: int = Field(ge=0)


class LabelCount(Value):
    """Rows of one label. `answered`: rows for which the adapter chose it."""

    label: str
    items: int = Field(ge=0)
    answered: int = Field(ge=0)
    right: int = Field(ge=0)
    base_right: int = Field(ge=0)


class Confusion(Value):
    """The confusion matrix of a set without its zeros.

    `pairs`: the most frequent confusion of the adapter first. `labels`: every label that is expected or chosen, sorted.
    The matrix's diagonal is `right` of each label.
    """

    set: Identifier
    items: int = Field(ge=1)
    right: int = Field(ge=0)
    base_right: int = Field(ge=0)
    labels: tuple[LabelCount, ...]
    pairs: tuple[Confused, ...]


def count_confusions(items: Sequence[Item], set_name: str) -> Confusion | None:
    """None where rows or answers have no labels."""
    triples = [(item.slices.label, item.adapter.label, item.base.label) for item in items]
    if not triples or any(None in triple for triple in triples):
        return None
    known = [(str(expected), str(ours), str(theirs)) for expected, ours, theirs in triples]
    ours = Counter((expected, chosen) for expected, chosen, _ in known)
    theirs = Counter((expected, chosen) for expected, _, chosen in known)
    expected, answered = Counter(row[0] for row in known), Counter(row[1] for row in known)
    labels = sorted({*expected, *answered, *(row[2] for row in known)})
    wrong = [(pair, count) for pair, count in ours.items() if pair[0] != pair[1]]
    return Confusion(
        set=set_name,
        items=len(known),
        right=sum(ours[label, label] for label in labels),
        base_right=sum(theirs[label, label] for label in labels),
        labels=tuple(
            LabelCount(
                label=label,
                items=expected[label],
                answered=answered[label],
                right=ours[label, label],
                base_right=theirs[label, label],
            )
            for label in labels
        ),
        pairs=tuple(
            Confused(expected=pair[0], answered=pair[1], items=count, base_items=theirs[pair])
            for pair, count in sorted(wrong, key=lambda one: (-one[1], one[0]))
        ),
    )
