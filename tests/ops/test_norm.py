"""RMS norm against its definition, and bit for bit against the rounding order of Transformers' modules."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from headstart.ops.norm import rms_norm, rms_norm_reference

STYLES = {"early": {}, "late": {"late_rounding": True}, "offset": {"offset": True}}
MODULES = {"early": LlamaRMSNorm, "late": Olmo2RMSNorm, "offset": Gemma3RMSNorm}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    heads=st.integers(1, 3),
    size=st.integers(1, 130),
    style=st.sampled_from(sorted(STYLES)),
    scale=st.sampled_from([1e-4, 1.0, 300.0]),
    seed=st.integers(0, 1000),
)
def test_equals_its_definition(rows: int, heads: int, size: int, style: str, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # A strided view, as heads of a fused projection are.
    x = (torch.randn(rows, heads + 2, size, generator=generator) * scale)[:, 1:-1]
    weight = torch.randn(size, generator=generator)
    got = rms_norm(x, weight, 1e-6, **STYLES[style])
    torch.testing.assert_close(got, rms_norm_reference(x, weight, 1e-6, **STYLES[style]), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_as_transformers_does(style: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 96).to(dtype), torch.randn(96).to(dtype)
    module = MODULES[style](96, eps=1e-5).to(dtype)
    with torch.no_grad():
        module.weight.copy_(weight)
        expected = module(x)
    got = rms_norm(x, weight, 1e-5, **STYLES[style])
    assert got.dtype == dtype
    # The float32 sums may differ in their last bit, which now and then crosses a rounding boundary.
    assert (got == expected).float().mean() > 0.99
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("style", STYLES)
def test_gradients_equal_those_of_the_definition(style: str) -> None:
    torch.manual_seed(0)
    gradients = []
    for function in (rms_norm, rms_norm_reference):
        x = torch.arange(-10.0, 14.0).view(4, 6).requires_grad_()
        weight = torch.linspace(-1, 1, 6).requires_grad_()
        function(x, weight, 1e-6, **STYLES[style]).square().sum().backward()
        gradients.append((x.grad, weight.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
