"""FP8 and MXFP4 checkpoints become bf16 at import: a weight is its stored number times its block's scale.

FP8 is e4m3 with one scale for each block, row or tensor (`NAME.weight_scale_inv` as DeepSeek and Qwen write it,
`NAME.weight_scale` as others do). With scales that are powers of two every product is a bf16 number; other products
are rounded once, to nearest, ties to even, and counted. MXFP4 (OCP Microscaling 1.0, as gpt-oss writes it) is e2m1 in
blocks of 32 with a power of two each: every product is a bf16 number. What is no finite bf16 number is refused.

Tensors are read and written one at a time, so that a folder larger than the memory can be imported.
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
from appliance.ml.quantised.headers import Header, read_headers
from appliance.ml.quantised.settings import MEMBER

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
FP8, FP4_BLOCK = "F8_E4M3", 16
SCALES = ("weight_scale_inv", "weight_scale")
UNUSED = ("input_scale", "activation_scale", "input_scale_ub")
"""Scales of activations, which multiply in bf16 here."""

_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
# A scale is 2 ** (stored - 127); 255 is no number.
_BIAS, _NO_NUMBER = 127, 255


@dataclass(frozen=True)
class Widened:
    """A tensor of the base to be, and the stored tensors that it is made of; `make` is None for a copy."""

    header: Header
    sources: tuple[str, ...]
    make: Callable[..., tuple[torch.Tensor, int]] | None = None


def widen_folder(source: Path, output: Path, files: list[str], kind: str) -> str:
    """Writes config.json, the weights and their index, in bf16, and says in a sentence what was done."""
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
            # A shard of scales alone leaves none.
            counts = _write_file(output / file, own, read) if own else (0, 0)
            rounded, total = rounded + counts[0], total + counts[1]
    _write_settings(source, output, plan)
    how = f"{rounded} of {total} weights were rounded, to nearest even" if rounded else "every weight is exact"
    return f"the weights were {kind} in the publisher's files and were made bfloat16: {how}"


def plan_fp8(headers: Mapping[str, Header]) -> dict[str, Widened]:
    """BadInput names an FP8 tensor without a scale that fits it, and a scale without its tensor."""
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
    """One scale, one a row, or one a block."""
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
    """The products in bf16, and how many of them had to be rounded."""
    wide = scales.double()
    if scales.numel() == 1:
        wide = wide.flatten()[0]
    else:
        for dim, (size, blocks) in enumerate(zip(weight.shape, scales.shape, strict=True)):
            wide = wide.repeat_interleave(block_size(size, blocks), dim=dim).narrow(dim, 0, size)
    return round_once(weight.double() * wide)


def block_size(size: int, blocks: int) -> int:
    """A power of two where that gives so many blocks (128 for 300 numbers in three), else the smallest that does."""
    smallest = -(-size // blocks)
    power = 1 << (smallest - 1).bit_length()
    return power if -(-size // power) == blocks else smallest


def round_once(exact: torch.Tensor) -> tuple[torch.Tensor, int]:
    """float64 to the nearest bf16, ties to even, and how many were no bf16 number.

    torch goes by float32, which rounds twice: so float32 is rounded to odd, which leaves the second rounding right.
    """
    single = exact.float()
    off = single.double() - exact
    # Towards zero, one step of the representation back; then the last bit says that something was cut off.
    bits = single.view(torch.int32)
    too_large = (off * exact.sign()) > 0
    bits = torch.where(too_large, bits - 1, bits)
    bits = torch.where(off != 0, bits | 1, bits)
    made = bits.view(torch.float32).to(torch.bfloat16)
    return made, int((made.double() != exact).sum())


def plan_mxfp4(headers: Mapping[str, Header]) -> dict[str, Widened]:
    """BadInput names blocks without scales that fit them, and scales without blocks."""
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
    """[experts, inputs, rows] of bf16, as transformers' experts have them, of [experts, rows, blocks, 16] bytes with
    the lower half first; never rounded."""
    stored = scales.view(torch.uint8)
    if bool(stored.eq(_NO_NUMBER).any()):
        raise BadInput("base, weights: expected scales of MXFP4 below 255, got 255, which is no number")
    numbers = torch.stack([_FP4[(blocks & 15).int()], _FP4[(blocks >> 4).int()]], dim=-1).flatten(-2)
    made = torch.ldexp(numbers.double(), stored.int()[..., None] - _BIAS)
    return round_once(made.flatten(-2).transpose(1, 2).contiguous())


def _write_file(path: Path, tensors: Mapping[str, Widened], read: Callable[[str], torch.Tensor]) -> tuple[int, int]:
    """A safetensors file, a tensor at a time; how many weights were rounded, and how many were made."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The format wants the wider dtypes first, so that every tensor is aligned.
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
    """config.json without the quantisation, and the index of what is there now."""
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
