"""What of a base and a dataset decides the cost of a run: the base's dimensions, and how long the rows are.

Both are found by the preparing worker at import and stand in the entry; so a run can be planned from the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from appliance.domain.core.names import Value
from appliance.domain.recipe.recipe import EXPERT_ROLES, LINEAR_LAYERS
from appliance.errors import BadInput

JOINED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Roles of linear layers that read one input: one matrix each in training, whether or not they are one layer."""

QUANTILES = 33
"""So many lengths stand for all of a dataset's."""

Size = int
T = TypeVar("T", bound=Value)


class Shape(Value):
    """A decoder's dimensions. `words`: entries of the vocabulary; `tied`: head and embeddings are one matrix; `fused`:
    queries, keys and values are one linear layer, as are gate and up.

    `library`: it goes through the library's modules, each sequence by itself. Only then are the rest stated:
    `linear_total`, weights of all linear layers but the head; `roles`, those that its linear layers or experts play;
    `experts` of a layer that has some, whose weights are parameters, `chosen` for a token, their inner width, how many
    layers have them, and whether each has a `shared` part of linear layers beside them.
    """

    layers: Size = Field(ge=1)
    hidden: Size = Field(ge=1)
    inner: Size = Field(ge=1)
    heads: Size = Field(ge=1)
    key_heads: Size = Field(ge=1)
    head_size: Size = Field(ge=1)
    words: Size = Field(ge=1)
    tied: bool
    fused: bool = False
    library: bool = False
    linear_total: Size = Field(ge=0, default=0)
    roles: tuple[str, ...] = ()
    experts: Size = Field(ge=0, default=0)
    chosen: Size = Field(ge=0, default=0)
    expert_inner: Size = Field(ge=0, default=0)
    expert_layers: Size = Field(ge=0, default=0)
    shared: bool = False
    parameters: Size = Field(ge=1)

    @property
    def query(self) -> int:
        """Columns of a layer's queries."""
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        """Columns of a layer's keys, and of its values."""
        return self.key_heads * self.head_size

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of a decoder layer."""
        return {
            "q_proj": (self.hidden, self.query),
            "k_proj": (self.hidden, self.key),
            "v_proj": (self.hidden, self.key),
            "o_proj": (self.query, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }

    def adapted(self, targets: Sequence[str]) -> list[tuple[tuple[str, ...], int, int]]:
        """The layers of a decoder layer that get an adapter: their roles, inputs and outputs."""
        layers = JOINED if self.fused else [(role,) for role in self.linear]
        found: list[tuple[tuple[str, ...], int, int]] = []
        for roles in layers:
            by_experts = self.experts and not self.shared and roles[0] in EXPERT_ROLES
            if roles[0] in targets and not by_experts:
                found.append((roles, self.linear[roles[0]][0], sum(self.linear[role][1] for role in roles)))
        return found

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' linear layers: what is quantised."""
        if self.library:
            return self.linear_total
        return self.layers * sum(rows * columns for rows, columns in self.linear.values())

    @property
    def expert_weights(self) -> int:
        """Of one expert in every layer that has some."""
        return self.expert_layers * 3 * self.hidden * self.expert_inner

    @property
    def passed_weights(self) -> int:
        """What a token is multiplied by."""
        return self.linear_weights + self.chosen * self.expert_weights

    def expert_adapter(self, targets: Sequence[str], rank: int) -> int:
        """Weights of adapters of this rank on all experts whose roles are named."""
        wide, narrow = self.hidden + 2 * self.expert_inner, self.expert_inner + self.hidden
        sizes = wide * ("gate_proj" in targets) + narrow * ("down_proj" in targets)
        return self.expert_layers * self.experts * rank * sizes

    @property
    def head_weights(self) -> int:
        return self.words * self.hidden


@dataclass(frozen=True)
class Packed:
    """A linear layer's weights as GPTQ stores them; `group`: inputs that share a scale, all of a layer's where None."""

    bits: int
    group: int | None

    def count_bytes(self, shape: Shape) -> tuple[int, int]:
        """Of all linear layers in the files, and of the scales and zeros that are kept in float32 beside them."""
        stored = beside = 0.0
        for inputs, outputs in shape.linear.values():
            factors = (inputs // self.group if self.group else 1) * outputs
            # A scale in two bytes, a zero in as many bits as a weight, and each input's group.
            stored += inputs * outputs * self.bits / 8 + factors * (2 + self.bits / 8) + 4 * inputs
            beside += 8 * factors
        return shape.layers * round(stored), shape.layers * round(beside)


class Lengths(Value):
    """How long the training rows are, in tokens: evenly spread quantiles, the shortest first. `shared`: the first
    tokens that all rows have in common; `trained`: tokens that carry a loss, of a row on average."""

    quantiles: tuple[Size, ...] = Field(min_length=1, max_length=1024)
    shared: Size = Field(ge=0)
    trained: Size = Field(ge=1)

    @property
    def mean(self) -> float:
        return sum(self.quantiles) / len(self.quantiles)

    @property
    def longest(self) -> int:
        return self.quantiles[-1]

    def spread(self, rows: int) -> list[int]:
        """So many lengths that are distributed like these, the shortest first; the longest is among them."""
        if rows == 1:
            return [self.longest]
        last = len(self.quantiles) - 1
        return [self.quantiles[-(-row * last // (rows - 1))] for row in range(rows)]


def profile_lengths(lengths: Sequence[int], *, shared: int, trained: int) -> Lengths:
    """Rounded up: no row is longer than the length that is used for it."""
    ordered = sorted(lengths)
    last = len(ordered) - 1
    count = min(QUANTILES, len(ordered))
    places = [-(-place * last // max(1, count - 1)) for place in range(count)]
    return Lengths(quantiles=tuple(ordered[place] for place in places), shared=shared, trained=max(1, trained))


def read_shape(name: str, facts: Mapping[str, Any]) -> Shape:
    """Of an imported base; BadInput where its entry has none."""
    values = {**_plain(facts.get("shape")), "parameters": facts.get("parameters")}
    return _read(Shape, values, f"base {name}")


def read_roles(facts: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Of an imported base: the roles that its linear layers play, and whether it has experts. Those of the table of
    architectures play all."""
    shape = _plain(facts.get("shape"))
    return shape.get("roles") or LINEAR_LAYERS, bool(shape.get("experts"))


def read_lengths(name: str, facts: Mapping[str, Any]) -> Lengths:
    """Of an imported dataset; BadInput where its entry has none."""
    return _read(Lengths, _plain(facts.get("lengths")), f"dataset {name}")


def read_packed(facts: Any) -> Packed | None:
    """How a base's linear layers are packed, by its entry; None where they are not."""
    said = facts.get("gptq") if facts.get("quantisation") == "gptq" else None
    if said is None:
        return None
    return Packed(int(said["bits"]), None if said["group_size"] == -1 else int(said["group_size"]))


def _plain(value: Any) -> dict[str, Any]:
    """An entry's own value, which may be frozen, as a mapping with tuples."""
    if not isinstance(value, Mapping):
        return {}
    return {key: tuple(one) if isinstance(one, list | tuple) else one for key, one in value.items()}


def _read(model: type[T], values: dict[str, Any], what: str) -> T:
    try:
        return model.model_validate(values)
    except ValidationError:
        raise BadInput(f"{what}: expected the measures that a plan needs, got none; import it again") from None
