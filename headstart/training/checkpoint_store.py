"""The checkpoints of a run: whole or not there, the newest few kept, each all that an exact resume needs."""

import io
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from headstart.training.distributed import World
from headstart.training.errors import TrainingError


class CheckpointStore:
    """Checkpoints in `directory/step-NNNNNNNN`.

    Weights and optimizer state go through PyTorch's distributed checkpoint, so that another number of ranks can load
    them; what belongs to one rank (random states, the place in the data) lies beside them.

    Args:
        directory: where they lie.
        world: the processes of the run.
        keep: how many of the newest are kept.
    """

    def __init__(self, directory: Path, world: World, keep: int = 2) -> None:
        self.directory = directory
        self.world = world
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that can be resumed from, in order."""
        names = (path.name for path in self.directory.glob("step-*") if path.is_dir())
        return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d+)", name)))

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        state: dict[str, Any],
        facts: dict[str, Any],
    ) -> None:
        """Write a checkpoint beside its place, then rename it there.

        Args:
            step: of the whole run.
            model: its parameters and buffers.
            optimizers: their state.
            state: of this rank, in plain values, arrays and tensors.
            facts: of the run, in plain values, for `facts`; the number of ranks is added.

        Raises:
            TrainingError: it cannot be written; the one before it is still whole.
        """
        target = self._path(step)
        beside = self.directory / f".{target.name}.partial"
        try:
            if self.world.leads:
                # A process that was killed while it wrote leaves its attempt behind.
                for partial in self.directory.glob(".step-*.partial"):
                    shutil.rmtree(partial)
                beside.mkdir(parents=True)
            self.world.barrier()
            weights, moments = get_state_dict(model, optimizers)
            with _one_process_is_meant():
                state_dict_saver.save(
                    {"model": weights, "optimizers": moments}, checkpoint_id=beside, no_dist=self.world.mesh is None
                )
            # In memory first: PyTorch's own writer does not say why a disk takes no more.
            content = io.BytesIO()
            torch.save(_arrays_as_tensors(state), content)
            (beside / _rank_file(self.world.rank)).write_bytes(content.getbuffer())
            if self.world.leads:
                (beside / "facts.json").write_text(json.dumps({**facts, "ranks": self.world.size}, indent=2) + "\n")
            self.world.barrier()
            if self.world.leads:
                shutil.rmtree(target, ignore_errors=True)
                beside.rename(target)
                for old in self.steps()[: -self.keep]:
                    shutil.rmtree(self._path(old), ignore_errors=True)
            self.world.barrier()
        except (OSError, CheckpointException) as error:
            shutil.rmtree(beside, ignore_errors=True)
            whole = self.steps()
            before = f"the checkpoint of step {whole[-1]} is whole" if whole else "there is no earlier one"
            raise TrainingError(
                f"the checkpoint of step {step} cannot be written to {self.directory}: {_reason(error)}; {before}"
            ) from error

    def facts(self, step: int) -> dict[str, Any]:
        """What `save` was told of the run, and `ranks`, how many processes wrote it.

        Raises:
            TrainingError: the file is missing or broken.
        """
        path = self._path(step) / "facts.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise TrainingError(f"the checkpoint file {path} cannot be read: {error}; delete that checkpoint") from None

    def load(self, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
        """Fill model and optimizers, and give this rank's state; that of rank 0 where other ranks wrote it.

        Raises:
            TrainingError: the checkpoint is broken, or of another model.
        """
        path = self._path(step)
        same_ranks = self.facts(step)["ranks"] == self.world.size
        try:
            weights, moments = get_state_dict(model, optimizers)
            parts = {"model": weights, "optimizers": moments}
            self._read(parts, path)
            set_state_dict(
                model,
                optimizers,
                model_state_dict=parts["model"],
                optim_state_dict=parts["optimizers"],
                options=StateDictOptions(strict=True),
            )
            return torch.load(path / _rank_file(self.world.rank if same_ranks else 0), weights_only=True)
        except (Exception, CheckpointException) as error:
            raise TrainingError(
                f"the checkpoint {path} cannot be resumed: {_reason(error)}; delete it to go on from the one before"
            ) from error

    def load_model(self, step: int, model: nn.Module) -> None:
        """Fill the model alone.

        Raises:
            TrainingError: the checkpoint is broken, or of another model.
        """
        path = self._path(step)
        try:
            weights = get_model_state_dict(model)
            self._read({"model": weights}, path)
            set_model_state_dict(model, weights, options=StateDictOptions(strict=True))
        except (Exception, CheckpointException) as error:
            raise TrainingError(f"the checkpoint {path} cannot be read: {_reason(error)}") from error

    def _read(self, parts: dict[str, Any], path: Path) -> None:
        """Fill state dicts in place."""
        reader = FileSystemReader(path)
        # PyTorch logs a trace where this fails later on.
        reader.read_metadata()
        with _one_process_is_meant():
            state_dict_loader.load(parts, storage_reader=reader, no_dist=self.world.mesh is None)

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"


def _rank_file(rank: int) -> str:
    return f"rank-{rank}.pt"


def _arrays_as_tensors(state: Any) -> Any:
    """NumPy arrays as tensors, which are read back without unpickling anything else."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, Mapping):
        return {key: _arrays_as_tensors(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_arrays_as_tensors(value) for value in state)
    return state


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """PyTorch warns where there is no process group, although it was told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _reason(error: BaseException) -> str:
    """The cause of an error in one line; PyTorch gathers those of all ranks in one that is no `Exception`."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
