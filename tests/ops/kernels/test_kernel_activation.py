"""The kernel of gated activations against the plain op."""

import pytest
import torch

from headstart.ops.activation import ACTIVATIONS, gated
from headstart.ops.kernels import activation as kernel
from tests.ops.kernels.devices import random

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "size"), [(0, 4), (1, 1), (3, 37), (2, 1500)])
def test_equals_the_plain_op(name: str, dtype: torch.dtype, rows: int, size: int) -> None:
    gate_up = random(rows, 2 * size + 5, dtype=dtype, scale=3.0)[:, : 2 * size]
    expected = gated(gate_up.cpu(), name)
    got = kernel.gated(gate_up, name)
    assert got.dtype == dtype
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(got.cpu(), expected, rtol=4 * unit, atol=2e-6)
