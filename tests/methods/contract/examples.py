"""How the contract suite builds each training method, and what the method declares; most need no entry here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from headstart.models.decoder import Decoder

Declared = Callable[[Decoder], float]
"""A formula of the method's card, as a function of the plain network."""


@dataclass(frozen=True)
class Example:
    """A method as the suite runs it, and what it says of itself.

    Attributes:
        use: as `--use` takes it.
        changed: what its transform does to the logits `[T, V]` before any step: (before, after) → whether that is the
            declared change. None declares that nothing changes.
        moves: the parameters that training may move, by pattern, under their names while the method is on.
        phase: keys of the phase, over the suite's.
        trained_parameters, optimizer_bytes, flops_per_step: formulas; None declares nothing.
    """

    use: str
    changed: Callable[[torch.Tensor, torch.Tensor], bool] | None = None
    moves: tuple[str, ...] = ("*",)
    phase: Mapping[str, Any] = field(default_factory=dict)
    trained_parameters: Declared | None = None
    optimizer_bytes: Declared | None = None
    flops_per_step: Declared | None = None


def plain_parameters(network: Decoder) -> float:
    """All of the network's."""
    return sum(parameter.numel() for parameter in network.parameters())


def adam_bytes(network: Decoder) -> float:
    """Two float32 moments of every parameter, and a step for each tensor."""
    return sum(8 * parameter.numel() + 4 for parameter in network.parameters())


EXAMPLES = {
    "meco": Example(
        "meco",
        phase={"packing": "complete"},
        trained_parameters=plain_parameters,
        optimizer_bytes=adam_bytes,
    ),
}
"""By key. A method without an entry is built from its defaults and declares nothing beyond the contracts."""


def example_of(key: str) -> Example:
    """The example of a registered method."""
    return EXAMPLES.get(key, Example(key))
