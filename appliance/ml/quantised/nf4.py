"""NF4 weights, quantised once when a base is imported and sealed with it: quantising takes 30 s per billion weights.

`NF4_FILE` holds bitsandbytes' result for every linear layer of a decoder layer, under the library's names: packed
weights, the scales of their blocks, and the scales of these scales. All other tensors are in the base's own files.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import bitsandbytes
import safetensors.torch
import torch
from bitsandbytes.functional import dequantize_blockwise
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from appliance.errors import BadInput
from appliance.formats.artifacts.manifest import SETTINGS_FILE
from appliance.ml.quantised.gptq import Gptq, parse_gptq

_SCALES: WeakKeyDictionary[torch.nn.Module, dict[int, torch.Tensor]] = WeakKeyDictionary()
"""Joined block scales by the first layer and the number of layers; their size is an eighth of the packed weights."""

_OPERATOR = "bitsandbytes::dequantize_4bit"
_dequantise_rows = torch.library.get_kernel(_OPERATOR, "CPU")
_ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def _dequantise_on_cpu(
    packed: torch.Tensor, scales: torch.Tensor, block: int, kind: str, shape: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """Dequantise 4-bit weights whose blocks continue from one row into the next.

    Quantisation divides a weight into blocks without regard to its rows. The CPU kernel of bitsandbytes 0.50.2 starts a
    new block at each row, so it reads wrong scales if a row is not a whole number of blocks. This function passes one
    block per row, or all weights as one row.
    """
    count = math.prod(shape)
    rows = list(shape)
    if shape[-1] % block:
        rows = [count // block, block] if count % block == 0 else [1, count]
    made: torch.Tensor = _dequantise_rows.call_boxed(_ON_CPU, packed, scales, block, kind, rows, dtype)
    return made.view(tuple(shape))


with warnings.catch_warnings():
    # torch warns that a kernel replaces another.
    warnings.simplefilter("ignore", UserWarning)
    torch.library.register_kernel(_OPERATOR, "cpu", _dequantise_on_cpu)


def join_blocks(linears: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the joined packed weights of 4-bit layers, uint8 [bytes, 1], and the scale of each block, float32.

    They are shared by all users of these layers: the layers' own weights become views, and the scales are cached.
    """
    first = linears[0]
    scales = _SCALES.get(first, {}).get(len(linears))
    if scales is None:
        scales = _SCALES.setdefault(first, {})[len(linears)] = _join_scales(linears)
    return _join_weights(linears), scales


def join_biases(linears: Sequence[Any]) -> torch.Tensor | None:
    """Return the joined biases [all outputs], zero for layers without one; None if no layer has a bias."""
    if all(linear.bias is None for linear in linears):
        return None
    like = next(linear.bias for linear in linears if linear.bias is not None)
    return torch.cat(
        [like.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach() for linear in linears]
    )


def _join_scales(linears: Sequence[Any]) -> torch.Tensor:
    states = [linear.weight.quant_state for linear in linears]
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        raise ValueError("a layer that was used in evaluation mode has its weights packed, and is trained no more")
    if any(math.prod(state.shape) % state.blocksize for state in states[:-1]):
        raise ValueError("a layer whose weights are no whole number of blocks is not joined with others")
    return torch.cat([_read_scales(state) for state in states])


def _join_weights(linears: Sequence[Any]) -> torch.Tensor:
    if len(linears) == 1:
        weight: torch.Tensor = linears[0].weight.data
        return weight
    if _are_contiguous([linear.weight.data for linear in linears]):
        whole = sum(linear.weight.numel() for linear in linears)
        return linears[0].weight.data.as_strided((whole, 1), (1, 1))  # type: ignore[no-any-return]
    packed = torch.cat([linear.weight.data.flatten() for linear in linears])[:, None]
    start = 0
    for linear in linears:
        stop = start + linear.weight.numel()
        linear.weight.data = packed[start:stop]
        start = stop
    return packed


def _are_contiguous(tensors: Sequence[torch.Tensor]) -> bool:
    """Return True if the tensors are contiguous in one storage, because they were joined before."""
    place = tensors[0].storage_offset()
    for tensor in tensors:
        if tensor.untyped_storage().data_ptr() != tensors[0].untyped_storage().data_ptr():
            return False
        if tensor.storage_offset() != place or not tensor.is_contiguous():
            return False
        place += tensor.numel()
    return True


def _read_scales(state: Any) -> torch.Tensor:
    if not state.nested:
        return state.absmax.float()  # type: ignore[no-any-return]
    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()  # type: ignore[no-any-return]


NF4_FILE = "nf4-double.safetensors"
"""File that an import writes for unquantised weights; ignored in a publisher's folder."""
MEMBER = "quantization_config"
WIDENED = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4"}
"""Quantisation methods whose weights an import converts to bf16, and their number formats."""


@dataclass(frozen=True)
class Quantised:
    """The quantisation of a folder; exactly one field is set.

    `gptq` holds settings of weights that stay packed. `widened` is `fp8` or `mxfp4`, which an import converts to bf16.
    """

    gptq: Gptq | None = None
    widened: str | None = None

    @property
    def weights_a_byte(self) -> int:
        """Largest number of weights in a byte of the files."""
        return 2 if self.widened == "mxfp4" or (self.gptq is not None and self.gptq.bits == 4) else 1


def read_quantised(config: Mapping[str, Any], beside: Mapping[str, Any] | None, what: str) -> Quantised | None:
    """Return the quantisation stated in config.json or quantize_config.json; None for unquantised weights.

    Raises:
        BadInput: the quantisation is not supported; the message says which weights to use instead.
    """
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
    if isinstance(method, str) and method in WIDENED:
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


BLOCK, SCALES_BLOCK = 64, 256
"""Number of weights that share a scale, and number of scales that share one; the library's defaults."""


def make_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the library's settings for NF4 with double quantisation and products in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def write_nf4(folder: Path) -> None:
    """Quantise a base's linear layers and write `NF4_FILE` to its folder, always with the same bytes."""
    model = AutoModelForCausalLM.from_pretrained(
        str(folder.absolute()),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        quantization_config=make_config(torch.bfloat16),
    )
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.state_dict(prefix=f"{name}.")
            tensors |= {key: tensor.contiguous() for key, tensor in state.items() if not key.endswith(".bias")}
    safetensors.torch.save_file(dict(sorted(tensors.items())), folder / NF4_FILE, metadata={"format": "pt"})


def load_nf4(folder: Path, dtype: torch.dtype, device: str, attention: str | None) -> Any:
    """Return the model with linear layers from `NF4_FILE` and the rest in `dtype`; files are memory-mapped."""
    config = AutoConfig.from_pretrained(str(folder.absolute()), local_files_only=True, trust_remote_code=False)
    config.quantization_config = make_config(dtype).to_dict()
    stored = safetensors.torch.load_file(folder / NF4_FILE)
    state = dict(stored)
    for path in sorted(folder.glob("model*.safetensors")):
        # The library does not cast a given state dict; a cast to the same dtype does not copy.
        state |= {name: one.to(dtype) for name, one in safetensors.torch.load_file(path).items() if name not in state}
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, device_map={"": device}, attn_implementation=attention
    )
    layers = {name: one for name, one in model.named_modules() if isinstance(one, bitsandbytes.nn.Linear4bit)}
    if strange := sorted(name for name in stored if name.partition(".weight")[0] not in layers):
        raise BadInput(f"{NF4_FILE}: expected weights of linear layers, got {strange[0]!r:.80}")
    for name, module in layers.items():
        _check_layer(name, module)
        # dtype to which the layer is dequantised.
        module.weight.quant_state.dtype = dtype
    return model


def _check_layer(name: str, layer: Any) -> None:
    """Check the sizes of a layer's tensors, which kernels read by address."""
    weight, state = layer.weight, layer.weight.quant_state
    count = layer.in_features * layer.out_features
    blocks = -(-count // BLOCK)
    expected = {
        "packed weights": f"{-(-count // 2)} of {torch.uint8}",
        "scales": f"{blocks} of {torch.uint8}",
        "numbers": f"16 of {torch.float32}",
        "scales of scales": f"{-(-blocks // SCALES_BLOCK)} of {torch.float32}",
        "numbers of scales": f"256 of {torch.float32}",
    }
    nested = state.state2
    tensors = (weight, state.absmax, state.code, *((nested.absmax, nested.code) if state.nested else (None, None)))
    for (part, wanted), one in zip(expected.items(), tensors, strict=True):
        got = "none" if one is None or not one.is_contiguous() else f"{one.numel()} of {one.dtype}"
        if got != wanted:
            raise BadInput(f"{NF4_FILE}, {name}, {part}: expected {wanted}, got {got}")
    form = state.quant_type, state.blocksize, tuple(state.shape), nested.blocksize if state.nested else None
    if form != ("nf4", BLOCK, (layer.out_features, layer.in_features), SCALES_BLOCK):
        shape = f"{layer.out_features} x {layer.in_features}"
        raise BadInput(f"{NF4_FILE}, {name}: expected nf4 of {shape} in blocks of {BLOCK}, got {form}")
