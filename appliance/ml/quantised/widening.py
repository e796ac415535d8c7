"""Conversion of FP8 and MXFP4 checkpoints to bf16: a weight is its stored number times its block's scale.

FP8 is e4m3 with a scale per block, row or tensor (`NAME.weight_scale_inv` for DeepSeek and Qwen, otherwise
`NAME.weight_scale`). If the scales are powers of two, every product is a bf16 number; other products are rounded once,
to nearest, ties to even, and counted. MXFP4 (OCP Microscaling 1.0, as in gpt-oss) is e2m1 in blocks of 32, each with a
power of two: every product is a bf16 number. Results that are not finite are refused. Tensors are read and written one
at a time, so that a folder larger than the memory can be imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch

from appliance.errors import BadInput
from appliance.ml.quantised.gptq import Gptq, GptqLayer, find_layers
from appliance.ml.quantised.headers import Header, read_headers
from appliance.ml.quantised.nf4 import MEMBER

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
FP8, FP4_BLOCK = "F8_E4M3", 16
SCALES = ("weight_scale_inv", "weight_scale")
UNUSED = ("input_scale", "activation_scale", "input_scale_ub")
"""Scales of activations, which are not used: products are in bf16 here."""

_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
# A scale is 2 ** (stored - 127); 255 means NaN.
_BIAS, _NO_NUMBER = 127, 255


@dataclass(frozen=True)
class Widened:
    """A tensor of the new base and the stored tensors that it is made from; `make` is None for a copy."""

    header: Header
    sources: tuple[str, ...]
    make: Callable[..., tuple[torch.Tensor, int]] | None = None


def widen_folder(source: Path, output: Path, files: list[str], kind: str) -> str:
    """Write config.json, the weights and their index in bf16, and return a sentence that describes the conversion.

    Raises:
        BadInput: the folder has no tensors of this kind, or one cannot be converted.
    """
    headers = read_headers(source, files)
    plan = plan_fp8(headers) if kind == "fp8" else plan_mxfp4(headers)
    if not any(one.make for one in plan.values()):
        raise BadInput(f"base, weights: expected tensors in {kind}, as {CONFIG_FILE} says, got none")
    rounded = total = 0
    with ExitStack() as stack:
        readers = {
            file: stack.enter_context(safetensors.safe_open(source / file, framework="pt")) for file in sorted(files)
        }

        def read(name: str) -> torch.Tensor:
            tensor: torch.Tensor = readers[headers[name].file].get_tensor(name)
            return tensor

        for file in sorted(files):
            own = {name: one for name, one in plan.items() if one.header.file == file}
            # A shard with scales only is not written.
            counts = _write_file(output / file, own, read) if own else (0, 0)
            rounded, total = rounded + counts[0], total + counts[1]
    _write_settings(source, output, plan)
    how = f"{rounded} of {total} weights were rounded, to nearest even" if rounded else "every weight is exact"
    return f"the weights were {kind} in the publisher's files and were made bfloat16: {how}"


def plan_fp8(headers: Mapping[str, Header]) -> dict[str, Widened]:
    """Return the tensors of the new base by name, for an FP8 folder.

    Raises:
        BadInput: an FP8 tensor has no fitting scale, or a scale has no tensor.
    """
    plan, used = {}, set()
    for name, header in headers.items():
        if header.dtype != FP8:
            continue
        scales = [f"{name.removesuffix('weight')}{part}" for part in SCALES]
        found = [scale for scale in scales if name.endswith(".weight") and scale in headers]
        if len(found) != 1:
            raise BadInput(f"base, {name}: expected one of {', '.join(scales)} beside it, got {len(found)}")
        _check_blocks(name, header, found[0], headers[found[0]])
        used.add(found[0])
        plan[name] = Widened(replace(header, dtype="BF16"), (name, found[0]), multiply_blocks)
    for name, header in headers.items():
        part = name.rpartition(".")[2]
        if header.dtype == FP8 or name in used or part in UNUSED:
            continue
        if part in SCALES or header.dtype.startswith("F8"):
            raise BadInput(f"base, {name}: expected it beside a weight in {FP8}, got {header} alone")
        plan[name] = Widened(header, (name,))
    return plan


def _check_blocks(name: str, weight: Header, scale: str, scales: Header) -> None:
    """Check that there is one scale, or one per row or block."""
    if scales.dtype not in ("F32", "BF16", "F16"):
        raise BadInput(f"base, {scale}: expected F32, BF16 or F16, got {scales}")
    if math.prod(scales.shape) == 1:
        return
    if len(weight.shape) != 2 or len(scales.shape) != 2 or 0 in (*weight.shape, *scales.shape):
        raise BadInput(f"base, {scale}: expected one scale, or rows and columns of scales for {name}, got {scales}")
    for size, blocks in zip(weight.shape, scales.shape, strict=True):
        each = -(-size // blocks)
        if -(-size // each) != blocks:
            raise BadInput(f"base, {scale}: expected blocks that divide {name}, {weight}, got {scales}")


def multiply_blocks(weight: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the products in bf16 and the number of products that were rounded."""
    wide = scales.double()
    if scales.numel() == 1:
        wide = wide.flatten()[0]
    else:
        for dim, (size, blocks) in enumerate(zip(weight.shape, scales.shape, strict=True)):
            wide = wide.repeat_interleave(block_size(size, blocks), dim=dim).narrow(dim, 0, size)
    return round_once(weight.double() * wide)


def block_size(size: int, blocks: int) -> int:
    """Return the block size: a power of two if that gives this number of blocks, otherwise the smallest that does.

    For example, it is 128 for 300 numbers in three blocks.
    """
    smallest = -(-size // blocks)
    power = 1 << (smallest - 1).bit_length()
    return power if -(-size // power) == blocks else smallest


def round_once(exact: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return float64 values rounded to the nearest bf16, ties to even, and the number of values that changed.

    torch converts by float32, which rounds twice. So float32 is rounded to odd, which makes the second rounding exact.
    """
    single = exact.float()
    off = single.double() - exact
    # Step back to the float32 towards zero; then set the last bit to mark that digits were cut off.
    bits = single.view(torch.int32)
    too_large = (off * exact.sign()) > 0
    bits = torch.where(too_large, bits - 1, bits)
    bits = torch.where(off != 0, bits | 1, bits)
    made = bits.view(torch.float32).to(torch.bfloat16)
    return made, int((made.double() != exact).sum())


def plan_mxfp4(headers: Mapping[str, Header]) -> dict[str, Widened]:
    """Return the tensors of the new base by name, for an MXFP4 folder.

    Raises:
        BadInput: blocks have no fitting scales, or scales have no blocks.
    """
    plan, used = {}, set()
    for name, header in headers.items():
        if not name.endswith("_blocks"):
            continue
        base = name.removesuffix("_blocks")
        scale = headers.get(f"{base}_scales")
        fits = header.dtype == "U8" and len(header.shape) == 4 and header.shape[3] == FP4_BLOCK
        if not fits:
            raise BadInput(f"base, {name}: expected U8 [experts, rows, blocks, {FP4_BLOCK}], got {header}")
        if scale is None or scale.dtype not in ("U8", "F8_E8M0") or scale.shape != header.shape[:3]:
            got = "none" if scale is None else scale
            raise BadInput(f"base, {base}_scales: expected U8 {list(header.shape[:3])}, got {got}")
        used |= {name, f"{base}_scales"}
        experts, rows, blocks, size = header.shape
        made = Header("BF16", (experts, blocks * size * 2, rows), header.file)
        plan[base] = Widened(made, (name, f"{base}_scales"), multiply_fp4)
    for name, header in headers.items():
        if name in used:
            continue
        if name.endswith("_scales"):
            raise BadInput(f"base, {name}: expected it beside {name.removesuffix('_scales')}_blocks, got it alone")
        plan[name] = Widened(header, (name,))
    return plan


def multiply_fp4(blocks: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return bf16 weights [experts, inputs, rows], in the layout of transformers, and the number rounded, which is 0.

    `blocks` is uint8 [experts, rows, blocks, 16], with two numbers per byte, the lower half first. `scales` is uint8
    [experts, rows, blocks].
    """
    stored = scales.view(torch.uint8)
    if bool(stored.eq(_NO_NUMBER).any()):
        raise BadInput("base, weights: expected scales of MXFP4 below 255, got 255, which is no number")
    numbers = torch.stack([_FP4[(blocks & 15).int()], _FP4[(blocks >> 4).int()]], dim=-1).flatten(-2)
    made = torch.ldexp(numbers.double(), stored.int()[..., None] - _BIAS)
    return round_once(made.flatten(-2).transpose(1, 2).contiguous())


def _write_file(path: Path, tensors: Mapping[str, Widened], read: Callable[[str], torch.Tensor]) -> tuple[int, int]:
    """Write a safetensors file one tensor at a time; return the numbers of rounded and of converted weights."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The format requires wider dtypes first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-_bytes(tensors[name].header), name))
    for name in names:
        own = tensors[name].header
        header[name] = {"dtype": own.dtype, "shape": list(own.shape), "data_offsets": [end, end + own.bytes]}
        end += own.bytes
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    rounded = total = 0
    with open(path, "xb") as stream:
        stream.write(len(data).to_bytes(8, "little") + data)
        for name in names:
            made, off = _make(name, tensors[name], read)
            stream.write(made.contiguous().flatten().view(torch.uint8).numpy().data)
            if tensors[name].make is not None:
                rounded, total = rounded + off, total + made.numel()
    return rounded, total


def _bytes(header: Header) -> int:
    return header.bytes // max(1, math.prod(header.shape))


def _make(name: str, one: Widened, read: Callable[[str], torch.Tensor]) -> tuple[torch.Tensor, int]:
    tensors = [read(source) for source in one.sources]
    if one.make is None:
        return tensors[0], 0
    made, off = one.make(*tensors)
    if not bool(made.isfinite().all()):
        raise BadInput(f"base, {name}: expected finite numbers in bfloat16, got others")
    return made, off


def _write_settings(source: Path, output: Path, plan: Mapping[str, Widened]) -> None:
    """Write config.json without the quantisation, and the index of the new tensors."""
    config = json.loads((source / CONFIG_FILE).read_bytes())
    config.pop(MEMBER, None)
    config.pop("torch_dtype", None)
    config["dtype"] = "bfloat16"
    _write_json(output / CONFIG_FILE, config)
    if (source / INDEX_FILE).exists():
        size = sum(one.header.bytes for one in plan.values())
        named = {name: one.header.file for name, one in sorted(plan.items())}
        _write_json(output / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": named})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


_MOST_NAMED = 3


def check_numbers(folder: Path, files: list[str]) -> list[str]:
    """Return a warning if matrices contain only zeros.

    Raises:
        BadInput: a tensor contains NaN or infinity.
    """
    zero: list[str] = []
    for file in sorted(files):
        with safetensors.safe_open(folder / file, framework="pt") as weights:
            for name in sorted(weights.keys()):
                tensor = weights.get_tensor(name)
                if not tensor.is_floating_point() or tensor.itemsize < 2 or not tensor.numel():
                    continue
                low, high = map(float, tensor.aminmax())
                if not (math.isfinite(low) and math.isfinite(high)):
                    got = "NaN" if math.isnan(low) else "infinity"
                    raise BadInput(
                        f"base, {name}: expected finite numbers, got {got}: bring the publisher's own weights"
                    )
                # Biases may be zero, including those of experts, which are matrices.
                if low == high == 0 and tensor.dim() > 1 and not name.endswith("bias"):
                    zero.append(name)
    if not zero:
        return []
    others = f" and {len(zero) - _MOST_NAMED} others" if len(zero) > _MOST_NAMED else ""
    return [f"all zero, which trained weights are not: {', '.join(zero[:_MOST_NAMED])}{others}"]


def check_values(folder: Path, files: list[str], gptq: Gptq) -> None:
    """Check the values of GPTQ tensors.

    Raises:
        BadInput: a tensor has a value out of range; the message names the first one.
    """
    headers = read_headers(folder, files)
    layers = find_layers(gptq, headers)
    for file in sorted(files):
        with safetensors.safe_open(folder / file, framework="pt") as weights:
            for name, layer in layers.items():
                _check_layer(weights, name, layer, gptq, headers, file)


def _check_layer(weights: Any, name: str, layer: GptqLayer, gptq: Gptq, headers: dict[str, Header], file: str) -> None:
    """Check the tensors of a layer that are in this file; a layer may be split over several files."""
    checks = {"qzeros": _check_zeros, "scales": _check_scales, "g_idx": _check_groups}
    for part, check in checks.items():
        tensor = f"{name}.{part}"
        if tensor in headers and headers[tensor].file == file:
            check(weights.get_tensor(tensor), f"base, {tensor}", layer, gptq)


def _check_zeros(zeros: torch.Tensor, what: str, layer: GptqLayer, gptq: Gptq) -> None:
    """Refuse zeros of version 1 that are ambiguous.

    There the largest number would be a zero of 2^bits. It also results if 1 was subtracted from a zero of 0, and then
    the borrow has changed the neighbouring number.
    """
    most = (1 << gptq.bits) - 1
    if gptq.version != 1:
        return
    shifts = torch.arange(0, 32, gptq.bits, dtype=torch.int32)
    if bool(((zeros[..., None] >> shifts) & most).eq(most).any()):
        raise BadInput(
            f"{what}: expected stored zeros of 0 to {most - 1} in checkpoint_format gptq, got {most}, which programs "
            "read as two different zeros: bring the model in checkpoint_format gptq_v2"
        )


def _check_scales(scales: torch.Tensor, what: str, layer: GptqLayer, gptq: Gptq) -> None:
    if not bool(scales.isfinite().all()):
        raise BadInput(f"{what}: expected finite numbers, got others")


def _check_groups(index: torch.Tensor, what: str, layer: GptqLayer, gptq: Gptq) -> None:
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= layer.groups:
        raise BadInput(f"{what}: expected groups from 0 to {layer.groups - 1}, got {low if low < 0 else high}")
    counts = torch.bincount(index, minlength=layer.groups)
    if not bool(counts.eq(layer.group).all()):
        wrong = int(counts.ne(layer.group).nonzero()[0])
        raise BadInput(f"{what}: expected {layer.group} inputs in group {wrong}, got {int(counts[wrong])}")
