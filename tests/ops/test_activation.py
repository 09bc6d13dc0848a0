"""Gated activations against Transformers' table."""

import pytest
import torch
from transformers.activations import ACT2FN

from headstart.ops.activation import ACTIVATIONS, gated


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 2), (5, 14), (2, 3, 8)])
def test_equals_transformers(name: str, shape: tuple[int, ...]) -> None:
    gate_up = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    gate, up = gate_up.chunk(2, -1)
    torch.testing.assert_close(gated(gate_up, name), ACT2FN[name](gate) * up, rtol=1e-5, atol=1e-6)
