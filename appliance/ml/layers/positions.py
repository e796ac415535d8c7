"""Rotary positions (https://arxiv.org/abs/2104.09864): the angles of a batch's tokens, and what is turned by them.

Frequencies come from the library's own module, which knows every variant. Longrope has two sets: a sequence longer than
the model was first trained on is turned by the second from its first token on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from appliance.ml.layers.architecture import Architecture
from appliance.ml.layers.packing import Pack


@dataclass(frozen=True)
class Rotation:
    """Of every token: cosine and sine, [tokens, turned], and what its query is multiplied by, [tokens, 1, 1]."""

    cosine: torch.Tensor
    sine: torch.Tensor
    query_scale: torch.Tensor | None = None


Rotations = dict[str | None, Rotation | None]
"""By `LayerKind.rope`; None for layers without positions."""


@dataclass(frozen=True)
class _Angles:
    frequencies: torch.Tensor
    long_frequencies: torch.Tensor | None
    scaling: float


class Positions:
    """The angles of one model."""

    def __init__(self, model: Any, architecture: Architecture) -> None:
        self._architecture = architecture
        ropes = sorted({kind.rope for kind in architecture.kinds if kind.rope is not None})
        self._angles = {rope: _read_angles(model, rope) for rope in ropes}
        self.longest_short = find_longest_short(model.config)
        """Tokens from which on a sequence is turned by the second set; None where there is one."""

    def rotations(self, positions: torch.Tensor, dtype: torch.dtype, long: torch.Tensor | None = None) -> Rotations:
        """Of tokens at these positions, [tokens]; `long` says of which the sequence is a long one, [tokens]."""
        scale = None
        if self._architecture.query_scaling is not None:
            beta, length = self._architecture.query_scaling
            scale = (1 + beta * torch.log(1 + torch.floor(positions / length)))[:, None, None].to(dtype)
        found: Rotations = {None: None}
        for rope, angles in self._angles.items():
            turned = positions[:, None].float() * angles.frequencies
            if long is not None and angles.long_frequencies is not None:
                turned = torch.where(long[:, None], positions[:, None].float() * angles.long_frequencies, turned)
            both = torch.cat([turned, turned], dim=-1)
            cosine, sine = both.cos() * angles.scaling, both.sin() * angles.scaling
            found[rope] = Rotation(cosine.to(dtype), sine.to(dtype), scale)
        return found

    def rotations_of(self, pack: Pack, hidden: torch.Tensor) -> Rotations:
        """Of a pack's tokens; `hidden` says where they are computed, and in which dtype."""
        positions = torch.tensor(pack.positions, device=hidden.device)
        long = None
        if self.longest_short is not None:
            long = torch.tensor(pack.find_long(self.longest_short), device=hidden.device)
        return self.rotations(positions, hidden.dtype, long)


def find_longest_short(config: Any) -> int | None:
    """Tokens up to which a sequence is turned by a model's first set of angles; None where it has no second."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") != "longrope":
        return None
    return int(parameters["original_max_position_embeddings"])


def _read_angles(model: Any, rope: str) -> _Angles:
    """From the library's module, whose own buffer may hold either set at the moment."""
    rotary, prefix = model.rotary_emb, f"{rope}_" if rope else ""
    original: torch.Tensor = getattr(rotary, f"{prefix}original_inv_freq")
    long, length = None, find_longest_short(model.config)
    if length is not None:
        long, _ = ROPE_INIT_FUNCTIONS["longrope"](model.config, original.device, seq_len=length + 1)
    return _Angles(original.float(), long, float(getattr(rotary, f"{prefix}attention_scaling")))


def rotate(x: torch.Tensor, rotation: Rotation, *, out: torch.Tensor) -> None:
    """x [tokens, heads, size]; of each head the first `turned` numbers, the rest as it is."""
    x, out, cosine, sine = _narrow(x, rotation, out)
    torch.mul(x, cosine, out=out)
    (first, second), (early, late) = x.chunk(2, dim=-1), sine.chunk(2, dim=-1)
    into = out.chunk(2, dim=-1)
    into[0].addcmul_(second, early, value=-1)
    into[1].addcmul_(first, late)


def rotate_backward(grad: torch.Tensor, rotation: Rotation, *, out: torch.Tensor) -> None:
    """The gradient of x: the same turn the other way."""
    grad, out, cosine, sine = _narrow(grad, rotation, out)
    torch.mul(grad, cosine, out=out)
    (first, second), (early, late) = grad.chunk(2, dim=-1), sine.chunk(2, dim=-1)
    into = out.chunk(2, dim=-1)
    into[0].addcmul_(second, late)
    into[1].addcmul_(first, early, value=-1)


def _narrow(
    x: torch.Tensor, rotation: Rotation, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    turned = rotation.cosine.shape[-1]
    if turned < x.shape[-1]:
        out[..., turned:] = x[..., turned:]
        x, out = x[..., :turned], out[..., :turned]
    return x, out, rotation.cosine[:, None], rotation.sine[:, None]
