"""Dense products: every path within the rounding of its inputs, for any memory order and shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops import linear as ops
from headstart.ops.linear import empty_weight, linear, linear_reference


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 5, 33, 300]),
    out_features=st.integers(1, 90),
    in_features=st.integers(1, 90),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    packed=st.booleans(),
    always_widen=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_the_reference(rows, out_features, in_features, dtype, bias, packed, always_widen, seed):
    """Within a few roundings of the float64 product, whether the CPU has units for the dtype or widens."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, in_features, generator=generator).to(dtype)
    values = torch.randn(out_features, in_features, generator=generator).to(dtype)
    weight = empty_weight(out_features, in_features, dtype).copy_(values) if packed else values
    b = torch.randn(out_features, generator=generator).to(dtype) if bias else None
    if always_widen and dtype != torch.float32:
        got = ops._widened_linear(x, weight, b)
    else:
        got = linear(x, weight, b)
    want = linear_reference(x.double(), values.double(), None if b is None else b.double())
    assert got.shape == (rows, out_features) and got.dtype == dtype
    magnitude = x.double().abs() @ values.double().abs().t() + 1
    summing = in_features * torch.finfo(torch.float32).eps
    assert ((got.double() - want).abs() / magnitude).max() < torch.finfo(dtype).eps + summing


@pytest.mark.parametrize(("out_features", "in_features"), [(9000, 70), (300, 2100)])
def test_blocks_cover_wide_and_deep_weights(out_features, in_features):
    """Weights beyond one block in either direction are multiplied whole."""
    weight = empty_weight(out_features, in_features, torch.bfloat16)
    weight.copy_(torch.randn(out_features, in_features))
    x = torch.randn(7, in_features).bfloat16()
    want = linear_reference(x.double(), weight.double())
    got = ops._widened_linear(x, weight, None).double()
    torch.testing.assert_close(got, want, rtol=0.01, atol=0.5)


def test_gradients_flow():
    """Where a gradient is wanted, the product is the differentiable one."""
    x = torch.randn(40, 8, dtype=torch.bfloat16)
    weight = empty_weight(5, 8, torch.bfloat16).copy_(torch.randn(5, 8)).requires_grad_()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(5, 8), rtol=0.05, atol=0.1)


def test_empty_weight_has_the_shape_whatever_its_order():
    """`[out, in]` always; on a CPU a wide weight lies with its inputs outermost, a deep one with its outputs."""
    deep, wide = empty_weight(3, 4, torch.float32), empty_weight(4, 3, torch.float32)
    assert deep.shape == (3, 4) and deep.is_contiguous()
    assert wide.shape == (4, 3) and wide.t().is_contiguous()
