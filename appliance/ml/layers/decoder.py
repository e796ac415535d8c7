"""A decoder's layers with a hand-written backward pass, which is fast and controls what stays in memory.

Each layer is one autograd function. Its forward pass builds no graph and keeps only the activations that `again`
selects; its backward pass is the chain rule (`layer.py`) and recomputes the rest. The residual stream has the base's
compute dtype, as in evaluation and serving. The module covers the table of architectures (`architecture.py`) with plain
LoRA on the linear layers. For everything else training uses the library's modules; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from appliance.domain.planning.packs import KEPT_BYTES
from appliance.domain.recipe.recipe import Recomputation
from appliance.ml.layers.architecture import Architecture, find_architecture
from appliance.ml.layers.attention import Layout, lay_out
from appliance.ml.layers.head import Norm
from appliance.ml.layers.layer import Layer, ReadPiece
from appliance.ml.layers.packing import Pack, Positions, Rotation, Rotations
from appliance.ml.layers.projections import LowRank, Rows, is_adapted
from appliance.ml.layers.scores import Scoring
from appliance.ml.quantised.linear import GptqLinear


class Decoder:
    """The layers of a model with the adapter that is trained."""

    def __init__(self, base_model: Any, again: Recomputation) -> None:
        architecture = find_architecture(base_model)
        if architecture is None:
            raise ValueError("base_model: expected a model of the table of architectures, got another")
        self._model = base_model.get_decoder()
        self._again, self._architecture = again, architecture
        keeps = again == "none" and count_bytes(self._model) <= KEPT_BYTES
        self._layers = [
            Layer(module, kind, architecture, keeps=keeps)
            for module, kind in zip(self._model.layers, architecture.kinds, strict=True)
        ]
        self._positions = Positions(self._model, architecture)

    def hidden(self, pack: Pack, device: str) -> torch.Tensor:
        """Return the output of the last norm, [tokens, hidden], of a pack of one level."""
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

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Compute the bare base within the block."""
        parts = [part for layer in self._layers for part in layer.parts]
        for part in parts:
            part.is_bare = True
        try:
            yield
        finally:
            for part in parts:
                part.is_bare = False


def embed(decoder: Any, ids: torch.Tensor, architecture: Architecture) -> torch.Tensor:
    """Return the input of the first layer, [tokens, hidden]."""
    hidden: torch.Tensor = decoder.embed_tokens(ids)
    factor = architecture.embedding_multiplier
    return hidden if factor == 1 else hidden * factor


def count_bytes(model: Any) -> int:
    """Return the size in bytes of the layers' frozen weights in the compute dtype."""
    sizes = [
        linear.in_features * linear.out_features
        for layer in model.layers
        for linear in layer.modules()
        if isinstance(linear, GptqLinear) or (isinstance(linear, torch.nn.Linear) and not linear.weight.requires_grad)
    ]
    return sum(sizes) * int(model.embed_tokens.weight.element_size())


def fits_decoder(base_model: Any) -> bool:
    """Return True if the table covers the model and every layer has adapters that this module supports."""
    if find_architecture(base_model) is None:
        return False
    return all(_fits(module) for module in base_model.get_decoder().layers)


def _fits(module: Any) -> bool:
    linears = [child for child in module.modules() if is_adapted(child)]
    return bool(linears) and all(_is_plain(linear) for linear in linears)


def _is_plain(linear: Any) -> bool:
    """Return True for a single unmerged plain LoRA or rsLoRA adapter on a 4-bit, GPTQ or unquantised layer."""
    base, variants = linear.get_base_layer(), getattr(linear, "lora_variant", {})
    plain = type(base).__name__ in ("Linear", "Linear4bit", "GptqLinear") and not linear.merged
    return plain and list(linear.lora_A) == ["default"] and not variants and not linear.lora_bias["default"]


class _Pass(torch.autograd.Function):
    """One decoder layer as an autograd function."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layer: Layer,
        rotation: Rotation | None,
        layout: Layout,
        again: Recomputation,
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


class PassAttention(Protocol):
    """The attention of the tokens of one pass."""

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Return the attention output of layer `number`, [tokens, heads, size].

        `query` is [tokens, heads, size]; `key` and `value` are [tokens, key heads, size]. Query and key are already
        rotated.
        """
        ...


@dataclass(frozen=True)
class Piece:
    """Tokens that are computed together, at their positions.

    `long` marks the tokens of a long sequence (`Positions`).
    """

    ids: Sequence[int]
    positions: Sequence[int]
    seen: PassAttention
    long: Sequence[bool]


ReadAdapter = list[tuple[LowRank | None, ...]]
"""An adapter prepared for reading: for each layer, the low-rank update of each of its four products."""


class DecoderReader:
    """The layers of a base model without PEFT adapters, for passes without gradients.

    `adapter` is the active adapter; None for the bare base.
    """

    def __init__(self, model: Any, architecture: Architecture, *, kept_bytes: int) -> None:
        self._model, self._architecture = model.get_decoder(), architecture
        keeps = count_bytes(self._model) <= kept_bytes
        self._names = {module: name for name, module in model.named_modules()}
        modules = list(self._model.layers)
        self._prefixes = [self._names[module] for module in modules]
        self._layers = [
            Layer(module, kind, architecture, keeps=keeps)
            for module, kind in zip(modules, architecture.kinds, strict=True)
        ]
        self._norm = Norm(self._model.norm, architecture.row)
        self.positions = Positions(self._model, architecture)
        self.adapter: ReadAdapter | None = None

    def join(self, weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scaling: float) -> ReadAdapter:
        """Return an adapter in the form that `adapter` takes.

        `weights` holds A [rank, in] and B [out, rank] by the name of the linear layer.
        """
        return [
            tuple(
                part.join([f"{prefix}.{name}" for name in names], weights, scaling)
                for part, names in zip(layer.parts, layer.names, strict=True)
            )
            for prefix, layer in zip(self._prefixes, self._layers, strict=True)
        ]

    @torch.inference_mode()
    def read(self, pieces: Sequence[Piece], rows: Rows) -> list[torch.Tensor]:
        """Return the output of the last norm for each piece, [tokens, hidden].

        In each layer a piece may see the keys and values that the pieces before it have stored. Each piece is computed
        separately, so its bits equal those of a pass of its own; the weights of a layer are dequantised once for all
        pieces.
        """
        hidden_states = [self._embed(piece) for piece in pieces]
        turned = [self._turn(piece, x.dtype) for piece, x in zip(pieces, hidden_states, strict=True)]
        none = (None,) * 4
        for number, layer in enumerate(self._layers):
            lows = none if self.adapter is None else self.adapter[number]
            read = [
                ReadPiece(x, rotations[layer.rope], piece.seen)
                for x, rotations, piece in zip(hidden_states, turned, pieces, strict=True)
            ]
            hidden_states = layer.read(number, read, lows, rows)
        return [self._norm.forward(x) for x in hidden_states]

    def _embed(self, piece: Piece) -> torch.Tensor:
        ids = torch.tensor(list(piece.ids), device=self._model.embed_tokens.weight.device)
        return embed(self._model, ids, self._architecture)

    def _turn(self, piece: Piece, dtype: torch.dtype) -> Rotations:
        device = self._model.embed_tokens.weight.device
        marks = torch.tensor(list(piece.long), device=device) if any(piece.long) else None
        return self.positions.rotations(torch.tensor(list(piece.positions), device=device), dtype, marks)
