"""The kernel that norms and rotates heads against the plain ops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops.kernels import rotary as kernel
from headstart.ops.rotary import HeadNorms, rotary_rows, rotate_heads
from tests.ops.kernels.devices import random


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 3),
    heads=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    half=st.integers(1, 20),
    rest=st.sampled_from([0, 0, 1, 6]),
    style=st.sampled_from([None, (False, False), (False, True), (True, False)]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    float32_rows=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_plain_ops(tokens, heads, kv_heads, half, rest, style, dtype, float32_rows, seed):
    """In place on the first heads of a fused projection, whose other heads and columns are not touched."""
    size = 2 * half + rest
    whole = random(tokens, heads + 2 * kv_heads, size, dtype=dtype, seed=seed)
    before = whole.clone()
    angles = random(tokens, half, seed=seed + 1, scale=10.0)
    rows = rotary_rows(angles.cos(), angles.sin(), torch.float32 if float32_rows else dtype)
    norms = None
    if style is not None:
        scales = (random(size, dtype=dtype, seed=seed + at) for at in (2, 3))
        norms = HeadNorms(*scales, 1e-5, *style)
    turned = whole[:, : heads + kv_heads]
    expected = rotate_heads(turned.cpu(), heads, _to_cpu(rows), _to_cpu(norms))
    kernel.rotate_heads_(turned, heads, rows, norms)
    # A sum of two products that cancel keeps their absolute errors.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(turned.cpu(), expected, rtol=4 * unit, atol=16 * unit)
    assert torch.equal(whole[:, heads + kv_heads :], before[:, heads + kv_heads :])
    if norms is None:
        assert torch.equal(turned[..., 2 * half :], before[:, : heads + kv_heads, 2 * half :])


def _to_cpu(values):
    return values and type(values)(*(v.cpu() if isinstance(v, torch.Tensor) else v for v in values))
