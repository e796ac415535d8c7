"""Packed sequences give the logits that each gives alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from appliance.domain.planning.packs import count_common
from appliance.ml.layers import scores
from appliance.ml.layers.packing import Pack, pack_sequences
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from scripts.kit.tiny_model import build_base

PREFIX = [1, 50, 60, 70, 80]
SEQUENCES = [PREFIX + tail for tail in ([5, 6, 7], [9, 8, 7, 6, 5, 4], [11], [12, 13])]


def _alone(base: LoadedBase, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return base.hidden(input_ids=torch.tensor([ids]), use_cache=False)[0]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.15)])
@pytest.mark.parametrize("block", [scores.SCORE_BLOCK, 2])
def test_packed_equals_unpacked_at_the_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str, tolerance: float, block: int
) -> None:
    """With the scores of a segment held at once, and with the fused kernel that long segments take."""
    monkeypatch.setattr(scores, "SCORE_BLOCK", block)
    machine.use_determinism(1)
    base = load_base(build_base(tmp_path / kind, kind), quantisation="nf4-double", compute_dtype=dtype, device="cpu")
    pack, segments = pack_sequences(SEQUENCES)
    assert len(pack.ids) < sum(len(ids) for ids in SEQUENCES), "the common beginning is there once"
    with torch.inference_mode():
        hidden = base.hidden(**pack.arguments("cpu"))[0]
    for ids, segment in zip(SEQUENCES, segments, strict=True):
        own = segment.stop - segment.start
        packed, alone = hidden[segment.start : segment.stop], _alone(base, ids)[-own:]
        difference = ((packed - alone) @ base.head().weight.T).float().abs().max().item()
        assert difference < tolerance, f"{kind}: a neighbour moved the logits by {difference}"


def test_the_comparison_above_sees_a_leak(base: LoadedBase) -> None:
    """The same tokens as one sequence, as an all-ones mask would have it, are far outside the tolerance."""
    pack, segments = pack_sequences(SEQUENCES)
    with torch.inference_mode():
        leaked = base.hidden(input_ids=torch.tensor([pack.ids]), position_ids=torch.tensor([pack.positions]))[0]
    last = segments[-1]
    difference = (leaked[last.stop - 1] - _alone(base, SEQUENCES[-1])[-1]) @ base.head().weight.T
    assert difference.abs().max().item() > 0.1


def test_a_third_generation_sees_its_whole_context(base: LoadedBase) -> None:
    """Labels continue rows that continue a common beginning: root, row, label."""
    pack = Pack()
    root = pack.add(PREFIX)
    row = pack.add([5, 6, 7], after=root)
    pack.add([9, 9, 9], after=root)
    label = pack.add([20, 21], after=row)
    with torch.inference_mode():
        hidden = base.hidden(**pack.arguments("cpu"))[0]
    alone = _alone(base, [*PREFIX, 5, 6, 7, 20, 21])
    assert torch.allclose(hidden[label.stop - 1], alone[-1], atol=1e-4)


def test_packed_gradients_equal_those_of_the_sequences_alone(base: LoadedBase) -> None:
    embedding = base.model.get_input_embeddings().weight.requires_grad_(True)
    pack, segments = pack_sequences(SEQUENCES)
    base.hidden(**pack.arguments("cpu"))[0, [segment.stop - 1 for segment in segments]].sum().backward()
    packed = embedding.grad.clone()
    embedding.grad = None
    for ids in SEQUENCES:
        base.hidden(input_ids=torch.tensor([ids]), use_cache=False)[0, -1].sum().backward()
    assert embedding.grad.abs().max() > 0.01
    assert torch.allclose(packed, embedding.grad, atol=2e-3 * embedding.grad.abs().max().item())


def test_a_sequence_that_is_the_beginning_of_another_keeps_a_token_of_its_own() -> None:
    pack, segments = pack_sequences([[1, 2, 3], [1, 2, 3, 4]])
    assert [pack.ids[segment.start : segment.stop] for segment in segments] == [[3], [3, 4]]
    assert count_common([[1, 2], [1, 2, 3]]) == 2
