"""What changes from phase to phase: weights, optimizers, and who moves what."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from headstart.models.decoder import Decoder
from headstart.training.distributed import ONE_PROCESS, World
from headstart.training.errors import TrainingError
from headstart.training.optimizers import AdamW
from headstart.training.recipe import recipe_of
from headstart.training.run import Run, RunOptions
from headstart.training.seams import OptimizerFactory, Transform
from tests.training import workbench
from tests.training.workbench import FIRST, phase, recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workbench.make_corpus(tmp_path_factory.mktemp("corpus"))


class Grow(Transform):
    """Gives the final norm a bias."""

    def apply_(self, model: nn.Module) -> None:
        if not hasattr(model.norm, "shift"):
            model.norm.shift = nn.Parameter(torch.zeros(32))  # type: ignore[union-attr]

    def fold(self, model: nn.Module) -> None:
        del model.norm.shift  # type: ignore[union-attr]


def run_of(base: Path, out: Path, content: dict[str, Any], second: list[Any], world: World = ONE_PROCESS) -> Run:
    """A run whose second phase has methods."""
    run = Run(recipe_of(content, "r"), RunOptions(out, base, "cpu", console=Console(quiet=True)), world)
    out.mkdir(exist_ok=True)
    run.stacks[1].methods.extend(second)
    return run


def test_an_optimizer_that_is_kept_goes_on_with_its_moments(base: Path, tmp_path: Path) -> None:
    def moments(*phases: dict[str, Any]) -> float:
        run = run_of(base, tmp_path / str(len(list(tmp_path.iterdir()))), recipe(*phases), [])
        run.execute()
        return next(iter(run.optimizers[0].state.values()))["step"].item()

    assert moments(phase("one", 3, **FIRST), phase("two", 2)) == 5
    assert moments(phase("one", 3, **FIRST), phase("two", 2, optimizer=FIRST["optimizer"])) == 2


def test_weights_that_come_in_a_later_phase_need_an_optimizer(base: Path, tmp_path: Path) -> None:
    phases = phase("one", 1, **FIRST), phase("two", 1)
    with pytest.raises(TrainingError, match=r"phase two: no optimizer moves the weight norm.shift; give the phase an"):
        run_of(base, tmp_path / "without", recipe(*phases), [Grow()]).execute()
    phases[1]["optimizer"] = FIRST["optimizer"]
    run = run_of(base, tmp_path / "with", recipe(*phases), [Grow()])
    run.execute()
    assert "norm.shift" in dict(run.network.named_parameters())


def test_no_weight_is_moved_twice(base: Path, tmp_path: Path) -> None:
    class Twice(OptimizerFactory):
        def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
            return AdamW().build(model) + AdamW().build(model)

    with pytest.raises(TrainingError, match=r"phase two: two optimizers move the weight embedding\.weight"):
        run_of(base, tmp_path, recipe(phase("one", 1, **FIRST), phase("two", 1)), [Twice()]).execute()


def test_weights_that_are_shared_out_are_not_replaced_later(base: Path, tmp_path: Path) -> None:
    run = run_of(base, tmp_path, recipe(phase("one", 1, **FIRST), phase("two", 1)), [Grow()])
    run.world = World(0, 1, torch.device("cpu"), object())  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="phase two changes weights that are shared out over ranks"):
        run._enter(1)


def test_what_the_first_phase_makes_of_a_model_is_there_before_anything_is_put_around_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Seen(Grow):
        def apply_(self, model: nn.Module) -> None:
            assert isinstance(model, Decoder)
            seen.append(type(model.layers[0]).__name__)
            super().apply_(model)

    real = Run.__init__.__globals__["TrainingStack"]

    def stacked(use: object) -> object:
        stack = real(use)
        stack.methods.append(Seen())
        return stack

    monkeypatch.setitem(Run.__init__.__globals__, "TrainingStack", stacked)
    content = recipe(phase("one", 1, **FIRST), activation_checkpointing=True)
    Run(recipe_of(content, "r"), RunOptions(tmp_path, base, "cpu"), ONE_PROCESS)
    assert seen == ["Layer"]
