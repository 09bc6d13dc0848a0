"""The gated activations of feed-forward layers, by their names in Hugging Face configs."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from headstart.ops import kernels

_gelu_tanh = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "relu": F.relu,
}


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """`gate_up [..., 2 I]`, the gate first → `activation(gate) * up [..., I]`."""
    if gate_up.dim() == 2 and gate_up.stride(1) == 1 and kernels.run_on(gate_up):
        from headstart.ops.kernels import activation as fused

        return fused.gated(gate_up, activation)
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS[activation](gate) * up
