"""Many rows through a base and at most one adapter, without gradients: prompts, probes and evaluations.

The same layers as in training, and the same products. Few rows have a kernel of their own
(`ml/quantised/nf4_rows.py`), which is slow for many: a short prompt takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from appliance.ml.layers.architecture import Architecture
from appliance.ml.layers.decoder import count_bytes, embed
from appliance.ml.layers.layer import Layer, ReadPiece
from appliance.ml.layers.norms import Norm
from appliance.ml.layers.positions import Positions, Rotations
from appliance.ml.layers.projections import LowRank, Rows
from appliance.ml.layers.scores import Scoring


class Seen(Protocol):
    """What the tokens of a pass see."""

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """The attention of layer `number`: [tokens, heads, size]; query has that shape, key and value are [tokens, key
        heads, size], all turned to their positions."""
        ...


@dataclass(frozen=True)
class Piece:
    """Tokens that are computed together, at their positions; `long` marks those of a long sequence (`Positions`)."""

    ids: Sequence[int]
    positions: Sequence[int]
    seen: Seen
    long: Sequence[bool]


ReadAdapter = list[tuple[LowRank | None, ...]]
"""An adapter as it is read: for each layer what it adds to each of its four products."""


class Reader:
    """The layers of a base whose linear layers have no adapters of peft's. `adapter` is what is at work; None is the
    bare base."""

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
        """A [rank, in] and B [out, rank] by the layer's name, as they are read."""
        return [
            tuple(
                part.join([f"{prefix}.{name}" for name in names], weights, scaling)
                for part, names in zip(layer.parts, layer.names, strict=True)
            )
            for prefix, layer in zip(self._prefixes, self._layers, strict=True)
        ]

    def hidden(
        self, ids: Sequence[int], positions: Sequence[int], seen: Seen, long: Sequence[bool], rows: Rows = "many"
    ) -> torch.Tensor:
        """[tokens, hidden] behind the last norm; `long` says which tokens are of a long sequence (`Positions`)."""
        return self.hidden_each([Piece(ids, positions, seen, long)], rows)[0]

    @torch.inference_mode()
    def hidden_each(self, pieces: Sequence[Piece], rows: Rows = "many") -> list[torch.Tensor]:
        """The same for several pieces, in which a piece may see what those before it leave in a layer. Each is computed
        by itself, so that its bits are those of a pass of its own; but the weights of a layer are made once for all.
        """
        found = [self._embed(piece) for piece in pieces]
        turned = [self._turn(piece, x.dtype) for piece, x in zip(pieces, found, strict=True)]
        none = (None,) * 4
        for number, layer in enumerate(self._layers):
            lows = none if self.adapter is None else self.adapter[number]
            read = [
                ReadPiece(x, rotations[layer.rope], piece.seen)
                for x, rotations, piece in zip(found, turned, pieces, strict=True)
            ]
            found = layer.read(number, read, lows, rows)
        return [self._norm.forward(x) for x in found]

    def _embed(self, piece: Piece) -> torch.Tensor:
        ids = torch.tensor(list(piece.ids), device=self._model.embed_tokens.weight.device)
        return embed(self._model, ids, self._architecture)

    def _turn(self, piece: Piece, dtype: torch.dtype) -> Rotations:
        device = self._model.embed_tokens.weight.device
        marks = torch.tensor(list(piece.long), device=device) if any(piece.long) else None
        return self.positions.rotations(torch.tensor(list(piece.positions), device=device), dtype, marks)
