"""Which quantisation a model folder says it has, and what becomes of it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.errors import BadInput
from appliance.ml.quantised.gptq import Gptq, parse_gptq

NF4_FILE = "nf4-double.safetensors"
"""What an import makes of plain weights (`nf4.py`); in a stranger's folder it is refused."""
SETTINGS_FILE = "quantize_config.json"
"""What AutoGPTQ wrote beside config.json, before its settings stood in there."""
MEMBER = "quantization_config"
WIDENED = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4"}
"""The methods whose weights become bf16 at import, and what is stored."""


@dataclass(frozen=True)
class Quantised:
    """`gptq`: kept as it is; `widened`: `fp8` or `mxfp4`, whose weights become bf16 at import. One of the two."""

    gptq: Gptq | None = None
    widened: str | None = None

    @property
    def weights_a_byte(self) -> int:
        """The most that a byte of the files can hold."""
        return 2 if self.widened == "mxfp4" or (self.gptq is not None and self.gptq.bits == 4) else 1


def read_quantised(config: Mapping[str, Any], beside: Mapping[str, Any] | None, what: str) -> Quantised | None:
    """By config.json and, where it is there, quantize_config.json; None for plain weights. BadInput names what is not
    covered, and what to bring instead."""
    settings = config.get(MEMBER)
    if settings is None and beside is None:
        return None
    if settings is None:
        settings, what = beside, f"base, {SETTINGS_FILE}"
    else:
        what = f"{what}, {MEMBER}"
    if not isinstance(settings, Mapping):
        raise BadInput(f"{what}: expected a JSON object, got {type(settings).__name__}")
    method = settings.get("quant_method", "gptq" if beside is not None else None)
    if method in WIDENED:
        return Quantised(widened=WIDENED[method])
    if method != "gptq":
        raise BadInput(
            f"{what}, quant_method: expected gptq, {', '.join(WIDENED)} or weights that are not quantised, got "
            f"{method!r:.40}: bring the model's original bf16 or fp16 weights, or one quantised by GPTQ"
        )
    gptq = parse_gptq(settings, what)
    if beside is not None and (other := parse_gptq(beside, f"base, {SETTINGS_FILE}")) != gptq:
        raise BadInput(f"base, {SETTINGS_FILE}: expected what config.json says, {gptq}, got {other}")
    return Quantised(gptq=gptq)
