"""Measures of base, dataset and machine that decide the cost of a run, and a catalogue of cards.

The worker that prepares an import measures the base's dimensions and the lengths of the rows. They are in the ledger
entry, so that a run can be planned from the ledger. The cards have the figures of their makers' data sheets. The
appliance has not been run on any of them, and all figures that follow from the catalogue are marked so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from appliance.domain.core.names import Value
from appliance.domain.recipe.recipe import EXPERT_ROLES, LINEAR_LAYERS
from appliance.errors import BadInput

JOINED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Roles of linear layers with the same input, which training joins in one matrix."""

QUANTILES = 33
"""Quantiles that describe the lengths of a dataset's rows."""

Size = int
T = TypeVar("T", bound=Value)


class DecoderShape(Value):
    """The dimensions of a decoder.

    - `inner`: width of the MLP.
    - `words`: entries of the vocabulary.
    - `tied`: head and embeddings are one matrix.
    - `fused`: queries, keys and values are one linear layer, as are gate and up.
    - `library`: the model uses the library's modules, one sequence at a time. Only then are the following set.
    - `linear_total`: weights of all linear layers without the head.
    - `roles`: roles of its linear layers and experts.
    - `experts`: experts of a layer that has some; `chosen`: those for one token; `expert_inner`: their inner width;
      `expert_layers`: layers with experts; `shared`: these layers have linear layers, too.
    - `parameters`: all weights.
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
        """Return the columns of a layer's queries."""
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        """Return the columns of a layer's keys, which are those of its values, too."""
        return self.key_heads * self.head_size

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Return the number of inputs and outputs of each linear layer of a decoder layer, by role."""
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
        """Return the layers of a decoder layer that get an adapter, as (roles, inputs, outputs)."""
        layers = JOINED if self.fused else [(role,) for role in self.linear]
        found: list[tuple[tuple[str, ...], int, int]] = []
        for roles in layers:
            by_experts = self.experts and not self.shared and roles[0] in EXPERT_ROLES
            if roles[0] in targets and not by_experts:
                found.append((roles, self.linear[roles[0]][0], sum(self.linear[role][1] for role in roles)))
        return found

    @property
    def linear_weights(self) -> int:
        """Return the weights of all linear layers, which are the ones that are quantised."""
        if self.library:
            return self.linear_total
        return self.layers * sum(rows * columns for rows, columns in self.linear.values())

    @property
    def expert_weights(self) -> int:
        """Return the weights of one expert in every layer that has experts."""
        return self.expert_layers * 3 * self.hidden * self.expert_inner

    @property
    def passed_weights(self) -> int:
        """Return the weights that each token is multiplied by."""
        return self.linear_weights + self.chosen * self.expert_weights

    def expert_adapter(self, targets: Sequence[str], rank: int) -> int:
        """Return the weights of adapters of this rank on all experts in the roles of `targets`."""
        wide, narrow = self.hidden + 2 * self.expert_inner, self.expert_inner + self.hidden
        sizes = wide * ("gate_proj" in targets) + narrow * ("down_proj" in targets)
        return self.expert_layers * self.experts * rank * sizes

    @property
    def head_weights(self) -> int:
        """Return the weights of the output head."""
        return self.words * self.hidden


@dataclass(frozen=True)
class GptqForm:
    """The form of linear layers in GPTQ files. `group`: inputs that share a scale; None if all inputs of a layer do."""

    bits: int
    group: int | None

    def count_bytes(self, shape: DecoderShape) -> tuple[int, int]:
        """Return the bytes of all linear layers in the files, and the bytes of the float32 copies of their scales and
        zeros.
        """
        stored = beside = 0.0
        for inputs, outputs in shape.linear.values():
            factors = (inputs // self.group if self.group else 1) * outputs
            # A scale has two bytes, a zero has as many bits as a weight, and the group of each input has four bytes.
            stored += inputs * outputs * self.bits / 8 + factors * (2 + self.bits / 8) + 4 * inputs
            beside += 8 * factors
        return shape.layers * round(stored), shape.layers * round(beside)


class Lengths(Value):
    """Lengths of the training rows in tokens, as evenly spaced quantiles, the shortest first.

    `shared`: the first tokens that all rows have in common. `trained`: the mean number of tokens of a row that have a
    loss.
    """

    quantiles: tuple[Size, ...] = Field(min_length=1, max_length=1024)
    shared: Size = Field(ge=0)
    trained: Size = Field(ge=1)

    @property
    def mean(self) -> float:
        """Return the mean length in tokens."""
        return sum(self.quantiles) / len(self.quantiles)

    @property
    def longest(self) -> int:
        """Return the longest length in tokens."""
        return self.quantiles[-1]

    def spread(self, rows: int) -> list[int]:
        """Return this number of lengths with the same distribution, the shortest first and always with the longest."""
        if rows == 1:
            return [self.longest]
        last = len(self.quantiles) - 1
        return [self.quantiles[-(-row * last // (rows - 1))] for row in range(rows)]


def profile_lengths(lengths: Sequence[int], *, shared: int, trained: int) -> Lengths:
    """Return the quantiles of these lengths, rounded up: a row is never longer than the length that represents it."""
    ordered = sorted(lengths)
    last = len(ordered) - 1
    count = min(QUANTILES, len(ordered))
    indices = [-(-number * last // max(1, count - 1)) for number in range(count)]
    return Lengths(quantiles=tuple(ordered[number] for number in indices), shared=shared, trained=max(1, trained))


def read_shape(name: str, facts: Mapping[str, Any]) -> DecoderShape:
    """Return the shape of an imported base, by the facts of its entry.

    Raises: BadInput where they have none.
    """
    values = {**_to_plain_mapping(facts.get("shape")), "parameters": facts.get("parameters")}
    return _parse_facts(DecoderShape, values, f"base {name}")


def read_roles(facts: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Return the roles of an imported base's linear layers, and True if it has experts.

    Models in the table of architectures have all roles.
    """
    shape = _to_plain_mapping(facts.get("shape"))
    return shape.get("roles") or LINEAR_LAYERS, bool(shape.get("experts"))


def read_lengths(name: str, facts: Mapping[str, Any]) -> Lengths:
    """Return the lengths of an imported dataset, by the facts of its entry.

    Raises: BadInput where they have none.
    """
    return _parse_facts(Lengths, _to_plain_mapping(facts.get("lengths")), f"dataset {name}")


def read_packed(facts: Any) -> GptqForm | None:
    """Return the form of a base's packed linear layers, by the facts of its entry; None where they are not packed.

    Raises: BadInput where the facts have no form.
    """
    gptq = facts.get("gptq") if facts.get("quantisation") == "gptq" else None
    if gptq is None:
        return None
    found = gptq if isinstance(gptq, Mapping) else {}
    bits, group = found.get("bits"), found.get("group_size")
    if not isinstance(bits, int) or not isinstance(group, int):
        raise BadInput("base: expected the form of its packed layers, got none; import it again")
    return GptqForm(bits, None if group == -1 else group)


def _to_plain_mapping(value: Any) -> dict[str, Any]:
    """Return a value of an entry, which may be frozen, as a dictionary with tuples."""
    if not isinstance(value, Mapping):
        return {}
    return {key: tuple(one) if isinstance(one, list | tuple) else one for key, one in value.items()}


def _parse_facts(model: type[T], values: dict[str, Any], what: str) -> T:
    try:
        return model.model_validate(values)
    except ValidationError:
        raise BadInput(f"{what}: expected the measures that a plan needs, got none; import it again") from None


GB = 1_000_000_000
"""Bytes of a gigabyte."""
TERA = 1e12


class Card(Value):
    """A card of the catalogue.

    `operations_a_second`: dense bf16 matrix products with float32 sums, by the data sheet. `measured`: the appliance
    was run on such a card.
    """

    name: str
    memory_bytes: int = Field(ge=1)
    operations_a_second: float
    measured: bool = False


CARDS = (
    Card(name="RTX 3060", memory_bytes=12 << 30, operations_a_second=25.5 * TERA),
    Card(name="RTX 3090", memory_bytes=24 << 30, operations_a_second=71 * TERA),
    Card(name="RTX 4090", memory_bytes=24 << 30, operations_a_second=165 * TERA),
    Card(name="L40S", memory_bytes=48 << 30, operations_a_second=362 * TERA),
    Card(name="A100", memory_bytes=80 << 30, operations_a_second=312 * TERA),
    Card(name="H100", memory_bytes=80 << 30, operations_a_second=989 * TERA),
    Card(name="H200", memory_bytes=141 * GB, operations_a_second=989 * TERA),
)
"""The catalogue of cards, by their makers' pages. A100 and H100 have 80 GB; the RTX 3060 and 3090 are GA106 and GA102.
"""


class MachineCalibration(Value):
    """The rate of one machine for one base and method, measured by a few short steps of two lengths.

    A pack takes `pack_s`, and its operations divided by `operations_a_second`. `machine` is the kind of machine that
    the worker found; `host` is the service's name of the machine that it runs on.
    """

    host: str
    base: str
    method: str
    quantisation: str
    compute_dtype: str
    pack_s: float = Field(ge=0)
    operations_a_second: float = Field(gt=0)
    load_s: float = Field(ge=0)
    peak_bytes: int = Field(ge=0)
    memory_bytes: int = Field(ge=0, description="memory of the card or, on the CPU, of the machine")
    machine: dict[str, Any]
    time: str


class Machine(Value):
    """The machine that the service runs on.

    `memory_bytes` is the memory of its card, or of the machine if it has no card; None where it is unknown.
    """

    host: str
    device: Literal["cpu", "cuda"]
    threads: int = Field(ge=1)
    bfloat16: bool
    memory_bytes: int | None
    disk_free_bytes: int = Field(ge=0)
    calibrations: tuple[MachineCalibration, ...] = ()
