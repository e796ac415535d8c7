"""A decoder's layers, forward and backward by hand: what makes training quick, and lets it choose what it keeps.

One autograd function a layer. Forward builds no graph and keeps only what `again` says; backward is the chain rule
written out (`layer.py`), with the rest computed again. The residual stream is in the base's compute dtype, as in
evaluation and serving. It covers the table of architectures (`architecture.py`) with plain LoRA on the linear layers;
for everything else training goes through the library's own modules, and a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from appliance.domain.recipe.recipe import Again
from appliance.ml.layers.architecture import Architecture, find_architecture
from appliance.ml.layers.attention import Attention, Layout, lay_out
from appliance.ml.layers.layer import Layer, ReadPiece
from appliance.ml.layers.packing import Pack
from appliance.ml.layers.positions import Positions, Rotation
from appliance.ml.layers.projections import is_adapted
from appliance.ml.layers.scores import Scoring
from appliance.ml.quantised.linear import GptqLinear

# Dequantised weights are kept between their uses where they have no more than so many bytes altogether, and nothing is
# to be computed again to save memory.
KEPT_BYTES = 1_000_000_000


class Decoder:
    """The layers of a model with an adapter; which it trains."""

    def __init__(self, base_model: Any, again: Again) -> None:
        architecture = find_architecture(base_model)
        if architecture is None:
            raise ValueError("a model of the table of architectures is what this decoder is for")
        self._model = base_model.get_decoder()
        self._again, self._architecture = again, architecture
        keeps = again == "none" and count_bytes(self._model) <= KEPT_BYTES
        self._layers = [
            Layer(module, kind, architecture, keeps=keeps)
            for module, kind in zip(self._model.layers, architecture.kinds, strict=True)
        ]
        self._positions = Positions(self._model, architecture)

    def hidden(self, pack: Pack, device: str) -> torch.Tensor:
        """[tokens, hidden] behind the last norm, of a pack of one level."""
        layout = lay_out(pack.segments, device)
        hidden = embed(self._model, torch.tensor(pack.ids, device=device), self._architecture)
        rotations = self._positions.rotations_of(pack, hidden)
        for layer in self._layers:
            seed = int(torch.randint(1 << 62, (1,))) if layer.drops else 0
            hidden = _Pass.apply(  # type: ignore[no-untyped-call]
                hidden, layer, rotations[layer.rope], layout, self._again, seed, *layer.parameters
            )
        result: torch.Tensor = self._model.norm(hidden)
        return result

    @torch.no_grad()
    def bare(self, pack: Pack, device: str) -> torch.Tensor:
        """The same with the adapter switched off, and without gradients: nothing of it is kept."""
        seen = _Grouped(lay_out(pack.segments, device), [layer.attention for layer in self._layers])
        hidden = embed(self._model, torch.tensor(pack.ids, device=device), self._architecture)
        rotations = self._positions.rotations_of(pack, hidden)
        for number, layer in enumerate(self._layers):
            piece = ReadPiece(hidden, rotations[layer.rope], seen)
            (hidden,) = layer.read(number, [piece], (None,) * 4, "trained")
        result: torch.Tensor = self._model.norm(hidden)
        return result


@dataclass(frozen=True)
class _Grouped:
    """What the tokens of a pack see in a layer, as `Layer.read` asks for it."""

    layout: Layout
    attentions: list[Attention]

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        return self.attentions[number].attend(query, key, value, self.layout)


def embed(decoder: Any, ids: torch.Tensor, architecture: Architecture) -> torch.Tensor:
    """[tokens, hidden], as the first layer takes them."""
    hidden: torch.Tensor = decoder.embed_tokens(ids)
    factor = architecture.embedding_multiplier
    return hidden if factor == 1 else hidden * factor


def count_bytes(model: Any) -> int:
    """Of the layers' frozen weights in the compute dtype."""
    sizes = [
        linear.in_features * linear.out_features
        for layer in model.layers
        for linear in layer.modules()
        if isinstance(linear, GptqLinear) or (isinstance(linear, torch.nn.Linear) and not linear.weight.requires_grad)
    ]
    return sum(sizes) * int(model.embed_tokens.weight.element_size())


def fits_decoder(base_model: Any) -> bool:
    """Whether the model is in the table, and every layer has adapters that this module knows."""
    if find_architecture(base_model) is None:
        return False
    return all(_fits(module) for module in base_model.get_decoder().layers)


def _fits(module: Any) -> bool:
    linears = [child for child in module.modules() if is_adapted(child)]
    return bool(linears) and all(_is_plain(linear) for linear in linears)


def _is_plain(linear: Any) -> bool:
    """Plain LoRA or rsLoRA on a 4-bit or an unquantised layer, alone and not merged."""
    base, variants = linear.get_base_layer(), getattr(linear, "lora_variant", {})
    plain = type(base).__name__ in ("Linear", "Linear4bit", "GptqLinear") and not linear.merged
    return plain and list(linear.lora_A) == ["default"] and not variants and not linear.lora_bias["default"]


class _Pass(torch.autograd.Function):
    """One layer, once through."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layer: Layer,
        rotation: Rotation | None,
        layout: Layout,
        again: Again,
        seed: int,
        *_: Any,
    ) -> Any:
        added, attention = layer.attend(x, rotation, layout, seed)
        middle = added.add_(x)
        out, mlp = layer.feed(middle, seed)
        ctx.layer, ctx.rotation, ctx.layout, ctx.again, ctx.seed = layer, rotation, layout, again, seed
        ctx.kept = {
            "none": (x, middle, attention, mlp),
            "mlp": (x, middle, attention, None),
            "layer": (x, None, None, None),
        }[again]
        return out.add_(middle)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        layer, rotation, layout, seed = ctx.layer, ctx.rotation, ctx.layout, ctx.seed
        x, middle, attention, mlp = ctx.kept
        ctx.kept = None
        if attention is None:
            added, attention = layer.attend(x, rotation, layout, seed)
            middle = added.add_(x)
        if mlp is None:
            mlp = layer.feed(middle, seed)[1]
        grad_middle, grads_mlp = layer.feed_backward(grad, middle, mlp, seed)
        grad_middle += grad
        deep = ctx.needs_input_grad[0]
        grad_x, grads = layer.attend_backward(grad_middle, x, attention, rotation, layout, seed, deep)
        if grad_x is not None:
            grad_x += grad_middle
        return (grad_x, None, None, None, None, None, *grads, *grads_mlp)
