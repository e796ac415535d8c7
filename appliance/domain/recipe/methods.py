"""Training methods: the bases they train on, the weights they produce, and those that may be served to a unit.

`qlora` and `lora` are one method on two forms of the base. The other names are variants of the first weights or of the
training. The module also has the rules for preferences, which are trained by DPO (Rafailov et al., 2023,
https://arxiv.org/abs/2305.18290), and for the number of processes. It uses no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal as Number
from typing import Annotated, Literal

from pydantic import Field

MethodName = Literal["qlora", "lora", "rslora", "lora-plus", "olora", "pissa", "dora", "ia3", "full"]
Quantisation = Literal["nf4-double", "int8", "none", "gptq"]
OptimiserName = Literal["adamw", "adamw-8bit", "paged-adamw-8bit"]

SERVED_ON: tuple[Quantisation, ...] = ("nf4-double", "none", "gptq")
"""Forms of the base that the engine serves: `none` leaves it in its compute dtype, `gptq` as it was imported."""

ADAPTER_WEIGHTS, MODEL_WEIGHTS = "adapter_model.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Method:
    """A training method.

    `quantisations`: the forms of the base that it trains on; the first is the default. `plain`: the saved weights are
    plain LoRA or rsLoRA over an unchanged base. `learning_rate`: the default. `usual_rates`: the range outside which a
    learning rate causes a warning. `low_rank`: it has a rank, an alpha and a dropout. `chooses_modules`: the recipe
    chooses its layers. `weights`: the name of the file of weights.
    """

    quantisations: tuple[Quantisation, ...]
    plain: bool
    learning_rate: str
    usual_rates: tuple[str, str] = ("0.00001", "0.01")
    low_rank: bool = True
    chooses_modules: bool = True
    weights: str = ADAPTER_WEIGHTS


_BOTH: tuple[Quantisation, ...] = ("nf4-double", "none")
_ALL: tuple[Quantisation, ...] = (*_BOTH, "gptq")

METHODS: dict[str, Method] = {
    "qlora": Method(("nf4-double",), plain=True, learning_rate="0.001"),
    "lora": Method(("none", "int8", "gptq"), plain=True, learning_rate="0.001"),
    "rslora": Method(_ALL, plain=True, learning_rate="0.001"),
    "lora-plus": Method(_ALL, plain=True, learning_rate="0.0002", usual_rates=("0.000005", "0.002")),
    "olora": Method(_ALL, plain=True, learning_rate="0.0005", usual_rates=("0.000005", "0.005")),
    "pissa": Method(_ALL, plain=True, learning_rate="0.0005", usual_rates=("0.000005", "0.005")),
    "dora": Method(_BOTH, plain=False, learning_rate="0.001"),
    "ia3": Method(_BOTH, plain=False, learning_rate="0.01", usual_rates=("0.0005", "0.1"), low_rank=False),
    "full": Method(
        ("none",),
        plain=False,
        learning_rate="0.0001",
        usual_rates=("0.000001", "0.001"),
        low_rank=False,
        chooses_modules=False,
        weights=MODEL_WEIGHTS,
    ),
}

LORAPLUS_LR_RATIO = "16.0"
"""LoRA+: default ratio of B's learning rate to A's (Hayou et al., 2024)."""

STARTED = ("olora", "pissa")
"""Methods whose first weights are directions of the base.

The saved adapter has twice the rank, since it also contains the first weights, subtracted.
"""

PRIVATE = ("qlora", "lora", "rslora", "lora-plus")
"""Methods that differential privacy supports: all trained weights are LoRA's A and B, from random numbers.

Before the first step they contain no information about a row, and only clipped gradients change them.
"""

CUDA_OPTIMISERS = ("paged-adamw-8bit",)
"""Optimisers that need CUDA: bitsandbytes pages their state in CUDA's unified memory, and silently does not on a CPU.
"""


def is_servable(method: str, quantisation: str) -> bool:
    """Return True if an adapter of this method and quantisation can be served to a unit."""
    return METHODS[method].plain and quantisation in SERVED_ON


def choose_quantisation(method: str, stored: object) -> Quantisation:
    """Return the default form of the base for a method; `stored` is the form in which the base was imported."""
    possible = METHODS[method].quantisations
    return "gptq" if stored == "gptq" and "gptq" in possible else possible[0]


@dataclass(frozen=True)
class MethodCondition:
    """A property of the base, the rows or the recipe that allows only some methods. `reason` completes a refusal."""

    methods: tuple[str, ...]
    reason: str


def list_conditions(stored: object, *, preferences: bool, private: bool) -> list[MethodCondition]:
    """Return every condition on the method of a run; `stored` is the form in which the base was imported."""
    conditions = []
    if stored == "gptq":
        able = tuple(name for name, one in METHODS.items() if "gptq" in one.quantisations)
        conditions.append(MethodCondition(able, "since the base was imported in GPTQ"))
    if preferences:
        able = tuple(name for name, one in METHODS.items() if one.chooses_modules)
        reason = "since the dataset has preferences, whose reference is the base with the adapter switched off"
        conditions.append(MethodCondition(able, reason))
    if private:
        conditions.append(MethodCondition(PRIVATE, "since the recipe has privacy"))
    return conditions


def list_condition_problems(method: str, conditions: Sequence[MethodCondition]) -> list[str]:
    """Return one sentence for each condition that does not admit the method."""
    return [
        f"recipe, method: expected one of {', '.join(one.methods)}, {one.reason}, got {method}"
        for one in conditions
        if method not in one.methods
    ]


def list_base_problems(method: str, quantisation: str, stored: object) -> list[str]:
    """Return the reasons against a quantisation on a base: GPTQ stays GPTQ, and other bases are not converted to it."""
    if stored == "gptq" and "gptq" not in METHODS[method].quantisations:
        return []  # the method is refused already
    if (stored == "gptq") != (quantisation == "gptq"):
        expected = "gptq, since the base was imported so" if stored == "gptq" else "another than gptq for this base"
        return [f"recipe, quantisation: expected {expected}, got {quantisation}"]
    return []


def list_servable() -> str:
    """Return the pairs of method and base that may be released, as text."""
    return ", ".join(
        f"{name} on {quantisation}"
        for name, method in METHODS.items()
        for quantisation in method.quantisations
        if is_servable(name, quantisation)
    )


Processes = Annotated[int, Field(ge=1, le=64)]


def list_machine_problems(count: int, device: str, threads: int, cards: int) -> list[str]:
    """Return what is wrong with the number of processes on a machine.

    `cards` is the number of cards that a worker may use.
    """
    if device == "cpu" and threads % count:
        return [f"recipe, processes: expected a divisor of this machine's {threads} threads, got {count}"]
    if device == "cuda" and count > cards:
        return [f"recipe, processes: expected at most {cards}, the cards that a worker may see, got {count}"]
    return []


BETA = "0.1"
"""DPO: default beta, that of TRL."""
RATE_SHARE = Number("0.05")
"""DPO: factor on a method's default learning rate. With the full rate, DPO moves far from the base within a few steps.
"""


def lower_rate(learning_rate: str) -> str:
    """Return the default learning rate for preferences."""
    return f"{(Number(learning_rate) * RATE_SHARE).normalize():f}"


def list_row_problems(beta: str, dataset: str, *, preferences: bool) -> list[str]:
    """Return the reason against a beta for these rows, if there is one."""
    if preferences == (Number(beta) > 0):
        return []
    expected = "a number above 0" if preferences else "0.0 or auto"
    return [
        f"recipe, beta: expected {expected}, since {dataset} has {'' if preferences else 'no '}preferences, got {beta}"
    ]
