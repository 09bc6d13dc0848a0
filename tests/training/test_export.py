"""From any checkpoint of a run to a directory that others load."""

import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from headstart.checkpoints.reader import load_checkpoint
from headstart.training.distributed import ONE_PROCESS, World
from headstart.training.errors import TrainingError
from headstart.training.export import export_run, fold_and_save
from headstart.training.recipe import recipe_of
from headstart.training.run import Run, RunOptions
from headstart.training.seams import Transform
from headstart.training.stack import TrainingStack
from tests.training import workbench
from tests.training.workbench import FIRST, phase, recipe, weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = workbench.make_corpus(tmp_path_factory.mktemp("corpus"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.training.run.plot_run", lambda directory: None)
        workbench.run(base, base / "run", recipe(phase(steps=6, **FIRST), checkpoint_every=4))
    return base / "run"


def test_the_newest_checkpoint_or_the_one_that_is_named(run: Path, tmp_path: Path) -> None:
    assert export_run(run, tmp_path / "newest", torch.float32) == 6
    assert export_run(run / "checkpoints" / "step-00000004", tmp_path / "named", torch.float32) == 4
    newest, named, whole = (weights(path) for path in (tmp_path / "newest", tmp_path / "named", run / "model"))
    assert all(torch.equal(newest[name], whole[name]) for name in whole)
    assert not all(torch.equal(named[name], whole[name]) for name in whole)
    checkpoint = load_checkpoint(str(tmp_path / "newest"), dtype="float32")
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.eos_token == "<|endoftext|>"


def test_the_dtype_is_that_which_is_asked_for(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "out")
    found, exact = weights(tmp_path / "out"), weights(run / "model")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert all(torch.equal(found[name], exact[name].bfloat16()) for name in exact)


def test_a_run_may_have_moved(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "moved")
    assert export_run(tmp_path / "moved", tmp_path / "out") == 6


def test_what_is_no_run_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="neither a run's directory"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(TrainingError, match="neither a run's directory"):
        export_run(tmp_path / "step-00000001", tmp_path / "out")
    with pytest.raises(TrainingError, match="no checkpoint of step 5; it has those of the steps 4, 6"):
        export_run(run / "checkpoints" / "step-00000005", tmp_path / "out")
    shutil.copytree(run, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty" / "checkpoints")
    with pytest.raises(TrainingError, match="no checkpoint; it has none yet"):
        export_run(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_transforms_are_folded_the_last_one_first(run: Path, tmp_path: Path) -> None:
    folded = []

    class Named(Transform):
        def __init__(self, name: str) -> None:
            self.name = name

        def apply_(self, model: nn.Module) -> None:
            raise AssertionError("it is on already")

        def fold(self, model: nn.Module) -> None:
            folded.append(self.name)

    stacks = [TrainingStack(), TrainingStack()]
    stacks[0].methods.extend([Named("a"), Named("b")])
    stacks[1].methods.append(Named("c"))
    network = load_checkpoint(str(run / "model"), dtype="float32").decoder
    fold_and_save(network, stacks, tmp_path / "out", torch.float32, run.parent / "tokenizer")
    assert folded == ["c", "b", "a"]


def test_a_transform_is_applied_before_training_and_gone_after_the_export(run: Path, tmp_path: Path) -> None:
    class Scaled(nn.Module):
        """A weight times a trained factor."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.factor = inner, nn.Parameter(torch.tensor(1.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.factor

    class Scale(Transform):
        def apply_(self, model: nn.Module) -> None:
            mlp = model.get_submodule("layers.0.mlp")
            if not isinstance(mlp.down, Scaled):
                mlp.down = Scaled(mlp.down)  # type: ignore[arg-type]

        def fold(self, model: nn.Module) -> None:
            mlp = model.get_submodule("layers.0.mlp")
            if isinstance(mlp.down, Scaled):
                with torch.no_grad():
                    mlp.down.inner.weight.mul_(mlp.down.factor)  # type: ignore[union-attr,operator]
                mlp.down = mlp.down.inner

    base = run.parent
    options = RunOptions(tmp_path, base, "cpu", console=Console(quiet=True), export_dtype=torch.float32)
    scaled = Run(recipe_of(recipe(phase("one", 3, **FIRST), phase("two", 1)), "r"), options, ONE_PROCESS)
    for stack in scaled.stacks:
        stack.methods.append(Scale())
    scaled.execute()
    factor = scaled.network.get_parameter("layers.0.mlp.down.factor")
    assert factor.item() != 1.0
    scaled.export(tmp_path / "out")
    exported = weights(tmp_path / "out")
    inner = scaled.network.get_parameter("layers.0.mlp.down.inner.weight")
    torch.testing.assert_close(exported["model.layers.0.mlp.down_proj.weight"], (inner * factor).detach())
    # The network in training goes on as it was.
    assert isinstance(scaled.network.get_submodule("layers.0.mlp.down"), Scaled)
    assert list(exported) == list(weights(run / "model"))


def test_sharded_weights_are_exported_from_the_checkpoint(run: Path, tmp_path: Path) -> None:
    options = RunOptions(tmp_path, run.parent, "cpu")
    one = Run(recipe_of(recipe(), "r"), options, ONE_PROCESS)
    one.world = World(0, 2, torch.device("cpu"), object())  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="exported from its checkpoint"):
        one.export(tmp_path / "out")
