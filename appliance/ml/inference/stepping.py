"""A decoding step, one token for each row of a batch, with hand-written layers.

It covers the table of architectures (`ml/layers/architecture.py`) and uses the base's own weights; other bases use the
library's modules. Layers that share an input are one product: their weights are joined into one tensor, and the
modules' weights become views of it. Between products all values are float32. No row's bits depend on another's: every
operation is by row, by `multiply_rows`, or by a kernel whose tests check this.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import bitsandbytes
import torch
from torch.nn.functional import linear

from appliance.ml.inference.cache import DecodeAttention
from appliance.ml.inference.lora import ROWS, AdapterPair, AdapterPairs, Mix, RowGroup, multiply_rows, number_groups
from appliance.ml.layers.architecture import Architecture, ArchitectureRow, LayerKind, find_architecture
from appliance.ml.layers.decoder import embed
from appliance.ml.layers.head import ACTIVATIONS, make_head
from appliance.ml.layers.packing import Positions, Rotation
from appliance.ml.layers.projections import Projections
from appliance.ml.layers.scores import Scoring
from appliance.ml.quantised.kernels import KernelGroup, Product, load_kernels
from appliance.ml.quantised.linear import (
    FewRows,
    GptqLinear,
    fits_few_rows,
    fits_nf4_rows,
    join_few_rows,
    make_bf16_rows,
    make_nf4_rows,
)

_NORMS = ("before", "behind", "before_mlp", "behind_mlp", "query_norm", "key_norm")
_PARTS = ("reading", "writing", "widening", "narrowing")
_ALL_KEYS = (1 << 63) - 1


@dataclass(frozen=True)
class FusedLayer:
    """A decoder layer: its four products and their groups, norm weights in the order of `_NORMS`, rope and window."""

    products: Sequence[FewRows]
    groups: Sequence[RowGroup]
    norms: Sequence[torch.Tensor | None]
    rope: str | None
    window: int | None


class _FusedPart(ctypes.Structure):
    _fields_ = (("product", Product), ("group", KernelGroup))


class _FusedLayer(ctypes.Structure):
    _fields_ = (
        *((name, _FusedPart) for name in _PARTS),
        *((name, ctypes.c_void_p) for name in (*_NORMS, "cosine", "sine", "keys", "values")),
        *((name, ctypes.c_int64) for name in ("turned", "window")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "heads", "key_heads", "size", "block")),
        *((name, ctypes.c_int64) for name in ("heads_together", "gelu")),
        *((name, ctypes.c_double) for name in ("epsilon", "scaling", "softcap", "multiplier")),
    )


class _StepRows(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("lengths", ctypes.POINTER(ctypes.c_int64)),
        ("blocks", ctypes.POINTER(ctypes.c_int64)),
        ("most", ctypes.c_int64),
        ("query_scale", ctypes.c_void_p),
        ("pairs", ctypes.POINTER(AdapterPair)),
        ("count", ctypes.c_int64),
    )


@cache
def _find_kernel() -> ctypes._NamedFuncPointer:
    function = load_kernels().read_layers
    structures = (ctypes.POINTER(one) for one in (_Model, _FusedLayer, _StepRows))
    function.argtypes = (*structures, ctypes.c_int64)
    return function


class FusedLayers:
    """The layers of one base, for the kernel that computes a whole step."""

    def __init__(
        self, layers: Sequence[FusedLayer], architecture: Architecture, scoring: Scoring, size: int, epsilon: float
    ) -> None:
        for layer in layers:
            _check(layer, architecture, size)
        self._held = layers  # The structures hold the addresses of its tensors.
        groups = number_groups([group for layer in layers for group in layer.groups], narrow=True)
        self._layers = (_FusedLayer * len(layers))()
        for made, layer in zip(self._layers, layers, strict=True):
            for name, product, group in zip(_PARTS, layer.products, layer.groups, strict=True):
                setattr(made, name, _FusedPart(product.product, groups[group]))
            for name, weight in zip(_NORMS, layer.norms, strict=True):
                setattr(made, name, _address(weight))
            made.window = _ALL_KEYS if layer.window is None else layer.window
        self._model = _Model(
            layers=len(layers),
            hidden=layers[0].groups[0].inner,
            heads=architecture.heads,
            key_heads=architecture.key_heads,
            size=size,
            heads_together=architecture.row.head_norm == "row",
            gelu=architecture.activation != "silu",
            epsilon=epsilon,
            scaling=scoring.scaling,
            softcap=scoring.softcap or 0,
            multiplier=architecture.residual_multiplier,
        )
        self._key = torch.empty(1, architecture.key_heads, size)

    def read(
        self,
        x: torch.Tensor,
        rotations: Mapping[str | None, Rotation | None],
        drawing: DecodeAttention,
        pairs: AdapterPairs | None,
    ) -> None:
        """Run all layers on x, float32 [rows, hidden], in place; every row belongs to a request."""
        assert x.dtype == torch.float32 and x.is_contiguous()
        held = [row for row in drawing.rows if row is not None]
        turned = {
            rope: (None, None) if one is None else (one.cosine.float(), one.sine.float())
            for rope, one in rotations.items()
        }
        scales = [one.query_scale for one in rotations.values() if one is not None and one.query_scale is not None]
        scale = scales[0].float() if scales else None
        held_by = [drawing.cache.layer(number, self._key) for number in range(len(self._held))]
        for layer, about, (keys, values) in zip(self._layers, self._held, held_by, strict=True):
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
            cosine, sine = turned[about.rope]
            layer.cosine, layer.sine = _address(cosine), _address(sine)
            layer.turned = 0 if cosine is None else cosine.shape[1]
            if layer.turned % 2 or layer.turned > self._model.size:
                raise ValueError(f"rotation: expected an even number of at most {self._model.size}, got {layer.turned}")
        self._model.block = held_by[0][0].shape[2]
        most = max(len(row.blocks) for row in held)
        blocks = [block for row in held for block in (*row.blocks, *[0] * (most - len(row.blocks)))]
        rows = _StepRows(
            rows=len(held),
            x=x.data_ptr(),
            lengths=(ctypes.c_int64 * len(held))(*(row.length for row in held)),
            blocks=(ctypes.c_int64 * len(blocks))(*blocks),
            most=most,
            query_scale=_address(scale),
            pairs=None if pairs is None else pairs.pairs,
            count=0 if pairs is None else pairs.count,
        )
        if _find_kernel()(self._model, self._layers, rows, torch.get_num_threads()):
            raise MemoryError("a step: expected memory for the values between its layers, got none")


def _check(layer: FusedLayer, architecture: Architecture, size: int) -> None:
    """Check the sizes of the tensors whose addresses the kernel receives."""
    reading, writing, widening, narrowing = ((one.product.inner, one.product.outer) for one in layer.products)
    heads, key_heads, hidden, wide = architecture.heads, architecture.key_heads, reading[0], narrowing[0]
    expected = [(hidden, (heads + 2 * key_heads) * size), (heads * size, hidden), (hidden, 2 * wide), (wide, hidden)]
    together = architecture.row.head_norm == "row"
    sizes = [*[hidden] * 4, *(size * count if together else size for count in (heads, key_heads))]
    norms = [None if norm is None else norm.numel() for norm in layer.norms]
    got = [reading, writing, widening, narrowing]
    if got != expected or any(one not in (None, size) for one, size in zip(norms, sizes, strict=True)):
        raise ValueError(f"layer: expected products {expected} and norms {sizes}, got {got} and {norms}")


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def make_stepper(model: Any) -> Stepper | None:
    """Return the stepper of a base whose linear layers are not wrapped yet; None if the table does not cover it."""
    architecture = find_architecture(model)
    return None if architecture is None else Stepper(model, architecture)


class Stepper:
    """The decoding step of a base; created before its linear layers are wrapped."""

    def __init__(self, model: Any, architecture: Architecture) -> None:
        self._model, self._architecture = model.get_decoder(), architecture
        names = {module: name for name, module in model.named_modules()}
        # Norms, embeddings and head have the compute dtype of the linear layers.
        self._dtype = self._model.embed_tokens.weight.dtype
        self._layers = [
            _Layer(layer, names[layer], kind, architecture, self._dtype)
            for layer, kind in zip(self._model.layers, architecture.kinds, strict=True)
        ]
        self._positions = Positions(self._model, architecture)
        self._norm = _WideNorm(self._model.norm, architecture.row)
        self._output = make_head(model)
        self._head: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.groups = [group for layer in self._layers for group in layer.groups]

    def read(self, ids: Sequence[int], places: Sequence[int], rows: DecodeAttention, mix: Mix) -> torch.Tensor:
        """Return the last norm's output, [rows, hidden]; a row is a token at its position in its own request."""
        device = self._model.embed_tokens.weight.device
        hidden = embed(self._model, torch.tensor(ids, device=device), self._architecture).float()
        long = [held is not None and held.long for held in rows.rows]
        marks = torch.tensor(long, device=device) if any(long) else None
        rotations = self._positions.rotations(torch.tensor(list(places), device=device), self._dtype, marks)
        if not self._read_fused(hidden, rotations, rows, mix):
            turns = {rope: None if one is None else _StepRotation(one) for rope, one in rotations.items()}
            for number, layer in enumerate(self._layers):
                layer.read(number, hidden, turns[layer.rope], rows, mix)
        return self._norm(hidden).to(self._dtype)

    def _read_fused(
        self, hidden: torch.Tensor, rotations: Mapping[str | None, Rotation | None], rows: DecodeAttention, mix: Mix
    ) -> bool:
        """Run all layers in one call of the kernel and return True; return False if that is not possible."""
        pairs = [part for part in mix.parts if isinstance(part, AdapterPairs)]
        if self._fused is None or len(pairs) < len(mix.parts) or None in rows.rows:
            return False
        self._fused.read(hidden, rotations, rows, pairs[0] if pairs else None)
        return True

    @cached_property
    def _fused(self) -> FusedLayers | None:
        """Layers for the kernel, created at the first step; None if it does not cover the base or the processor."""
        layers = [layer.describe() for layer in self._layers]
        found = [layer for layer in layers if layer is not None]
        return FusedLayers(found, self._architecture, *self._layers[0].facts) if len(found) == len(layers) else None

    def find_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [rows, vocabulary], in the compute dtype."""
        head = self._head = self._head or _pack_head(self._output.weight.data)
        return self._output.finish(head(hidden))


class _StepRotation:
    """Rotary positions of a step's rows, float32."""

    def __init__(self, rotation: Rotation) -> None:
        self._cosine, self._sine = rotation.cosine[:, None].float(), rotation.sine[:, None].float()
        # The first half of the sine is negated, because the rotated half enters with a negative sign.
        self._sine[..., : self._sine.shape[-1] // 2].neg_()
        self._scale = rotation.query_scale

    def __call__(self, heads: torch.Tensor, queries: int) -> torch.Tensor:
        """Return heads [rows, heads, size] rotated to their positions; the first `queries` heads are also scaled."""
        size = self._cosine.shape[-1]
        part = heads[..., :size]
        turned = (part * self._cosine).addcmul_(part.roll(size // 2, -1), self._sine)
        if size < heads.shape[-1]:
            turned = torch.cat([turned, heads[..., size:]], dim=-1)
        if self._scale is not None:
            turned[:, :queries] *= self._scale
        return turned


class _Layer:
    """Attention and a gated feed-forward half, each added to its input; as `ml/layers/layer.py`, in float32."""

    def __init__(self, layer: Any, name: str, kind: LayerKind, architecture: Architecture, dtype: torch.dtype) -> None:
        attention, row = layer.self_attn, architecture.row
        self.rope, self._multiplier = kind.rope, architecture.residual_multiplier
        self._scoring = Scoring(float(attention.scaling), kind.window, architecture.softcap)
        places = (row.before_attention, row.after_attention, row.before_mlp, row.after_mlp)
        norms = [None if place is None else _WideNorm(layer.get_submodule(place), row) for place in places]
        self._before, self._behind, self._before_mlp, self._behind_mlp = norms
        self._head_norms = [
            _WideNorm(getattr(attention, part), row) for part in ("q_norm", "k_norm") if row.head_norm != "none"
        ]
        self._heads_together = row.head_norm == "row"
        self._size, self._heads, self._key_heads = attention.head_dim, architecture.heads, architecture.key_heads
        self._activation = ACTIVATIONS[architecture.activation].forward
        groups = (row.reading, (row.writing,), row.widening, (row.narrowing,))
        parts = [_Projections(layer, name, group, dtype) for group in groups]
        self._reading, self._writing, self._widening, self._narrowing = parts
        self.groups = [part.group for part in parts]

    @property
    def facts(self) -> tuple[Scoring, int, float]:
        """Values common to all layers of a base: the scoring, the size of a head, and the norms' epsilon."""
        norms = [norm for norm in (self._before, self._behind) if norm is not None]
        return self._scoring, self._size, norms[0].epsilon

    def describe(self) -> FusedLayer | None:
        """Return the layer's description for the kernel; None if the kernel does not support one of its products."""
        parts = (self._reading, self._writing, self._widening, self._narrowing)
        products = [part.product for part in parts if part.fits_kernel]
        if len(products) < len(parts):
            return None
        norms: list[_WideNorm | None] = [self._before, self._behind, self._before_mlp, self._behind_mlp]
        norms += self._head_norms or [None, None]
        weights = [None if norm is None else norm.weight for norm in norms]
        return FusedLayer(products, self.groups, weights, self.rope, self._scoring.window)

    def read(self, number: int, x: torch.Tensor, turn: _StepRotation | None, rows: DecodeAttention, mix: Mix) -> None:
        """Run the layer on x, float32 [rows, hidden], in place."""
        normal, count = _norm(self._before, x), len(x)
        made = self._reading.multiply(normal)
        self._reading.add(normal, made, mix)
        heads = made.view(count, -1, self._size)
        both, value = torch.split(heads, [self._heads + self._key_heads, self._key_heads], dim=1)
        turned = self._norm_heads(both)
        turned = turned if turn is None else turn(turned, self._heads)
        seen = rows.read(number, turned[:, : self._heads], turned[:, self._heads :], value, self._scoring)
        self._add(self._writing, self._behind, seen.reshape(count, -1), x, mix)
        normal = _norm(self._before_mlp, x)
        wide = self._widening.multiply(normal)
        self._widening.add(normal, wide, mix)
        gate, up = wide.chunk(2, dim=1)
        self._add(self._narrowing, self._behind_mlp, self._activation(gate).mul_(up), x, mix)

    def _norm_heads(self, both: torch.Tensor) -> torch.Tensor:
        if not self._head_norms:
            return both
        sides = zip(torch.split(both, [self._heads, self._key_heads], dim=1), self._head_norms, strict=True)
        return torch.cat(
            [norm(side.flatten(1) if self._heads_together else side).view(side.shape) for side, norm in sides], dim=1
        )

    def _add(self, part: _Projections, norm: _WideNorm | None, inner: torch.Tensor, x: torch.Tensor, mix: Mix) -> None:
        """Add the result of a half's last product to x, in place."""
        made = part.multiply(inner)
        if norm is None and self._multiplier == 1:
            part.add(inner, x.add_(made), mix)
            return
        part.add(inner, made, mix)
        made = _norm(norm, made)
        x.add_(made, alpha=self._multiplier)


def _norm(norm: _WideNorm | None, x: torch.Tensor) -> torch.Tensor:
    return x if norm is None else norm(x)


class _WideNorm:
    """RMSNorm (https://arxiv.org/abs/1910.07467) in float32."""

    def __init__(self, norm: Any, row: ArchitectureRow) -> None:
        self.weight = norm.weight.float() + (1.0 if row.norm_offset else 0.0)
        epsilon = getattr(norm, "variance_epsilon", None)
        self.epsilon = float(norm.eps if epsilon is None else epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(self.epsilon).rsqrt_()
        return (x * scale).mul_(self.weight)


class _Projections:
    """Linear layers of a layer that share an input: [rows, in] to [rows, all outputs]."""

    def __init__(self, layer: Any, name: str, parts: Sequence[str], dtype: torch.dtype) -> None:
        self._modules = [layer.get_submodule(part) for part in parts]
        sizes = tuple(module.out_features for module in self._modules)
        self.group = RowGroup(tuple(f"{name}.{part}" for part in parts), self._modules[0].in_features, sizes)
        self._dtype = dtype
        self.fits_kernel = fits_nf4_rows(self._modules, dtype)

    @cached_property
    def product(self) -> Any:
        """The joined product, created at its first use; GPTQ layers are repacked for their kernel."""
        return _join(self._modules, self._dtype)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base's output for x, float32; the product has the base's own dtype."""
        made: torch.Tensor = self.product(x)
        return made

    def add(self, x: torch.Tensor, made: torch.Tensor, mix: Mix) -> None:
        """Add the rows' adapter outputs for x to `made`, in place."""
        mix.add(self.group, x, made)


def _pack_head(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the product with the head.

    If this project's kernel does not fit, bf16 weights on a CPU are copied once into the library's layout. Otherwise
    the library would convert them in every product, which takes as long as the product.
    """
    if (few := make_bf16_rows(weight)) is not None:
        return lambda x: few(x.float()).to(x.dtype)
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return lambda x: multiply_rows(lambda block: linear(block, weight), x)
    packed, multiply = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply_rows(lambda block: multiply(block, packed, None, "none", [], ""), x)


def _join(modules: Sequence[Any], dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the modules as one product with float32 input and output; it multiplies in `dtype`."""
    if fits_nf4_rows(modules, dtype):
        return make_nf4_rows(modules)
    product = _join_others(modules, dtype)
    return lambda x: product(x.to(dtype)).float()


def _join_others(modules: Sequence[Any], dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    if all(type(module) is torch.nn.Linear for module in modules):
        return _Plain(modules)
    if fits_few_rows(modules, dtype):
        return join_few_rows(modules)
    if all(isinstance(module, bitsandbytes.nn.Linear4bit | GptqLinear) for module in modules) and _on_gpu(modules[0]):
        return _dequantise(modules)
    return lambda x: torch.cat([multiply_rows(module, x) for module in modules], dim=1)


def _on_gpu(module: Any) -> bool:
    return any(tensor.device.type != "cpu" for tensor in (*module.parameters(), *module.buffers()))


def _dequantise(modules: Sequence[Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the product with 4-bit weights that are dequantised each time; on a GPU that is fast."""
    made = Projections(modules, keeps=False)
    return lambda x: multiply_rows(lambda block: made.multiply_each([block], None, "many")[0], x)


def _join_rows(modules: Sequence[Any]) -> torch.Tensor:
    """Return the modules' weights joined in one tensor, and make the modules' weights views of it."""
    weight = torch.cat([module.weight.data for module in modules])
    parts = torch.split(weight, [len(module.weight.data) for module in modules])
    for module, part in zip(modules, parts, strict=True):
        module.weight.data = part
    return weight


def _join_bias(modules: Sequence[Any], dtype: torch.dtype) -> torch.Tensor | None:
    if modules[0].bias is None:
        return None
    return torch.cat([module.bias.data.to(dtype) for module in modules])


class _Plain:
    """The product with unquantised weights."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._weight, self._bias = _join_rows(modules), _join_bias(modules, modules[0].weight.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return multiply_rows(lambda block: linear(block, self._weight, self._bias), x)
