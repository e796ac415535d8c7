"""What each training method is trained over, what it produces, and whether that may answer a unit. Pure: no library.

`qlora` and `lora` are one method on two kinds of base; each other name says how the adapter is begun or trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MethodName = Literal["qlora", "lora", "rslora", "lora-plus", "olora", "pissa", "dora", "ia3", "full"]
Quantisation = Literal["nf4-double", "int8", "none", "gptq"]
OptimiserName = Literal["adamw", "adamw-8bit", "paged-adamw-8bit"]

SERVED_ON: tuple[Quantisation, ...] = ("nf4-double", "none", "gptq")
"""The bases that the engine answers on; `none` leaves the base in its compute dtype, `gptq` as it was imported."""

ADAPTER_WEIGHTS, MODEL_WEIGHTS = "adapter_model.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Method:
    """`quantisations`: the bases it trains on, the first where the author leaves it open; `plain`: what is saved is
    plain LoRA or rsLoRA over a base that nobody changed; `low_rank`: it has a rank, an alpha and a dropout;
    `usual_rates`: learning rates outside are warned of."""

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

RATE_RATIO = "16.0"
"""LoRA+: how much faster B learns than A, unless the author says otherwise (Hayou et al., 2024)."""

STARTED = ("olora", "pissa")
"""Methods that begin at the base's own directions; what is saved has twice the rank, the beginning subtracted in it."""

CUDA_OPTIMISERS = ("paged-adamw-8bit",)
"""bitsandbytes pages an optimiser's state through CUDA's unified memory; on a CPU it would silently page nothing."""


def is_servable(method: str, quantisation: str) -> bool:
    """Whether what is trained so can answer for a unit."""
    return METHODS[method].plain and quantisation in SERVED_ON


def choose_quantisation(method: str, stored: object) -> Quantisation:
    """What the base is held as where the author leaves it open; `stored`: what the base was imported as."""
    possible = METHODS[method].quantisations
    return "gptq" if stored == "gptq" and "gptq" in possible else possible[0]


def misfits_base(method: str, quantisation: str, stored: object) -> list[str]:
    """Why a method cannot train on a base as it was imported: GPTQ stays GPTQ, and nothing is made GPTQ here."""
    if stored == "gptq" and "gptq" not in METHODS[method].quantisations:
        able = ", ".join(name for name, one in METHODS.items() if "gptq" in one.quantisations)
        return [f"recipe, method: expected one of {able}, since the base was imported in GPTQ, got {method}"]
    if (stored == "gptq") != (quantisation == "gptq"):
        expected = "gptq, since the base was imported so" if stored == "gptq" else "another than gptq for this base"
        return [f"recipe, quantisation: expected {expected}, got {quantisation}"]
    return []


def list_servable() -> str:
    """The pairs of method and base that may be released, for people."""
    return ", ".join(
        f"{name} on {quantisation}"
        for name, method in METHODS.items()
        for quantisation in method.quantisations
        if is_servable(name, quantisation)
    )
