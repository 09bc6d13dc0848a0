"""Weights in eight bits: what rounding them costs, and that products with them cost nothing more."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops import quantized
from headstart.ops.activation import gated
from headstart.ops.linear import empty_weight
from headstart.ops.quantized import (
    QUANTIZATIONS,
    dequantize,
    quantize,
    quantize_rows,
    quantized_gated_linear,
    quantized_linear,
)

# Half a step of the largest number of an output, and half a unit in the last of three bits of mantissa; the scale of
# int8 is rounded to bfloat16, which may cut off a little of the largest.
HALF_STEP = {"int8": (0.0, 0.5 / 127 + 2**-8), "fp8": (2**-4, 2**-10 / 448 + 1e-6)}

kinds = st.sampled_from(list(QUANTIZATIONS))


@settings(max_examples=60, deadline=None)
@given(
    kind=kinds,
    shape=st.tuples(st.integers(1, 40), st.integers(1, 60)),
    experts=st.none() | st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    magnitude=st.sampled_from([1e-4, 1.0, 100.0]),
    seed=st.integers(0, 1000),
)
def test_every_number_within_half_a_step(kind, shape, experts, dtype, magnitude, seed):
    """Whatever its size, memory order and leading dimension, an output of zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    weight = empty_weight(*shape, dtype).copy_(torch.randn(shape, generator=generator) * magnitude)
    weight[seed % len(weight)] = 0
    if experts is not None:
        weight = torch.stack([weight, weight * 3, weight])[:experts]
    held = quantize(weight, kind)
    assert held.values.shape == weight.shape and held.values.is_contiguous() and held.values.itemsize == 1
    assert held.scale.shape == weight.shape[:-1]
    wide, (relative, absolute) = weight.double(), HALF_STEP[kind]
    bound = wide.abs() * relative + wide.abs().amax(-1, keepdim=True) * absolute + 1e-38
    assert ((dequantize(held).double() - wide).abs() <= bound).all()


def test_large_weights_are_rounded_in_blocks(monkeypatch):
    weight = torch.randn(37, 20)
    for kind in QUANTIZATIONS:
        whole = quantize(weight, kind)
        with monkeypatch.context() as patch:
            patch.setattr(quantized, "_BLOCK", 100)
            parts = quantize(weight, kind)
        assert torch.equal(whole.values.float(), parts.values.float()) and torch.equal(whole.scale, parts.scale)


@settings(max_examples=60, deadline=None)
@given(
    kind=kinds,
    rows=st.sampled_from([1, 2, 16, 17, 70]),
    out_features=st.integers(1, 90),
    in_features=st.integers(1, 90) | st.sampled_from([32, 64, 96]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    onto=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_product_with_the_rounded_weight(kind, rows, out_features, in_features, dtype, bias, onto, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, in_features + 2, generator=generator).to(dtype)[:, :in_features]
    weight = quantize(torch.randn(out_features, in_features, generator=generator), kind)
    b = torch.randn(out_features, generator=generator).to(dtype) if bias else None
    base = torch.randn(rows, out_features, generator=generator).to(dtype) if onto else None
    want = x.double() @ dequantize(weight).double().t()
    want = want + (0 if b is None else b.double()) + (0 if base is None else base.double())
    got = quantized_linear(x, weight, b, base)
    assert got.shape == (rows, out_features) and got.dtype == dtype
    magnitude = x.double().abs() @ dequantize(weight).double().abs().t() + 3
    # The packed product of int8 has inputs and results in bfloat16.
    packed = kind == "int8" and rows <= quantized._PACKED_ROWS
    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.bfloat16).eps if packed else 2**-20)
    assert ((got.double() - want).abs() / magnitude).max() < 2 * unit


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.012), ("fp8", 0.03)])
@pytest.mark.parametrize("rows", [1, 100])
def test_error_against_the_float_product(kind, bound, rows):
    """The relative error of a product with a normal weight: a percent of int8, three of fp8."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 1000, generator=generator) for n in (rows, 200))
    want = x @ weight.t()
    got = quantized_linear(x, quantize(weight, kind))
    assert (got - want).norm() / want.norm() < bound


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_gated(kind):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 30, generator=generator), quantize(torch.randn(8, 30, generator=generator), kind)
    want = gated(x @ dequantize(weight).t(), "silu")
    torch.testing.assert_close(quantized_gated_linear(x, weight, None, "silu"), want, rtol=0.03, atol=0.1)


def test_every_fp8_number_is_widened_exactly():
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    values = values[values.float().isfinite()]
    assert torch.equal(quantized.widen_e4m3(values, torch.empty(len(values))), values.float())


def test_rows_in_fp8():
    """The largest of a row just fits, and a row of zeros stays one."""
    x = torch.randn(5, 70) * torch.tensor([1e-6, 1.0, 30.0, 1e6, 0.0])[:, None]
    values, scale = quantize_rows(x)
    assert values.dtype == torch.float8_e4m3fn and scale.shape == (5, 1) and (values[4].float() == 0).all()
    assert (values[:4].float().abs().amax(1) == 448).all()
    off = (values.float() * scale - x).abs()
    assert (off <= x.abs() * 2**-4 + x.abs().amax(1, keepdim=True) * 2**-10 / 448 * 1.01).all()
