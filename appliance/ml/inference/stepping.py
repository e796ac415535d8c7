"""One token more for each row of a batch: a decoder's layers by hand.

It covers the table of architectures (`ml/layers/architecture.py`), with the base's own weights; every other base goes
through the library's modules, layer by layer. Layers that read one input are one product: their weights are laid one
behind the other, and the modules look at their parts of it. Between two products everything is float32.
No row's bits depend on another's: every operation is by row, by `multiply_rows`, or by a kernel of which tests hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import bitsandbytes
import torch
from torch.nn.functional import linear

from appliance.ml.inference.cache import Drawing
from appliance.ml.inference.fused import FusedLayer, FusedLayers
from appliance.ml.layers.activations import ACTIVATIONS
from appliance.ml.layers.architecture import Architecture, LayerKind, Row, find_architecture
from appliance.ml.layers.decoder import embed
from appliance.ml.layers.head import make_head
from appliance.ml.layers.positions import Positions, Rotation
from appliance.ml.layers.projections import Projections
from appliance.ml.layers.scores import Scoring
from appliance.ml.lora.kernel import Pairs
from appliance.ml.lora.mixing import ROWS, Mix, RowGroup, multiply_rows
from appliance.ml.quantised.few_rows import fits_few_rows, join_few_rows
from appliance.ml.quantised.linear import GptqLinear
from appliance.ml.quantised.product import fits_nf4_rows, make_bf16_rows, make_nf4_rows


def make_stepper(model: Any) -> Stepper | None:
    """Of a base whose linear layers are not wrapped yet; None where the table does not cover it."""
    architecture = find_architecture(model)
    return None if architecture is None else Stepper(model, architecture)


class Stepper:
    """The layers of a base whose linear layers are not wrapped yet."""

    def __init__(self, model: Any, architecture: Architecture) -> None:
        self._model, self._architecture = model.get_decoder(), architecture
        names = {module: name for name, module in model.named_modules()}
        # The dtype of norms, embeddings and head is the one that the linear layers multiply in.
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

    def read(self, ids: Sequence[int], places: Sequence[int], rows: Drawing, mix: Mix) -> torch.Tensor:
        """[rows, hidden] behind the last norm; a row is a token at its place in its own request."""
        device = self._model.embed_tokens.weight.device
        hidden = embed(self._model, torch.tensor(ids, device=device), self._architecture).float()
        long = [held is not None and held.long for held in rows.rows]
        marks = torch.tensor(long, device=device) if any(long) else None
        rotations = self._positions.rotations(torch.tensor(list(places), device=device), self._dtype, marks)
        if not self._read_fused(hidden, rotations, rows, mix):
            turns = {rope: None if one is None else _Turn(one) for rope, one in rotations.items()}
            for number, layer in enumerate(self._layers):
                layer.read(number, hidden, turns[layer.rope], rows, mix)
        return self._norm(hidden).to(self._dtype)

    def _read_fused(
        self, hidden: torch.Tensor, rotations: Mapping[str | None, Rotation | None], rows: Drawing, mix: Mix
    ) -> bool:
        """Whether one call of the kernel took the step through all layers."""
        pairs = [part for part in mix.parts if isinstance(part, Pairs)]
        if self._fused is None or len(pairs) < len(mix.parts) or None in rows.rows:
            return False
        self._fused.read(hidden, rotations, rows, pairs[0] if pairs else None)
        return True

    @cached_property
    def _fused(self) -> FusedLayers | None:
        """Made at the first step; None where the kernel does not cover the base or the processor."""
        layers = [layer.describe() for layer in self._layers]
        found = [layer for layer in layers if layer is not None]
        return FusedLayers(found, self._architecture, *self._layers[0].facts) if len(found) == len(layers) else None

    def find_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary], in the compute dtype."""
        head = self._head = self._head or _pack_head(self._output.weight.data)
        return self._output.finish(head(hidden))


class _Turn:
    """Rotary positions of a step's rows, float32."""

    def __init__(self, rotation: Rotation) -> None:
        self._cosine, self._sine = rotation.cosine[:, None].float(), rotation.sine[:, None].float()
        # The half that is turned away has the sign of the sine's other half.
        self._sine[..., : self._sine.shape[-1] // 2].neg_()
        self._scale = rotation.query_scale

    def __call__(self, heads: torch.Tensor, queries: int) -> torch.Tensor:
        """[rows, heads, size], the first `queries` of which are queries."""
        size = self._cosine.shape[-1]
        part = heads[..., :size]
        turned = (part * self._cosine).addcmul_(part.roll(size // 2, -1), self._sine)
        if size < heads.shape[-1]:
            turned = torch.cat([turned, heads[..., size:]], dim=-1)
        if self._scale is not None:
            turned[:, :queries] *= self._scale
        return turned


class _Layer:
    """Attention and a gated feed-forward part, each added to what came in; as `ml/layers/layer.py`, in float32."""

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
        """What all layers of a base share: how they score, a head's size, and the norms' epsilon."""
        norms = [norm for norm in (self._before, self._behind) if norm is not None]
        return self._scoring, self._size, norms[0].epsilon

    def describe(self) -> FusedLayer | None:
        """For the kernel of a whole step; None where one of the products is not its own."""
        parts = (self._reading, self._writing, self._widening, self._narrowing)
        products = [part.product for part in parts if part.fits_kernel]
        if len(products) < len(parts):
            return None
        norms: list[_WideNorm | None] = [self._before, self._behind, self._before_mlp, self._behind_mlp]
        norms += self._head_norms or [None, None]
        weights = [None if norm is None else norm.weight for norm in norms]
        return FusedLayer(products, self.groups, weights, self.rope, self._scoring.window)

    def read(self, number: int, x: torch.Tensor, turn: _Turn | None, rows: Drawing, mix: Mix) -> None:
        """x is [rows, hidden], float32, and changed in place."""
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
        """Adds to x, in place, what a half makes of its last product's input."""
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

    def __init__(self, norm: Any, row: Row) -> None:
        self.weight = norm.weight.float() + (1.0 if row.norm_offset else 0.0)
        epsilon = getattr(norm, "variance_epsilon", None)
        self.epsilon = float(norm.eps if epsilon is None else epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(self.epsilon).rsqrt_()
        return (x * scale).mul_(self.weight)


class _Projections:
    """Some of a layer's linear layers, which read one input: [rows, in] to [rows, all of their outputs]."""

    def __init__(self, layer: Any, name: str, parts: Sequence[str], dtype: torch.dtype) -> None:
        self._modules = [layer.get_submodule(part) for part in parts]
        sizes = tuple(module.out_features for module in self._modules)
        self.group = RowGroup(tuple(f"{name}.{part}" for part in parts), self._modules[0].in_features, sizes)
        self._dtype = dtype
        self.fits_kernel = fits_nf4_rows(self._modules, dtype)

    @cached_property
    def product(self) -> Any:
        """Made at the first use: layers packed by GPTQ are packed anew for their kernel."""
        return _join(self._modules, self._dtype)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """What the base makes of x, float32; it multiplies in its own dtype."""
        made: torch.Tensor = self.product(x)
        return made

    def add(self, x: torch.Tensor, made: torch.Tensor, mix: Mix) -> None:
        """Adds what the rows' adapters make of x, in place."""
        mix.add(self.group, x, made)


def _pack_head(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product with the head. Where our kernel does not fit, bf16 weights on the CPU are laid out once as the
    library reads them, in a copy: it would do so again in every product, which takes as long as the product."""
    if (few := make_bf16_rows(weight)) is not None:
        return lambda x: few(x.float()).to(x.dtype)
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return lambda x: multiply_rows(lambda block: linear(block, weight), x)
    packed, multiply = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply_rows(lambda block: multiply(block, packed, None, "none", [], ""), x)


def _join(modules: Sequence[Any], dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """The modules as one product, from float32 to float32; it multiplies in `dtype`."""
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
    """4-bit weights, made for each product, as the layers by hand make them; on a GPU that is quick."""
    made = Projections(modules, keeps=False)
    return lambda x: multiply_rows(lambda block: made.multiply_each([block], None, "many")[0], x)


def _join_rows(modules: Sequence[Any]) -> torch.Tensor:
    """The modules' weights one behind the other, in one tensor that they look at from now on."""
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
    """Unquantised weights."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._weight, self._bias = _join_rows(modules), _join_bias(modules, modules[0].weight.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return multiply_rows(lambda block: linear(block, self._weight, self._bias), x)
