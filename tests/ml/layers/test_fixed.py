"""Products of fixed shape: a sequence's bits do not depend on the batch, on this processor too."""

from __future__ import annotations

import pytest
import torch

from appliance.ml.layers.fixed import FixedAttention, Held, TreeAttention, multiply_in_blocks
from appliance.ml.layers.packing import Pack, Segment
from appliance.ml.layers.scores import Scoring

HEADS, KEY_HEADS, SIZE = 9, 3, 64
WORDS = 3000
DTYPES = [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_whatever_rows_are_multiplied_beside_it(dtype: torch.dtype) -> None:
    weight = torch.randn(576, 1536).to(dtype)
    x = torch.randn(1100, 1536).to(dtype)
    whole = multiply_in_blocks(lambda block: block @ weight.T, x)
    assert torch.allclose(whole, x @ weight.T, rtol=0.02, atol=0.5)
    for first, last in ((0, 7), (5, 100), (37, 333), (400, 1100)):
        assert torch.equal(multiply_in_blocks(lambda block: block @ weight.T, x[first:last]), whole[first:last])


class _Layer:
    """Queries, keys and values of a token at a position; what a pack's tokens see of them."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(1)
        shapes = [(WORDS, HEADS, SIZE), (WORDS, KEY_HEADS, SIZE), (WORDS, KEY_HEADS, SIZE)]
        self._made = [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]

    def attend(
        self,
        kind: type[FixedAttention] | type[TreeAttention],
        pack: Pack,
        window: int | None = None,
        start: int = 0,
        held: Held | None = None,
    ) -> torch.Tensor:
        seen = kind(pack, "cpu", start=start, held=held)
        heads = [one[pack.ids[start:]] for one in self._made]
        return seen.attend(0, heads[0], heads[1], heads[2], Scoring(SIZE**-0.5, window))


def _rows(shared: int, sizes: list[int]) -> tuple[Pack, list[Segment]]:
    """Rows of the same first 200 tokens, of which so many are shared."""
    pack = Pack()
    root = pack.add(range(shared)) if shared else None
    return pack, [pack.add([*range(shared, 200), *range(500, 500 + size)], after=root) for size in sizes]


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 100])
def test_a_row_sees_the_same_bits_alone_and_in_any_pack(dtype: torch.dtype, window: int | None) -> None:
    layer = _Layer(dtype)
    alone, (row,) = _rows(0, [900])
    expected = layer.attend(FixedAttention, alone, window)[-900:]
    for shared, sizes in ((0, [3, 900]), (200, [900, 20]), (63, [1, 2, 3, 900, 40, 41, 42, 43, 44, 45, 46, 47])):
        pack, segments = _rows(shared, sizes)
        segment = segments[sizes.index(900)]
        assert torch.equal(layer.attend(FixedAttention, pack, window)[segment.stop - 900 : segment.stop], expected)
    assert torch.allclose(expected, layer.attend(TreeAttention, alone, window)[-900:], rtol=0.02, atol=0.02)
    assert row.stop == 1100


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_label_behind_a_row_sees_the_same_bits_in_any_pack(dtype: torch.dtype) -> None:
    layer = _Layer(dtype)
    found = []
    for shared, sizes in ((0, [300]), (150, [10, 300, 70])):
        pack, rows = _rows(shared, sizes)
        row, held = rows[sizes.index(300)], Held()
        pack.add(range(1000, 1040), after=row)
        layer.attend(FixedAttention, pack, held=held)
        start = len(pack.ids)
        for other in rows:
            pack.add(range(2000, 2090), after=other)
        labels = layer.attend(FixedAttention, pack, start=start, held=held)
        found.append(labels.split(90)[sizes.index(300)])
        assert torch.allclose(labels, layer.attend(TreeAttention, pack)[start:], rtol=0.02, atol=0.02), (
            "as what reads them at once"
        )
    assert torch.equal(*found)
