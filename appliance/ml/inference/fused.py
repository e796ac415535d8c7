"""All layers of a step in one call of a kernel (`_step.c`), where the base is NF4 in bf16 and the processor has AVX-512
with bf16. `stepping.py` has the same arithmetic in torch, for every other base and processor."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from appliance.ml.inference.cache import Drawing
from appliance.ml.layers.architecture import Architecture
from appliance.ml.layers.positions import Rotation
from appliance.ml.layers.scores import Scoring
from appliance.ml.lora.kernel import Pair, Pairs, number_groups
from appliance.ml.lora.mixing import RowGroup
from appliance.ml.quantised.kernels import Group, Product, load_kernels
from appliance.ml.quantised.product import FewRows

_NORMS = ("before", "behind", "before_mlp", "behind_mlp", "query_norm", "key_norm")
_PARTS = ("reading", "writing", "widening", "narrowing")
_ALL_KEYS = (1 << 63) - 1


@dataclass(frozen=True)
class FusedLayer:
    """A decoder layer: its four products and their groups, the weights of its norms by `_NORMS`, and of its attention
    what may differ from layer to layer."""

    products: Sequence[FewRows]
    groups: Sequence[RowGroup]
    norms: Sequence[torch.Tensor | None]
    rope: str | None
    window: int | None


class _Part(ctypes.Structure):
    _fields_ = (("product", Product), ("group", Group))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Part) for name in _PARTS),
        *((name, ctypes.c_void_p) for name in (*_NORMS, "cosine", "sine", "keys", "values")),
        *((name, ctypes.c_int64) for name in ("turned", "window")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "heads", "key_heads", "size", "block")),
        *((name, ctypes.c_int64) for name in ("heads_together", "gelu")),
        *((name, ctypes.c_double) for name in ("epsilon", "scaling", "softcap", "multiplier")),
    )


class _Rows(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("lengths", ctypes.POINTER(ctypes.c_int64)),
        ("blocks", ctypes.POINTER(ctypes.c_int64)),
        ("most", ctypes.c_int64),
        ("query_scale", ctypes.c_void_p),
        ("pairs", ctypes.POINTER(Pair)),
        ("count", ctypes.c_int64),
    )


@cache
def _find_kernel() -> ctypes._NamedFuncPointer:
    function = load_kernels().read_layers
    structures = (ctypes.POINTER(one) for one in (_Model, _Layer, _Rows))
    function.argtypes = (*structures, ctypes.c_int64)
    return function


class FusedLayers:
    """The layers of one base."""

    def __init__(
        self, layers: Sequence[FusedLayer], architecture: Architecture, scoring: Scoring, size: int, epsilon: float
    ) -> None:
        for layer in layers:
            _check(layer, architecture, size)
        self._held = layers  # The structures hold the addresses of its tensors.
        groups = number_groups([group for layer in layers for group in layer.groups], narrow=True)
        self._layers = (_Layer * len(layers))()
        for made, layer in zip(self._layers, layers, strict=True):
            for name, product, group in zip(_PARTS, layer.products, layer.groups, strict=True):
                setattr(made, name, _Part(product.product, groups[group]))
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
        self, x: torch.Tensor, rotations: Mapping[str | None, Rotation | None], drawing: Drawing, pairs: Pairs | None
    ) -> None:
        """x is [rows, hidden], float32, and changed in place; every row belongs to a request."""
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
        rows = _Rows(
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
            raise MemoryError("a step: expected memory for what stands between its layers, got none")


def _check(layer: FusedLayer, architecture: Architecture, size: int) -> None:
    """ValueError where what the kernel is given the addresses of is not as large as it takes it to be."""
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
