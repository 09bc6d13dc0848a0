"""How the contract suite builds each training method, and what the method declares; most need no entry here."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from headstart.checkpoints.random_init import random_checkpoint
from headstart.checkpoints.writer import save_checkpoint
from headstart.models.decoder import Decoder
from tests.training.workbench import CONFIG

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
        no_export: why other programs compute something else from the export; empty where they must not.
        trained_parameters, optimizer_bytes, flops_per_step: formulas; None declares nothing.
    """

    use: str
    changed: Callable[[torch.Tensor, torch.Tensor], bool] | None = None
    moves: tuple[str, ...] = ("*",)
    phase: Mapping[str, Any] = field(default_factory=dict)
    no_export: str = ""
    trained_parameters: Declared | None = None
    optimizer_bytes: Declared | None = None
    flops_per_step: Declared | None = None


def plain_parameters(network: Decoder) -> float:
    """All of the network's."""
    return sum(parameter.numel() for parameter in network.parameters())


def adam_bytes(network: Decoder) -> float:
    """Two float32 moments of every parameter, and a step for each tensor."""
    return sum(8 * parameter.numel() + 4 for parameter in network.parameters())


def later_projections(network: Decoder) -> float:
    """Queries, keys and values of the second of two layers."""
    return network.layers[1].attention.qkv.weight.numel()  # type: ignore[union-attr]


_FILES = tempfile.TemporaryDirectory(prefix="contract-")


def teacher() -> str:
    """A directory with a network of the suite's vocabulary, other weights, and another width."""
    directory = Path(_FILES.name) / "teacher"
    made = random_checkpoint(CONFIG | {"hidden_size": 48, "initializer_range": 0.3}, dtype="float32", seed=1)
    save_checkpoint(made, directory)
    return str(directory)


EXAMPLES = {
    "distillation": Example(f"distillation:teacher={teacher()}"),
    "longgen-convert": Example(
        "longgen-convert:block=16,sink=1,local=1,stride=0,full=1",
        changed=lambda before, after: bool(
            (before[:16] - after[:16]).abs().max() < 1e-5 < (before - after).abs().max()
        ),
        no_export="its layers outside of the middle see a part of the context; only its own method reads it so",
        trained_parameters=plain_parameters,
    ),
    "meco": Example(
        "meco",
        phase={"packing": "complete"},
        trained_parameters=plain_parameters,
        optimizer_bytes=adam_bytes,
    ),
    "swiftkv-distil": Example(
        "swiftkv-distil",
        moves=("layers.1.attention.query.weight", "layers.1.attention.key_value.weight"),
        no_export="its later layers take keys and values from where prompts leave; only its own method reads it so",
        trained_parameters=later_projections,
    ),
}
"""By key. A method without an entry is built from its defaults and declares nothing beyond the contracts."""


def example_of(key: str) -> Example:
    """The example of a registered method."""
    return EXAMPLES.get(key, Example(key))
