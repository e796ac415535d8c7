"""One token more for each row of a batch: a decoder's layers by hand.

It covers what Llama, Qwen2 and Qwen3 have in common, with the base's own weights; every other base goes through the
library's modules, layer by layer. Layers that read one input are one product: their weights are laid one behind the
other, and the modules, through which prompts go, look at their parts of it. Between two products everything is float32.
No row's bits depend on another's: every operation is by row, by `multiply_rows`, or by a kernel of which tests hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import linear, silu

from appliance.ml.inference.cache import Drawing
from appliance.ml.inference.mixing import ROWS, Mix, RowGroup, multiply_rows
from appliance.ml.layers.architecture import is_known_layer

_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def fits_stepper(model: Any) -> bool:
    """Whether every layer is one that this module knows."""
    layers = list(getattr(model.get_decoder(), "layers", ()))
    return bool(layers) and all(is_known_layer(layer) for layer in layers)


class Stepper:
    """The layers of a base whose linear layers are not wrapped yet."""

    def __init__(self, model: Any) -> None:
        self._model = model.get_decoder()
        names = {module: name for name, module in model.named_modules()}
        # The dtype of norms, embeddings and head is the one that the linear layers multiply in.
        self._dtype = self._model.embed_tokens.weight.dtype
        self._layers = [_Layer(layer, names[layer], self._dtype) for layer in self._model.layers]
        self._norm = _Norm(self._model.norm)
        self._output = model.get_output_embeddings()
        self._head: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.groups = [group for layer in self._layers for group in layer.groups]

    def read(self, ids: Sequence[int], places: Sequence[int], rows: Drawing, mix: Mix) -> torch.Tensor:
        """[rows, hidden] behind the last norm; a row is a token at its place in its own request."""
        hidden = self._model.embed_tokens(torch.tensor(ids, device=self._model.embed_tokens.weight.device)).float()
        positions = torch.tensor([list(places)], device=hidden.device)
        cosine, sine = (part[0, :, None].float() for part in self._model.rotary_emb(hidden[None], positions))
        # The half that is turned away has the sign of the sine's other half.
        sine[..., : sine.shape[-1] // 2].neg_()
        for number, layer in enumerate(self._layers):
            layer.read(number, hidden, (cosine, sine), rows, mix)
        return self._norm(hidden).to(self._dtype)

    def find_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary], in the compute dtype."""
        head = self._head = self._head or _pack_head(self._output.weight.data)
        return multiply_rows(head, hidden)


class _Layer:
    """Norm, attention, norm, gated MLP, each half added to what came in."""

    def __init__(self, layer: Any, name: str, dtype: torch.dtype) -> None:
        attention = layer.self_attn
        self._norms = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self._head_norms = [
            _Norm(getattr(attention, part)) for part in ("q_norm", "k_norm") if hasattr(attention, part)
        ]
        self._size, self._scaling = attention.head_dim, attention.scaling
        parts = [_Projections(layer, name, group, dtype) for group in _GROUPS]
        self._reading, self._writing, self._widening, self._narrowing = parts
        self.groups = [part.group for part in parts]

    def read(
        self, number: int, x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor], rows: Drawing, mix: Mix
    ) -> None:
        """x is [rows, hidden], float32, and changed in place."""
        normal, count = self._norms[0](x), len(x)
        made = self._reading.multiply(normal)
        query, key, value = self._reading.add(normal, made, mix)
        heads = query.shape[1] // self._size
        if self._head_norms:
            sides = zip((query, key), self._head_norms, strict=True)
            turned = torch.cat([norm(side.view(count, -1, self._size)) for side, norm in sides], dim=1)
        else:
            # Queries and keys lie side by side, and are turned together.
            turned = made[:, : query.shape[1] + key.shape[1]].view(count, -1, self._size)
        turned = (turned * turns[0]).addcmul_(turned.roll(self._size // 2, -1), turns[1])
        value = value.view(count, -1, self._size)
        seen = rows.read(number, turned[:, :heads], turned[:, heads:], value, self._scaling).view(count, -1)
        self._writing.add(seen, x.add_(self._writing.multiply(seen)), mix)
        normal = self._norms[1](x)
        gate, up = self._widening.add(normal, self._widening.multiply(normal), mix)
        passed = silu(gate).mul_(up)
        self._narrowing.add(passed, x.add_(self._narrowing.multiply(passed)), mix)


class _Norm:
    """RMSNorm (https://arxiv.org/abs/1910.07467) in float32."""

    def __init__(self, norm: Any) -> None:
        self._weight, self._epsilon = norm.weight.float(), norm.variance_epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(self._epsilon).rsqrt_()
        return (x * scale).mul_(self._weight)


class _Projections:
    """Some of a layer's linear layers, which read one input: [rows, in] to [rows, all of their outputs]."""

    def __init__(self, layer: Any, name: str, parts: Sequence[str], dtype: torch.dtype) -> None:
        self._modules = [layer.get_submodule(part) for part in parts]
        sizes = tuple(module.out_features for module in self._modules)
        self.group = RowGroup(tuple(f"{name}.{part}" for part in parts), self._modules[0].in_features, sizes)
        self._dtype = dtype
        self._product: Callable[[torch.Tensor], torch.Tensor] | None = None

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """What the base makes of x, float32; it multiplies in its own dtype."""
        # Made at the first use: bitsandbytes packs weights when they first answer.
        product = self._product = self._product or _join(self._modules)
        return product(x.to(self._dtype)).float()

    def add(self, x: torch.Tensor, made: torch.Tensor, mix: Mix) -> Sequence[torch.Tensor]:
        """Adds what the rows' adapters make of x, in place; each layer's part."""
        mix.add(self.group, x, made)
        return torch.split(made, list(self.group.sizes), dim=1)


def _pack_head(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product with the head. On the CPU bf16 weights are laid out once as the library's kernel reads them, in a
    copy: it would do so again in every product, which takes as long as the product."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return lambda x: linear(x, weight)
    packed, multiply = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, None, "none", [], "")


def _join(modules: Sequence[Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The modules as one product."""
    if all(type(module) is torch.nn.Linear for module in modules):
        return _Plain(modules)
    packs = all(getattr(module, "support_avx512bf16_for_cpu", False) for module in modules)
    if packs and modules[0].weight.device.type == "cpu":
        return _Packed(modules)
    return lambda x: torch.cat([multiply_rows(module, x) for module in modules], dim=1)


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


class _Packed:
    """NF4 weights as bitsandbytes packs them for its bf16 kernel on the CPU, whose rows are independent."""

    def __init__(self, modules: Sequence[Any]) -> None:
        for module in modules:
            if not getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                module(torch.zeros(1, module.in_features, dtype=torch.bfloat16))
        states = [module.weight.quant_state for module in modules]
        self._weight, self._bias = _join_rows(modules), _join_bias(modules, torch.bfloat16)
        # [in / block, out]: a scale for each block of a row, side by side.
        self._scales = torch.cat([state.absmax for state in states], dim=1)
        self._code, self._block = states[0].code, states[0].blocksize
        self._shape = (sum(module.out_features for module in modules), modules[0].in_features)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        multiply = torch.ops.bitsandbytes.gemv_4bit.default
        result: torch.Tensor = multiply(x, self._weight, self._shape, self._scales, self._code, self._block)
        return result if self._bias is None else result + self._bias
