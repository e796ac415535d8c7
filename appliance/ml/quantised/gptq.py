"""Settings and tensor headers of GPTQ (https://arxiv.org/abs/2210.17323), as AutoGPTQ and gptqmodel write them.

A linear layer NAME is stored as `NAME.qweight` [in * bits / 32, out] and `NAME.qzeros` [groups, out * bits / 32], both
int32 with the lowest bits first, `NAME.scales` [groups, out], and `NAME.g_idx` [in], the group of each input. The
weight is scale * (q - zero). Version 1 (`checkpoint_format: gptq`, also the default) stores zero - 1, version 2 zero.
Headers are enough for these checks, so this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.errors import BadInput
from appliance.ml.quantised.headers import Header

BITS = (4, 8)
VERSIONS = {"gptq": 1, "gptq_v2": 2}
SCALES = ("F16", "BF16", "F32")
PARTS = ("qweight", "qzeros", "scales", "g_idx")
MAX_GROUP = 1 << 20


@dataclass(frozen=True)
class Gptq:
    """The GPTQ settings of a folder.

    `group` is the number of inputs that share a scale; -1 for all inputs of a layer. `version` is the version of the
    stored zeros. `reordered` is True if inputs are grouped by activation, so every layer needs its own `g_idx`.
    """

    bits: int
    group: int
    symmetric: bool
    reordered: bool
    version: int

    @property
    def per_word(self) -> int:
        """Number of weights in 32 bits."""
        return 32 // self.bits

    def describe(self) -> dict[str, Any]:
        """Return the settings in the form of the import's ledger entry."""
        formats = {version: name for name, version in VERSIONS.items()}
        return {
            "bits": self.bits,
            "group_size": self.group,
            "sym": self.symmetric,
            "desc_act": self.reordered,
            "checkpoint_format": formats[self.version],
        }


def parse_gptq(settings: Mapping[str, Any], what: str) -> Gptq:
    """Return the settings of a folder.

    Raises:
        BadInput: a field has an unsupported value; the message names it.
    """
    bits, group = settings.get("bits"), settings.get("group_size", -1)
    if type(bits) is not int or bits not in BITS:
        raise BadInput(f"{what}, bits: expected 4 or 8, got {bits!r:.40}: {_BRING}")
    if type(group) is not int or not (group == -1 or 1 <= group <= MAX_GROUP):
        raise BadInput(f"{what}, group_size: expected -1 or a whole number above 0, got {group!r:.40}")
    form = settings.get("checkpoint_format", "gptq")
    if not isinstance(form, str) or form not in VERSIONS:
        raise BadInput(f"{what}, checkpoint_format: expected {' or '.join(VERSIONS)}, got {form!r:.40}: {_BRING}")
    for key, expected in (("sym", True), ("desc_act", False)):
        if type(settings.get(key, expected)) is not bool:
            raise BadInput(f"{what}, {key}: expected true or false, got {settings[key]!r:.40}")
    for key, plain in _PLAIN.items():
        if settings.get(key) not in plain:
            raise BadInput(f"{what}, {key}: expected one setting for all layers in int32, got {settings[key]!r:.40}")
    return Gptq(bits, group, settings.get("sym", True), settings.get("desc_act", False), VERSIONS[form])


_BRING = "bring the model quantised by GPTQ in 4 or 8 bits, or its bf16 or fp16 weights"
# Further settings of gptqmodel, with the values that are supported.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "dynamic": (None, {}),
    "lm_head": (None, False),
    "pack_dtype": (None, "int32"),
    "adapter": (None, {}),
    "rotation": (None, ""),
}


@dataclass(frozen=True)
class GptqLayer:
    """The dimensions of a packed layer, from its headers.

    `group` is the number of inputs in each group; `bias` is True if the layer has a bias, `indexed` if it has a
    `g_idx`.
    """

    inputs: int
    outputs: int
    group: int
    scales: str
    bias: bool
    indexed: bool

    @property
    def groups(self) -> int:
        return self.inputs // self.group


def find_layers(gptq: Gptq, headers: Mapping[str, Header]) -> dict[str, GptqLayer]:
    """Return the packed layers by name.

    Raises:
        BadInput: a tensor does not fit the others; the message names the first one.
    """
    names = sorted({name.rpartition(".")[0] for name in headers if name.rpartition(".")[2] in PARTS})
    if not names:
        raise BadInput("base, weights: expected layers packed by GPTQ (qweight, qzeros, scales), got none")
    return {name: _read_layer(gptq, name, headers) for name in names}


def _read_layer(gptq: Gptq, name: str, headers: Mapping[str, Header]) -> GptqLayer:
    weight, zeros, scales, index = (headers.get(f"{name}.{part}") for part in PARTS)
    if weight is None or zeros is None or scales is None:
        lacking = next(part for part in PARTS if f"{name}.{part}" not in headers)
        raise BadInput(f"base, {name}.{lacking}: expected this tensor beside the layer's others, got none")
    if f"{name}.weight" in headers:
        raise BadInput(f"base, {name}.weight: expected no weight beside {name}.qweight, got one")
    if index is None and gptq.reordered:
        raise BadInput(f"base, {name}.g_idx: expected this tensor, since desc_act is true, got none")
    _check_header(f"{name}.qweight", weight, ("I32",), (None, None))
    rows, outputs = weight.shape
    inputs = rows * gptq.per_word
    group = inputs if gptq.group == -1 else gptq.group
    if not inputs or not outputs or inputs % group:
        raise BadInput(
            f"base, {name}.qweight: expected a number of inputs that group_size {gptq.group} divides, got {inputs}"
        )
    if outputs % gptq.per_word:
        raise BadInput(f"base, {name}.qweight: expected outputs in whole words of {gptq.per_word}, got {outputs}")
    _check_header(f"{name}.qzeros", zeros, ("I32",), (inputs // group, outputs // gptq.per_word))
    _check_header(f"{name}.scales", scales, SCALES, (inputs // group, outputs))
    if index is not None:
        _check_header(f"{name}.g_idx", index, ("I32",), (inputs,))
    bias = headers.get(f"{name}.bias")
    if bias is not None:
        _check_header(f"{name}.bias", bias, SCALES, (outputs,))
    return GptqLayer(inputs, outputs, group, scales.dtype, bias is not None, index is not None)


def _check_header(name: str, header: Header, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> None:
    fits = len(header.shape) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, header.shape, strict=True)
    )
    if header.dtype not in dtypes or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise BadInput(f"base, {name}: expected {' or '.join(dtypes)} [{wanted}], got {header}")
