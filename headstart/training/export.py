"""From a run, finished or not, to a Hugging Face directory that any program loads."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from headstart.checkpoints.writer import save_checkpoint
from headstart.models.decoder import Decoder
from headstart.training.assembly import build_network
from headstart.training.checkpoint_store import CheckpointStore
from headstart.training.distributed import ONE_PROCESS
from headstart.training.errors import TrainingError
from headstart.training.language_model import LanguageModel
from headstart.training.recipe import read_recipe
from headstart.training.seams import Transform
from headstart.training.stack import TrainingStack

MAX_SHARD_BYTES = 15 << 20
"""Exported weights are cut into files below 16 MiB, small enough for any repository."""


def export_run(directory: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> int:
    """Export a checkpoint of a run, however many ranks wrote it.

    Args:
        directory: of the run, for its newest checkpoint, or of one of its checkpoints.
        out: what is written; replaced if it is there.
        dtype: of the weights.

    Returns:
        The step that was exported.

    Raises:
        TrainingError: the directory is none of a run, or has no checkpoint that can be read.
        CheckpointError: `out` cannot be written.
    """
    run, step = _find(directory)
    recipe = read_recipe(run / "recipe.yaml")
    store = CheckpointStore(run / "checkpoints", ONE_PROCESS)
    phase = store.facts(step)["phase"]
    names = [each.name for each in recipe.phases]
    stacks = [TrainingStack(each.use) for each in recipe.phases[: names.index(phase) + 1]]
    network = build_network(recipe.model, recipe.seed, run)
    for stack in stacks:
        for transform in stack.of(Transform):
            transform.apply_(network)
    store.load_model(step, LanguageModel(network))
    fold_and_save(network, stacks, out, dtype, Path(recipe.tokenizer or ""))
    return step


def fold_and_save(
    network: Decoder, stacks: Sequence[TrainingStack], directory: Path, dtype: torch.dtype, tokenizer: Path
) -> None:
    """Fold the transforms of these phases into plain weights, the last one first, and write the network.

    Args:
        network: changed in place.
        stacks: the phases' methods, whose transforms are on.
        directory: what is written; replaced if it is there.
        dtype: of the weights.
        tokenizer: the directory whose tokenizer goes with them.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    for stack in reversed(stacks):
        for transform in reversed(stack.of(Transform)):
            transform.fold(network)
    save_checkpoint(
        network.to(dtype), directory, tokenizer_from=tokenizer, max_shard_bytes=MAX_SHARD_BYTES, overwrite=True
    )


def _find(directory: Path) -> tuple[Path, int]:
    """The run that a directory is of, and the step that is meant."""
    directory = directory.absolute()
    named = re.fullmatch(r"step-(\d+)", directory.name)
    run = directory.parent.parent if named else directory
    if not (run / "recipe.yaml").is_file():
        raise TrainingError(f"{directory} is neither a run's directory, with a recipe.yaml, nor one of its checkpoints")
    steps = CheckpointStore(run / "checkpoints", ONE_PROCESS).steps()
    wanted = int(named[1]) if named else max(steps, default=0)
    if wanted not in steps:
        has = f"it has those of the steps {', '.join(map(str, steps))}" if steps else "it has none yet"
        raise TrainingError(f"the run in {run} has no checkpoint{f' of step {wanted}' if named else ''}; {has}")
    return run, wanted
