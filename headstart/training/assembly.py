"""From a recipe to the objects that the loop runs: network, optimizers, schedules, compiled and sharded."""

import copy
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper

from headstart.checkpoints.default import embedded_checkpoints
from headstart.checkpoints.reader import load_checkpoint
from headstart.errors import did_you_mean
from headstart.models.config import ModelConfig
from headstart.models.decoder import Decoder
from headstart.training.errors import TrainingError
from headstart.training.initialise import initialise_
from headstart.training.optimizers import AdamW, Muon
from headstart.training.random_streams import torch_stream
from headstart.training.recipe import ModelRecipe, Named
from headstart.training.schedules import Constant, Cosine, WarmupStableDecay
from headstart.training.seams import OptimizerFactory, Schedule
from headstart.training.select import Anatomy

OPTIMIZERS: dict[str, type[OptimizerFactory]] = {"adamw": AdamW, "muon": Muon}
SCHEDULES: dict[str, type[Schedule]] = {"wsd": WarmupStableDecay, "cosine": Cosine, "constant": Constant}

T = TypeVar("T")


def build_network(recipe: ModelRecipe, seed: int, base: Path) -> Decoder:
    """The network in float32 on the CPU, every weight trained.

    Raises:
        CheckpointError: the config or checkpoint is not supported.
    """
    if recipe.checkpoint is not None:
        path = recipe.checkpoint if recipe.checkpoint in embedded_checkpoints() else str(base / recipe.checkpoint)
        decoder = load_checkpoint(path, dtype="float32", skip_tokenizer_init=True).decoder
    else:
        assert recipe.config is not None
        decoder = Decoder(ModelConfig.from_hf(recipe.config, "the recipe's model.config"))
        initialise_(decoder, torch_stream(seed, "init"), embedding_std=recipe.embedding_std)
    for parameter in decoder.parameters():
        # Inference lays some weights out transposed; sharding and optimizers want plain memory.
        parameter.data = parameter.data.contiguous()
    return decoder.requires_grad_()


def build_named(kinds: dict[str, type[T]], what: str, named: Named) -> T:
    """An optimizer or schedule by its name in a recipe.

    Raises:
        TrainingError: an unknown name or argument (the nearest is named), or a bad value.
    """
    if named.name not in kinds:
        known = ", ".join(kinds)
        raise TrainingError(f"there is no {what} {named.name!r}{did_you_mean(named.name, kinds)}; there are: {known}")
    kind = kinds[named.name]
    fields = list(getattr(kind, "__dataclass_fields__", {}))
    for argument in named.arguments:
        if argument not in fields:
            hint = did_you_mean(argument, fields) or f"; it has: {', '.join(fields)}"
            raise TrainingError(f"{what} {named.name} has no argument {argument!r}{hint}")
    try:
        return TypeAdapter(kind).validate_python(named.arguments)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise TrainingError(f"{what} {named.name}: {where}{first['msg'].removeprefix('Value error, ')}") from None


def checkpoint_activations_(network: nn.Module) -> None:
    """Recompute every block in the backward pass instead of keeping what it computed."""
    for name in Anatomy.of(network).blocks:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, checkpoint_wrapper(network.get_submodule(name)))


def plain_copy(network: Decoder) -> Decoder:
    """A copy on the CPU without what `checkpoint_activations_` put around the blocks."""
    copied = copy.deepcopy(network).to("cpu")
    for name in Anatomy.of(copied).blocks:
        block = copied.get_submodule(name)
        if isinstance(block, CheckpointWrapper):
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, block._checkpoint_wrapped_module)
    return copied


def compile_(network: nn.Module) -> None:
    """Compile every block for the shapes it meets; equal blocks share their code."""
    config: Any = torch._dynamo.config
    # One entry for each length of row, with and without gradients.
    config.recompile_limit = max(config.recompile_limit, 64)
    for name in Anatomy.of(network).blocks:
        network.get_submodule(name).compile(dynamic=False)
