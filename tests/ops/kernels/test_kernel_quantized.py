"""Kernels that read weights in eight bits, and the one that rounds rows, against the plain ops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops import few_rows, kernels
from headstart.ops.activation import gated
from headstart.ops.kernels import few_rows as kernel
from headstart.ops.kernels import moe, quantize_rows
from headstart.ops.moe import mix_experts, mix_experts_reference
from headstart.ops.quantized import (
    QUANTIZATIONS,
    QuantizedWeight,
    dequantize,
    quantize,
    quantized_gated_linear,
    quantized_linear,
)
from tests.ops.kernels.devices import DEVICE, random

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

SMALL = kernel.Config(16, 16, 4, 1)


def weight_of(kind: str, out_features: int, in_features: int, seed: int = 1) -> QuantizedWeight:
    return quantize(random(out_features, in_features, seed=seed, scale=in_features**-0.5), kind)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(list(QUANTIZATIONS)),
    rows=st.sampled_from([1, 2, 16, 17, 40]),
    out_features=st.integers(1, 70),
    in_features=st.integers(1, 70),
    bias=st.booleans(),
    onto=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_few_rows(kind, rows, out_features, in_features, bias, onto, seed):
    """The product with the rounded weight, also of more rows than an unquantised one takes."""
    x = random(rows, in_features, dtype=torch.float16, seed=seed)
    weight = weight_of(kind, out_features, in_features, seed + 1)
    b = random(out_features, dtype=torch.float16, seed=seed + 2) if bias else None
    base = random(rows, out_features, dtype=torch.float16, seed=seed + 3) if onto else None
    want = x.double() @ dequantize(weight).double().t()
    want = want + (0 if b is None else b.double()) + (0 if base is None else base.double())
    got = kernel.product(x, weight.values, b, base, SMALL, weight.scale)
    torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_what_was_chosen_computes(kind, monkeypatch):
    """The ops take the tiling that was chosen for the shape."""
    used = []
    monkeypatch.setattr(kernels, "run_on", lambda *tensors: True)
    monkeypatch.setattr(few_rows, "choice", lambda x, values, scale, plain: used.append(values.dtype) or SMALL)
    x, weight = random(1, 40, dtype=torch.float16), weight_of(kind, 6, 40)
    b = random(6, dtype=torch.float16, seed=2)
    want = x.double() @ dequantize(weight).double().t() + b
    torch.testing.assert_close(quantized_linear(x, weight, b).double(), want, rtol=2e-3, atol=5e-3)
    got = quantized_gated_linear(x, weight, b, "silu")
    torch.testing.assert_close(got.double(), gated(want, "silu"), rtol=4e-3, atol=5e-3)
    assert used == [QUANTIZATIONS[kind]] * 2


@pytest.mark.parametrize("size", [1, 70, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_in_fp8(size, dtype):
    x = random(4, size + 3, dtype=dtype, scale=5.0)[:, :size]
    x[2] = 0
    values, scale = quantize_rows.quantize_rows(x)
    wide = x.double()
    torch.testing.assert_close(scale[:, 0].double(), wide.abs().amax(1) / 448, rtol=1e-5, atol=1e-30)
    # The interpreter cuts off where a GPU rounds to nearest, and loses what rounding carries into the exponent.
    step = 2**-3 if DEVICE == "cpu" else 2**-4
    off = (values.double() * scale - wide).abs()
    carried = torch.frexp((wide / scale).to(values.dtype).double())[1] != torch.frexp(wide / scale)[1]
    right = off <= wide.abs() * step * 1.01 + scale.double() * 2**-9
    assert (right | (carried & (DEVICE == "cpu"))).all()


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(list(QUANTIZATIONS)),
    tokens=st.sampled_from([1, 3, 40]),
    inner=st.integers(1, 40),
    hidden=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_experts(kind, tokens, inner, hidden, seed):
    """Grouped products with rounded experts."""
    x = random(tokens, hidden, dtype=torch.float16, seed=seed)
    gate_up, down = (
        quantize(random(5, *shape, seed=seed + 1, scale=shape[1] ** -0.5), kind)
        for shape in ((2 * inner, hidden), (hidden, inner))
    )
    scores = torch.rand(tokens, 5, generator=torch.Generator().manual_seed(seed))
    mixing, chosen = (each.to(DEVICE) for each in scores.topk(2, -1))
    wide = dequantize(gate_up, torch.float64), dequantize(down, torch.float64)
    want = mix_experts_reference(x.double(), mixing.double(), chosen, *wide, "silu")
    scales = gate_up.scale, down.scale
    got = moe.mix(x, mixing, chosen, gate_up.values, down.values, "silu", None, scales)
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        mix_experts(x, mixing, chosen, gate_up, down, "silu").double(), want, rtol=2e-2, atol=5e-2
    )


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("rows", [1, 7, 40, 64, 65, 500])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_a_gpu(kind, rows, dtype):
    """Whichever way is chosen; inputs in fp8 too cost some percent."""
    x, weight = random(rows, 512, dtype=dtype), weight_of(kind, 256, 512)
    b, base = random(256, dtype=dtype, seed=2), random(rows, 256, dtype=dtype, seed=3)
    want = x.double() @ dequantize(weight).double().t() + b.double() + base.double()
    got = quantized_linear(x, weight, b, base.clone())
    assert got.dtype == dtype and (got.double() - want).norm() / want.norm() < (0.04 if kind == "fp8" else 0.01)
