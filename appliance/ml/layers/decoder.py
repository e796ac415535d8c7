"""A decoder's layers, forward and backward by hand: what makes training quick, and lets it choose what it keeps.

One autograd function a layer. Forward builds no graph and keeps only what `Keep` says; backward is the chain rule
written out, with the rest computed again. The residual stream is in the base's compute dtype, as in evaluation and
serving. It covers what Llama, Qwen2 and Qwen3 have in common, with plain LoRA on their linear layers; for everything
else training goes through the library's own modules, and a test holds the two together.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch.nn.functional import silu

from appliance.domain.recipe.recipe import Again
from appliance.ml.layers.architecture import is_known_layer
from appliance.ml.layers.attention import Attention, Layout
from appliance.ml.layers.norms import apply_weight, divide_by_rms, normalise, normalise_backward
from appliance.ml.layers.projections import Projections

# Dequantised weights are kept between their uses where they have no more than so many bytes altogether, and nothing is
# to be computed again to save memory.
KEPT_BYTES = 1_000_000_000


class Decoder:
    """The layers of a model with an adapter; `hidden` is what `Base.hidden` is for packs of one level."""

    def __init__(self, base_model: Any, again: Again) -> None:
        self._model = base_model.get_decoder()
        self._again = again
        keeps = again == "none" and _count_bytes(self._model) <= KEPT_BYTES
        self._layers = [Layer(module, keeps=keeps) for module in self._model.layers]

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor, layout: Layout) -> torch.Tensor:
        """[tokens, hidden] behind the last norm; ids and positions are [tokens]."""
        hidden = self._model.embed_tokens(ids)
        turns = tuple(part[0] for part in self._model.rotary_emb(hidden[None], positions[None]))
        for layer in self._layers:
            seed = int(torch.randint(1 << 62, (1,))) if layer.drops else 0
            hidden = _Pass.apply(  # type: ignore[no-untyped-call]
                hidden, layer, turns, layout, self._again, seed, *layer.parameters
            )
        result: torch.Tensor = self._model.norm(hidden)
        return result


def _count_bytes(model: Any) -> int:
    """Of the layers' frozen weights in the compute dtype."""
    sizes = [
        linear.in_features * linear.out_features
        for layer in model.layers
        for linear in layer.modules()
        if isinstance(linear, torch.nn.Linear) and not linear.weight.requires_grad
    ]
    return sum(sizes) * int(model.embed_tokens.weight.element_size())


def fits_decoder(base_model: Any) -> bool:
    """Whether every layer is one that this module knows."""
    return all(_fits(module) for module in base_model.get_decoder().layers)


def _fits(module: Any) -> bool:
    if not is_known_layer(module):
        return False
    linears = [child for child in module.modules() if isinstance(child, LoraLayer)]
    return bool(linears) and all(_is_plain(linear) for linear in linears)


def _is_plain(linear: LoraLayer) -> bool:
    """Plain LoRA or rsLoRA on a 4-bit or an unquantised layer, alone and not merged."""
    base, variants = linear.get_base_layer(), getattr(linear, "lora_variant", {})
    plain = type(base).__name__ in ("Linear", "Linear4bit") and not linear.merged
    return plain and list(linear.lora_A) == ["default"] and not variants and not linear.lora_bias["default"]


class Layer:
    """One decoder layer: norm, attention, norm, gated MLP, each half added to what came in."""

    def __init__(self, module: Any, *, keeps: bool) -> None:
        attention, mlp = module.self_attn, module.mlp
        self._attention = Attention(attention)
        self._norms = (module.input_layernorm, module.post_attention_layernorm)
        self._reading = Projections([attention.q_proj, attention.k_proj, attention.v_proj], keeps=keeps)
        self._writing = Projections([attention.o_proj], keeps=keeps)
        self._widening = Projections([mlp.gate_proj, mlp.up_proj], keeps=keeps)
        self._narrowing = Projections([mlp.down_proj], keeps=keeps)
        self.parts = (self._reading, self._writing, self._widening, self._narrowing)
        self.parameters = [parameter for part in self.parts for parameter in part.parameters]
        self.drops = any(part.drops for part in self.parts)

    # Each half of the layer: forward gives what is added to the stream and what its backward pass needs.

    def attend(self, x: torch.Tensor, turns: Any, layout: Layout, seed: int) -> tuple[torch.Tensor, tuple[Any, ...]]:
        flat, low_read = self._reading.forward(normalise(x, self._norms[0]), seed)
        seen, sums = self._attention.forward(flat, turns, layout)
        out, low_write = self._writing.forward(seen, seed + 1)
        return out, (flat, seen, sums, low_read, low_write)

    def attend_backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        kept: tuple[Any, ...],
        turns: Any,
        layout: Layout,
        seed: int,
        deep: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        flat, seen, sums, low_read, low_write = kept
        grad_seen, grads_write = self._writing.backward(grad, seen, low_write, seed + 1, needs_x=True)
        assert grad_seen is not None
        grad_flat = self._attention.backward(grad_seen, flat, seen, sums, turns, layout)
        unit, scale = divide_by_rms(x, self._norms[0])
        normal = apply_weight(unit, self._norms[0])
        grad_normal, grads_read = self._reading.backward(grad_flat, normal, low_read, seed, needs_x=deep)
        grad_x = normalise_backward(grad_normal, unit, scale, self._norms[0]) if grad_normal is not None else None
        return grad_x, grads_read + grads_write

    def widen(self, x: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gate and up, side by side."""
        return self._widening.forward(normalise(x, self._norms[1]), seed + 2)

    def narrow(self, wide: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        gate, up = wide.chunk(2, dim=1)
        return self._narrowing.forward(silu(gate).mul_(up), seed + 3)

    def mlp_backward(
        self, grad: torch.Tensor, x: torch.Tensor, kept: tuple[Any, ...], seed: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        wide, low_wide, low_narrow = kept
        gate, up = wide.chunk(2, dim=1)
        passed = silu(gate)
        inner, grads_narrow = self._narrowing.backward(grad, passed * up, low_narrow, seed + 3, needs_x=True)
        assert inner is not None
        grad_wide = torch.empty_like(wide)
        grad_gate, grad_up = grad_wide.chunk(2, dim=1)
        torch.mul(passed, inner, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(inner.mul_(up), gate, grad_input=grad_gate)
        unit, scale = divide_by_rms(x, self._norms[1])
        normal = apply_weight(unit, self._norms[1])
        grad_normal, grads_wide = self._widening.backward(grad_wide, normal, low_wide, seed + 2, needs_x=True)
        assert grad_normal is not None
        return normalise_backward(grad_normal, unit, scale, self._norms[1]), grads_wide + grads_narrow


class _Pass(torch.autograd.Function):
    """One layer, once through."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Layer, turns: Any, layout: Layout, again: Again, seed: int, *_: Any
    ) -> Any:
        added, attention = layer.attend(x, turns, layout, seed)
        middle = added.add_(x)
        wide, low_wide = layer.widen(middle, seed)
        out, low_narrow = layer.narrow(wide, seed)
        ctx.layer, ctx.turns, ctx.layout, ctx.again, ctx.seed = layer, turns, layout, again, seed
        ctx.kept = {
            "none": (x, middle, attention, (wide, low_wide, low_narrow)),
            "mlp": (x, middle, attention, None),
            "layer": (x, None, None, None),
        }[again]
        return out.add_(middle)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        layer, turns, layout, seed = ctx.layer, ctx.turns, ctx.layout, ctx.seed
        x, middle, attention, mlp = ctx.kept
        ctx.kept = None
        if attention is None:
            added, attention = layer.attend(x, turns, layout, seed)
            middle = added.add_(x)
        if mlp is None:
            wide, low_wide = layer.widen(middle, seed)
            mlp = (wide, low_wide, layer.narrow(wide, seed)[1])
        grad_middle, grads_mlp = layer.mlp_backward(grad, middle, mlp, seed)
        grad_middle += grad
        deep = ctx.needs_input_grad[0]
        grad_x, grads = layer.attend_backward(grad_middle, x, attention, turns, layout, seed, deep)
        if grad_x is not None:
            grad_x += grad_middle
        return (grad_x, None, None, None, None, None, *grads, *grads_mlp)
