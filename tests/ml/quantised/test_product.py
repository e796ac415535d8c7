"""Few rows through NF4 layers and a head: the weights as they are stored, each row's bits its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit

from appliance.ml.quantised.kernels import load_kernels
from appliance.ml.quantised.linear import FewRows, fits_nf4_rows, make_bf16_rows, make_nf4_rows
from appliance.ml.quantised.nf4 import join_blocks


def make_layers(inner: int, sizes: Sequence[int], *, bias: bool = False) -> list[bitsandbytes.nn.Linear4bit]:
    torch.manual_seed(inner)
    layers = []
    for size in sizes:
        layer = bitsandbytes.nn.Linear4bit(
            inner, size, bias=bias, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4"
        )
        layers.append(layer.to("cpu").eval())
    return layers


def expect(layers: Sequence[bitsandbytes.nn.Linear4bit], x: torch.Tensor) -> torch.Tensor:
    """In float64, with inputs that are rounded as the kernel rounds them."""
    weights = torch.cat([dequantize_4bit(layer.weight.data, layer.weight.quant_state) for layer in layers])
    made = x.to(torch.bfloat16).double() @ weights.double().T
    biases = [layer.bias for layer in layers]
    return made if biases[0] is None else made + torch.cat(biases).double()


@pytest.fixture(params=["tiles", "vectors"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways of the kernel that a processor with AMX has; on others the second alone."""
    kernels, wanted = load_kernels(), request.param == "tiles"
    if bool(kernels.use_tiles(wanted)) != wanted:
        pytest.xfail("the processor has no AMX")
    yield
    kernels.use_tiles(True)


needs_kernel = pytest.mark.skipif(
    not fits_nf4_rows(make_layers(64, [32]), torch.bfloat16), reason="the processor has no AVX-512 with bf16"
)


@pytest.mark.thorough
@pytest.mark.usefixtures("way")
@needs_kernel
@pytest.mark.parametrize(
    ("inner", "sizes"), [(64, (32,)), (576, (576, 192, 192)), (1536, (40, 3)), (2048, (5632, 5632))]
)
@pytest.mark.parametrize(("rows", "bias"), [(11, False), (19, True), (150, True)])
def test_the_product_is_that_of_the_stored_weights(inner: int, sizes: tuple[int, ...], rows: int, bias: bool) -> None:
    layers = make_layers(inner, sizes, bias=bias)
    x = torch.randn(rows, inner)
    expected, made = expect(layers, x), make_nf4_rows(layers)(x)
    # The table's numbers are rounded to bf16: up to 2^-9 of each weight.
    assert (made - expected).abs().max() <= 2**-8 * expected.abs().max()
    assert (made - expected).norm() <= 2**-8 * expected.norm()


@pytest.mark.usefixtures("way")
@needs_kernel
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_has_the_same_bits_alone_and_in_any_batch_with_any_threads(threads: int) -> None:
    _compare_alone(make_nf4_rows(make_layers(576, (576, 192, 200))), 576, threads)
    head = make_bf16_rows(torch.randn(999, 96).to(torch.bfloat16))
    assert head is not None
    _compare_alone(head, 96, threads)


def _compare_alone(product: FewRows, inner: int, threads: int) -> None:
    x = torch.randn(150, inner)
    alone = torch.cat([product(row[None]) for row in x])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (*range(1, 18), 31, 32, 33, 150):
            assert torch.equal(product(x[:count].contiguous()), alone[:count])
            assert torch.equal(product(x[150 - count :].contiguous()), alone[150 - count :])
    finally:
        torch.set_num_threads(before)


@needs_kernel
def test_the_layers_are_held_once_by_all_who_read_them() -> None:
    layers = make_layers(128, (64, 64))
    product, (weights, scales) = make_nf4_rows(layers), join_blocks(layers)
    held, _, of_blocks, _ = product._held
    assert of_blocks is not None and (held.data_ptr(), of_blocks.data_ptr()) == (weights.data_ptr(), scales.data_ptr())
    assert layers[1].weight.data_ptr() == weights.data_ptr() + layers[0].weight.numel()


def test_other_layers_are_left_to_other_products() -> None:
    assert not fits_nf4_rows([torch.nn.Linear(64, 32)], torch.bfloat16)
    assert not fits_nf4_rows(make_layers(64, [32]), torch.float32)
    assert not fits_nf4_rows(make_layers(96, [32]), torch.bfloat16)


@pytest.mark.usefixtures("way")
@needs_kernel
@pytest.mark.parametrize(("inner", "outer"), [(32, 1), (576, 49), (576, 131), (2048, 1000)])
def test_the_product_with_a_head_is_that_of_its_weights(inner: int, outer: int) -> None:
    weight, x = torch.randn(outer, inner).to(torch.bfloat16), torch.randn(11, inner)
    product = make_bf16_rows(weight)
    assert product is not None
    expected = x.to(torch.bfloat16).double() @ weight.double().T
    assert (product(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_head_of_another_kind_has_no_kernel() -> None:
    assert make_bf16_rows(torch.zeros(4, 32)) is None
    assert make_bf16_rows(torch.zeros(4, 33, dtype=torch.bfloat16)) is None
    assert make_bf16_rows(torch.zeros(64, 4, dtype=torch.bfloat16).T) is None
