"""What a run would take, and whether it works at all: two steps of every phase in a scratch directory."""

import dataclasses
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from headstart.training.data.shards import ShardSource
from headstart.training.distributed import world
from headstart.training.flops import training_flops
from headstart.training.metrics import read_metrics
from headstart.training.optimizers import parameter_groups
from headstart.training.recipe import PhaseRecipe, Recipe
from headstart.training.run import Run, RunOptions
from headstart.training.select import Select

_STEPS = 2


@dataclass(frozen=True)
class PhaseCosts:
    """What a phase takes.

    Attributes:
        name: of the phase.
        steps, tokens: in all.
        flops: of forward and backward passes if every row were one document, so at most.
        epochs: how often each source is read.
        loss: of the second step.
        tokens_per_second: of the second step.
    """

    name: str
    steps: int
    tokens: int
    flops: float
    epochs: dict[str, float]
    loss: float
    tokens_per_second: float


@dataclass(frozen=True)
class DryRun:
    """What a run takes.

    Attributes:
        parameters, trained: numbers of weights.
        weight_bytes, gradient_bytes, optimizer_bytes: on each of as many ranks as ran; the optimizer's as it is after
            two steps.
        peak_bytes: the most that the GPU held at once; None on a CPU.
        selected: what each group of the optimizer, and each selector of a method, matches: shapes of names with how
            many there are.
        phases: in order.
    """

    parameters: int
    trained: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_bytes: int | None
    selected: dict[str, dict[str, int]]
    phases: tuple[PhaseCosts, ...]


def dry_run(recipe: Recipe, options: RunOptions) -> DryRun:
    """Carry out two steps of every phase, and count. `options.out` is neither read nor written.

    Raises:
        TrainingError, CheckpointError, MethodError: one sentence on what is wrong.
    """
    short = recipe.model_copy(update={"phases": tuple(map(_shortened, recipe.phases)), "log_every": 1})
    with tempfile.TemporaryDirectory() as scratch, world(options.device) as where:
        quiet = dataclasses.replace(options, out=Path(scratch), tensorboard=False, console=Console(quiet=True))
        run = Run(short, quiet, where)
        selected = _selected(run)
        run.execute()
        # The last of the two steps of each phase; the first one compiles.
        seconds = {line["phase"]: line for line in read_metrics(Path(scratch) / "metrics.jsonl") if "loss" in line}
        parameters = list(run.network.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        return DryRun(
            parameters=sum(parameter.numel() for parameter in parameters),
            trained=sum(parameter.numel() for parameter in trained),
            weight_bytes=_local_bytes(parameters),
            gradient_bytes=_local_bytes(trained),
            optimizer_bytes=_local_bytes(
                value
                for optimizer in run.optimizers
                for state in optimizer.state.values()
                for value in state.values()
                if isinstance(value, torch.Tensor)
            ),
            peak_bytes=torch.cuda.max_memory_allocated() if where.device.type == "cuda" else None,
            selected=selected,
            phases=tuple(_costs(phase, run, seconds.get(phase.name, {})) for phase in recipe.phases),
        )


def _shortened(phase: PhaseRecipe) -> PhaseRecipe:
    held_out = phase.eval and phase.eval.model_copy(update={"tokens": phase.sequence_length})
    return phase.model_copy(update={"tokens": _STEPS * phase.global_batch_tokens, "eval": held_out})


def _costs(phase: PhaseRecipe, run: Run, second: dict[str, float]) -> PhaseCosts:
    tokens = phase.steps * phase.global_batch_tokens
    total = sum(source.weight for source in phase.sources.values())
    held = {name: ShardSource(run.options.base / source.path).tokens for name, source in phase.sources.items()}
    return PhaseCosts(
        name=phase.name,
        steps=phase.steps,
        tokens=tokens,
        flops=phase.steps * phase.rows * training_flops(run.network, [phase.sequence_length]),
        epochs={name: tokens * s.weight / total / held[name] for name, s in phase.sources.items()},
        loss=second.get("loss", float("nan")),
        tokens_per_second=second.get("tokens_per_second", float("nan")),
    )


def _selected(run: Run) -> dict[str, dict[str, int]]:
    """By group or selector, the shapes of the names that it matches."""
    names = {parameter: name for name, parameter in run.network.named_parameters()}
    groups = parameter_groups(run.network)
    found = {group: _shapes(names[parameter] for parameter in members) for group, members in groups.items()}
    known = [*names.values(), *(name for name, _ in run.network.named_modules())]
    for stack in run.stacks:
        for method in stack.methods:
            for option, value in vars(method).items():
                if isinstance(value, Select):
                    found[f"{method.card.key}:{option}"] = _shapes(value.names(known))
    return found


def _shapes(names: Iterable[str]) -> dict[str, int]:
    """Names with every number replaced by a star, and how many there are of each."""
    return dict(Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))


def _local_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that this rank holds of tensors which may be shared out."""
    return sum(getattr(tensor, "_local_tensor", tensor).nbytes for tensor in tensors)
