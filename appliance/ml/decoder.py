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

from appliance.domain.recipe import Again
from appliance.ml.packing import Layout, attend_flat
from appliance.ml.projections import Projections


class Decoder:
    """The layers of a model with an adapter; `hidden` is what `Base.hidden` is for packs of one level."""

    def __init__(self, base_model: Any, again: Again) -> None:
        self._model = base_model.get_decoder()
        self._layers = [Layer(module) for module in self._model.layers]
        self._again = again

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


def fits_decoder(base_model: Any) -> bool:
    """Whether every layer is one that this module knows."""
    return all(_fits(module) for module in base_model.get_decoder().layers)


def _fits(module: Any) -> bool:
    known = type(module).__name__ in ("LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
    if not known or getattr(module.self_attn, "sliding_window", None):
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

    def __init__(self, module: Any) -> None:
        attention, mlp = module.self_attn, module.mlp
        self._attention = attention
        self._norms = (module.input_layernorm, module.post_attention_layernorm)
        self._reading = Projections([attention.q_proj, attention.k_proj, attention.v_proj])
        self._writing = Projections([attention.o_proj])
        self._widening = Projections([mlp.gate_proj, mlp.up_proj])
        self._narrowing = Projections([mlp.down_proj])
        self.parts = (self._reading, self._writing, self._widening, self._narrowing)
        self.parameters = [parameter for part in self.parts for parameter in part.parameters]
        self.drops = any(part.drops for part in self.parts)

    # Each half of the layer: forward gives what is added to the stream and what its backward pass needs.

    def attend(self, x: torch.Tensor, turns: Any, layout: Layout, seed: int) -> tuple[torch.Tensor, tuple[Any, ...]]:
        (query, key, value), low_read = self._reading.forward(normalise(x, self._norms[0]), seed)
        seen = attend_flat(self._attention, query, key, value, turns, layout)
        (out,), low_write = self._writing.forward(seen, seed + 1)
        return out, (query, key, value, seen, low_read, low_write)

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
        query, key, value, seen, low_read, low_write = kept
        grad_seen, grads_write = self._writing.backward([grad], seen, low_write, seed + 1, needs_x=True)
        leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        with torch.enable_grad():
            again = attend_flat(self._attention, leaves[0], leaves[1], leaves[2], turns, layout)
        grads = torch.autograd.grad(again, leaves, grad_seen)
        normal = normalise(x, self._norms[0])
        grad_normal, grads_read = self._reading.backward(grads, normal, low_read, seed, needs_x=deep)
        grad_x = normalise_backward(grad_normal, x, self._norms[0]) if grad_normal is not None else None
        return grad_x, grads_read + grads_write

    def widen(self, x: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        (gate, up), low = self._widening.forward(normalise(x, self._norms[1]), seed + 2)
        return gate, up, low

    def narrow(self, gate: torch.Tensor, up: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        (out,), low = self._narrowing.forward(silu(gate).mul_(up), seed + 3)
        return out, low

    def mlp_backward(
        self, grad: torch.Tensor, x: torch.Tensor, kept: tuple[Any, ...], seed: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        gate, up, low_wide, low_narrow = kept
        passed = silu(gate)
        wide, grads_narrow = self._narrowing.backward([grad], passed * up, low_narrow, seed + 3, needs_x=True)
        assert wide is not None
        grad_gate = torch.ops.aten.silu_backward(wide * up, gate)
        grads = [grad_gate, passed.mul_(wide)]
        normal = normalise(x, self._norms[1])
        grad_normal, grads_wide = self._widening.backward(grads, normal, low_wide, seed + 2, needs_x=True)
        assert grad_normal is not None
        return normalise_backward(grad_normal, x, self._norms[1]), grads_wide + grads_narrow


class _Pass(torch.autograd.Function):
    """One layer, once through."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Layer, turns: Any, layout: Layout, again: Again, seed: int, *_: Any
    ) -> Any:
        added, attention = layer.attend(x, turns, layout, seed)
        middle = added.add_(x)
        gate, up, low_wide = layer.widen(middle, seed)
        out, low_narrow = layer.narrow(gate, up, seed)
        ctx.layer, ctx.turns, ctx.layout, ctx.again, ctx.seed = layer, turns, layout, again, seed
        ctx.kept = {
            "none": (x, middle, attention, (gate, up, low_wide, low_narrow)),
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
            gate, up, low_wide = layer.widen(middle, seed)
            mlp = (gate, up, low_wide, layer.narrow(gate, up, seed)[1])
        grad_middle, grads_mlp = layer.mlp_backward(grad, middle, mlp, seed)
        grad_middle += grad
        deep = ctx.needs_input_grad[0]
        grad_x, grads = layer.attend_backward(grad_middle, x, attention, turns, layout, seed, deep)
        if grad_x is not None:
            grad_x += grad_middle
        return (grad_x, None, None, None, None, None, *grads, *grads_mlp)


def normalise(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """RMSNorm (https://arxiv.org/abs/1910.07467) as the library computes it: in float32, scaled in the dtype of x."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(norm.variance_epsilon))
    return (wide * scale).to(x.dtype).mul_(norm.weight)


def normalise_backward(grad: torch.Tensor, x: torch.Tensor, norm: Any) -> torch.Tensor:
    """x̂ = x r, r = 1/√(mean x² + ε): its gradient is r (g - x̂ mean(g x̂)), with g that of x̂."""
    wide, inner = x.float(), (grad * norm.weight).float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(norm.variance_epsilon))
    wide *= scale
    along = (inner * wide).mean(-1, keepdim=True)
    return wide.mul_(along).sub_(inner).mul_(-scale).to(x.dtype)
