"""Many rows through a base and at most one adapter, without gradients: prompts, probes and evaluations.

The same layers as in training, and the same products. Few rows have a kernel of their own
(`ml/quantised/nf4_rows.py`), which is slow for many: a short prompt takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from appliance.ml.layers.architecture import Architecture
from appliance.ml.layers.decoder import count_bytes, embed
from appliance.ml.layers.layer import Layer
from appliance.ml.layers.norms import Norm
from appliance.ml.layers.positions import Positions
from appliance.ml.layers.projections import LowRank
from appliance.ml.layers.scores import Scoring


class Seen(Protocol):
    """What the tokens of a pass see."""

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """The attention of layer `number`: [tokens, heads, size]; query has that shape, key and value are [tokens, key
        heads, size], all turned to their positions."""
        ...


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

    @torch.inference_mode()
    def hidden(
        self, ids: Sequence[int], positions: Sequence[int], seen: Seen, long: Sequence[bool], *, short: bool = False
    ) -> torch.Tensor:
        """[tokens, hidden] behind the last norm; `long` says which tokens are of a long sequence (`Positions`).

        `short`: few tokens may go through the kernel for few rows. What is compared bit for bit with other passes (an
        evaluation, a probe) does not.
        """
        device = self._model.embed_tokens.weight.device
        x = embed(self._model, torch.tensor(list(ids), device=device), self._architecture)
        marks = torch.tensor(list(long), device=device) if any(long) else None
        rotations = self.positions.rotations(torch.tensor(list(positions), device=device), x.dtype, marks)
        none = (None,) * 4
        for number, layer in enumerate(self._layers):
            lows = none if self.adapter is None else self.adapter[number]
            x = layer.read(number, x, rotations[layer.rope], seen, lows, short=short)
        return self._norm.forward(x)
