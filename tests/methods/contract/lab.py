"""Short runs of the ordinary training loop, watched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from headstart.models.decoder import Decoder
from headstart.training.data.mixture import InOrder
from headstart.training.data.packing import PackedBatch, Packer, collate
from headstart.training.distributed import World
from headstart.training.documents import Document
from headstart.training.flops import training_flops
from headstart.training.language_model import LanguageModel
from headstart.training.loop import Trainer
from headstart.training.recipe import Recipe, recipe_of
from headstart.training.run import Run, RunOptions
from headstart.training.seams import Callback
from tests.methods.contract.examples import Example
from tests.training.workbench import FIRST, phase, recipe

STEPS = 6
PROBE = torch.arange(5, 45)
"""Token ids whose logits are looked at."""


def recipe_for(example: Example, *, use: bool = True, steps: int = STEPS) -> Recipe:
    """A run of one phase, with the method or without."""
    keys: dict[str, Any] = {"sequence_length": 64, "global_batch_tokens": 256, "tokens": 256 * steps}
    keys |= {**FIRST, **example.phase, "use": [example.use] if use else []}
    return recipe_of(recipe(phase(**keys), log_every=1, compile=False), example.use)


def logits(network: Decoder, ids: Tensor = PROBE) -> Tensor:
    """`[T, V]` for one document of these ids."""
    document = Document(ids.numpy().astype(np.int32), None, "probe")
    row = next(Packer(InOrder("probe", [document]), len(ids) + 1, keep_last=True))
    with torch.no_grad():
        return network.logits(LanguageModel(network).hidden(collate([row])))


@dataclass
class Watch(Callback):
    """Notes what a run does; `stop_at` asks it to end after that step.

    Attributes:
        first: every parameter and buffer before the first step; `first_logits` those of the probe.
        trained: how many weights are trained.
        flops: of each step, as the core counts them.
    """

    stop_at: int | None = None
    first: dict[str, Tensor] = field(default_factory=dict)
    first_logits: Tensor | None = None
    trained: int = 0
    flops: list[float] = field(default_factory=list)

    def on_start(self, trainer: Trainer) -> None:
        network: Any = trainer.model.network
        if not self.first:
            self.first, self.first_logits = copies(network.state_dict()), logits(network)
            self.trained = sum(p.numel() for p in network.parameters() if p.requires_grad)

    def on_batch(self, trainer: Trainer, batch: PackedBatch) -> None:
        self.flops.append(training_flops(trainer.model.network, batch.lengths))

    def on_step(self, trainer: Trainer) -> None:
        trainer.stop_requested |= self.stop_at == trainer.step


def copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict that later steps leave alone."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def watched(made: Recipe, data: Path, out: Path, stop_at: int | None = None) -> tuple[Run, Watch]:
    """A run that was not started yet, and what watches it after all methods."""
    out.mkdir(parents=True, exist_ok=True)
    options = RunOptions(out, data, "cpu", console=Console(quiet=True), export_dtype=torch.float32)
    run, watch = Run(made, options, World(0, 1, torch.device("cpu"), None)), Watch(stop_at)
    run.stacks[0].methods.append(watch)
    return run, watch


def optimizer_state(run: Run) -> list[Any]:
    """Every value in the state of a run's optimizers."""
    return [value for each in run.optimizers for state in each.state.values() for value in state.values()]
