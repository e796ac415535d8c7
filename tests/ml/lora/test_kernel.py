"""The kernel adds each row's own adapter, with bits that do not depend on the other rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from appliance.ml.inference.lora import AdapterWeights, RowGroup, RowLayout

# Widths and ranks that fill the kernel's vectors and such that do not, with more ranks than it takes at once.
GROUPS = [
    RowGroup(("a.q", "a.k", "a.v"), 48, (64, 32, 32)),
    RowGroup(("a.o",), 37, (5,)),
    RowGroup(("b.gate", "b.up"), 7, (33, 70)),
    RowGroup(("b.down",), 96, (48,)),
]
RANKS = {"one": 1, "six": 6, "sixteen": 16, "wide": 70}


def _adapter(rank: int, names: Sequence[str]) -> AdapterWeights:
    generator = torch.Generator().manual_seed(rank)
    layers = {name: (group.inner, out) for group in GROUPS for name, out in zip(group.names, group.sizes, strict=True)}
    return AdapterWeights(
        0.7,
        {
            name: (torch.randn(rank, inner, generator=generator), torch.randn(out, rank, generator=generator))
            for name, (inner, out) in layers.items()
            if name in names
        },
    )


ADAPTERS = {name: _adapter(rank, [name for group in GROUPS for name in group.names]) for name, rank in RANKS.items()}
ADAPTERS["some"] = _adapter(8, ["a.k", "b.down"])
SLOTS = ["one", None, "wide", "six", "wide", "some", "sixteen", "wide", None, "some"]


def _add(slots: Sequence[str | None], group: RowGroup, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    made = torch.ones(len(slots), sum(group.sizes))
    RowLayout(GROUPS, dtype).lay_out(slots, ADAPTERS).add(group, x, made)
    return made


def _expect(slot: str | None, group: RowGroup, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In double precision, of weights in the dtype in which the kernel reads them."""
    parts = []
    for name, out in zip(group.names, group.sizes, strict=True):
        pair = ADAPTERS[slot].weights.get(name) if slot is not None else None
        if pair is None:
            parts.append(torch.ones(out, dtype=torch.float64))
        else:
            down, up = (side.to(dtype).double() for side in pair)
            parts.append(1 + up @ (down @ x.double()) * 0.7)
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.names[0])
def test_each_row_gets_what_its_own_adapter_makes_of_it(group: RowGroup, dtype: torch.dtype) -> None:
    x = torch.randn(len(SLOTS), group.inner, generator=torch.Generator().manual_seed(3))
    made = _add(SLOTS, group, x, dtype)
    for row, slot in enumerate(SLOTS):
        expected = _expect(slot, group, x[row], dtype)
        torch.testing.assert_close(made[row].double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert slot is None or group.names[0] not in ADAPTERS[slot].weights or (made[row] - 1).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.names[0])
def test_no_bit_of_a_row_depends_on_the_others(group: RowGroup, dtype: torch.dtype) -> None:
    """Not even where a neighbour's numbers are none, and not on how many threads share the work."""
    x = torch.randn(len(SLOTS), group.inner, generator=torch.Generator().manual_seed(4))
    x[4] = float("nan")
    together = _add(SLOTS, group, x, dtype)
    threads = torch.get_num_threads()
    for row, slot in enumerate(SLOTS):
        alone = _add([slot], group, x[row : row + 1], dtype)
        assert torch.equal(together[row].view(torch.int32), alone[0].view(torch.int32)), row
    try:
        torch.set_num_threads(1)
        single = _add(SLOTS, group, x, dtype)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together.view(torch.int32), single.view(torch.int32))


def test_nothing_beyond_a_rows_own_outputs_is_written() -> None:
    group = GROUPS[1]
    x, made = torch.randn(2, group.inner), torch.full((4, sum(group.sizes)), 5.0)
    RowLayout(GROUPS, torch.bfloat16).lay_out(["six", "six"], ADAPTERS).add(group, x, made[1:3])
    assert bool((made[[0, 3]] == 5).all())
    assert not bool((made[[1, 2]] == 5).any())


def test_a_slot_that_is_forgotten_is_zeroed() -> None:
    rows = RowLayout(GROUPS, torch.bfloat16)
    mix = rows.lay_out(["six"], ADAPTERS)
    x, made = torch.randn(1, 48), torch.zeros(1, 128)
    mix.add(GROUPS[0], x, made)
    assert bool(made.any())
    rows.forget("six")
    rows.forget("six")
    made.zero_()
    mix.add(GROUPS[0], x, made)
    assert not bool(made.any()), "what was packed is zeros, for whoever still looks at it"
