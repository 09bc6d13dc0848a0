"""The kernel of residual sum and norm against the plain ops, in every style, placement and dtype."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops.kernels import norm as kernel
from headstart.ops.norm import rms_norm_reference
from tests.ops.kernels.devices import assert_rounded_alike, random

STYLES = [
    {"offset": False, "late_rounding": False},
    {"offset": False, "late_rounding": True},
    {"offset": True, "late_rounding": False},
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(0, 4),
    size=st.integers(1, 300),
    style=st.sampled_from(STYLES),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_norm_alone(rows: int, size: int, style: dict[str, bool], dtype: torch.dtype, seed: int) -> None:
    """Of rows of a wider table, as heads of a fused projection are."""
    x = random(rows, 2, size + 3, dtype=dtype, seed=seed)[:, 1:, :size]
    weight = random(size, dtype=dtype, seed=seed + 1)
    assert_rounded_alike(kernel.rms_norm(x, weight, 1e-5, **style), rms_norm_reference(x, weight, 1e-5, **style))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("placement", ["pre", "post", "both"])
def test_sum_and_norm(style: dict[str, bool], dtype: torch.dtype, placement: str) -> None:
    size = 97
    x, branch = random(3, size + 2, dtype=dtype)[:, :size], random(3, size, dtype=dtype, seed=1)
    after = random(size, dtype=dtype, seed=2) if placement != "pre" else None
    before = random(size, dtype=dtype, seed=3) if placement != "post" else None
    kept = x.clone(), branch.clone()
    total, normed = kernel.add_rms_norm(x, branch, after, before, 1e-5, **style)
    assert torch.equal(x, kept[0]) and torch.equal(branch, kept[1])
    added = branch if after is None else rms_norm_reference(branch, after, 1e-5, **style)
    assert_rounded_alike(total, x + added)
    # What follows is of the sum as it was rounded.
    assert_rounded_alike(normed, total if before is None else rms_norm_reference(total, before, 1e-5, **style))
