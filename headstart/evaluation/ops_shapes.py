"""What cases of the benchmark of single ops are, and the sizes that they are made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.evaluation.shape import LlamaShape
from headstart.ops.activation import ACTIVATIONS
from headstart.ops.linear import empty_weight

OURS, PLAIN = "headstart", "torch"


@dataclass(frozen=True)
class OpCase:
    """One op at one shape.

    Attributes:
        op: its name.
        shape: what it is given, in words.
        make: new random inputs, tensors all.
        sides: who computes it from them → a tensor; an input may be written over. The first is this project's op.
        reference: what is right, from copies of the inputs whose numbers are float64.
        flops, bytes: what it costs at least.
        waits: the sides that make the host wait for the device.
    """

    op: str
    shape: str
    make: Callable[[], tuple[Tensor, ...]]
    sides: dict[str, Callable[..., Tensor]]
    reference: Callable[..., Tensor]
    flops: float
    bytes: float
    waits: frozenset[str] = frozenset()


@dataclass(frozen=True)
class OpShapes:
    """The sizes that cases are made of.

    Attributes:
        model: of the layer.
        decode, prefill: numbers of rows.
        dtype, device: of weights and activations.
        sweep: every tiling of a kernel is a side of its own.
    """

    model: LlamaShape
    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    sweep: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """Of decode and of prefill."""
        return tuple(dict.fromkeys((*self.decode, *self.prefill)))

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers."""
        return (torch.randn(shape, device=self.device) * scale).to(self.dtype)

    def weight(self, out_features: int, in_features: int) -> Tensor:
        """`[out, in]` as a model holds it, with outputs of the size of inputs."""
        weight = empty_weight(out_features, in_features, self.dtype, self.device)
        return weight.copy_(torch.randn(weight.shape, device=self.device) * in_features**-0.5)


Source = Callable[[OpShapes], Iterator[OpCase]]
"""From the sizes to cases."""


def plain_gated(gate_up: Tensor) -> Tensor:
    """SwiGLU by itself, in PyTorch's own ops: `[..., 2 I]`, the gate first → `[..., I]`."""
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS["silu"](gate) * up
