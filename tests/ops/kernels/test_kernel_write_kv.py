"""The kernel that writes keys and values into pages against the plain path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops.kernels import write_kv as kernel
from headstart.ops.write_kv import write_kv
from tests.ops.kernels.devices import DEVICE, assert_rounded_alike, random

FP8 = torch.float8_e4m3fn


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(0, 6),
    kv_heads=st.integers(1, 5),
    head_dim=st.integers(1, 20),
    dtypes=st.sampled_from([(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, FP8)]),
    together=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_plain_path(tokens, kv_heads, head_dim, dtypes, together, seed):
    """From strided heads into pages that may lie beside one another; a row without a slot goes nowhere."""
    dtype, page_dtype = dtypes
    heads = random(tokens, 2 + 2 * kv_heads, head_dim, dtype=dtype, seed=seed, scale=100.0)
    k, v = heads[:, 2 : 2 + kv_heads], heads[:, 2 + kv_heads :]
    slots = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:tokens].to(DEVICE)
    if tokens > 1:
        slots[-1] = -1
    if together:
        got = torch.zeros(4, 3, 2, kv_heads, head_dim, device=DEVICE).to(page_dtype).unbind(2)
    else:
        got = torch.zeros(2, 4, 3, kv_heads, head_dim, device=DEVICE).to(page_dtype).unbind(0)
    expected = torch.zeros(2, 4, 3, kv_heads, head_dim).to(page_dtype).unbind(0)
    fp8 = page_dtype == FP8
    scales = (0.25, 0.5) if fp8 else (1.0, 1.0)
    kernel.write_kv(*got, k, v, slots, *scales, torch.finfo(FP8).max if fp8 else 0.0)
    kept = slots.cpu() >= 0
    k, v = k.cpu()[kept], v.cpu()[kept]
    write_kv(*expected, k, v, slots.cpu()[kept], k_scale=scales[0], v_scale=scales[1])
    for ours, plain in zip(got, expected, strict=True):
        assert_rounded_alike(ours.contiguous(), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
def test_the_plain_path_by_hand(dtype):
    """Rounded to the pages' dtype; what is too large for eight bits becomes their largest number."""
    pages = torch.zeros(2, 2, 2, 1, 1).to(dtype).unbind(0)
    k, v = torch.tensor([[[1.0]], [[-1e4]]]), torch.tensor([[[2.0]], [[3.0]]])
    write_kv(*pages, k, v, torch.tensor([3, 0]), k_scale=2.0, v_scale=2.0)
    expected = [-448.0, 0, 0, 0.5, 1.5, 0, 0, 1.0] if dtype == FP8 else [-9984.0, 0, 0, 1.0, 3.0, 0, 0, 2.0]
    assert torch.cat(pages).float().flatten().tolist() == expected
