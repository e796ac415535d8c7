"""Requests whose base goes through the library's modules: each by itself, with the library's own cache.

The cache may hold keys and values, a window of them, or what a recurrent layer carries from token to token. It belongs
to one request, and `Cache.release` zeroes it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers.cache_utils import DynamicCache

from appliance.ml.inference.cache import Held, list_tensors
from appliance.ml.model.base import Base


@torch.inference_mode()
def read_alone(base: Base, held: Held, ids: Sequence[int]) -> torch.Tensor:
    """[tokens, hidden] of tokens behind those that a request holds; they are held then too."""
    if held.own is None:
        held.own = DynamicCache(config=base.model.config)
    places = torch.arange(held.length, held.length + len(ids), device=base.device)
    hidden = base.hidden(
        input_ids=torch.tensor([list(ids)], device=base.device),
        position_ids=places[None],
        cache=held.own,
        use_cache=True,
    )
    held.length += len(ids)
    return hidden[0]


def read_paths_alone(base: Base, held: Held, paths: Sequence[Sequence[int]]) -> torch.Tensor:
    """[tokens of all paths, hidden] of paths that each go on from what a request holds; nothing of them is kept."""
    found = []
    for path in paths:
        branch = Held(length=held.length, own=copy.deepcopy(held.own))
        # A token at a time: a recurrent layer goes on by one.
        found += [read_alone(base, branch, [token]) for token in path]
        for tensor in list_tensors(branch.own):
            tensor.zero_()
    return torch.cat(found)
